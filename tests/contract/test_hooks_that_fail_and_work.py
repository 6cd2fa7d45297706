"""Law 6: what hooks may do, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from sessionkit import current_session, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import (
    failing_driver_call,
    names,
)
from tests.contract.test_hooks import Log, raising
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# Failing


async def test_a_failing_hook_does_not_keep_the_others_from_running_and_its_error_says_what_became_of_the_data(
    doors: Door,
) -> None:
    ran = Log()
    mine, also = LookupError("mine"), ValueError("also mine")
    with pytest.raises(errors.HookError) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(ran.will("first"))
            on_commit(raising(mine))
            on_commit(ran.will("second"))
            on_commit(raising(also))
            on_commit(ran.will("third"))
    assert ran == ["first", "second", "third"]
    assert caught.value.errors == (mine, also)
    assert caught.value.__cause__ is mine
    assert caught.value.outcome == "committed"
    assert "committed" in str(caught.value)
    assert await names(doors) == ["ann"]


async def test_a_failing_hook_of_a_quiet_rollback_says_that_it_was_one(doors: Door) -> None:
    with pytest.raises(errors.HookError) as caught:
        async with doors.scope():
            on_rollback(raising(LookupError("mine")))
            set_rollback_only()
    assert caught.value.outcome == "rolled back"


async def test_a_failing_hook_never_replaces_the_bodys_error(doors: Door, caplog: pytest.LogCaptureFixture) -> None:
    mine = LookupError("mine")
    with caplog.at_level(logging.ERROR, "sessionkit"), pytest.raises(LookupError) as caught:
        async with doors.scope():
            on_rollback(raising(ValueError("the hook's")))
            raise mine
    assert caught.value is mine
    assert any("the hook's" in note for note in mine.__notes__)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]


async def test_a_failing_hook_never_replaces_the_error_of_the_commit(doors: Door) -> None:
    with pytest.raises(IntegrityError):
        async with doors.scope() as session:
            on_rollback(raising(ValueError("the hook's")))
            session.add(Pledge(account_id=404))


async def test_a_failing_robust_hook_is_logged_only(doors: Door, caplog: pytest.LogCaptureFixture) -> None:
    ran = Log()
    mine = LookupError("mine")
    with caplog.at_level(logging.ERROR, "sessionkit"):
        async with doors.scope():
            on_commit(raising(mine), robust=True)
            on_commit(ran.will("next"))
    assert ran == ["next"]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [mine]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("robust", [True, False])
async def test_a_hook_that_is_interrupted_lets_the_others_run_and_the_interrupt_pass(
    doors: Door, kind: type[BaseException], robust: bool
) -> None:
    ran = Log()
    mine = kind()
    with pytest.raises(kind) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(raising(LookupError("before")))
            on_commit(raising(mine), robust=robust)
            on_commit(ran.will("next"))
    assert caught.value is mine
    assert errors.outcome_of(mine) == "committed"
    assert ran == ["next"]
    assert await names(doors) == ["ann"]


async def test_a_failing_hook_leaves_nothing_ambient_and_no_connection_out(doors: Door) -> None:
    with suppress(errors.HookError):
        async with doors.scope() as session:
            await session.execute(text("SELECT 1"))
            on_commit(raising(LookupError()))
    with pytest.raises(errors.NoCurrentSession):
        current_session()
    assert doors.checked_out() == 0


# Async hooks, and hooks that work


@pytest.mark.doors(colour="async")
async def test_an_async_hook_is_awaited_in_its_turn(doors: Door) -> None:
    ran = Log()

    async def hook() -> None:
        await asyncio.to_thread(ran.append, "async")

    async with doors.scope():
        on_commit(ran.will("before"))
        on_commit(hook)
        on_commit(lambda: hook())
        on_commit(ran.will("after"))
    assert ran == ["before", "async", "async", "after"]


@pytest.mark.doors(colour="sync")
async def test_an_async_hook_of_a_sync_scope_is_refused(doors: Door) -> None:
    async def hook() -> None:
        pytest.fail("ran")

    async with doors.scope():
        with pytest.raises(errors.ScopeError, match="async"):
            on_commit(hook)
    with pytest.raises(errors.HookError) as caught:
        async with doors.scope():
            on_commit(lambda: hook())
    assert isinstance(caught.value.errors[0], errors.ScopeError)


async def test_an_async_hook_on_a_plain_session_is_refused(doors: Door) -> None:
    async def hook() -> None:
        pytest.fail("ran")

    async with doors.session(doors.plain_factory()) as session:
        with pytest.raises(errors.ScopeError, match="async"):
            doors.call(on_commit, hook, session=session)


@pytest.mark.doors(colour="sync")
async def test_a_hook_may_open_scopes_of_its_own(doors: Door) -> None:
    def hook() -> None:
        with doors.Session.scope() as session:
            session.add(User(name="of the hook"))
            on_commit(lambda: ran.append("inner"))

    ran = Log()
    async with doors.scope() as session:
        session.add(User(name="ann"))
        on_commit(hook)
        on_commit(ran.will("outer"))
    assert await names(doors) == ["ann", "of the hook"]
    assert ran == ["inner", "outer"]


@pytest.mark.doors(colour="async")
async def test_an_async_hook_may_open_scopes_of_its_own(doors: Door) -> None:
    async def hook() -> None:
        async with doors.scope() as session:
            session.add(User(name="of the hook"))

    async with doors.scope() as session:
        session.add(User(name="ann"))
        on_commit(hook)
    assert await names(doors) == ["ann", "of the hook"]


@pytest.mark.doors(colour="async")
async def test_a_cancellation_during_the_commit_still_runs_the_hooks(doors: Door) -> None:
    ran = Log()

    async def hook() -> None:
        await asyncio.to_thread(ran.append, "async")

    async def body() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(ran.will("first"))
            on_commit(hook)
            on_commit(raising(ValueError("the hook's")))
            task = asyncio.current_task()
            assert task is not None
            event.listen(doors.sync(session), "after_commit", lambda _: task.cancel())

    (result,) = await asyncio.gather(asyncio.create_task(body()), return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    assert ran == ["first", "async"]
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_a_cancellation_during_a_hook_lets_the_others_run(doors: Door) -> None:
    ran = Log()

    async def hook() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    async def body() -> None:
        async with doors.scope():
            on_commit(hook)
            on_commit(ran.will("next"))

    (result,) = await asyncio.gather(asyncio.create_task(body()), return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    assert ran == ["next"]


async def test_a_failed_rollback_runs_the_hooks_of_a_rollback(doors: Door) -> None:
    ran = Log()
    with pytest.raises(LookupError):
        async with failing_driver_call(doors, "do_rollback", RuntimeError("odd")):
            async with doors.scope() as session:
                await session.execute(text("SELECT 1"))
                on_rollback(ran.will("rollback"))
                raise LookupError
    assert ran == ["rollback"]
