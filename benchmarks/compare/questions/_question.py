"""A question: what is staged, and a function that stages it for a peer and reports what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage

BOTH = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Question:
    """One table of the comparison.

    Attributes:
        key: what the results file calls it.
        title: the heading of its table.
        staged: for the reader, what happens and what is observed.
        ask: stages it on empty tables with an open peer, and returns the outcome. May raise `Missing`.
        backends: where it can be asked.
        serializable: have the peer work at SERIALIZABLE.
    """

    key: str
    title: str
    staged: str
    ask: Callable[[Stage, Peer], str]
    backends: tuple[str, ...] = BOTH
    serializable: bool = False
