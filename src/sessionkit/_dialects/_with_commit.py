"""A statement that goes to PostgreSQL in one message with COMMIT, and so costs no round trip of its own.

psycopg sends a text of several statements as one message of the simple query protocol, and the server carries them out
one after the other until one fails: what follows that one is skipped. So COMMIT is reached only if the statement before
it has succeeded; then the transaction is not aborted, and the COMMIT that is answered by a silent ROLLBACK cannot
happen. psycopg reads the state of the transaction out of the server's answer, so it knows that it is over.

Pipeline mode would save the same round trip, with ten messages for one, and a mode to be left again after every failure.
The other drivers cannot do it: psycopg2 and asyncpg keep books of their own about the transaction, would send a second
COMMIT, and nothing public tells them that it is over.
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
        refused: it was the statement that failed, not COMMIT.
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
        """Do nothing: what it holds is sent later."""

    def commit(self, connection: Connection) -> None:
        """Send the statement and COMMIT, on the connection of a unit."""
        pooled: Any = connection.connection
        if self._held is None:
            connection.dialect.do_commit(pooled)
            return
        statement, parameters = self._held
        text = f"{statement}\n; COMMIT"  # on a line of its own: there are listeners that add comments
        driver, adapted = pooled.driver_connection, pooled.dbapi_connection
        try:
            if driver is adapted:
                _send(driver, text, parameters)
            else:
                await_only(_async_send(driver, text, parameters))
        except Exception:
            if driver.info.transaction_status == _IN_ERROR:
                self.refused = True
                # SQLAlchemy takes a transaction for ended whose COMMIT has failed, and this one is not.
                with suppress(Exception):
                    adapted.rollback()
            raise
        if driver.info.transaction_status != _IDLE:
            connection.dialect.do_commit(pooled)


def _send(driver: Any, text: Any, parameters: Any) -> None:
    from psycopg import ClientCursor  # it puts the values in by itself: a text of several statements takes none

    with ClientCursor(driver) as cursor:
        cursor.execute(text, parameters)


async def _async_send(driver: Any, text: Any, parameters: Any) -> None:
    from psycopg import AsyncClientCursor

    async with AsyncClientCursor(driver) as cursor:
        await cursor.execute(text, parameters)


def with_commit(connection: Connection) -> WithCommit | None:
    """Return what sends one statement together with COMMIT; None where that cannot be had."""
    dialect = connection.dialect
    # Where somebody has replaced how the dialect commits, COMMIT is theirs to send.
    own = getattr(dialect.do_commit, "__func__", None) is DefaultDialect.do_commit
    return WithCommit() if own and dialect.driver in {"psycopg", "psycopg_async"} else None
