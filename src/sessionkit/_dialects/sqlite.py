"""SQLite: pysqlite and aiosqlite.

In its default mode the driver begins no transaction before a SELECT, a SAVEPOINT or DDL, so reads are not repeatable, and a
released savepoint survives the rollback of the transaction around it (see
https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation / Savepoints"). So a scope sends BEGIN
itself. It is BEGIN IMMEDIATE, because a deferred transaction that reads and then writes fails with SQLITE_BUSY_SNAPSHOT
without waiting (https://www.sqlite.org/isolation.html).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import SingletonThreadPool, StaticPool
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..errors import OptionError
from . import _template
from ._base import (
    LEVELS,
    Asked,
    Beginning,
    Dialect,
    all_of,
    deadline,
    is_autocommit,
    refuse,
    root_of,
    undo_at_checkin,
    undo_at_end,
)
from ._bulk_sqlite import BULK
from ._locks import Locks
from ._once_sqlite import ONCE
from ._sqlite_config import Config, autocommit_of, config_of, configs, refuse_older, set_up
from ._sqlite_cut import connect, gap, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

    from ._races import Raced

__all__ = ["DIALECT", "Config", "config_of", "configure"]

_WANTED = "wanted"
_CHANGES = "changes"
_WHOLE = "sessionkit_whole"
_IMMEDIATE = "sessionkit_immediate"


def configure(engine: Engine, config: Config) -> None:
    """Configure an engine, or change its settings: for new connections, and for idle ones when they are next used."""
    refuse_older(engine)
    root = root_of(engine)
    if root not in configs:
        event.listen(root, "checkout", lambda connection, record, _: set_up(configs[root], connection, record))
        # After the user's listeners, because one of them may send BEGIN.
        event.listen(root, "begin", _begin_configured)
    configs[root] = config


class _Wanted(NamedTuple):
    """The settings with which the transactions of scopes begin."""

    query_only: bool
    lock_timeout: float | None
    statement_timeout: float | None


def _beginning(engine: Engine, asked: Asked) -> Beginning:
    refuse_older(engine)
    refuse("SQLite", asked, "idle_timeout")
    wanted = _Wanted(bool(asked.read_only), asked.lock_timeout, asked.statement_timeout)
    if wanted == _NOTHING:
        return _PLAIN
    return Beginning(DIALECT, _look, partial(_begin, wanted))


def _driver(connection: Any) -> Any:
    """Return the driver's connection, without the calls that SQLAlchemy's properties would cost."""
    adapted = connection._dbapi_connection.dbapi_connection
    return getattr(adapted, "_connection", adapted)


def _look(connection: Any) -> None:
    """Check the state of the connection before the user's listeners run, because one of them may send BEGIN."""
    driver = _driver(connection)
    if driver.in_transaction and autocommit_of(connection.connection.info, driver) is not False:
        # A COMMIT by an earlier user of the connection was BUSY and left the transaction open. SQLAlchemy does not know
        # about it, and would commit it with ours. (A transaction that is open on a pool's only connection is refused
        # earlier.)
        _say(connection, driver, "ROLLBACK")
    connection.notes[_CHANGES] = driver.total_changes


def _takes_lock(engine: Engine, wanted: _Wanted) -> bool:
    # Asked for each transaction, because the engine may be configured again after its first scope.
    return not wanted.query_only and (
        not configs or (config := config_of(engine)) is None or config.begin == "immediate"
    )


def _begin(wanted: _Wanted, connection: Any, begin: Callable[[Any, Any], None] | None = None) -> None:
    driver = _driver(connection)
    # Only aiosqlite's own thread may ask this, so the answer is kept with the connection.
    autocommit = (
        autocommit_of(connection.connection.info, driver)
        if connection.dialect.is_async
        else getattr(driver, "autocommit", None)
    )
    if autocommit is True:
        raise OptionError(
            f"a scope was opened on {connection.engine!r}, whose driver commits each statement on its own and ignores "
            "commit() and rollback(); leave autocommit=True out of connect_args"
        )
    connection.notes[_WANTED] = wanted
    begun = driver.in_transaction
    # sqlite3.connect(autocommit=False), Python 3.12: the driver always keeps a deferred transaction open. Or a user's
    # listener has sent BEGIN, as SQLAlchemy's documentation recommends: before the first write that holds no lock, and two
    # writers could not queue for it.
    immediate = _takes_lock(connection.engine, wanted)
    if begun and (autocommit is False or (immediate and driver.total_changes == connection.notes[_CHANGES])):
        _say(connection, driver, "ROLLBACK")
        begun = False
    if wanted is not _NOTHING or deadline.get() is not None:
        _set_limits(connection, driver, wanted)
    if not begun:
        if immediate and begin is not None:
            begin(connection, driver)
        else:
            _say(connection, driver, "BEGIN IMMEDIATE" if immediate else "BEGIN")
    connection.notes[_IMMEDIATE] = immediate
    if isinstance(connection.engine.pool, StaticPool | SingletonThreadPool) and connection.unit is not None:
        # Others get this connection too, and giving it back rolls it back: a savepoint shows at the end whether it is still
        # the same transaction.
        _say(connection, driver, f"SAVEPOINT {_WHOLE}")
        connection.notes[_WHOLE] = True


def _set_limits(connection: Any, driver: Any, wanted: _Wanted) -> None:
    if wanted.lock_timeout is not None or wanted.statement_timeout is not None or deadline.get() is not None:
        _limit_waiting(connection, driver, wanted)
    if wanted.query_only:
        undo_at_end(connection, partial(_execute, "PRAGMA query_only=OFF"))
        _say(connection, driver, "PRAGMA query_only=ON")
    if wanted.statement_timeout is not None:
        limit = _Deadline(wanted.statement_timeout)
        undo_at_end(connection, _clear_progress_handler)
        _progress_handler(connection.dialect.is_async, driver, limit)
        event.listen(connection, "before_cursor_execute", lambda *_: limit.start())
        limit.start()


def _begin_configured(connection: Connection) -> None:
    """Begin a transaction outside of scopes."""
    config = config_of(connection.engine)
    if config is None or getattr(connection, "beginning", None) is not None or is_autocommit(connection):
        return
    driver: Any = connection.connection.driver_connection
    info = connection.connection.info
    info[_IMMEDIATE] = False
    autocommit = autocommit_of(info, driver)
    if autocommit is True:
        return
    if autocommit is False:
        _say(connection, driver, "ROLLBACK")
    elif driver.in_transaction:
        return  # a user's listener has begun it
    _say(connection, driver, "BEGIN" if config.begin == "deferred" else "BEGIN IMMEDIATE")
    info[_IMMEDIATE] = config.begin == "immediate"


def _not_locked(connection: Any) -> str | None:
    """Return why a connection's transaction may not be the only writer; None if it holds the write lock."""
    begun_by_scope = getattr(connection, "beginning", None) is not None
    if (connection.notes if begun_by_scope else connection.connection.info).get(_IMMEDIATE, False):
        return None
    return (
        "SQLite does not lock rows; only BEGIN IMMEDIATE stops others from writing, and this transaction did not begin with "
        "it; open a scope that writes, or set the engine up with sqlite.configure(engine)"
    )


def _beginning_with_mutex(engine: Engine, asked: Asked, wait: float | None) -> Beginning:
    """Return how a transaction begins whose BEGIN IMMEDIATE waits as long as the mutex allows."""
    refuse("SQLite", asked, "idle_timeout")
    wanted = _Wanted(bool(asked.read_only), asked.lock_timeout, asked.statement_timeout)

    def begin(connection: Any, driver: Any) -> None:
        before = int(_first_value(connection, driver, "PRAGMA busy_timeout"))
        _say(connection, driver, f"PRAGMA busy_timeout={before if wait is None else round(wait * 1000)}")
        try:
            _say(connection, driver, "BEGIN IMMEDIATE")
        finally:
            if not connection.invalidated:
                _say(connection, driver, f"PRAGMA busy_timeout={before}")

    return Beginning(DIALECT, _look, partial(_begin, wanted, begin=begin))


def _say(connection: Any, driver: Any, statement: str) -> Any:
    # Straight to the driver: executing a string through SQLAlchemy costs 20 us and, on aiosqlite, two more thread switches.
    try:
        if connection.dialect.is_async:
            return await_only(driver.execute(statement))
        return driver.execute(statement)
    except BaseException as error:
        # An interrupted statement may still run in the driver's thread and hold a lock, so the connection must not go back
        # to the pool: SQLAlchemy invalidates it.
        connection._handle_dbapi_exception(error, statement, None, None, None)
        raise


def _first_value(connection: Connection, driver: Any, statement: str) -> Any:
    cursor = _say(connection, driver, statement)
    row = await_only(cursor.fetchone()) if connection.dialect.is_async else cursor.fetchone()
    return row[0]


def _execute(statement: str, dbapi_connection: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute(statement)
    cursor.close()


def _commit_failed(connection: Any) -> None:
    # A COMMIT that had to wait too long for a reader has failed and left the transaction open. SQLAlchemy believes that it
    # has ended and does not roll it back: it would be committed with the next one, or keep its lock.
    if connection._dbapi_connection is not None and _driver(connection).in_transaction:
        with suppress(Exception):
            connection._dbapi_connection.dbapi_connection.rollback()


def _interrupted(connection: Any, error: BaseException, cursor: Any) -> None:
    pooled = connection._dbapi_connection
    if pooled is not None and pooled.dbapi_connection is not None:
        gap(connection.engine.pool)
        interrupted(pooled.dbapi_connection, error, cursor)


def _limit_waiting(connection: Connection, driver: Any, wanted: _Wanted) -> None:
    # SQLite does not call the progress handler while it waits for a lock, but that wait is part of the statement too.
    before = int(_first_value(connection, driver, "PRAGMA busy_timeout"))
    waiting = before if wanted.lock_timeout is None else round(wanted.lock_timeout * 1000)
    if wanted.statement_timeout is not None:
        waiting = min(waiting, round(wanted.statement_timeout * 1000))
    if (ends := deadline.get()) is not None:
        waiting = min(waiting, max(0, round((ends - time.monotonic()) * 1000)))
    if waiting != before:
        undo_at_checkin(connection, partial(_execute, f"PRAGMA busy_timeout={before}"))
        _say(connection, driver, f"PRAGMA busy_timeout={waiting}")


class _Deadline:
    """The progress handler of one transaction: SQLite calls it while it works, and stops if it returns 1."""

    __slots__ = ("_ends", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = float("inf")

    def start(self) -> None:
        """Start the clock for a statement."""
        self._ends = time.monotonic() + self._seconds

    def __call__(self) -> int:
        return time.monotonic() > self._ends


_INSTRUCTIONS = 1000  # of SQLite's virtual machine between two calls: about 10 us


def _clear_progress_handler(dbapi_connection: Any) -> None:
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    _progress_handler(driver is not dbapi_connection, driver, None)


def _progress_handler(asynchronous: bool, driver: Any, handler: _Deadline | None) -> None:
    result = driver.set_progress_handler(handler, _INSTRUCTIONS if handler is not None else 0)
    if asynchronous:
        await_only(result)


def _lost(connection: Any) -> str | None:
    if _WANTED in connection.notes and _driver(connection).in_transaction is False:
        return "SQLite has ended the transaction itself, as it does when the disk is full or on ON CONFLICT ROLLBACK"
    if connection.notes.pop(_WHOLE, False) and connection.unit is not None:
        try:
            _say(connection, _driver(connection), f"RELEASE {_WHOLE}")
        except DBAPIError:
            return (
                "its transaction was ended by a connection or session that belongs to no scope: this database has only one "
                "connection, which everybody gets; use the scope's session, or a database file"
            )
    return None


def _restrict(connection: Connection) -> None:
    _say(connection, connection.connection.driver_connection, "PRAGMA query_only=ON")


def _cut(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    # aiosqlite's own interrupt() must be awaited; the sqlite3 connection inside has one that other threads may call.
    getattr(driver, "_conn", driver).interrupt()


def _bound_commit(connection: Connection, seconds: float | None) -> None:
    # A COMMIT waits for readers (in rollback journal mode), and meanwhile SQLite does not react to interrupt().
    if seconds is not None:
        driver = connection.connection.driver_connection
        before = _first_value(connection, driver, "PRAGMA busy_timeout")
        if int(before) > seconds * 1000:
            undo_at_checkin(connection, partial(_execute, f"PRAGMA busy_timeout={int(before)}"))
            _say(connection, driver, f"PRAGMA busy_timeout={round(seconds * 1000)}")


def _lift(connection: Connection) -> None:
    _say(connection, connection.connection.driver_connection, "PRAGMA query_only=OFF")


def _conflict(held: Any, wanted: Engine, asked: Asked) -> str | None:
    if held.engine.pool is wanted.pool and isinstance(wanted.pool, StaticPool | SingletonThreadPool):
        return "this database has only one connection, and the transaction around already uses it"
    ours, theirs = held.engine.url.database, wanted.url.database
    if not ours or not theirs or os.path.realpath(ours) != os.path.realpath(theirs):
        return None
    options: _Wanted | None = getattr(held, "notes", {}).get(_WANTED)
    if options is None or asked.read_only or held.closed or held.invalidated:
        return None
    driver: Any = held.connection.driver_connection
    if _takes_lock(held.engine, options) or driver.total_changes != held.notes[_CHANGES]:
        return (
            "the transaction around holds SQLite's write lock on the same file, so this one could only wait for itself"
        )
    # In an async scope that is only being checked, nothing can be awaited; then it is asked at the first statement.
    if (not held.dialect.is_async or in_greenlet()) and _first_value(held, driver, "PRAGMA journal_mode") != "wal":
        return (
            "the transaction around reads the same file, whose journal_mode is not WAL, so the COMMIT of this one could "
            "only wait for itself (sqlite.configure() switches to WAL)"
        )
    return None


def _now(connection: Connection) -> datetime:
    # SQLite runs in this process, so its clock is the process's; only SQLite's own reading of it ends at milliseconds.
    return datetime.now(UTC)


# A timestamp is text here, as SQLAlchemy's DateTime writes it, and sorts as text. When SQLite adds to a time it rounds to
# milliseconds (https://www.sqlite.org/lang_datefunc.html), so this adds the microsecond to the digits.
_LATER = (
    "max(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000', CASE WHEN substr({column}, 21) = '999999' "
    "THEN strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19), '+1 second') || '.000000' "
    "ELSE substr({column}, 1, 20) || substr('00000' || (substr({column}, 21) + 1), -6) END)"
)


def _check_deferred(connection: Connection) -> None:
    # Constraints that are not deferred have already been checked, so whatever is found now was deferred.
    driver = connection.connection.driver_connection
    if not _first_value(connection, driver, "PRAGMA foreign_keys"):
        return
    cursor = _say(connection, driver, "PRAGMA foreign_key_check")
    if (await_only(cursor.fetchone()) if connection.dialect.is_async else cursor.fetchone()) is not None:
        dbapi = connection.dialect.loaded_dbapi
        error = _with_code(dbapi.IntegrityError, "SQLITE_CONSTRAINT_FOREIGNKEY", "FOREIGN KEY constraint failed")
        raise DBAPIError.instance("COMMIT", None, error, dbapi.Error, dialect=connection.dialect)


def _with_code(base: type[Exception], code: str | None, message: str) -> Exception:
    import sqlite3

    error: Any = base(message)
    if code is not None:
        number = getattr(sqlite3, code, None)
        if not isinstance(number, int):
            raise OptionError(f"{code!r} is not a SQLite error; use a name such as 'SQLITE_BUSY'")
        error.sqlite_errorcode, error.sqlite_errorname = number, code
    return cast("Exception", error)


def _lives_in_memory(engine: Engine) -> bool:
    # In a forked process aiosqlite's thread is gone, memory or not.
    return not engine.dialect.is_async and engine.url.database in {None, "", ":memory:"}


def _raced() -> type[Raced]:
    from ._races_sqlite import RacedSqlite

    return RacedSqlite


DIALECT = Dialect(
    "sqlite",
    # One writer at a time, readers on a snapshot: everything is serializable, once there is a real BEGIN.
    levels=dict.fromkeys(LEVELS, "SERIALIZABLE"),
    anomalies={"SERIALIZABLE": all_of()},
    default_level="SERIALIZABLE",
    beginning=_beginning,
    lost=_lost,
    commit_failed=_commit_failed,
    interrupted=_interrupted,
    driver_in_transaction=lambda driver: bool(driver.in_transaction),
    lives_in_memory=_lives_in_memory,
    restrict=_restrict,
    lift=_lift,
    insert_or_wait=lambda table: insert(table).on_conflict_do_nothing(),
    cut=_cut,
    connect=connect,
    bound_commit=_bound_commit,
    bulk=BULK,
    once=ONCE,
    # One writer at a time: its BEGIN IMMEDIATE locks every row, and is the mutex.
    locks=Locks(refused=_not_locked, begins=True, beginning=_beginning_with_mutex),
    conflict=_conflict,
    settings_ignorable=True,
    now=_now,
    later=_LATER,
    new_uuid="lower(hex(randomblob(16)))",
    template=_template.SQLITE,
    raced=_raced,
    in_transaction=lambda connection: bool(getattr(connection.connection.driver_connection, "in_transaction", True)),
    check_deferred=_check_deferred,
    with_code=_with_code,
)

_NOTHING = _Wanted(False, None, None)
_PLAIN = Beginning(DIALECT, _look, partial(_begin, _NOTHING))
