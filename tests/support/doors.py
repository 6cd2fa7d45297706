"""Doors: one test body, both colours, both backends.

A test asks for `doors` and is `async def`; it runs once for each door:

    async def test_what_was_done_in_a_scope_is_committed(doors: Door) -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
        assert await doors.rows("SELECT name FROM users") == [("ann",)]

    door                          engine                    the body runs
    sqlite-sync                   pysqlite                  without an event loop, driven by `coro.send(None)`
    sqlite-async                  aiosqlite                 in a task of a new event loop
    postgresql-sync               psycopg                   as sqlite-sync
    postgresql-async              asyncpg                   as sqlite-async
    postgresql-sync-psycopg2      psycopg2                  as sqlite-sync                 (marked `drivers`)
    postgresql-async-psycopg      psycopg, asynchronous     as sqlite-async                (marked `drivers`)

**Neutral objects.** In the async colours `session` is the AsyncSession itself. In the sync colours it is a facade
with the interface of an AsyncSession over a plain Session (neutral.py); so the type that a body sees is AsyncSession.
`doors.raw(x)` is the object that a user of sessionkit would hold, `doors.sync(x)` the sync Session inside in both
colours, `doors.neutral(x)` the way back, `doors.same(a, b)` whether two of them are one session. A body awaits only
what doors and neutral objects give; one that waits otherwise fails in the sync colours.

**What a door gives**
    backend, colour, driver, name  "sqlite"/"postgresql", "sync"/"async", "psycopg"..., the first column above
    engine, sync_engine            Engine or AsyncEngine; the Engine below it in both colours
    make_engine(**kw)              one more engine on the same database
    other_engine(**kw)             an engine on another database, with the same tables
    factory(engine=None, **kw)     sessionkit's sessionmaker or async_sessionmaker; plain_factory(...): SQLAlchemy's
    Session                        a factory made once
    scope(factory=None, **options) `async with` around session_scope(factory or Session, **options)
    session(factory=None)          `async with` around factory(): a session without a scope
    scoped(factory=None)           a neutral scoped_session or async_scoped_session of sessionkit's
    connect()                      `async with` around engine.connect(), giving a neutral connection
    enter(value)                   `async with` around what this colour enters: a scope, an attempt, `factory.begin()`
    attempts(factory=None, ...)    `async for attempt in ...: async with attempt as session:`
    decorate(body, ...)            an `async def body(session, ...)` decorated by a scope; called with `await`
    twin(sync_fn, async_fn)        the function of this colour, called with `await`:
                                   `insert = doors.twin(bulk.insert, bulk.async_insert)`
    call(fn, *args)                call a colourless function with neutral sessions:
                                   `doors.call(set_rollback_only, session)`

**What it sees from outside** (an engine of its own, no sessionkit)
    await rows(sql_or_select)      what is committed, as a list of tuples; await scalar(...): the one value
    await write(statement)         change something and commit, as another user of the database would
    statements()                   `with doors.statements() as sql:` collects what the engine sends, BEGIN to COMMIT
    checked_out()                  how many connections the pool has lent

**At the same time**
    await together(*bodies)        threads or tasks; returns the results, raises the first failure, releases the others
    barrier(n), event()            `await barrier.wait()`; `event.set()`, `await event.wait()`; they fail after 30 s
    await in_other_thread(fn)      with an empty context; fn may be `async def` (in the async colours with its own loop)

**Which doors.** All, or those that match `@pytest.mark.doors(backend="postgresql")`, `(colour="async")`,
`(driver="asyncpg")`, `("sqlite-sync", ...)`. `SESSIONKIT_BACKENDS=sqlite` deselects the others, so does `-m "not
postgresql"`; nothing is skipped. The second drivers are for `--drivers second` (or `every`), which is a step of its own in
`.ci/run`. A module that is marked `above_drivers` shows what does not reach the driver: it goes through the second drivers
only with `--drivers every`. Each test starts with the tables of models.py, empty, on both backends with foreign keys
enforced; what it does to the database is undone. `@pytest.mark.own_database`: a PostgreSQL database of its own.

**What every test asserts without saying so**: the pool has all its connections back, nothing is open in the database,
no scope is ambient.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from sqlalchemy import Executable, create_engine, orm, text
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from tests.support import together as together_
from tests.support.databases import enforce_foreign_keys
from tests.support.entering import Attempts, Entered
from tests.support.neutral import awaitable, drive, neutral, raw, raw_arguments
from tests.support.witness import Ledger, statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from sqlalchemy.engine import URL, Engine

    from tests.support.databases import Database

T = TypeVar("T")
Form = Literal["first", "keyword"]


@dataclass(frozen=True)
class Kind:
    """A door before it is opened: the parameter of a test."""

    name: str
    backend: str
    colour: str
    driver: str
    second: bool = False


KINDS = (
    Kind("sqlite-sync", "sqlite", "sync", "pysqlite"),
    Kind("sqlite-async", "sqlite", "async", "aiosqlite"),
    Kind("postgresql-sync", "postgresql", "sync", "psycopg"),
    Kind("postgresql-async", "postgresql", "async", "asyncpg"),
    Kind("postgresql-sync-psycopg2", "postgresql", "sync", "psycopg2", second=True),
    Kind("postgresql-async-psycopg", "postgresql", "async", "psycopg", second=True),
)


class Door(ABC):
    """A backend, a driver and a colour, with everything a contract test needs in it. See the top of this file."""

    colour: ClassVar[str]

    def __init__(self, kind: Kind, database: Database, other_database: Callable[[], Database]) -> None:
        self.name = kind.name
        self.backend = kind.backend
        self.driver = kind.driver
        self.database = database
        self._other_database = other_database
        self._engines: list[Any] = []
        self._ledgers: list[Ledger] = []
        self._meetings = together_.Meetings()
        self.engine: Any = self.make_engine()

    def __repr__(self) -> str:
        return f"<door {self.name}>"

    # Engines and factories

    def make_engine(self, *, foreign_keys: bool = True, port: int | None = None, **kw: Any) -> Any:
        """Return one more engine on the test's database; it is disposed of with the door. `port`: of a fault proxy."""
        url = self.database.url(self.driver)
        return self._adopted(self._create_engine(url if port is None else url.set(port=port), **kw), foreign_keys)

    def other_engine(self, *, foreign_keys: bool = True, **kw: Any) -> Any:
        """Return an engine on another database with the same tables."""
        return self._adopted(self._create_engine(self._other_database().url(self.driver), **kw), foreign_keys)

    def _adopted(self, engine: Any, foreign_keys: bool) -> Any:
        sync_engine = self.sync_engine_of(engine)
        self._engines.append(engine)
        self._ledgers.append(Ledger(sync_engine))
        if foreign_keys and self.backend == "sqlite":
            enforce_foreign_keys(sync_engine)
        return engine

    @property
    def sync_engine(self) -> Engine:
        return self.sync_engine_of(self.engine)

    @staticmethod
    def sync_engine_of(engine: Any) -> Engine:
        return engine.sync_engine if isinstance(engine, AsyncEngine) else cast("Engine", engine)

    @cached_property
    def Session(self) -> Any:  # noqa: N802 - what a user calls it
        """A factory of sessionkit's on the door's engine."""
        return self.factory()

    @abstractmethod
    def factory(self, bind: Any = None, **kw: Any) -> Any:
        """Return sessionkit's factory of this colour."""

    @abstractmethod
    def plain_factory(self, bind: Any = None, **kw: Any) -> Any:
        """Return SQLAlchemy's own factory of this colour."""

    @abstractmethod
    def _create_engine(self, url: URL, **kw: Any) -> Any: ...

    def _bind(self, bind: Any, kw: dict[str, Any]) -> dict[str, Any]:
        # `binds=` stands for itself: an engine beside it would hide a model that was forgotten there.
        return kw if "binds" in kw and bind is None else {"bind": self.engine if bind is None else bind, **kw}

    # Entering

    def scope(self, factory: Any = None, **options: Any) -> AbstractAsyncContextManager[AsyncSession]:
        """Enter `session_scope(factory, **options)`."""
        from sessionkit import session_scope

        return self.enter(session_scope(raw(factory) or self.Session, **options))

    def session(self, factory: Any = None) -> AbstractAsyncContextManager[AsyncSession]:
        """Enter a session that no scope surrounds."""
        return self.enter((factory or self.Session)())

    def scoped(self, factory: Any = None, *args: Any) -> Any:
        """Return a neutral scoped session of sessionkit's over a factory."""
        import sessionkit

        made = sessionkit.scoped_session if self.colour == "sync" else sessionkit.async_scoped_session
        return neutral(made(factory or self.Session, *args))

    def connect(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Enter a connection of the door's engine."""
        return self.enter(self.engine.connect())

    @abstractmethod
    def enter(self, value: Any) -> AbstractAsyncContextManager[Any]:
        """Enter what this colour's users enter by `with` or `async with`."""

    @abstractmethod
    def attempts(self, factory: Any = None, **options: Any) -> AsyncIterator[Any]:
        """Iterate over `factory.attempts(**options)`."""

    # Functions

    def decorate(
        self,
        body: Callable[..., Coroutine[Any, Any, T]],
        factory: Any = None,
        *,
        bare: bool = False,
        form: Form = "first",
        **options: Any,
    ) -> Callable[..., Awaitable[T]]:
        """Decorate an `async def body(session, ...)` with a scope of `factory`, or of the door's.

        `form="keyword"` turns the body's first parameter into `*, session=INJECTED` first. A body that has such a
        parameter is taken as it is. `bare=True`: `@Session.scope` without the parentheses. What `decorate` returns
        takes and gives neutral sessions.
        """
        from sessionkit import session_scope

        factory = factory or self.Session
        fn = self._coloured(_in_form(body, form))
        if bare:
            return self._called(factory.scope(fn))
        scope = factory.scope(**options) if hasattr(factory, "scope") else session_scope(factory, **options)
        return self._called(scope(fn))

    @abstractmethod
    def _coloured(self, body: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Turn a body into the function that a user of this colour would write."""

    @abstractmethod
    def _called(self, fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Turn a user's function of this colour into one that is awaited."""

    def twin(self, sync_fn: Callable[..., Any], async_fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return the function of this colour, to be awaited."""
        return self._called(sync_fn if self.colour == "sync" else async_fn)

    @staticmethod
    def call(fn: Callable[..., T], *args: Any, **kw: Any) -> T:
        """Call a function that has no colour, with the sessions that a user would hold."""
        args_, kw_ = raw_arguments(args, kw)
        return cast(T, neutral(fn(*args_, **kw_)))

    # Sessions

    @staticmethod
    def raw(value: Any) -> Any:
        """Return the object that a user of this colour would hold."""
        return raw(value)

    @staticmethod
    def neutral(value: Any) -> Any:
        """Return the object that a body can await on."""
        return neutral(value)

    @staticmethod
    def sync(session: Any) -> orm.Session:
        """Return the sync Session that does the work in both colours."""
        session = raw(session)
        if isinstance(session, orm.scoped_session | sa_asyncio.async_scoped_session):
            session = session()
        return session.sync_session if isinstance(session, AsyncSession) else cast("orm.Session", session)

    def same(self, one: Any, other: Any) -> bool:
        """Tell whether both are one session."""
        return self.sync(one) is self.sync(other)

    # Seen from outside

    async def rows(self, query: str | Executable, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return what is committed, read on a connection of the harness's own."""
        return await self._outside(lambda: self._read(query, parameters))

    async def scalar(self, query: str | Executable, **parameters: Any) -> Any:
        """Return the one value that is committed."""
        rows = await self.rows(query, **parameters)
        assert len(rows) == 1, f"expected one row, got {rows}"
        return rows[0][0]

    async def write(self, statement: str | Executable, **parameters: Any) -> None:
        """Write and commit on a connection of the harness's own, as another user of the database would."""

        def work() -> None:
            with self.database.observer.begin() as connection:
                connection.execute(_executable(statement), parameters)

        await self._outside(work)

    def _read(self, query: str | Executable, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self.database.observer.connect() as connection:
            return [tuple(row) for row in connection.execute(_executable(query), parameters)]

    @abstractmethod
    async def _outside(self, work: Callable[[], T]) -> T: ...

    def statements(self, engine: Any = None) -> AbstractContextManager[list[str]]:
        """Collect what the engine sends to the database while the block runs."""
        return statements(self.sync_engine_of(self.engine if engine is None else engine))

    def checked_out(self) -> int:
        """Return how many connections the pools of this door's engines have lent."""
        return sum(len(ledger) for ledger in self._ledgers)

    # At the same time

    async def together(self, *bodies: Any, return_exceptions: bool = False) -> list[Any]:
        """Run `async def` functions or coroutines at the same time; return their results in order."""
        return await self._run_together([together_.Body(body) for body in bodies], return_exceptions)

    @abstractmethod
    async def _run_together(self, bodies: list[together_.Body], return_exceptions: bool) -> list[Any]: ...

    @abstractmethod
    async def in_other_thread(self, fn: Callable[[], Any]) -> Any:
        """Call `fn` in another thread, which inherits no context."""

    def barrier(self, parties: int) -> together_.Meeting:
        """Return a barrier for bodies that run together."""
        barrier = together_.ThreadBarrier(parties) if self.colour == "sync" else together_.TaskBarrier(parties)
        self._meetings.add(barrier)
        return barrier

    def event(self) -> together_.Event:
        """Return an event for bodies that run together."""
        event: together_.Event = together_.ThreadEvent() if self.colour == "sync" else together_.TaskEvent()
        self._meetings.add(event)
        return event

    # For the plugin

    @abstractmethod
    def run(self, body: Coroutine[Any, Any, None]) -> None:
        """Run the body of a test."""

    @abstractmethod
    def dispose(self) -> None:
        """Dispose of the engines and of the event loop."""

    def left_open(self) -> list[str]:
        """Tell what the test has not closed."""
        found = [f"{self.checked_out()} connection(s) are still checked out of the pool"] if self.checked_out() else []
        return found + self.database.left_open()


class SyncDoor(Door):
    colour = "sync"

    def factory(self, bind: Any = None, **kw: Any) -> Any:
        from sessionkit import sessionmaker

        return sessionmaker(**self._bind(bind, kw))

    def plain_factory(self, bind: Any = None, **kw: Any) -> Any:
        return orm.sessionmaker(**self._bind(bind, kw))

    def _create_engine(self, url: URL, **kw: Any) -> Any:
        return create_engine(url, **kw)

    def enter(self, value: Any) -> AbstractAsyncContextManager[Any]:
        return Entered(raw(value))

    def attempts(self, factory: Any = None, **options: Any) -> AsyncIterator[Any]:
        return Attempts((factory or self.Session).attempts(**options))

    def _coloured(self, body: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @wraps(body)
        def fn(*args: Any, **kw: Any) -> Any:
            return raw(drive(body(*map(neutral, args), **{name: neutral(value) for name, value in kw.items()})))

        return fn

    def _called(self, fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return awaitable(fn)

    async def _outside(self, work: Callable[[], T]) -> T:
        return work()

    async def _run_together(self, bodies: list[together_.Body], return_exceptions: bool) -> list[Any]:
        return together_.in_threads(bodies, self._meetings, return_exceptions=return_exceptions)

    async def in_other_thread(self, fn: Callable[[], Any]) -> Any:
        return together_.call_in_thread(fn)

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        # In a copy of the context, so that a scope which a test leaves behind is not the next one's.
        contextvars.copy_context().run(drive, _with_no_scope_left(body))

    def dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()


class AsyncDoor(Door):
    colour = "async"

    def __init__(self, kind: Kind, database: Database, other_database: Callable[[], Database]) -> None:
        # Not in debug mode: it changes when callbacks run, and takes its time.
        self._runner = asyncio.Runner(debug=False)
        super().__init__(kind, database, other_database)

    def factory(self, bind: Any = None, **kw: Any) -> Any:
        from sessionkit import async_sessionmaker

        return async_sessionmaker(**self._bind(bind, kw))

    def plain_factory(self, bind: Any = None, **kw: Any) -> Any:
        return sa_asyncio.async_sessionmaker(**self._bind(bind, kw))

    def _create_engine(self, url: URL, **kw: Any) -> Any:
        return create_async_engine(url, **kw)

    def enter(self, value: Any) -> AbstractAsyncContextManager[Any]:
        return cast(AbstractAsyncContextManager[Any], value)

    def attempts(self, factory: Any = None, **options: Any) -> AsyncIterator[Any]:
        return cast("AsyncIterator[Any]", aiter((factory or self.Session).attempts(**options)))

    def _coloured(self, body: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        return body

    def _called(self, fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return fn

    async def _outside(self, work: Callable[[], T]) -> T:
        # In a thread: should it wait for a lock that a task of this loop holds, the task can go on and release it.
        return await together_.beside_the_loop(work)

    async def _run_together(self, bodies: list[together_.Body], return_exceptions: bool) -> list[Any]:
        return await together_.in_tasks(bodies, self._meetings, return_exceptions=return_exceptions)

    async def in_other_thread(self, fn: Callable[[], Any]) -> Any:
        return await together_.call_in_thread_from_a_task(fn)

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        self._runner.run(_breathing(_with_no_scope_left(body)))

    def dispose(self) -> None:
        async def dispose() -> None:
            for engine in self._engines:
                await engine.dispose()

        try:
            self._runner.run(dispose())
        finally:
            self._runner.close()


def _in_form(body: Callable[..., Any], form: Form) -> Callable[..., Any]:
    """Return the body with its session as a keyword that a scope supplies, if that is asked."""
    from sessionkit import INJECTED

    signature = inspect.signature(body)
    if form == "first" or any(parameter.default is INJECTED for parameter in signature.parameters.values()):
        return body
    session, *others = signature.parameters.values()
    by_keyword = session.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=INJECTED)
    # Before `**options`, after which a signature allows nothing.
    place = len(others) - any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in others)

    @wraps(body)
    async def keyed(*args: Any, **kw: Any) -> Any:
        return await body(kw.pop(session.name), *args, **kw)

    cast(Any, keyed).__signature__ = signature.replace(parameters=[*others[:place], by_keyword, *others[place:]])
    return keyed


def _executable(query: str | Executable) -> Executable:
    return text(query) if isinstance(query, str) else query


async def _breathing(body: Coroutine[Any, Any, None]) -> None:
    """Have the loop wake now and then while `body` runs.

    On a busy virtual machine, with Python 3.11, a loop was seen to sleep on although a thread had called it, until something
    else woke it. A driver that works in a thread then held SQLite's lock for as long as others wait for it.
    """
    loop = asyncio.get_running_loop()
    breath: list[asyncio.TimerHandle] = []

    def breathe() -> None:
        breath[:] = [loop.call_later(0.25, breathe)]

    breathe()
    try:
        await body
    finally:
        breath[0].cancel()


async def _with_no_scope_left(body: Coroutine[Any, Any, None]) -> None:
    """Run a body and assert, in its own context, that no scope of sessionkit surrounds what comes after it."""
    await body
    import sessionkit

    if hasattr(sessionkit, "current_session"):
        try:
            left = sessionkit.current_session()
        except sessionkit.SessionKitError:
            return
        raise AssertionError(f"the test left a scope open: {left} is still the current session")


def open_door(kind: Kind, database: Database, other_database: Callable[[], Database]) -> Door:
    return (SyncDoor if kind.colour == "sync" else AsyncDoor)(kind, database, other_database)
