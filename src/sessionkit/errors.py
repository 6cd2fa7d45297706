"""Every exception of sessionkit.

::

    SessionKitError
    ├── ScopeError                  a scope was asked for something it must not do
    │   ├── NoCurrentSession        there is no scope here (LookupError)
    │   ├── ConcurrentUse           two threads or tasks inside one session at once
    │   ├── ColourError             an async factory in `with`, a sync one in `async with` (TypeError)
    │   ├── CommitTokenError        what was given as a commit token is none, or not of this cluster (ValueError)
    │   ├── NoReader                no reader could serve a read-only scope
    │   └── OptionError             an option has a value that cannot be honoured here (ValueError)
    │       └── UnknownOptionError  an option of that name does not exist (TypeError)
    ├── BulkError                   a row of a bulk call was refused (and whatever SQLAlchemy would have raised)
    ├── VersionError                a version was asked for what it cannot do
    │   └── MalformedETag           an If-Match header that is none (ValueError)
    ├── VersionConflict             somebody else has changed or deleted the rows (sqlalchemy.orm.exc.StaleDataError)
    ├── UnexpectedRollback          the scope ended without an exception, yet nothing could be committed
    ├── CommitOutcomeUnknown        the connection was lost during COMMIT, and nobody can tell what became of it
    ├── PartialCommit               of several databases that do not commit as one, not all have committed
    └── HookError                   on_commit or on_rollback callables failed; the transaction is settled

A driver's error is never wrapped: it reaches the caller as SQLAlchemy raised it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm.exc import StaleDataError

from . import _sqlstate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from .version import Conflict, Conflicts, Policy

__all__ = [
    "BulkError",
    "Classification",
    "ColourError",
    "CommitOutcomeUnknown",
    "CommitTokenError",
    "ConcurrentUse",
    "HookError",
    "MalformedETag",
    "NoCurrentSession",
    "NoReader",
    "OptionError",
    "Outcome",
    "PartialCommit",
    "ScopeError",
    "SessionKitError",
    "UnexpectedRollback",
    "UnknownOptionError",
    "VersionConflict",
    "VersionError",
    "classify",
    "outcome_of",
]

Outcome = Literal["committed", "rolled back", "unknown"]
"""How a transaction ended, as far as the client can know."""


class SessionKitError(Exception):
    """The base of everything that sessionkit raises by itself."""


class ScopeError(SessionKitError):
    """A scope, or a session inside one, was asked for something it must not do."""


class NoCurrentSession(ScopeError, LookupError):
    """There is no ambient session in this thread and task."""


class ConcurrentUse(ScopeError):
    """Two threads or two tasks were inside one session at the same moment."""


class ColourError(ScopeError, TypeError):
    """An async factory was used in sync code, or a sync one in async code."""


class CommitTokenError(ScopeError, ValueError):
    """What was given as a commit token is none, or is of another cluster, or of a time before a promotion."""


class NoReader(ScopeError):
    """No reader could serve a read-only scope, and the factory was told ``no_reader="error"``."""


class OptionError(ScopeError, ValueError):
    """An option has a value that cannot be honoured."""


class UnknownOptionError(OptionError, TypeError):
    """There is no option of that name.

    Args:
        asked: the name that was given.
        known: the names that exist; the nearest one is put into the message.
        where: what was called.
    """

    def __init__(self, asked: str, known: Iterable[str], where: str) -> None:
        names = sorted(known)
        near = get_close_matches(asked, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
        super().__init__(f"{where} has no option {asked!r}; {hint}")
        self.asked = asked


class VersionError(SessionKitError):
    """A version was asked for what it cannot do: of a class that has none, on a backend that cannot check it, ..."""


class MalformedETag(VersionError, ValueError):
    """A header is not what RFC 9110, section 13.1.1, calls an If-Match."""


class VersionConflict(SessionKitError, StaleDataError):
    """Rows that were to be written have been changed or deleted by somebody else since they were read.

    Raised where SQLAlchemy would raise ``StaleDataError``, of which it is one, and leaves the session as that does:
    out of a flush or commit the transaction (or the savepoint) is rolled back and wants ``session.rollback()``. The
    usual answer is to run the whole unit again, from its reads.

    Attributes:
        conflicts: what is known of each row that was found stale; a tuple.
    """

    def __init__(self, conflicts: Conflicts) -> None:
        super().__init__(str(conflicts))
        self.conflicts = conflicts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.conflicts,)

    def load(self, session: Session) -> tuple[Conflict, ...]:
        """Read what the rows hold now, and return the conflicts with ``current``, ``deleted`` and ``database`` filled.

        Args:
            session: any usable session; no object in it is touched, nothing is flushed.

        Returns:
            The new value of ``conflicts`` too.

        Emits one SELECT for all rows of a mapped class.
        """
        self.conflicts = self.conflicts.load(session)
        return self.conflicts

    async def async_load(self, session: AsyncSession) -> tuple[Conflict, ...]:
        """Do as `load`, on an ``AsyncSession``."""
        return await session.run_sync(self.load)

    def resolve(self, session: Session, policy: Policy, *, partial: bool = False) -> list[Any]:
        """Carry the attempted changes over to the rows as they are now, in a unit of work of its own.

        The objects are read anew and changed; the caller's flush or commit writes them, checked as always: if a row
        has changed yet again, that raises a new VersionConflict.

        Args:
            session: a usable session, in which the objects have no changes of their own.
            policy: for each row

                - ``"client_wins"``: every attempted value is written;
                - ``"database_wins"``: nothing is;
                - ``"merge"``: a column that only we changed gets our value, one that only the database changed keeps
                  its own; where both changed a column to different values, or the original is not known, the row
                  stays in conflict. A row that we wanted to delete and somebody else changed stays in conflict;
                - a function: called with the `Conflict` (``database`` filled), it returns one of these names or a
                  mapping of attribute names to the values to be written.

                A row that is gone can be neither updated nor merged and stays in conflict, except that deleting it
                is done. All the rows are decided before the first is changed.
            partial: carry over the rows in conflict although the failed unit had done more than can be carried over
                (rows inserted, other rows changed, collections, earlier flushes); the rest is for the caller to redo.

        Returns:
            The objects in the order of ``conflicts``; None for a row that is gone.

        Raises:
            VersionConflict: rows stay in conflict; ``conflicts`` holds these only, with ``database`` filled.
            VersionError: the failed unit had done more, and `partial` was not given; or an object has changes.

        Emits one SELECT for all rows of a mapped class.
        """
        return self.conflicts.resolve(session, policy, partial=partial)

    async def async_resolve(self, session: AsyncSession, policy: Policy, *, partial: bool = False) -> list[Any]:
        """Do as `resolve`, on an ``AsyncSession``."""
        return await session.run_sync(lambda sync_session: self.resolve(sync_session, policy, partial=partial))


class UnexpectedRollback(SessionKitError):
    """A scope was left without an exception, but its work could not be committed.

    Something had failed inside and was swallowed, so that the database had already
    given the transaction up or would have committed half of it. Nothing was committed.
    ``__cause__`` is the first error, where there is one.
    """


class CommitOutcomeUnknown(SessionKitError):
    """The answer to COMMIT did not arrive: the transaction may have been committed or not.

    It is never retried: that could do the work twice. ``verify_commit`` finds the outcome out. ``__cause__`` is the
    driver's error.

    Attributes:
        key: the key of the unit's commit marker, for `commits.claim`; None without ``verify_commit=True``.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class PartialCommit(SessionKitError):
    """A unit wrote to several databases, and they did not end alike: some have committed, or may have, others have not.

    Without ``twophase=True`` databases commit one after the other, and a failure at one of them cannot take back what
    the ones before it have committed. It is never retried, and no hook runs. ``__cause__`` is the driver's error.

    Attributes:
        outcomes: for each engine that took part, as it was given to the factory (of an ``AsyncEngine`` its
            ``sync_engine``), what became of its transaction; first those to which COMMIT was sent, in that order.
    """

    def __init__(self, message: str, outcomes: Mapping[Engine, Outcome]) -> None:
        super().__init__(message)
        self.outcomes = dict(outcomes)


class HookError(SessionKitError):
    """One or more hooks failed after the transaction was settled.

    Attributes:
        errors: what the hooks raised, in the order in which they ran; the first is also ``__cause__``.
        outcome: ``"committed"`` or ``"rolled back"``: what had happened to the data before any hook ran.
    """

    def __init__(self, errors: Sequence[BaseException], outcome: Outcome) -> None:
        self.errors = tuple(errors)
        self.outcome = outcome
        count = "a hook" if len(self.errors) == 1 else f"{len(self.errors)} hooks"
        first = self.errors[0]
        super().__init__(
            f"the data is {outcome}, but {count} failed afterwards; the first error was {type(first).__name__}: {first}"
        )
        self.__cause__ = first


class BulkError(SessionKitError):
    """A row of a bulk call could not be written; nothing of the call was, and what came before it is kept.

    Where the database or SQLAlchemy refused the row, the error is also of the class that SQLAlchemy would have raised
    (``except IntegrityError`` catches it), with its ``orig``, ``statement`` and ``params``, and ``__cause__`` is the
    driver's error.

    Attributes:
        position: which row of the input, counted from 0.
        row: the row as it was given.
        column: the attribute that is to blame, where it can be known; else None.
    """

    def __init__(self, message: str, *, position: int, row: object, column: str | None = None) -> None:
        self.args = (message,)  # whatever other class this is of, its own constructor is not asked
        self.message = message
        self.position = position
        self.row = row
        self.column = column

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        other = type(self).__bases__[1] if type(self) is not BulkError else None
        return _restored_bulk_error, (other, self.__dict__)

    @classmethod
    def of(
        cls, error: BaseException, message: str, *, position: int, row: object, column: str | None = None
    ) -> BulkError:
        """Return a BulkError that is also of the class of `error`, and has what that one has."""
        bulk_error = _bulk_error_like(type(error))
        bulk_error.__dict__.update(error.__dict__)
        BulkError.__init__(bulk_error, message, position=position, row=row, column=column)
        return bulk_error


def _bulk_error_like(other: type[BaseException] | None) -> BulkError:
    if other is not None and other not in (SessionKitError, BulkError):
        try:
            kind: Any = _bulk_classes.get(other) or type(f"Bulk{other.__name__}", (BulkError, other), {})
            _bulk_classes[other] = kind
            made: BulkError = kind.__new__(kind)
        except TypeError:
            pass  # an exception whose memory layout or constructor allows no second base: UnicodeEncodeError
        else:
            return made
    return BulkError.__new__(BulkError)


_bulk_classes: dict[type[BaseException], type[BulkError]] = {}


def _restored_bulk_error(other: type[BaseException] | None, state: dict[str, Any]) -> BulkError:
    error = _bulk_error_like(other)
    error.__dict__.update(state)
    error.args = (error.message,)
    return error


@dataclass(frozen=True, slots=True)
class Classification:
    """What an exception means for the unit of work in which it was raised.

    Attributes:
        kind: the name of the condition, such as ``"serialization_failure"``, ``"unique_violation"``, ``"busy"``,
            ``"connection_lost"``, ``"cannot_connect"``, ``"stale_version"``; ``"other"`` for what no table knows.
        code: the SQLSTATE, SQLite's error name or MySQL's number; None where the driver gave none.
        retryable: running the whole unit again, in a new transaction, can succeed; true for connections that were
            lost before COMMIT was sent.
        ambiguous: if this is the answer to COMMIT, it does not tell whether the transaction was committed.
    """

    kind: str
    code: str | None
    retryable: bool
    ambiguous: bool


def classify(error: BaseException) -> Classification:
    """Tell what an exception means, by the code that the driver gave and nothing else.

    Args:
        error: an exception of psycopg, psycopg2, asyncpg, sqlite3, aiosqlite or a MySQL driver, in SQLAlchemy's
            wrapping or without it; anything else is ``"other"``. What was raised ``from`` one of them means what that
            means, and an `UnexpectedRollback` what its first error means.

    Emits no SQL. The tables and their sources are in ``sessionkit/_sqlstate.py``.
    """
    meaning, code = _meaning(error)
    return Classification(meaning.kind, code, meaning.retryable, meaning.ambiguous)


def _meaning(error: BaseException) -> tuple[_sqlstate.Meaning, str | None]:
    if isinstance(error, UnexpectedRollback):
        return _meaning(error.__cause__) if error.__cause__ is not None else (_sqlstate.OTHER, None)
    if isinstance(error, StaleDataError):
        return _sqlstate.STALE_VERSION, None
    if isinstance(error, SessionKitError) and not isinstance(error, DBAPIError):
        return _sqlstate.OTHER, None
    chain = list(_chain(error))
    for each in chain:
        found = _sqlstate.look_up(each)
        if found is not None:
            return found.meaning, found.code
    for each in chain:
        if isinstance(each, DBAPIError):
            if each.connection_invalidated:
                return _sqlstate.CONNECTION_LOST, None
            if each.statement is None:
                # No statement, no code: the connection was not made. A COMMIT that fails has a code, or has lost it.
                return _sqlstate.CANNOT_CONNECT, None
        elif (isinstance(each, OSError) or _sqlstate.is_asyncpgs(each)) and _while_connecting(each):
            return _sqlstate.CANNOT_CONNECT, None  # SQLAlchemy does not wrap what asyncpg raises while it connects
    return _sqlstate.OTHER, None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was made of: SQLAlchemy's, the adapter's, the driver's, and one around them."""
    seen: BaseException | None = error
    for _ in range(4):
        if seen is None:
            return
        yield seen
        seen = getattr(seen, "orig", None) or seen.__cause__


_CONNECTING = {("asyncpg.connection", "connect"), ("sqlalchemy.pool.base", "__connect")}


def _while_connecting(error: BaseException) -> bool:
    # An OSError can be anybody's: of a file, of a mail server. Only where it came from tells.
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _CONNECTING:
            return True
        traceback = traceback.tb_next
    return False


def is_aftermath(error: BaseException) -> bool:
    """Tell whether `error` only says that something has failed in the transaction before."""
    return isinstance(error, PendingRollbackError) or classify(error).kind == "in_failed_sql_transaction"


_FIRST = "_sessionkit_first"


def set_first(error: BaseException, first: BaseException) -> None:
    """Have an error that is the aftermath of another tell so."""
    error.__dict__[_FIRST] = first
    error.add_note(f"the first error in its transaction was {type(first).__name__}: {first}")


def first_of(error: BaseException) -> BaseException:
    """Return the error of which `error` is the aftermath, or itself."""
    first: BaseException = error.__dict__.get(_FIRST, error)
    return first


KINDS = _sqlstate.KINDS
"""Every ``kind`` of a `Classification`."""


def is_lost(error: DBAPIError) -> bool:
    """Tell whether an error came in the place of an answer, so that what was asked may have been done."""
    return error.connection_invalidated or classify(error).ambiguous


_OUTCOME = "_sessionkit_outcome"


def set_outcome(error: BaseException, outcome: Outcome) -> None:
    """Have `outcome_of` say `outcome` of an exception that leaves a scope."""
    error.__dict__[_OUTCOME] = outcome  # not setattr: an exception may be a frozen dataclass


def outcome_of(error: BaseException) -> Outcome:
    """Tell what became of the transaction of the scope that an exception has left.

    Args:
        error: the exception, whatever it is: the body's own, a database error, a cancellation, a hook's; also a
            ``TimeoutError`` of ``asyncio.timeout`` or an exception group of a ``TaskGroup`` that it has become.

    Returns:
        ``"committed"``, ``"rolled back"`` or ``"unknown"``; of an exception that left no scope, ``"unknown"``.
    """
    own: Outcome | None = error.__dict__.get(_OUTCOME)
    if own is not None:
        return own
    if isinstance(error, BaseExceptionGroup):
        inside: set[Outcome] = {outcome_of(each) for each in error.exceptions}
        return inside.pop() if len(inside) == 1 else "unknown"
    return "unknown" if error.__cause__ is None else outcome_of(error.__cause__)
