"""The one door to every check: `nox` (lint, types, the cells of a commit), `nox -s NAME`, `nox --list`.

The cells of the matrix are those of tox.ini. A cell whose Python is not on this machine is reported by its name and
passed over.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tests.support.matrix import Cell, cells, for_commit, pythons  # noqa: E402 - the path above makes it importable

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", *(cell.name for cell in for_commit())]

PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, *groups))


def register(cell: Cell) -> None:
    @nox.session(name=cell.name, python=cell.python, tags=["matrix", *cell.backends])
    def tests(session: nox.Session) -> None:
        install(session, "test", cell.group)
        arguments = session.posargs or ["-n", "auto"]
        session.run("python", "-m", "pytest", *arguments, env={"SESSIONKIT_BACKENDS": ",".join(cell.backends)})


for each in cells():
    register(each)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and that the fragments of the changelog can be read."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
@nox.parametrize("sqlalchemy", ["sa20", "sa21"])
def types(session: nox.Session, sqlalchemy: str) -> None:
    """Check the types with both checkers: each finds what the other one misses."""
    install(session, "test", "lint", sqlalchemy)
    session.run("mypy")
    session.run("pyright")


@nox.session(python=pythons()[-2:])
def docs(session: nox.Session) -> None:
    """Run every snippet of the README and of the documentation."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-q", "tests/docs", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation into site/; a warning is an error."""
    install(session, "docs", "drivers")
    session.run("python", "-m", "tests.docs.site", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the raw driver and against others, in one run."""
    install(session, "test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def compare(session: nox.Session) -> None:
    """Run sessionkit beside its peers, and write the page that compares them."""
    install(session, "test", "peers")
    session.run("python", "-m", "benchmarks", "compare", *(session.posargs or ["--write"]))


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests of both backends and tell which lines no test went through."""
    install(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")
