"""What can go wrong at run time although the code is right: another writer, the network or a hook got in the way."""

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
    """Since you read them, somebody else has changed or deleted rows that you wanted to write.

    Raised where SQLAlchemy would raise ``StaleDataError``, which it also is, and it leaves the session in the same state:
    if a flush or commit raised it, the transaction (or the savepoint) is rolled back and the session needs
    ``session.rollback()``. The usual answer is to run the whole unit again, including its reads.

    Attributes:
        conflicts: a tuple with what is known about each stale row.
    """

    conflicts: Conflicts

    def __init__(self, conflicts: Conflicts) -> None:
        super().__init__(str(conflicts))
        self.conflicts = conflicts

    def load(self, session: Session) -> tuple[Conflict, ...]:
        """Read the current state of the rows, and return the conflicts with ``current``, ``deleted`` and ``database`` set.

        Args:
            session: any usable session; none of its objects is touched, nothing is flushed.

        Returns:
            The conflicts, which are also the new value of ``conflicts``.

        Emits one SELECT per mapped class, for all its rows.
        """
        self.conflicts = self.conflicts.load(session)
        return tuple(self.conflicts)

    async def async_load(self, session: AsyncSession) -> tuple[Conflict, ...]:
        """The async twin of `load`, on an ``AsyncSession``."""
        return await session.run_sync(self.load)

    def resolve(self, session: Session, policy: Policy, *, partial: bool = False) -> list[Any]:
        """Apply the attempted changes to the rows as they are now, in a unit of work of its own.

        Reads the objects again and changes them. Your flush or commit writes them, checked as always: if a row has
        changed yet again, that raises a new VersionConflict.

        Args:
            session: a usable session in which these objects have no pending changes.
            policy: for each row

                - ``"client_wins"``: every attempted value is written;
                - ``"database_wins"``: nothing is written;
                - ``"merge"``: a column that only we changed gets our value, and one that only the database changed keeps
                  its own. If both changed a column to different values, or the original is not known, the row stays
                  in conflict. So does a row that we wanted to delete and somebody else changed;
                - a function: called with the `Conflict` (``database`` filled), it returns one of these names, or a
                  mapping of attribute names to the values to write.

                A row that is gone can be neither updated nor merged and stays in conflict; if we wanted to delete it,
                that is done. All rows are decided before the first one is changed.
            partial: apply the changes of the rows in conflict even if the failed unit did more that cannot be carried
                over (rows inserted, other rows changed, collections, earlier flushes); you redo the rest.

        Returns:
            The objects in the order of ``conflicts``; None for a row that is gone.

        Raises:
            VersionConflict: some rows stay in conflict; its ``conflicts`` holds only these, with ``database`` filled.
            VersionError: the failed unit did more, and `partial` was not given; or an object has pending changes.

        Emits one SELECT per mapped class, for all its rows.
        """
        return self.conflicts.resolve(session, policy, partial=partial)

    async def async_resolve(self, session: AsyncSession, policy: Policy, *, partial: bool = False) -> list[Any]:
        """The async twin of `resolve`, on an ``AsyncSession``."""
        return await session.run_sync(lambda sync_session: self.resolve(sync_session, policy, partial=partial))


class UnexpectedRollback(SessionKitError):
    """A scope ended without an exception, but its work could not be committed.

    Something failed inside and the error was swallowed, so the database had already given the transaction up, or
    would have committed half of the work. Nothing was committed. ``__cause__`` is the first error, if there is one.
    """


class CommitOutcomeUnknown(SessionKitError):
    """The answer to COMMIT did not arrive: the transaction may or may not have been committed.

    It is never retried, because that could do the work twice. ``verify_commit=True`` finds the outcome out.
    ``__cause__`` is the driver's error.

    Attributes:
        key: the key of the unit's commit marker, for `commits.claim`; None without ``verify_commit=True``.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class PartialCommit(SessionKitError):
    """A unit wrote to several databases, and they ended differently: some have committed, or may have, others have not.

    Without ``twophase=True`` the databases commit one after the other, and a failure on one of them cannot undo the
    commits before it. It is never retried, and no hook runs. ``__cause__`` is the driver's error.

    Attributes:
        outcomes: how the transaction ended on each engine that took part. The keys are the engines of the factory (the
            ``sync_engine`` of an ``AsyncEngine``), those that received COMMIT first, in that order. Engines cannot be
            pickled: on an error that was, it is empty, and the message holds the outcomes.
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
    """One or more hooks failed after the transaction had ended.

    Attributes:
        errors: what the hooks raised, in the order in which they ran; the first is also ``__cause__``.
        outcome: ``"committed"`` or ``"rolled back"``: how the transaction ended, before any hook ran.
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
    """The value is not a commit token, or it belongs to another cluster, or it was made before a promotion."""


class MalformedETag(VersionError, ValueError):
    """A header is not an If-Match as RFC 9110, section 13.1.1, defines it."""
