"""A factory is bound to an engine of its own colour: anything else is refused where it is given."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import create_engine, literal, orm, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import create_async_engine

import sessionkit
from sessionkit import async_sessionmaker, errors, session_scope, sessionmaker
from sessionkit._binds import refuse_unbound
from tests.support.models import Account, User

ENGINE = create_engine("sqlite://")
ASYNC_ENGINE = create_async_engine("sqlite+aiosqlite://")
URL = "postgresql://ann:geheim@db.example/shop"

WRONG: list[tuple[Any, Any, type[Exception], str]] = [
    (sessionmaker, ASYNC_ENGINE, errors.SyncAsyncMismatch, "async_sessionmaker"),
    (async_sessionmaker, ENGINE, errors.SyncAsyncMismatch, "create_async_engine"),
    *(
        (maker, wrong, errors.OptionError, remedy)
        for maker, make in ((sessionmaker, "create_engine"), (async_sessionmaker, "create_async_engine"))
        for wrong, remedy in (
            (URL, rf"a string.*pass the engine that {make}\(url\) makes"),
            (make_url(URL), rf"a URL.*pass the engine that {make}\(url\) makes"),
            (orm.Session(ENGINE), "pass its engine"),
            (sa_asyncio.AsyncSession(ASYNC_ENGINE), "pass its engine"),
            (orm.sessionmaker(ENGINE), rf"pass an engine, such as {make}\(url\) makes"),
            (User, "User.*pass an engine"),
            (5, "5.*pass an engine"),
        )
    ),
]
EACH_WRONG = pytest.mark.parametrize(
    ("maker", "wrong", "kind", "remedy"), WRONG, ids=[f"{row[0].__name__}-{type(row[1]).__name__}" for row in WRONG]
)


@EACH_WRONG
def test_the_wrong_bind_is_refused_when_the_factory_is_made(
    maker: Any, wrong: Any, kind: type[Exception], remedy: str
) -> None:
    where = rf"{maker.__name__}\(\)"
    for make in (lambda: maker(wrong), lambda: maker(bind=wrong)):
        with pytest.raises(kind, match=f"was given to {where} as bind") as caught:
            make()
        assert re.search(remedy, str(caught.value))
        assert "geheim" not in str(caught.value)
    with pytest.raises(kind, match="in binds, for Account"):
        maker(binds={User: None, Account: wrong})


@EACH_WRONG
def test_the_wrong_bind_is_refused_by_configure_which_changes_nothing(
    maker: Any, wrong: Any, kind: type[Exception], remedy: str
) -> None:
    factory = maker(name="before")
    for arguments in ({"bind": wrong}, {"binds": {User: wrong}}):
        with pytest.raises(kind, match=rf"{maker.__name__}\.configure\(\)"):
            factory.configure(**arguments, name="after", autoflush=False)
    assert "before" in repr(factory.scope())
    assert "autoflush" not in {name for name, value in factory.kw.items() if value is False}
    assert factory.kw["bind"] is None
    assert "binds" not in factory.kw


@pytest.mark.parametrize(("maker", "engine"), [(sessionmaker, ENGINE), (async_sessionmaker, ASYNC_ENGINE)])
def test_binds_that_map_nothing_are_refused(maker: Any, engine: Any) -> None:
    with pytest.raises(errors.OptionError, match="it maps classes and tables to engines"):
        maker(binds=engine)
    with pytest.raises(errors.OptionError, match="it maps classes and tables to engines"):
        maker(binds=[engine])


def test_what_is_right_is_accepted() -> None:
    with ENGINE.connect() as connection:
        for right in (None, ENGINE, ENGINE.execution_options(a=1), connection, Mock(name="an engine of a test")):
            assert sessionmaker(right).kw["bind"] is sessionmaker(right)().bind is right
            sessionmaker().configure(bind=right, binds={User: right} if right is not None else None)
    for right in (None, ASYNC_ENGINE, ASYNC_ENGINE.execution_options(a=1)):
        assert async_sessionmaker(right).kw["bind"] is right
        async_sessionmaker(right)()
        async_sessionmaker().configure(bind=right)
    assert sessionmaker(binds={User: ENGINE})().get_bind(User) is ENGINE
    sessionmaker(binds={})


# A session without an engine


class Routed(sessionkit.Session):
    """A class of an application's that chooses its engine itself."""

    def get_bind(self, *args: Any, **kw: Any) -> Any:
        return ENGINE


class Further(Routed):
    """A class that inherits the choice."""


class RoutedPlain(orm.Session):
    """One of SQLAlchemy's that chooses its engine itself."""

    def get_bind(self, *args: Any, **kw: Any) -> Any:
        return ENGINE


@pytest.mark.parametrize("kind", [orm.Session, sessionkit.Session, type("Own", (sessionkit.Session,), {})])
def test_a_session_without_an_engine_is_refused(kind: type[orm.Session]) -> None:
    with pytest.raises(errors.ScopeError, match=r"has no engine.*sessionmaker\(engine\).*configure\(bind=engine\)"):
        refuse_unbound(sessionmaker(class_=kind)())
    with pytest.raises(errors.ScopeError, match="has no engine"):
        refuse_unbound(kind(binds={}))
    refuse_unbound(kind(ENGINE))
    refuse_unbound(kind(binds={User: ENGINE}))
    refuse_unbound(sessionmaker(ENGINE, class_=kind)())


@pytest.mark.parametrize("kind", [Routed, Further, RoutedPlain])
def test_a_session_that_finds_its_engine_itself_is_not_refused(kind: type[orm.Session]) -> None:
    refuse_unbound(kind())
    refuse_unbound(sessionmaker(class_=kind)())


def test_an_async_session_is_judged_by_the_session_inside() -> None:
    class Own(sa_asyncio.AsyncSession):
        sync_session_class = Routed

    refuse_unbound(async_sessionmaker(ASYNC_ENGINE)().sync_session)
    refuse_unbound(async_sessionmaker(binds={User: ASYNC_ENGINE})().sync_session)
    refuse_unbound(async_sessionmaker(class_=Own)().sync_session)
    with pytest.raises(errors.ScopeError, match="has no engine"):
        refuse_unbound(async_sessionmaker()().sync_session)


@pytest.mark.parametrize("make", [sessionmaker, orm.sessionmaker])
def test_a_statement_in_a_scope_without_an_engine_says_what_to_pass(make: Any) -> None:
    with pytest.raises(errors.ScopeError, match=r"has no engine.*sessionmaker\(engine\)") as caught:
        with session_scope(make()) as session:
            session.execute(select(literal(1)))
    assert isinstance(caught.value.__context__, UnboundExecutionError)
    with pytest.raises(errors.ScopeError, match="has no engine"):
        with session_scope(make()) as session:
            session.add(User())
    with session_scope(make()) as session:  # the statement says where
        assert session.scalar(select(literal(1)), bind_arguments={"bind": ENGINE}) == 1
    with pytest.raises(UnboundExecutionError):  # it has engines, but none for this: SQLAlchemy names the class
        with session_scope(make(binds={User: ENGINE})) as session:
            session.execute(select(literal(1)))


@pytest.mark.parametrize("make", [async_sessionmaker, sa_asyncio.async_sessionmaker])
def test_a_statement_in_an_async_scope_without_an_engine_says_what_to_pass(make: Any) -> None:
    async def unit() -> None:
        async with session_scope(make()) as session:
            await session.execute(select(literal(1)))

    with pytest.raises(errors.ScopeError, match="has no engine"):
        asyncio.run(unit())
