"""Code that commits, under test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.compare.peer import Missing
from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named, raised_by

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage


class Failed(Exception):
    """Raised by the body."""


def isolated(stage: Stage, peer: Peer) -> str:
    seen: list[int] = []

    def test() -> None:
        with peer.context():
            with peer.unit() as work:
                work.add(1, "ann", balance=7)
            with peer.unit() as work:
                seen.append(work.total())

    def run() -> None:
        with peer.context():
            peer.isolated_test(test)

    error = raised_by(run)
    if isinstance(error, Missing):
        raise error
    left = "the row stays" if stage.names() else "the row is gone after the test"
    return left if seen == [7] and error is None else f"the test fails with {named(*filter(None, [error]))}; {left}"


QUESTIONS = [
    Question(
        "test_isolation",
        "A test runs code that commits, and should leave nothing behind",
        "In the peer's test isolation a unit commits, and a second one reads what it wrote: the fixture"
        " `sessionkit_isolation`, SQLAlchemy's recipe with `join_transaction_mode`, `test_isolation()`, `TestCase`."
        " (Flask-SQLAlchemy-Lite 0.2.1 is older than SQLAlchemy 2.1. With SQLAlchemy 2.0.58 its row is gone on PostgreSQL.)",
        isolated,
    )
]
