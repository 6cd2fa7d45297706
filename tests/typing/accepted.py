"""What type checkers must understand. Checked, not run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, assert_type

from sqlalchemy import orm, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext import asyncio as sa_asyncio

import sessionkit
from sessionkit import (
    INJECTED,
    READ_ONLY,
    REPORT,
    REQUIRED,
    SERIALIZABLE,
    SYSTEM,
    EffectiveIsolation,
    Isolation,
    Preset,
    TimestampVersioned,
    VersionConflict,
    Versioned,
    async_scoped_session,
    async_sessionmaker,
    binding,
    bulk,
    bump_version,
    commits,
    current_session,
    effective_isolation,
    etag,
    expect_etag,
    expect_version,
    locks,
    on_commit,
    on_rollback,
    scoped_session,
    session_scope,
    sessionmaker,
    set_rollback_only,
    sqlite,
    testing,
    update_versioned,
    version_of,
)
from sessionkit.integrations import opentelemetry
from sessionkit.integrations.application_name import name_transactions
from sessionkit.integrations.asgi import SessionKitMiddleware
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from sessionkit.integrations.logging import log_scopes, stop_logging
from sessionkit.integrations.long_scopes import Found, LongScopes
from sessionkit.integrations.pytest_plugin import (
    AssertStatements,
    CaptureOnCommit,
    FailCommitWith,
    IsolatedTest,
    LoseConnectionDuringCommit,
    RunRaces,
    StatementCount,
    Statements,
)
from sessionkit.integrations.sqlcommenter import comment_statements
from sessionkit.integrations.wsgi import SessionKitMiddleware as ForWSGI
from sessionkit.testing import Races, Schedule

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from fastapi import FastAPI
    from flask import Flask
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from sqlalchemy import Update
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


class Own(orm.Session):
    """A class of the user's."""


class AsyncOwn(sa_asyncio.AsyncSession):
    """Another."""


def factories(engine: Engine, async_engine: AsyncEngine) -> None:
    assert_type(sessionmaker(engine), sessionmaker[sessionkit.Session])
    assert_type(sessionmaker(engine, class_=Own), sessionmaker[Own])
    assert_type(sessionmaker(engine, propagation="savepoint", name="x"), sessionmaker[sessionkit.Session])
    assert_type(sessionmaker(engine)(), sessionkit.Session)
    assert_type(async_sessionmaker(async_engine), async_sessionmaker[sessionkit.AsyncSession])
    assert_type(async_sessionmaker(async_engine, class_=AsyncOwn), async_sessionmaker[AsyncOwn])
    assert_type(async_sessionmaker(async_engine)(), sessionkit.AsyncSession)
    assert_type(scoped_session(sessionmaker(engine))(), sessionkit.Session)
    assert_type(async_scoped_session(async_sessionmaker(async_engine))(), sessionkit.AsyncSession)
    # Each can stand where SQLAlchemy's is wanted.
    plain: orm.sessionmaker[sessionkit.Session] = sessionmaker(engine)
    plain_async: sa_asyncio.async_sessionmaker[sessionkit.AsyncSession] = async_sessionmaker(async_engine)
    session: orm.Session = plain()
    async_session: sa_asyncio.AsyncSession = plain_async()
    del session, async_session


def scopes(engine: Engine) -> None:
    Session = sessionmaker(engine)
    with Session.scope() as session:
        assert_type(session, sessionkit.Session)
    with Session.scope(propagation="new", name="x") as session:
        assert_type(session, sessionkit.Session)
    with session_scope(Session) as session:
        assert_type(session, sessionkit.Session)
    with session_scope(orm.sessionmaker(engine)) as plain:
        assert_type(plain, orm.Session)
    with session_scope(sessionmaker(engine, class_=Own)) as own:
        assert_type(own, Own)
    with session_scope(scoped_session(Session), propagation="savepoint") as session:
        assert_type(session, sessionkit.Session)
    with scoped_session(Session).scope() as session:
        assert_type(session, sessionkit.Session)
    session_scope_of_mine = Session.scope
    with session_scope_of_mine() as session:
        assert_type(session, sessionkit.Session)


async def async_scopes(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine)
    async with Session.scope() as session:
        assert_type(session, sessionkit.AsyncSession)
    async with session_scope(Session, propagation="require") as session:
        assert_type(session, sessionkit.AsyncSession)
    async with session_scope(sa_asyncio.async_sessionmaker(engine)) as plain:
        assert_type(plain, sa_asyncio.AsyncSession)
    async with session_scope(async_sessionmaker(engine, class_=AsyncOwn)) as own:
        assert_type(own, AsyncOwn)
    async with session_scope(async_scoped_session(Session, None)) as session:
        assert_type(session, sessionkit.AsyncSession)
    async with async_scoped_session(Session).scope() as session:
        assert_type(session, sessionkit.AsyncSession)


def what_ends_a_transaction(engine: Engine) -> None:
    Session = sessionmaker(engine, manual_commit="savepoint", no_rollback_for=NoResultFound)
    assert_type(Session, sessionmaker[sessionkit.Session])
    with Session.scope(manual_commit="refuse", no_rollback_for=(NoResultFound, KeyError)) as session:
        assert_type(session, sessionkit.Session)
    with session_scope(orm.sessionmaker(engine), no_rollback_for=()) as plain:
        assert_type(plain, orm.Session)

    @Session.scope(manual_commit="savepoint", no_rollback_for=SystemExit)
    def decorated(session: orm.Session, user_id: int) -> str:
        return str(user_id)

    assert_type(decorated(1), str)
    assert_type(Session.scope(no_rollback_for=LookupError).run(lambda session: len(session.new)), int)


async def what_ends_an_async_transaction(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine, manual_commit="savepoint", no_rollback_for=(NoResultFound,))
    async with Session.scope(manual_commit="refuse", no_rollback_for=NoResultFound) as session:
        assert_type(session, sessionkit.AsyncSession)
    async for attempt in Session.attempts(retry=3, manual_commit="savepoint", no_rollback_for=NoResultFound):
        async with attempt as session:
            assert_type(session, sessionkit.AsyncSession)


def what_runs_after_a_scope_is_reached(engine: Engine) -> int:
    """A scope swallows no exception, and type checkers know it: no `missing return`."""
    with sessionmaker(engine).scope() as session:
        return len(session.new)


async def what_runs_after_an_async_scope_is_reached(engine: AsyncEngine) -> int:
    async with async_sessionmaker(engine).scope() as session:
        return len(session.new)


def current(engine: Engine, async_engine: AsyncEngine) -> None:
    assert_type(current_session(sessionmaker(engine)), sessionkit.Session)
    assert_type(current_session(orm.sessionmaker(engine)), orm.Session)
    assert_type(current_session(sessionmaker(engine, class_=Own)), Own)
    assert_type(current_session(scoped_session(sessionmaker(engine))), sessionkit.Session)
    assert_type(current_session(async_sessionmaker(async_engine)), sessionkit.AsyncSession)
    assert_type(current_session(sa_asyncio.async_sessionmaker(async_engine)), sa_asyncio.AsyncSession)
    assert_type(current_session(), Any)


def decorators(engine: Engine) -> None:
    Session = sessionmaker(engine)

    @Session.scope
    def bare(session: orm.Session, user_id: int, *, name: str = "") -> str:
        return name

    @Session.scope(propagation="savepoint")
    def called(session: sessionkit.Session, user_id: int, *, name: str = "") -> str:
        return name

    @session_scope(orm.sessionmaker(engine))
    def of_any_factory(session: orm.Session, user_id: int) -> list[int]:
        return [user_id]

    @Session.scope
    def keyword(user_id: int, *, session: orm.Session = INJECTED) -> str:
        return str(user_id)

    assert_type(bare(1, name="x"), str)
    assert_type(called(1), str)
    assert_type(of_any_factory(1), list[int])
    assert_type(keyword(1), str)
    assert_type(keyword(1, session=Session()), str)
    as_callable: Callable[[int], str] = bare
    del as_callable


def functions_that_are_run(engine: Engine) -> None:
    Session = sessionmaker(engine)

    def count(session: orm.Session, user_id: int, *, name: str = "") -> str:
        return name * user_id

    assert_type(Session.run(count, 1, name="x"), str)
    assert_type(Session.scope(retry=5).run(count, 1), str)
    assert_type(scoped_session(Session).run(count, user_id=1), str)
    assert_type(session_scope(orm.sessionmaker(engine)).run(count, 1), str)
    assert_type(Session.run(lambda session: len(session.new)), int)
    assert_type(Session.scope().run(lambda session: session.info), dict[Any, Any])


async def async_functions_that_are_run(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine)

    async def count(session: sa_asyncio.AsyncSession, user_id: int, *, name: str = "") -> str:
        return name * user_id

    assert_type(await Session.run(count, 1, name="x"), str)
    assert_type(await Session.scope(retry=5).run(count, 1), str)
    assert_type(await async_scoped_session(Session).run(count, user_id=1), str)
    assert_type(await session_scope(sa_asyncio.async_sessionmaker(engine)).run(count, 1), str)
    assert_type(await Session.run(lambda session: count(session, 1)), str)


class Service:
    Session = sessionmaker()

    @Session.scope
    def method(self, user_id: int, *, session: orm.Session = INJECTED) -> str:
        return str(user_id)

    @Session.scope(name="x")
    def called(self, user_id: int, *, session: orm.Session = INJECTED) -> str:
        return str(user_id)

    @staticmethod
    @Session.scope
    def static(session: orm.Session, user_id: int) -> str:  # noqa: ARG004
        return str(user_id)

    @classmethod
    @Session.scope
    def of_class(cls, user_id: int, *, session: orm.Session = INJECTED) -> str:  # noqa: ARG003
        return str(user_id)


def methods(service: Service) -> None:
    assert_type(service.method(1), str)
    assert_type(service.called(1), str)
    assert_type(service.method(1, session=orm.Session()), str)
    assert_type(service.static(1), str)
    assert_type(Service.of_class(1), str)


async def async_decorators(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine)

    @Session.scope
    async def bare(session: sa_asyncio.AsyncSession, user_id: int) -> str:
        return str(user_id)

    @Session.scope(propagation="new")
    async def called(session: sessionkit.AsyncSession, user_id: int) -> str:
        return str(user_id)

    @session_scope(sa_asyncio.async_sessionmaker(engine))
    async def of_any_factory(session: sa_asyncio.AsyncSession, user_id: int) -> list[int]:
        return [user_id]

    @Session.scope
    async def keyword(user_id: int, *, session: sa_asyncio.AsyncSession = INJECTED) -> str:
        return str(user_id)

    coroutine: Coroutine[Any, Any, str] = bare(1)
    assert_type(await coroutine, str)
    assert_type(await called(1), str)
    assert_type(await of_any_factory(1), list[int])
    assert_type(await keyword(1, session=Session()), str)


def hooks(engine: Engine) -> None:
    @on_commit
    def hook() -> None: ...

    assert_type(hook(), None)

    async def later() -> int:
        return 1

    same: Callable[[], Coroutine[Any, Any, int]] = on_commit(later)
    del same
    on_rollback(lambda: 1, session=orm.Session(), robust=True)
    set_rollback_only()
    set_rollback_only(sessionmaker(engine)())


class Base(orm.DeclarativeBase):
    """A user's models."""


class Order(Versioned, Base):
    """A user's versioned class."""

    __tablename__ = "orders"
    __version_column__ = "lock_version"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Doc(TimestampVersioned, Base):
    """Another."""

    __tablename__ = "docs"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


def versions(order: Order, doc: Doc, statement: Update) -> None:
    assert_type(order.version_id, int)
    assert_type(doc.updated_at, datetime)
    assert_type(etag(order), str)
    expect_version(order, version_of(order))
    expect_version(doc, "2026-01-01T00:00:00+00:00")
    expect_etag(order, '"3"')
    bump_version(order)
    assert_type(update_versioned(statement), Update)


def conflicts(error: VersionConflict, session: orm.Session) -> None:
    conflict = error.load(session)[0]
    assert_type(conflict.identity, tuple[Any, ...])
    assert_type(conflict.deleted, bool | None)
    assert_type(error.resolve(session, "merge"), list[Any])
    error.resolve(session, lambda conflict: {"state": conflict.original["state"]}, partial=True)
    error.resolve(session, lambda conflict: "merge" if conflict.deleted else "client_wins")


async def async_conflicts(error: VersionConflict, session: sa_asyncio.AsyncSession) -> None:
    assert_type((await error.async_load(session))[0].expected, Any)
    assert_type(await error.async_resolve(session, "database_wins"), list[Any])


def locked(session: orm.Session, scoped: scoped_session[orm.Session], Session: sessionmaker[orm.Session]) -> None:
    assert_type(locks.lock(session, Order, 1), Order)
    assert_type(locks.lock(scoped, Order, {"id": 1}, mode="share", wait=0.5), Order)
    assert_type(locks.lock_all(session, Order, [1, 2], wait=False), list[Order])
    assert_type(locks.take(session, select(Order), limit=3), list[Any])
    assert_type(locks.mutex_key(("a", 1)), int)
    Session.scope(mutex="a", mutex_wait=False)
    Session.scope(settings={"app.tenant": 7, "app.lang": lambda: "en", "app.none": None, "app.flag": True}, role="app")
    Session.scope(settings=SYSTEM, role=lambda: "app", name="all")
    sessionmaker(settings={"app.tenant": REQUIRED}, role=REQUIRED, settings_on_sqlite="ignore")
    Session.scope(mutex=lambda order: ("a", order))
    sessionmaker(mutex=7, mutex_wait=1.5, warn_stale_locks=False)


def once(session: orm.Session, scoped: scoped_session[orm.Session], Session: sessionmaker[orm.Session]) -> None:
    @Session.scope(retry=5, once=lambda order: f"pay:{order}", fingerprint="", codec=(repr, int), once_ttl=60)
    def pay(session: orm.Session, order: int) -> str:
        return "paid"

    assert_type(pay(7), str)
    assert_type(Session.scope(once="key").run(lambda session: 7), int)
    assert_type(commits.consumed(session, "m-1"), bool)
    assert_type(commits.consumed(scoped, "m-1", ttl=60), bool)


async def async_once(session: sa_asyncio.AsyncSession, Async: async_sessionmaker[sa_asyncio.AsyncSession]) -> None:
    @Async.scope(once="key")
    async def pay(session: sa_asyncio.AsyncSession, order: int) -> str:
        return "paid"

    assert_type(await pay(7), str)
    assert_type(await commits.async_consumed(session, "m-1"), bool)


async def async_locked(session: sa_asyncio.AsyncSession) -> None:
    assert_type(await locks.async_lock(session, Order, 1), Order)
    assert_type(await locks.async_lock_all(session, Order, [1]), list[Order])
    assert_type(await locks.async_take(session, select(Order), limit=3), list[Any])


def bulk_writes(session: orm.Session) -> None:
    result = bulk.insert(session, Order, ({"state": "new"} for _ in range(3)), returning=[Order.version_id], chunk=2)
    assert_type(result, bulk.BulkResult)
    assert_type(result.rejected, list[bulk.Rejected])
    bulk.update(session, Order, [{"id": 1}], missing="ignore", check=True, on_error="collect")
    bulk.upsert(session, Order, [], match=["id"], where=lambda new: new.id > 3, status=True)
    bulk.delete(session, Order, [1, 2], method="sqlalchemy")
    options: bulk.WriteOptions = {"chunk": 5, "on_error": "collect", "max_rejected": 0.05}
    bulk.delete(session, Order, [1, 2], **options)
    assert_type(bulk.get(session, Order, [1, 2]), list[Order | None])


async def async_bulk_writes(session: sa_asyncio.AsyncSession) -> None:
    assert_type(await bulk.async_insert(session, Order, [{"state": "new"}], progress=True), bulk.BulkResult)


def readers(engine: Engine, factory: sessionkit.sessionmaker[sessionkit.Session]) -> None:
    made = sessionkit.sessionmaker(engine, readers=[engine], reader_wait=1, no_reader="error")
    assert_type(made, sessionkit.sessionmaker[sessionkit.Session])
    assert_type(binding.commit_token(factory), str | None)
    for found in binding.recover_prepared(engine, engine, older_than=1.5):
        assert_type(found.age, float)


async def async_recovery(engine: sa_asyncio.AsyncEngine) -> None:
    assert_type(await binding.async_recover_prepared(engine), list[binding.PreparedTransaction])


def presets(engine: Engine, async_engine: AsyncEngine) -> None:
    assert_type(SERIALIZABLE, Preset)
    assert_type(Preset(), Preset)
    assert_type(Preset("REPEATABLE READ", read_only=True, lock_timeout=2), Preset)
    assert_type(Preset(isolation=Isolation.SERIALIZABLE, statement_timeout=0.5, idle_timeout=None), Preset)
    # DEFERRABLE has two partners, each by its name or as the enum.
    assert_type(Preset("SERIALIZABLE", True, True), Preset)
    assert_type(Preset(isolation=Isolation.SERIALIZABLE, read_only=True, deferrable=True), Preset)
    assert_type(Preset("READ COMMITTED", deferrable=False), Preset)
    assert_type(READ_ONLY.replace(isolation="SERIALIZABLE"), Preset)
    assert_type(READ_ONLY | SERIALIZABLE, Preset)
    assert_type(REPORT.isolation, Isolation | None)
    assert_type(REPORT.lock_timeout, float | None)
    assert_type(effective_isolation(engine, "SERIALIZABLE"), EffectiveIsolation)
    assert_type(effective_isolation(async_engine, Isolation.SERIALIZABLE).level, Isolation)
    assert_type(effective_isolation(engine, "READ COMMITTED").anomalies, frozenset[str])


def scopes_with_presets(engine: Engine) -> None:
    Session = sessionmaker(engine, preset=SERIALIZABLE, lock_timeout=2)
    assert_type(Session, sessionmaker[sessionkit.Session])
    with Session.scope(preset=REPORT, isolation="SERIALIZABLE", read_only=True, deferrable=True) as session:
        assert_type(session, sessionkit.Session)
    with Session.scope(schema_translate_map={None: "tenant"}) as session:
        assert_type(session, sessionkit.Session)
    with session_scope(Session, isolation=Isolation.READ_COMMITTED, statement_timeout=1, idle_timeout=None) as session:
        assert_type(session, sessionkit.Session)


def configured(engine: Engine, async_engine: AsyncEngine) -> None:
    assert_type(sqlite.configure(engine), Engine)
    assert_type(sqlite.configure(async_engine, synchronous="FULL", begin="deferred", busy_timeout=1), AsyncEngine)


def web_frameworks(
    engine: Engine, async_engine: AsyncEngine, flask: Flask, fastapi: FastAPI, app: WSGIApplication
) -> None:
    maker, async_maker = sessionmaker(engine), async_sessionmaker(async_engine)
    kit = SessionKit(flask, maker, rollback_on=lambda status: status >= 500, retry=5, retry_methods={"GET"})
    SessionKit(flask, {"default": scoped_session(maker), "audit": orm.sessionmaker(engine)})
    SessionKit().init_app(flask, maker)
    assert_type(kit.session, orm.Session)
    assert_type(kit.get_session("audit"), orm.Session)
    wrapped: WSGIApplication = ForWSGI(app, [maker, maker])
    ForWSGI(wrapped, maker)
    fastapi.add_middleware(SessionKitMiddleware, factory=async_maker)
    fastapi.add_middleware(SessionKitMiddleware, factory=[maker, async_maker], retry=sessionkit.Retry(3))
    install(fastapi, retry=3)
    install(
        fastapi, idempotency_header="Idempotency-Key", idempotency_caller=lambda request: request.headers.get("X-User")
    )
    SessionKit(
        flask, maker, idempotency_header="Idempotency-Key", idempotency_caller=lambda request: request.remote_addr
    )
    SessionDepends(async_maker, preset=SERIALIZABLE, retry=5)
    SessionDepends(maker, read_only=True)
    SessionDepends(async_maker, settings={"app.tenant": lambda request: str(request)}, role=lambda request: "app")
    SessionKit(flask, maker, settings={"app.tenant": lambda request: str(request)}, role="app")
    ForWSGI(app, maker, settings=SYSTEM)
    fastapi.add_middleware(SessionKitMiddleware, factory=maker, settings={"app.tenant": lambda scope: 7}, role="app")


def migrations(engine: Engine, async_engine: AsyncEngine, factory: sessionmaker[sessionkit.Session]) -> None:
    from sessionkit.integrations import alembic

    metadata = Base.metadata
    alembic.run_migrations(metadata)
    alembic.run_migrations([metadata], engine="sqlite://", lock=False, lock_timeout=None, compare_type=False)
    alembic.run_migrations({"a": metadata, "b": [metadata]}, engine={"a": engine, "b": async_engine}, retry=3)
    alembic.run_migrations(factory)
    alembic.run_migrations(None, engine=factory)
    assert_type(alembic.assert_up_to_date(engine), None)


async def migrations_checked(async_engine: AsyncEngine) -> None:
    from sessionkit.integrations import alembic

    await alembic.async_assert_up_to_date(async_engine, "alembic.ini", version_table="versions")
    assert_type(alembic.MigrationBlocked("no").blockers, tuple[alembic.Blocker, ...])


def observability(engine: Engine, async_engine: AsyncEngine, tracers: TracerProvider, meters: MeterProvider) -> None:
    opentelemetry.instrument()
    opentelemetry.instrument(tracers, meters, joined=False)
    assert_type(opentelemetry.uninstrument(), None)
    log_scopes()
    log_scopes(10, slow=1.5)
    stop_logging()
    with LongScopes(5, on_found=print, every=None, clock=float) as finder:
        assert_type(finder, LongScopes)
        finder.look()
    alarms: list[Found] = []
    LongScopes(0.5, on_found=alarms.append).close()
    assert_type(alarms[0].event, Literal["open", "ended", "lost"])
    assert_type((alarms[0].name, alarms[0].place, alarms[0].seconds), tuple[str | None, str, float])
    assert_type(comment_statements(engine), Engine)
    assert_type(comment_statements(async_engine, traceparent=True), AsyncEngine)
    assert_type(name_transactions(async_engine, prefix="shop/"), AsyncEngine)


async def tests_of_an_application(
    sessionkit_isolation: IsolatedTest,
    capture_on_commit: CaptureOnCommit,
    statement_count: StatementCount,
    assert_statements: AssertStatements,
    fail_commit_with: FailCommitWith,
    lose_connection_during_commit: LoseConnectionDuringCommit,
) -> None:
    with capture_on_commit() as hooks, capture_on_commit(run=True), statement_count() as sent, assert_statements(2):
        assert_type(hooks, list[Callable[[], object]])
        assert_type(sent, Statements)
    fail_commit_with("40001")
    fail_commit_with("SQLITE_BUSY", times=2)
    lose_connection_during_commit()
    lose_connection_during_commit(committed=True)
    assert_type(sessionkit_isolation.mode, str)
    sessionkit_isolation.start_over()
    await sessionkit_isolation.async_start_over()


def tests_of_units_at_the_same_time(races: RunRaces, engine: Engine, maker: sessionmaker[sessionkit.Session]) -> None:
    async def unit() -> int:
        return 1

    found = races(unit, lambda: 2, setup=print, check=lambda schedule: True, ignore=[Order.id], seed="12")
    assert_type(found, Races)
    assert_type(found.failures, tuple[Schedule, ...])
    assert_type(found.explored, int)
    assert_type(found.complete, bool)
    assert_type(found.failures[0].order, tuple[int, ...])
    assert_type(found.failures[0].outcomes[0].error, BaseException | None)
    assert_type(found.failures[0].steps[0].statement, str)
    assert_type(found.assert_serial(), None)
    found.assert_none()
    found.svg("found.svg")
    assert_type(
        testing.races(unit, unit, factories=[engine, maker], state=unit, max_schedules=10, max_seconds=1.5, seed=7),
        Races,
    )
    sessionkit.testing.races(unit, unit, factories=[engine])
