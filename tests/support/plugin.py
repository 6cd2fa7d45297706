"""The harness as a pytest plugin: which tests run, through which door, on which server. How to write one: doors.py."""

from __future__ import annotations

import gc
import inspect
import os
import secrets
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pytest_postgresql import factories

from tests.support import models, postgres
from tests.support.databases import PostgresqlDatabases, SqliteDatabases
from tests.support.doors import KINDS, Door, Kind, open_door

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from pytest_postgresql.executors import NoopExecutor

    from tests.support.databases import Database, PostgresqlDatabase

BACKENDS = ("sqlite", "postgresql")
SQLITE_VARIABLE = "SESSIONKIT_SQLITE_VERSION"
BACKENDS_VARIABLE = "SESSIONKIT_BACKENDS"
KEEPER_KEY = "sessionkit_keeper_port"
DRIVERS = "--drivers"

guard_key = pytest.StashKey[postgres.Guard]()
told_key = pytest.StashKey[str]()
report_key = pytest.StashKey[pytest.TestReport]()
tests_key = pytest.StashKey[int]()

# Several runs may share a server that was named by URL: each process has databases of its own.
TEMPLATE = f"sessionkit_{secrets.token_hex(4)}"


def chosen_backends() -> tuple[str, ...]:
    """Return the backends that this run covers: all, or those in `SESSIONKIT_BACKENDS`."""
    chosen = tuple(filter(None, (name.strip() for name in os.environ.get(BACKENDS_VARIABLE, "").split(","))))
    if unknown := set(chosen) - set(BACKENDS):
        raise pytest.UsageError(f"{BACKENDS_VARIABLE} names {sorted(unknown)}; there are: {', '.join(BACKENDS)}")
    return chosen or BACKENDS


# Which tests run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        DRIVERS,
        choices=("first", "second", "every"),
        default="first",
        help="which doors a test goes through: those of the first driver of each backend (the default), only those of the "
        "second ones, or all, a test that is marked `above_drivers` too",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # A module that defines this hook itself chooses its own doors.
    if "doors" in metafunc.fixturenames and not hasattr(metafunc.module, "pytest_generate_tests"):
        kinds = chosen_doors(metafunc)
        metafunc.parametrize(
            "doors", [pytest.param(kind, id=kind.name, marks=door_marks(kind)) for kind in kinds], indirect=True
        )


def chosen_doors(metafunc: pytest.Metafunc) -> list[Kind]:
    """Return the doors through which a test goes in this run."""
    kinds = fitting(metafunc.definition.iter_markers("doors"))
    if not kinds:
        raise pytest.UsageError(f"no door fits the `doors` marks of {metafunc.definition.nodeid}")
    if metafunc.definition.get_closest_marker("above_drivers") and metafunc.config.getoption(DRIVERS) != "every":
        kinds = [kind for kind in kinds if not kind.second] or kinds
    return kinds


def fitting(marks: Iterable[pytest.Mark]) -> list[Kind]:
    """Return the doors that all the marks of a test allow."""
    marks = list(marks)
    return [kind for kind in KINDS if all(_fits(kind, mark) for mark in marks)]


def _fits(kind: Kind, mark: pytest.Mark) -> bool:
    for name, wanted in mark.kwargs.items():
        if getattr(kind, name) not in ((wanted,) if isinstance(wanted, str) else wanted):
            return False
    return not mark.args or kind.name in mark.args


def door_marks(kind: Kind) -> list[pytest.MarkDecorator]:
    marks: list[pytest.MarkDecorator] = [getattr(pytest.mark, kind.backend)]
    if kind.second:
        marks.append(pytest.mark.drivers)
    return marks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what belongs to a backend or driver that this run does not cover. (A skip would look like a lack.)"""
    others = set(BACKENDS) - set(chosen_backends())
    drivers = config.getoption(DRIVERS)

    def elsewhere(item: pytest.Item) -> bool:
        by = "second" if item.get_closest_marker("drivers") else "first"
        return drivers not in (by, "every") or any(item.get_closest_marker(backend) for backend in others)

    deselected = [item for item in items if elsewhere(item)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        gone = set(deselected)
        items[:] = [item for item in items if item not in gone]


# How a test runs


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Have `-n auto` start three workers for two cores: for a third of its time a test waits, for a server or on purpose."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    cores = psutil.cpu_count(logical=config.option.numprocesses == "logical") or os.cpu_count() or 1
    return cores + cores // 2


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test through its door; without a door, in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    door = pyfuncitem.funcargs.get("doors")
    if not isinstance(door, Door):
        raise pytest.UsageError(
            f"{pyfuncitem.nodeid} is `async def`, but asks for no `doors`; a test of one colour runs its own loop"
        )
    door.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None:
        # A task or a greenlet that the failed test has left suspended is destroyed now: Python 3.11 cannot parse
        # source, which is what pytest is about to do for its report, while one is destroyed in the middle of it
        # ("recursion depth mismatch").
        gc.collect()
    report = yield
    if report.when == "call":
        item.stash[report_key] = report
    return report


@pytest.fixture
def doors(request: pytest.FixtureRequest) -> Iterator[Door]:
    """A backend, a driver and a colour: see tests/support/doors.py."""
    kind: Kind = request.param
    databases = _postgresql_of_test(request) if kind.backend == "postgresql" else _sqlite_of_test(request)
    with databases as (database, other):
        door = open_door(kind, database, other)
        left: list[str] = []
        try:
            yield door
            report = request.node.stash.get(report_key, None)
            # A test that failed has said what matters.
            if report is not None and report.passed:
                left = door.left_open()
        finally:
            door.dispose()
        assert not left, f"the test left something open: {'; '.join(left)}"


@contextmanager
def _sqlite_of_test(request: pytest.FixtureRequest) -> Iterator[tuple[Database, Callable[[], Database]]]:
    """Give a test its file, and a way to more of them."""
    files: SqliteDatabases = request.getfixturevalue("sqlite_databases")
    folder: Path = request.getfixturevalue("tmp_path")
    made: list[Database] = []

    def new() -> Database:
        made.append(files.new(folder / f"door{len(made) + 1}.db"))
        return made[-1]

    yield new(), new
    for database in made:
        database.close()


@contextmanager
def _postgresql_of_test(request: pytest.FixtureRequest) -> Iterator[tuple[Database, Callable[[], Database]]]:
    """Give a test the worker's database, or one of its own if it is marked so, and a way to more of them."""
    databases: PostgresqlDatabases = request.getfixturevalue("postgresql_databases")
    others: list[PostgresqlDatabase] = []

    def another() -> Database:
        others.append(databases.another())
        return others[-1]

    own = databases.new() if request.node.get_closest_marker("own_database") is not None else None
    yield own or databases.shared(), another
    for database in others:
        databases.give_back(database)
    if own is not None:
        databases.drop(own)


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> SqliteDatabases:
    """Files with the schema of models.py."""
    return SqliteDatabases(tmp_path_factory.mktemp("sqlite"))


# The server


_COLLECT_EVERYTHING_EVERY = 1000  # tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Have the collections of a test go over its own objects, and not over all that was imported and run before it.

    Tests that ask what is left after a unit collect some sixty times each: they took ten minutes of a whole run. What a
    test leaves is collected at its end, which takes half a millisecond; what outlives it and is garbage later, now and then.
    """
    count = item.config.stash[tests_key] = item.config.stash.get(tests_key, 0) + 1
    if count % _COLLECT_EVERYTHING_EVERY == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    try:
        return (yield)
    finally:
        gc.collect()


def pytest_configure() -> None:
    """Forget libpq's variables: the tests connect by URL, and a PGSSLMODE of somebody's shell would mix in.

    And hold the run to the version of SQLite that was promised to it.
    """
    if not f"{sqlite3.sqlite_version}.".startswith(f"{os.environ.get(SQLITE_VARIABLE, sqlite3.sqlite_version)}."):
        raise pytest.UsageError(
            f"{SQLITE_VARIABLE} promises SQLite {os.environ[SQLITE_VARIABLE]}, but Python's sqlite3 has "
            f"{sqlite3.sqlite_version}; put it on LD_LIBRARY_PATH, as tests/support/servers.py does"
        )
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def postgresql_server(request: pytest.FixtureRequest) -> postgres.Server:
    """The run's PostgreSQL. It cannot be had: every test that wants it fails."""
    try:
        server = _server(request.config)
    except postgres.PostgresUnavailable as error:
        pytest.fail(f"{error}", pytrace=False)
    request.config.stash[told_key] = server.told
    return server


def _server(config: pytest.Config) -> postgres.Server:
    url = postgres.promised()
    return postgres.from_url(url) if url else postgres.from_keeper(_keeper_port(config))


def _keeper_port(config: pytest.Config) -> int:
    """Return where the keeper listens: the controller's under xdist, otherwise our own, started now."""
    if (workerinput := getattr(config, "workerinput", None)) is not None:
        return int(workerinput[KEEPER_KEY])
    if (guard := config.stash.get(guard_key, None)) is None:
        guard = config.stash[guard_key] = postgres.Guard()
    return guard.port


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker where the keeper is. (xdist hands no options of the controller's on to its workers.)"""
    if postgres.promised() is None and "postgresql" in chosen_backends():
        node.workerinput[KEEPER_KEY] = _keeper_port(node.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(told_key, None)
    if (
        told is None
        and (guard := config.stash.get(guard_key, None)) is not None
        and (answer := postgres.ask(guard.port, "report"))
    ):
        told = postgres.told(answer)
    if told is not None:
        terminalreporter.write_line(f"PostgreSQL: {told}")
    if SQLITE_VARIABLE in os.environ:
        terminalreporter.write_line(f"SQLite: {sqlite3.sqlite_version}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if (guard := config.stash.get(guard_key, None)) is not None:
        guard.close()


postgresql_template = factories.postgresql_noproc(
    dbname=TEMPLATE, load=[models.load_postgresql], depends_on="postgresql_server"
)


@pytest.fixture(scope="session")
def postgresql_databases(
    postgresql_server: postgres.Server, postgresql_template: NoopExecutor
) -> Iterator[PostgresqlDatabases]:
    """This worker's databases, cloned from the template that pytest-postgresql made."""
    databases = PostgresqlDatabases(postgresql_server, postgresql_template.template_dbname)
    yield databases
    databases.close()
