"""What SQLite keeps of a statement that was interrupted or cancelled, and how it lets go of it.

A connection that is closed while a statement of it is alive lives on with that statement, and so do its transaction and its
lock (https://www.sqlite.org/c3ref/close.html, "zombie"). The cursor of a cancelled statement is alive for as long as somebody
holds the error, whose traceback holds the frames; and on aiosqlite the statement itself goes on in the driver's thread, where
a BEGIN IMMEDIATE may yet get the lock.
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
    """Return a connection of an async engine; a cancellation cuts that, but not what SQLAlchemy does about it."""
    pool: Any = engine.pool
    if isinstance(pool, StaticPool):
        return engine.connect()  # to wait here would let another unit in, whose connection is the same
    if pool not in _gaps and isinstance(pool, QueuePool) and pool.checkedin() and not pool._pre_ping:
        return engine.connect()  # nothing is awaited
    return await_only(_connect(engine))


async def _connect(engine: Engine) -> Connection:
    # A connection whose closing is cancelled leaves a task of SQLAlchemy's that waits for a thread that is gone.
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
"""The pools that may hold places without a connection, and after how many checkouts none of them is left."""


def gap(pool: Pool) -> None:
    """Take note that a connection of a pool was closed: its place goes back to the pool, and is filled when it is next used."""
    if isinstance(pool, QueuePool):
        _gaps[pool] = pool.size()


def interrupted(dbapi_connection: Any, error: BaseException, cursor: Any) -> None:
    """Take back what a connection has done and close it, once its thread is through with what was cancelled."""
    driver = getattr(dbapi_connection, "_connection", None)
    if driver is None:
        _take_back(dbapi_connection, cursor)
    elif in_greenlet() and not isinstance(error, GeneratorExit):  # a coroutine that is being closed cannot wait
        # Not to be cut by another cancellation: the task that SQLAlchemy has for the close would then wait for ever.
        with suppress(asyncio.CancelledError):
            await_only(to_completion(_take_back_and_close(driver, _inner(cursor, error))))


def _take_back(connection: Any, cursor: Any) -> None:
    with suppress(Exception):
        if cursor is not None:
            cursor.close()
    with suppress(Exception):
        connection.rollback()


async def _take_back_and_close(driver: Any, cursor: Any) -> None:
    with suppress(Exception):
        await driver._execute(_take_back, driver._conn, cursor)
    with suppress(Exception):
        await driver.close()


def _inner(cursor: Any, error: BaseException) -> Any:
    """Return sqlite3's cursor inside aiosqlite's inside SQLAlchemy's."""
    found = getattr(cursor, "_cursor", None)
    traceback = error.__traceback__
    while found is None and traceback is not None:
        # SQLAlchemy 2.0 keeps it in a local variable.
        if traceback.tb_frame.f_globals.get("__name__") == "sqlalchemy.dialects.sqlite.aiosqlite":
            found = traceback.tb_frame.f_locals.get("_cursor")
        traceback = traceback.tb_next
    return getattr(found, "_cursor", None)
