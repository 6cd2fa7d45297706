"""`locks`: a row is locked, and the object is what the row is now."""

from __future__ import annotations

import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    event,
    func,
    insert,
    join,
    outerjoin,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoResultFound
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    column_property,
    joinedload,
    mapped_column,
    relationship,
    with_polymorphic,
)
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, errors, locks, sqlite
from tests.support.models import Account, Address, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
SQLITE = pytest.mark.doors(backend="sqlite")
MODES = ("update", "no_key_update", "share", "key_share")
LONG = bool(os.environ.get("SESSIONKIT_LONG"))


def lock_of(doors: Door) -> Any:
    return doors.twin(locks.lock, locks.async_lock)


def lock_all_of(doors: Door) -> Any:
    return doors.twin(locks.lock_all, locks.async_lock_all)


def take_of(doors: Door) -> Any:
    return doors.twin(locks.take, locks.async_take)


async def fill(doors: Door, count: int = 3, **values: Any) -> None:
    await doors.write(insert(Account).values([{"id": i, "balance": 10 * i, **values} for i in range(1, count + 1)]))


def behind(doors: Door, session: AsyncSession, **values: Any) -> Any:
    """Change the accounts past the session, in its own transaction: what a refresh has to find."""
    return session.execute(update(Account).values(**values).execution_options(synchronize_session=False))


# -- the object as it is now ----------------------------------------------------------------------------------------


@POSTGRESQL
async def test_who_waited_for_a_row_gets_what_the_other_has_made_of_it(doors: Door) -> None:
    """The object was loaded before the wait; SQLAlchemy's own FOR UPDATE hands it back with the value of then."""
    await fill(doors)
    lock, locked, read = lock_of(doors), doors.event(), doors.event()
    seen: list[int] = []

    async def first() -> None:
        async with doors.scope() as session:
            account = await lock(session, Account, 1)
            locked.set()
            await read.wait()
            account.balance += 1

    async def second() -> None:
        async with doors.scope() as session:
            await locked.wait()
            account = await session.get_one(Account, 1)
            read.set()
            assert account.balance == 10
            assert await lock(session, Account, 1) is account
            seen.append(account.balance)
            account.balance += 1

    await doors.together(first, second)
    assert seen == [11]
    assert await doors.scalar("SELECT balance FROM accounts WHERE id = 1") == 12


async def test_a_loaded_object_is_refreshed_by_each_of_the_three(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        account = await session.get_one(Account, 1)
        await behind(doors, session, balance=50)
        assert (await lock_of(doors)(session, Account, 1)).balance == 50
        await behind(doors, session, balance=60)
        assert [a.balance for a in await lock_all_of(doors)(session, Account, [2, 1])] == [60, 60]
        await behind(doors, session, balance=70)
        assert (await take_of(doors)(session, select(Account).order_by(Account.id))) is account
        assert account.balance == 70


async def test_on_a_plain_session_they_work_the_same(doors: Door) -> None:
    await fill(doors)
    if doors.backend == "sqlite":
        sqlite.configure(doors.engine)
    for factory in (doors.plain_factory(), doors.Session):
        async with doors.session(factory) as session:
            account = await lock_of(doors)(session, Account, 1)
            account.balance += 1
            assert [a.id for a in await lock_all_of(doors)(session, Account, [3, 2, 3])] == [3, 2, 3]
            assert (await take_of(doors)(session, select(Account).where(Account.id > 2))).id == 3
            await session.commit()
    assert await doors.scalar("SELECT balance FROM accounts WHERE id = 1") == 12


async def test_a_scoped_session_is_accepted(doors: Door) -> None:
    await fill(doors)
    async with doors.scope():
        assert (await lock_of(doors)(doors.scoped(), Account, 1)).id == 1


async def test_the_other_twin_is_named_where_the_session_is_of_the_other_kind(doors: Door) -> None:
    async with doors.scope() as session:
        raw = doors.raw(session)
        with pytest.raises(errors.SyncAsyncMismatch, match=r"async_take\(\)|call take\(\)"):
            if doors.colour == "async":
                locks.take(raw, select(Account))
            else:
                locks.async_take(raw, select(Account)).send(None)


# -- what is refused before anything is sent ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["changed", "deleted"])
async def test_an_object_with_changes_is_refused_and_keeps_them(doors: Door, how: str) -> None:
    await fill(doors)
    async with doors.scope() as session:
        account = await session.get_one(Account, 1)
        if how == "changed":
            account.balance = 99
        else:
            await session.delete(account)
        with doors.statements() as sql:
            with pytest.raises(errors.LockError, match=r"Account 1, which (has changes|is marked for deletion)"):
                await lock_of(doors)(session, Account, 1)
            with pytest.raises(errors.LockError, match="Account 1"):
                await lock_all_of(doors)(session, Account, [2, "1"])
        assert sql == []
    expected = [(1, 99)] if how == "changed" else []
    assert await doors.rows("SELECT id, balance FROM accounts WHERE id = 1") == expected


async def test_a_value_set_to_what_it_was_is_no_change(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        (await session.get_one(Account, 1)).balance = 10
        assert (await lock_of(doors)(session, Account, 1)).balance == 10


async def test_changes_of_other_objects_are_never_lost(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        one, two, three = [await session.get_one(Account, i) for i in (1, 2, 3)]
        with doors.sync(session).no_autoflush:
            two.balance, three.balance = 77, 78
            await behind(doors, session, balance=50)
            assert (await lock_of(doors)(session, Account, 1)) is one
            assert (one.balance, two.balance) == (50, 77)
            await lock_of(doors)(session, Account, 1, wait=False)
            assert (one.balance, two.balance, three.balance) == (50, 77, 78)
    assert await doors.rows("SELECT balance FROM accounts ORDER BY id") == [(50,), (77,), (78,)]


async def test_take_flushes_first_and_refuses_where_nothing_flushes(doors: Door) -> None:
    await fill(doors)
    query = select(Account).where(Account.balance >= 10).order_by(Account.id)
    async with doors.scope() as session:
        account = await session.get_one(Account, 1)
        account.balance = 5
        assert (await take_of(doors)(session, query)).id == 2
        account.balance = 15
        with doors.sync(session).no_autoflush, pytest.raises(errors.LockError, match="autoflush is off"):
            await take_of(doors)(session, query)
        assert account.balance == 15


async def test_a_read_only_scope_and_autocommit_are_refused(doors: Door) -> None:
    await fill(doors)
    async with doors.scope(read_only=True) as session:
        for call in (lock_of(doors)(session, Account, 1), take_of(doors)(session, select(Account))):
            with pytest.raises(errors.LockError, match="read-only"):
                await call
    async with doors.scope() as session:
        async with doors.scope(read_only=True):
            with pytest.raises(errors.LockError, match="read-only"):
                await lock_of(doors)(session, Account, 1)
        await lock_of(doors)(session, Account, 1)
    engine = doors.make_engine(isolation_level="AUTOCOMMIT")
    async with doors.session(doors.plain_factory(engine)) as session:
        with pytest.raises(errors.LockError, match="AUTOCOMMIT"):
            await lock_all_of(doors)(session, Account, [1])
    async with doors.session(doors.plain_factory()) as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with doors.statements() as sql, pytest.raises(errors.LockError, match="AUTOCOMMIT"):
            await lock_of(doors)(session, Account, 1)
        assert sql == []


@SQLITE
async def test_on_sqlite_only_begin_immediate_locks(doors: Door) -> None:
    await fill(doors)
    async with doors.session(doors.plain_factory()) as session:
        with pytest.raises(errors.LockError, match="BEGIN IMMEDIATE"):
            await lock_of(doors)(session, Account, 1)
    deferred = doors.make_engine()
    sqlite.configure(deferred, begin="deferred")
    for factory in (doors.plain_factory(deferred), doors.factory(deferred)):
        async with doors.session(factory) as session:
            with pytest.raises(errors.LockError, match="BEGIN IMMEDIATE"):
                await lock_of(doors)(session, Account, 1)
    async with doors.scope(doors.factory(deferred)) as session:
        with pytest.raises(errors.LockError, match="BEGIN IMMEDIATE"):
            await take_of(doors)(session, select(Account))
    listening = doors.make_engine()
    event.listen(doors.sync_engine_of(listening), "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    async with doors.session(doors.plain_factory(listening)) as session:
        with pytest.raises(errors.LockError, match="BEGIN IMMEDIATE"):
            await lock_of(doors)(session, Account, 1)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"mode": "exclusive"}, r"'update', 'no_key_update', 'share', 'key_share'"),
        ({"wait": -1}, "0 or more"),
        ({"wait": float("inf")}, "0 or more"),
        ({"wait": float("nan")}, "0 or more"),
        ({"wait": "1"}, "True, False"),
        ({"wait": None}, "True, False"),
    ],
)
async def test_an_unknown_mode_or_wait_is_refused(doors: Door, options: dict[str, Any], found: str) -> None:
    async with doors.scope() as session:
        with pytest.raises(errors.OptionError, match=found):
            await lock_of(doors)(session, Account, 1, **options)
        with pytest.raises(errors.OptionError, match=found):
            await lock_all_of(doors)(session, Account, [], **options)


NOT_TAKEN: dict[str, Any] = {
    "columns": select(Account.id),
    "two classes": select(Account, User).join(User, User.id == Account.id),
    "text": text("SELECT 1"),
    "LIMIT": select(Account).limit(1),
    "OFFSET": select(Account).offset(1),
    "DISTINCT": select(Account).distinct(),
    "GROUP BY": select(Account).group_by(Account.id),
    "FOR UPDATE": select(Account).with_for_update(),
    "nullable": select(Address).select_from(outerjoin(User, Address)),
    "an alias of Account that means": select(aliased(Account, select(Account).subquery())),
    "yield_per": select(Account).execution_options(yield_per=10),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
async def test_a_query_that_cannot_be_taken_from_is_refused(doors: Door, name: str) -> None:
    async with doors.scope() as session:
        with pytest.raises(errors.LockError, match="select" if name in {"columns", "two classes", "text"} else name):
            await take_of(doors)(session, NOT_TAKEN[name])
        with pytest.raises(errors.OptionError, match="limit=0"):
            await take_of(doors)(session, select(Account), limit=0)
        with pytest.raises(errors.OptionError, match="'update', 'no_key_update'"):
            await take_of(doors)(session, select(Account), mode="share")


async def test_a_missing_row_is_no_result(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        with pytest.raises(NoResultFound, match="Account 7 "):
            await lock_of(doors)(session, Account, 7)
        with pytest.raises(NoResultFound, match="Account 8, 9 "):
            await lock_all_of(doors)(session, Account, [8, 1, 9])
        with pytest.raises(NoResultFound, match="Account 8 was asked for, but there is no such row"):
            await lock_all_of(doors)(session, Account, [8, 1])
        with pytest.raises(NoResultFound, match="Account 11, 12, .*, 110 and 5 more were asked for"):
            await lock_all_of(doors)(session, Account, range(11, 116))
        with doors.statements() as sql:
            assert await lock_all_of(doors)(session, Account, []) == []
        assert sql == []
        with pytest.raises(InvalidRequestError, match="the primary key of Account is id, so a key is one value"):
            await lock_of(doors)(session, Account, (1, 2))
        assert (await lock_of(doors)(session, Account, {"id": 1})).id == 1
        assert (await lock_of(doors)(session, Account, (2,))).id == 2


@pytest.mark.parametrize("keys", ["12", b"12", 5, None, {"id": 1}])
async def test_keys_that_are_no_list_are_refused(doors: Door, keys: Any) -> None:
    """A string is a list of its letters to Python: it would lock the rows 1 and 2."""
    await fill(doors)
    async with doors.scope() as session:
        with doors.statements() as sql, pytest.raises(errors.OptionError, match="no list of keys"):
            await lock_all_of(doors)(session, Account, keys)
        assert sql == []


@POSTGRESQL
async def test_of_a_call_that_misses_a_row_nothing_stays_locked(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        with pytest.raises(NoResultFound):
            await lock_all_of(doors)(session, Account, [1, 2, 8])
        async with doors.scope(propagation="new") as other:
            assert [a.id for a in await lock_all_of(doors)(other, Account, [2, 1], wait=False)] == [2, 1]


# -- modes and waits ------------------------------------------------------------------------------------------------

MEET = {
    "update": "",
    "no_key_update": "key_share",
    "share": "share key_share",
    "key_share": "no_key_update share key_share",
}
"""Which locks of a row two may have at the same time: PostgreSQL's manual, table 13.3."""


@POSTGRESQL
async def test_modes_conflict_as_postgresql_has_them(doors: Door) -> None:
    await fill(doors)
    for held in MODES:
        async with doors.scope() as session:
            await lock_of(doors)(session, Account, 1, mode=held)
            async with doors.scope(propagation="new") as other:
                for asked in MODES:
                    if asked in MEET[held].split():
                        async with doors.scope(propagation="savepoint"):
                            assert (await lock_of(doors)(other, Account, 1, mode=asked, wait=False)).id == 1
                    else:
                        with pytest.raises(errors.NotLocked):
                            await lock_of(doors)(other, Account, 1, mode=asked, wait=False)


@POSTGRESQL
@pytest.mark.parametrize("wait", [False, 0.02])
async def test_what_is_not_had_in_time_leaves_the_session_usable(doors: Door, wait: float) -> None:
    await fill(doors)
    async with doors.scope() as session:
        (await lock_of(doors)(session, Account, 2)).balance = 0
        await session.flush()
        pid = await session.scalar(select(func.pg_backend_pid()))
        async with doors.scope(propagation="new", lock_timeout=30) as other:
            account = await other.get_one(Account, 2)
            other.add(User(name="ann"))
            with pytest.raises(errors.NotLocked) as caught:
                await lock_of(doors)(other, Account, 2, wait=wait)
            assert account.balance == 20
            assert await other.scalar(text("SELECT current_setting('lock_timeout')")) == "30s"
            other.add(User(name="bob"))
            with pytest.raises(errors.NotLocked):
                await lock_all_of(doors)(other, Account, [1, 2, 3], wait=wait)
    error = caught.value
    assert isinstance(error, DBAPIError)
    assert type(error.__cause__) in type(error).__mro__
    assert errors.classify(error) == errors.Classification("lock_not_available", "55P03", False, False)
    (holder,) = error.holders
    assert holder.pid == pid
    assert holder.since is not None
    assert holder.since.tzinfo is not None
    assert str(pid) in str(error)
    assert "Account 2 could not be locked" in str(error)
    assert await doors.rows("SELECT name FROM users ORDER BY name") == [("ann",), ("bob",)]
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.holders, str(copied)) == (type(error), error.holders, str(error))


@POSTGRESQL
async def test_a_flush_that_waits_in_vain_is_not_told_as_a_lock_that_was_not_had(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        await lock_of(doors)(session, Account, 1)
        with pytest.raises(DBAPIError) as caught:
            async with doors.scope(propagation="new", lock_timeout=0.02) as other:
                (await other.get_one(Account, 1)).balance = 0
                await lock_of(doors)(other, Account, 2, wait=5)
    assert not isinstance(caught.value, errors.NotLocked)


@POSTGRESQL
async def test_a_view_can_be_locked_and_of_its_holders_nothing_is_told(doors: Door) -> None:
    await fill(doors)
    await doors.write("CREATE VIEW lock_view AS SELECT id, balance FROM accounts")
    viewed = Table("lock_view", MetaData(), Column("id", Integer, primary_key=True), Column("balance", Integer))

    class Viewed(DeclarativeBase):
        __abstract__ = True

    class Row(Viewed):
        __table__ = viewed

    async with doors.scope() as session:
        assert (await lock_of(doors)(session, Row, 1)).balance == 10
        async with doors.scope(propagation="new") as other:
            with pytest.raises(errors.NotLocked) as caught:
                await lock_of(doors)(other, Row, 1, wait=False)
            assert caught.value.holders == ()
            assert (await lock_of(doors)(other, Row, 2)).balance == 20
    await doors.write("DROP VIEW lock_view")


@POSTGRESQL
async def test_a_wait_that_succeeds_leaves_the_timeout_as_it_was(doors: Door) -> None:
    await fill(doors)
    for options, shown in (({}, "0"), ({"lock_timeout": 7}, "7s"), ({"lock_timeout": 0.25}, "250ms")):
        async with doors.scope(**options) as session:
            assert [a.id for a in await lock_all_of(doors)(session, Account, [3, 1], wait=0.5)] == [3, 1]
            assert await session.scalar(text("SELECT current_setting('lock_timeout')")) == shown


@POSTGRESQL
async def test_a_wait_is_bounded_by_the_lock_timeout_of_the_scope_too(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        await lock_of(doors)(session, Account, 1)
        for wait in (True, 30):
            with pytest.raises(errors.NotLocked, match=r"within 0.02 s, the scope's lock_timeout"):
                async with doors.scope(propagation="new", lock_timeout=0.02) as other:
                    await lock_of(doors)(other, Account, 1, wait=wait)


async def test_on_sqlite_modes_and_waits_are_checked_and_change_nothing(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        for mode in MODES:
            for wait in (True, False, 0.5):
                assert (await lock_of(doors)(session, Account, 1, mode=mode, wait=wait)).balance == 10


# -- keys in order --------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_keys_are_locked_in_the_order_of_the_database(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        with doors.statements() as sql:
            assert [a.id for a in await lock_all_of(doors)(session, Account, [3, 1, 2, 1])] == [3, 1, 2, 1]
    (statement,) = [line for line in sql if line.startswith("SELECT")]
    assert "ORDER BY accounts.id FOR UPDATE OF accounts" in statement


@POSTGRESQL
@pytest.mark.timeout(600 if LONG else 120)
async def test_random_sets_in_random_order_never_deadlock(doors: Door) -> None:
    await fill(doors, 12)
    lock_all, rounds = lock_all_of(doors), 1_700 if LONG else 25

    async def body(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(rounds):
            async with doors.scope() as session:
                for account in await lock_all(session, Account, dice.sample(range(1, 13), dice.randint(1, 6))):
                    account.balance += 1

    await doors.together(*[lambda seed=seed: body(seed) for seed in range(6)])


async def test_a_key_of_another_type_is_understood_as_the_database_does(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        account = await session.get_one(Account, 1)
        await behind(doors, session, balance=50)
        if doors.driver == "asyncpg":
            with pytest.raises(DBAPIError):
                await lock_of(doors)(session, Account, "1", wait=False)
            return
        assert await lock_of(doors)(session, Account, "1") is account
        assert await lock_all_of(doors)(session, Account, ["1", 2]) == [account, await session.get_one(Account, 2)]
        assert account.balance == 50


# -- mappings -------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "lock_persons"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012

    first: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    second: Mapped[str] = mapped_column(String(10), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(20), default="nobody")
    bag: Mapped[list[Bag]] = relationship(lazy="joined", order_by="Bag.id")


class Manager(Person):
    __tablename__ = "lock_managers"
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012

    first: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    second: Mapped[str] = mapped_column(String(10), primary_key=True)
    budget: Mapped[int] = mapped_column(default=0)
    __table_args__ = (ForeignKeyConstraint(["first", "second"], ["lock_persons.first", "lock_persons.second"]),)


class Bag(Base):
    __tablename__ = "lock_bags"

    id: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[int]
    second: Mapped[str] = mapped_column(String(10))
    __table_args__ = (ForeignKeyConstraint(["first", "second"], ["lock_persons.first", "lock_persons.second"]),)


class Note(Base):
    __tablename__ = "lock_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    bag_id: Mapped[int | None] = mapped_column(ForeignKey("lock_bags.id"))


class Grouped(Base):
    __table__ = (
        select(Bag.__table__.c.first.label("id"), func.count().label("bags")).group_by(Bag.__table__.c.first).subquery()
    )
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012


class Noted(Base):
    __table__ = join(Note.__table__, Bag.__table__, Note.__table__.c.bag_id == Bag.__table__.c.id)
    id = column_property(Note.__table__.c.id)
    bag_id = column_property(Note.__table__.c.bag_id, Bag.__table__.c.id)


class MaybeNoted(Base):
    __table__ = outerjoin(Note.__table__, Bag.__table__, Note.__table__.c.bag_id == Bag.__table__.c.id)
    id = column_property(Note.__table__.c.id)
    bag_id = column_property(Note.__table__.c.bag_id, Bag.__table__.c.id)
    __mapper_args__ = {"primary_key": [Note.__table__.c.id]}  # noqa: RUF012


class Director(Manager):
    __tablename__ = "lock_directors"  # sorts before its bases: the order must not be that of the names
    __mapper_args__ = {"polymorphic_identity": "director"}  # noqa: RUF012

    first: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    second: Mapped[str] = mapped_column(String(10), primary_key=True)
    __table_args__ = (ForeignKeyConstraint(["first", "second"], ["lock_managers.first", "lock_managers.second"]),)


@pytest.fixture
def persons(doors: Door) -> None:
    Base.metadata.create_all(doors.database.observer)
    with doors.database.observer.begin() as connection:
        filled: dict[str, list[Any]] = {
            "lock_persons": [(1, "a", "manager", "ann"), (2, "b", "person", "bob")],
            "lock_managers": [(1, "a", 5)],
            "lock_bags": [(1, 1, "a"), (2, 1, "a")],
            "lock_notes": [(1, 1), (2, None)],
        }
        for table, rows in filled.items():
            connection.execute(insert(Base.metadata.tables[table]).values(rows))


async def locked_rows(doors: Door, table: str) -> int:
    """Return how many rows of a table somebody has locked, seen by another connection."""
    order = {"lock_persons": "first", "lock_managers": "first"}.get(table, "id")
    free = await doors.rows(f"SELECT {order} FROM {table} FOR UPDATE SKIP LOCKED")
    return len(await doors.rows(f"SELECT {order} FROM {table}")) - len(free)


@POSTGRESQL
@pytest.mark.usefixtures("persons")
@pytest.mark.parametrize("entity", [Person, Manager])
@pytest.mark.parametrize("loaded", [False, True])
async def test_the_rows_of_all_tables_of_the_objects_class_are_locked_and_read(
    doors: Door, entity: type[Person], loaded: bool
) -> None:
    async with doors.scope() as session:
        manager = await session.get_one(Manager, (1, "a")) if loaded else None
        await session.execute(text("UPDATE lock_managers SET budget = 9"))
        found = await lock_of(doors)(session, entity, (1, "a"))
        assert (await locked_rows(doors, "lock_persons"), await locked_rows(doors, "lock_managers")) == (1, 1)
        assert await locked_rows(doors, "lock_bags") == 0
        assert found is manager or not loaded
        assert (found.budget, [bag.id for bag in found.bag]) == (9, [1, 2])
    async with doors.scope() as session:
        first, second = await lock_all_of(doors)(session, Person, [(2, "b"), {"second": "a", "first": 1}])
        assert (first.name, second.budget) == ("bob", 9)
        assert (await locked_rows(doors, "lock_persons"), await locked_rows(doors, "lock_managers")) == (2, 1)
    async with doors.scope() as session:
        taken = await take_of(doors)(session, select(entity).order_by(entity.first))
        assert taken.budget == 9
        assert (await locked_rows(doors, "lock_persons"), await locked_rows(doors, "lock_managers")) == (1, 1)


async def add_director(doors: Door) -> None:
    tables = Base.metadata.tables
    await doors.write(insert(tables["lock_persons"]).values(first=3, second="c", kind="director", name="eve"))
    await doors.write(insert(tables["lock_managers"]).values(first=3, second="c", budget=5))
    await doors.write(insert(tables["lock_directors"]).values(first=3, second="c"))


HIERARCHY = ("lock_persons", "lock_managers", "lock_directors")


@POSTGRESQL
@pytest.mark.usefixtures("persons")
@pytest.mark.parametrize("entity", [Person, Manager, Director])
@pytest.mark.parametrize("call", ["lock", "lock_all", "take"])
async def test_the_tables_of_an_object_are_locked_from_the_base_class_down(
    doors: Door, entity: type[Person], call: str
) -> None:
    """Otherwise two calls for one object, asked for by different classes, can deadlock."""
    await add_director(doors)
    async with doors.scope() as session:
        with doors.statements() as sql:
            if call == "lock":
                await lock_of(doors)(session, entity, (3, "c"))
            elif call == "lock_all":
                await lock_all_of(doors)(session, entity, [(3, "c")])
            else:
                await take_of(doors)(session, select(entity).where(entity.first == 3))
    found = [line.partition("FOR UPDATE OF ")[2].partition(" SKIP")[0] for line in sql]
    assert ", ".join(filter(None, found)) == ", ".join(HIERARCHY)


@POSTGRESQL
@pytest.mark.usefixtures("persons")
async def test_a_unit_that_locks_on_retry_locks_them_in_that_order_too(doors: Door) -> None:
    await add_director(doors)
    attempts: list[list[str]] = []

    async def unit(session: AsyncSession) -> None:
        with doors.statements() as sql:
            attempts.append(sql)
            (await session.scalars(select(Director))).unique().one()
            if len(attempts) == 1:
                raise StaleDataError

    await doors.decorate(unit, retry=Retry(2, wait=0, lock_on_retry=True))()
    assert attempts[1][-1].endswith(f"FOR UPDATE OF {', '.join(HIERARCHY)}")


@POSTGRESQL
@pytest.mark.usefixtures("persons")
async def test_the_server_locks_the_tables_in_the_order_of_the_statement(doors: Door) -> None:
    """Where several rows are held by another, the one that it complains about is the one that it has tried first."""
    await add_director(doors)
    async with doors.scope() as session:
        for table in reversed(HIERARCHY):
            await session.execute(text(f"SELECT 1 FROM {table} FOR UPDATE"))
            async with doors.scope(propagation="new") as other:
                with pytest.raises(errors.NotLocked) as caught:
                    await lock_of(doors)(other, Director, (3, "c"), wait=False)
            assert f'"{table}"' in str(caught.value.orig)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("persons")
async def test_an_alias_of_several_tables_is_named_as_the_reason(doors: Door) -> None:
    async with doors.scope() as session:
        for entity in (with_polymorphic(Person, "*"), aliased(Manager)):
            with pytest.raises(errors.LockError, match="an alias of (Person|Manager) that means"):
                await take_of(doors)(session, select(entity))


@pytest.mark.usefixtures("persons")
async def test_a_class_that_is_mapped_to_what_has_no_rows_is_refused(doors: Door) -> None:
    async with doors.scope() as session:
        for entity in (Grouped, MaybeNoted):
            with pytest.raises(errors.LockError, match="cannot be locked"):
                await lock_of(doors)(session, entity, 1)
            with pytest.raises(errors.LockError, match="cannot be locked"):
                await take_of(doors)(session, select(entity))
        assert (await lock_of(doors)(session, Noted, (1, 1))).id == 1
        with pytest.raises(errors.LockError, match="mapped class"):
            await lock_of(doors)(session, Base.metadata.tables["lock_bags"], 1)


# -- take -----------------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_take_passes_over_what_others_have_and_keeps_the_order(doors: Door) -> None:
    await fill(doors, 5)
    take, query = take_of(doors), select(Account).where(Account.balance > 10).order_by(Account.balance.desc())
    async with doors.scope() as session:
        assert (await take(session, query)).id == 5
        async with doors.scope(propagation="new") as other:
            assert [a.id for a in await take(other, query, limit=2)] == [4, 3]
            async with doors.scope(propagation="new") as third:
                assert (await take(third, query, mode="no_key_update")).id == 2
                assert await take(third, query.where(Account.id != 2)) is None
                assert await take(third, query.where(Account.id != 2), limit=3) == []


async def test_take_works_with_joins_aliases_and_eager_loads(doors: Door) -> None:
    await doors.write(insert(User).values([{"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}]))
    await doors.write(insert(Address).values([{"user_id": 2, "email": "x"}, {"user_id": 2, "email": "y"}]))
    other = aliased(User)
    for query in (
        select(User).join(User.addresses).order_by(User.id),
        select(User).outerjoin(User.addresses).where(Address.id.is_not(None)),
        select(other).where(other.name == "bob"),
        select(User).where(User.id == 2).options(joinedload(User.addresses)),
        select(User).where(User.addresses.any(Address.email == "x")),
    ):
        async with doors.scope() as session:
            assert (await take_of(doors)(session, query)).id == 2
        async with doors.scope() as session:
            assert {user.id for user in await take_of(doors)(session, query, limit=5)} == {2}


async def test_jobs_are_done_once_each_by_takers_at_the_same_time(doors: Door) -> None:
    count = 200
    await fill(doors, count)
    take, query = take_of(doors), select(Account).where(Account.owner == "nobody").order_by(Account.id)
    done: list[int] = []

    async def body(name: str) -> None:
        while True:
            async with doors.scope() as session:
                jobs = await take(session, query, limit=7)
                for job in jobs:
                    job.owner = name
            if not jobs:
                return
            done.extend(job.id for job in jobs)

    await doors.together(*[lambda name=name: body(name) for name in "abcd"])
    assert sorted(done) == list(range(1, count + 1))


def test_a_not_locked_without_a_drivers_error_is_classified_too() -> None:
    error = errors.NotLocked("somebody else has it", [errors.Holder(7, "shop")])
    assert errors.classify(error).kind == "lock_not_available"
    assert not errors.classify(error).retryable
    copied = pickle.loads(pickle.dumps(error))
    assert copied.holders == error.holders
