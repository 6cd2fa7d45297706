"""A time limit that holds even if a server hangs: when it is over, the connections are cut.

A hanging server, or a network that swallows everything, keeps a thread inside the driver for as long as TCP likes. Only
cutting the connection ends the wait: the waiting code then gets the driver's error for a lost connection.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import event

from ... import _dialects
from ...errors import UnexpectedRollback
from ..savepoints import connections
from .base import Feature

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy.engine import Connection, Engine

logger = logging.getLogger("sessionkit")

AGAIN = 0.1
"""The time from one cut to the next, in seconds: the first one may have found no connection yet."""


def earliest(unit: Any) -> float | None:
    """Return when a unit must be done, on the monotonic clock; not later than the units that wait for it."""
    own = None if unit.run is None else unit.run.deadline
    found = (deadline.ends for outer in unit.enclosing if (deadline := outer.feature(Deadline)) is not None)
    return min((each for each in (own, *found) if each is not None), default=None)


class Deadline(Feature):
    """Cuts the unit's connections when its time is over, and bounds connecting and waiting for locks by it."""

    def __init__(self, unit: Any, ends: float) -> None:
        super().__init__(unit)
        self.ends = ends
        self._before = _dialects.deadline.get()
        _dialects.deadline.set(ends)
        transaction = unit.transaction
        self._watchdog = Watchdog(ends - time.monotonic(), lambda: connections(transaction), unit.asynchronous)
        self._watchdog.__enter__()

    def refused(self) -> None:
        self.ending()

    def route(self, bind: Any) -> Any:
        bound_connecting(bind.engine)
        return bind

    def permitted(self, held: list[Connection]) -> None:
        if self._watchdog.fired:
            raise UnexpectedRollback(f"nothing of {self.unit} was committed: its body ended after its time was over")

    def ending(self) -> None:
        self._watchdog.__exit__(None, None, None)
        _dialects.deadline.set(self._before)

    def publish(self) -> None:
        if _dialects.deadline.get() == self.ends:  # the context that entered the scope may not be the one that ended it
            _dialects.deadline.set(self._before)


class CommitTimeout(Feature):
    """Cuts the connections if COMMIT takes too long."""

    _watchdog: Watchdog | None = None

    def permitted(self, held: list[Connection]) -> None:
        seconds = self.unit.request.commit_timeout
        for connection in held:
            _dialects.of(connection).bound_commit(connection, seconds)
        self._watchdog = Watchdog(seconds, lambda: held, self.unit.asynchronous)
        self._watchdog.__enter__()

    def ending(self) -> None:
        if self._watchdog is not None:
            self._watchdog.__exit__(None, None, None)


class Watchdog:
    """Cuts connections after `seconds`, and later ones too, until it is left. None: never.

    Args:
        seconds: the time, counted from entering.
        held: returns the connections to cut when the time is over.
        asynchronous: wait in the event loop, not in a thread.
    """

    __slots__ = ("_asynchronous", "_held", "_left", "_lock", "_seconds", "_timer", "fired")

    def __init__(self, seconds: float | None, held: Callable[[], list[Connection]], asynchronous: bool) -> None:
        self._seconds = seconds
        self._held = held
        self._asynchronous = asynchronous
        self._timer: asyncio.TimerHandle | None = None
        self._left = threading.Event()
        self._lock = threading.Lock()
        self.fired = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            seconds = max(0.0, self._seconds)
            if self._asynchronous:
                self._timer = asyncio.get_running_loop().call_later(seconds, self._bark)
            else:
                threading.Thread(target=self._wait, args=(seconds,), name="sessionkit-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:  # a connection on its way back to the pool must not be cut for its next user
            self._left.set()
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        while not self._left.wait(seconds):
            self._fire()
            seconds = AGAIN

    def _bark(self) -> None:
        if not self._left.is_set():
            self._fire()
            self._timer = asyncio.get_running_loop().call_later(AGAIN, self._bark)

    def _fire(self) -> None:
        with self._lock:
            if self._left.is_set():
                return
            self.fired = True
            try:
                for connection in self._held():
                    if not connection.invalidated and not connection.closed:
                        _dialects.of(connection).cut(connection)
            except Exception:
                # It was lost or given back at the same moment; if anything is left, the next round cuts it.
                logger.debug("cutting a connection failed", exc_info=True)


def bound_connecting(engine: Engine) -> None:
    """Stop units with a deadline from waiting for a connection beyond it."""
    root = _dialects.root_of(engine)
    if not event.contains(root, "do_connect", _connect):
        event.listen(root, "do_connect", _connect)


def _connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
    ends = _dialects.deadline.get()
    connect_within = _dialects.of_name(dialect.name).connect_within
    if ends is None or connect_within is None:
        return None
    # SQLAlchemy stops at the first listener that returns a connection, so let the user's listeners after us answer first.
    after_us = False
    for listener in dialect.dispatch.do_connect:
        if after_us:
            connection = listener(dialect, record, cargs, cparams)
            if connection is not None:
                return connection
        after_us = after_us or listener is _connect
    return connect_within(dialect, cargs, cparams, max(0.0, ends - time.monotonic()))
