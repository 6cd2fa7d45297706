"""The server of a run: there when a test wants it, the same for all, an error where it is not, gone afterwards."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.postgres import PostgresUnavailable, from_url
from tests.support.postgres_binaries import candidates
from tests.support.subrun import run_pytest

if TYPE_CHECKING:
    from tests.support.postgres import Server

TELLS = """
    import json, os, pathlib
    import psutil, pytest
    from tests.support import plugin, postgres

    pytestmark = pytest.mark.postgresql

    @pytest.mark.parametrize("number", range(4))
    def test_tells(postgresql_databases, pytestconfig, number):
        answer = postgres.ask(plugin._keeper_port(pytestconfig), "report")
        server = psutil.Process(answer["pid"])
        answer["uid"] = server.uids().effective
        answer["listens"] = [c.laddr.ip for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        pathlib.Path(os.environ["TOLD"], f"{number}.json").write_text(json.dumps(answer))
        if os.environ.get("KILL"):
            os.kill(int(os.environ["CONTROLLER"]) if os.environ["KILL"] == "controller" else os.getpid(), 9)
"""


# Read by the controller before it starts its workers. (Their parent is somebody else as soon as one of them has
# killed it.)
CONFTEST = """
    import os
    os.environ.setdefault("CONTROLLER", str(os.getpid()))
"""


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def assert_gone(answer: dict[str, Any]) -> None:
    """Wait for the keeper, which ends last, and look what is left."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(answer["keeper"]).wait(timeout=60)
    assert not psutil.pid_exists(answer["pid"])
    assert not Path(answer["data"]).parent.exists()


@pytest.mark.postgresql
def test_a_run_ends_its_server_and_tells_which_it_was(tmp_path: Path) -> None:
    # With libpq's variables as somebody's shell may have them: the tests connect by URL, and nothing may be mixed
    # into it.
    astray = dict.fromkeys(("PGDATA", "PGUSER", "PGDATABASE", "PGSSLMODE"), "nonsense")
    outcome = run_pytest(tmp_path, TELLS, TOLD=str(tmp_path), PGPORT="1", PGHOST="example.invalid", **astray)
    assert outcome.code == 0, outcome.output
    answer = told(tmp_path)[0]
    assert f"PostgreSQL: {answer['version']} from {answer['source']}" in outcome.output
    assert "passed" in outcome.last
    assert answer["listens"] == ["127.0.0.1"]
    assert answer["uid"] != 0
    assert_gone(answer)


@pytest.mark.postgresql
def test_a_run_that_is_killed_leaves_no_server_and_no_data(tmp_path: Path) -> None:
    outcome = run_pytest(tmp_path, TELLS, TOLD=str(tmp_path), KILL="self")
    assert outcome.code == -signal.SIGKILL
    assert_gone(told(tmp_path)[0])


@pytest.mark.postgresql
def test_workers_share_one_server_and_each_has_its_own_databases(tmp_path: Path) -> None:
    source = """
        import os, pathlib
        from sqlalchemy import text
        import pytest

        @pytest.mark.doors("postgresql-sync")
        @pytest.mark.parametrize("number", range(6))
        async def test_where(doors, number):
            [(name,)] = await doors.rows("SELECT current_database()")
            started = await doors.scalar("SELECT pg_postmaster_start_time()")
            where = f"{os.environ['PYTEST_XDIST_WORKER']} {name}\\n{started}"
            pathlib.Path(os.environ["TOLD"], f"{number}.txt").write_text(where)
    """
    outcome = run_pytest(tmp_path, source, "-n", "2", TOLD=str(tmp_path))
    assert outcome.code == 0, outcome.output
    lines = [file.read_text().splitlines() for file in tmp_path.glob("*.txt")]
    workers = {where.split()[0]: where.split()[1] for where, _ in lines}
    assert len(set(workers.values())) == len(workers) == 2, lines
    assert len({server for _, server in lines}) == 1


@pytest.mark.postgresql
def test_a_run_whose_controller_is_killed_leaves_no_server_either(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(dedent(CONFTEST))
    outcome = run_pytest(tmp_path, TELLS, "-n", "2", TOLD=str(tmp_path), KILL="controller")
    assert outcome.code == -signal.SIGKILL
    assert_gone(told(tmp_path)[0])


def test_a_run_that_wants_no_postgresql_starts_none(tmp_path: Path) -> None:
    source = """
        async def test_anything(doors):
            assert await doors.rows("SELECT 1") == [(1,)]
    """
    outcome = run_pytest(tmp_path, source, "-k", "sqlite-sync", SESSIONKIT_PG_BIN=str(tmp_path))
    assert outcome.code == 0, outcome.output
    assert "PostgreSQL:" not in outcome.output


def test_where_postgresql_cannot_be_had_the_run_fails_and_says_what_was_tried(tmp_path: Path) -> None:
    outcome = run_pytest(tmp_path, TELLS, SESSIONKIT_PG_BIN=str(tmp_path), TOLD=str(tmp_path))
    assert outcome.code == 1
    assert "4 errors" in outcome.last
    assert f"SESSIONKIT_PG_BIN ({tmp_path}): holds no initdb and no postgres" in outcome.output
    assert "PostgreSQL: could not be had" in outcome.output


@pytest.mark.postgresql
def test_a_version_that_was_promised_is_the_one_that_runs(tmp_path: Path) -> None:
    outcome = run_pytest(tmp_path, TELLS, SESSIONKIT_POSTGRESQL_VERSION="9", TOLD=str(tmp_path))
    assert outcome.code == 1
    assert "and SESSIONKIT_POSTGRESQL_VERSION asks for 9" in outcome.output
    outcome = run_pytest(tmp_path, TELLS, SESSIONKIT_SQLITE_VERSION="3.1", TOLD=str(tmp_path))
    assert outcome.code != 0
    assert "SESSIONKIT_SQLITE_VERSION promises SQLite 3.1, but Python's sqlite3 has 3." in outcome.output


@pytest.mark.postgresql
def test_a_server_named_by_url_is_used(tmp_path: Path, postgresql_server: Server) -> None:
    source = """
        async def test_anything(doors):
            assert await doors.rows("SELECT 1") == [(1,)]
    """
    url = postgresql_server.url("psycopg", postgresql_server.maintenance_dbname).set(drivername="postgresql")
    outcome = run_pytest(
        tmp_path, source, "-k", "postgresql-sync", SESSIONKIT_POSTGRESQL_URL=url.render_as_string(hide_password=False)
    )
    assert outcome.code == 0, outcome.output
    assert "1 passed" in outcome.last
    assert "(from SESSIONKIT_POSTGRESQL_URL)" in outcome.output


def test_a_server_named_by_url_that_cannot_be_reached_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        PostgresUnavailable, match=r"promises a server at postgresql://somebody:\*\*\*@127.0.0.1"
    ) as caught:
        from_url(f"postgresql://somebody:secret@127.0.0.1:{port}/anything")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["mysql://somebody@127.0.0.1/anything", "postgresql://somebody@127.0.0.1/a?sslmode=require"]
)
def test_a_url_that_does_not_name_a_server_for_all_drivers_is_an_error(url: str) -> None:
    with pytest.raises(PostgresUnavailable, match="should look like postgresql://"):
        from_url(url)


@pytest.mark.postgresql
def test_the_wheels_programs_work_where_they_are_copied_to(tmp_path: Path) -> None:
    """A virtual environment below a private home cannot be read by the user that root becomes."""
    [wheel] = [candidate for candidate in candidates() if candidate.parts]
    copy = wheel.copied_to(tmp_path)
    assert copy is not None
    assert tmp_path in copy.bin.parents
    for name in ("initdb", "postgres"):
        done = subprocess.run([copy.program(name), "--version"], capture_output=True, text=True, check=True)
        assert "(PostgreSQL) 18" in done.stdout
