"""A limit on time that nobody can outwait: when it is over, the connections are cut.

A server that hangs, or a network that swallows everything, keeps a thread inside the driver for as long as TCP likes.
What ends the wait is to cut the connection under it: whoever waits gets the driver's error of a lost connection.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Self

from . import _dialects

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy.engine import Connection

logger = logging.getLogger("sessionkit")


class Watchdog:
    """Cuts connections after `seconds`, unless it is left before. None: never.

    Args:
        seconds: from entering on.
        held: returns the connections to cut, when the time is over.
        asynchronous: wait in the event loop, not in a thread.
    """

    __slots__ = ("_asynchronous", "_held", "_lock", "_seconds", "_timer", "fired")

    def __init__(self, seconds: float | None, held: Callable[[], list[Connection]], asynchronous: bool) -> None:
        self._seconds = seconds
        self._held = held
        self._asynchronous = asynchronous
        self._timer: asyncio.TimerHandle | threading.Timer | None = None
        self._lock = threading.Lock()
        self.fired = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            seconds = max(0.0, self._seconds)
            if self._asynchronous:
                self._timer = asyncio.get_running_loop().call_later(seconds, self._fire)
            else:
                self._timer = threading.Timer(seconds, self._fire)
                self._timer.daemon = True
                self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:  # a connection that is on its way back to the pool must not be cut for its next user
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _fire(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            self.fired = True
            for connection in self._held():
                try:
                    if not connection.invalidated and not connection.closed:
                        _dialects.of(connection).cut(connection)
                except Exception:
                    # It was lost at the same moment, which is all that was wanted.
                    logger.debug("cutting a connection failed", exc_info=True)
