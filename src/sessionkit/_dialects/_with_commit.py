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

import threading
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.engine import Connection

_OPTION = "sessionkit_with_commit"
# libpq, PQtransactionStatus: https://www.postgresql.org/docs/current/libpq-status.html
_IDLE, _IN_ERROR = 0, 3

_committing: ContextVar[WithCommit | None] = ContextVar("sessionkit_with_commit", default=None)
_making = threading.Lock()


class WithCommit:
    """Holds a statement back, and sends it together with the COMMIT of its connection.

    Execute the statement with the execution options `options`: everybody who listens hears of it as of any other. Then
    have the connection commit inside a ``with`` of this object.

    Attributes:
        refused: it was the statement that failed, not COMMIT.
    """

    __slots__ = ("_adapted", "_held", "_pooled", "_token", "refused")

    def __init__(self, connection: Connection) -> None:
        self.refused = False
        self._pooled: Any = connection.connection
        self._adapted: Any = self._pooled.dbapi_connection
        self._held: tuple[str, Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The execution options of the statement."""
        return {_OPTION: self}

    def hold(self, statement: str, parameters: Any) -> None:
        """Take what was about to be sent."""
        self._held = statement, parameters

    def __enter__(self) -> Self:
        self._token = _committing.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _committing.reset(self._token)

    def commit(self, dbapi_connection: Any) -> bool:
        """Send the statement with COMMIT, if that is its connection; tell whether this has ended the transaction."""
        # A dialect commits the pool's proxy, or what is in it.
        if getattr(dbapi_connection, "dbapi_connection", dbapi_connection) is not self._adapted or self._held is None:
            return False
        statement, parameters = self._held
        self._held = None
        self._send(f"{statement}\n; COMMIT", parameters)  # on a line of its own: there are listeners that add comments
        return bool(self._pooled.driver_connection.info.transaction_status == _IDLE)

    def _send(self, text: str, parameters: Any) -> None:
        driver = self._pooled.driver_connection
        try:
            if driver is self._adapted:
                _send(driver, text, parameters)
            else:
                await_only(_async_send(driver, text, parameters))
        except Exception:
            if driver.info.transaction_status == _IN_ERROR:
                self.refused = True
                # SQLAlchemy takes a transaction for ended whose COMMIT has failed, and this one is not.
                with suppress(Exception):
                    self._adapted.rollback()
            raise


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
    if dialect.driver in {"psycopg", "psycopg_async"} and (_asks_here(dialect) or _have_ask_here(dialect)):
        return WithCommit(connection)
    return None


def _asks_here(dialect: Any) -> bool:
    """Tell whether an engine's dialect asks here before it executes, and before it commits."""
    now = getattr(dialect.do_execute, "func", None), getattr(dialect.do_commit, "func", None)
    return now == (_do_execute, _do_commit)


def _have_ask_here(dialect: Any) -> bool:
    """Have it do so, unless somebody else has a say in how it commits; tell whether it does.

    SQLAlchemy has no event that comes after its listeners of "commit", and what those send belongs to the transaction.
    """
    with _making:
        if getattr(dialect.do_commit, "__func__", None) is DefaultDialect.do_commit:
            if getattr(dialect.do_execute, "func", None) is not _do_execute:
                dialect.do_execute = partial(_do_execute, dialect.do_execute)
            dialect.do_commit = partial(_do_commit, dialect.do_commit)
        return _asks_here(dialect)


def _do_execute(execute: Any, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
    holder: WithCommit | None = None if context is None else context.execution_options.get(_OPTION)
    if holder is None:
        execute(cursor, statement, parameters, context)
    else:
        holder.hold(statement, parameters)


def _do_commit(commit: Any, dbapi_connection: Any) -> None:
    holder = _committing.get()
    if holder is None or not holder.commit(dbapi_connection):
        commit(dbapi_connection)
