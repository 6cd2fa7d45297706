"""Errors that the code swallows: does the caller learn that its work is lost?"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named, raised_by

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage


def outcome(stage: Stage, error: Exception | None, wanted: list[str]) -> str:
    """Say how a unit ended that was meant to commit these names, as its caller sees it."""
    left = stage.names()
    if error is not None:
        return f"raises {named(error)}" + (f"; {_listed(left)} committed" if left else "; nothing committed")
    if left == wanted:
        return f"no error; {_listed(left)} committed"
    return f"lost silently: {_listed([name for name in wanted if name not in left])}"


def _listed(names: list[str]) -> str:
    return " and ".join(names)


def swallowed_flush(stage: Stage, peer: Peer) -> str:
    def unit() -> None:
        with peer.context(), peer.unit() as work:
            work.add(1, "ann")
            with suppress(Exception):
                work.add(2, "ann")

    return outcome(stage, raised_by(unit), ["ann"])


def swallowed_and_on(stage: Stage, peer: Peer) -> str:
    at = "at the exit"

    def unit() -> None:
        nonlocal at
        with peer.context(), peer.unit() as work:
            work.add(1, "ann")
            with suppress(Exception):
                work.add(2, "ann")
            at = "at the next insert"
            work.add(3, "bob")
            at = "at the exit"

    error = raised_by(unit)
    said = outcome(stage, error, ["ann", "bob"])
    return said if error is None else said.replace(";", f" {at};", 1)


def swallowed_statement(stage: Stage, peer: Peer) -> str:
    def unit() -> None:
        with peer.context(), peer.unit() as work:
            work.add(1, "ann")
            with suppress(Exception):
                work.sql("INSERT INTO account (id, name, balance) VALUES (2, 'ann', 0)")

    return outcome(stage, raised_by(unit), ["ann"])


QUESTIONS = [
    Question(
        "swallowed_flush",
        "The code catches a failed insert, and the unit ends",
        "A unit inserts `ann` through the ORM, then a second `ann`. It catches the error and ends.",
        swallowed_flush,
    ),
    Question(
        "swallowed_and_on",
        "The code catches a failed insert, and the unit goes on",
        "The same, but after the failed insert the unit inserts `bob`.",
        swallowed_and_on,
    ),
    Question(
        "swallowed_statement",
        "The code catches a failed SQL statement: COMMIT of an aborted transaction",
        "A unit inserts `ann` through the ORM, then a second one by an SQL statement, catches the error and ends. PostgreSQL"
        " has aborted the transaction by then, and answers COMMIT with a ROLLBACK and no error.",
        swallowed_statement,
    ),
]
