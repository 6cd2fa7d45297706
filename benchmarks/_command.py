"""The command line of a benchmark of tables: measure and print, or measure everything and write its page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL, make_url

from benchmarks import _results
from benchmarks._measure import conditions
from benchmarks.compare.stage import on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks._measure import Report

    Measured = Callable[[URL | None, str, int], Iterator[Report]]
    """Measures the tables whose title contains a text, in this many rounds."""


def run(
    name: str,
    about: str,
    measured: Measured,
    pages: Callable[[dict[str, Any]], dict[Path, str]],
    drivers: list[str],
    *,
    rounds: int = 200,
) -> int:
    """Do what the command line asks, and return the exit status.

    Args:
        name: the name of the results file.
        about: the first line of `--help`.
        measured: see `Measured`.
        pages: makes the pages from the results.
        drivers: the packages whose versions are shown.
        rounds: the default number of rounds.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--url", type=make_url, help="a PostgreSQL server to measure on too")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the tables whose title contains this")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument(
        "--write", action="store_true", help="measure everything and write the pages; starts a PostgreSQL server"
    )
    parser.add_argument("--render", action="store_true", help="write the pages from the kept results")
    options = parser.parse_args()
    if options.write:
        _results.save(name, _all(measured, options.url, options.rounds, drivers))
    if options.write or options.render:
        return _results.write_or_check(pages(_results.load(name)), check=False)
    print(conditions(*drivers), "\n")
    missed = []
    for report in measured(options.url, options.only, options.rounds):
        print(report.markdown(), flush=True)
        missed += [f"{report.title}: {case}, {report.ratio(case):.2f}" for case in report.missed()]
    print("\n".join(f"missed its target: {line}" for line in missed) or "every target was met")
    return 1 if missed and options.strict else 0


def _all(measured: Measured, url: URL | None, rounds: int, drivers: list[str]) -> dict[str, Any]:
    with on_postgresql(url) as stage:
        reports = []
        for report in measured(stage.url.set(drivername="postgresql+psycopg"), "", rounds):
            print(report.markdown(), flush=True)
            reports.append(report)
        version = stage.rows("SHOW server_version")[0][0].split()[0]
    return _results.of_reports(reports, f"{conditions(*drivers)}; PostgreSQL {version} on the same machine")
