"""A function with its own unit, called inside another unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named, raised_by

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage


class Failed(Exception):
    """Raised by the body."""


def outer_fails(stage: Stage, peer: Peer) -> str:
    def outer() -> None:
        with peer.context(), peer.unit() as work:
            work.add(1, "outer")
            with peer.unit() as inner:
                inner.add(2, "inner")
            raise Failed

    error = raised_by(outer)
    left = stage.names()
    if not isinstance(error, Failed):
        assert error is not None
        return f"raises {named(error)}; {_committed(left)}"
    return "one transaction: rolled back with the outer one" if not left else _committed(left)


def inner_fails(stage: Stage, peer: Peer) -> str:
    def outer() -> None:
        with peer.context(), peer.unit() as work:
            work.add(1, "outer")
            try:
                with peer.unit() as inner:
                    inner.add(2, "inner")
                    raise Failed
            except Failed:
                pass

    error = raised_by(outer)
    left = stage.names()
    if error is not None:
        return f"raises {named(error)}; {_committed(left)}"
    return f"no error; {_committed(left)}"


def _committed(left: list[str]) -> str:
    return f"{' and '.join(left)} committed" if left else "nothing committed"


QUESTIONS = [
    Question(
        "outer_fails",
        "The inner unit succeeds, then the outer one fails",
        "The outer unit inserts `outer`, calls a function whose own unit inserts `inner`, and then raises.",
        outer_fails,
    ),
    Question(
        "inner_fails",
        "The inner unit fails, and the outer one catches the error",
        "The outer unit has inserted `outer`; the inner one inserts `inner` and raises. The outer one catches that and ends."
        ' (With `propagation="savepoint"` sessionkit commits `outer` and raises nothing, as Django\'s `atomic()` does.)',
        inner_fails,
    ),
]
