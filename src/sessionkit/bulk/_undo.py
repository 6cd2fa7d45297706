"""What a call can be undone to: a savepoint, or the beginning of the transaction where nothing was sent in it yet."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.exc import SQLAlchemyError

from .._core.connection import failures_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .._dialects import Bulk


class Start(Protocol):
    """Where a call began."""

    def undo(self) -> Start:
        """Undo all that happened since; return a new start."""
        ...

    def keep(self) -> None:
        """Let it be a part of the transaction."""
        ...

    def leave(self) -> None:
        """Undo all that happened since, for good. The first error is the one to see, so nothing is raised.

        Should even this fail, the connection's own log says so to a scope.
        """
        ...


def start(connection: Connection, dialect: Bulk, *, alone: bool) -> Start:
    """Return a start: the cheaper kind, if it can be had.

    A savepoint is two round trips to a server; SQLite keeps a copy of each page that is changed after it.

    Args:
        connection: where.
        dialect: what bulk knows of its dialect.
        alone: nobody else's code runs before the end of the call. A generator might ask for an `on_commit`, which is to
            go with the savepoint around it.
    """
    untouched = dialect.has_not_begun(connection)
    dialect.begin(connection)
    return Beginning(connection, dialect) if untouched and alone else Savepoint(connection)


class Savepoint:
    """A savepoint: what was done before it is kept."""

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
    """A transaction that SQLAlchemy has begun and the driver has not: there is nothing to keep.

    To undo is to have the driver begin once more, with the isolation and all else that it was told; SQLAlchemy's
    transaction goes on.
    """

    def __init__(self, connection: Connection, dialect: Bulk) -> None:
        self._connection = connection
        self._dialect = dialect

    def undo(self) -> Start:
        self._again()
        return Savepoint(self._connection)

    def keep(self) -> None:
        """Nothing needs to be said."""

    def leave(self) -> None:
        if not self._connection.invalidated and not self._connection.closed:
            with suppress(Exception):  # the driver's own: nothing of SQLAlchemy's is between
                self._again()

    def _again(self) -> None:
        self._connection.dialect.do_rollback(self._connection.connection)
        if (failures := failures_of(self._connection)) is not None:
            failures.forget()
        self._dialect.begin(self._connection)
