"""What happened at run time: the code may be right, but somebody else, the network or a hook was in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.exc import StaleDataError

from ._base import SessionKitError, describe
from ._usage import ScopeError, VersionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from ._conflicts import Conflict, Conflicts, Policy
    from ._marks import Outcome


class VersionConflict(SessionKitError, StaleDataError):
    """Rows that were to be written have been changed or deleted by somebody else since they were read.

    Raised where SQLAlchemy would raise ``StaleDataError``, of which it is one, and leaves the session as that does:
    out of a flush or commit the transaction (or the savepoint) is rolled back and wants ``session.rollback()``. The
    usual answer is to run the whole unit again, from its reads.

    Attributes:
        conflicts: what is known of each row that was found stale; a tuple.
    """

    conflicts: Conflicts

    def __init__(self, conflicts: Conflicts) -> None:
        super().__init__(str(conflicts))
        self.conflicts = conflicts

    def load(self, session: Session) -> tuple[Conflict, ...]:
        """Read what the rows hold now, and return the conflicts with ``current``, ``deleted`` and ``database`` filled.

        Args:
            session: any usable session; no object in it is touched, nothing is flushed.

        Returns:
            The new value of ``conflicts`` too.

        Emits one SELECT for all rows of a mapped class.
        """
        self.conflicts = self.conflicts.load(session)
        return tuple(self.conflicts)

    async def async_load(self, session: AsyncSession) -> tuple[Conflict, ...]:
        """Do as `load`, on an ``AsyncSession``."""
        return await session.run_sync(self.load)

    def resolve(self, session: Session, policy: Policy, *, partial: bool = False) -> list[Any]:
        """Carry the attempted changes over to the rows as they are now, in a unit of work of its own.

        The objects are read again and changed; the caller's flush or commit writes them, checked as always: if a row
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
            Engines stay in their process: where the error was pickled and read, it is empty, and the message tells.
    """

    def __init__(self, message: str, outcomes: Mapping[Engine, Outcome]) -> None:
        super().__init__(message)
        self.outcomes = dict(outcomes)

    def __reduce__(self) -> tuple[Any, ...]:
        make, args, state = super().__reduce__()
        return make, args, {**state, "outcomes": {}}

    def __copy__(self) -> PartialCommit:
        make, args, _ = super().__reduce__()
        error: PartialCommit = make(*args)
        error.__dict__.update(self.__dict__)
        return error


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
        super().__init__(f"the data is {outcome}, but {count} failed afterwards; the first error was {describe(first)}")
        self.__cause__ = first


class NoReader(ScopeError):
    """No reader could serve a read-only scope, and the factory has ``no_reader="error"``."""


class CommitTokenError(ScopeError, ValueError):
    """The value is no commit token, or one of another cluster, or one from before a promotion."""


class MalformedETag(VersionError, ValueError):
    """A header is not what RFC 9110, section 13.1.1, calls an If-Match."""
