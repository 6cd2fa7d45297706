"""Errors that a test asks for, at the place where a real one would come: when COMMIT is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import DBAPIError

from ..._spi import _dialects

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from ..._spi import ScopeConnection

__all__ = ["Faults", "InjectedFault", "database_error"]


def database_error(connection: Connection, code: str | None, message: str) -> DBAPIError:
    """Return what SQLAlchemy raises where COMMIT fails with a code; without one, where its answer is lost.

    Raises:
        OptionError: the database has no such code.
    """
    dbapi: Any = connection.dialect.loaded_dbapi
    integrity = code is not None and (code.startswith("23") or "CONSTRAINT" in code)
    base: type[Exception] = dbapi.IntegrityError if integrity else dbapi.OperationalError
    error = _dialects.of(connection).with_code(base, code, message)
    wrapped = DBAPIError.instance(
        "COMMIT", None, error, dbapi.Error, connection_invalidated=code is None, dialect=connection.dialect
    )
    assert isinstance(wrapped, DBAPIError)  # it is of the driver's
    return wrapped


class InjectedFault(NamedTuple):
    """What is to happen at one COMMIT.

    Attributes:
        code: of the error; None: the connection is lost.
        committed: whether the database has committed all the same, and only its answer was lost.
    """

    code: str | None
    committed: bool = False


class Faults:
    """The faults that are still to come, in order: each meets one COMMIT."""

    def __init__(self) -> None:
        self.waiting: list[InjectedFault] = []

    def at_commit(self, connection: ScopeConnection, savepoint: str | None) -> None:
        """Do what is due where a COMMIT is sent, or the RELEASE of `savepoint` that stands for it.

        Raises:
            DBAPIError: that was asked for.
        """
        if not self.waiting:
            return
        fault = self.waiting.pop(0)
        if fault.code is not None:
            raise database_error(connection, fault.code, f"a failure of COMMIT with {fault.code} was asked for")
        error = database_error(connection, None, "the loss of the connection during COMMIT was asked for")
        if savepoint is None:
            if fault.committed:
                connection.send_commit()
            connection.invalidate(error)
        elif fault.committed:
            # Given up before the savepoint is rolled back to: there is nothing to go back to any more.
            connection.dialect.do_release_savepoint(connection, savepoint)
            connection.dialect.do_savepoint(connection, savepoint)
        raise error
