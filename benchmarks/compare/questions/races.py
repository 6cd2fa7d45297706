"""Two units at the same time: lost updates, write skew, serialization failures at COMMIT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.compare.peer import Missing
from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import Meeting, named, together

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer, Work
    from benchmarks.compare.stage import Stage

Body = Callable[[Any], object]


def in_a_unit(peer: Peer, body: Body) -> None:
    with peer.context(), peer.unit() as work:
        body(work)


def with_retry(peer: Peer, body: Body) -> None:
    with peer.context():
        peer.retried(body)


def race(peer: Peer, run: Callable[[Peer, Body], None], *bodies: Body) -> list[Exception]:
    """Run bodies at the same time, each in a thread that is warm: has its connection, has compiled a statement."""
    start = threading.Barrier(len(bodies))

    def one(body: Body) -> None:
        run(peer, lambda work: work.total())
        start.wait(30)
        run(peer, body)

    return together(*(partial(one, body) for body in bodies))


class Runs:
    """Counts how often bodies were begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.number = 0

    def count(self) -> None:
        with self._lock:
            self.number += 1


def increments(stage: Stage, peer: Peer, run: Callable[[Peer, Body], None], *, versioned: bool = False) -> str:
    stage.write("INSERT INTO account (id, name, balance) VALUES (1, 'ann', 0)")
    read, runs = Meeting(), Runs()

    def body(work: Work) -> None:
        runs.count()
        row = work.get(1, versioned=versioned)
        seen = row.balance
        read.wait()
        row.balance = seen + 1
        work.save(row)

    errors = race(peer, run, body, body)
    (balance,) = stage.balances()
    if balance == 2:
        return "both counted" + _replayed(runs)
    return f"one refused with {named(*errors)}" if errors else "one lost silently"


def lost_update(stage: Stage, peer: Peer) -> str:
    return increments(stage, peer, in_a_unit)


def lost_update_versioned(stage: Stage, peer: Peer) -> str:
    if not peer.has_version:
        raise Missing("no version column", peer.docs)
    return increments(stage, peer, in_a_unit, versioned=True)


def lost_update_retried(stage: Stage, peer: Peer) -> str:
    _has_retry(peer)
    return increments(stage, peer, with_retry, versioned=True)


def _has_retry(peer: Peer) -> None:
    """Raise `Missing` if it has none."""
    with peer.context():
        peer.retried(lambda _work: None)


def skew(stage: Stage, peer: Peer, run: Callable[[Peer, Body], None]) -> str:
    for number, name in ((1, "ann"), (2, "bob")):
        stage.write(f"INSERT INTO account (id, name, balance) VALUES ({number}, '{name}', 0)")
    read, wrote, runs = Meeting(), Meeting(), Runs()

    def body_of(number: int) -> Body:
        def body(work: Work) -> None:
            runs.count()
            total = work.total()
            read.wait()
            if total == 0:
                row = work.get(number)
                row.balance = 1
                work.save(row)
            wrote.wait()

        return body

    errors = race(peer, run, body_of(1), body_of(2))
    balances = stage.balances()
    if sum(balances) == 2:
        return "happens silently"
    return f"prevented: one gets {named(*errors)}" if errors else "prevented" + _replayed(runs)


def _replayed(runs: Runs) -> str:
    return f"; run again, {runs.number} runs for 2 units" if runs.number > 2 else ""


def write_skew(stage: Stage, peer: Peer) -> str:
    return skew(stage, peer, in_a_unit)


def write_skew_retried(stage: Stage, peer: Peer) -> str:
    _has_retry(peer)
    return skew(stage, peer, with_retry)


RULE = (
    "Two accounts hold 0, and only one of them may become 1. Two units read the sum at the same time, see 0, write 1 to one"
    " account each, and commit after both have written."
)
QUESTIONS = [
    Question(
        "lost_update",
        "Two units read a number, add one, and write it back",
        "Both read before either writes, if the database lets them. Afterwards the number should be 2, or one of the"
        " units should get an error. Plain model, default isolation.",
        lost_update,
    ),
    Question(
        "lost_update_versioned",
        "The same with a version column",
        "With the peer's own version column: sessionkit's `Versioned`, SQLAlchemy's `version_id_col`.",
        lost_update_versioned,
    ),
    Question(
        "lost_update_retried",
        "The same with a version column and the peer's retry",
        "`@Session.scope(retry=...)`; `wrap_db_retry(retry_on_deadlock=True, retry_on_disconnect=True)`.",
        lost_update_retried,
    ),
    Question("write_skew", "Write skew at the default isolation level", RULE, write_skew),
    Question(
        "write_skew_serializable",
        "Write skew at SERIALIZABLE: a failure that arrives at COMMIT",
        "The same, with the peer's option for the isolation level: on the unit with sessionkit, on the engine or database"
        " with the others, if they have one. On SQLite Django's option is `transaction_mode`.",
        write_skew,
        serializable=True,
    ),
    Question(
        "write_skew_retried",
        "The same with the peer's retry",
        "A unit that fails at COMMIT must run again from its first line, in a new transaction.",
        write_skew_retried,
        serializable=True,
    ),
]
