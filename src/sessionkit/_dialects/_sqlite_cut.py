"""What SQLite keeps of a statement that was interrupted or cancelled, and how to make it let go.

A connection that is closed while one of its statements is alive lives on with that statement, and so do its transaction and
its lock (https://www.sqlite.org/c3ref/close.html, "zombie"). The cursor of a cancelled statement lives as long as anything
holds the error, whose traceback holds the frames. And on aiosqlite the statement itself goes on in the driver's thread, where
a BEGIN IMMEDIATE may still get the lock.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from .._bridge import cut_once, to_completion

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.pool import Pool


def connect(engine: Engine) -> Connection:
    """Return a connection of an async engine. A cancellation cuts the connecting, but not SQLAlchemy's clean-up of it."""
    pool: Any = engine.pool
    if isinstance(pool, StaticPool):
        return engine.connect()  # waiting here would let another unit in, which would get the same connection
    if pool not in _gaps and isinstance(pool, QueuePool) and pool.checkedin() and not pool._pre_ping:
        return engine.connect()  # nothing is awaited
    return await_only(_connect(engine))


async def _connect(engine: Engine) -> Connection:
    # If closing a connection is cancelled, SQLAlchemy leaves a task behind that waits for a thread that has ended.
    try:
        connection, cancelled = await cut_once(greenlet_spawn(engine.connect))
    except BaseException:
        gap(engine.pool)
        raise
    if cancelled is not None:
        try:
            with suppress(Exception):
                await to_completion(greenlet_spawn(connection.close))
            raise cancelled
        finally:
            del cancelled
    left = _gaps.pop(engine.pool, 0) - 1
    if left > 0:
        _gaps[engine.pool] = left
    return connection


_gaps: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
"""The pools that may have empty places, and after how many checkouts all of them are filled."""


def gap(pool: Pool) -> None:
    """Note that a connection of a pool was closed: its place goes back to the pool empty, and is filled at its next use."""
    if isinstance(pool, QueuePool):
        _gaps[pool] = pool.size()


def interrupted(dbapi_connection: Any, error: BaseException, cursor: Any) -> None:
    """Roll back and close a connection, after its thread has finished with the cancelled statement."""
    driver = getattr(dbapi_connection, "_connection", None)
    if driver is None:
        _roll_back(dbapi_connection, cursor)
    elif in_greenlet() and not isinstance(error, GeneratorExit):  # a coroutine that is being closed cannot wait
        # Another cancellation must not cut this: SQLAlchemy's task for closing would then wait for ever.
        with suppress(asyncio.CancelledError):
            await_only(to_completion(_roll_back_and_close(driver, _inner(cursor, error))))


def _roll_back(connection: Any, cursor: Any) -> None:
    with suppress(Exception):
        if cursor is not None:
            cursor.close()
    with suppress(Exception):
        connection.rollback()


async def _roll_back_and_close(driver: Any, cursor: Any) -> None:
    with suppress(Exception):
        await driver._execute(_roll_back, driver._conn, cursor)
    with suppress(Exception):
        await driver.close()


def _inner(cursor: Any, error: BaseException) -> Any:
    """Return sqlite3's cursor, which is inside aiosqlite's, which is inside SQLAlchemy's."""
    found = getattr(cursor, "_cursor", None)
    traceback = error.__traceback__
    while found is None and traceback is not None:
        # SQLAlchemy 2.0 keeps it in a local variable.
        if traceback.tb_frame.f_globals.get("__name__") == "sqlalchemy.dialects.sqlite.aiosqlite":
            found = traceback.tb_frame.f_locals.get("_cursor")
        traceback = traceback.tb_next
    return getattr(found, "_cursor", None)
