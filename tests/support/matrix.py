"""The cells of the test matrix, read from tox.ini, the one place where they are written.

    python -m tests.support.matrix            every cell: name, Python, dependency group, backends
    python -m tests.support.matrix --commit   those that run for every commit

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


@dataclass(frozen=True)
class Cell:
    """One environment: the name that tox and nox give it, and what is in it."""

    name: str
    python: str
    group: str
    backends: tuple[str, ...]


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
    python, group, backend = name.split("-")
    return Cell(name, _version(python), group, (backend,))


def cells() -> list[Cell]:
    return [cell(name) for name in _names()]


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
    groups = sorted({each.group for each in cells()} - {"oldest"})
    corners = {(there[0], groups[0]), (there[-1], groups[-1])}
    return [each for each in cells() if (each.python, each.group) in corners]


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
    chosen = for_commit(arguments[1:] or None) if arguments[:1] == ["--commit"] else cells()
    for each in chosen:
        sys.stdout.write(f"{each.name} {each.python} {each.group} {','.join(each.backends)}\n")
