"""asyncpg does not tell the state of a transaction, so what fails on its own connection is looked for.

psycopg and psycopg2 know from the protocol whether the server has aborted the transaction. asyncpg keeps that to itself, and
a statement that was sent through its own connection, past SQLAlchemy, is seen by nobody. Its query log tells that something
failed; whether that still matters (a savepoint may have undone it), only the server knows, and only then it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_LOGGED = "sessionkit_asyncpg_logged"
_FAILED = "sessionkit_asyncpg_failed"


def follow(connection: Connection) -> None:
    """Begin to look, at the beginning of a transaction."""
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
    """Tell whether the server has aborted the transaction. One round trip, and only if a statement has failed."""
    if not connection.connection.info.pop(_FAILED, False):
        return None
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        return "a statement sent through the driver's own connection failed, so the server has aborted the transaction"
    return None
