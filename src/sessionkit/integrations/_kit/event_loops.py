"""Clean-up in an event loop before it ends: a connection can only be closed in the loop that opened it.

When a test and its fixtures have ended, the test's loop is idle, and the kit runs it once more. Loops that the code under
test runs (``asyncio.run``, the test client of a web framework) end during the test, and the test's own loop may too. For
those, the kit starts an async generator in the loop: each loop closes its generators when it ends.
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
        last: for a key, returns the clean-up to await in each loop that has used the key.
    """

    def __init__(self, last: Callable[[Any], Awaitable[None]]) -> None:
        self._last = last
        self._guards: dict[tuple[asyncio.AbstractEventLoop, Any], AsyncGenerator[None, None]] = {}

    def enter(self, key: Any) -> None:
        """Note that the running loop uses `key`. Called where SQLAlchemy may await."""
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
        """Clean up in the running loop."""
        loop = asyncio.get_running_loop()
        for place, guard in list(self._guards.items()):
            if place[0] is loop:
                await guard.aclose()

    def end(self) -> list[Any]:
        """Clean up in idle loops. Return the keys whose loops have closed without clean-up, or are still running."""
        lost = []
        for (loop, key), guard in list(self._guards.items()):
            if loop.is_closed() or loop.is_running():
                del self._guards[loop, key]
                lost.append(key)
            else:
                loop.run_until_complete(guard.aclose())
        return lost
