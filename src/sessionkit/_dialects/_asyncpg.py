"""asyncpg does not reveal the state of a transaction, so failures on its own connection must be detected.

psycopg and psycopg2 learn from the protocol whether the server has aborted the transaction. asyncpg keeps that to itself, so
a statement sent through its own connection, past SQLAlchemy, fails unseen. Its query log shows that something failed. Only
the server knows whether that still matters (a savepoint may have undone it), so only then is the server asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_LOGGED = "sessionkit_asyncpg_logged"
_FAILED = "sessionkit_asyncpg_failed"


def follow(connection: Connection) -> None:
    """Begin to watch for failures, at the beginning of a transaction."""
    info = connection.connection.info
    info.pop(_FAILED, None)
    if _LOGGED in info:
        return
    info[_LOGGED] = True
    driver: Any = connection.connection.driver_connection

    def log(query: Any) -> None:
        if query.exception is not None:
            info[_FAILED] = True

    driver.add_query_logger(log)


def lost(connection: Connection) -> str | None:
    """Return why the transaction is lost, if the server has aborted it. One round trip, and only after a failure."""
    if not connection.connection.info.pop(_FAILED, False):
        return None
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        return "a statement sent through the driver's own connection failed, so the server has aborted the transaction"
    return None
