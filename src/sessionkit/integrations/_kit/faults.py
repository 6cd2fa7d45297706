"""Errors that a test asks for, raised where a real one would come from: when COMMIT is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import DBAPIError

from ..._spi import _dialects

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from ..._spi import ScopeConnection

__all__ = ["Faults", "InjectedFault", "database_error"]


def database_error(connection: Connection, code: str | None, message: str) -> DBAPIError:
    """Return the error that SQLAlchemy raises when COMMIT fails with a code; without a code, when its answer is lost.

    Raises:
        OptionError: the database has no such error code.
    """
    dbapi: Any = connection.dialect.loaded_dbapi
    integrity = code is not None and (code.startswith("23") or "CONSTRAINT" in code)
    base: type[Exception] = dbapi.IntegrityError if integrity else dbapi.OperationalError
    error = _dialects.of(connection).with_code(base, code, message)
    wrapped = DBAPIError.instance(
        "COMMIT", None, error, dbapi.Error, connection_invalidated=code is None, dialect=connection.dialect
    )
    assert isinstance(wrapped, DBAPIError)  # it wraps the driver's error
    return wrapped


class InjectedFault(NamedTuple):
    """What will happen at one COMMIT.

    Attributes:
        code: the error code; None means that the connection is lost.
        committed: whether the database commits anyway, and only its answer is lost.
    """

    code: str | None
    committed: bool = False


class Faults:
    """The pending faults, in order; each applies to one COMMIT."""

    def __init__(self) -> None:
        self.waiting: list[InjectedFault] = []

    def at_commit(self, connection: ScopeConnection, savepoint: str | None) -> None:
        """Inject the next fault when COMMIT is sent, or the RELEASE of `savepoint` that replaces it.

        Raises:
            DBAPIError: the error that the test asked for.
        """
        if not self.waiting:
            return
        fault = self.waiting.pop(0)
        if fault.code is not None:
            raise database_error(connection, fault.code, f"the test asked for COMMIT to fail with {fault.code}")
        error = database_error(connection, None, "the test asked for the connection to be lost during COMMIT")
        if savepoint is None:
            if fault.committed:
                connection.send_commit()
            connection.invalidate(error)
        elif fault.committed:
            # Dropped before anything rolls back to the savepoint: it no longer exists.
            connection.dialect.do_release_savepoint(connection, savepoint)
            connection.dialect.do_savepoint(connection, savepoint)
        raise error
