"""`sessionkit doctor` on SQLite files: each sickness is seen, and gone when it is mended; and the file is as it was."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from sessionkit import commits
from sessionkit.cli.doctor import Limits, _file, _sqlite
from sessionkit.cli.doctor._patient import patient_of
from tests.integrations import doctoring
from tests.integrations.doctoring import url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integrations.doctoring import Seen
    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="sqlite")

doctor, module = doctoring.doctor, doctoring.module

GOOD = {
    "sync": "engine = sqlite.configure(create_engine({url!r}))",
    "async": "engine = sqlite.configure(create_async_engine({url!r}))",
}
BARE = {name: text.replace("sqlite.configure(", "(") for name, text in GOOD.items()}


def path_of(doors: Door) -> Path:
    return Path(doors.database.path)  # type: ignore[attr-defined]


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def state(path: Path) -> dict[str, tuple[bytes, int]]:
    """Return everything in the folder, byte by byte, but for the memory that those who have it open share."""
    return {
        file.name: (b"" if file.name.endswith("-shm") else file.read_bytes(), file.stat().st_mtime_ns)
        for file in path.parent.iterdir()
        if file.is_file() and file.suffix != ".py"
    }


def test_a_sick_file_and_a_sick_engine_are_seen_and_the_same_ones_mended_are_well(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    url, path = url_of(doors), path_of(doors)
    sick = doctor(f"{module(BARE[doors.colour].format(url=url))}:engine")
    assert sick.exit_status == 1
    assert sick.all("fail") == {"engine.foreign_keys"}
    assert sick.all("warn") == {"file.journal_mode", "engine.begin"}
    assert "is enforced -> sqlite.configure(engine)" in sick.one("engine.foreign_keys", "fail")
    assert "at its first write" in sick.one("engine.begin", "warn")
    assert "PRAGMA journal_mode=WAL" in sick.one("file.journal_mode", "warn")

    healed = doctor(f"{module(GOOD[doors.colour].format(url=url))}:engine")
    assert healed.exit_status == 0
    assert not healed.all("fail") | healed.all("warn")
    assert healed.one("engine.begin", "ok").startswith("BEGIN IMMEDIATE")
    assert "the first connection of this engine switches" in healed.one("file.journal_mode", "ok")
    execute(path, "PRAGMA journal_mode=WAL")
    assert doctor(url).one("file.journal_mode", "ok").startswith("WAL:")


def test_an_engine_of_the_url_alone_is_told_for_what_it_is(doors: Door, doctor: Callable[..., Seen]) -> None:
    seen = doctor(url_of(doors))
    assert (seen.exit_status, seen.document["status"]) == (0, "warn")
    told = seen.one("engine.settings", "warn")
    assert "foreign keys off, waits 5 s for a lock, and begins at its first write" in told
    assert "sqlite.configure(create_engine(...))" in told


@pytest.mark.doors("sqlite-sync")
@pytest.mark.parametrize(
    ("listener", "begins", "status"),
    [
        ('c.exec_driver_sql("BEGIN")', "with BEGIN: one that reads and then writes", "warn"),
        ('c.exec_driver_sql("BEGIN EXCLUSIVE")', "BEGIN IMMEDIATE", "ok"),
    ],
)
def test_listeners_of_the_applications_are_heard(
    listener: str, begins: str, status: str, doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    """Those of the recipes: a BEGIN, and PRAGMAs at each connection, of which one would write the file's header."""
    before = state(path_of(doors))
    name = module(f"""
        engine = create_engine({url_of(doors)!r}, connect_args={{"timeout": 0.1}})

        @event.listens_for(engine, "connect")
        def connected(connection, record):
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def begun(c):
            {listener}
    """)
    seen = doctor(f"{name}:engine")
    assert begins in seen.one("engine.begin", status)
    assert seen.one("engine.foreign_keys", "ok") == "enforced"
    assert "100 ms: a statement that finds the database locked fails" in seen.one("engine.busy_timeout", "warn")
    assert "switches to it" in seen.one("file.journal_mode", "ok")
    assert state(path_of(doors)) == before


@pytest.mark.parametrize("how", ["rollback journal", "WAL, at rest", "WAL, in use"])
def test_nothing_is_written_neither_into_the_file_nor_beside_it(
    how: str, doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    url, path = url_of(doors), path_of(doors)
    name = module(GOOD[doors.colour].format(url=url))
    if how != "rollback journal":
        execute(path, "PRAGMA journal_mode=WAL", "INSERT INTO users (name) VALUES ('ann')")
    with closing(sqlite3.connect(path, isolation_level=None)) as user:
        if how == "WAL, in use":
            user.execute("INSERT INTO users (name) VALUES ('bob')")
        before = state(path)
        assert (f"{path.name}-wal" in before) == (how == "WAL, in use")
        for each in (url, f"{name}:engine"):
            assert doctor(each, "--metadata", "tests.support.models:Base").exit_status == 0
        assert state(path) == before


@pytest.mark.doors("sqlite-sync")
@pytest.mark.parametrize("how", ["rollback journal", "WAL, at rest"])
def test_what_the_application_would_write_meanwhile_is_refused(how: str, doors: Door) -> None:
    """Its listeners are called on each connection, and may say what they like."""
    if how == "WAL, at rest":
        execute(path_of(doors), "PRAGMA journal_mode=WAL")
    patient = patient_of(url_of(doors), Limits())
    with patient.examined(), patient.engine.connect() as connection, pytest.raises(DBAPIError, match="readonly"):
        connection.exec_driver_sql("INSERT INTO users (name) VALUES ('ann')")
    with patient.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO users (name) VALUES ('ann')")
    patient.engine.dispose()


def test_a_file_that_is_not_there_is_a_failure_and_is_not_made(
    doors: Door, doctor: Callable[..., Seen], tmp_path: Path
) -> None:
    url = f"sqlite+{doors.driver}:///{tmp_path / 'nowhere.db'}"
    seen = doctor(url)
    assert seen.exit_status == 1
    assert "there is no file" in seen.one("file.exists", "fail")
    assert not (tmp_path / "nowhere.db").exists()
    (tmp_path / "nowhere.db").mkdir()
    assert "is not a file" in doctor(url).one("file.exists", "fail")
    (tmp_path / "nowhere.db").rmdir()
    (tmp_path / "nowhere.db").write_text("This is a letter, and no database.")
    assert "is not a SQLite database" in doctor(url).one("file.exists", "fail")
    (tmp_path / "nowhere.db").write_bytes(b"")
    assert doctor(url).exit_status == 0


@pytest.mark.doors("sqlite-sync")
def test_a_uri_is_opened_for_reading_as_well(doors: Door, doctor: Callable[..., Seen], tmp_path: Path) -> None:
    odd = tmp_path / "100% of #1?.db"
    path_of(doors).rename(odd)
    before = state(odd)
    escaped = str(odd).replace("%", "%25").replace("#", "%23").replace("?", "%3f")
    url = URL.create("sqlite", database=f"file:{escaped}", query={"mode": "rwc", "uri": "true"})
    seen = doctor(url.render_as_string())
    assert seen.one("file.exists", "ok").startswith(str(odd))
    assert state(odd) == before
    assert "in memory" in doctor("sqlite://").one("file.exists", "warn")
    assert _file.path_of(make_url("sqlite:///file:shop?mode=memory&uri=true")) is None


def test_rows_that_refer_to_nothing_are_found(doors: Door, doctor: Callable[..., Seen]) -> None:
    execute(path_of(doors), "INSERT INTO pledges (account_id) VALUES (4711)")
    assert "pledges -> accounts" in doctor(url_of(doors)).one("file.foreign_keys", "fail")
    execute(path_of(doors), "DELETE FROM pledges")
    assert "all rows satisfy them" in doctor(url_of(doors)).one("file.foreign_keys", "ok")


def test_a_file_that_is_locked_is_a_finding_and_no_traceback(doors: Door, doctor: Callable[..., Seen]) -> None:
    with closing(sqlite3.connect(path_of(doors), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        seen = doctor(url_of(doors), "--timeout", "0.1")
        assert seen.exit_status == 1
        assert "database is locked" in str(seen.document["findings"])
        other.execute("ROLLBACK")
    assert doctor(url_of(doors)).exit_status == 0


@pytest.mark.doors("sqlite-sync")
def test_what_the_driver_commits_by_itself_is_no_transaction(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    if not hasattr(sqlite3, "LEGACY_TRANSACTION_CONTROL"):  # Python 3.12
        return
    name = module(f'engine = create_engine({url_of(doors)!r}, connect_args={{"autocommit": True}})')
    assert "leave autocommit=True out" in doctor(f"{name}:engine").one("isolation.nothing_asked", "fail")


@pytest.mark.doors("sqlite-sync")
def test_the_place_of_the_file_is_looked_at(
    doors: Door, doctor: Callable[..., Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(doors)
    mounts = tmp_path / "mounts.py"  # a name that is not compared
    mounts.write_text(f"rootfs / ext4 rw 0 0\nfiler:/x {path.parent} nfs4 rw 0 0\nother / ext4 rw 0 0\n")
    monkeypatch.setattr(_sqlite, "MOUNTS", mounts)
    assert "nfs4, a network file system" in doctor(url_of(doors)).one("file.filesystem", "fail")
    mounts.write_text(f"filer:/x / nfs4 rw 0 0\n/dev/sda {path.parent} ext4 rw 0 0\n")
    assert not doctor(url_of(doors)).of("file.filesystem")
    monkeypatch.setattr(_sqlite, "MOUNTS", tmp_path / "no such file")
    assert not doctor(url_of(doors)).of("file.filesystem")

    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != path)
    assert f"may not write to {path};" in doctor(url_of(doors)).one("file.permissions", "warn")


@pytest.mark.doors("sqlite-sync")
def test_a_log_that_cannot_be_copied_into_the_file_is_seen(
    doors: Door, doctor: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite, "BIG_WAL", 4096)
    execute(path_of(doors), "PRAGMA journal_mode=WAL")
    with closing(sqlite3.connect(path_of(doors), isolation_level=None)) as writer:
        writer.execute("INSERT INTO users (name) VALUES ('ann')")
        assert "has grown to" in doctor(url_of(doors)).one("file.wal", "warn")
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert not doctor(url_of(doors)).of("file.wal")


def test_keys_that_no_job_prunes_are_seen(doors: Door, doctor: Callable[..., Seen]) -> None:
    url, engine = url_of(doors), create_engine(doors.database.url("pysqlite"))
    assert "is not there (only once=" in doctor(url).one("commits.once_table", "ok")
    commits.create_table(engine)
    assert "and empty" in doctor(url).one("commits.once_table", "ok")
    insert: Any = text(
        "INSERT INTO sessionkit_once (key, kind, claim, fingerprint, state, expires_at) "
        "VALUES (:key, 'U', '', '', 'D', strftime('%Y-%m-%d %H:%M:%f', 'now', :when))"
    )
    with engine.begin() as connection:
        connection.execute(insert, {"key": "a", "when": "+1 day"})
    assert "holds 1 keys" in doctor(url).one("commits.once_table", "ok")
    with engine.begin() as connection:
        connection.execute(insert, {"key": "b", "when": "-50 hours"})
    told = doctor(url).one("commits.once_table", "warn")
    assert "holds 2 keys, one of them over its time since 2 d" in told
    assert "commits.prune(engine)" in told
    assert commits.prune(engine) == 1
    doctor(url).one("commits.once_table", "ok")
    engine.dispose()


def test_markers_that_nobody_prunes_are_seen(doors: Door, doctor: Callable[..., Seen]) -> None:
    url, engine = url_of(doors), create_engine(doors.database.url("pysqlite"))
    assert "there is no sessionkit_commit (only verify_commit" in doctor(url).one("commits.table", "ok")
    commits.create_table(engine)
    assert "and is empty" in doctor(url).one("commits.table", "ok")
    with engine.begin() as connection:
        insert: Any = text(
            "INSERT INTO sessionkit_commit (key, state, created_at) VALUES ('a', 'C', '2020-01-01 00:00:00')"
        )
        connection.execute(insert)
    told = doctor(url).one("commits.table", "warn")
    assert "holds 1 markers" in told
    assert "commits.prune(engine)" in told
    commits.prune(engine)
    assert "and is empty" in doctor(url).one("commits.table", "ok")
    engine.dispose()
