"""Compare sessionkit with its peers: `python -m benchmarks compare --write`.

    --write      run everything, keep the results in benchmarks/results/compare.json, and write them into
                 docs/comparison.md and docs/comparison-in-detail.md;
                 with --part behaviour, speed or units (the small units of the speed) only that
    --only NAME  run and print one peer's behaviour; only this peer must be installed
    --render     write the pages from the kept results
    --check      check that the pages show the kept results; exit status 1 if not
    --url URL    a PostgreSQL server to work on, in a new database; without it one is started, as for the tests

The peers are the dependency group `peers`. On an idle machine everything takes less than three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from benchmarks import _results
from benchmarks.compare import observe, page, peers, speed, stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import URL

    from benchmarks.compare.stage import Stage

NAME = "compare"


def about(name: str) -> dict[str, Any]:
    """Describe a peer: versions, its own word for its state, the features whose names were found, databases."""
    peer = peers.peer(name)
    versions = {package: metadata.version(package) for package in peer.packages}
    classifiers = metadata.metadata(peer.packages[0]).get_all("Classifier") or []
    status = [line.split("-")[-1].strip() for line in classifiers if line.startswith("Development Status")]
    for feature in peer.features.values():
        _found(feature.at)
    return {
        "versions": versions,
        "status": ", ".join(status) or "not said",
        "features": {
            **{key: {"called": "SQLAlchemy's", "page": ""} for key in peer.inherits if name != "SQLAlchemy"},
            **{key: {"called": f.called, "page": f.page} for key, f in peer.features.items()},
        },
        "databases": databases(name),
    }


def _found(at: str) -> object:
    """Import a feature. If its name does not exist, the table would be wrong."""
    module, _, path = at.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def databases(name: str) -> str:
    """Name the databases that a peer supports."""
    if name == "sessionkit":
        from tests.support.doors import KINDS

        # The databases of its tests.
        return ", ".join(sorted({kind.backend for kind in KINDS}))
    if name == "Django":
        found = import_module("django.db.backends").__path__[0]
        return ", ".join(
            sorted(p.name for p in Path(found).iterdir() if (p / "base.py").exists() and p.name not in "base dummy")
        )
    if name == "SQLAlchemy":
        return ", ".join(sorted({*import_module("sqlalchemy.dialects").__all__}))
    return "SQLAlchemy's"


@contextmanager
def stages(url: URL | None) -> Iterator[list[Stage]]:
    """Yield a SQLite file and a database on PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, stage.on_postgresql(url) as server:
        yield [stage.on_sqlite(Path(folder)), server]


def behaviour(name: str, url: URL | None) -> dict[str, Any]:
    """Return the outcomes of one peer, by backend and question."""
    with stages(url) as places:
        return {place.backend: observe.ask_all(place, name) for place in places}


def in_own_process(name: str, url: URL) -> dict[str, Any]:
    """Run one peer's behaviour in a new process, so that what it patches or leaves open does not affect the next."""
    command = [sys.executable, "-m", "benchmarks.compare", "--only", name, "--json"]
    done = subprocess.run(
        [*command, "--url", url.render_as_string(hide_password=False)], stdout=subprocess.PIPE, check=True, timeout=90
    )
    outcomes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def everything(options: argparse.Namespace) -> dict[str, Any]:
    names = list(peers.MODULES)
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:4.0f} s  {what}", flush=True)

    # A part that does not run keeps its last results.
    results: dict[str, Any] = _results.load(NAME) if options.part else {}
    with stages(options.url) as places:
        version = places[1].rows("SHOW server_version")[0][0].split()[0]
        results |= {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{machine()}; PostgreSQL {version} on the same machine",
            "peers": {name: about(name) for name in names},
        }
        if options.part not in {"speed", "units"}:
            results["outcomes"] = {place.backend: {} for place in places}
            server = places[1].url.set(drivername="postgresql+psycopg", database="postgres")
            for name in names:
                say(f"behaviour of {name}")
                for backend, outcomes in in_own_process(name, server).items():
                    results["outcomes"][backend][name] = outcomes
            if "speed" in results:
                _results.save(NAME, results)
        if options.part != "behaviour":
            figures = results.setdefault("speed", {})
            for place in places:
                say(f"speed on {place.backend}")
                figures.setdefault(place.backend, {}).update(speed.units(place, names, options.rounds))
                if options.part != "units":
                    figures[place.backend].update(speed.bulk(place, names, options.rows))
    say("done")
    return results


def machine() -> str:
    import sqlite3

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"{python}, SQLite {sqlite3.sqlite_version}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="run everything, and write results and page")
    parser.add_argument("--render", action="store_true", help="write the pages from the kept results")
    parser.add_argument("--check", action="store_true", help="check that the pages show the kept results")
    parser.add_argument("--only", choices=list(peers.MODULES), help="run the behaviour of one peer, and print it")
    parser.add_argument("--json", action="store_true", help="with --only: print one line of JSON")
    parser.add_argument("--url", type=make_url, help="a PostgreSQL server; without it one is started")
    parser.add_argument(
        "--part", choices=["behaviour", "speed", "units"], help="with --write: run only this part again"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="of the bulk writes")
    parser.add_argument("--rounds", type=int, default=200, help="of the small units")
    options = parser.parse_args(arguments)
    if not (options.write or options.render or options.check or options.only):
        parser.error("say what to do: --write, --render, --check or --only NAME")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.only:
        outcomes = behaviour(options.only, options.url)
        if options.json:
            print(json.dumps(outcomes))
            return 0
        for backend, found in outcomes.items():
            for key, outcome in found.items():
                print(f"{backend:10} {key:28} {outcome['outcome']}")
        return 0
    if options.write:
        if missing := peers.absent():
            print(f"not installed: {', '.join(missing)}; they are the dependency group `peers`")
            return 2
        _results.save(NAME, everything(options))
    return _results.write_or_check(page.files(_results.load(NAME)), check=options.check)


if __name__ == "__main__":
    sys.exit(main())
