"""The same work by each peer, in one process: an empty unit, a row, a hundred thousand rows.

Small units take turns in many short rounds, of which the best counts. Of the bulk writes CPU time is compared, that of the
client and of the server's backends together: on a busy machine the clock tells more of the neighbours than of the peer. A
peer that would need too long for all of the rows gets a tenth of them, and the time is given for each row.
"""

from __future__ import annotations

import gc
import sqlite3
import time
from contextlib import closing
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from benchmarks._measure import Case, cpu_seconds, measure, repeat
from benchmarks.compare import peers
from benchmarks.compare.peer import Missing, Peer
from benchmarks.compare.stage import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg
    from sqlalchemy import URL

    from benchmarks.compare.stage import Stage

FLOOR = "the driver by hand"
SECONDS = 3.0  # what one bulk run may last
Figures = dict[str, dict[str, Any]]


def units(stage: Stage, names: Sequence[str], rounds: int) -> dict[str, Figures]:
    """Measure an empty unit and one that inserts a row: microseconds of CPU and on the clock, compared with SQLAlchemy."""
    stage.reset()
    opened = {name: peers.peer(name)(stage.url) for name in names}
    codes = count(1)

    def row(peer: Peer) -> Callable[[], None]:
        return lambda: peer.one_row(next(codes))

    try:
        measured = {
            key: measure(
                [Case(name, repeat(of(peer))) for name, peer in opened.items()], rounds=rounds, round_seconds=0.003
            )
            for key, of in (("empty", lambda peer: peer.empty), ("row", row))
        }
    finally:
        for peer in opened.values():
            peer.close()
    return {
        key: {
            name: {"cpu": timing.cpu * 1e6, "wall": timing.wall * 1e6, "ratio": timing.beside(timings[peers.REFERENCE])}
            for name, timing in timings.items()
        }
        for key, timings in measured.items()
    }


def rows_of(number: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"code": code, "name": f"item {code}", "price": code / 7} for code in range(first, first + number)]


def bulk(stage: Stage, names: Sequence[str], number: int) -> dict[str, Figures]:
    """Insert and upsert rows, with ids in the order of the input: microseconds per row, of CPU and on the clock."""
    opened = {name: peers.peer(name)(stage.url) for name in names}
    try:
        return {
            "insert": _each(stage, opened, number, "insert"),
            "upsert": _each(stage, opened, number, "upsert"),
        }
    finally:
        for peer in opened.values():
            peer.close()


def _each(stage: Stage, opened: dict[str, Peer], number: int, verb: str) -> Figures:
    figures: Figures = {FLOOR: _timed(stage, number, verb, lambda rows: _by_hand(stage, rows, verb))}
    for name, peer in opened.items():
        work = getattr(peer, verb)
        try:
            _timed(stage, 200, verb, work)  # warm, and does it exist?
            probe = _timed(stage, min(number, 2000), verb, work)
        except Missing as missing:
            figures[name] = {"missing": missing.what, "page": missing.page}
            continue
        fits = probe["wall"] * number / 1e6 <= SECONDS
        figures[name] = _timed(stage, number if fits else max(2000, number // 10), verb, work)
    return figures


def _timed(stage: Stage, number: int, verb: str, work: Callable[[list[dict[str, Any]]], list[int] | None]) -> Any:
    """Run it on empty tables, or for an upsert on half of the rows. Twice; the better run counts."""
    cpu = wall = float("inf")
    for _ in range(2):
        stage.reset()
        rows = rows_of(number)
        if verb == "upsert":
            _by_hand(stage, rows[: number // 2], "insert")
        gc.collect()
        backends, client, begun = _spent(stage), time.process_time(), time.perf_counter()
        ids = work(rows)
        wall = min(wall, time.perf_counter() - begun)
        client = time.process_time() - client
        # A backend that did not exist before has started in the meantime.
        server = sum(spent - backends.get(pid, 0.0) for pid, spent in _spent(stage).items())
        cpu = min(cpu, client + server)
        if ids is not None:
            _check(stage, rows, ids)
    return {"cpu": cpu / number * 1e6, "wall": wall / number * 1e6, "rows": number}


def _spent(stage: Stage) -> dict[int, float]:
    """Return the seconds of CPU of each backend of the database, by process id."""
    if stage.backend == "sqlite":
        return {}
    found = stage.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return {pid: cpu_seconds(pid) for (pid,) in found}


def _check(stage: Stage, rows: list[dict[str, Any]], ids: list[int]) -> None:
    found = dict(stage.rows("SELECT id, code FROM item"))
    assert [found[number] for number in ids] == [row["code"] for row in rows], (
        "the ids are not in the order of the input"
    )


def _by_hand(stage: Stage, rows: list[dict[str, Any]], verb: str) -> None:
    """The fastest code for this table with the driver alone. It returns no ids."""
    values = [(row["code"], row["name"], row["price"]) for row in rows]
    if stage.backend == "sqlite":
        with closing(sqlite3.connect(str(stage.url.database))) as file, file:
            conflict = " ON CONFLICT (code) DO UPDATE SET name = excluded.name, price = excluded.price"
            statement = "INSERT INTO item (code, name, price) VALUES (?, ?, ?)"
            file.executemany(statement + (conflict if verb == "upsert" else ""), values)
        return
    connection = _by_psycopg(stage.url)
    with connection.transaction(), connection.cursor() as cursor:
        table = "item"
        if verb == "upsert":
            table = "given"
            cursor.execute("CREATE TEMPORARY TABLE given (code int, name text, price float8) ON COMMIT DROP")
        with cursor.copy(f"COPY {table} (code, name, price) FROM STDIN") as copy:
            for value in values:
                copy.write_row(value)
        if verb == "upsert":
            cursor.execute(
                "INSERT INTO item (code, name, price) SELECT code, name, price FROM given"
                " ON CONFLICT (code) DO UPDATE SET name = excluded.name, price = excluded.price"
            )


@cache
def _by_psycopg(url: URL) -> psycopg.Connection[Any]:
    return connect(url)
