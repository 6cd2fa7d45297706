"""Law 6: hooks follow the outermost commit: once, after it, in order; dropped with their savepoint or transaction."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import current_session, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import (
    backend_pid,
    kill_backend,
    names,
    swallow_failed_statement,
    take,
)
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Log(list[str]):
    """What ran, in order."""

    def will(self, word: str) -> Callable[[], None]:
        return lambda: self.append(word)


def raising(error: BaseException) -> Callable[[], None]:
    def hook() -> None:
        raise error

    return hook


# When


async def test_hooks_run_after_the_commit_in_order_with_the_connection_given_back(doors: Door) -> None:
    ran = Log()
    async with doors.scope() as session:
        session.add(User(name="ann"))
        on_commit(ran.will("first"))
        async with doors.scope():
            on_commit(ran.will("joined"))
        on_commit(lambda: ran.append(f"{doors.checked_out()} connections are out"))
        on_rollback(ran.will("rollback"))
        async with doors.scope(propagation="savepoint"):
            on_commit(ran.will("savepoint"))
        on_commit(ran.will("last"), session=doors.raw(session))
        await session.flush()
        assert ran == []
    assert ran == ["first", "joined", "0 connections are out", "savepoint", "last"]


async def test_a_hook_sees_what_was_committed(doors: Door) -> None:
    seen: list[Any] = []
    async with doors.scope() as session:
        session.add(User(name="ann"))
        # (Read by the harness's own connection: it is the outside.)
        on_commit(lambda: seen.append(doors._read("SELECT name FROM users", {})))
    assert seen == [[("ann",)]]


async def test_no_scope_is_ambient_in_a_hook(doors: Door) -> None:
    seen: list[BaseException] = []

    def hook() -> None:
        try:
            current_session()
        except errors.NoCurrentSession as error:
            seen.append(error)

    async with doors.scope() as session:
        session.add(User(name="ann"))
        on_commit(hook)
    assert len(seen) == 1


async def test_hooks_of_a_rolled_back_scope_are_those_of_the_rollback(doors: Door) -> None:
    ran = Log()
    with pytest.raises(LookupError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(ran.will("commit"))
            on_rollback(ran.will("rollback 1"))
            on_rollback(ran.will("rollback 2"))
            on_rollback(lambda: ran.append(f"{doors.checked_out()} connections are out"))
            raise LookupError
    assert ran == ["rollback 1", "rollback 2", "0 connections are out"]


async def test_a_rollback_that_was_asked_for_runs_the_hooks_of_a_rollback(doors: Door) -> None:
    ran = Log()
    async with doors.scope() as session:
        session.add(User(name="ann"))
        on_commit(ran.will("commit"))
        on_rollback(ran.will("rollback"))
        set_rollback_only()
    assert ran == ["rollback"]


async def test_an_unexpected_rollback_runs_the_hooks_of_a_rollback(doors: Door) -> None:
    await take(doors)
    ran = Log()
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            on_commit(ran.will("commit"))
            on_rollback(ran.will("rollback"))
            await swallow_failed_statement(session)
    assert ran == ["rollback"]


async def test_a_commit_that_the_database_refuses_runs_the_hooks_of_a_rollback(doors: Door) -> None:
    ran = Log()
    with pytest.raises(IntegrityError):
        async with doors.scope() as session:
            on_commit(ran.will("commit"))
            on_rollback(ran.will("rollback"))
            session.add(Pledge(account_id=404))
    assert ran == ["rollback"]


@pytest.mark.doors(backend="postgresql")
async def test_after_a_commit_whose_outcome_is_unknown_no_hook_runs(doors: Door) -> None:
    ran = Log()
    with pytest.raises((DBAPIError, errors.SessionKitError)):
        async with doors.scope() as session:
            on_commit(ran.will("commit"))
            on_rollback(ran.will("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            await kill_backend(doors, await backend_pid(session))
    assert ran == []


async def test_an_error_of_a_listener_after_the_commit_does_not_undo_it_for_the_hooks(doors: Door) -> None:
    ran = Log()
    mine = LookupError("after_commit")
    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            on_commit(ran.will("commit"))
            on_rollback(ran.will("rollback"))
            event.listen(doors.sync(session), "after_commit", lambda _: raising(mine)())
            session.add(User(name="ann"))
    assert caught.value is mine
    assert await names(doors) == ["ann"]
    assert ran == ["commit"]
    assert doors.checked_out() == 0


async def test_a_scope_without_work_runs_its_hooks_all_the_same(doors: Door) -> None:
    ran = Log()
    async with doors.scope():
        on_commit(ran.will("commit"))
    assert ran == ["commit"]


# Savepoints


async def test_a_hook_is_dropped_with_its_savepoint_and_its_rollback_hook_runs_at_the_end(doors: Door) -> None:
    ran = Log()
    async with doors.scope() as session:
        on_commit(ran.will("outer"))
        with suppress(LookupError):
            async with doors.scope(propagation="savepoint"):
                session.add(User(name="ann"))
                on_commit(ran.will("dropped"))
                on_rollback(ran.will("undone"))
                raise LookupError
        assert ran == []
        on_commit(ran.will("after"))
    assert ran == ["outer", "undone", "after"]


async def test_a_hook_is_dropped_with_a_savepoint_around_its_own(doors: Door) -> None:
    ran = Log()
    async with doors.scope() as session:
        with suppress(LookupError):
            async with doors.scope(propagation="savepoint"):
                async with session.begin_nested():
                    await session.execute(select(User))
                    on_commit(ran.will("dropped"))
                on_commit(ran.will("dropped too"))
                raise LookupError
        async with session.begin_nested():
            on_commit(ran.will("kept"))
    assert ran == ["kept"]


async def test_a_hook_registered_in_a_savepoint_without_any_statement_is_dropped_with_it(doors: Door) -> None:
    ran = Log()
    async with doors.scope():
        with suppress(LookupError):
            async with doors.scope(propagation="savepoint"):
                on_commit(ran.will("dropped"))
                raise LookupError
    assert ran == []


async def test_a_hook_is_dropped_with_a_savepoint_that_is_rolled_back_by_hand(doors: Door) -> None:
    ran = Log()
    async with doors.scope() as session:
        savepoint = await session.begin_nested()
        on_commit(ran.will("dropped"))
        on_rollback(ran.will("undone"))
        await savepoint.rollback()
        on_commit(ran.will("kept"))
    assert ran == ["undone", "kept"]


async def test_a_hook_is_dropped_with_a_savepoint_whose_flush_failed(doors: Door) -> None:
    await take(doors)
    ran = Log()
    async with doors.scope() as session:
        with suppress(IntegrityError):
            async with doors.scope(propagation="savepoint"):
                on_commit(ran.will("dropped"))
                session.add(User(name="taken"))
        on_commit(ran.will("kept"))
    assert ran == ["kept"]


async def test_a_hook_of_a_savepoint_is_dropped_with_the_whole_transaction(doors: Door) -> None:
    ran = Log()
    with suppress(LookupError):
        async with doors.scope() as session:
            async with doors.scope(propagation="savepoint"):
                session.add(User(name="ann"))
                on_commit(ran.will("commit"))
                on_rollback(ran.will("rollback"))
            raise LookupError
    assert ran == ["rollback"]


async def test_a_hook_is_dropped_with_a_savepoint_of_the_connections(doors: Door) -> None:
    """A savepoint that was set below the session undoes the session's work all the same."""
    ran = Log()
    async with doors.scope() as session:
        connection = await session.connection()
        with suppress(LookupError):
            async with connection.begin_nested():
                session.add(User(name="bob"))
                await session.flush()
                on_commit(ran.will("dropped"))
                raise LookupError
        on_commit(ran.will("kept"))
    assert await names(doors) == []
    assert ran == ["kept"]


# Registering


async def test_on_commit_gives_the_function_back_and_is_a_decorator(doors: Door) -> None:
    ran = Log()
    async with doors.scope():

        @on_commit
        def hook() -> None:
            ran.append("ran")

        assert callable(hook)
        hook()
    assert ran == ["ran", "ran"]


async def test_a_hook_without_a_scope_or_of_no_callable_is_refused(doors: Door) -> None:
    for register in (on_commit, on_rollback):
        with pytest.raises(errors.NoCurrentSession, match=register.__name__):
            register(lambda: None)
        async with doors.scope():
            with pytest.raises(errors.ScopeError, match="callable"):
                register("not a function")  # type: ignore[type-var]
        with pytest.raises(errors.ScopeError):
            register(lambda: None, session=doors.sync_engine)


async def test_a_hook_registered_in_a_hook_has_no_scope_any_more(doors: Door) -> None:
    with pytest.raises(errors.HookError) as caught:
        async with doors.scope():
            on_commit(lambda: on_commit(print))
    assert isinstance(caught.value.errors[0], errors.NoCurrentSession)


async def test_a_hook_of_an_inner_factory_does_not_wait_for_the_outer_ones_scope(doors: Door) -> None:
    other = doors.factory(doors.other_engine())
    ran = Log()
    async with doors.scope():
        on_commit(ran.will("outer"))
        async with doors.scope(other) as inner:
            on_commit(ran.will("inner"))
            on_commit(ran.will("outer too"), session=current_session(doors.Session))
            await inner.execute(text("SELECT 1"))
        assert ran == ["inner"]
    assert ran == ["inner", "outer", "outer too"]
