"""What a session remembers of its transaction: how much it has written, and which versions it has made itself.

The notes are in ``session.info`` and hold transactions and objects weakly, so they keep nothing alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session, SessionTransaction

_KEY = "sessionkit_version_notes"

Versions: TypeAlias = "WeakKeyDictionary[InstanceState[Any], list[tuple[Any, list[ref[SessionTransaction]]]]]"
"""For each row the versions that we have made, each with the savepoints and the transaction around it, inside out."""


class Notes:
    """What one session remembers."""

    __slots__ = ("_root", "_writes", "versions")

    def __init__(self) -> None:
        self._root: ref[SessionTransaction] | None = None
        self._writes = 0
        self.versions: Versions | None = None

    def writes(self, root: SessionTransaction | None) -> int:
        """Return how many objects and statements a transaction has written."""
        return self._writes if root is not None and self._root is not None and self._root() is root else 0

    def add_version(self, session: Session, state: InstanceState[Any], version: Any) -> None:
        """Remember a version that we have made of a row whose expectation was met."""
        inside: list[ref[SessionTransaction]] = []
        transaction = session.get_nested_transaction() or session.get_transaction()
        while transaction is not None:
            inside.append(ref(transaction))
            transaction = transaction.parent
        if self.versions is None:
            self.versions = WeakKeyDictionary()
        self.versions.setdefault(state, []).append((version, inside))

    def is_ours(self, session: Session, state: InstanceState[Any], version: Any) -> bool:
        """Tell whether we have made a version in the transaction that runs."""
        root = session.get_transaction()
        made = self.versions.get(state, ()) if self.versions is not None else ()
        return any(version == ours and inside[-1]() is root for ours, inside in made)

    def undo(self, undone: SessionTransaction) -> None:
        """Forget the versions that were made in a transaction or savepoint which is rolled back."""
        for versions in self.versions.values() if self.versions is not None else ():
            versions[:] = [
                (version, inside) for version, inside in versions if all(each() is not undone for each in inside)
            ]


def notes_of(session: Session) -> Notes:
    """Return what a session remembers."""
    notes: Notes | None = session.info.get(_KEY)
    if notes is None:
        notes = session.info[_KEY] = Notes()
    return notes


def known_notes(session: Session) -> Notes | None:
    """Return what a session remembers, or None if that is nothing."""
    notes: Notes | None = session.info.get(_KEY)
    return notes


def add_writes(session: Session, count: int) -> None:
    """Count what the session's transaction has written."""
    root = session.get_transaction()
    if root is None:
        return
    notes = notes_of(session)
    known = notes._root
    if known is None or known() is not root:
        notes._root = ref(root)
        notes._writes = 0
    notes._writes += count
