"""``manual_commit="savepoint"``: an application that commits by hand can move in unchanged.

Its ``commit()`` releases a savepoint, its ``rollback()`` goes back to it, and the transaction commits once, at the end of
the scope. Each level at which code may commit by hand has a savepoint of its own: the unit, and each savepoint scope
inside it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import orm

from ..._call_site import call_site
from ...errors import ManualCommit as ManualCommitWarning
from ..commit import first_failure
from .base import Feature


class HandSavepoint(orm.SessionTransaction):
    """The savepoint that a manual commit releases, without SQLAlchemy's events, which wait for the real COMMIT."""

    def keep(self) -> None:
        """Flush, and keep the work."""
        session = self.session
        stx = session._transaction
        assert stx is not None
        while stx is not self:  # savepoints that are still open inside it
            stx.commit()
            stx = session._transaction
            assert stx is not None
        session.flush()
        for _, transaction, _, _ in set(self._connections.values()):
            transaction.commit()
        self._remove_snapshot()
        self.close()


class ManualCommit(Feature):
    """Keeps a savepoint open around all work, until code commits by hand."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        self._expires = unit.session.expire_on_commit
        self._begin()

    def _begin(self) -> HandSavepoint:
        transaction = orm.Session.begin_nested(self.unit.session)
        transaction.__class__ = HandSavepoint
        assert isinstance(transaction, HandSavepoint)
        return transaction

    def _current(self) -> HandSavepoint:
        """Return the innermost savepoint of this kind."""
        transaction = self.unit.session._transaction
        while not isinstance(transaction, HandSavepoint):
            transaction = transaction.parent
        return transaction

    def savepoint_set(self) -> None:
        self._begin()

    def by_hand(self, method: str) -> bool:
        session = self.unit.session
        if method in {"close", "reset"}:
            session.expunge_all()
            return True
        if self.unit.restrictions:  # inside a read-only scope there is nothing to keep or to undo
            session.flush()
            session.expire_all()
            return True
        current = self._current()
        if method == "commit":
            _warn()
            current.keep()
            if self._expires:
                session.expire_all()
        else:
            current.rollback()
        self._begin()
        return True

    def claimed(self) -> None:
        self._current().keep()
        self._begin()

    def finishing(self) -> None:
        current = self._current()
        # If something failed in it and was swallowed, leave it open for the last check to find.
        if current.is_active and first_failure(current, self.unit) is None:
            current.keep()

    def give_up(self) -> None:
        """Undo the work since the last manual commit, because an exception left the scope that had asked for this."""
        current = self._current()
        if current.is_active:
            current.rollback()


def _warn() -> None:
    """Warn each call site once that its commit is not durable yet."""
    site = call_site()
    if site is not None:
        site.warn(
            "commit() was called by hand inside a scope with manual_commit='savepoint': the work is kept, but is not durable "
            "before the scope ends; if this code only runs inside scopes, remove the call",
            ManualCommitWarning,
        )
