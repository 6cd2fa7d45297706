"""``manual_commit="savepoint"``: an application that commits by hand moves in as it is.

Its ``commit()`` is the release of a savepoint, ``rollback()`` goes back to it, and the transaction commits once, at the
end of the scope. Each level at which somebody may commit by hand has a savepoint of its own: the unit, and each
savepoint scope inside it.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from sqlalchemy import orm

from ...errors import ManualCommit as ManualCommitWarning
from ..commit import first_failure
from .base import Feature

if TYPE_CHECKING:
    from types import FrameType

_OURS = ("sessionkit", "sqlalchemy")


class HandSavepoint(orm.SessionTransaction):
    """The savepoint that a commit by hand releases: without SQLAlchemy's events, which wait for the real COMMIT."""

    def keep(self) -> None:
        """Flush, and keep what was done."""
        session = self.session
        stx = session._transaction
        assert stx is not None
        while stx is not self:  # savepoints that were left open inside it
            stx.commit()
            stx = session._transaction
            assert stx is not None
        session.flush()
        for _, transaction, _, _ in set(self._connections.values()):
            transaction.commit()
        self._remove_snapshot()
        self.close()


class ManualCommit(Feature):
    """Keeps a savepoint open in which everything is done until somebody commits by hand."""

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
        if self.unit.restrictions:  # a read-only scope is around: there is nothing to keep or to undo
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

    def finishing(self) -> None:
        current = self._current()
        # What failed in it and was swallowed is left open: the verdict comes to it.
        if current.is_active and first_failure(current, self.unit) is None:
            current.keep()

    def give_up(self) -> None:
        """Undo what was done since the last commit by hand: a scope that had asked for this was left by an exception."""
        current = self._current()
        if current.is_active:
            current.rollback()


def _warn() -> None:
    """Tell the call site once that its commit is not durable yet."""
    frame: FrameType | None = sys._getframe(2)
    outermost: FrameType | None = None
    greenlet: Any = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            outermost = frame
            break
        frame = frame.f_back
        if frame is None and "greenlet" in sys.modules:  # in async code: go on with what waits for this greenlet
            greenlet = (greenlet or sys.modules["greenlet"].getcurrent()).parent
            frame = None if greenlet is None else greenlet.gr_frame
    if outermost is None:
        return
    warnings.warn_explicit(
        # The same text for all scopes: warnings that differ are told each, and each is kept for ever.
        "commit() was called by hand inside a scope with manual_commit='savepoint': what was done is kept, but not "
        "durable before the scope ends; where nothing else calls this code, take the call out",
        ManualCommitWarning,
        outermost.f_code.co_filename,
        outermost.f_lineno,
        registry=outermost.f_globals.setdefault("__warningregistry__", {}),
    )
