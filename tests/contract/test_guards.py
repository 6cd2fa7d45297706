"""Bad input gets a clear error before any work, and a scope's transaction is nobody's to end by hand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, orm, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext import asyncio as sa_asyncio

from sessionkit import errors, session_scope
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# By hand


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("method", ["commit", "rollback", "close", "reset"])
async def test_ending_the_transaction_by_hand_is_refused_with_the_way_out(
    doors: Door, method: str, plain: bool
) -> None:
    factory = doors.plain_factory() if plain else doors.Session
    async with doors.scope(factory, name="the unit") as session:
        session.add(User(name="ann"))
        await session.flush()
        with pytest.raises(errors.ScopeError) as caught:
            await getattr(session, method)()
        assert f"session.{method}()" in str(caught.value)
        assert "the unit" in str(caught.value)
        assert "propagation='new'" in str(caught.value)
        if method == "rollback":
            assert "set_rollback_only" in str(caught.value)
        if method == "commit":  # the two usual reasons for the call
            assert "to get generated keys, call session.flush()" in str(caught.value)
            assert "to make the work durable, end the block" in str(caught.value)
        # And nothing has happened to it.
        session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_session_whose_scope_has_ended_takes_nothing_in(doors: Door, plain: bool) -> None:
    """Nobody would ever flush it."""
    async with doors.scope(doors.plain_factory() if plain else doors.Session) as session:
        session.add(there := User(name="ann"))
    over = doors.sync(session)
    for take in (
        lambda: over.add(User(name="bob")),
        lambda: session.add(User(name="bob")),
        lambda: over.add_all([User(name="bob")]),
        lambda: over.add(there),
        lambda: over.delete(there),
        lambda: over.merge(there, load=False),
        over.commit,
    ):
        with pytest.raises(
            errors.ScopeError, match="belongs to a scope, which has ended; do this inside the scope, or open another"
        ):
            take()
    assert not over.new
    assert list(over) == []
    there.email = "what it returned is the caller's to change"
    await session.rollback()
    await session.close()


async def test_closing_all_sessions_inside_a_scope_is_refused_and_the_scope_goes_on(doors: Door) -> None:
    close_all = doors.twin(lambda _: orm.close_all_sessions(), lambda _: sa_asyncio.close_all_sessions())
    async with doors.scope(name="the unit") as session:
        session.add(User(name="ann"))
        await session.flush()
        with pytest.raises(errors.ScopeError, match="inside the scope 'the unit', which decides"):
            await close_all(session)
    assert await names(doors) == ["ann"]
    await close_all(session)


async def test_a_joined_scope_cannot_end_the_transaction_either(doors: Door) -> None:
    async with doors.scope() as session, doors.scope() as inner:
        inner.add(User(name="ann"))
        for end in (inner.commit, inner.rollback, session.commit, session.close):
            with pytest.raises(errors.ScopeError):
                await end()
    assert await names(doors) == ["ann"]


async def test_the_session_as_a_context_manager_cannot_close_it_inside_its_scope(doors: Door) -> None:
    async with doors.scope() as session:
        with pytest.raises(errors.ScopeError):
            async with session:
                session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_beginning_by_hand_is_refused_as_sqlalchemy_does(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(InvalidRequestError, match="already begun"):
            async with session.begin():
                pytest.fail("begun")
    assert await names(doors) == ["ann"]


async def test_savepoints_by_hand_are_allowed(doors: Door) -> None:
    async with doors.scope() as session:
        savepoint = await session.begin_nested()
        session.add(User(name="ann"))
        await savepoint.commit()
        savepoint = await session.begin_nested()
        session.add(User(name="bob"))
        await session.flush()
        await savepoint.rollback()
    assert await names(doors) == ["ann"]


async def test_a_commit_in_a_listener_of_the_scopes_own_commit_is_refused(doors: Door) -> None:
    refused: list[BaseException] = []

    def commit_again(session: orm.Session) -> None:
        try:
            session.commit()
        except Exception as error:  # noqa: BLE001 - which one is what the test asks
            refused.append(error)

    async with doors.scope() as session:
        event.listen(doors.sync(session), "before_commit", commit_again)
        session.add(User(name="ann"))
    assert len(refused) == 1
    assert isinstance(refused[0], errors.ScopeError | InvalidRequestError)
    assert await names(doors) == ["ann"]


async def test_an_exception_that_leaves_a_block_of_the_session_itself_is_the_one_to_see(doors: Door) -> None:
    """Such a block would close the session, which is refused: the exception must not be replaced by that."""
    lost = KeyError("lost")
    with pytest.raises(KeyError) as caught:
        async with doors.scope() as session:
            async with session:
                session.add(User(name="ann"))
                raise lost
    assert caught.value is lost
    assert errors.outcome_of(lost) == "rolled back"
    with pytest.raises(errors.UnexpectedRollback, match="KeyError"):
        async with doors.scope() as session:
            with suppress(KeyError):
                async with session:  # whose close would have rolled it back
                    session.add(User(name="bob"))
                    raise lost
    async with doors.scope() as session:
        with suppress(KeyError):
            async with session.begin_nested(), session:
                session.add(User(name="eve"))
                raise lost
        session.add(User(name="joe"))
    with pytest.raises(errors.ScopeError, match=r"session\.close\(\) was called inside"):
        async with doors.scope() as session, session:
            session.add(User(name="mia"))
    assert await names(doors) == ["joe"]


async def test_outside_of_scopes_a_session_of_ours_is_sqlalchemys(doors: Door) -> None:
    async with doors.session() as session:
        session.add(User(name="ann"))
        await session.commit()
        session.add(User(name="bob"))
        await session.rollback()
        session.add(User(name="eve"))
        await session.flush()
        await session.reset()
        await session.close()
        async with session.begin():
            session.add(User(name="joe"))
    async with doors.enter(doors.Session.begin()) as session:
        session.add(User(name="mia"))
    assert await names(doors) == ["ann", "joe", "mia"]


# Options


@pytest.mark.doors("sqlite-sync", "sqlite-async")
@pytest.mark.parametrize(
    ("asked", "nearest"), [("propogation", "propagation"), ("nmae", "name"), ("propagtion", "propagation")]
)
async def test_an_unknown_option_names_the_nearest_one(doors: Door, asked: str, nearest: str) -> None:
    makers: list[Callable[[], Any]] = [
        lambda: session_scope(doors.Session, **{asked: "join"}),  # type: ignore[call-overload]
        lambda: doors.Session.scope(**{asked: "join"}),
        lambda: doors.Session.scope(lambda session: session, **{asked: "join"}),
        lambda: session_scope(doors.plain_factory(), **{asked: "join"}),  # type: ignore[call-overload]
    ]
    for make in makers:
        with pytest.raises(errors.UnknownOptionError, match=f"{asked!r}.*{nearest!r}") as caught:
            make()
        assert isinstance(caught.value, errors.OptionError)


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_an_unknown_option_that_resembles_none_is_told_all_there_are(doors: Door) -> None:
    with pytest.raises(errors.UnknownOptionError, match="propagation"):
        doors.Session.scope(xyzzy=1)


@pytest.mark.doors("sqlite-sync", "sqlite-async")
@pytest.mark.parametrize("wrong", ["joyn", "JOIN", "", None, 5, "nested", True, ["join"]])
async def test_an_unknown_propagation_is_told_which_there_are(doors: Door, wrong: Any) -> None:
    makers: list[Callable[[], Any]] = [
        lambda: session_scope(doors.Session, propagation=wrong),
        lambda: doors.Session.scope(propagation=wrong),
        lambda: doors.factory(propagation=wrong),
        lambda: doors.factory().configure(propagation=wrong),
    ]
    for make in makers:
        with pytest.raises(errors.OptionError, match="'join', 'savepoint', 'new', 'require', 'forbid'"):
            make()


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_name_is_a_string(doors: Door) -> None:
    with pytest.raises(errors.OptionError, match="name"):
        doors.Session.scope(name=5)


# Factories


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_what_is_no_factory_is_refused_and_told_what_to_pass(doors: Door) -> None:
    async with doors.session() as session, doors.session(doors.plain_factory()) as plain:
        for given in (doors.raw(session), doors.raw(plain)):
            with pytest.raises(errors.ScopeError, match="pass the sessionmaker that made it"):
                session_scope(given)
    with pytest.raises(errors.ScopeError, match=r"sessionmaker\(engine\)"):
        session_scope(doors.engine)
    for given in (None, "postgresql://", orm.Session, lambda: None, object()):
        with pytest.raises(errors.ScopeError, match="takes a sessionmaker"):
            session_scope(given)  # type: ignore[call-overload]


async def test_a_scope_of_the_other_colour_says_which_keyword_to_write(doors: Door) -> None:
    scope: Any = doors.Session.scope()
    if doors.colour == "sync":
        with pytest.raises(errors.SyncAsyncMismatch, match="`with`"):
            async with scope:
                pytest.fail("entered")
    else:
        with pytest.raises(errors.SyncAsyncMismatch, match="`async with`"):
            with scope:
                pytest.fail("entered")
    assert doors.checked_out() == 0


# Sessions that others made


async def test_a_session_class_of_the_users_own_works_in_a_scope_as_it_does_outside(doors: Door) -> None:
    calls: list[str] = []

    class Own(orm.Session):
        tenant = "none"

        def __init__(self, *args: Any, tenant: str = "none", **kw: Any) -> None:
            super().__init__(*args, **kw)
            self.tenant = tenant

        def execute(self, *args: Any, **kw: Any) -> Any:
            calls.append("execute")
            return super().execute(*args, **kw)

        def get_bind(self, *args: Any, **kw: Any) -> Any:
            calls.append("get_bind")
            return super().get_bind(*args, **kw)

        def commit(self) -> None:
            calls.append("commit")
            super().commit()

        def flush(self, *args: Any, **kw: Any) -> None:
            calls.append("flush")
            super().flush(*args, **kw)

    event.listen(Own, "before_commit", lambda _: calls.append("listener"))
    how = {"class_": Own} if doors.colour == "sync" else {"sync_session_class": Own}
    for factory in (doors.plain_factory(tenant="acme", **how), doors.factory(tenant="acme", **how)):
        calls.clear()
        async with doors.scope(factory) as session:
            sync: Any = doors.sync(session)
            assert sync.tenant == "acme"
            assert isinstance(sync, Own)
            await session.execute(text("SELECT 1"))
            session.add(User(name="ann"))
            with pytest.raises(errors.ScopeError):
                await session.rollback()
        assert {"execute", "get_bind", "flush", "commit", "listener"} == set(calls)
        assert calls.count("commit") == 1
        assert await names(doors) == ["ann"]
        await doors.write("DELETE FROM users")


async def test_a_get_bind_of_the_users_own_may_choose_among_engines(doors: Door) -> None:
    here, there = doors.engine, doors.other_engine()
    engines = {"here": doors.sync_engine_of(here), "there": doors.sync_engine_of(there)}

    class Routing(orm.Session):
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return engines[self.info["where"]]

    how: dict[str, Any] = {"class_": Routing} if doors.colour == "sync" else {"sync_session_class": Routing}
    factory = doors.plain_factory(**how)
    async with doors.scope(factory) as session:
        session.info["where"] = "there"
        session.add(User(name="there"))
        await session.flush()
        session.info["where"] = "here"
        session.add(User(name="here"))
    assert await names(doors) == ["here"]
    async with doors.session(doors.factory(there)) as session:
        assert (await session.scalars(text("SELECT name FROM users"))).all() == ["there"]
    with pytest.raises(LookupError):
        async with doors.scope(factory) as session:
            session.info["where"] = "there"
            session.add(User(name="lost"))
            await session.flush()
            raise LookupError
    async with doors.session(doors.factory(there)) as session:
        assert (await session.scalars(text("SELECT name FROM users"))).all() == ["there"]


async def test_the_guards_of_a_plain_session_end_with_its_scope(doors: Door) -> None:
    made: list[Any] = []
    factory = doors.plain_factory()
    async with doors.scope(factory) as session:
        made.append(session)
    session = made[0]
    await session.close()  # (is allowed again)
    assert isinstance(doors.sync(session), orm.Session)


async def test_a_session_without_autobegin_works_in_a_scope(doors: Door) -> None:
    async with doors.scope(doors.factory(autobegin=False)) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_session_whose_close_is_final_works_in_a_scope(doors: Door) -> None:
    async with doors.scope(doors.factory(close_resets_only=False)) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]
