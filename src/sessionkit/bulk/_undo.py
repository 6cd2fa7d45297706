"""Undoing a call: back to a savepoint, or to the start of the transaction if nothing was sent in it yet."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.exc import SQLAlchemyError

from .._core.connection import failures_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .._dialects import Bulk


class Start(Protocol):
    """The point where a call began."""

    def undo(self) -> Start:
        """Undo everything since; return a new start."""
        ...

    def keep(self) -> None:
        """Make the work part of the transaction."""
        ...

    def leave(self) -> None:
        """Undo everything since, for good. Raises nothing, so that the caller sees the first error.

        If even this fails, a scope learns it from the connection's failure log.
        """
        ...


def start(connection: Connection, dialect: Bulk, *, alone: bool) -> Start:
    """Return a start: the cheaper kind if possible.

    A savepoint costs two round trips on a server; SQLite keeps a copy of each page that changes after it.

    Args:
        connection: the connection that the call writes on.
        dialect: what bulk knows about its dialect.
        alone: no user code runs before the call ends. A generator might register an `on_commit`, which must go with the
            savepoint around it.
    """
    untouched = dialect.has_not_begun(connection)
    dialect.begin(connection)
    return Beginning(connection, dialect) if untouched and alone else Savepoint(connection)


class Savepoint:
    """A savepoint: earlier work of the transaction is kept."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._nested = connection.begin_nested()

    def undo(self) -> Start:
        self._nested.rollback()
        return Savepoint(self._connection)

    def keep(self) -> None:
        self._nested.commit()

    def leave(self) -> None:
        if self._nested.is_active:
            with suppress(SQLAlchemyError):
                self._nested.rollback()


class Beginning:
    """A transaction that SQLAlchemy has begun but the driver has not: there is no earlier work.

    Undoing rolls back in the driver and begins again there, with the same isolation and settings; SQLAlchemy's transaction
    goes on.
    """

    def __init__(self, connection: Connection, dialect: Bulk) -> None:
        self._connection = connection
        self._dialect = dialect

    def undo(self) -> Start:
        self._again()
        return Savepoint(self._connection)

    def keep(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        if not self._connection.invalidated and not self._connection.closed:
            with suppress(Exception):  # any error of the driver: SQLAlchemy is not involved
                self._again()

    def _again(self) -> None:
        self._connection.dialect.do_rollback(self._connection.connection)
        if (failures := failures_of(self._connection)) is not None:
            failures.forget()
        self._dialect.begin(self._connection)
