"""SQLite with real transactions: on engines that nobody configured, on configured ones, and on those with ways of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, NullPool, StaticPool, create_engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sessionkit import READ_ONLY, SERIALIZABLE, errors, sqlite
from sessionkit._dialects import _sqlite_config
from tests.contract.breaking import names
from tests.contract.settings import LOCK_NOT_AVAILABLE, READ_ONLY_VIOLATION, error_code
from tests.support.models import Address, Base, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="sqlite")


# Engines of every kind


def patient(doors: Door, connect_args: Any = None, **kw: Any) -> Any:
    """Return an engine that waits for locks nearly as long as the harness does: a busy disk is not what is tested."""
    return doors.make_engine(connect_args={"timeout": 25, **(connect_args or {})}, **kw)


def configured(engine: Any, **kw: Any) -> Any:
    return sqlite.configure(engine, busy_timeout=25, **kw)


def with_the_recipe(doors: Door) -> Any:
    """Make an engine as SQLAlchemy's documentation has it: real transactions by two listeners."""
    engine = patient(doors)

    @event.listens_for(doors.sync_engine_of(engine), "connect")
    def no_begin_by_the_driver(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None

    @event.listens_for(doors.sync_engine_of(engine), "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


KINDS: dict[str, Callable[[Door], Any]] = {
    "as it is": lambda doors: patient(doors),
    "configured": lambda doors: configured(patient(doors)),
    "configured, deferred": lambda doors: configured(patient(doors), begin="deferred"),
    "derived": lambda doors: patient(doors).execution_options(mine=True),
    "configured, then derived": lambda doors: configured(patient(doors)).execution_options(mine=True),
    "derived, then configured": lambda doors: configured(patient(doors).execution_options(mine=True)),
    "SQLAlchemy's recipe": with_the_recipe,
    "SQLAlchemy's recipe, configured": lambda doors: configured(with_the_recipe(doors)),
    "isolation_level": lambda doors: patient(doors, isolation_level="SERIALIZABLE"),
    "the driver's isolation_level": lambda doors: patient(doors, connect_args={"isolation_level": None}),
    "no pool": lambda doors: patient(doors, poolclass=NullPool),
}
if sys.version_info >= (3, 12):
    KINDS["autocommit=False"] = lambda doors: patient(doors, connect_args={"autocommit": False})
    KINDS["autocommit=False, configured"] = lambda doors: configured(patient(doors, connect_args={"autocommit": False}))

each_kind = pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in KINDS.items()])


def memory_engine(doors: Door, **kw: Any) -> Any:
    """Return an engine on a new database in memory, with the tables."""
    url = URL.create(f"sqlite+{doors.driver}")
    engine = doors._adopted(doors._create_engine(url, **kw), foreign_keys=False)
    sync_engine = doors.sync_engine_of(engine)

    @event.listens_for(sync_engine, "connect")
    def fill(dbapi_connection: Any, _record: object) -> None:
        from sqlalchemy.schema import CreateTable

        cursor = dbapi_connection.cursor()
        for table in Base.metadata.sorted_tables:
            cursor.execute(str(CreateTable(table).compile(dialect=sync_engine.dialect)))
        cursor.close()
        dbapi_connection.commit()

    return engine


@each_kind
async def test_a_scope_commits_what_it_did_and_rolls_back_what_failed(doors: Door, kind: Any) -> None:
    Session = doors.factory(kind(doors))
    async with doors.scope(Session) as session:
        session.add(User(name="ann"))
    with pytest.raises(LookupError):
        async with doors.scope(Session) as session:
            session.add(User(name="bob"))
            await session.flush()
            raise LookupError
    assert await names(doors) == ["ann"]


@each_kind
async def test_a_released_savepoint_is_undone_by_the_rollback_of_its_transaction(doors: Door, kind: Any) -> None:
    with pytest.raises(LookupError):
        async with doors.scope(doors.factory(kind(doors))) as session:
            async with session.begin_nested():
                session.add(User(name="ann"))
            raise LookupError
    assert await names(doors) == []


@each_kind
async def test_ddl_is_undone_by_the_rollback_of_its_transaction(doors: Door, kind: Any) -> None:
    with pytest.raises(LookupError):
        async with doors.scope(doors.factory(kind(doors))) as session:
            await session.execute(text("CREATE TABLE made (x integer)"))
            await session.execute(text("DROP TABLE pledges"))
            raise LookupError
    tables = {name for (name,) in await doors.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "made" not in tables
    assert "pledges" in tables


@each_kind
async def test_reads_are_repeatable(doors: Door, kind: Any) -> None:
    """The reader's BEGIN holds a snapshot or, in rollback journal mode, a lock that keeps the writer's COMMIT off."""
    engine = kind(doors)
    writer = doors.factory(doors.make_engine(connect_args={"timeout": 0.01}))
    async with doors.scope(doors.factory(engine), preset=READ_ONLY) as session:
        before = (await session.scalars(select(User.name))).all()
        committed = True
        try:
            await in_another_context(doors, writer)
        except OperationalError as error:
            assert error_code(error) == LOCK_NOT_AVAILABLE["sqlite"]
            committed = False
        assert (await session.scalars(select(User.name))).all() == before
    assert await names(doors) == (["ann"] if committed else [])


async def in_another_context(doors: Door, factory: Any) -> None:
    """Add a user in a scope that is nobody's inner one."""

    async def add() -> None:
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))

    await doors.together(add())


@pytest.mark.parametrize("configured", [False, True], ids=["as it is", "configured"])
async def test_a_commit_that_had_to_wait_too_long_leaves_nothing_behind(doors: Door, configured: bool) -> None:
    """SQLite leaves its transaction open; the next one on this connection must not commit it as well."""
    engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args={"timeout": 0.01})
    if configured:
        sqlite.configure(engine, wal=False, busy_timeout=0.01)
    writer = doors.factory(engine)
    async with doors.scope(preset=READ_ONLY) as session:
        await session.execute(select(User))
        with pytest.raises(OperationalError) as caught:
            await in_another_context(doors, writer)
        assert error_code(caught.value) == LOCK_NOT_AVAILABLE["sqlite"]
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []
    async with doors.scope(writer) as session:
        session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


async def test_the_failed_commit_of_a_plain_session_is_not_made_good_by_the_scope_that_comes_after_it(
    doors: Door,
) -> None:
    """SQLAlchemy takes the transaction for ended, and gives the connection back with it."""
    engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args={"timeout": 0.01})
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="before"))
    async with doors.scope(preset=READ_ONLY) as reader:
        await reader.execute(select(User))
        with pytest.raises(OperationalError):
            async with doors.session(Session) as session:
                session.add(User(name="lost"))
                await session.commit()
    async with doors.scope(Session) as session:
        session.add(User(name="after"))
    assert await names(doors) == ["before", "after"]


async def test_a_unit_whose_commit_had_to_wait_too_long_is_applied_once_when_it_is_retried(doors: Door) -> None:
    engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args={"timeout": 0.01})
    tried, looked_away = [], doors.event()

    async def unit(session: AsyncSession) -> None:
        tried.append(session)
        await session.execute(insert(User).values(name=f"attempt {len(tried)}"))
        if len(tried) == 2:
            reader_may_go.set()
            await looked_away.wait()

    reading, reader_may_go = doors.event(), doors.event()

    async def reader() -> None:
        async with doors.scope(preset=READ_ONLY) as session:
            await session.execute(select(User))
            reading.set()
            await reader_may_go.wait()
        looked_away.set()

    async def writer() -> None:
        await reading.wait()
        await doors.decorate(unit, doors.factory(engine), retry=5)()

    await doors.together(reader(), writer())
    assert await names(doors) == ["attempt 2"]


@each_kind
async def test_read_only_is_kept_and_given_back(doors: Door, kind: Any) -> None:
    Session = doors.factory(kind(doors))
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(Session, preset=READ_ONLY) as session:
            await session.execute(insert(User).values(name="ann"))
    assert error_code(caught.value) == READ_ONLY_VIOLATION["sqlite"]
    async with doors.scope(Session) as session:
        session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


@pytest.mark.parametrize("kind", [pytest.param(KINDS[name], id=name) for name in KINDS if "deferred" not in name])
async def test_two_read_modify_writes_queue_instead_of_failing(doors: Door, kind: Any) -> None:
    """Both are inside before either reads: where the lock is taken at the beginning, the second begins after the first."""
    engine = kind(doors)
    Session = doors.factory(engine)
    await doors.write(insert(User).values(name="n", email="0"))

    async def increment(both: Any) -> None:
        await both.wait()
        async with doors.scope(Session) as session:
            user = (await session.scalars(select(User))).one()
            user.email = str(int(user.email or "") + 1)

    for _ in range(5):
        both = doors.barrier(2)
        await doors.together(increment(both), increment(both))
    assert await doors.rows(select(User.email)) == [("10",)]


async def test_deferred_writers_fail_without_waiting(doors: Door) -> None:
    engine = sqlite.configure(doors.make_engine(), begin="deferred", busy_timeout=60)
    Session = doors.factory(engine)
    await doors.write(insert(User).values(name="n", email="0"))
    both_have_read, one_has_committed = doors.barrier(2), doors.event()

    async def first() -> None:
        async with doors.scope(Session) as session:
            user = (await session.scalars(select(User))).one()
            await both_have_read.wait()
            user.email = "first"
        one_has_committed.set()

    async def second() -> None:
        with pytest.raises(OperationalError) as caught:
            async with doors.scope(Session) as session:
                user = (await session.scalars(select(User))).one()
                await both_have_read.wait()
                await one_has_committed.wait()
                user.email = "second"
        assert caught.value.orig is not None
        assert getattr(caught.value.orig, "sqlite_errorname", "SQLITE_BUSY_SNAPSHOT") == "SQLITE_BUSY_SNAPSHOT"

    await doors.together(first(), second())
    assert await doors.rows(select(User.email)) == [("first",)]


# BEGIN


async def spoken(doors: Door, engine: Any, work: Callable[[], Any]) -> list[str]:
    """Return what SQLite is told while `work` runs, by SQLite's own trace."""
    said: list[str] = []

    @event.listens_for(doors.sync_engine_of(engine), "checkout")
    def listen(dbapi_connection: Any, _record: object, _proxy: object) -> None:
        driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        getattr(driver, "_conn", driver).set_trace_callback(said.append)

    await work()
    return [line for line in said if not line.startswith("PRAGMA")]


@each_kind
async def test_a_scope_that_may_write_begins_immediate(doors: Door, kind: Any) -> None:
    engine = kind(doors)

    async def work() -> None:
        async with doors.scope(doors.factory(engine)) as session:
            await session.execute(text("SELECT 1"))

    said = await spoken(doors, engine, work)
    begun = [line for line in said[: said.index("SELECT 1")] if line.startswith("BEGIN")]
    assert begun[-1] == ("BEGIN" if kind is KINDS["configured, deferred"] else "BEGIN IMMEDIATE")
    assert said[said.index("SELECT 1") + 1] == "COMMIT"


async def test_an_engine_that_is_configured_anew_begins_anew_in_the_factories_that_know_it(doors: Door) -> None:
    engine = configured(patient(doors))
    Session = doors.factory(engine)

    async def work() -> None:
        async with doors.scope(Session) as session:
            await session.execute(text("SELECT 1"))

    before = await spoken(doors, engine, work)
    configured(engine, begin="deferred")
    after = await spoken(doors, engine, work)
    assert [before[0], after[0]] == ["BEGIN IMMEDIATE", "BEGIN"]


@each_kind
async def test_a_read_only_scope_does_not_wait_for_a_writer(doors: Door, kind: Any) -> None:
    engine = kind(doors)
    await pragmas(doors, engine)  # the first connection of a configured engine switches to WAL, and waits to be alone
    async with doors.connect() as writer:
        await writer.execute(text("BEGIN IMMEDIATE"))
        async with doors.scope(doors.factory(engine), preset=READ_ONLY, lock_timeout=0.01) as session:
            await session.execute(select(User))
        await writer.rollback()


@pytest.mark.parametrize("begin", ["immediate", "deferred"])
async def test_plain_sessions_and_connections_of_a_configured_engine_begin_as_well(doors: Door, begin: Any) -> None:
    engine = sqlite.configure(doors.make_engine(), begin=begin)

    async def work() -> None:
        async with doors.session(doors.plain_factory(engine)) as session:
            await session.execute(text("SELECT 1"))
            async with session.begin_nested():
                session.add(User(name="ann"))
            await session.rollback()
        async with doors.enter(engine.connect()) as connection:
            await connection.execute(text("SELECT 1"))
            await connection.commit()

    said = await spoken(doors, engine, work)
    word = "BEGIN IMMEDIATE" if begin == "immediate" else "BEGIN"
    assert [line for line in said if line.startswith(("BEGIN", "COMMIT", "ROLLBACK"))] == [
        word,
        "ROLLBACK",
        word,
        "COMMIT",
    ]
    assert await names(doors) == []


async def test_plain_sessions_of_an_engine_that_was_not_configured_are_left_as_sqlalchemy_has_them(doors: Door) -> None:
    engine = doors.make_engine()
    async with doors.scope(doors.factory(engine)) as session:
        await session.execute(text("SELECT 1"))

    async def work() -> None:
        async with doors.session(doors.plain_factory(engine)) as session:
            await session.execute(text("SELECT 1"))

    assert await spoken(doors, engine, work) == ["SELECT 1"]


@pytest.mark.parametrize("place", ["create_engine", "execution_options"])
async def test_an_autocommit_connection_of_a_configured_engine_commits_by_itself(doors: Door, place: str) -> None:
    if place == "create_engine":
        engine = sqlite.configure(doors.make_engine(isolation_level="AUTOCOMMIT"))
    else:
        engine = sqlite.configure(doors.make_engine()).execution_options(isolation_level="AUTOCOMMIT")
    async with doors.enter(engine.connect()) as connection:
        await connection.execute(insert(User).values(name="ann"))
        assert await names(doors) == ["ann"]


async def test_a_write_by_the_users_own_listener_is_kept_in_the_scopes_transaction(doors: Door) -> None:
    engine = with_the_recipe(doors)

    @event.listens_for(doors.sync_engine_of(engine), "begin")
    def write_an_audit_row(connection: Any) -> None:
        connection.execute(insert(User).values(name="audit"))

    async with doors.scope(doors.factory(engine)) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["audit", "ann"]


if sys.version_info >= (3, 12):  # before, sqlite3 has no such argument

    async def test_an_engine_whose_driver_ignores_commit_is_refused(doors: Door) -> None:
        engine = doors.make_engine(connect_args={"autocommit": True})
        with pytest.raises(errors.OptionError, match="autocommit=True"):
            async with doors.scope(doors.factory(engine)) as session:
                session.add(User(name="ann"))
        sqlite.configure(engine)
        async with doors.enter(engine.connect()) as connection:
            await connection.execute(insert(User).values(name="bob"))
            assert await names(doors) == ["bob"]


# configure()


async def pragmas(doors: Door, engine: Any) -> dict[str, Any]:
    async with doors.enter(engine.connect()) as connection:
        return {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }


async def test_configure_sets_what_a_concurrent_application_wants(doors: Door) -> None:
    engine = doors.make_engine(foreign_keys=False)
    assert sqlite.configure(engine) is engine
    assert await pragmas(doors, engine) == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "synchronous": 1,
    }


async def test_configure_sets_what_it_is_told(doors: Door) -> None:
    engine = sqlite.configure(
        doors.make_engine(), wal=False, foreign_keys=False, busy_timeout=1.5, synchronous="EXTRA", begin="deferred"
    )
    assert await pragmas(doors, engine) == {
        "journal_mode": "delete",
        "foreign_keys": 0,
        "busy_timeout": 1500,
        "synchronous": 3,
    }


@each_kind
async def test_foreign_keys_are_enforced_on_a_configured_engine_of_every_kind(doors: Door, kind: Any) -> None:
    engine = sqlite.configure(kind(doors))
    with pytest.raises(IntegrityError):
        async with doors.scope(doors.factory(engine)) as session:
            session.add(Address(user_id=99, email="nobody"))


@each_kind
async def test_connections_that_are_there_already_are_set_up_when_they_are_next_used(doors: Door, kind: Any) -> None:
    engine = kind(doors)
    async with doors.enter(engine.connect()) as one, doors.enter(engine.connect()) as two:
        await one.execute(text("SELECT 1"))
        await one.rollback()
        await two.execute(text("SELECT 1"))
    sqlite.configure(engine, busy_timeout=1)
    async with doors.enter(engine.connect()) as one, doors.enter(engine.connect()) as two:
        assert (await one.execute(text("PRAGMA busy_timeout"))).scalar_one() == 1000
        await one.rollback()
        assert (await two.execute(text("PRAGMA busy_timeout"))).scalar_one() == 1000
    sqlite.configure(engine, busy_timeout=2)
    assert (await pragmas(doors, engine))["busy_timeout"] == 2000


@pytest.mark.doors(colour="sync")
async def test_a_first_connection_waits_until_it_can_switch_to_wal(doors: Door) -> None:
    """SQLite itself does not wait there, and two first connections collide. In threads, for SQLite's trace speaks in them."""
    engine = configured(doors.make_engine())
    holding, refused = doors.event(), doors.event()

    @event.listens_for(doors.sync_engine_of(engine), "connect")
    def listen(dbapi_connection: Any, _record: object) -> None:
        # What comes after the PRAGMA is said when it was refused.
        dbapi_connection.set_trace_callback(lambda said: refused.set() if said == "BEGIN EXCLUSIVE" else None)

    async def holder() -> None:
        async with doors.connect() as connection:
            await connection.execute(insert(User).values(name="ann"))
            holding.set()
            await refused.wait()
            await connection.commit()

    async def first() -> None:
        await holding.wait()
        try:
            assert (await pragmas(doors, engine))["journal_mode"] == "wal"
        finally:
            refused.set()

    await doors.together(holder(), first())
    assert await names(doors) == ["ann"]


async def test_configure_may_come_after_the_first_scope(doors: Door) -> None:
    engine = doors.make_engine()
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="ann"))
    sqlite.configure(engine, begin="immediate")

    async def work() -> None:
        async with doors.scope(Session) as session:
            session.add(User(name="bob"))

    assert [line for line in await spoken(doors, engine, work) if line.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
    assert (await pragmas(doors, engine))["journal_mode"] == "wal"


async def test_the_memory_of_a_database_in_memory_survives_configure(doors: Door) -> None:
    engine = memory_engine(doors)
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="ann"))
    sqlite.configure(engine)
    with pytest.raises(IntegrityError):
        async with doors.scope(Session) as session:
            assert (await session.scalars(select(User.name))).all() == ["ann"]
            session.add(Address(user_id=99, email="nobody"))


@pytest.mark.parametrize(
    "options",
    [
        {"busy_timeout": -1},
        {"busy_timeout": "5"},
        {"busy_timeout": True},
        {"busy_timeout": float("nan")},
        {"synchronous": "SOMETIMES"},
        {"begin": "exclusive"},
    ],
)
async def test_configure_refuses_what_it_cannot_set(doors: Door, options: dict[str, Any]) -> None:
    engine = doors.make_engine()
    (name,) = options
    with pytest.raises(errors.OptionError, match=name):
        sqlite.configure(engine, **options)
    assert (await pragmas(doors, engine))["journal_mode"] == "delete"


async def test_configure_takes_sqlite_engines_only(doors: Door) -> None:
    for wrong in (None, "sqlite://", doors.Session, create_engine("postgresql+psycopg://")):
        with pytest.raises(errors.OptionError, match="SQLite engine"):
            sqlite.configure(wrong)


# In memory, attached


@pytest.mark.parametrize("configured", [False, True], ids=["as it is", "configured"])
@pytest.mark.parametrize("pool", ["its own", "StaticPool"])
async def test_a_database_in_memory_has_real_transactions(doors: Door, configured: bool, pool: str) -> None:
    engine = memory_engine(doors, **({"poolclass": StaticPool} if pool == "StaticPool" else {}))
    if configured:
        sqlite.configure(engine)
    Session = doors.factory(engine)
    with pytest.raises(LookupError):
        async with doors.scope(Session) as session:
            async with session.begin_nested():
                session.add(User(name="ann"))
            raise LookupError
    async with doors.scope(Session, preset=READ_ONLY) as session:
        assert (await session.scalars(select(User))).all() == []
        with pytest.raises(DBAPIError):
            async with doors.scope(Session, propagation="savepoint"):
                await session.execute(insert(User).values(name="bob"))
    async with doors.scope(Session, preset=SERIALIZABLE) as session:
        session.add(User(name="carl"))
    async with doors.scope(Session) as session:
        assert (await session.scalars(select(User.name))).all() == ["carl"]


async def test_a_scope_does_not_take_part_in_a_transaction_of_somebody_else_on_the_one_connection(doors: Door) -> None:
    """It would commit the other's half-done work, or roll it back."""
    engine = memory_engine(doors, poolclass=StaticPool)
    Session = doors.factory(engine)
    async with doors.enter(engine.connect()) as other:
        await other.execute(insert(User).values(name="half"))
        with pytest.raises(errors.ScopeError, match="belongs to no scope"):
            async with doors.scope(Session) as session:
                session.add(User(name="ann"))
        await other.rollback()
    async with doors.scope(Session) as session:
        assert (await session.scalars(select(User.name))).all() == []


async def test_attached_databases_are_one_transaction_with_the_main_one(doors: Door, tmp_path: Any) -> None:
    engine = doors.make_engine()

    @event.listens_for(doors.sync_engine_of(engine), "connect")
    def attach(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"ATTACH DATABASE '{tmp_path / 'attached.db'}' AS attached")
        cursor.close()

    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        await session.execute(text("CREATE TABLE attached.t (x integer)"))
    with pytest.raises(LookupError):
        async with doors.scope(Session) as session:
            session.add(User(name="ann"))
            await session.flush()
            async with session.begin_nested():
                await session.execute(text("INSERT INTO attached.t VALUES (1)"))
            raise LookupError
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(Session, read_only=True) as session:
            await session.execute(text("INSERT INTO attached.t VALUES (1)"))
    assert error_code(caught.value) == READ_ONLY_VIOLATION["sqlite"]
    async with doors.scope(Session) as session:
        await session.execute(text("INSERT INTO attached.t VALUES (2)"))
        session.add(User(name="bob"))
    async with doors.scope(Session, read_only=True) as session:
        assert (await session.scalars(text("SELECT x FROM attached.t"))).all() == [2]
    assert await names(doors) == ["bob"]


# propagation="new" where it could only wait for itself


@each_kind
async def test_a_new_writer_inside_a_writer_is_refused_at_once(doors: Door, kind: Any) -> None:
    engine = kind(doors)
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="outer"))
        await session.flush()
        with pytest.raises(errors.ScopeError, match=r"propagation='new'.*could only wait for itself"):
            async with doors.scope(Session, propagation="new") as inner:
                inner.add(User(name="inner"))
    assert await names(doors) == ["outer"]


async def test_so_is_a_scope_of_another_factory_on_the_same_file(doors: Door) -> None:
    One, Other = doors.factory(), doors.factory(doors.make_engine())
    async with doors.scope(One) as session:
        session.add(User(name="outer"))
        await session.flush()
        with pytest.raises(errors.ScopeError, match=r"another factory.*could only wait for itself"):
            async with doors.scope(Other) as inner:
                inner.add(User(name="inner"))
    assert await names(doors) == ["outer"]


async def test_a_new_reader_inside_a_writer_reads_what_was_committed_before(doors: Door) -> None:
    engine = sqlite.configure(doors.make_engine())
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="outer"))
        await session.flush()
        async with doors.scope(Session, propagation="new", read_only=True) as inner:
            assert (await inner.scalars(select(User.name))).all() == []
    assert await names(doors) == ["outer"]


@pytest.mark.parametrize("preset", [None, READ_ONLY], ids=["deferred", "read only"])
async def test_a_new_writer_inside_a_reader_works_in_wal_mode(doors: Door, preset: Any) -> None:
    engine = sqlite.configure(doors.make_engine(), begin="deferred")
    Session = doors.factory(engine)
    async with doors.scope(Session, preset=preset) as session:
        assert (await session.scalars(select(User.name))).all() == []
        async with doors.scope(Session, propagation="new", read_only=False, lock_timeout=1) as inner:
            inner.add(User(name="inner"))
        assert (await session.scalars(select(User.name))).all() == []
    assert await names(doors) == ["inner"]


async def test_a_new_writer_inside_a_reader_is_refused_at_once_without_wal(doors: Door) -> None:
    """Its COMMIT would wait for the reader, which waits for it."""
    async with doors.scope(preset=READ_ONLY) as session:
        await session.execute(select(User))
        with pytest.raises(errors.ScopeError, match=r"journal_mode.*only wait for itself"):
            async with doors.scope(propagation="new", read_only=False) as inner:
                inner.add(User(name="inner"))
        with pytest.raises(errors.ScopeError, match=r"journal_mode.*only wait for itself"):
            async with doors.scope(propagation="new") as inner:
                await inner.execute(insert(User).values(name="inner"))
    assert await names(doors) == []


@pytest.mark.parametrize("pool", ["its own", "StaticPool"])
@pytest.mark.parametrize("preset", [None, READ_ONLY], ids=["writer", "reader"])
async def test_a_new_transaction_in_memory_is_refused_at_once_since_there_is_one_connection(
    doors: Door, pool: str, preset: Any
) -> None:
    engine = memory_engine(doors, **({"poolclass": StaticPool} if pool == "StaticPool" else {}))
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        session.add(User(name="outer"))
        await session.flush()
        with pytest.raises(errors.ScopeError, match="only one connection"):
            async with doors.scope(Session, propagation="new", preset=preset) as inner:
                await inner.execute(select(User))
        # Two files, two databases: nothing to wait for.
        async with doors.scope(doors.factory(), propagation="new") as inner:
            inner.add(User(name="elsewhere"))
    assert await names(doors) == ["elsewhere"]


async def test_a_new_transaction_on_another_file_works(doors: Door) -> None:
    Other = doors.factory(doors.other_engine())
    async with doors.scope() as session:
        session.add(User(name="here"))
        await session.flush()
        async with doors.scope(Other) as inner:
            inner.add(User(name="there"))
    assert await names(doors) == ["here"]


# The library


async def test_an_older_library_is_refused_at_the_first_scope_and_by_configure(
    doors: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_config, "OLDEST", (9, 35, 0))
    with pytest.raises(
        errors.OptionError, match=r"SQLite 9\.35 or newer, .* uses the library 3\.\d+\.\d+; use a Python"
    ):
        sqlite.configure(doors.engine)
    with doors.statements() as sql:
        with pytest.raises(errors.OptionError, match=r"SQLite 9\.35 or newer"):
            async with doors.scope() as session:
                await session.execute(text("SELECT 1"))
    assert sql == []
