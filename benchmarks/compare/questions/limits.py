"""Units with a promise: to write nothing, to be quick. And what SQLite does with the same code."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named, raised_by

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage

LONG = {
    "postgresql": "SELECT pg_sleep(2)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000000) SELECT max(i) FROM n",
}


class Failed(Exception):
    """Raised by the body."""


def read_only(stage: Stage, peer: Peer) -> str:
    def unit() -> None:
        with peer.context(), peer.read_only() as work:
            work.sql("INSERT INTO account (id, name, balance) VALUES (1, 'ann', 0)")

    error = _not_missing(raised_by(unit))
    if stage.names():
        return "written"
    return "not written, no error" if error is None else f"refused with {named(error)}"


def timeout(stage: Stage, peer: Peer) -> str:
    begun = time.monotonic()

    def unit() -> None:
        with peer.context(), peer.limited(0.1) as work:
            work.sql(LONG[stage.backend])

    error = _not_missing(raised_by(unit))
    return f"stopped with {named(error)}" if error is not None and time.monotonic() - begun < 1.5 else "not stopped"


def _not_missing(error: Exception | None) -> Exception | None:
    from benchmarks.compare.peer import Missing

    if isinstance(error, Missing):
        raise error
    return error


def foreign_keys(stage: Stage, peer: Peer) -> str:
    def unit() -> None:
        with peer.context(), peer.unit() as work:
            work.sql("INSERT INTO entry (id, account_id) VALUES (1, 99)")

    error = raised_by(unit)
    return "accepted" if error is None else f"refused with {named(error)}"


def one_snapshot(stage: Stage, peer: Peer) -> str:
    stage.write("INSERT INTO account (id, name, balance) VALUES (1, 'ann', 0)")
    blocked = False
    with peer.context(), peer.unit() as work:
        before = work.total()
        try:
            stage.write("UPDATE account SET balance = 5")
        except sqlite3.OperationalError:
            blocked = True
        after = work.total()
    return ("the same twice" + ("; the writer waits" if blocked else "")) if before == after else "two answers"


def released_savepoint(stage: Stage, peer: Peer) -> str:
    with suppress(Failed), peer.context(), peer.unit() as work:
        with peer.savepoint(work):
            work.add(1, "ann")
        raise Failed
    return "stays" if stage.names() else "rolled back"


QUESTIONS = [
    Question(
        "read_only",
        "A read-only unit writes",
        "The peer's read-only unit sends an INSERT: with sessionkit `read_only=True`, with SQLAlchemy the option"
        " `postgresql_readonly`, with oslo.db `reader`.",
        read_only,
    ),
    Question(
        "timeout",
        "A statement exceeds its time limit",
        "The unit allows a statement 0.1 seconds, and sends one that takes longer.",
        timeout,
    ),
    Question(
        "sqlite_foreign_keys",
        "SQLite: a foreign key that points to no row",
        "The engine is the peer's default. `sessionkit.sqlite.configure()`, oslo.db's `sqlite_fk=True` and a"
        " listener from SQLAlchemy's documentation switch foreign keys on.",
        foreign_keys,
        backends=("sqlite",),
    ),
    Question(
        "sqlite_snapshot",
        "SQLite: a unit reads twice, and another connection writes in between",
        "Is a unit that has only read a transaction?",
        one_snapshot,
        backends=("sqlite",),
    ),
    Question(
        "sqlite_savepoint",
        "SQLite: a unit releases a savepoint, then rolls back",
        "A savepoint inserts a row and ends well; then the unit raises.",
        released_savepoint,
        backends=("sqlite",),
    ),
]
