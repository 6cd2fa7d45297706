"""Work that must wait for the commit."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.compare.questions._question import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage


class Failed(Exception):
    """Raised by the body."""


class Calls:
    """A hook that notes whether what its unit did could be seen when it was called."""

    def __init__(self, stage: Stage, *, undone: bool) -> None:
        self._stage = stage
        self._undone = undone  # what the hook is registered for is rolled back
        self.saw: list[bool] = []

    def __call__(self) -> None:
        self.saw.append(bool(self._stage.names()))

    def summary(self) -> str:
        if not self.saw:
            return "dropped" if self._undone else "not run"
        times = {1: "run once", 2: "run twice"}.get(len(self.saw), f"run {len(self.saw)} times")
        if self._undone:
            return f"{times}, for work that was rolled back"
        if all(self.saw):
            return f"{times}, after the commit"
        return f"{times}, before anything is committed" if not any(self.saw) else f"{times}, at first before the commit"


def hooked(body: Callable[[Peer, Calls], None], *, undone: bool = False) -> Callable[[Stage, Peer], str]:
    def ask(stage: Stage, peer: Peer) -> str:
        calls = Calls(stage, undone=undone)
        with suppress(Failed), peer.context():
            body(peer, calls)
        return calls.summary()

    return ask


def committed(peer: Peer, calls: Calls) -> None:
    with peer.unit() as work:
        work.add(1, "ann")
        peer.after_commit(work, calls)


def rolled_back(peer: Peer, calls: Calls) -> None:
    with peer.unit() as work:
        work.add(1, "ann")
        peer.after_commit(work, calls)
        raise Failed


def savepoint_kept(peer: Peer, calls: Calls) -> None:
    with peer.unit() as work:
        with peer.savepoint(work):
            work.add(1, "ann")
            peer.after_commit(work, calls)
        work.add(2, "bob")


def savepoint_rolled_back(peer: Peer, calls: Calls) -> None:
    with peer.unit() as work:
        with suppress(Failed), peer.savepoint(work):
            work.add(1, "ann")
            peer.after_commit(work, calls)
            raise Failed
        work.add(2, "bob")


QUESTIONS = [
    Question(
        "hook_committed",
        "A hook that runs after the commit",
        "A unit inserts a row, registers a hook, and ends. The hook checks from outside whether the row is there. For a peer"
        " without its own hooks, this is the session event `after_commit` of SQLAlchemy.",
        hooked(committed),
    ),
    Question(
        "hook_rolled_back",
        "... and the unit rolls back",
        "The same, but the unit raises.",
        hooked(rolled_back, undone=True),
    ),
    Question(
        "hook_savepoint",
        "... registered in a savepoint that is released",
        "A savepoint registers the hook and ends well; then the unit inserts another row and commits.",
        hooked(savepoint_kept),
    ),
    Question(
        "hook_savepoint_rolled_back",
        "... registered in a savepoint that is rolled back",
        "The savepoint raises; the unit catches that, inserts another row and commits. The work of the hook is undone.",
        hooked(savepoint_rolled_back, undone=True),
    ),
]
