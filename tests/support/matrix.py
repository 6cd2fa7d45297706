"""The cells of the test matrix, read from tox.ini, the one place where they are written.

    python -m tests.support.matrix            every cell: name, Python, dependency group, backends
    python -m tests.support.matrix --commit   those that run for every commit
    python -m tests.support.matrix --servers  the cells that are about the version of a server; with --commit, of a commit
    python -m tests.support.matrix --tests    the files of tests that these cells run

For `noxfile.py`, `.ci/run` and the tests, so it needs nothing but Python.
"""

from __future__ import annotations

import configparser
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

TOX = Path(__file__).resolve().parents[2] / "tox.ini"
BACKENDS = ("sqlite", "postgresql")
_SERVERS = {"pg": "postgresql", "sqlite": "sqlite"}
_SERVER = re.compile(r"(?P<kind>pg|sqlite)(?P<version>\d+)")


@dataclass(frozen=True)
class Cell:
    """One environment: the name that tox and nox give it, and what is in it."""

    name: str
    python: str
    group: str
    backends: tuple[str, ...]
    # The version of the database, where the cell is about that: PostgreSQL's first number, SQLite's first two.
    server: str = ""


_CONTRACTS = (
    "presets* retry* honest_commit commit_* verify_commit version_* bulk_writes bulk_limits bulk_bad_rows bulk_reads"
)
TESTS_OF_SERVERS = tuple(f"tests/contract/test_{name}.py" for name in _CONTRACTS.split())
"""What a server of another version is asked: what is said to it in its own words, and not what only Python decides."""


def server_tests() -> list[str]:
    root = TOX.parent
    return sorted(str(path.relative_to(root)) for pattern in TESTS_OF_SERVERS for path in root.glob(pattern))


def expand(text: str) -> list[str]:
    """Expand `a{1,2}-{x,y}, b` as tox does: every choice of each brace, in the order of writing."""
    names: list[str] = []
    # A comma between braces chooses, one outside of them separates.
    for pattern in re.split(r"[,\s]+(?![^{]*\})", text.strip()):
        pieces = [piece.split(",") for piece in re.split(r"[{}]", pattern)]
        names += ["".join(choice).strip() for choice in itertools.product(*pieces)]
    return [name for name in names if name]


def cell(name: str) -> Cell:
    if name == "oldest":
        return Cell(name, pythons()[0], "oldest", BACKENDS)
    if match := _SERVER.fullmatch(name):
        backend, version = _SERVERS[match["kind"]], match["version"]
        # SQLite's releases are told apart by the number after the 3.
        number = version if backend == "postgresql" else f"{version[0]}.{version[1:]}"
        return Cell(name, pythons()[0], _groups()[-1], (backend,), number)
    python, group, backend = name.split("-")
    return Cell(name, _version(python), group, (backend,))


def cells() -> list[Cell]:
    return [cell(name) for name in _names()]


def servers() -> list[Cell]:
    """Return the cells that are about the version of a server."""
    return [each for each in cells() if each.server]


def servers_for_commit() -> list[Cell]:
    """Return the oldest and the newest of each database that is in the matrix in several versions, and the one of others."""
    chosen: list[Cell] = []
    for backend in BACKENDS:
        there = sorted(
            (each for each in servers() if each.backends == (backend,)), key=lambda each: _number(each.server)
        )
        chosen += there if len(there) < 2 else [there[0], there[-1]]
    return chosen


def pythons() -> list[str]:
    """Return the versions of Python in the matrix, oldest first."""
    return sorted({_version(name.split("-")[0]) for name in _names() if "-" in name}, key=_number)


def for_commit(available: list[str] | None = None) -> list[Cell]:
    """Return what every commit must pass: the oldest Python with the oldest SQLAlchemy, the newest with the newest.

    The whole grid is for releases. Of the versions of Python those count that are there.
    """
    there = [version for version in pythons() if available is None or version in available]
    if not there:
        return []
    groups = _groups()
    corners = {(there[0], groups[0]), (there[-1], groups[-1])}
    return [each for each in cells() if (each.python, each.group) in corners and not each.server]


def _groups() -> list[str]:
    return sorted({name.split("-")[1] for name in _names() if "-" in name})


def _names() -> list[str]:
    config = configparser.ConfigParser()
    config.read(TOX)
    return expand(config["tox"]["env_list"])


def _version(factor: str) -> str:
    """Turn `py313` into `3.13`."""
    digits = factor.removeprefix("py")
    return f"{digits[0]}.{digits[1:]}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments == ["--tests"]:
        sys.stdout.write("".join(f"{name}\n" for name in server_tests()))
        sys.exit()
    if "--servers" in arguments:
        chosen = servers_for_commit() if "--commit" in arguments else servers()
    elif arguments[:1] == ["--commit"]:
        chosen = for_commit(arguments[1:] or None)
    else:
        chosen = [each for each in cells() if not each.server]
    for each in chosen:
        sys.stdout.write(f"{each.name} {each.python} {each.group} {','.join(each.backends)}\n")
