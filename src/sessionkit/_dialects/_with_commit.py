"""A statement that PostgreSQL gets in one message with COMMIT, so that it costs no round trip of its own.

psycopg sends a text of several statements as one message of the simple query protocol. The server runs them one after
another until one fails, and skips the rest. So it reaches COMMIT only if the statement before it has succeeded: then the
transaction is not aborted, and COMMIT cannot silently mean ROLLBACK. psycopg reads the state of the transaction from the
server's answer, so it knows that it has ended.

Pipeline mode would save the same round trip, but with ten messages instead of one, and with a mode to leave again after
every failure. The other drivers cannot do it: psycopg2 and asyncpg keep their own record of the transaction, would send a
second COMMIT, and there is no public way to tell them that it has ended.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

# libpq, PQtransactionStatus: https://www.postgresql.org/docs/current/libpq-status.html
_IDLE, _IN_ERROR = 0, 3


class WithCommit:
    """A DBAPI cursor that holds one statement back until `commit` sends it.

    Attributes:
        refused: the statement failed, not COMMIT.
    """

    description = None
    rowcount = 1
    lastrowid = None
    arraysize = 1

    __slots__ = ("_held", "refused")

    def __init__(self) -> None:
        self._held: tuple[str, Any] | None = None
        self.refused = False

    def execute(self, statement: str, parameters: Any = None) -> None:
        """Hold a statement back."""
        self._held = statement, parameters

    def close(self) -> None:
        """Do nothing: the statement is sent later."""

    def commit(self, connection: Connection) -> None:
        """Send the statement and COMMIT on the connection of a unit."""
        pooled: Any = connection.connection
        if self._held is None:
            connection.dialect.do_commit(pooled)
            return
        statement, parameters = self._held
        text = f"{statement}\n; COMMIT"  # on a line of its own, because some listeners append comments
        driver, adapted = pooled.driver_connection, pooled.dbapi_connection
        try:
            if driver is adapted:
                _send(driver, text, parameters)
            else:
                await_only(_async_send(driver, text, parameters))
        except Exception:
            if driver.info.transaction_status == _IN_ERROR:
                self.refused = True
                # SQLAlchemy believes that a failed COMMIT has ended the transaction, but this one is still open.
                with suppress(Exception):
                    adapted.rollback()
            raise
        if driver.info.transaction_status != _IDLE:
            connection.dialect.do_commit(pooled)


def _send(driver: Any, text: Any, parameters: Any) -> None:
    from psycopg import ClientCursor  # inserts the values itself: a text of several statements takes no parameters

    with ClientCursor(driver) as cursor:
        cursor.execute(text, parameters)


async def _async_send(driver: Any, text: Any, parameters: Any) -> None:
    from psycopg import AsyncClientCursor

    async with AsyncClientCursor(driver) as cursor:
        await cursor.execute(text, parameters)


def with_commit(connection: Connection) -> WithCommit | None:
    """Return a cursor that sends one statement together with COMMIT; None if that is not possible."""
    dialect = connection.dialect
    # If somebody has replaced the dialect's commit, that code must send COMMIT.
    own = getattr(dialect.do_commit, "__func__", None) is DefaultDialect.do_commit
    return WithCommit() if own and dialect.driver in {"psycopg", "psycopg_async"} else None
