"""The answer to a COMMIT is lost: what does the caller learn, and what happens then?"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from benchmarks.compare.peer import Missing
from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named, raised_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.compare.peer import Peer, Work
    from benchmarks.compare.stage import Stage


def lost(stage: Stage, peer: Peer, run: Callable[[Peer, Callable[[Work], object]], object]) -> str:
    numbers = count(1)

    def body(work: Work) -> None:
        number = next(numbers)
        work.add(number, f"order {number}")

    with stage.answer_of_commit_lost() as (url, fault):
        through = type(peer)(url)

        def unit() -> None:
            with through.context():
                run(through, body)

        error = raised_by(unit)
        through.close()
        if isinstance(error, Missing):
            raise error
        assert fault.struck
    rows, runs = len(stage.names()), next(numbers) - 1
    heard = "no error" if error is None else f"raises {named(error)}"
    return f"{heard}; run {_times(runs)}, committed {_times(rows)}"


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")


def in_a_unit(peer: Peer, body: Callable[[Work], object]) -> None:
    with peer.unit() as work:
        body(work)


def verified(stage: Stage, peer: Peer) -> str:
    peer.prepare_to_verify()
    return lost(stage, peer, lambda opened, body: opened.verified(body))


QUESTIONS = [
    Question(
        "commit_lost",
        "The answer to COMMIT is lost",
        "A proxy passes COMMIT on to the server, and resets the connection instead of returning the answer. The unit inserts an"
        " order with a new number, and it *is* committed.",
        lambda stage, peer: lost(stage, peer, in_a_unit),
        backends=("postgresql",),
    ),
    Question(
        "commit_lost_retried",
        "... with the peer's retry",
        "`@Session.scope(retry=...)`; `wrap_db_retry(retry_on_disconnect=True)`. An order that is committed twice means a"
        " blind retry.",
        lambda stage, peer: lost(stage, peer, lambda opened, body: opened.retried(body)),
        backends=("postgresql",),
    ),
    Question(
        "commit_lost_verified",
        "... and the peer finds out",
        "`@Session.scope(retry=..., verify_commit=True)`.",
        verified,
        backends=("postgresql",),
    ),
]
