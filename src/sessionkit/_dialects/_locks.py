"""The shape of the table entries about locks of rows, and about what is done by one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.engine import Connection, Engine

    Asked = Any  # _base.Asked and _base.Beginning, which stand on this file
    Beginning = Any

REPEATABLE_READ = "REPEATABLE READ"


def _can(connection: Connection) -> str | None:
    return None


def _nobody(connection: Connection, *_: Any) -> tuple[Holder, ...]:
    return ()


def _unbounded(connection: Connection, seconds: float) -> None:
    """Do nothing: what is locked here, is locked without a wait."""


def _given_back(connection: Connection, before: Any) -> None:
    """Do nothing: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Locks:
    """How rows are locked, and how something is done by one at a time. A wait is in seconds, 0 for none, None for ever.

    Attributes:
        refused: tells why nothing can be locked in the transaction of a connection; None where it can.
        bound: has the statements of a transaction wait for each lock so many seconds at the most, or as long as was
            allowed before if that is shorter; returns what `unbound` needs.
        unbound: takes that back.
        holders: tells who holds rows of a table, by a condition; in one statement.
        mutex: locks a number until the end of the transaction, as its next statement. Returns the level that the
            transaction runs at, and whether the lock was had; at REPEATABLE READ nothing is locked.
        mutex_holders: tells who holds it.
        begins: BEGIN takes the mutex.
        beginning: how a transaction begins then, with the longest wait for it.
    """

    refused: Callable[[Connection], str | None] = _can
    bound: Callable[[Connection, float], Any] = _unbounded
    unbound: Callable[[Connection, Any], None] = _given_back
    holders: Callable[[Connection, Table, Sequence[ColumnElement[bool]]], tuple[Holder, ...]] = _nobody
    mutex: Callable[[Connection, int, float | None], tuple[str, bool]] = lambda *_: ("SERIALIZABLE", True)
    mutex_holders: Callable[[Connection, int], tuple[Holder, ...]] = _nobody
    begins: bool = False
    beginning: Callable[[Engine, Asked, float | None], Beginning] | None = None
