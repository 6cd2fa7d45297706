"""What a session remembers about its transaction: how much it has written, and which versions it has made itself.

The notes live in ``session.info`` and hold transactions and objects weakly, so they keep nothing alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session, SessionTransaction

_KEY = "sessionkit_version_notes"

Versions: TypeAlias = "WeakKeyDictionary[InstanceState[Any], list[tuple[Any, list[ref[SessionTransaction]]]]]"
"""For each row, the versions that we have made, each with the savepoints and the transaction around it, innermost first."""


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
        """Remember a version that we wrote after the row matched its expected version."""
        inside: list[ref[SessionTransaction]] = []
        transaction = session.get_nested_transaction() or session.get_transaction()
        while transaction is not None:
            inside.append(ref(transaction))
            transaction = transaction.parent
        if self.versions is None:
            self.versions = WeakKeyDictionary()
        self.versions.setdefault(state, []).append((version, inside))

    def is_ours(self, session: Session, state: InstanceState[Any], version: Any) -> bool:
        """Return whether the current transaction has made this version."""
        root = session.get_transaction()
        made = self.versions.get(state, ()) if self.versions is not None else ()
        return any(version == ours and inside[-1]() is root for ours, inside in made)

    def undo(self, undone: SessionTransaction) -> None:
        """Forget the versions made in a transaction or savepoint that is rolled back."""
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
    """Return what a session remembers, or None if it remembers nothing."""
    notes: Notes | None = session.info.get(_KEY)
    return notes


def add_writes(session: Session, count: int) -> None:
    """Add to the number of objects and statements that the session's transaction has written."""
    root = session.get_transaction()
    if root is None:
        return
    notes = notes_of(session)
    known = notes._root
    if known is None or known() is not root:
        notes._root = ref(root)
        notes._writes = 0
    notes._writes += count
