"""A unit while it runs, and the loop of those that are async."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .._spi import _dialects

__all__ = ["BLOCKED", "BUSY", "DONE", "PARKED", "RUNNING", "LoopThread", "Standing", "Ticket", "Unit"]


class Standing(Enum):
    """Where a unit is."""

    RUNNING = "it runs"
    PARKED = "it waits for its turn"
    BLOCKED = "it waits for a lock of another unit"
    BUSY = "SQLite is busy, and another unit has to move first"
    DONE = "it has ended"


RUNNING, PARKED, BLOCKED, BUSY, DONE = Standing


@dataclass(slots=True, eq=False)
class Ticket:
    """A step that waits for its turn."""

    move: _dialects.Move
    wake: Callable[[], None]


@dataclass(slots=True, eq=False)
class Unit:
    """A unit in one schedule.

    Attributes:
        number: from 1.
        standing: where it is.
        tickets: the steps that wait for its turn; several, where it uses several connections at once.
        move: the step that it is taking.
        connections: those that it has, by the pool's record: the driver's, its number, and its place.
        value, frozen, error: what it returned, in a form that can be compared, or what it raised.
        given_up: it is not waited for any more.
        retry: the answer to a step that found SQLite busy.
    """

    number: int
    call: Callable[[], Any]
    standing: Standing = RUNNING
    tickets: list[Ticket] = field(default_factory=list)
    move: _dialects.Move | None = None
    since: float = 0.0
    steps: int = 0
    connections: dict[int, tuple[Any, int | None, Any]] = field(default_factory=dict)
    value: Any = None
    frozen: object = None
    error: BaseException | None = None
    given_up: bool = False
    retry: bool = False
    wake: Callable[[], None] | None = None
    thread: threading.Thread | None = None
    task: asyncio.Task[None] | None = None


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """End it."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop).result(5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self.loop.close()

    async def _wind_up(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=3.0)
        await self.loop.shutdown_asyncgens()
