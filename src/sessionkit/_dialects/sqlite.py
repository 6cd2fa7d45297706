"""SQLite: pysqlite and aiosqlite.

The driver's default mode begins no transaction before a SELECT, a SAVEPOINT or DDL, so that reads are not
repeatable and a released savepoint survives the rollback of what encloses it (see
https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation / Savepoints"). A scope therefore
says BEGIN itself: IMMEDIATE, since a deferred transaction that reads and then writes fails with
SQLITE_BUSY_SNAPSHOT without waiting (https://www.sqlite.org/isolation.html).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..errors import OptionError, ScopeError
from . import _template
from ._base import LEVELS, Asked, Dialect, all_of, deadline, refuse, root_of
from ._bulk_sqlite import BULK
from ._sqlite_config import Config, autocommit_of, config_of, configs, set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Connection, Engine

__all__ = ["DIALECT", "Config", "config_of", "configure"]

_OPTION = "sessionkit_sqlite"
_UNDO = "sessionkit_undo"
_UNDO_AT_END = "sessionkit_undo_at_end"
_SEEN = "sessionkit_seen"
_COMMITTING = "sessionkit_committing"
_listening: WeakSet[Engine] = WeakSet()
_undoing: WeakSet[Engine] = WeakSet()


def configure(engine: Engine, config: Config) -> None:
    """Set an engine up, or change how it was: new connections, and idle ones when they are next used."""
    root = root_of(engine)
    if root not in configs:
        event.listen(root, "checkout", lambda connection, record, _: set_up(configs[root], connection, record))
    configs[root] = config
    _listen(root)


class _Wanted(NamedTuple):
    """What the transactions of an engine for scopes begin with."""

    query_only: bool
    lock_timeout: float | None
    statement_timeout: float | None


def _listen(root: Engine) -> None:
    if root not in _listening:
        _listening.add(root)
        # After the listeners of the user's, one of which may say BEGIN.
        event.listen(root, "begin", _begin)
        event.listen(root, "checkin", _checkin)


def _engine_for(engine: Engine, asked: Asked) -> Engine:
    refuse("SQLite", asked, "idle_timeout")
    root = root_of(engine)
    _listen(root)
    if root not in _undoing:
        _undoing.add(root)
        event.listen(root, "commit", _before_commit)
        event.listen(root, "rollback", _before_end)
    wanted = _Wanted(bool(asked.read_only), asked.lock_timeout, asked.statement_timeout)
    derived = engine.execution_options(**{_OPTION: wanted})
    # Listeners of the derived engine come before those of the engine that it is derived from.
    event.listen(derived, "begin", _look)
    if wanted.statement_timeout is not None:
        event.listen(derived, "before_cursor_execute", _start_of_statement)
    return derived


class _Seen(NamedTuple):
    """How a scope found its connection."""

    in_transaction: bool
    changes: int


def _look(connection: Connection) -> None:
    pooled = connection.connection
    driver: Any = pooled.driver_connection
    pooled.info[_SEEN] = _Seen(driver.in_transaction, driver.total_changes)


def _begin(connection: Connection) -> None:
    wanted: _Wanted | None = connection.get_execution_options().get(_OPTION)
    if wanted is not None:
        _begin_scope(connection, wanted)
    elif (config := configs.get(root_of(connection.engine))) is not None:
        _begin_configured(connection, config)


def _takes_lock(engine: Engine, wanted: _Wanted) -> bool:
    # Asked for each transaction: the engine may be configured anew after its first scope.
    config = config_of(engine)
    return not wanted.query_only and (config is None or config.begin == "immediate")


def _begin_scope(connection: Connection, wanted: _Wanted) -> None:
    pooled = connection.connection
    seen: _Seen = pooled.info[_SEEN]
    driver: Any = pooled.driver_connection
    autocommit = autocommit_of(pooled.info, driver)
    if autocommit is True:
        raise OptionError(
            f"a scope was opened on {connection.engine!r}, whose driver commits each statement by itself and ignores "
            "commit() and rollback(); leave autocommit=True out of connect_args"
        )
    if seen.in_transaction and autocommit is not False:
        raise ScopeError(
            f"a scope was opened on {connection.engine!r}, whose one connection is in a transaction of somebody else's "
            "at this moment, and would be committed or rolled back with it; end that first, or use a database file"
        )
    begun = driver.in_transaction
    # sqlite3.connect(autocommit=False), Python 3.12: the driver always keeps a deferred transaction open. And a
    # listener of the user's may have said BEGIN, as SQLAlchemy's documentation has it: with nothing written yet that
    # holds no lock, and two writers could not queue for it.
    immediate = _takes_lock(connection.engine, wanted)
    if begun and (autocommit is False or (immediate and driver.total_changes == seen.changes)):
        _say(connection, driver, "ROLLBACK")
        begun = False
    if wanted.lock_timeout is not None or wanted.statement_timeout is not None or deadline.get() is not None:
        _limit_waiting(connection, driver, wanted)
    if wanted.query_only:
        _undo_at_end(connection, "PRAGMA query_only=OFF")
        _say(connection, driver, "PRAGMA query_only=ON")
    if wanted.statement_timeout is not None:
        _set_progress_handler(connection, driver, _Deadline(wanted.statement_timeout))
    if not begun:
        _say(connection, driver, "BEGIN IMMEDIATE" if immediate else "BEGIN")


def _begin_configured(connection: Connection, config: Config) -> None:
    """Begin outside of scopes."""
    level = connection.get_execution_options().get("isolation_level")
    level = level or getattr(connection.dialect, "_on_connect_isolation_level", None)
    driver: Any = connection.connection.driver_connection
    autocommit = autocommit_of(connection.connection.info, driver)
    if autocommit is True or str(level).upper() == "AUTOCOMMIT":
        return
    if autocommit is False:
        _say(connection, driver, "ROLLBACK")
    elif driver.in_transaction:
        return  # a listener of the user's has begun it
    _say(connection, driver, "BEGIN" if config.begin == "deferred" else "BEGIN IMMEDIATE")


def _say(connection: Connection, driver: Any, statement: str) -> Any:
    # Straight to the driver: SQLAlchemy's execution of a string costs 20 us and, on aiosqlite, two more thread
    # switches.
    try:
        if connection.dialect.is_async:
            return await_only(driver.execute(statement))
        return driver.execute(statement)
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(
            statement, None, error, connection.dialect.loaded_dbapi.Error, dialect=connection.dialect
        ) from error


def _first_value(connection: Connection, driver: Any, statement: str) -> Any:
    cursor = _say(connection, driver, statement)
    row = await_only(cursor.fetchone()) if connection.dialect.is_async else cursor.fetchone()
    return row[0]


def _undo_later(connection: Connection, undo: str) -> None:
    """Have the connection say `undo` when the pool gets it back."""
    connection.connection.info.setdefault(_UNDO, []).append(undo)


def _undo_at_end(connection: Connection, undo: str | Callable[[Any], None]) -> None:
    """Have `undo` done before COMMIT or ROLLBACK: the one connection of an in-memory database may go back much later."""
    connection.connection.info.setdefault(_UNDO_AT_END, []).append(undo)


def _before_commit(connection: Connection) -> None:
    # Not for a COMMIT that is refused: whoever refuses it was there before us.
    connection.connection.info[_COMMITTING] = True
    _before_end(connection)


def _before_end(connection: Connection) -> None:
    if not connection.invalidated:
        pooled = connection.connection
        _undo(pooled.dbapi_connection, pooled.info.pop(_UNDO_AT_END, ()))


def _checkin(dbapi_connection: Any, record: Any) -> None:
    undo = [*record.info.pop(_UNDO, ()), *record.info.pop(_UNDO_AT_END, ())]
    committing = record.info.pop(_COMMITTING, False)
    if dbapi_connection is None:
        return
    # A COMMIT that had to wait for a reader too long has failed and left the transaction open. SQLAlchemy takes it for
    # ended and does not roll it back: it would be committed with the next one, or keep its lock.
    if committing and getattr(dbapi_connection, "driver_connection", dbapi_connection).in_transaction:
        dbapi_connection.rollback()
    _undo(dbapi_connection, undo)


def _undo(dbapi_connection: Any, steps: Sequence[str | Callable[[Any], None]]) -> None:
    for step in reversed(steps):
        if callable(step):
            step(dbapi_connection)
        else:
            cursor = dbapi_connection.cursor()
            cursor.execute(step)
            cursor.close()


def _limit_waiting(connection: Connection, driver: Any, wanted: _Wanted) -> None:
    # SQLite does not look at the progress handler while it waits for a lock, and that is a part of the statement too.
    before = int(_first_value(connection, driver, "PRAGMA busy_timeout"))
    waiting = before if wanted.lock_timeout is None else round(wanted.lock_timeout * 1000)
    if wanted.statement_timeout is not None:
        waiting = min(waiting, round(wanted.statement_timeout * 1000))
    if (ends := deadline.get()) is not None:
        waiting = min(waiting, max(0, round((ends - time.monotonic()) * 1000)))
    if waiting != before:
        _undo_later(connection, f"PRAGMA busy_timeout={before}")
        _say(connection, driver, f"PRAGMA busy_timeout={waiting}")


class _Deadline:
    """The progress handler of one transaction: SQLite calls it as it works, and stops when it answers 1."""

    __slots__ = ("_ends", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = float("inf")

    def start(self) -> None:
        """Begin to count: a statement starts."""
        self._ends = time.monotonic() + self._seconds

    def __call__(self) -> int:
        return time.monotonic() > self._ends


_INSTRUCTIONS = 1000  # of SQLite's virtual machine between two calls: some 10 us
_DEADLINE = "sessionkit_deadline"


def _set_progress_handler(connection: Connection, driver: Any, deadline: _Deadline) -> None:
    connection.connection.info[_DEADLINE] = deadline
    _undo_at_end(connection, _clear_progress_handler)
    _progress_handler(connection.dialect.is_async, driver, deadline)


def _clear_progress_handler(dbapi_connection: Any) -> None:
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    _progress_handler(driver is not dbapi_connection, driver, None)


def _progress_handler(asynchronous: bool, driver: Any, handler: _Deadline | None) -> None:
    result = driver.set_progress_handler(handler, _INSTRUCTIONS if handler is not None else 0)
    if asynchronous:
        await_only(result)


def _start_of_statement(connection: Connection, *_: Any) -> None:
    # A listener of the user's may say BEGIN before the transaction has its limit.
    if (limit := connection.connection.info.get(_DEADLINE)) is not None:
        limit.start()


def _lost(connection: Connection, driver_connection: Any) -> str | None:
    if connection.get_execution_options().get(_OPTION) and getattr(driver_connection, "in_transaction", True) is False:
        return "SQLite has ended the transaction by itself, as it does when the disk is full or on ON CONFLICT ROLLBACK"
    return None


def _restrict(connection: Connection) -> None:
    _say(connection, connection.connection.driver_connection, "PRAGMA query_only=ON")


def _cut(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    # aiosqlite's own interrupt() is to be awaited; the sqlite3 connection inside has one for other threads to call.
    getattr(driver, "_conn", driver).interrupt()


def _bound_commit(connection: Connection, seconds: float | None) -> None:
    # A COMMIT waits for readers (in rollback journal mode), and SQLite does not look at interrupt() meanwhile.
    if seconds is not None:
        driver = connection.connection.driver_connection
        before = _first_value(connection, driver, "PRAGMA busy_timeout")
        if int(before) > seconds * 1000:
            _undo_later(connection, f"PRAGMA busy_timeout={int(before)}")
            _say(connection, driver, f"PRAGMA busy_timeout={round(seconds * 1000)}")


def _lift(connection: Connection) -> None:
    _say(connection, connection.connection.driver_connection, "PRAGMA query_only=OFF")


def _conflict(held: Connection, wanted: Engine, asked: Asked) -> str | None:
    if held.engine.pool is wanted.pool and type(wanted.pool).__name__ in ("SingletonThreadPool", "StaticPool"):
        return "this database has one connection only, and the transaction around already uses it"
    ours, theirs = held.engine.url.database, wanted.url.database
    if not ours or not theirs or os.path.realpath(ours) != os.path.realpath(theirs):
        return None
    options: _Wanted | None = held.get_execution_options().get(_OPTION)
    if options is None or asked.read_only or held.closed or held.invalidated:
        return None
    driver: Any = held.connection.driver_connection
    if _takes_lock(held.engine, options) or driver.total_changes != held.connection.info[_SEEN].changes:
        return (
            "the transaction around holds SQLite's write lock on the same file, so this one could only wait for itself"
        )
    # Within check_options() of an async scope nobody can be asked; then it is asked at the first statement.
    if (not held.dialect.is_async or in_greenlet()) and _first_value(held, driver, "PRAGMA journal_mode") != "wal":
        return (
            "the transaction around reads the same file, whose journal_mode is not WAL, so the COMMIT of this one could "
            "only wait for itself (sqlite.configure() switches to WAL)"
        )
    return None


def _now(connection: Connection) -> datetime:
    # SQLite runs in this process: its clock is the process's, and only its own reading of it stops at milliseconds.
    return datetime.now(UTC)


# A timestamp is text here, as SQLAlchemy's DateTime writes it, and sorts as text. What SQLite adds to a time it
# rounds to milliseconds (https://www.sqlite.org/lang_datefunc.html), so the microsecond is added to the digits.
_LATER = (
    "max(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000', CASE WHEN substr({column}, 21) = '999999' "
    "THEN strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19), '+1 second') || '.000000' "
    "ELSE substr({column}, 1, 20) || substr('00000' || (substr({column}, 21) + 1), -6) END)"
)


def _check_deferred(connection: Connection) -> None:
    # A constraint that is not deferred has been checked, so what is found now was put off.
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
            raise OptionError(f"{code!r} is no error of SQLite; it is a name such as 'SQLITE_BUSY'")
        error.sqlite_errorcode, error.sqlite_errorname = number, code
    return cast("Exception", error)


DIALECT = Dialect(
    "sqlite",
    # One writer at a time, readers on a snapshot: everything is serializable, once there is a real BEGIN.
    levels=dict.fromkeys(LEVELS, "SERIALIZABLE"),
    anomalies={"SERIALIZABLE": all_of()},
    default_level="SERIALIZABLE",
    engine_for=_engine_for,
    lost=_lost,
    restrict=_restrict,
    lift=_lift,
    insert_or_wait=lambda table: insert(table).on_conflict_do_nothing(),
    cut=_cut,
    bound_commit=_bound_commit,
    bulk=BULK,
    conflict=_conflict,
    now=_now,
    later=_LATER,
    new_uuid="lower(hex(randomblob(16)))",
    template=_template.SQLITE,
    in_transaction=lambda connection: bool(getattr(connection.connection.driver_connection, "in_transaction", True)),
    check_deferred=_check_deferred,
    with_code=_with_code,
)
