"""What the plugin does with tests: which it runs, and what it finds wrong with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import KINDS
from tests.support.plugin import chosen_backends, fitting, pytest_xdist_auto_num_workers
from tests.support.subrun import run_pytest

if TYPE_CHECKING:
    from pathlib import Path

MANNERS = """
    import pytest
    from sqlalchemy import text

    pytestmark = pytest.mark.doors("sqlite-sync")

    async def test_good(doors):
        async with doors.scope() as session:
            await session.execute(text("SELECT 1"))

    def test_good_without_a_coroutine(doors):
        with doors.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    async def test_leaves_a_connection_open(doors):
        doors.kept = doors.engine.connect()

    async def test_leaves_a_transaction_open(doors):
        doors.kept = doors.engine.raw_connection()
        doors.kept.execute("INSERT INTO users (name) VALUES ('ann')")
        doors.kept.detach()

    async def test_leaves_a_scope_open(doors):
        doors.kept = doors.Session.scope()
        doors.kept.__enter__()

    async def test_fails_and_leaves_a_connection_open(doors):
        doors.kept = doors.engine.connect()
        raise LookupError

    async def test_waits_for_a_loop(doors):
        import asyncio
        await asyncio.sleep(0)

    async def test_asks_for_no_door():
        pass
"""


def test_a_test_with_bad_manners_fails_and_a_failure_is_told_once(tmp_path: Path) -> None:
    # Without the limits on warnings: what these tests leave behind is destroyed some time, and Python warns of it.
    outcome = run_pytest(tmp_path, MANNERS, "-p", "no:randomly", "-p", "no:unraisableexception", "-W", "ignore")
    assert outcome.of("test_good") == ["PASSED"], outcome.output
    assert outcome.of("test_good_without_a_coroutine") == ["PASSED"]
    assert outcome.of("test_leaves_a_connection_open") == ["PASSED", "ERROR"]
    assert "1 connection(s) are still checked out of the pool" in outcome.output
    assert outcome.of("test_leaves_a_transaction_open") == ["PASSED", "ERROR"]
    assert "the SQLite file is still in use: database is locked" in outcome.output
    assert outcome.of("test_leaves_a_scope_open") == ["FAILED"]
    assert "is still the current session" in outcome.output
    assert outcome.of("test_fails_and_leaves_a_connection_open") == ["FAILED"]
    assert outcome.of("test_waits_for_a_loop") == ["FAILED"]
    assert outcome.of("test_asks_for_no_door") == ["FAILED"]


SELECTION = """
    import pytest

    def test_all(doors): pass

    @pytest.mark.doors(backend="postgresql", colour="async")
    def test_some(doors): pass

    @pytest.mark.doors(driver=("psycopg2", "aiosqlite"))
    def test_drivers(doors): pass

    @pytest.mark.postgresql
    def test_server(): pass

    def test_none(): pass
"""


def test_marks_choose_the_doors_and_the_environment_deselects_a_backend(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, SELECTION, "--collect-only", "-q", SESSIONKIT_BACKENDS="sqlite").output
    collected = {line.rpartition("::")[2] for line in output.splitlines() if "::" in line}
    assert collected == {
        "test_all[sqlite-sync]",
        "test_all[sqlite-async]",
        "test_drivers[sqlite-async]",
        "test_none",
    }
    assert "/12 tests collected (8 deselected)" in output


def test_second_drivers_run_when_a_run_asks_for_them(tmp_path: Path) -> None:
    def collected(*drivers: str) -> set[str]:
        output = run_pytest(tmp_path, SELECTION, "--collect-only", "-q", *drivers).output
        return {line.rpartition("::")[2] for line in output.splitlines() if "::" in line}

    second = {"test_all[postgresql-sync-psycopg2]", "test_all[postgresql-async-psycopg]"}
    second |= {"test_some[postgresql-async-psycopg]", "test_drivers[postgresql-sync-psycopg2]"}
    first = collected()
    assert {"test_all[postgresql-sync]", "test_drivers[sqlite-async]", "test_server", "test_none"} <= first
    assert collected("--drivers", "second") == second
    assert not first & second
    assert collected("--drivers", "every") == first | second


def test_without_a_choice_a_run_covers_both_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSIONKIT_BACKENDS", raising=False)
    assert chosen_backends() == ("sqlite", "postgresql")
    monkeypatch.setenv("SESSIONKIT_BACKENDS", "postgresql, sqlite")
    assert set(chosen_backends()) == {"sqlite", "postgresql"}


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 3), (3, 4), (8, 12)])
def test_there_are_three_workers_for_two_cores(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: cores)
    config: Any = SimpleNamespace(option=SimpleNamespace(numprocesses="auto"))
    assert pytest_xdist_auto_num_workers(config) == workers
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "5")
    assert pytest_xdist_auto_num_workers(config) is None


def test_a_backend_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSIONKIT_BACKENDS", "oracle")
    with pytest.raises(pytest.UsageError, match="there are: sqlite, postgresql"):
        chosen_backends()


def test_several_marks_are_all_obeyed() -> None:
    def names(*marks: pytest.MarkDecorator) -> list[str]:
        return [kind.name for kind in fitting(mark.mark for mark in marks)]

    assert names() == [kind.name for kind in KINDS]
    assert names(pytest.mark.doors(backend="sqlite"), pytest.mark.doors(colour="sync")) == ["sqlite-sync"]
    assert names(pytest.mark.doors("sqlite-sync", "sqlite-async"), pytest.mark.doors(colour="async")) == [
        "sqlite-async"
    ]
    # Which the plugin reports as an error of the test's.
    assert names(pytest.mark.doors(backend="sqlite", driver="asyncpg")) == []
