"""The cost of a scope, compared with what you would write without it.

    python -m benchmarks.scopes [--url postgresql+psycopg://...] [--rounds 200] [--only TEXT]
    python -m benchmarks.scopes --write

It runs on SQLite in memory, sync and async, and on PostgreSQL too if `--url` names a server. sessionkit and the reference have
separate engines. With --strict the exit status is 1 if a target is missed. With --write the figures go to
benchmarks/results/scopes.json, and from there into docs/explanation/speed.md, its plot, and benchmarks/README.md.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import StaticPool, create_engine, event, literal, orm, select
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext import asyncio as sa_asyncio

import sessionkit
from benchmarks import _command, _speed_page
from benchmarks._measure import Case, Report, measure, repeat, repeat_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


MakeEngine: TypeAlias = "Callable[[], Engine]"
MakeAsyncEngine: TypeAlias = "Callable[[], sa_asyncio.AsyncEngine]"

ONE = select(literal(1))
SHORT = 0.003  # seconds of a turn: on a busy machine the quiet moments are short
BEGIN = "sessionmaker.begin()"
ASYNC_BEGIN = "async_sessionmaker.begin()"


def sqlite_engine() -> Engine:
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def async_sqlite_engine() -> sa_asyncio.AsyncEngine:
    return sa_asyncio.create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)


def recipe_of(factory: orm.sessionmaker[orm.Session]) -> Any:
    @contextmanager
    def session_scope() -> Iterator[orm.Session]:
        session = factory()
        try:
            yield session
            session.commit()
        except:
            session.rollback()
            raise
        finally:
            session.close()

    return session_scope


def async_recipe_of(factory: sa_asyncio.async_sessionmaker[sa_asyncio.AsyncSession]) -> Any:
    @asynccontextmanager
    async def session_scope() -> AsyncIterator[sa_asyncio.AsyncSession]:
        session = factory()
        try:
            yield session
            await session.commit()
        except:
            await session.rollback()
            raise
        finally:
            await session.close()

    return session_scope


# The body: nothing, or one SELECT. Every case uses the same function.


def nothing(session: Any) -> None:
    pass


def one_select(session: Any) -> None:
    session.scalar(ONE)


async def async_nothing(session: Any) -> None:
    pass


async def async_one_select(session: Any) -> None:
    await session.scalar(ONE)


def sync_cases(make: MakeEngine, body: Any) -> list[Case]:
    engine = make()
    plain = orm.sessionmaker(engine)
    lent = orm.sessionmaker(make())
    ours = sessionkit.sessionmaker(make())
    recipe = recipe_of(plain)
    registry = orm.scoped_session(plain)
    our_registry = sessionkit.scoped_session(ours)

    def begin() -> None:
        with plain.begin() as session:
            body(session)

    def two_with() -> None:
        with orm.Session(engine) as session, session.begin():
            body(session)

    def by_recipe() -> None:
        with recipe() as session:
            body(session)

    def by_registry() -> None:
        body(registry())
        registry.commit()
        registry.remove()

    def by_our_registry() -> None:
        body(our_registry())
        our_registry.commit()
        our_registry.remove()

    def scope() -> None:
        with ours.scope() as session:
            body(session)

    one = ours.scope()

    def scope_kept() -> None:
        with one as session:
            body(session)

    def scope_of_plain() -> None:
        with sessionkit.session_scope(lent) as session:
            body(session)

    decorated = ours.scope(body)

    @ours.scope
    def keyword(*, session: orm.Session = sessionkit.INJECTED) -> None:
        body(session)

    cases = {
        BEGIN: begin,
        "with Session(e) as s, s.begin()": two_with,
        "hand-written recipe": by_recipe,
        "scoped_session, commit, remove (SQLAlchemy)": by_registry,
        "scoped_session, commit, remove (sessionkit)": by_our_registry,
        "Session.scope()": scope,
        "a scope that was kept": scope_kept,
        "session_scope(a plain sessionmaker)": scope_of_plain,
        "@Session.scope, first argument": decorated,
        "@Session.scope, keyword": keyword,
    }
    return [Case(name, repeat(once)) for name, once in cases.items()]


def joining_cases(make: MakeEngine, body: Any) -> list[Case]:
    """Scopes inside a scope. The outer one is open for a round and is not measured."""
    ours = sessionkit.sessionmaker(make())
    plain = orm.sessionmaker(make())
    held: dict[str, Any] = {}

    def outer(factory: Any) -> tuple[Any, Any]:
        def before() -> None:
            stack = held["stack"] = ExitStack()
            session = held["session"] = stack.enter_context(factory())
            session.connection()

        def after() -> None:
            held.pop("stack").close()

        return before, after

    def begin() -> None:
        with plain.begin() as session:
            body(session)

    def no_scope() -> None:
        body(held["session"])

    def join() -> None:
        with ours.scope() as session:
            body(session)

    def nested() -> None:
        with held["session"].begin_nested():
            body(held["session"])

    savepoint_scope = ours.scope(propagation="savepoint")

    def savepoint() -> None:
        with savepoint_scope as session:
            body(session)

    before, after = outer(ours.scope)
    plain_before, plain_after = outer(plain.begin)
    return [
        Case(BEGIN, repeat(begin)),
        Case("the body alone, in an open session", repeat(no_scope), plain_before, plain_after),
        Case("joining an outer scope", repeat(join), before, after),
        Case("session.begin_nested()", repeat(nested), plain_before, plain_after),
        Case('propagation="savepoint"', repeat(savepoint), before, after),
    ]


def access_cases(make: MakeEngine) -> list[Case]:
    """Asking a scoped session for its session."""
    engine = make()
    plain = orm.scoped_session(orm.sessionmaker(engine))
    ours = sessionkit.scoped_session(sessionkit.sessionmaker(engine))
    inside = sessionkit.sessionmaker(engine)
    proxy = sessionkit.scoped_session(inside)
    stack = ExitStack()

    def enter() -> None:
        stack.enter_context(inside.scope())

    return [
        Case("scoped_session() (SQLAlchemy)", repeat(plain)),
        Case("scoped_session() (sessionkit), no scope", repeat(ours)),
        Case("scoped_session() (sessionkit), in a scope", repeat(proxy), enter, stack.close),
        Case("current_session(), in a scope", repeat(lambda: sessionkit.current_session(inside)), enter, stack.close),
    ]


def async_cases(make: MakeAsyncEngine, body: Any, runner: asyncio.Runner) -> list[Case]:
    engine = make()
    plain = sa_asyncio.async_sessionmaker(engine)
    lent = sa_asyncio.async_sessionmaker(make())
    ours = sessionkit.async_sessionmaker(make())
    recipe = async_recipe_of(plain)

    async def begin() -> None:
        async with plain.begin() as session:
            await body(session)

    async def two_with() -> None:
        async with sa_asyncio.AsyncSession(engine) as session, session.begin():
            await body(session)

    async def by_recipe() -> None:
        async with recipe() as session:
            await body(session)

    async def scope() -> None:
        async with ours.scope() as session:
            await body(session)

    async def scope_of_plain() -> None:
        async with sessionkit.session_scope(lent) as session:
            await body(session)

    decorated = ours.scope(body)
    cases = {
        ASYNC_BEGIN: begin,
        "async with AsyncSession(e) as s, s.begin()": two_with,
        "hand-written recipe": by_recipe,
        "Session.scope()": scope,
        "session_scope(a plain async_sessionmaker)": scope_of_plain,
        "@Session.scope, first argument": decorated,
    }
    return [Case(name, repeat_async(once, runner)) for name, once in cases.items()]


def async_joining_cases(make: MakeAsyncEngine, body: Any, runner: asyncio.Runner) -> list[Case]:
    """A scope inside a scope: one outer scope per round, whose share is small."""
    plain = sa_asyncio.async_sessionmaker(make())
    ours = sessionkit.async_sessionmaker(make())

    async def begin() -> None:
        async with plain.begin() as session:
            await body(session)

    async def joins(number: int) -> None:
        async with ours.scope() as outer:
            await outer.connection()
            for _ in range(number):
                async with ours.scope() as session:
                    await body(session)

    return [
        Case(ASYNC_BEGIN, repeat_async(begin, runner)),
        # So many that the outer scope, which is included, does not show.
        Case("joining an outer scope", lambda number: runner.run(joins(number)), number=1000),
    ]


def real_begin(engine: Engine) -> Engine:
    """SQLAlchemy's documented recipe for a real BEGIN on SQLite, which a scope sends too."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def real_begin_cases() -> list[Case]:
    """One SELECT with a real BEGIN on both sides: otherwise the scope does more than the reference."""
    plain = orm.sessionmaker(real_begin(sqlite_engine()))
    ours = sessionkit.sessionmaker(sqlite_engine())

    def begin() -> None:
        with plain.begin() as session:
            one_select(session)

    def scope() -> None:
        with ours.scope() as session:
            one_select(session)

    return [Case(BEGIN, repeat(begin)), Case("Session.scope()", repeat(scope))]


def async_real_begin_cases(runner: asyncio.Runner) -> list[Case]:
    theirs = async_sqlite_engine()
    real_begin(theirs.sync_engine)
    plain = sa_asyncio.async_sessionmaker(theirs)
    ours = sessionkit.async_sessionmaker(async_sqlite_engine())

    async def begin() -> None:
        async with plain.begin() as session:
            await async_one_select(session)

    async def scope() -> None:
        async with ours.scope() as session:
            await async_one_select(session)

    return [Case(ASYNC_BEGIN, repeat_async(begin, runner)), Case("Session.scope()", repeat_async(scope, runner))]


Targets = dict[str, float]

EMPTY_TARGETS = {"Session.scope()": 1.0, "@Session.scope, first argument": 1.05}
SELECT_TARGETS = {"Session.scope()": 1.05, "@Session.scope, first argument": 1.05}
JOIN_TARGETS = {"joining an outer scope": 0.1}
ASYNC_EMPTY_TARGETS = {"Session.scope()": 0.8}
ASYNC_SELECT_TARGETS = {"Session.scope()": 1.0}


def tables(url: URL | None, runner: asyncio.Runner) -> Iterator[tuple[str, Callable[[], list[Case]], str, Targets]]:
    """Title, cases, reference and targets of each table."""
    lite, scoped = "SQLite in memory", "scoped_session() (SQLAlchemy)"
    yield f"{lite}, empty", lambda: sync_cases(sqlite_engine, nothing), BEGIN, EMPTY_TARGETS
    yield f"{lite}, one SELECT", lambda: sync_cases(sqlite_engine, one_select), BEGIN, SELECT_TARGETS
    yield f"{lite}, one SELECT, both with a real BEGIN", real_begin_cases, BEGIN, {}
    yield f"{lite}, inside a scope, empty", lambda: joining_cases(sqlite_engine, nothing), BEGIN, JOIN_TARGETS
    yield f"{lite}, inside a scope, one SELECT", lambda: joining_cases(sqlite_engine, one_select), BEGIN, {}
    yield "Access", lambda: access_cases(sqlite_engine), scoped, {}
    places: list[tuple[str, MakeAsyncEngine, bool]] = [(lite, async_sqlite_engine, True)]
    if url is not None:
        known = url

        def make() -> Engine:
            return create_engine(known)

        def async_make() -> sa_asyncio.AsyncEngine:
            return sa_asyncio.create_async_engine(known.set(drivername="postgresql+asyncpg"))

        yield "PostgreSQL, empty", lambda: sync_cases(make, nothing), BEGIN, {}
        yield "PostgreSQL, one SELECT", lambda: sync_cases(make, one_select), BEGIN, {}
        yield "PostgreSQL, inside a scope, one SELECT", lambda: joining_cases(make, one_select), BEGIN, {}
        places.append(("PostgreSQL", async_make, False))
    for place, engine, held in places:
        yield (
            f"{place}, async, empty",
            lambda e=engine: async_cases(e, async_nothing, runner),  # type: ignore[misc]
            ASYNC_BEGIN,
            ASYNC_EMPTY_TARGETS if held else {},
        )
        yield (
            f"{place}, async, one SELECT",
            lambda e=engine: async_cases(e, async_one_select, runner),  # type: ignore[misc]
            ASYNC_BEGIN,
            ASYNC_SELECT_TARGETS if held else {},
        )
        yield (
            f"{place}, async, inside a scope, empty",
            lambda e=engine: async_joining_cases(e, async_nothing, runner),  # type: ignore[misc]
            ASYNC_BEGIN,
            JOIN_TARGETS if held else {},
        )
    yield (
        f"{lite}, async, one SELECT, both with a real BEGIN",
        lambda: async_real_begin_cases(runner),
        ASYNC_BEGIN,
        {},
    )


def measured(url: URL | None, only: str, rounds: int) -> Iterator[Report]:
    """Measure the tables whose title contains `only`."""
    with asyncio.Runner() as runner:
        for title, cases, reference, targets in tables(url, runner):
            if only.lower() in title.lower():
                yield Report(title, measure(cases(), rounds=rounds, round_seconds=SHORT), reference, targets)


def main() -> int:
    return _command.run("scopes", __doc__ or "", measured, _speed_page.speed, ["psycopg", "asyncpg", "aiosqlite"])


if __name__ == "__main__":
    sys.exit(main())
