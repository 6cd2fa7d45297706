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

from tests.support.matrix import Cell, cells, for_commit, pythons, server_tests  # noqa: E402 - the path above makes it importable
from tests.wasm import wasm_tests  # noqa: E402

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", *(cell.name for cell in for_commit())]

PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, *groups))


def register(cell: Cell) -> None:
    @nox.session(name=cell.name, python=cell.python, tags=["servers" if cell.server else "matrix", *cell.backends])
    def tests(session: nox.Session) -> None:
        install(session, "test", cell.group)
        variables = {"SESSIONKIT_BACKENDS": ",".join(cell.backends)}
        arguments = session.posargs or ["-n", "auto"]
        if cell.server:
            folder = Path(session.cache_dir) / "servers"
            said = session.run("python", "-m", "tests.support.servers", cell.name, str(folder), silent=True)
            variables |= dict(line.split("=", 1) for line in str(said).split())
            arguments = [*arguments, *server_tests()]
        session.run("python", "-m", "pytest", *arguments, env=variables)


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


PYODIDE = {"3.14": "314.0.7", "3.15": "315.0.0-alpha.2"}
"""Of npm's pyodide: CPython compiled to WebAssembly, for machines on which there is no such Python."""


@nox.session
@nox.parametrize("version", list(PYODIDE))
def wasm(session: nox.Session, version: str) -> None:
    """Run on CPython in WebAssembly what needs no thread, no process, no socket: on the byte code of that Python."""
    install(session, "test")
    folder = Path(session.create_tmp())
    package = f"pyodide@{PYODIDE[version]}"
    session.run("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", package, external=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = str(session.run("python", "-c", where, silent=True)).strip()
    runner = (str(ROOT / "tests/wasm/run.mjs"), str(folder / "node_modules/pyodide"), str(ROOT), packages)
    session.run("node", *runner, *(session.posargs or wasm_tests()), external=True)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the core, `version` and `bulk` in one place at a time, and list what no test on SQLite has noticed."""
    install(session, "test", "mutants")
    session.run("python", "-m", "tests.mutants", *session.posargs)


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
