"""What reading from replicas needs of a dialect: the shape of the table entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection


class Position(NamedTuple):
    """A place in the log of a cluster: what was committed before it is in every copy that has come so far.

    Attributes:
        cluster: which log; the same for a primary and its replicas.
        timeline: counts the promotions: after one, equal numbers may mean different things.
        lsn: how far.
    """

    cluster: int
    timeline: int
    lsn: int


class Standing(NamedTuple):
    """How a reader stands at a moment.

    Attributes:
        recovering: it follows a primary, and so can write nothing.
        position: how far it has come.
        lag: how old what it shows may be, in seconds; None where it cannot tell.
    """

    recovering: bool
    position: Position
    lag: float | None


@dataclass(frozen=True, slots=True)
class Replication:
    """How a dialect's servers tell where they are.

    Attributes:
        position: asks a primary for a place after everything that was committed on it until now. One statement.
        standing: asks a reader. One statement.
        refused: the isolation levels that a reader cannot give.
    """

    position: Callable[[Connection], Position]
    standing: Callable[[Connection], Standing]
    refused: frozenset[str]
