"""What type checkers must refuse: an ignored error that is none is an error itself. Checked, not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import orm, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext import asyncio as sa_asyncio

import sessionkit
from sessionkit import (
    INJECTED,
    READ_ONLY,
    REQUIRED,
    Isolation,
    Preset,
    VersionConflict,
    Versioned,
    async_sessionmaker,
    bulk,
    current_session,
    effective_isolation,
    expect_etag,
    expect_version,
    on_commit,
    session_scope,
    sessionmaker,
    sqlite,
    update_versioned,
    version_of,
)
from sessionkit.errors import SettingRequired
from sessionkit.integrations import opentelemetry
from sessionkit.integrations.application_name import name_transactions
from sessionkit.integrations.asgi import SessionKitMiddleware
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from sessionkit.integrations.logging import log_scopes
from sessionkit.integrations.long_scopes import LongScopes
from sessionkit.integrations.pytest_plugin import AssertStatements, CaptureOnCommit, FailCommitWith, RunRaces
from sessionkit.integrations.sqlcommenter import comment_statements
from sessionkit.integrations.wsgi import SessionKitMiddleware as ForWSGI

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from fastapi import FastAPI
    from flask import Flask
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


def the_wrong_colour(engine: Engine, async_engine: AsyncEngine) -> None:
    with async_sessionmaker(async_engine).scope():  # type: ignore[attr-defined]
        pass
    with session_scope(async_sessionmaker(async_engine)):  # type: ignore[attr-defined]
        pass


async def the_wrong_colour_in_async_code(engine: Engine) -> None:
    async with sessionmaker(engine).scope():  # type: ignore[attr-defined]
        pass
    async with session_scope(orm.sessionmaker(engine)):  # type: ignore[attr-defined]
        pass


def what_is_no_factory(engine: Engine, session: orm.Session) -> None:
    session_scope(engine)  # type: ignore[call-overload]
    session_scope(session)  # type: ignore[call-overload]
    session_scope(None)  # type: ignore[call-overload]
    current_session(engine)  # type: ignore[call-overload]


def options(engine: Engine) -> None:
    Session = sessionmaker(engine)
    Session.scope(propagation="joyn")  # type: ignore[call-overload]
    Session.scope(mutex=1.5)  # type: ignore[call-overload]
    Session.scope(once=7)  # type: ignore[call-overload]
    Session.scope(once="key", codec=repr)  # type: ignore[call-overload]
    Session.scope(settings={"app.tenant": REQUIRED})  # type: ignore[dict-item]
    Session.scope(settings={"app.tenant": 1.5})  # type: ignore[dict-item]
    Session.scope(settings={7: "a"})  # type: ignore[dict-item]
    Session.scope(settings="app.tenant")  # type: ignore[call-overload]
    Session.scope(role=7)  # type: ignore[call-overload]
    SettingRequired("no tenant").setting = 7  # type: ignore[assignment]
    Session.scope(propogation="join")  # type: ignore[call-overload]
    Session.scope("SERIALIZABLE")  # type: ignore[call-overload]
    session_scope(Session, propagation="joyn")  # type: ignore[call-overload]
    session_scope(Session, "new")  # type: ignore[call-overload]
    async_sessionmaker().scope(propagation="joyn")  # type: ignore[call-overload]


def what_ends_a_transaction(engine: Engine, async_engine: AsyncEngine) -> None:
    Session = sessionmaker(engine)
    Session.scope(manual_commit=True)  # type: ignore[call-overload]
    Session.scope(manual_commit="allow")  # type: ignore[call-overload]
    Session.scope(no_rollback_for=NoResultFound())  # type: ignore[call-overload]
    Session.scope(no_rollback_for=[NoResultFound])  # type: ignore[call-overload]
    Session.scope(no_rollback_for="NoResultFound")  # type: ignore[call-overload]
    Session.scope(no_rollback_for=(int,))  # type: ignore[arg-type]
    Session.scope(no_rollback_for=None)  # type: ignore[call-overload]
    session_scope(Session, manual_commit=None)  # type: ignore[call-overload]
    session_scope(Session, no_rollback_for=object)  # type: ignore[arg-type]
    Session.attempts(no_rollback_for=404)  # type: ignore[arg-type]
    async_sessionmaker(async_engine).scope(manual_commit="commit")  # type: ignore[call-overload]


def what_the_caller_of_a_decorated_function_passes(engine: Engine) -> None:
    Session = sessionmaker(engine)

    @Session.scope
    def first(session: orm.Session, user_id: int) -> str:
        return str(user_id)

    @Session.scope(name="x")
    def called(session: orm.Session, user_id: int) -> str:
        return str(user_id)

    @Session.scope
    def keyword(user_id: int, *, session: orm.Session = INJECTED) -> str:
        return str(user_id)

    first(Session(), 1)  # type: ignore[call-arg, arg-type]
    first("1")  # type: ignore[arg-type]
    first()  # type: ignore[call-arg]
    called("1")  # type: ignore[arg-type]
    called(1, name="x")  # type: ignore[call-arg]
    keyword("1")  # type: ignore[arg-type]
    keyword(1, session="s")  # type: ignore[arg-type]
    number: int = first(1)  # type: ignore[assignment]
    del number


def what_is_run(engine: Engine) -> None:
    Session = sessionmaker(engine)

    def count(session: orm.Session, user_id: int) -> str:
        return str(user_id)

    def of_async(session: sa_asyncio.AsyncSession) -> None: ...

    Session.run(count)  # type: ignore[call-arg]
    Session.run(count, "1")  # type: ignore[arg-type]
    Session.run(count, 1, name="x")  # type: ignore[call-arg]
    Session.run(of_async)  # type: ignore[arg-type]
    Session.run("count", 1)  # type: ignore[arg-type]
    Session.scope().run(count, "1")  # type: ignore[arg-type]
    Session.run(lambda session: session.nothing)  # type: ignore[attr-defined]
    number: int = Session.run(count, 1)  # type: ignore[assignment]
    del number


async def what_is_run_in_async_code(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine)

    def plain(session: sa_asyncio.AsyncSession) -> str:
        return ""

    async def count(session: sa_asyncio.AsyncSession, user_id: int) -> str:
        return str(user_id)

    async def of_sync(session: orm.Session) -> None: ...

    await Session.run(plain)  # type: ignore[arg-type]
    await Session.run(count, "1")  # type: ignore[arg-type]
    await Session.run(of_sync)  # type: ignore[arg-type]
    await Session.scope().run(count)  # type: ignore[call-arg]
    number: int = await Session.run(count, 1)  # type: ignore[arg-type]
    del number


async def what_the_caller_of_a_decorated_async_function_passes(engine: AsyncEngine) -> None:
    Session = async_sessionmaker(engine)

    @Session.scope
    async def first(session: sa_asyncio.AsyncSession, user_id: int) -> str:
        return str(user_id)

    await first("1")  # type: ignore[arg-type]
    number: int = await first(1)  # type: ignore[assignment]
    del number


def a_function_of_the_other_colour(async_engine: AsyncEngine) -> None:
    Session = async_sessionmaker(async_engine)

    @Session.scope  # type: ignore[arg-type]
    def plain(session: sessionkit.AsyncSession) -> None: ...


def hooks() -> None:
    on_commit("not a function")  # type: ignore[type-var]
    on_commit(lambda session: None)  # type: ignore[type-var]


class Base(orm.DeclarativeBase):
    """A user's models."""


class Plain(Base):
    """One without a version."""

    __tablename__ = "plain"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Order(Versioned, Base):
    """One with a version."""

    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


def versions(plain: Plain, order: Order) -> None:
    version_of(plain)  # type: ignore[arg-type]
    expect_version(plain, 1)  # type: ignore[arg-type]
    expect_version(order, None)  # type: ignore[arg-type]
    expect_etag(order, None)  # type: ignore[arg-type]
    update_versioned(select(Order))  # type: ignore[arg-type]
    wrong: str = order.version_id  # type: ignore[assignment]
    del wrong


async def conflicts(error: VersionConflict, session: orm.Session, async_session: sa_asyncio.AsyncSession) -> None:
    error.load(async_session)  # type: ignore[arg-type]
    await error.async_load(session)  # type: ignore[arg-type]
    error.resolve(session, "mine")  # type: ignore[arg-type]


async def bulk_writes(session: orm.Session, async_session: sa_asyncio.AsyncSession) -> None:
    bulk.insert(async_session, Order, [])  # type: ignore[arg-type]
    await bulk.async_insert(session, Order, [])  # type: ignore[arg-type]
    bulk.insert(session, Order, [], method="fast")  # type: ignore[arg-type]
    bulk.insert(session, Order, [], chunks=3)  # type: ignore[call-arg]
    bulk.update(session, Order, [], missing="skip")  # type: ignore[arg-type]


def presets(engine: Engine) -> None:
    Preset("CHAOS")  # type: ignore[call-overload]
    Preset("AUTOCOMMIT")  # type: ignore[call-overload]
    Preset(read_only="yes")  # type: ignore[call-overload]
    Preset(lock_timeout="5s")  # type: ignore[call-overload]
    Preset(timeout=5)  # type: ignore[call-overload]
    READ_ONLY.read_only = False  # type: ignore[misc]
    effective_isolation(engine, "CHAOS")  # type: ignore[arg-type]
    sqlite.configure(engine, synchronous="SOMETIMES")  # type: ignore[arg-type]
    sqlite.configure(engine, begin="exclusive")  # type: ignore[arg-type]


def deferrable_without_its_partners() -> None:
    Preset(deferrable=True)  # type: ignore[call-overload]
    Preset("SERIALIZABLE", deferrable=True)  # type: ignore[call-overload]
    Preset(read_only=True, deferrable=True)  # type: ignore[call-overload]
    Preset("REPEATABLE READ", read_only=True, deferrable=True)  # type: ignore[call-overload]
    Preset(Isolation.SERIALIZABLE, read_only=False, deferrable=True)  # type: ignore[call-overload]


def options_of_presets(engine: Engine) -> None:
    Session = sessionmaker(engine)
    Session.scope(isolation="CHAOS")  # type: ignore[call-overload]
    Session.scope(preset="SERIALIZABLE")  # type: ignore[call-overload]
    Session.scope(read_only=1)  # type: ignore[call-overload]
    Session.scope(lock_timeout="5s")  # type: ignore[call-overload]
    session_scope(Session, statement_timeout="5s")  # type: ignore[call-overload]


def web_frameworks(
    engine: Engine, async_engine: AsyncEngine, flask: Flask, fastapi: FastAPI, app: WSGIApplication
) -> None:
    maker, async_maker = sessionmaker(engine), async_sessionmaker(async_engine)
    SessionKit(flask, engine)  # type: ignore[arg-type]
    SessionKit(flask, async_maker)  # type: ignore[arg-type]
    SessionKit(flask, maker, rollback_on=500)  # type: ignore[arg-type]
    ForWSGI(app, async_maker)  # type: ignore[arg-type]
    fastapi.add_middleware(SessionKitMiddleware, factory=engine)  # type: ignore[arg-type]
    fastapi.add_middleware(SessionKitMiddleware)  # type: ignore[call-arg]
    install(fastapi, rollback=500)  # type: ignore[call-arg]
    SessionDepends(engine)  # type: ignore[arg-type]
    SessionDepends(maker, readonly=True)  # type: ignore[call-arg]


def migrations(engine: Engine) -> None:
    from sessionkit.integrations import alembic

    alembic.run_migrations(Order)  # type: ignore[arg-type]
    alembic.run_migrations(Order.metadata, engine=7)  # type: ignore[arg-type]
    alembic.run_migrations(Order.metadata, lock_timeout="2s")  # type: ignore[arg-type]
    alembic.async_assert_up_to_date(engine)  # type: ignore[arg-type,unused-coroutine]


def observability(engine: Engine) -> None:
    opentelemetry.instrument(engine)  # type: ignore[arg-type]
    log_scopes("INFO")  # type: ignore[arg-type]
    log_scopes(slow="1s")  # type: ignore[arg-type]
    LongScopes()  # type: ignore[call-arg]
    LongScopes(5, on_found=7)  # type: ignore[arg-type]
    comment_statements(engine, trace=True)  # type: ignore[call-arg]
    name_transactions(engine, "shop/")  # type: ignore[misc]


def tests_of_an_application(
    capture_on_commit: CaptureOnCommit, assert_statements: AssertStatements, fail_commit_with: FailCommitWith
) -> None:
    capture_on_commit(True)  # type: ignore[call-arg]
    assert_statements("2")  # type: ignore[arg-type]
    fail_commit_with(40001)  # type: ignore[arg-type]
    fail_commit_with("40001", 2)  # type: ignore[call-arg]


def tests_of_units_at_the_same_time(races: RunRaces, engine: Engine) -> None:
    races(print, factories=[engine])  # type: ignore[call-arg]
    races(3, print)  # type: ignore[arg-type]
    races(print, print, max_schedules="1")  # type: ignore[arg-type]
    races(print, print).assert_serial(True)  # type: ignore[call-arg]
