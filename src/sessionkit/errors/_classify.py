"""What an error means for its unit of work: whether to run it again, and whether it may have committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm.exc import StaleDataError

from .. import _sqlstate
from ._base import SessionKitError
from ._locks import NotLocked
from ._marks import cause_of
from ._runtime import UnexpectedRollback

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Classification:
    """What an exception means for the unit of work in which it was raised.

    Attributes:
        kind: the name of the condition, such as ``"serialization_failure"``, ``"unique_violation"``, ``"busy"``,
            ``"connection_lost"``, ``"cannot_connect"``, ``"stale_version"``; ``"other"`` if no table lists it.
        code: the SQLSTATE, SQLite's error name or MySQL's number; None if the driver gave none.
        retryable: running the whole unit again, in a new transaction, can succeed. True also for a connection that was
            lost before COMMIT was sent.
        ambiguous: if this is the answer to COMMIT, the transaction may or may not have been committed.
    """

    kind: str
    code: str | None
    retryable: bool
    ambiguous: bool


def classify(error: BaseException) -> Classification:
    """Return what an exception means, judged only by the code that the driver gave.

    Args:
        error: an exception of psycopg, psycopg2, asyncpg, sqlite3, aiosqlite or a MySQL driver, wrapped by SQLAlchemy
            or not; anything else is ``"other"``. An exception raised ``from`` one of these means the same as that one,
            and an `UnexpectedRollback` means the same as its first error.

    Emits no SQL. The tables and their sources are in ``sessionkit/_sqlstate.py``.
    """
    meaning, code = _meaning(error)
    return Classification(meaning.kind, code, meaning.retryable, meaning.ambiguous)


def _meaning(error: BaseException) -> tuple[_sqlstate.Meaning, str | None]:
    if isinstance(error, UnexpectedRollback):
        return _meaning(error.__cause__) if error.__cause__ is not None else (_sqlstate.OTHER, None)
    if isinstance(error, NotLocked):
        found = next(filter(None, map(_sqlstate.look_up, _chain(error))), None)
        return _sqlstate.NOT_LOCKED, None if found is None else found.code
    if isinstance(error, StaleDataError):
        return _sqlstate.STALE_VERSION, None
    if isinstance(error, SessionKitError) and not isinstance(error, DBAPIError):
        return _sqlstate.OTHER, None
    chain = list(_chain(error))
    for each in chain:
        found = _sqlstate.look_up(each)
        if found is not None:
            if found.meaning.kind == "read_only_sql_transaction" and any(map(_is_invalidated, chain)):
                return _sqlstate.NO_PRIMARY, found.code
            return found.meaning, found.code
    for each in chain:
        if isinstance(each, DBAPIError):
            if _is_invalidated(each):
                return _sqlstate.CONNECTION_LOST, None
            if each.statement is None:
                # No statement and no code: connecting failed. A failed COMMIT has a code, or has lost its connection.
                return _sqlstate.CANNOT_CONNECT, None
        elif (isinstance(each, OSError) or _sqlstate.is_asyncpgs(each)) and _while_connecting(each):
            return _sqlstate.CANNOT_CONNECT, None  # SQLAlchemy does not wrap what asyncpg raises while connecting
    return _sqlstate.OTHER, None


def _is_invalidated(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is inside it: SQLAlchemy's, the adapter's, the driver's, and one around them."""
    seen: BaseException | None = error
    for _ in range(4):
        if seen is None:
            return
        yield seen
        seen = getattr(seen, "orig", None) or cause_of(seen)


_CONNECTING = {("asyncpg.connection", "connect"), ("sqlalchemy.pool.base", "__connect")}


def _while_connecting(error: BaseException) -> bool:
    # Any OSError may come here: from a file, from a mail server. Only the place that raised it tells them apart.
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _CONNECTING:
            return True
        traceback = traceback.tb_next
    return False


def is_aftermath(error: BaseException) -> bool:
    """Return whether `error` only says that something failed earlier in the transaction."""
    return isinstance(error, PendingRollbackError) or classify(error).kind == "in_failed_sql_transaction"


KINDS = _sqlstate.KINDS
"""Every ``kind`` of a `Classification`."""


def is_lost(error: DBAPIError) -> bool:
    """Return whether an error arrived instead of an answer, so that the server may have done what it was asked."""
    meaning = classify(error)
    if meaning.kind == "read_only_sql_transaction":
        return False  # the server answered, and the connection was dropped afterwards
    return error.connection_invalidated or meaning.ambiguous
