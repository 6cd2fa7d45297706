"""Cancelling a scope at each of its awaits in turn, for the tests of law 2 under asyncio."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.contract.breaking import Cancelled, names

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
