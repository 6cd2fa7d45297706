"""`sessionkit demo`, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, MetaData, Table, Text, create_engine, inspect
from sqlalchemy.engine.default import DefaultDialect

from sessionkit.cli import demo, main
from sessionkit.cli._load import Memory, Reading
from sessionkit.cli.demo import _twin

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.doors import Door

TABLE = demo.Account.__tablename__


@pytest.fixture(params=["rich", "plain", "rich is missing"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options for each way in which the tour can look."""
    if request.param == "rich is missing":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("COLUMNS", "120")
    return ["--plain"] if request.param == "plain" else []


def is_a_bar(err: str, rows: int) -> bool:
    """Tell whether this is all that went to standard error: how the load stood at its end."""
    (line,) = err.splitlines()
    return (
        line.startswith("insert Reading ")
        and f"100%  {rows:,}/{rows:,} rows  " in line
        and line.endswith("/s  0:00 left")
    )


def url_of(doors: Door) -> str:
    return doors.database.url(doors.driver).render_as_string(hide_password=False)


@pytest.mark.doors(colour="sync")
def test_the_tour_does_what_it_promises(doors: Door, look: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["demo", "--url", url_of(doors), *look])
    out, err = capsys.readouterr()
    assert status == 0, out + err
    assert is_a_bar(err, demo.ROWS)
    for step in demo.STEPS:
        # Above the step, and in the closing table.
        assert out.count((step.__doc__ or "").rstrip(".")) >= 2
    assert "left out" not in out
    assert "with Session.scope() as session:" in out
    assert "COMMIT" in out


@pytest.mark.doors(colour="sync")
def test_the_tour_leaves_nothing_behind(doors: Door) -> None:
    before = set(inspect(doors.database.observer).get_table_names())
    assert main(["demo", "--plain", "--url", url_of(doors)]) == 0
    assert set(inspect(doors.database.observer).get_table_names()) == before


@pytest.mark.sqlite
def test_python_m_sessionkit_needs_nothing_prepared(tmp_path: Path) -> None:
    encoding = "ascii"  # what a terminal has that can show least
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "sessionkit", "demo"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert is_a_bar(done.stderr.decode(encoding), demo.ROWS)
    assert b"BEGIN IMMEDIATE" in done.stdout
    assert list(tmp_path.iterdir()) == [], "the SQLite file is still there"


@pytest.mark.doors(colour="sync")
def test_as_many_rows_are_loaded_as_are_asked_for(doors: Door, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--plain", "--url", url_of(doors), "--rows", "12_345"]) == 0
    out, err = capsys.readouterr()
    assert is_a_bar(err, 12_345)
    table = out.split("What happened")[1]
    method = "executemany" if doors.backend == "sqlite" else "copy"
    found = re.search(
        rf"Many rows at once +12,345 rows by {method} in [\d.]+ s, [\d,]+ a second; the process grew by ([\d.]+) MB",
        table,
    )
    assert found, table
    assert 0 <= float(found[1]) <= demo.MEMORY


@pytest.mark.sqlite
def test_one_row_is_a_load_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--plain", "--rows", "1"]) == 0
    assert is_a_bar(capsys.readouterr().err, 1)


@pytest.mark.sqlite
def test_a_load_that_is_kept_in_memory_is_shown_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[object] = []

    def keeping(self: Memory, rows: int, total: int | None) -> None:
        kept.append(bytearray(b"x") * 2**25)
        look(self, rows, total)

    look = Memory.look
    monkeypatch.setattr(Memory, "look", keeping)
    assert main(["demo", "--plain"]) == 1
    assert "but the process grew by" in capsys.readouterr().out


@pytest.mark.sqlite
@pytest.mark.parametrize("rows", ["0", "-1", "many", "1.5", "", "5000000000"])
def test_a_number_of_rows_that_is_none_gets_status_2(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["demo", f"--rows={rows}"])
    assert left.value.code == 2
    assert f"{rows!r} is not a number of rows between 1 and 2,147,483,647" in capsys.readouterr().err


@pytest.mark.sqlite
def test_what_is_shown_is_what_runs_sql_in_the_order_it_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--plain"]) == 0
    first = capsys.readouterr().out.split("1. A scope commits")[1].split("2. An exception")[0]
    lines = [line.strip() for line in first.splitlines() if line.strip()]
    assert lines[1:] == [
        "with Session.scope() as session:",
        'session.add(Account(owner="ann", balance=100))',
        'session.add(Account(owner="bob", balance=0))',
        "> BEGIN IMMEDIATE",
        f"> INSERT INTO {TABLE} (owner, balance) VALUES ('ann', 100)",
        f"> INSERT INTO {TABLE} (owner, balance) VALUES ('bob', 0)",
        "> COMMIT",
        lines[-1],
    ]


@pytest.mark.sqlite
def test_a_step_that_misbehaves_is_shown_and_the_exit_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], look: list[str]
) -> None:
    def lies(stage: demo.Stage) -> str:
        """A step that lies."""
        stage.expect_balances(ann=1_000_000)
        return "never said"

    def breaks(stage: demo.Stage) -> str:
        """A step that breaks."""
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(demo, "STEPS", [demo.commits, lies, breaks, demo.rolls_back])
    assert main(["demo", *look]) == 1
    out, err = capsys.readouterr()
    assert "the database holds {'ann': 100, 'bob': 0}" in out
    assert "ZeroDivisionError: by zero" in out
    assert "never said" not in out
    assert "ann still has 100" in out, "the steps after it are shown all the same"
    assert err == "sessionkit: 2 of 4 steps did not do what they promised\n"


@pytest.mark.sqlite
def test_a_commit_that_lies_is_seen_by_the_tour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checks have teeth: where a scope's work is not committed, the step says so."""
    monkeypatch.setattr(DefaultDialect, "do_commit", DefaultDialect.do_rollback)
    assert main(["demo", "--plain"]) == 1
    assert "the database holds {}, but it should hold {'ann': 100, 'bob': 0}" in capsys.readouterr().out


@pytest.mark.sqlite
@pytest.mark.parametrize("name", [TABLE, Reading.__tablename__])
def test_a_table_of_that_name_is_not_touched(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    engine = create_engine(url)
    mine = Table(name, MetaData(), Column("note", Text))
    mine.create(engine)
    with engine.begin() as connection:
        connection.execute(mine.insert().values(note="precious"))
    assert main(["demo", "--url", url]) == 2
    assert "already exists" in capsys.readouterr().err
    with engine.connect() as connection:
        assert connection.execute(mine.select()).scalars().all() == ["precious"]
    engine.dispose()


@pytest.mark.sqlite
def test_where_the_async_driver_is_missing_the_step_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_twin, "find_spec", lambda name: None if name == "aiosqlite" else find_spec(name))
    assert main(["demo", "--plain"]) == 0
    assert "left out: needs aiosqlite" in capsys.readouterr().out


@pytest.mark.sqlite
def test_in_memory_the_sync_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--plain", "--url", "sqlite://"]) == 0
    assert "left out: a second engine cannot see a SQLite database in memory" in capsys.readouterr().out


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+asyncpg://somebody@localhost/shop", "write postgresql+psycopg:// instead"),
        ("sqlite+aiosqlite:///shop.db", "write sqlite:// instead"),
        ("no url at all", "Could not parse SQLAlchemy URL"),
        ("nosuchdatabase://localhost/shop", "nosuchdatabase"),
        ("postgresql+psycopg://somebody:secret@127.0.0.1:1/shop", "cannot be used"),
    ],
)
def test_a_url_that_cannot_be_used_gets_one_line_and_status_2(
    url: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--url", url]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert told in err
    assert len(err.splitlines()) == 1
    assert "secret" not in err


@pytest.mark.parametrize("argv", [[], ["dance"], ["demo", "--loudly"]])
def test_wrong_usage_gets_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert "usage: sessionkit" in capsys.readouterr().err
