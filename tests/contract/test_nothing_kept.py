"""Law 14: nothing is kept. When a scope has ended and the user's last name is gone, what it worked with is gone too.

Each way of ending is written once and run twice: with plain `sessionmaker.begin()`, which says what CPython and the driver
let go of without a collection, and with scopes, which must let go of as much. After a collection nothing may be left.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
import weakref
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SAWarning
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, errors, on_commit, set_rollback_only
from tests.contract.breaking import Cancelled
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.doors import Door


class Request:
    """What the code around a unit has in its hands."""


class Watched:
    """Weak references to what a unit worked with."""

    def __init__(self, doors: Door) -> None:
        self._doors = doors
        self._refs: list[tuple[str, weakref.ref[Any]]] = []

    def take(self, what: str, thing: Any) -> Any:
        self._refs.append((what, weakref.ref(thing)))
        return thing

    async def unit(self, session: Any) -> Request:
        """Watch a session, its connection and an object that was loaded; return what the caller has in its hands."""
        self.take("the session", self._doors.raw(session))
        self.take("the session", self._doors.sync(session))
        connection = await session.connection()
        self.take("the connection", connection.sync_connection)
        self.take("an object", (await session.scalars(select(User).where(User.name == "taken"))).one())
        request: Request = self.take("the request", Request())
        return request

    def alive(self) -> set[str]:
        return {what for what, ref in self._refs if ref() is not None}

    def __len__(self) -> int:
        return len(self._refs)


# The two ways to open units


class Plain:
    """Units as SQLAlchemy has them: what takes a scope's place does the same work."""

    def __init__(self, doors: Door, *, around_plain: bool = False) -> None:
        self.doors = doors
        # Its own: what a library puts on an engine must not be taken for what plain SQLAlchemy does.
        self.engine = doors.make_engine()
        self.factory = self._factory(around_plain)

    def _factory(self, around_plain: bool) -> Any:
        return self.doors.plain_factory(self.engine)

    def unit(self, **options: Any) -> Any:
        return self.doors.enter(self.factory.begin())

    def savepoint(self, session: Any) -> Any:
        @asynccontextmanager
        async def nested() -> Any:
            async with session.begin_nested():
                yield session

        return nested()

    def joined(self, session: Any) -> Any:
        return nullcontext(session)

    def decorated(self, body: Any, retry: Any = None) -> Any:
        async def call(*args: Any) -> Any:
            for last in [False] * 4 + [True] if retry else [True]:
                try:
                    async with self.unit() as session:
                        return await body(session, *args)
                except StaleDataError:
                    if last:
                        raise
            return None

        return call

    async def retried(self, body: Any) -> None:
        await self.decorated(body, retry=True)()

    def after_commit(self, session: Any, fn: Callable[[], None]) -> None:
        event.listen(self.doors.sync(session), "after_commit", lambda _: fn())

    def fail(self, session: Any) -> None:
        raise LookupError


class Scopes(Plain):
    """The same with sessionkit."""

    def _factory(self, around_plain: bool) -> Any:
        return (self.doors.plain_factory if around_plain else self.doors.factory)(self.engine)

    def unit(self, **options: Any) -> Any:
        return self.doors.scope(self.factory, **options)

    def savepoint(self, session: Any) -> Any:
        return self.doors.scope(self.factory, propagation="savepoint")

    def joined(self, session: Any) -> Any:
        return self.doors.scope(self.factory)

    def decorated(self, body: Any, retry: Any = None) -> Any:
        return self.doors.decorate(body, self.factory, **({"retry": Retry(5, wait=0)} if retry else {}))

    async def retried(self, body: Any) -> None:
        if not hasattr(self.factory, "attempts"):
            await self.decorated(body, retry=True)()
            return
        async for attempt in self.doors.attempts(self.factory, retry=Retry(5, wait=0)):
            async with attempt as session:
                await body(session)

    def after_commit(self, session: Any, fn: Callable[[], None]) -> None:
        on_commit(fn)

    def fail(self, session: Any) -> None:
        set_rollback_only()


# The ways to end


async def committed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="ann")))
    assert request is not None


async def body_raised(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="ann")))
        await session.flush()
        raise LookupError(str(type(request)))


async def rolled_back_as_asked(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="ann")))
        assert request is not None
        by.fail(session)


async def statement_failed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        await session.execute(text("SELECT nope"))
        assert request is not None


async def statement_failed_and_swallowed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        with suppress(DBAPIError):
            await session.execute(text("SELECT nope"))
        assert request is not None


async def statement_failed_and_healed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        with suppress(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT nope"))
        assert request is not None


async def flush_failed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="taken")))
        await session.flush()
        assert request is not None


async def flush_failed_and_swallowed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="taken")))
        with suppress(IntegrityError):
            await session.flush()
        assert request is not None


async def flush_failed_at_the_end(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name="taken")))
    assert request is not None


async def commit_failed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add(watched.take("an object", Pledge(account_id=404)))
    assert request is not None


async def decorated(by: Plain, watched: Watched) -> None:
    async def body(session: Any, name: str) -> None:
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name=name)))
        assert request is not None

    await by.decorated(body)("ann")


async def decorated_and_failed(by: Plain, watched: Watched) -> None:
    async def body(session: Any) -> None:
        request = await watched.unit(session)
        await session.execute(text("SELECT nope"))
        assert request is not None

    await by.decorated(body)()


def failing(watched: Watched, times: int) -> Any:
    runs: list[int] = []

    async def body(session: Any) -> None:
        runs.append(1)
        request = await watched.unit(session)
        session.add(watched.take("an object", User(name=f"run {len(runs)}")))
        await session.flush()
        if len(runs) <= times:
            raise StaleDataError(str(type(request)))

    return body


async def retried_by_attempts(by: Plain, watched: Watched) -> None:
    await by.retried(failing(watched, 2))


async def retried_by_attempts_in_vain(by: Plain, watched: Watched) -> None:
    await by.retried(failing(watched, 9))


async def retried_by_a_decorator(by: Plain, watched: Watched) -> None:
    await by.decorated(failing(watched, 2), retry=True)()


async def retried_by_a_decorator_in_vain(by: Plain, watched: Watched) -> None:
    await by.decorated(failing(watched, 9), retry=True)()


async def joined(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        async with by.joined(session) as inner:
            request = await watched.unit(inner)
            inner.add(watched.take("an object", User(name="ann")))
    assert request is not None


async def joined_and_failed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session, by.joined(session) as inner:
        request = await watched.unit(inner)
        await inner.execute(text("SELECT nope"))
        assert request is not None


async def joined_failed_and_swallowed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        with suppress(LookupError):
            async with by.joined(session) as inner:
                request = await watched.unit(inner)
                raise LookupError(str(type(request)))


async def savepoint(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        async with by.savepoint(session) as inner:
            request = await watched.unit(inner)
            inner.add(watched.take("an object", User(name="ann")))
    assert request is not None


async def savepoint_failed_and_swallowed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        with suppress(DBAPIError):
            async with by.savepoint(session) as inner:
                request = await watched.unit(inner)
                await inner.execute(text("SELECT nope"))
                assert request is not None


async def read_only(by: Plain, watched: Watched) -> None:
    async with by.unit(read_only=True) as session:
        request = await watched.unit(session)
    assert request is not None


async def isolated(by: Plain, watched: Watched) -> None:
    async with by.unit(isolation="SERIALIZABLE") as session:
        request = await watched.unit(session)
    assert request is not None


async def hook_ran(by: Plain, watched: Watched) -> None:
    def hook() -> None:
        assert request is not None

    async with by.unit() as session:
        request = await watched.unit(session)
        by.after_commit(session, hook)
        session.add(watched.take("an object", User(name="ann")))


async def hook_failed(by: Plain, watched: Watched) -> None:
    def hook() -> None:
        raise LookupError(str(type(request)))

    async with by.unit() as session:
        request = await watched.unit(session)
        by.after_commit(session, hook)
        session.add(watched.take("an object", User(name="ann")))


async def streamed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        result = await session.stream(select(User))
        async for _ in result.scalars():
            pass
    assert request is not None


async def streamed_half(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        session.add_all([User(name=f"user {number}") for number in range(50)])
        result = await session.stream(select(User).execution_options(yield_per=5))
        async for _ in result.scalars():
            await result.close()
            break
    assert request is not None


async def stream_failed(by: Plain, watched: Watched) -> None:
    async with by.unit() as session:
        request = await watched.unit(session)
        result = await session.stream(select(User))
        async for _ in result.scalars():
            raise LookupError(str(type(request)))


WAYS = [
    committed,
    body_raised,
    rolled_back_as_asked,
    statement_failed,
    statement_failed_and_swallowed,
    statement_failed_and_healed,
    flush_failed,
    flush_failed_and_swallowed,
    flush_failed_at_the_end,
    commit_failed,
    decorated,
    decorated_and_failed,
    retried_by_attempts,
    retried_by_attempts_in_vain,
    retried_by_a_decorator,
    retried_by_a_decorator_in_vain,
    joined,
    joined_and_failed,
    joined_failed_and_swallowed,
    savepoint,
    savepoint_failed_and_swallowed,
    read_only,
    isolated,
    hook_ran,
    hook_failed,
    streamed,
    streamed_half,
    stream_failed,
]


# What is left


async def done(doors: Door, engine: Any = None) -> None:
    """Have the driver's own threads and callbacks let go of the last thing they did."""
    if doors.colour == "async":
        async with doors.enter((engine or doors.engine).connect()) as connection:
            await connection.execute(text("SELECT 1"))


async def left_by(way: Any, by: Plain) -> tuple[set[str], set[str]]:
    """Return what is alive after a unit: without a collection, and after one."""
    doors = by.doors
    watched = Watched(doors)
    await doors.write("DELETE FROM users")
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    gc.collect()
    gc.disable()
    try:
        with suppress(Exception, asyncio.CancelledError):
            await way(by, watched)
        assert len(watched) >= 4, "the unit did not come far enough to be watched"
        if watched.alive():
            await done(doors, by.engine)
        without = watched.alive()
    finally:
        gc.enable()
    gc.collect()
    return without, watched.alive()


async def as_little_as_plain(way: Any, plain: Plain, ours: Plain) -> None:
    with warnings.catch_warnings():
        # Of a cancelled connection, which plain SQLAlchemy may leave to the collection.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", SAWarning)
        # What a process learns once (caches, a driver's first connection) is not what is asked for.
        await left_by(committed, plain)
        kept, left = await left_by(way, plain)
    assert left == set(), "plain SQLAlchemy keeps this for ever: the way of ending is wrong"
    await left_by(committed, ours)
    without, after = await left_by(way, ours)
    assert after == set(), "left after a collection"
    assert without <= kept, "left until a collection, where plain SQLAlchemy needs none"


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_left_of_a_scope_that_plain_would_not_leave(doors: Door, way: Any) -> None:
    await as_little_as_plain(way, Plain(doors), Scopes(doors))


@pytest.mark.parametrize(
    "way", [committed, statement_failed, statement_failed_and_swallowed, flush_failed, commit_failed]
)
async def test_nothing_is_left_of_a_scope_around_a_plain_factory(doors: Door, way: Any) -> None:
    await as_little_as_plain(way, Plain(doors), Scopes(doors, around_plain=True))


async def first_statement_is_cancelled(by: Plain, watched: Watched) -> None:
    async def work() -> None:
        async with by.unit() as session:
            request = await watched.unit(session)
            await Cancelled(send(session), 0)
            assert request is not None

    async def send(session: Any) -> None:
        await session.execute(text("SELECT count(*) FROM users, users AS others"))

    await asyncio.gather(asyncio.create_task(work()), return_exceptions=True)


async def insert_is_cancelled(by: Plain, watched: Watched) -> None:
    async def work() -> None:
        async with by.unit() as session:
            request = await watched.unit(session)
            session.add(watched.take("an object", User(name="ann")))
            await Cancelled(session.flush(), 0)
            assert request is not None

    await asyncio.gather(asyncio.create_task(work()), return_exceptions=True)


async def insert_is_cancelled_twice(by: Plain, watched: Watched) -> None:
    async def work() -> None:
        async with by.unit() as session:
            request = await watched.unit(session)
            session.add(watched.take("an object", User(name="ann")))
            await session.flush()
            assert request is not None

    async def whole() -> None:
        await Cancelled(work(), 6, 7)

    await asyncio.gather(asyncio.create_task(whole()), return_exceptions=True)


@pytest.mark.doors(colour="async")
@pytest.mark.parametrize("way", [first_statement_is_cancelled, insert_is_cancelled, insert_is_cancelled_twice])
async def test_nothing_is_left_of_a_scope_whose_task_was_cancelled(doors: Door, way: Any) -> None:
    await as_little_as_plain(way, Plain(doors), Scopes(doors))


@pytest.mark.parametrize("way", [statement_failed, statement_failed_and_swallowed, retried_by_a_decorator_in_vain])
async def test_many_units_that_failed_leave_nothing(doors: Door, way: Any) -> None:
    """One that is kept could be the last one only, which the next one takes the place of."""
    scopes, watched = Scopes(doors), Watched(doors)
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    for _ in range(10):
        with suppress(Exception):
            await way(scopes, watched)
    await done(doors, scopes.engine)
    gc.collect()
    assert watched.alive() == set()


async def test_an_error_that_is_kept_is_the_users_and_what_it_holds_goes_with_it(doors: Door) -> None:
    scopes, watched, kept = Scopes(doors), Watched(doors), []
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    for way in (statement_failed, statement_failed_and_swallowed):
        try:
            await way(scopes, watched)
        except (DBAPIError, errors.UnexpectedRollback) as error:
            kept.append(error)
    assert len(kept) == 2
    kept.clear()
    await done(doors, scopes.engine)
    gc.collect()
    assert watched.alive() == set()


# What was made inside of a scope and lives on


@pytest.fixture
def _without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def entered(doors: Door, watched: Watched, keep: Callable[[], Any]) -> Any:
    """Run a scope in which `keep()` makes something; return that."""
    async with doors.scope(doors.factory()) as session:
        request = await watched.unit(session)
        kept = keep()
        session.add(watched.take("an object", User(name="ann")))
    assert request is not None
    return kept


async def assert_all_is_gone(doors: Door, watched: Watched, engine: Any = None) -> None:
    if watched.alive():
        await done(doors, engine)
    assert watched.alive() == set()


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.parametrize("inner", ["none", "join", "savepoint"])
async def test_a_copy_of_the_context_keeps_nothing(doors: Door, inner: str) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    watched, kept = Watched(doors), []

    async def unit() -> None:
        async with doors.scope() as session:
            request = await watched.unit(session)
            if inner == "none":
                kept.append(contextvars.copy_context())
            else:
                async with doors.scope(propagation=inner):
                    kept.append(contextvars.copy_context())
            session.add(watched.take("an object", User(name="ann")))
        assert request is not None

    await unit()
    await assert_all_is_gone(doors, watched)

    def look() -> None:
        from sessionkit import current_session

        with pytest.raises(errors.NoCurrentSession):
            current_session()

    kept[0].run(look)


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.doors(colour="async")
async def test_a_task_that_was_started_in_a_scope_and_lives_on_keeps_nothing(doors: Door) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    watched, over = Watched(doors), asyncio.Event()
    task = await entered(doors, watched, lambda: asyncio.create_task(over.wait()))
    await asyncio.sleep(0)  # it has begun
    await assert_all_is_gone(doors, watched)
    assert not task.done()
    over.set()
    await task


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.doors(colour="async")
async def test_a_timer_that_was_set_in_a_scope_keeps_nothing(doors: Door) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    watched, loop = Watched(doors), asyncio.get_running_loop()
    timer = await entered(doors, watched, lambda: loop.call_later(3600, print))
    await assert_all_is_gone(doors, watched)
    timer.cancel()


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.parametrize("inherits", [False, True])
async def test_a_thread_that_was_started_in_a_scope_and_lives_on_keeps_nothing(doors: Door, inherits: bool) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    watched, over, begun = Watched(doors), threading.Event(), threading.Event()

    def live() -> None:
        begun.set()
        over.wait(30)

    def start() -> threading.Thread:
        target = contextvars.copy_context().run if inherits else (lambda fn: fn())
        thread = threading.Thread(target=target, args=(live,), daemon=True)
        thread.start()
        return thread

    thread = await entered(doors, watched, start)
    try:
        assert begun.wait(30)
        await assert_all_is_gone(doors, watched)
        assert thread.is_alive()
    finally:
        over.set()
        thread.join(30)


@pytest.mark.usefixtures("_without_collections")
async def test_a_connection_that_was_opened_in_a_scope_and_pooled_keeps_nothing(doors: Door) -> None:
    """A driver's transport, which lives on in the pool, holds the context that it was opened in."""
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    watched, engine = Watched(doors), doors.make_engine()

    async def unit() -> None:
        async with doors.scope(doors.factory(engine)) as session:
            request = await watched.unit(session)
            assert request is not None

    await unit()
    await assert_all_is_gone(doors, watched, engine)
