"""SQLite: pysqlite and aiosqlite.

The driver's default mode begins no transaction before a SELECT, a SAVEPOINT or DDL, so that reads are not
repeatable and a released savepoint survives the rollback of what encloses it (see
https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation / Savepoints"). A scope therefore
says BEGIN itself: IMMEDIATE, since a deferred transaction that reads and then writes fails with
SQLITE_BUSY_SNAPSHOT without waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from ._base import Dialect

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_OPTION = "sessionkit_sqlite_begin"
_listening: WeakSet[Engine] = WeakSet()


def _engine_for_scopes(engine: Engine) -> Engine:
    if engine not in _listening:
        _listening.add(engine)
        event.listen(engine, "begin", _begin)
    return engine.execution_options(**{_OPTION: "BEGIN IMMEDIATE"})


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    statement = options.get(_OPTION)
    if statement is None or options.get("isolation_level") == "AUTOCOMMIT":
        return
    driver = connection.connection.driver_connection
    if getattr(driver, "autocommit", None) is False:
        # sqlite3.connect(autocommit=False), Python 3.12: the driver always keeps a deferred transaction open.
        _say(connection, driver, "ROLLBACK")
    elif getattr(driver, "in_transaction", False):
        return  # a listener of the user's has begun it
    _say(connection, driver, statement)


def _say(connection: Connection, driver: Any, statement: str) -> None:
    # Straight to the driver: SQLAlchemy's execution of a string costs 20 us and, on aiosqlite, two more thread
    # switches.
    try:
        if connection.dialect.is_async:
            await_only(driver.execute(statement))
        else:
            driver.execute(statement)
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(
            statement, None, error, connection.dialect.loaded_dbapi.Error, dialect=connection.dialect
        ) from error


def _lost(connection: Connection, driver_connection: Any) -> str | None:
    if connection.get_execution_options().get(_OPTION) and getattr(driver_connection, "in_transaction", True) is False:
        return "SQLite has ended the transaction by itself, as it does when the disk is full or on ON CONFLICT ROLLBACK"
    return None


DIALECT = Dialect("sqlite", engine_for_scopes=_engine_for_scopes, lost=_lost)
