"""The shape of the table entries for row locks and for the mutex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.engine import Connection, Engine

    Asked = Any  # _base.Asked and _base.Beginning, which build on this file
    Beginning = Any

REPEATABLE_READ = "REPEATABLE READ"


def _can(connection: Connection) -> str | None:
    return None


def _nobody(connection: Connection, *_: Any) -> tuple[Holder, ...]:
    return ()


def _unbounded(connection: Connection, seconds: float) -> None:
    """Do nothing: locks here never wait."""


def _given_back(connection: Connection, before: Any) -> None:
    """Do nothing: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Locks:
    """How to lock rows and take a mutex. A wait is in seconds; 0 means no wait, None means for ever.

    Attributes:
        refused: returns why nothing can be locked in the transaction of a connection; None if it can.
        bound: makes the statements of a transaction wait for each lock at most that many seconds, or as long as was
            allowed before if that is shorter; returns what `unbound` needs.
        unbound: undoes that.
        holders: returns who holds rows of a table, chosen by a condition, in one statement.
        mutex: locks a number until the end of the transaction, as its next statement. Returns the transaction's level,
            and whether it got the lock; at REPEATABLE READ it locks nothing.
        mutex_holders: returns who holds it.
        begins: BEGIN takes the mutex.
        beginning: how a transaction begins in that case, with the longest wait for it.
    """

    refused: Callable[[Connection], str | None] = _can
    bound: Callable[[Connection, float], Any] = _unbounded
    unbound: Callable[[Connection, Any], None] = _given_back
    holders: Callable[[Connection, Table, Sequence[ColumnElement[bool]]], tuple[Holder, ...]] = _nobody
    mutex: Callable[[Connection, int, float | None], tuple[str, bool]] = lambda *_: ("SERIALIZABLE", True)
    mutex_holders: Callable[[Connection, int], tuple[Holder, ...]] = _nobody
    begins: bool = False
    beginning: Callable[[Engine, Asked, float | None], Beginning] | None = None
