"""What is to be done in an event loop before it ends: a connection that was opened in it can be closed in no other.

The loop of a test rests when the test and its fixtures have ended, and is run once more. Loops that the code under test
runs (``asyncio.run``, the test client of a web framework) end in the middle of the test, and so may the test's own: there
an asynchronous generator that was begun in the loop is closed by it, as each loop does with its generators.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["EventLoops"]


class EventLoops:
    """The event loops of a test.

    Args:
        last: for each key, what is to be awaited in each loop in which it was entered.
    """

    def __init__(self, last: Callable[[Any], Awaitable[None]]) -> None:
        self._last = last
        self._guards: dict[tuple[asyncio.AbstractEventLoop, Any], AsyncGenerator[None, None]] = {}

    def enter(self, key: Any) -> None:
        """Note that `key` is used in the loop that runs. Called where SQLAlchemy may await."""
        place = asyncio.get_running_loop(), key
        if place not in self._guards:
            self._guards[place] = guard = self._guard(place)
            await_only(guard.__anext__())

    async def _guard(self, place: tuple[asyncio.AbstractEventLoop, Any]) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._guards.pop(place, None)
            await self._last(place[1])

    async def end_here(self) -> None:
        """Do what is to be done in the loop that runs."""
        loop = asyncio.get_running_loop()
        for place, guard in list(self._guards.items()):
            if place[0] is loop:
                await guard.aclose()

    def end(self) -> list[Any]:
        """Do what is to be done in loops that rest, and return the keys whose loops have ended without it, or still run."""
        lost = []
        for (loop, key), guard in list(self._guards.items()):
            if loop.is_closed() or loop.is_running():
                del self._guards[loop, key]
                lost.append(key)
            else:
                loop.run_until_complete(guard.aclose())
        return lost
