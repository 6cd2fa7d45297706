"""Law 2 under asyncio: cancelled once or twice, at whichever await, a scope ends whole and its connection goes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text, update

from sessionkit import on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import Cancelled, names
from tests.contract.cancelling import MOST, cancelled_everywhere, settled
from tests.contract.lost import create_markers, markers
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.doors(colour="async")


@pytest.mark.parametrize(("times", "verify"), [(1, False), (2, False), (3, False), (2, True)])
async def test_a_scope_that_commits_can_be_cancelled_at_every_await(doors: Door, times: int, verify: bool) -> None:
    await create_markers(doors)

    async def body(name: str, ran: list[str]) -> None:
        async with doors.scope(verify_commit=verify) as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name=name))
            await session.flush()
            await session.execute(update(User).values(email="here"))

    assert await cancelled_everywhere(doors, body, times=times) > 2
    if verify:
        assert len([state for _, state in await markers(doors) if state == "C"]) == len(await names(doors))


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_scope_that_rolls_back_can_be_cancelled_at_every_await(doors: Door, times: int) -> None:
    async def body(name: str, ran: list[str]) -> None:
        async with doors.scope() as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name=name))
            await session.flush()
            set_rollback_only()

    assert await cancelled_everywhere(doors, body, times=times) > 2
    assert await names(doors) == []


@pytest.mark.parametrize("times", [1, 2])
async def test_a_savepoint_scope_can_be_cancelled_at_every_await(doors: Door, times: int) -> None:
    async def body(name: str, ran: list[str]) -> None:
        async with doors.scope() as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name=name))
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name=f"{name} inside"))
                await inner.flush()

    await cancelled_everywhere(doors, body, times=times)
    committed = await names(doors)
    for name in committed:
        assert name.endswith("inside") or f"{name} inside" in committed


async def test_a_savepoint_scope_that_was_cancelled_and_swallowed_is_undone_or_dooms(doors: Door) -> None:
    """Whoever swallows a cancellation does not get half of the inner scope committed."""
    for number in range(MOST):
        name = f"user {number}"
        await settled(doors)

        async def inside(name: str = name) -> None:
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name=f"{name} a"))
                await inner.flush()
                inner.add(User(name=f"{name} b"))

        cancelled = Cancelled(inside(), number)

        async def outer(name: str = name, cancelled: Cancelled = cancelled) -> None:
            async with doors.scope() as session:
                session.add(User(name=name))
                try:
                    await cancelled
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()

        task = asyncio.ensure_future(outer())
        await asyncio.gather(task, return_exceptions=True)
        assert doors.checked_out() == 0
        there = {n.removeprefix(name).strip() for n in await names(doors) if n.split(" ")[1] == str(number)}
        assert there in (set(), {""}, {"", "a", "b"}), f"cancelled at await {number}"
        if not cancelled.done:
            return
    raise AssertionError("the scope has more awaits than were tried")


async def test_a_cancellation_during_the_commit_lets_it_finish_and_is_raised_after_it(doors: Door) -> None:
    ran: list[str] = []

    async def body() -> None:
        async with doors.scope() as session:
            on_commit(lambda: ran.append("commit"))
            session.add(User(name="ann"))
            task = asyncio.current_task()
            assert task is not None
            event.listen(doors.sync(session), "before_commit", lambda _: task.cancel())

    task = asyncio.create_task(body())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(doors) == ["ann"]
    assert ran == ["commit"]


async def test_a_timeout_during_the_commit_is_a_timeout_error(doors: Door) -> None:
    """`asyncio.timeout` must know its own cancellation again."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            async with doors.scope() as session:
                session.add(User(name="ann"))
                loop = asyncio.get_running_loop()
                event.listen(doors.sync(session), "before_commit", lambda _: timeout.reschedule(loop.time() - 1))
    assert await names(doors) == ["ann"]


async def test_a_cancellation_during_the_rollback_is_raised_and_the_bodys_error_is_in_its_chain(doors: Door) -> None:
    mine = LookupError("mine")
    seen: list[BaseException] = []

    async def body() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            task = asyncio.current_task()
            assert task is not None
            event.listen(doors.sync(session), "after_soft_rollback", lambda *_: task.cancel())
            raise mine

    async def watched() -> None:
        try:
            await body()
        except BaseException as error:
            seen.append(error)
            raise

    await asyncio.gather(asyncio.create_task(watched()), return_exceptions=True)
    chain: list[BaseException] = []
    error: BaseException | None = seen[0]
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    assert isinstance(seen[0], asyncio.CancelledError)
    assert mine in chain
    assert await names(doors) == []


async def test_a_cancelled_statement_that_is_swallowed_cannot_be_committed_over(doors: Door) -> None:
    from sessionkit import errors

    async def body() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            try:
                await Cancelled(_select(session), 0)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

    async def _select(session: Any) -> None:
        await session.execute(text("SELECT 1"))

    task = asyncio.create_task(body())
    (result,) = await asyncio.gather(task, return_exceptions=True)
    # Either the driver could take the cancellation and all was committed, or the scope said that it could not.
    if result is None:
        assert await names(doors) == ["ann"]
    else:
        assert isinstance(result, errors.UnexpectedRollback), result
        assert await names(doors) == []
    assert doors.checked_out() == 0


async def test_a_cancelled_task_group_closes_the_scopes_of_its_tasks(doors: Door) -> None:
    began = asyncio.Event()

    async def waits() -> None:
        async with doors.scope(doors.plain_factory()) as session:
            await session.execute(select(User))
            began.set()
            await asyncio.Event().wait()

    async def fails() -> None:
        await began.wait()
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits())
            group.create_task(fails())
    assert caught.group_contains(LookupError)
    assert doors.checked_out() == 0


def test_a_loop_that_is_shut_down_ends_the_scopes_of_its_tasks(tmp_path: Any) -> None:
    """`asyncio.run` cancels what still runs when its main coroutine is done, all tasks at once."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from sessionkit import async_sessionmaker

    open_: list[int] = []
    ended: list[str] = []

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
        event.listen(engine.sync_engine, "checkout", lambda *_: open_.append(1))
        event.listen(engine.sync_engine, "checkin", lambda *_: open_.pop())
        factory = async_sessionmaker(engine)
        began = asyncio.Event()

        async def other() -> None:
            try:
                async with factory.scope() as session:
                    on_rollback(lambda: ended.append("rollback"))
                    await session.execute(text("SELECT 1"))
                    began.set()
                    await asyncio.Event().wait()
            finally:
                await engine.dispose()

        main.task = asyncio.create_task(other())  # type: ignore[attr-defined]
        await began.wait()

    asyncio.run(main())
    assert open_ == []
    assert ended == ["rollback"]
