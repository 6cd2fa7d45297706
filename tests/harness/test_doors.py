"""The harness tells the truth: what a door does is what a user of its colour would do."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.exc import StaleDataError

import sessionkit
from tests.support.doors import KINDS, Door
from tests.support.models import Account, Address, Pledge, User
from tests.support.neutral import NeutralSession, SuspendedInSyncColour
from tests.support.together import beside_the_loop

if TYPE_CHECKING:
    from collections.abc import Iterator


async def test_a_scope_commits_what_the_outside_then_sees(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        assert await doors.rows("SELECT name FROM users") == []
        assert doors.checked_out() == 1
    assert await doors.rows(select(User.name)) == [("ann",)]
    assert doors.checked_out() == 0


async def test_the_colour_is_that_of_the_engine_and_only_async_doors_have_a_loop(doors: Door) -> None:
    try:
        asyncio.get_running_loop()
        runs = "async"
    except RuntimeError:
        runs = "sync"
    assert doors.colour == runs
    assert doors.sync_engine.dialect.name == doors.backend
    assert doors.sync_engine.dialect.driver == doors.driver
    assert doors.sync_engine.dialect.is_async == (doors.colour == "async")


async def test_the_user_of_a_door_holds_a_plain_object_of_its_colour(doors: Door) -> None:
    async with doors.scope() as session:
        held = doors.raw(session)
        assert isinstance(held, sessionkit.Session if doors.colour == "sync" else sessionkit.AsyncSession)
        assert isinstance(doors.sync(session), Session)
        assert doors.neutral(held) == session
        assert doors.same(session, held)
        assert doors.same(sessionkit.current_session(), session)
        async with doors.session(doors.plain_factory()) as other:
            assert not doors.same(session, other)
            assert other != session


async def test_an_error_leaves_a_scope_as_it_was_raised_and_the_scope_sees_it(doors: Door) -> None:
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            raise error
    assert caught.value is error
    assert await doors.rows("SELECT * FROM users") == []


def fail(error: BaseException) -> None:
    raise error


async def test_what_is_entered_sees_the_exception_of_the_body_and_may_swallow_it(doors: Door) -> None:
    seen: list[object] = []

    class Sync:
        def __enter__(self) -> str:
            return "value"

        def __exit__(self, kind: object, error: object, traceback: object) -> bool:
            seen.extend((kind, error, traceback is not None))
            return True

    class Async(Sync):
        async def __aenter__(self) -> str:
            return self.__enter__()

        async def __aexit__(self, kind: object, error: object, traceback: object) -> bool:
            return self.__exit__(kind, error, traceback)

    error = ValueError()
    async with doors.enter(Sync() if doors.colour == "sync" else Async()) as value:
        assert value == "value"
        fail(error)
    assert seen == [ValueError, error, True]


@pytest.mark.doors(colour="sync")
async def test_a_body_that_waits_for_a_loop_fails_in_a_sync_colour(doors: Door) -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    def drive_it() -> None:
        from tests.support.neutral import drive

        drive(waits())

    with pytest.raises(SuspendedInSyncColour, match="no event loop runs"):
        drive_it()


async def test_a_neutral_session_does_all_that_an_async_session_does(doors: Door) -> None:
    async with doors.session() as session:
        session.add_all([User(name="ann", addresses=[Address(email="a@x")]), User(name="bob")])
        assert len(session.new) == 3
        await session.flush()
        ann = await session.scalar(select(User).where(User.name == "ann"))
        assert ann is not None
        ann_id = ann.id
        assert ann in session
        assert ann in list(session)
        assert await session.get(User, ann_id) is ann
        assert (await session.get_one(User, ann_id)) is ann
        assert (await session.execute(select(func.count()).select_from(User))).scalar_one() == 2
        assert [user.name for user in await session.scalars(select(User).order_by(User.name))] == ["ann", "bob"]
        ann.email = "e"
        await session.refresh(ann, ["name"])
        assert session.in_transaction()
        await session.commit()
        assert not session.in_transaction()
        merged = await session.merge(User(id=ann_id, name="anne"))
        assert merged is ann
        await session.rollback()
        await session.refresh(ann, ["addresses"])
        await session.delete(ann)
        await session.commit()
        assert await session.run_sync(lambda inner: inner.query(User).count()) == 1
        connection = await session.connection()
        assert (await connection.execute(text("SELECT count(*) FROM users"))).scalar_one() == 1
        assert await connection.scalar(text("SELECT 1")) == 1
        session.autoflush = False
        assert doors.sync(session).autoflush is False
        session.info["key"] = "value"
        assert doors.sync(session).info["key"] == "value"
    assert await doors.rows("SELECT name FROM users") == [("bob",)]


async def test_a_neutral_session_has_every_method_of_an_async_session(doors: Door) -> None:
    async with doors.session() as session:
        for name in dir(AsyncSession):
            if not name.startswith("_") and name not in {"sync_session_class", "dispatch", "close_all"}:
                value = getattr(session, name)
                # (What is a coroutine function there must be one here, or a body that awaits it would fail.)
                if inspect.iscoroutinefunction(getattr(AsyncSession, name)):
                    assert inspect.iscoroutinefunction(value), name


async def test_transactions_and_savepoints_begin_when_they_are_entered_or_awaited(doors: Door) -> None:
    async with doors.session() as session, session.begin():
        session.add(User(name="ann"))
        async with session.begin_nested() as savepoint:
            assert savepoint.is_active
            session.add(User(name="bob"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(User(name="ann"))
        savepoint = await session.begin_nested()
        session.add(User(name="eve"))
        await session.flush()
        await savepoint.rollback()
    assert await doors.rows("SELECT name FROM users ORDER BY name") == [("ann",), ("bob",)]


async def test_begin_refuses_a_second_transaction_as_sqlalchemy_does(doors: Door) -> None:
    async with doors.session() as session, session.begin():
        with pytest.raises(InvalidRequestError, match="already begun"):
            async with session.begin():
                pass


async def test_a_result_can_be_streamed(doors: Door) -> None:
    async with doors.scope() as session:
        session.add_all([User(name=name) for name in ("ann", "bob", "eve")])
    async with doors.session() as session:
        names = [name async for (name,) in await session.stream(select(User.name).order_by(User.name))]
        assert names == ["ann", "bob", "eve"]
        scalars = (await session.stream(select(User.name).order_by(User.name))).scalars()
        assert [list(part) async for part in scalars.partitions(2)] == [["ann", "bob"], ["eve"]]
        streamed = await session.stream_scalars(select(User).options(selectinload(User.addresses)))
        assert len(await streamed.all()) == 3


async def test_a_connection_is_neutral_too(doors: Door) -> None:
    async with doors.connect() as connection:
        async with connection.begin() as transaction:
            await connection.execute(insert(User), [{"name": "ann"}, {"name": "bob"}])
            async with connection.begin_nested() as savepoint:
                await connection.exec_driver_sql("DELETE FROM users")
                await savepoint.rollback()
            assert transaction.is_active
        assert await connection.scalar(select(func.count()).select_from(User)) == 2
    assert await doors.scalar("SELECT count(*) FROM users") == 2


async def test_what_a_scope_decorates_runs_in_it_in_both_forms(doors: Door) -> None:
    async def add(session: AsyncSession, name: str, *, email: str | None = None) -> AsyncSession:
        session.add(User(name=name, email=email))
        await session.flush()
        assert sessionkit.current_session() is doors.raw(session)
        return session

    await doors.decorate(add, bare=True)("ann", email="a")
    await doors.decorate(add, name="named")("bob", email="b")
    await doors.decorate(add, form="keyword")("eve", email="e")
    await doors.decorate(add, doors.plain_factory())("mia")
    async with doors.session() as mine, mine.begin():
        session = await doors.decorate(add, form="keyword")("joe", email="j", session=mine)
        assert session == mine
    assert await doors.rows("SELECT name, email FROM users ORDER BY id") == [
        ("ann", "a"),
        ("bob", "b"),
        ("eve", "e"),
        ("mia", None),
        ("joe", "j"),
    ]


async def test_a_decorated_method_takes_its_session_by_keyword(doors: Door) -> None:
    class Service:
        async def add(self, name: str, *, session: Any = sessionkit.INJECTED) -> str:
            session.add(User(name=name))
            return name

    assert await doors.decorate(Service.add)(Service(), "ann") == "ann"
    assert await doors.scalar("SELECT name FROM users") == "ann"


async def test_a_twin_is_the_function_of_the_colour_and_gets_the_users_session(doors: Door) -> None:
    def count(session: Session) -> int:
        assert isinstance(session, sessionkit.Session)
        return session.query(User).count()

    async def async_count(session: AsyncSession) -> int:
        assert isinstance(session, sessionkit.AsyncSession)
        return await session.run_sync(lambda inner: inner.query(User).count())

    async with doors.scope() as session:
        session.add(User(name="ann"))
        assert await doors.twin(count, async_count)(session) == 1
        assert doors.call(type, session) is type(doors.raw(session))


async def test_statements_are_collected_from_begin_to_commit(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.session(doors.plain_factory()) as session, session.begin(), session.begin_nested():
            session.add(User(name="ann"))
    assert [line.split()[0] for line in sql] == ["BEGIN", "SAVEPOINT", "INSERT", "RELEASE", "COMMIT"]
    async with doors.session(doors.plain_factory()) as session:
        await session.execute(text("SELECT 1"))
        with doors.statements() as sql:
            await session.rollback()
            await session.execute(text("SELECT\n   2"))
    assert sql == ["ROLLBACK", "BEGIN", "SELECT 2"]


@pytest.mark.doors(backend="sqlite")
async def test_a_begin_that_the_dialect_spells_itself_is_one_begin(doors: Door) -> None:
    @event.listens_for(doors.sync_engine, "begin")
    def immediate(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with doors.statements() as sql:
        async with doors.session(doors.plain_factory()) as session:
            await session.execute(text("SELECT 1"))
    assert sql == ["BEGIN IMMEDIATE", "SELECT 1", "ROLLBACK"]


async def test_foreign_keys_are_enforced_at_commit_where_the_model_says_so(doors: Door) -> None:
    with pytest.raises(IntegrityError):
        async with doors.session(doors.plain_factory()) as session, session.begin():
            session.add(Pledge(account_id=1))
            await session.flush()
    async with doors.session(doors.plain_factory()) as session, session.begin():
        session.add(Pledge(account_id=1))
        await session.flush()
        session.add(Account(id=1))


async def test_another_engine_is_on_the_same_database_and_another_database_is_not(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
    async with doors.session(doors.factory(doors.make_engine())) as session:
        assert await session.scalar(select(User.name)) == "ann"
    async with doors.session(doors.factory(doors.other_engine())) as session:
        assert await session.scalar(select(User.name)) is None


async def test_what_is_left_open_is_found(doors: Door) -> None:
    session = doors.neutral(doors.plain_factory()())
    session.add(User(name="ann"))
    await session.flush()
    found = doors.left_open() if doors.colour == "sync" else await beside_the_loop(doors.left_open)
    assert len(found) == 2, found
    assert "1 connection(s) are still checked out" in found[0]
    await session.close()
    assert doors.left_open() == []


async def test_an_invalidated_connection_is_not_left_open(doors: Door) -> None:
    async with doors.connect() as connection:
        await connection.execute(select(1))
        await connection.invalidate()
    assert doors.checked_out() == 0


@contextmanager
def patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.together.PATIENCE", seconds)
        yield


async def test_bodies_run_at_the_same_time_and_give_their_results_in_order(doors: Door) -> None:
    barrier = doors.barrier(2)
    added = doors.event()

    async def writer() -> str:
        await barrier.wait()
        async with doors.scope() as session:
            session.add(User(name=threading.current_thread().name))
        added.set()
        return "written"

    async def reader() -> int:
        await barrier.wait()
        await added.wait()
        async with doors.scope() as session:
            return int(await session.scalar(select(func.count()).select_from(User)) or 0)

    assert await doors.together(writer, reader()) == ["written", 1]


async def test_the_first_failure_is_raised_and_those_that_wait_for_it_are_released(doors: Door) -> None:
    barrier = doors.barrier(3)
    event_ = doors.event()

    async def fails() -> None:
        raise LookupError("first")

    with pytest.raises(LookupError, match="first"):
        await doors.together(fails, barrier.wait, event_.wait)
    results = await doors.together(fails, barrier.wait, event_.wait, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["LookupError", "Broken", "Broken"]


async def test_who_waits_for_nobody_fails_when_the_patience_is_over(
    doors: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    with patience(monkeypatch, 0.05):
        barrier = doors.barrier(2)
        with pytest.raises(AssertionError, match="not all came"):
            await barrier.wait()
        with pytest.raises(AssertionError, match="was not set"):
            await doors.event().wait()


async def test_a_body_that_hangs_is_named_with_the_place_where_it_hangs(
    doors: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An event that breaking does not reach: the body hangs in it.
    forever = asyncio.Event() if doors.colour == "async" else threading.Event()

    async def hangs_here() -> None:
        waiting: Any = forever.wait()
        if doors.colour == "async":
            await waiting

    with patience(monkeypatch, 0.05), pytest.raises(AssertionError, match="hangs_here"):
        await doors.together(hangs_here)
    forever.set()


async def test_another_thread_starts_with_an_empty_context(doors: Door) -> None:
    here = threading.get_ident()

    def look() -> tuple[int, bool]:
        try:
            sessionkit.current_session()
        except sessionkit.SessionKitError:
            return threading.get_ident(), False
        return threading.get_ident(), True

    async def look_too() -> tuple[int, bool]:
        return look()

    async with doors.scope():
        for fn in (look, look_too):
            thread, ambient = await doors.in_other_thread(fn)
            assert thread != here
            assert not ambient

    def fails() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await doors.in_other_thread(fails)


async def test_attempts_are_made_until_one_succeeds(doors: Door) -> None:
    numbers = []
    async for attempt in doors.attempts(retry=sessionkit.Retry(3, wait=0)):
        async with attempt as session:
            numbers.append(attempt.number)
            session.add(User(name="ann"))
            await session.flush()
            if attempt.number < 3:
                raise StaleDataError
    assert numbers == [1, 2, 3]
    assert await doors.rows("SELECT name FROM users") == [("ann",)]


async def test_an_attempt_sees_where_the_code_of_the_body_goes_on(doors: Door) -> None:
    async def goes_on_elsewhere() -> str:
        async for attempt in doors.attempts(retry=sessionkit.Retry(3, wait=0)):
            async with attempt:
                fail(StaleDataError())
            return "not what a retry may come to"
        return "nor this"

    with pytest.raises(StaleDataError):
        await goes_on_elsewhere()


async def test_a_scoped_session_is_neutral_too(doors: Door) -> None:
    db = doors.scoped()
    async with doors.scope() as session:
        assert doors.same(db, session)
        assert db() == session
        db.add(User(name="ann"))
        assert await db.scalar(select(User.name)) == "ann"
    assert await db.scalar(select(User.name)) == "ann"
    await db.remove()


def test_a_facade_is_equal_to_what_it_stands_for() -> None:
    session = Session()
    assert NeutralSession(session) == NeutralSession(session)
    assert NeutralSession(session) == session
    assert len({NeutralSession(session), NeutralSession(session)}) == 1
    assert NeutralSession(session) != NeutralSession(Session())


def test_every_promised_door_exists_in_both_colours_on_both_backends() -> None:
    assert {(kind.backend, kind.colour, kind.driver) for kind in KINDS} == {
        ("sqlite", "sync", "pysqlite"),
        ("sqlite", "async", "aiosqlite"),
        ("postgresql", "sync", "psycopg"),
        ("postgresql", "sync", "psycopg2"),
        ("postgresql", "async", "asyncpg"),
        ("postgresql", "async", "psycopg"),
    }
