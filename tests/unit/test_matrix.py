"""The matrix is written once; whatever else names its axes agrees with it."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sessionkit._dialects import _sqlite_config
from tests.support.doors import KINDS
from tests.support.matrix import (
    BACKENDS,
    TESTS_OF_SERVERS,
    Cell,
    cells,
    expand,
    for_commit,
    pythons,
    server_tests,
    servers,
    servers_for_commit,
)
from tests.support.servers import NPM_POSTGRESQL, NPM_SQLITE

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_cells_are_every_python_with_every_sqlalchemy_on_every_backend_and_the_oldest() -> None:
    grid = product(("3.11", "3.12", "3.13", "3.14"), ("sa20", "sa21"), ("sqlite", "postgresql"))
    expected = [
        Cell(f"py{python.replace('.', '')}-{group}-{backend}", python, group, (backend,))
        for python, group, backend in grid
    ]
    servers = [
        Cell(f"pg{version}", "3.11", "sa21", ("postgresql",), version) for version in ("14", "15", "16", "17", "18")
    ]
    servers.append(Cell("sqlite335", "3.11", "sa21", ("sqlite",), "3.35"))
    assert cells() == [*expected, Cell("oldest", "3.11", "oldest", BACKENDS), *servers]


def test_every_commit_runs_two_corners_of_it_on_both_backends() -> None:
    def names(available: list[str] | None) -> list[str]:
        return [cell.name for cell in for_commit(available)]

    oldest = ["py311-sa20-sqlite", "py311-sa20-postgresql"]
    assert names(None) == [*oldest, "py314-sa21-sqlite", "py314-sa21-postgresql"]
    assert names(["3.11", "3.13"]) == [*oldest, "py313-sa21-sqlite", "py313-sa21-postgresql"]
    assert names(["3.10"]) == []


def test_every_commit_runs_the_oldest_and_the_newest_version_of_each_server() -> None:
    assert [cell.name for cell in servers_for_commit()] == ["sqlite335", "pg14", "pg18"]


def test_each_version_of_a_server_can_be_had_and_the_oldest_sqlite_is_the_one_that_is_not_refused() -> None:
    versions = {backend: [each.server for each in servers() if each.backends == (backend,)] for backend in BACKENDS}
    assert versions == {"postgresql": list(NPM_POSTGRESQL), "sqlite": list(NPM_SQLITE)}
    assert versions["sqlite"] == [".".join(map(str, _sqlite_config.OLDEST[:2]))]


def test_the_server_tests_are_there() -> None:
    names = server_tests()
    for pattern in TESTS_OF_SERVERS:
        assert any(fnmatch(name, pattern) for name in names), pattern


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a, b\n  c", ["a", "b", "c"]),
        ("a{1,2}-{x,y}, b", ["a1-x", "a1-y", "a2-x", "a2-y", "b"]),
        ("a{1, 2}", ["a1", "a2"]),
    ],
)
def test_braces_are_expanded_as_tox_does(text: str, names: list[str]) -> None:
    # Compared by hand with `tox list`, which is not installed with the tests.
    assert [name.replace(" ", "") for name in expand(text)] == names


def test_the_package_promises_the_pythons_of_the_matrix() -> None:
    promised = [name.rpartition(" ")[2] for name in PROJECT["project"]["classifiers"] if "Python :: 3." in name]
    assert promised == pythons()
    assert PROJECT["project"]["requires-python"] == f">={pythons()[0]}"


def test_each_axis_has_its_dependency_group_and_the_oldest_is_what_the_package_promises() -> None:
    groups = PROJECT["dependency-groups"]
    assert {cell.group for cell in cells()} <= set(groups)
    [promise] = PROJECT["project"]["dependencies"]
    floor = promise.split(">=")[1].split(",")[0]
    assert f"sqlalchemy[asyncio]=={floor}" in groups["oldest"]


def test_the_harness_has_doors_for_the_backends_of_the_matrix() -> None:
    assert {kind.backend for kind in KINDS} == set(BACKENDS) == {name for cell in cells() for name in cell.backends}


def test_nox_has_a_session_for_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a nox that only writes down what it is told, since the real one is not installed with the tests."""
    sessions: dict[str, Any] = {}

    def session(function: Any = None, *, name: str | None = None, python: Any = None, tags: Any = None) -> Any:
        def register(fn: Any) -> Any:
            sessions[name or fn.__name__] = python
            return fn

        return register if function is None else register(function)

    recorder: Any = ModuleType("nox")
    recorder.session = session
    recorder.parametrize = lambda *_: lambda fn: fn
    recorder.options = SimpleNamespace()
    recorder.project = SimpleNamespace(load_toml=lambda _: PROJECT)
    monkeypatch.setitem(sys.modules, "nox", recorder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("noxfile_under_test", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

    assert {name: sessions[name] for name in sessions if name in {cell.name for cell in cells()}} == {
        cell.name: cell.python for cell in cells()
    }
    assert {"lint", "types", "docs", "bench", "wasm", "mutants"} <= set(sessions)
    assert set(recorder.options.sessions) <= set(sessions)
