"""Law 3: inner never commits outer; and what `propagation` does, with a scope around and without."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from sessionkit import current_session, errors
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# Joining


async def test_a_joined_scope_gets_the_same_session_and_sends_nothing_of_its_own(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope() as session:
            async with doors.scope() as inner:
                assert doors.same(inner, session)
                assert doors.raw(inner) is doors.raw(session)
                inner.add(User(name="ann"))
            assert sql == []
            assert doors.raw(session).in_transaction()
        assert [line.split(" ")[0] for line in sql] == ["BEGIN", "INSERT", "COMMIT"]
    assert await names(doors) == ["ann"]


async def test_a_joined_scope_does_not_commit_what_the_outer_one_then_rolls_back(doors: Door) -> None:
    with pytest.raises(LookupError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            async with doors.scope() as inner:
                inner.add(User(name="bob"))
                await inner.flush()
            raise LookupError
    assert await names(doors) == []


async def test_a_joined_scope_that_fails_does_not_end_the_transaction_before_the_outer_one_does(doors: Door) -> None:
    with pytest.raises(LookupError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            try:
                async with doors.scope():
                    raise LookupError
            finally:
                assert (await session.scalars(select(User.name))).all() == ["ann"]
                assert doors.checked_out() == 1


async def test_joining_goes_as_deep_as_one_likes(doors: Door) -> None:
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(doors.scope()) for _ in range(20)]
        assert all(doors.same(session, sessions[0]) for session in sessions)
        sessions[-1].add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_scope_joins_only_scopes_of_its_own_factory(doors: Door) -> None:
    other = doors.factory(doors.other_engine())
    async with doors.scope() as session:
        async with doors.scope(other) as inner:
            assert not doors.same(inner, session)
            assert current_session() is doors.raw(inner)
            assert current_session(doors.Session) is doors.raw(session)
            async with doors.scope() as again:
                assert doors.same(again, session)
                assert current_session(other) is doors.raw(inner)
            inner.add(User(name="there"))
        session.add(User(name="here"))
        assert current_session() is doors.raw(session)
        with pytest.raises(errors.NoCurrentSession):
            current_session(other)
    assert await names(doors) == ["here"]


async def test_scopes_of_several_factories_fail_and_commit_each_by_itself(doors: Door) -> None:
    other = doors.factory(doors.other_engine())
    async with doors.scope() as session:
        session.add(User(name="here"))
        with pytest.raises(LookupError):
            async with doors.scope(other) as inner:
                inner.add(User(name="there"))
                raise LookupError
    assert await names(doors) == ["here"]
    async with doors.session(other) as session:
        assert (await session.scalars(select(User.name))).all() == []


async def test_a_scoped_session_stands_for_the_factory_inside_it(doors: Door) -> None:
    from sessionkit import async_scoped_session, scoped_session, session_scope

    db: Any = (scoped_session if doors.colour == "sync" else async_scoped_session)(doors.Session)
    async with doors.enter(db.scope()) as session:
        assert current_session(doors.Session) is doors.raw(session)
        assert current_session(db) is doors.raw(session)
        async with doors.scope() as inner, doors.enter(session_scope(db)) as again:
            assert doors.same(inner, session)
            assert doors.same(again, session)
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


# Propagation, without a scope around


@pytest.mark.parametrize("propagation", ["join", "savepoint", "new", "forbid"])
async def test_without_a_scope_around_a_transaction_is_begun(doors: Door, propagation: str) -> None:
    with doors.statements() as sql:
        async with doors.scope(propagation=propagation) as session:
            session.add(User(name="ann"))
    assert [line.split(" ")[0] for line in sql] == ["BEGIN", "INSERT", "COMMIT"]
    assert await names(doors) == ["ann"]


async def test_require_without_a_scope_around_is_refused_before_any_work(doors: Door) -> None:
    with doors.statements() as sql:
        with pytest.raises(errors.ScopeError, match="require"):
            async with doors.scope(propagation="require"):
                pytest.fail("entered")
    assert sql == []
    assert doors.checked_out() == 0


async def test_require_is_not_met_by_a_scope_of_another_factory(doors: Door) -> None:
    other = doors.factory(doors.other_engine())
    async with doors.scope(other):
        with pytest.raises(errors.ScopeError, match="require"):
            async with doors.scope(propagation="require"):
                pytest.fail("entered")


# Propagation, inside a scope


async def test_require_inside_a_scope_joins_it(doors: Door) -> None:
    async with doors.scope() as session, doors.scope(propagation="require") as inner:
        assert doors.same(inner, session)


async def test_forbid_inside_a_scope_is_refused_and_the_outer_one_goes_on(doors: Door) -> None:
    async with doors.scope(name="outer") as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.ScopeError, match="outer"):
            async with doors.scope(propagation="forbid"):
                pytest.fail("entered")
    assert await names(doors) == ["ann"]


async def test_a_savepoint_scope_sets_and_releases_a_savepoint(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope() as session:
            async with doors.scope(propagation="savepoint") as inner:
                assert doors.same(inner, session)
                inner.add(User(name="ann"))
    verbs = [line.rstrip(";").rsplit(" ", 1)[0] if "SAVEPOINT" in line else line.split(" ")[0] for line in sql]
    assert verbs == ["BEGIN", "SAVEPOINT", "INSERT", "RELEASE SAVEPOINT", "COMMIT"]


async def test_savepoint_scopes_nest(doors: Door) -> None:
    async with doors.scope() as session:
        async with doors.scope(propagation="savepoint"):
            session.add(User(name="ann"))
            with pytest.raises(LookupError):
                async with doors.scope(propagation="savepoint"):
                    session.add(User(name="bob"))
                    async with doors.scope(propagation="savepoint"):
                        session.add(User(name="eve"))
                    raise LookupError
            session.add(User(name="joe"))
    assert await names(doors) == ["ann", "joe"]


async def test_a_savepoint_scope_that_asks_for_a_rollback_undoes_itself_only(doors: Door) -> None:
    from sessionkit import set_rollback_only

    async with doors.scope() as session:
        session.add(User(name="ann"))
        async with doors.scope(propagation="savepoint"):
            session.add(User(name="bob"))
            set_rollback_only()
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_scope_joined_to_a_savepoint_that_asks_for_a_rollback_is_told_by_the_savepoint(doors: Door) -> None:
    from sessionkit import set_rollback_only

    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(propagation="savepoint"):
                session.add(User(name="bob"))
                async with doors.scope():
                    set_rollback_only()
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


@pytest.mark.doors(backend="postgresql")
async def test_a_new_scope_commits_whatever_becomes_of_the_outer_one(doors: Door) -> None:
    with pytest.raises(LookupError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            async with doors.scope(propagation="new") as inner:
                assert not doors.same(inner, session)
                assert current_session() is doors.raw(inner)
                inner.add(User(name="bob"))
            assert current_session() is doors.raw(session)
            assert await names(doors) == ["bob"]
            raise LookupError
    assert await names(doors) == ["bob"]


@pytest.mark.doors(backend="postgresql")
async def test_a_new_scope_that_fails_leaves_the_outer_one_alone(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with doors.scope(propagation="new") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                raise LookupError
    assert await names(doors) == ["ann"]


async def test_what_is_inside_a_new_scope_joins_that_one(doors: Door) -> None:
    async with doors.scope() as session, doors.scope(propagation="new") as inner:
        async with doors.scope() as innermost:
            assert doors.same(innermost, inner)
            assert not doors.same(innermost, session)
        inner.add(User(name="ann"))
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="sqlite")
async def test_a_new_scope_that_would_wait_for_its_own_outer_one_is_refused_at_once(doors: Door) -> None:
    """One SQLite file has one writer: the inner transaction could never begin."""
    factory = doors.factory(doors.make_engine(connect_args={"timeout": 0.05}))
    with pytest.raises(errors.ScopeError):
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.flush()
            async with doors.scope(factory, propagation="new") as inner:
                inner.add(User(name="bob"))
    assert await names(doors) == []
