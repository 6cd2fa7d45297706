"""Connecting within a limit. The drivers' own limits are whole seconds, at least two, and apply to each address."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn


def connect_within(dialect: Any, cargs: Any, cparams: Any, seconds: float) -> Any:
    """Return a new connection of the driver, or raise its OperationalError after that many seconds."""
    if dialect.is_async:
        return await_only(_async_connect_within(dialect, cargs, cparams, seconds))
    attempt = _InThread(partial(dialect.connect, *cargs, **cparams))
    return attempt.result(seconds, partial(_too_late, dialect))


class _InThread:
    """Connects in a thread of its own. The caller may give up waiting; a connection that arrives later is closed."""

    def __init__(self, connect: Any) -> None:
        self._connect = connect
        self._made: Any = None
        self._failed: BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        threading.Thread(target=self._run, name="sessionkit-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            made = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failed = error
        else:
            with self._lock:
                self._made = made
                if self._abandoned:
                    made.close()
        self._done.set()

    def result(self, seconds: float, too_late: Any) -> Any:
        try:
            self._done.wait(seconds)
        finally:  # also after an interrupt
            with self._lock:
                self._abandoned = self._made is None
        if self._failed is not None:
            raise self._failed
        if self._made is None:
            raise too_late()
        return self._made


async def _async_connect_within(dialect: Any, cargs: Any, cparams: Any, seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await greenlet_spawn(dialect.connect, *cargs, **cparams)
    except TimeoutError as error:
        if not limit.expired():
            raise  # a user's own limit, shorter than ours
        raise _too_late(dialect) from error


def _too_late(dialect: Any) -> Exception:
    error: Exception = dialect.loaded_dbapi.OperationalError(
        "the server had not accepted the connection when the time of the unit was over"
    )
    return error
