"""Throughput of several threads that want the same rows: `python -m benchmarks.contention --url postgresql+psycopg://...`.

Eight threads read a number, add one and write it back. The ways of doing it take turns in several rounds, in an order that
changes, and the best round of each counts. Without `--url` it measures only SQLite. `--svg FILE` draws the hot row.

    commits/s   of all threads together
    retries     attempts beyond the first, per commit
    most        retries of the unluckiest commit
    p99         of the time that one commit took, its retries included, in milliseconds
    fair        commits of the slowest thread, divided by those of the fastest
    gave up     units that used up their attempts
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, func, insert, make_url, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks._measure import conditions
from sessionkit import Isolation, Retry, Versioned, errors, sessionmaker, sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 8
ATTEMPTS = 1000  # no unit gives up here; how many would have with BUDGET attempts is counted
BUDGET = 10


class Base(DeclarativeBase):
    pass


class Plain(Base):
    __tablename__ = "bench_plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Checked(Versioned, Base):
    __tablename__ = "bench_checked"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


def atomic(session: Any, row: int) -> None:
    session.execute(update(Plain).where(Plain.id == row).values(value=Plain.value + 1))


def for_update(session: Any, row: int) -> None:
    found = session.scalars(select(Plain).where(Plain.id == row).with_for_update()).one()
    found.value += 1


def plain(session: Any, row: int) -> None:
    found = session.scalars(select(Plain).where(Plain.id == row)).one()
    found.value += 1


def checked(session: Any, row: int) -> None:
    found = session.scalars(select(Checked).where(Checked.id == row)).one()
    found.value += 1


def checked_for_update(session: Any, row: int) -> None:
    found = session.scalars(select(Checked).where(Checked.id == row).with_for_update()).one()
    found.value += 1


NO_WAIT = Retry(ATTEMPTS, wait=0)
FIXED = Retry(ATTEMPTS, wait=0.005, wait_max=0.005, jitter=False)
EXPONENTIAL = Retry(ATTEMPTS, jitter=False)
JITTER = Retry(ATTEMPTS)
LOCKING = replace(JITTER, lock_on_retry=True)
POLICIES = {
    "no wait": NO_WAIT,
    "fixed 5 ms": FIXED,
    "exponential": EXPONENTIAL,
    "exponential, full jitter": JITTER,
    "lock_on_retry": LOCKING,
}


@dataclass(frozen=True)
class Way:
    """One way of incrementing."""

    name: str
    body: Callable[[Any, int], None]
    options: dict[str, Any] = field(default_factory=dict)


ATOMIC = Way("atomic UPDATE", atomic)
FOR_UPDATE = Way("SELECT FOR UPDATE", for_update)
# The same mapping as that of the optimistic ways: its UPDATE includes the version, which alone costs about a seventh.
VERSIONED_FOR_UPDATE = Way("SELECT FOR UPDATE, version column", checked_for_update)
OPTIMISTIC = [Way(f"version column, {name}", checked, {"retry": retry}) for name, retry in POLICIES.items()]
SERIALIZABLE = [
    Way(f"SERIALIZABLE, {name}", plain, {"retry": retry, "isolation": Isolation.SERIALIZABLE})
    for name, retry in POLICIES.items()
]
ON_POSTGRESQL = [ATOMIC, FOR_UPDATE, VERSIONED_FOR_UPDATE, *OPTIMISTIC, *SERIALIZABLE]
ON_SQLITE = [ATOMIC, Way("version column, full jitter", checked, {"retry": JITTER}), Way("no version", plain)]


@dataclass
class Result:
    """The result of one round of one way."""

    commits: list[int] = field(default_factory=list)  # of each thread
    retries: list[int] = field(default_factory=list)  # of each commit
    times: list[float] = field(default_factory=list)
    locked: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return sum(self.commits) / self.seconds

    @property
    def fair(self) -> float:
        return min(self.commits) / max(self.commits)

    @property
    def p99(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)] * 1000

    @property
    def over_budget(self) -> int:
        return sum(retries >= BUDGET for retries in self.retries)

    def cells(self) -> list[str]:
        return [
            f"{self.rate:.0f}",
            f"{sum(self.retries) / max(1, len(self.retries)):.2f}",
            f"{max(self.retries, default=0)}",
            f"{self.p99:.0f}",
            f"{self.fair:.2f}",
            f"{self.over_budget}",
        ]


HEADER = ["", "commits/s", "retries", "most", "p99 ms", "fair", f"over {BUDGET} attempts"]


def run(engine: Engine, way: Way, rows: int, seconds: float, seed: int) -> Result:
    """Let all threads increment for a while, and check that nothing was lost."""
    model = Checked if way.body in (checked, checked_for_update) else Plain
    with engine.begin() as connection:
        connection.execute(model.__table__.delete())  # type: ignore[attr-defined]
        start: dict[str, Any] = {"value": 0} | ({"version_id": 1} if model is Checked else {})
        connection.execute(insert(model), [{"id": row, **start} for row in range(rows)])
    scope = sessionmaker(engine).scope(**way.options)
    increment = scope(way.body)
    result = Result()
    barrier = threading.Barrier(THREADS + 1)
    ends = 0.0

    def work(number: int) -> None:
        dice = random.Random(seed * THREADS + number)
        commits, retries, times, locked = 0, [], [], 0
        warm(increment)
        barrier.wait()
        while (begun := time.perf_counter()) < ends:
            attempts[number] = 0
            try:
                increment(dice.randrange(rows))
            except DBAPIError as error:
                if errors.classify(error).kind != "busy":
                    raise
                locked += 1
                continue
            times.append(time.perf_counter() - begun)
            retries.append(attempts[number])
            commits += 1
        with lock:
            result.commits.append(commits)
            result.retries += retries
            result.times += times
            result.locked += locked

    # Counted by the policy, as a user would: before_retry is called once for each further attempt.
    attempts: dict[int, int] = dict.fromkeys(range(THREADS), 0)
    numbers = threading.local()
    lock = threading.Lock()
    if "retry" in way.options:

        def count(_attempt: Any) -> None:
            attempts[numbers.own] += 1

        increment = sessionmaker(engine).scope(
            **{**way.options, "retry": replace(way.options["retry"], before_retry=count)}
        )(way.body)

    def numbered(number: int) -> None:
        numbers.own = number
        work(number)

    threads = [threading.Thread(target=numbered, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    ends = time.perf_counter() + 3600
    barrier.wait()
    begun = time.perf_counter()
    ends = begun + seconds
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - begun
    with engine.connect() as connection:
        total = connection.scalar(select(func.sum(model.value)))
    assert total == sum(result.commits) + THREADS, f"{way.name} lost updates: {total} of {sum(result.commits)}"
    return result


def warm(increment: Callable[[int], Any]) -> None:
    """Make the connection and compile the statement before the clock runs."""
    increment(0)


def measure(engine: Engine, ways: list[Way], rows: int, seconds: float, rounds: int) -> dict[str, Result]:
    best: dict[str, Result] = {}
    order = random.Random(0)
    for number in range(rounds):
        for way in order.sample(ways, len(ways)):
            result = run(engine, way, rows, seconds, number)
            if way.name not in best or result.rate > best[way.name].rate:
                best[way.name] = result
    return {way.name: best[way.name] for way in ways}


def table(title: str, results: dict[str, Result]) -> str:
    rows = [HEADER, *([name, *result.cells()] for name, result in results.items())]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|---|{'---:|' * (len(HEADER) - 1)}")
    return "\n".join([f"### {title}", "", *lines, ""])


def verdicts(hot: dict[str, Result], many: dict[str, Result], lite: dict[str, Result]) -> list[str]:
    """Return a line for each target: met, or missed."""
    lines = []

    def say(what: str, value: float, target: float, met: bool) -> None:
        lines.append(f"{'met   ' if met else 'missed'} {what}: {value:.2f}, target {target:g}")

    if hot:
        locking = hot["version column, lock_on_retry"]
        for way, target in (("version column, exponential, full jitter", 2), (VERSIONED_FOR_UPDATE.name, 0.9)):
            gain = locking.rate / hot[way].rate
            say(f"hot row, lock_on_retry against {way}, at least", gain, target, gain >= target)
        say("hot row, lock_on_retry, fairness, at least", locking.fair, 0.7, locking.fair >= 0.7)
        most = max(locking.retries, default=0)
        say("hot row, lock_on_retry, retries of one unit, at most", most, 1, most <= 1)
        say(f"hot row, lock_on_retry, budgets of {BUDGET} used up", locking.over_budget, 0, not locking.over_budget)
        share = many["version column, lock_on_retry"].rate / many["version column, exponential, full jitter"].rate
        say("100 rows, lock_on_retry against plain optimism, at least", share, 0.97, share >= 0.97)
    retries = sum(sum(result.retries) + result.locked for result in lite.values())
    say("SQLite writers, retries and errors of a lock", retries, 0, not retries)
    return lines


# The picture

_STYLE = """
    text { font: 13px sans-serif; fill: #1f2328; }
    .value { fill: #57606a; }
    .bar { fill: #8c959f; } .lock { fill: #1f883d; } .atomic { fill: #0969da; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .value { fill: #9198a1; }
      .bar { fill: #6e7681; } .lock { fill: #3fb950; } .atomic { fill: #4493f8; }
    }"""


def svg(results: dict[str, Result]) -> str:
    """Draw commits per second as bars, for light and dark pages."""
    most, left, wide, high = max(result.rate for result in results.values()), 260, 380, 24
    text = "; ".join(f"{name} {result.rate:.0f}" for name, result in results.items())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 130} {len(results) * high + 34}" role="img">',
        "  <title>Commits per second, eight threads and one row</title>",
        f"  <desc>{text}.</desc>",
        f"  <style>{_STYLE}\n  </style>",
        f'  <text x="{left}" y="18" class="value">commits per second; in brackets: retries per commit</text>',
    ]
    for number, (name, result) in enumerate(results.items()):
        y = number * high + 28
        kind = (
            "lock"
            if "lock_on_retry" in name
            else "atomic"
            if name in {ATOMIC.name, FOR_UPDATE.name, VERSIONED_FOR_UPDATE.name}
            else "bar"
        )
        width = max(2, round(result.rate / most * wide))
        retries = sum(result.retries) / max(1, len(result.retries))
        lines += [
            f'  <text x="{left - 10}" y="{y + 15}" text-anchor="end">{name}</text>',
            f'  <rect x="{left}" y="{y + 3}" width="{width}" height="{high - 7}" rx="2" class="{kind}"/>',
            f'  <text x="{left + width + 8}" y="{y + 15}" class="value">{result.rate:.0f} ({retries:.1f})</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def on_postgresql(url: Any, options: Any) -> tuple[dict[str, Result], dict[str, Result]]:
    engine = create_engine(url, pool_size=THREADS)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        hot = measure(engine, ON_POSTGRESQL, 1, options.seconds, options.rounds)
        print(table("PostgreSQL, one row", hot), flush=True)
        many = measure(engine, ON_POSTGRESQL, 100, options.seconds, options.rounds)
        print(table("PostgreSQL, 100 rows", many), flush=True)
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()
    return hot, many


def on_sqlite(options: Any) -> dict[str, Result]:
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for begin in ("immediate", "deferred"):
            engine = sqlite.configure(create_engine(f"sqlite:///{folder}/{begin}.db"), busy_timeout=30, begin=begin)
            Base.metadata.create_all(engine)
            ways = (
                ON_SQLITE if begin == "immediate" else [Way("version column, full jitter", checked, {"retry": JITTER})]
            )
            measured = measure(engine, ways, 1, options.seconds, options.rounds)
            results |= {f"BEGIN {begin.upper()}, {name}": result for name, result in measured.items()}
            engine.dispose()
    print(table("SQLite, one row", results), flush=True)
    return {name: result for name, result in results.items() if "IMMEDIATE" in name}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", type=make_url, help="a PostgreSQL to measure on as well")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round of each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svg", type=Path, help="draw the table of the one row into this file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a target is missed")
    options, _ = parser.parse_known_args()
    print(conditions("psycopg"), "\n")
    hot, many = on_postgresql(options.url, options) if options.url is not None else ({}, {})
    lines = verdicts(hot, many, on_sqlite(options))
    print("\n".join(lines))
    if options.svg is not None and hot:
        options.svg.write_text(svg(hot), encoding="utf-8")
    return 1 if options.strict and any(line.startswith("missed") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
