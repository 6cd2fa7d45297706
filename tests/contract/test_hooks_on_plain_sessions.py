"""Law 6 on sessions that no scope owns: `on_commit(..., session=)` on what plain SQLAlchemy made."""

from __future__ import annotations

import gc
import logging
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from sessionkit import errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import names, swallow_failed_flush, take
from tests.contract.test_hooks import Log, raising
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


@pytest.fixture(params=["plain", "ours"])
def factory(request: pytest.FixtureRequest, doors: Door) -> Any:
    """SQLAlchemy's factory, and ours without a scope: both make sessions that no scope owns."""
    return doors.plain_factory() if request.param == "plain" else doors.Session


async def test_they_follow_the_sessions_commit_once(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session:
        doors.call(on_commit, ran.will("first"), session=session)
        doors.call(on_rollback, ran.will("rollback"), session=session)
        session.add(User(name="ann"))
        await session.flush()
        assert ran == []
        await session.commit()
        assert ran == ["first"]
        doors.call(on_commit, ran.will("second"), session=session)
        await session.commit()
        await session.commit()
    assert ran == ["first", "second"]


async def test_they_follow_the_sessions_rollback(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session:
        doors.call(on_commit, ran.will("commit"), session=session)
        doors.call(on_rollback, ran.will("rollback"), session=session)
        session.add(User(name="ann"))
        await session.flush()
        await session.rollback()
        assert ran == ["rollback"]
        session.add(User(name="bob"))
        await session.commit()
    assert ran == ["rollback"]
    assert await names(doors) == ["bob"]


async def test_a_session_that_is_closed_without_a_commit_has_rolled_back(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session:
        doors.call(on_commit, ran.will("commit"), session=session)
        doors.call(on_rollback, ran.will("rollback"), session=session)
        session.add(User(name="ann"))
        await session.flush()
    assert ran == ["rollback"]


async def test_they_follow_a_begin_block(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session:
        async with session.begin():
            doors.call(on_commit, ran.will("commit"), session=session)
            session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with session.begin():
                doors.call(on_commit, ran.will("not this"), session=session)
                doors.call(on_rollback, ran.will("rollback"), session=session)
                raise LookupError
    assert ran == ["commit", "rollback"]


async def test_a_release_of_a_savepoint_is_no_commit(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session:
        doors.call(on_commit, ran.will("outer"), session=session)
        async with session.begin_nested():
            session.add(User(name="ann"))
            doors.call(on_commit, ran.will("inner"), session=session)
        assert ran == []
        await session.rollback()
    assert ran == []


async def test_they_are_dropped_with_their_savepoint(doors: Door, factory: Any) -> None:
    ran = Log()
    async with doors.session(factory) as session, session.begin():
        with suppress(LookupError):
            async with session.begin_nested():
                await session.execute(select(User))
                doors.call(on_commit, ran.will("dropped"), session=session)
                doors.call(on_rollback, ran.will("undone"), session=session)
                raise LookupError
        doors.call(on_commit, ran.will("kept"), session=session)
    assert ran == ["undone", "kept"]


async def test_a_swallowed_flush_error_in_a_begin_block_has_rolled_back(doors: Door, factory: Any) -> None:
    await take(doors)
    ran = Log()
    async with doors.session(factory) as session, session.begin():
        doors.call(on_commit, ran.will("commit"), session=session)
        doors.call(on_rollback, ran.will("rollback"), session=session)
        await swallow_failed_flush(session)
    assert ran == ["rollback"]


async def test_a_failing_hook_is_told_and_the_session_stays_usable(doors: Door, factory: Any) -> None:
    ran = Log()
    mine = LookupError("mine")
    async with doors.session(factory) as session:
        session.add(User(name="ann"))
        doors.call(on_commit, raising(mine), session=session)
        doors.call(on_commit, ran.will("next"), session=session)
        with pytest.raises(errors.HookError) as caught:
            await session.commit()
        assert caught.value.errors == (mine,)
        assert caught.value.outcome == "committed"
        assert ran == ["next"]
        assert doors.checked_out() == 0
        session.add(User(name="bob"))
        await session.commit()
    assert await names(doors) == ["ann", "bob"]


async def test_a_failing_hook_of_a_begin_block_is_told_and_the_data_is_committed(doors: Door, factory: Any) -> None:
    async with doors.session(factory) as session:
        with pytest.raises(errors.HookError):
            async with session.begin():
                session.add(User(name="ann"))
                doors.call(on_commit, raising(LookupError()), session=session)
        async with session.begin():
            session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


async def test_a_failing_hook_never_replaces_the_error_of_the_block(doors: Door, factory: Any) -> None:
    mine = LookupError("mine")
    async with doors.session(factory) as session:
        with pytest.raises(LookupError) as caught:
            async with session.begin():
                doors.call(on_rollback, raising(ValueError("the hook's")), session=session)
                raise mine
        assert caught.value is mine


async def test_a_failing_hook_never_replaces_the_error_of_a_commit(doors: Door, factory: Any) -> None:
    await take(doors)
    async with doors.session(factory) as session:
        with pytest.raises(IntegrityError):
            async with session.begin():
                doors.call(on_rollback, raising(ValueError("the hook's")), session=session)
                session.add(User(name="taken"))


async def test_a_failing_hook_of_a_rollback_is_logged_and_gives_the_connection_back(
    doors: Door, factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether an error is on its way already cannot be seen from the session's events, so this one never is the one."""
    ran = Log()
    mine = LookupError("mine")
    with caplog.at_level(logging.ERROR, "sessionkit"):
        async with doors.session(factory) as session:
            await session.execute(text("SELECT 1"))
            doors.call(on_rollback, raising(mine), session=session)
            doors.call(on_rollback, ran.will("next"), session=session)
    assert ran == ["next"]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [mine]
    assert doors.checked_out() == 0


async def test_a_failing_hook_does_not_run_again(doors: Door, factory: Any) -> None:
    ran = Log()

    def hook() -> None:
        ran.append("ran")
        raise LookupError

    async with doors.session(factory) as session:
        doors.call(on_commit, hook, session=session)
        with suppress(errors.HookError):
            await session.commit()
        await session.commit()
        await session.rollback()
    assert ran == ["ran"]


@pytest.mark.doors(colour="sync")
async def test_a_hook_may_open_a_scope(doors: Door, factory: Any) -> None:
    def hook() -> None:
        with doors.Session.scope() as inner:
            inner.add(User(name="of the hook"))

    async with doors.session(factory) as session:
        session.add(User(name="ann"))
        doors.call(on_commit, hook, session=session)
        await session.commit()
    assert await names(doors) == ["ann", "of the hook"]


async def test_hooks_keep_no_session_alive(doors: Door, factory: Any) -> None:
    async def work() -> weakref.ref[Any]:
        async with doors.session(factory) as session:
            doors.call(on_commit, lambda: None, session=session)
            await session.commit()
            return weakref.ref(doors.sync(session))

    gone = await work()
    gc.collect()
    assert gone() is None


async def test_a_rollback_cannot_be_asked_for_on_a_session_that_no_scope_owns(doors: Door, factory: Any) -> None:
    async with doors.session(factory) as session:
        with pytest.raises(errors.ScopeError, match="rollback"):
            doors.call(set_rollback_only, session)
