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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from ._base import LEVELS, Asked, Dialect, all_of, refuse
from ._bulk_sqlite import BULK

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

_OPTION = "sessionkit_sqlite"
_UNDO = "sessionkit_undo"
_listening: WeakSet[Engine] = WeakSet()
_timing: WeakSet[Engine] = WeakSet()


@dataclass(frozen=True, slots=True)
class Config:
    """How `sqlite.configure` has set an engine up."""

    wal: bool = True
    foreign_keys: bool = True
    busy_timeout: float = 5.0
    synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "NORMAL"
    begin: Literal["immediate", "deferred"] = "immediate"

    def pragmas(self) -> list[str]:
        """Return what a new connection is told, in this order: the busy timeout first, the others may have to wait."""
        return [
            f"PRAGMA busy_timeout={round(self.busy_timeout * 1000)}",
            f"PRAGMA foreign_keys={'ON' if self.foreign_keys else 'OFF'}",
            *(["PRAGMA journal_mode=WAL"] if self.wal else []),
            f"PRAGMA synchronous={self.synchronous}",
        ]


_configs: WeakKeyDictionary[Engine, Config] = WeakKeyDictionary()


def config_of(engine: Engine) -> Config | None:
    """Return how an engine was set up, if it was."""
    return _configs.get(engine)


def configure(engine: Engine, config: Config) -> None:
    """Set an engine up, or change how it was."""
    if engine not in _configs:
        event.listen(engine, "connect", lambda connection, _: _on_connect(engine, connection))
    _configs[engine] = config
    _listen(engine)


def _on_connect(engine: Engine, dbapi_connection: Any) -> None:
    # A driver that keeps a transaction open (autocommit=False, Python 3.12) would ignore the PRAGMAs in it.
    keeps_open = getattr(dbapi_connection, "autocommit", None) is False
    if keeps_open:
        dbapi_connection.autocommit = True
    cursor = dbapi_connection.cursor()
    try:
        for pragma in _configs[engine].pragmas():
            cursor.execute(pragma)
            cursor.fetchall()
    finally:
        cursor.close()
        if keeps_open:
            dbapi_connection.autocommit = False


class _Wanted(NamedTuple):
    """What the transactions of an engine for scopes begin with."""

    begin: str
    query_only: bool
    busy_timeout: float | None
    statement_timeout: float | None


def _listen(engine: Engine) -> None:
    if engine not in _listening:
        _listening.add(engine)
        event.listen(engine, "begin", _begin)
        event.listen(engine, "checkin", _checkin)


def _engine_for(engine: Engine, asked: Asked) -> Engine:
    refuse("SQLite", asked, "idle_timeout")
    _listen(engine)
    config = _configs.get(_root(engine))
    deferred = asked.read_only or (config is not None and config.begin == "deferred")
    if asked.statement_timeout is not None and engine not in _timing:
        _timing.add(engine)
        event.listen(engine, "before_cursor_execute", _start_of_statement)
    wanted = _Wanted(
        "BEGIN" if deferred else "BEGIN IMMEDIATE", bool(asked.read_only), asked.lock_timeout, asked.statement_timeout
    )
    return engine.execution_options(**{_OPTION: wanted})


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") == "AUTOCOMMIT":
        return
    wanted: _Wanted | None = options.get(_OPTION)
    if wanted is None:
        config = _configs.get(_root(connection.engine))
        if config is None:
            return
        wanted = _Wanted("BEGIN" if config.begin == "deferred" else "BEGIN IMMEDIATE", False, None, None)
    driver = connection.connection.driver_connection
    if getattr(driver, "autocommit", None) is False:
        # sqlite3.connect(autocommit=False), Python 3.12: the driver always keeps a deferred transaction open.
        _say(connection, driver, "ROLLBACK")
    elif getattr(driver, "in_transaction", False):
        return  # a listener of the user's has begun it
    if wanted.busy_timeout is not None:
        _set_busy_timeout(connection, driver, wanted.busy_timeout)
    if wanted.query_only:
        _undo_later(connection, "PRAGMA query_only=OFF")
        _say(connection, driver, "PRAGMA query_only=ON")
    if wanted.statement_timeout is not None:
        _set_progress_handler(connection, driver, _Deadline(wanted.statement_timeout))
    _say(connection, driver, wanted.begin)


def _root(engine: Engine) -> Engine:
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine


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


def _undo_later(connection: Connection, undo: str | Callable[[Any], None]) -> None:
    connection.connection.info.setdefault(_UNDO, []).append(undo)


def _checkin(dbapi_connection: Any, record: Any) -> None:
    undo = record.info.pop(_UNDO, None)
    if undo is None or dbapi_connection is None:
        return
    for step in reversed(undo):
        if callable(step):
            step(dbapi_connection)
        else:
            cursor = dbapi_connection.cursor()
            cursor.execute(step)
            cursor.close()


def _set_busy_timeout(connection: Connection, driver: Any, seconds: float) -> None:
    before = _first_value(connection, driver, "PRAGMA busy_timeout")
    _undo_later(connection, f"PRAGMA busy_timeout={int(before)}")
    _say(connection, driver, f"PRAGMA busy_timeout={round(seconds * 1000)}")


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
    _undo_later(connection, _clear_progress_handler)
    _progress_handler(connection.dialect.is_async, driver, deadline)


def _clear_progress_handler(dbapi_connection: Any) -> None:
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    _progress_handler(driver is not dbapi_connection, driver, None)


def _progress_handler(asynchronous: bool, driver: Any, handler: _Deadline | None) -> None:
    result = driver.set_progress_handler(handler, _INSTRUCTIONS if handler is not None else 0)
    if asynchronous:
        await_only(result)


def _start_of_statement(connection: Connection, *_: Any) -> None:
    if (wanted := connection.get_execution_options().get(_OPTION)) is not None and wanted.statement_timeout is not None:
        connection.connection.info[_DEADLINE].start()


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
    if options is None or options.begin == "BEGIN" or asked.read_only:
        return None
    return "the transaction around holds SQLite's write lock on the same file, so this one could only wait for itself"


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
)
