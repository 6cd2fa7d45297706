"""Factories are SQLAlchemy's, each a subclass of the one whose name it has, and equal where nothing is added."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, orm, select, text
from sqlalchemy.ext import asyncio as sa_asyncio

import sessionkit
from sessionkit import errors, session_scope
from tests.contract.breaking import names
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

ONE_DATABASE = pytest.mark.doors("sqlite-sync", "sqlite-async")


def test_each_class_is_a_subclass_of_sqlalchemys() -> None:
    assert issubclass(sessionkit.Session, orm.Session)
    assert issubclass(sessionkit.sessionmaker, orm.sessionmaker)
    assert issubclass(sessionkit.scoped_session, orm.scoped_session)
    assert issubclass(sessionkit.AsyncSession, sa_asyncio.AsyncSession)
    assert issubclass(sessionkit.async_sessionmaker, sa_asyncio.async_sessionmaker)
    assert issubclass(sessionkit.async_scoped_session, sa_asyncio.async_scoped_session)
    assert sessionkit.AsyncSession.sync_session_class is sessionkit.Session


@ONE_DATABASE
async def test_what_a_factory_makes_is_of_our_class_and_of_a_class_of_its_own(doors: Door) -> None:
    base = sessionkit.Session if doors.colour == "sync" else sessionkit.AsyncSession
    first, second = doors.factory(), doors.factory()
    assert type(first()) is first.class_
    assert issubclass(first.class_, base)
    if doors.colour == "sync":
        assert first.class_ is not second.class_


async def test_calling_and_beginning_a_factory_are_sqlalchemys(doors: Door) -> None:
    session = doors.Session(info={"a": 1}, autoflush=False)
    assert session.info == {"a": 1}
    assert session.autoflush is False
    async with doors.enter(doors.Session.begin()) as session:
        session.add(User(name="ann"))
    with pytest.raises(LookupError):
        async with doors.enter(doors.Session.begin()) as session:
            session.add(User(name="bob"))
            await session.flush()
            raise LookupError
    assert await names(doors) == ["ann"]


@ONE_DATABASE
async def test_an_info_is_merged_as_sqlalchemy_does(doors: Door) -> None:
    ours, theirs = doors.factory(info={"a": 1, "b": 1}), doors.plain_factory(info={"a": 1, "b": 1})
    assert ours(info={"b": 2}).info == theirs(info={"b": 2}).info == {"a": 1, "b": 2}


async def test_every_argument_of_a_session_reaches_the_sessions_of_scopes(doors: Door) -> None:
    factory = doors.factory(info={"a": 1}, autoflush=False, enable_baked_queries=False)
    async with doors.scope(factory) as session:
        assert session.info == {"a": 1}
        assert doors.sync(session).autoflush is False
        assert doors.sync(session).enable_baked_queries is False


@ONE_DATABASE
async def test_an_argument_that_is_none_of_sqlalchemys_is_refused_as_there(doors: Door) -> None:
    ours, theirs = doors.factory(xyzzy=1), doors.plain_factory(xyzzy=1)
    with pytest.raises(TypeError) as caught:
        ours()
    with pytest.raises(TypeError) as expected:
        theirs()
    assert type(caught.value) is type(expected.value)


async def test_configure_changes_the_sessions_and_scopes_made_from_then_on(doors: Door) -> None:
    factory = doors.factory(name="before")
    assert "before" in repr(factory.scope())
    async with doors.scope(factory):
        pass
    factory.configure(autoflush=False, name="after")
    assert "after" in repr(factory.scope())
    async with doors.scope(factory) as session:
        assert doors.sync(session).autoflush is False
        with pytest.raises(errors.ScopeError, match="after"):
            await session.commit()


async def test_a_default_propagation_of_the_factory_holds_and_can_be_overridden(doors: Door) -> None:
    factory = doors.factory(propagation="savepoint")
    with doors.statements() as sql:
        async with doors.scope(factory), doors.enter(factory.scope()) as inner:
            inner.add(User(name="ann"))
        async with doors.scope(factory), doors.scope(factory, propagation="join") as inner:
            inner.add(User(name="bob"))
    assert len([line for line in sql if line.startswith("SAVEPOINT")]) == 1
    with pytest.raises(errors.ScopeError, match="require"):
        async with doors.scope(doors.factory(propagation="require")):
            pytest.fail("entered")


@ONE_DATABASE
async def test_a_bad_default_is_refused_where_it_is_given(doors: Door) -> None:
    with pytest.raises(errors.OptionError, match="propagation"):
        doors.factory(propagation="joyn")
    factory = doors.factory()
    with pytest.raises(errors.OptionError, match="propagation"):
        factory.configure(propagation="joyn", autoflush=False)
    async with doors.scope(factory) as session:
        assert doors.sync(session).autoflush is True, "half of a refused configure() was taken over"


@ONE_DATABASE
async def test_autocommit_is_refused_and_its_false_accepted(doors: Door) -> None:
    with pytest.raises(errors.OptionError, match="autocommit=True"):
        doors.factory(autocommit=True)
    async with doors.scope(doors.factory(autocommit=False)):
        pass


async def test_a_class_of_the_users_own_can_be_given(doors: Door) -> None:
    base: Any = sessionkit.Session if doors.colour == "sync" else sessionkit.AsyncSession
    plain: Any = orm.Session if doors.colour == "sync" else sa_asyncio.AsyncSession
    for parent in (base, plain):
        own = type("Own", (parent,), {"mine": "mine"})
        async with doors.scope(doors.factory(class_=own)) as session:
            assert doors.raw(session).mine == "mine"
            assert isinstance(doors.raw(session), own)
            with pytest.raises(errors.ScopeError):
                await session.commit()


async def test_binds_route_each_model_to_its_engine(doors: Door) -> None:
    other = doors.other_engine()
    factory = doors.factory(binds={User: doors.engine, Account: other})
    async with doors.scope(factory) as session:
        session.add_all([User(name="ann"), Account(owner="bob")])
    assert await names(doors) == ["ann"]
    assert await doors.rows("SELECT * FROM accounts") == []
    async with doors.session(doors.factory(other)) as session:
        assert (await session.scalars(select(Account.owner))).all() == ["bob"]
        assert (await session.scalars(select(User.name))).all() == []


@pytest.mark.doors(backend="postgresql")  # SQLite's driver would need a real BEGIN from whoever made the connection
async def test_a_factory_bound_to_a_connection_works_inside_the_connections_transaction(doors: Door) -> None:
    """As test fixtures do it: what the scopes commit is undone with the outer transaction."""
    async with doors.connect() as connection:
        transaction = await connection.begin()
        factory = doors.factory(doors.raw(connection), join_transaction_mode="create_savepoint")
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with doors.scope(factory) as session:
                session.add(User(name="bob"))
                await session.flush()
                raise LookupError
        async with doors.scope(factory) as session:
            assert (await session.scalars(select(User.name))).all() == ["ann"]
        assert await names(doors) == []
        await transaction.rollback()
    assert await names(doors) == []


async def test_a_swallowed_error_in_a_factory_bound_to_a_connection_is_told(doors: Door) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('taken')")
    async with doors.connect() as connection:
        transaction = await connection.begin()
        factory = doors.factory(doors.raw(connection), join_transaction_mode="create_savepoint")
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(factory) as session:
                with pytest.raises(Exception, match=r"(?i)unique"):
                    await session.execute(text("INSERT INTO users (name) VALUES ('taken')"))
        # And it was the scope's own: the next one is as good as new.
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
        await transaction.commit()
    assert "ann" in await names(doors)


@pytest.mark.doors(colour="sync")
async def test_events_on_a_factory_reach_the_sessions_of_its_scopes_and_no_others(doors: Door) -> None:
    seen: list[str] = []
    factory, other = doors.factory(), doors.factory()
    event.listen(factory, "before_commit", lambda _: seen.append("before_commit"))
    event.listen(factory, "after_commit", lambda _: seen.append("after_commit"))
    event.listen(factory, "do_orm_execute", lambda _: seen.append("do_orm_execute"))
    async with doors.scope(factory) as session:
        await session.execute(text("SELECT 1"))
    async with doors.scope(other) as session:
        await session.execute(text("SELECT 1"))
    assert seen == ["do_orm_execute", "before_commit", "after_commit"]


async def test_events_on_every_session_reach_those_of_scopes(doors: Door) -> None:
    seen: list[str] = []

    def note(*_: Any) -> None:
        seen.append("before_commit")

    event.listen(orm.Session, "before_commit", note)
    try:
        for factory in (doors.Session, doors.plain_factory()):
            async with doors.scope(factory) as session:
                await session.execute(text("SELECT 1"))
    finally:
        event.remove(orm.Session, "before_commit", note)
    assert seen == ["before_commit"] * 2


def noting(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


async def test_a_scope_emits_the_sessions_events_as_a_begin_block_does(doors: Door) -> None:
    def watched(seen: list[str]) -> Callable[[orm.Session], None]:
        def watch(session: orm.Session) -> None:
            for name in ("before_commit", "after_flush", "after_commit", "after_rollback", "after_transaction_end"):
                event.listen(session, name, noting(seen, name))

        return watch

    ours: list[str] = []
    theirs: list[str] = []
    async with doors.scope() as session:
        watched(ours)(doors.sync(session))
        session.add(User(name="ann"))
        await session.flush()
    async with doors.session(doors.plain_factory()) as session, session.begin():
        watched(theirs)(doors.sync(session))
        session.add(User(name="bob"))
        await session.flush()
    assert ours == theirs


@ONE_DATABASE
async def test_copying_and_pickling_go_as_in_sqlalchemy(doors: Door) -> None:
    def outcome(do: Callable[[], Any]) -> Any:
        try:
            return type(do()).__mro__[-2:]
        except Exception as error:  # noqa: BLE001 - which one is what the test asks
            return type(error)

    ours, theirs = doors.factory(None), doors.plain_factory(None)
    assert outcome(lambda: copy.copy(ours)) == outcome(lambda: copy.copy(theirs))
    assert outcome(lambda: pickle.loads(pickle.dumps(ours))) == outcome(lambda: pickle.loads(pickle.dumps(theirs)))


@ONE_DATABASE
async def test_a_copy_of_a_factory_is_a_factory_of_its_own(doors: Door) -> None:
    twin = copy.copy(doors.Session)
    async with doors.scope() as session:
        async with doors.scope(twin, propagation="join") as other:
            assert not doors.same(session, other)


async def test_one_scope_serves_all_that_ask_for_no_options(doors: Door) -> None:
    for factory in (doors.Session, doors.plain_factory()):
        async with doors.enter(session_scope(factory)) as session:
            session.add(User(name=f"of {type(factory).__module__}"))
    assert len(await names(doors)) == 2


@ONE_DATABASE
async def test_a_scope_names_its_factory_and_itself(doors: Door) -> None:
    kind = "Scope" if doors.colour == "sync" else "AsyncScope"
    assert kind in repr(doors.Session.scope())
    assert "'transfer'" in repr(doors.Session.scope(name="transfer"))
    assert "sessionmaker" in repr(doors.Session.scope())


@pytest.mark.doors(colour="sync")
async def test_objects_know_their_session_in_a_scope(doors: Door) -> None:
    async with doors.scope(doors.plain_factory()) as session:
        user = User(name="ann")
        session.add(user)
        assert orm.object_session(user) is doors.raw(session)
        assert doors.raw(session) in orm.session._sessions.values()


@pytest.mark.doors(colour="async")
async def test_objects_know_their_async_session_in_a_scope(doors: Door) -> None:
    async with doors.scope(doors.plain_factory()) as session:
        user = User(name="ann")
        session.add(user)
        assert sa_asyncio.async_object_session(user) is session
        assert sa_asyncio.async_session(session.sync_session) is session


async def test_a_scoped_session_takes_what_sqlalchemys_takes(doors: Door) -> None:
    if doors.colour == "sync":
        db: Any = sessionkit.scoped_session(doors.Session)
        session = db(autoflush=False)
        assert session.autoflush is False
        with pytest.raises(Exception, match="already present"):
            db(autoflush=True)
        db.configure(info={"a": 1}) if not db.registry.has() else db.remove()
        db.configure(info={"a": 1})
        assert db().info == {"a": 1}
        assert db.query_property() is not None
        db.remove()
    else:
        db = sessionkit.async_scoped_session(doors.Session)
        session = db(autoflush=False)
        assert session.autoflush is False
        await db.remove()
    assert not db.registry.has()
