"""What reading from replicas needs of a dialect: the shape of the table entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection


class Position(NamedTuple):
    """A position in the log of a cluster: every copy that has come so far has what was committed before it.

    Attributes:
        cluster: the identity of the log; the same for a primary and its replicas.
        timeline: the number of promotions: after one, the same position may mean something else.
        lsn: the position itself.
    """

    cluster: int
    timeline: int
    lsn: int


class Standing(NamedTuple):
    """The state of a reader at one moment.

    Attributes:
        recovering: it follows a primary, and so cannot write.
        position: how far it has come.
        lag: how far it may be behind, in seconds; None if it does not know.
    """

    recovering: bool
    position: Position
    lag: float | None


@dataclass(frozen=True, slots=True)
class Replication:
    """How a dialect's servers report their positions.

    Attributes:
        position: asks a primary for a position after everything that is committed on it. One statement.
        standing: asks a reader for its state. One statement.
        refused: the isolation levels that a reader cannot provide.
    """

    position: Callable[[Connection], Position]
    standing: Callable[[Connection], Standing]
    refused: frozenset[str]
