"""read_only is kept by the database, for as long as it was asked and no longer."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from sessionkit import READ_ONLY, errors, on_commit
from tests.contract.breaking import names
from tests.contract.settings import READ_ONLY_VIOLATION, error_code, in_force, pooled_engine
from tests.support.models import Account, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tests.support.doors import Door

WRITES = {
    "insert": insert(User).values(name="bob"),
    "update": update(User).values(name="bob"),
    "delete": delete(User),
    "create": text("CREATE TABLE forbidden (x integer)"),
    "drop": text("DROP TABLE pledges"),
}


async def is_refused(doors: Door, writer: AsyncSession | AsyncConnection, statement: Any = WRITES["insert"]) -> None:
    with pytest.raises(DBAPIError) as caught:
        await writer.execute(statement)
    assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]


# A transaction that is read-only


@pytest.mark.parametrize("statement", list(WRITES.values()), ids=list(WRITES))
async def test_every_write_in_a_read_only_scope_is_refused_by_the_database(doors: Door, statement: Any) -> None:
    await doors.write(insert(User).values(name="ann"))
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(read_only=True) as session:
            await session.execute(statement)
    assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]
    assert await names(doors) == ["ann"]


async def test_a_flush_in_a_read_only_scope_is_refused_by_the_database(doors: Door) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(read_only=True) as session:
            session.add(User(name="ann"))
    assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]


async def test_a_write_through_the_drivers_own_cursor_is_refused_too(doors: Door) -> None:
    def write(session: Any) -> None:
        cursor = session.connection().connection.cursor()
        cursor.execute("INSERT INTO users (name) VALUES ('ann')")

    with pytest.raises(Exception, match="(?i)read-?only"):
        async with doors.scope(read_only=True) as session:
            await session.run_sync(write)
    assert await names(doors) == []


async def test_reading_works_and_what_was_read_stays_readable(doors: Door) -> None:
    await doors.write(insert(User).values(name="ann"))
    async with doors.scope(read_only=True) as session:
        user = (await session.scalars(select(User))).one()
    assert user.name == "ann"


async def test_a_refused_write_that_was_swallowed_is_not_committed_over(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(read_only=True) as session:
            with suppress(DBAPIError):
                await session.execute(WRITES["insert"])


async def test_a_read_only_scope_commits_and_its_hooks_run(doors: Door) -> None:
    ran: list[str] = []
    with doors.statements() as sql:
        async with doors.scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            doors.call(on_commit, lambda: ran.append("ran"), session=session)
    assert sql[-1] == "COMMIT"
    assert ran == ["ran"]


async def test_after_a_read_only_scope_the_same_connection_can_write(doors: Door) -> None:
    Session = doors.factory(doors.make_engine(pool_size=1, max_overflow=0))
    for number in range(2):
        async with doors.scope(Session, read_only=True) as session:
            await session.execute(text("SELECT 1"))
        async with doors.scope(Session) as session:
            session.add(User(name=f"scope {number}"))
        async with doors.session(Session) as session:
            session.add(User(name=f"plain {number}"))
            await session.commit()
    assert await names(doors) == ["scope 0", "plain 0", "scope 1", "plain 1"]


async def test_a_commit_by_hand_is_refused_and_the_scope_stays_read_only(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(read_only=True) as session:
            connection = await session.connection()
            with pytest.raises(errors.ScopeError, match="COMMIT"):
                await connection.commit()
            with pytest.raises((DBAPIError, PendingRollbackError)):
                await session.execute(WRITES["insert"])
    assert await names(doors) == []


async def test_a_commit_by_hand_is_refused_on_an_engine_that_was_configured_before(doors: Door) -> None:
    from sessionkit import sqlite

    engine = doors.make_engine()
    if doors.backend == "sqlite":
        sqlite.configure(engine)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(doors.factory(engine), read_only=True) as session:
            connection = await session.connection()
            with pytest.raises(errors.ScopeError, match="COMMIT"):
                await connection.commit()
            with pytest.raises((DBAPIError, PendingRollbackError)):
                await session.execute(WRITES["insert"])
    assert await names(doors) == []


async def test_read_only_scopes_run_while_a_writer_is_open(doors: Door) -> None:
    await doors.write(insert(User).values(name="ann"))
    written, looked = doors.event(), doors.event()

    async def writer() -> None:
        async with doors.scope() as session:
            session.add(User(name="bob"))
            await session.flush()
            written.set()
            await looked.wait()

    async def reader() -> None:
        await written.wait()
        async with doors.scope(preset=READ_ONLY) as session:
            assert (await session.scalars(select(User.name))).all() == ["ann"]
        looked.set()

    await doors.together(writer(), reader())
    assert await names(doors) == ["ann", "bob"]


# A read-only scope inside a read-write one


async def test_writes_are_refused_inside_and_accepted_before_and_after(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="before"))
        async with doors.scope(read_only=True) as inner:
            assert doors.same(inner, session)
            assert (await inner.scalars(select(User.name))).all() == ["before"]
        session.add(User(name="after"))
    assert await names(doors) == ["before", "after"]


@pytest.mark.parametrize("propagation", ["join", "savepoint"])
async def test_a_refused_write_leaves_the_inner_scope_and_the_outer_one_may_go_on_only_behind_a_savepoint(
    doors: Door, propagation: Any
) -> None:
    async def both() -> None:
        async with doors.scope() as session:
            session.add(User(name="outer"))
            with pytest.raises(DBAPIError) as caught:
                async with doors.scope(read_only=True, propagation=propagation) as inner:
                    await inner.execute(WRITES["insert"])
            assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]
            session.add(User(name="goes on"))
            await session.flush()

    if propagation == "savepoint":
        await both()
        assert await names(doors) == ["outer", "goes on"]
    else:
        with pytest.raises(errors.UnexpectedRollback):
            await both()
        assert await names(doors) == []


async def test_what_is_pending_is_written_before_and_not_refused(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="pending"))
        async with doors.scope(read_only=True) as inner:
            assert not inner.new
    assert await names(doors) == ["pending"]


async def test_what_is_added_inside_is_refused_at_the_latest_when_the_inner_scope_ends(doors: Door) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope() as session:
            session.add(User(name="outer"))
            async with doors.scope(read_only=True) as inner:
                inner.add(User(name="inner"))
    assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]
    assert await names(doors) == []


async def test_a_refused_write_that_the_inner_scope_swallowed_is_told_at_its_end(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback, match="read-only"):
        async with doors.scope() as session:
            session.add(User(name="outer"))
            async with doors.scope(read_only=True) as inner:
                with suppress(DBAPIError):
                    await inner.execute(WRITES["insert"])
    assert await names(doors) == []


async def test_read_only_scopes_inside_each_other_end_with_the_outermost_of_them(doors: Door) -> None:
    async with doors.scope() as session:
        async with doors.scope(read_only=True, propagation="savepoint"):
            async with doors.scope(read_only=True):
                await session.execute(text("SELECT 1"))
            with suppress(DBAPIError):
                async with doors.scope(propagation="savepoint"):
                    await is_refused(doors, session)
                    raise_ = DBAPIError("", None, Exception())
                    raise raise_
        session.add(User(name="after"))
    assert await names(doors) == ["after"]


async def test_an_error_inside_ends_the_refusal_as_well(doors: Door) -> None:
    async with doors.scope() as session:
        with pytest.raises(LookupError):
            async with doors.scope(read_only=True, propagation="savepoint"):
                raise LookupError
        session.add(User(name="after"))
    assert await names(doors) == ["after"]


async def test_objects_and_hooks_of_the_outer_scope_outlive_the_inner_one(doors: Door) -> None:
    ran: list[str] = []
    async with doors.scope() as session:
        user = User(name="ann")
        session.add(user)
        doors.call(on_commit, lambda: ran.append("outer"), session=session)
        async with doors.scope(read_only=True) as inner:
            doors.call(on_commit, lambda: ran.append("inner"), session=inner)
        with doors.statements() as sql:
            assert user.name == "ann"
        assert sql == []
    assert ran == ["outer", "inner"]


async def test_a_hook_of_a_savepoint_that_was_rolled_back_inside_is_dropped(doors: Door) -> None:
    ran: list[str] = []
    async with doors.scope(), doors.scope(read_only=True) as inner:
        savepoint = await (await inner.connection()).begin_nested()
        doors.call(on_commit, lambda: ran.append("undone"), session=inner)
        await savepoint.rollback()
        doors.call(on_commit, lambda: ran.append("kept"), session=inner)
    assert ran == ["kept"]


async def test_every_engine_of_a_unit_is_restricted(doors: Door) -> None:
    other = doors.other_engine()
    Session = doors.factory(binds={User: doors.engine, Account: other})
    async with doors.scope(Session) as session:
        session.add_all([User(name="ann"), Account(owner="ann")])
        await session.flush()
        for statement in (insert(User).values(name="bob"), insert(Account).values(owner="bob")):
            with pytest.raises(DBAPIError) as caught:
                async with doors.scope(Session, read_only=True, propagation="savepoint") as inner:
                    await inner.execute(statement)
            assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]
    assert await names(doors) == ["ann"]


async def test_an_engine_that_a_read_only_inner_scope_would_use_first_is_refused(doors: Door) -> None:
    Session = doors.factory(binds={User: doors.engine, Account: doors.other_engine()})
    async with doors.scope(Session) as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.ScopeError, match="first time"):
            async with doors.scope(Session, read_only=True, propagation="savepoint") as inner:
                await inner.execute(select(Account))
    assert await names(doors) == ["ann"]


async def test_nothing_of_an_inner_read_only_scope_stays_on_the_connection(doors: Door) -> None:
    engine = pooled_engine(doors)
    Session = doors.factory(engine)
    async with doors.enter(engine.connect()) as connection:
        before = await in_force(doors, connection)
    with pytest.raises(LookupError):
        async with doors.scope(Session):
            async with doors.scope(Session, read_only=True):
                raise LookupError
    async with doors.enter(engine.connect()) as connection:
        assert await in_force(doors, connection) == before


async def test_an_inner_scope_that_is_left_when_the_connection_is_gone_says_what_happened(doors: Door) -> None:
    with pytest.raises((DBAPIError, errors.UnexpectedRollback)):
        async with doors.scope() as session:
            session.add(User(name="outer"))
            async with doors.scope(read_only=True) as inner:
                await (await inner.connection()).invalidate()
    assert await names(doors) == []


async def test_a_decorated_reader_is_read_only_on_its_callers_session(doors: Door) -> None:
    async def count(session: AsyncSession) -> int:
        await is_refused(doors, session)
        return 0

    reader = doors.decorate(count, form="keyword", read_only=True, propagation="savepoint")
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback):
            await reader(session=session)
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("pool", ["SingletonThreadPool", "StaticPool"])
async def test_the_one_connection_of_an_in_memory_database_writes_again_as_soon_as_the_scope_ends(
    doors: Door, pool: str
) -> None:
    """Somebody else holds the connection all the time, so that the pool never gets it back."""
    from sqlalchemy import NullPool, SingletonThreadPool, StaticPool

    if doors.colour == "async" and pool == "SingletonThreadPool":
        pool = "StaticPool"  # the asynchronous driver knows only this one
    poolclass = {"SingletonThreadPool": SingletonThreadPool, "StaticPool": StaticPool, "": NullPool}[pool]
    engine = memory_engine(doors, poolclass=poolclass)
    async with doors.enter(engine.connect()) as holder:
        await holder.execute(text("CREATE TABLE t (x integer)"))
        await holder.commit()
        async with doors.scope(doors.factory(engine), read_only=True, statement_timeout=0.001) as session:
            await session.execute(select(text("count(*) FROM t")))
            await is_refused_in(session)
        await holder.execute(text("INSERT INTO t VALUES (1)"))
        counted = (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) SELECT count(*) FROM n"
        )
        assert (await holder.execute(text(counted))).scalar_one() == 20000
        await holder.commit()


async def is_refused_in(session: AsyncSession) -> None:
    savepoint = await session.begin_nested()
    with pytest.raises(DBAPIError):
        await session.execute(text("INSERT INTO t VALUES (0)"))
    await savepoint.rollback()


def memory_engine(doors: Door, **kw: Any) -> Any:
    """Return an engine on a database in memory, through the door's driver."""
    from sqlalchemy import URL

    kw.setdefault("connect_args", {"check_same_thread": False} if doors.colour == "sync" else {})
    return doors._adopted(doors._create_engine(URL.create(f"sqlite+{doors.driver}"), **kw), foreign_keys=False)


@pytest.mark.doors(backend="postgresql")
async def test_where_the_transaction_has_begun_already_a_preset_is_an_error_and_not_a_label(doors: Door) -> None:
    engine = doors.make_engine()

    @event.listens_for(doors.sync_engine_of(engine), "checkout")
    def speak(dbapi_connection: Any, _record: object, _proxy: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()

    Session = doors.factory(engine)
    async with doors.scope(Session, read_only=True) as session:
        assert (await in_force(doors, session))["transaction_read_only"] == "on"
    with pytest.raises(DBAPIError):  # the level cannot be had any more: the database says so
        async with doors.scope(Session, isolation="SERIALIZABLE") as session:
            await session.execute(text("SELECT 1"))
