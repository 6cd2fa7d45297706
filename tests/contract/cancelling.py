"""Cancelling a scope at each of its awaits in turn, for the tests of law 2 under asyncio."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from tests.contract.breaking import Cancelled, names
from tests.support.models import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.doors import Door

MOST = 60
"""More awaits than a small scope has."""


@dataclass(frozen=True)
class Cut:
    """What came of a coroutine that was cancelled at some of its awaits."""

    result: Any
    """What it returned, or the exception that its task ended with."""
    error: BaseException | None
    """The very exception that left the coroutine: a task ends with another CancelledError than that."""
    done: int
    """How many cancellations were asked for."""


async def cut(coroutine: Coroutine[Any, Any, Any], *awaits: int, by: Callable[[], None] | None = None) -> Cut:
    """Run a coroutine in a task of its own, which is cancelled at these awaits; `by`: cancelled by calling this."""
    cancelled = Cancelled(coroutine, *awaits, by=by)
    left: list[BaseException] = []

    async def run() -> Any:
        try:
            return await cancelled
        except BaseException as error:
            left.append(error)
            raise

    result: Any
    (result,) = await asyncio.gather(asyncio.ensure_future(run()), return_exceptions=True)
    return Cut(result, left[0] if left else None, cancelled.done)


async def cancelled_everywhere(doors: Door, body: Any, *, times: int) -> int:
    """Run `body(name, ran)` again and again, cancelled at one await later each time; return how often it was cut."""
    for number in range(MOST):
        await settled(doors)
        if not await _cancelled_at(doors, body, number, times):
            return number
    raise AssertionError("the scope has more awaits than were tried")


async def _cancelled_at(doors: Door, body: Any, number: int, times: int) -> bool:
    name, ran = f"user {number}", list[str]()
    seen = await cut(body(name, ran), *range(number, number + times))
    assert doors.checked_out() == 0, f"cancelled at await {number}"
    there = name in await names(doors)
    assert ran == (["commit"] if there else ["rollback"] if ran else []), f"cancelled at await {number}"
    if not seen.done:
        assert seen.result is None, f"it was not cancelled, and yet it failed: {seen.result!r}"
        return False
    assert isinstance(seen.result, asyncio.CancelledError), (
        f"cancelled at await {number}, but the result is {seen.result!r}"
    )
    return True


async def settled(doors: Door) -> None:
    """Have a connection in the pool, and nothing of a cancelled one left.

    A cancelled connect or SELECT of aiosqlite lives on with its lock until it is collected, if not longer, with plain
    SQLAlchemy too; that is not what these tests are about.
    """
    gc.collect()
    async with doors.connect():
        pass


def cancel(times: int) -> Callable[[], None]:
    """Return what cancels the task that runs, so many times at once."""

    def strike() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(times):
            task.cancel()

    return strike


async def by_a_timeout(unit: Any, *awaits: int) -> Cut:
    """`asyncio.timeout` passes at the first of these awaits."""
    left: list[BaseException] = []
    done: list[int] = []

    async def watched() -> None:
        try:
            await unit()
        except BaseException as error:
            left.append(error)
            raise

    async def run() -> None:
        async with asyncio.timeout(None) as timeout:

            def strike() -> None:
                done.append(1)
                timeout.reschedule(asyncio.get_running_loop().time() - 1)

            await Cancelled(watched(), *awaits[:1], by=strike)

    (result,) = await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
    if left and isinstance(left[0], asyncio.CancelledError):  # and not an error of the unit's own
        assert isinstance(result, TimeoutError), f"{left[0]!r} left the unit, but {result!r} is what came of it"
    return Cut(result, left[0] if left else None, len(done))


async def by_a_sibling(unit: Any, *awaits: int) -> Cut:
    """A sibling in the TaskGroup fails at the first of these awaits."""
    left: list[BaseException] = []
    failing = asyncio.Event()
    over = asyncio.Event()

    async def watched() -> None:
        try:
            await unit()
        except BaseException as error:
            left.append(error)
            raise

    async def cut_() -> None:
        try:
            await Cancelled(watched(), *awaits[:1], by=failing.set)
        finally:
            over.set()

    async def sibling() -> None:
        waits = [asyncio.ensure_future(failing.wait()), asyncio.ensure_future(over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if failing.is_set():
            raise LookupError("the sibling")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(cut_())
            group.create_task(sibling())

    (result,) = await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
    return Cut(result, left[0] if left else None, failing.is_set())


# A unit that must be whole


async def transfer(session: Any) -> None:
    """Read, and write twice: half of it would be seen."""
    await session.scalar(select(Account.balance).where(Account.id == 1))
    await session.execute(update(Account).where(Account.id == 1).values(balance=Account.balance + 1))
    await session.execute(update(Account).where(Account.id == 2).values(balance=Account.balance + 1))


async def accounts(doors: Door) -> None:
    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'ann', 0), (2, 'bob', 0)")


async def balance(doors: Door) -> int:
    """Return what both accounts hold: a unit is whole or not at all."""
    values = {value for (value,) in await doors.rows("SELECT balance FROM accounts")}
    assert len(values) == 1, f"half of a unit was committed: {values}"
    value: int = values.pop()
    return value


async def nothing_is_left(doors: Door, before: set[Any], at: str) -> None:
    """Assert that a unit that ended has left no connection out, no task, and no lock."""
    assert doors.checked_out() == 0, f"{at}: a connection is out"
    stuck = asyncio.all_tasks() - before
    if stuck:  # what was cancelled last may be winding up
        _, stuck = await asyncio.wait(stuck, timeout=10)
    assert not stuck, f"{at}: these tasks are stuck: {stuck}"
    if doors.backend == "sqlite":
        # A thread of the driver's may just be giving the lock back.
        watcher = sqlite3.connect(str(doors.database.url("pysqlite").database), isolation_level=None, timeout=3)
        try:
            watcher.execute("BEGIN IMMEDIATE")
            watcher.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            pytest.fail(f"{at}: {error}, and nobody is left who would give the lock back")
        finally:
            watcher.close()
    else:
        assert not doors.database.left_open(), f"{at}: a transaction is open"
