"""A SQLite file, and how an engine sets up its connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.util import await_only

from . import _file
from ._finding import Finding, fail, ok, warn
from ._words import a_few, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from ._patient import Patient

__all__ = ["NETWORK", "engine", "file", "foreign_keys", "missing", "modes", "version"]

NETWORK = frozenset(
    {
        *("9p", "afpfs", "afs", "ceph", "cifs", "davfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb2", "smb3"),
        *("smbfs", "vboxsf", "virtiofs", "fuse.davfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)
"""Network file systems: SQLite's locks do not work across machines, and there is no shared memory."""

MOUNTS = Path("/proc/self/mounts")

BIG_WAL = 64 * 2**20
"""SQLite copies the log into the file at 4 MB; this much means that it could not for a long time."""


def modes(connection: Connection) -> tuple[bool, bool]:
    """Return whether the current transaction is read-only (and deferrable: SQLite's readers block no other session)."""
    return _pragma(connection, "query_only") == 1, False


def _pragma(connection: Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def missing(patient: Patient) -> Finding | None:
    """Check that the file exists and can be read; connecting must not create a missing file."""
    path = _file.path_of(patient.engine.url)
    if path is None:
        return None
    check = "file.exists"
    try:
        found = _file.header(path)
    except FileNotFoundError:
        return fail(
            check,
            f"there is no file {path}",
            "check the path (three slashes are relative to the working directory, four absolute); the first write of "
            "the application, or create_all(), creates it",
        )
    except IsADirectoryError:
        return fail(check, f"{path} is not a file", "check the path")
    except OSError as error:
        return fail(check, f"{path} cannot be read: {error.strerror}", "run the doctor as the application's user")
    if found is None:
        return fail(
            check, f"{path} is not a SQLite database", "check the path; the file may also be encrypted or damaged"
        )
    return None


def version(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Report the version of SQLite."""
    yield ok("server.version", f"SQLite {connection.exec_driver_sql('SELECT sqlite_version()').scalar()}")


def file(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check the file, the files beside it, and the file system."""
    path = _file.path_of(patient.engine.url)
    if path is None and (listed := connection.exec_driver_sql("PRAGMA database_list").one()[2]):
        path = Path(listed)  # opened by the application's creator=
    if path is None:
        yield warn("file.exists", "the database is in memory, and ends with the process", "use a file, except in tests")
        return
    yield ok("file.exists", f"{path}, {size(path.stat().st_size)}")
    refused = [str(place) for place in (path, path.absolute().parent) if not os.access(place, os.W_OK)]
    if refused:
        yield warn(
            "file.permissions",
            f"this user may not write to {' and '.join(refused)}; SQLite also creates files beside the database",
            "run the doctor as the application's user; if this is that user: chown, chmod",
        )
    kind = _filesystem(path)
    if kind in NETWORK:
        yield fail(
            "file.filesystem",
            f"the file is on {kind}, a network file system, where locks and WAL do not work",
            "move it to a local disk, or use PostgreSQL",
        )
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size >= BIG_WAL:
        yield warn(
            "file.wal",
            f"the log {wal.name} has grown to {size(wal.stat().st_size)}: a read transaction that never ends keeps it "
            "from shrinking",
            "end long read transactions, then PRAGMA wal_checkpoint(TRUNCATE)",
        )
    yield _journal(patient, path)


def _journal(patient: Patient, path: Path) -> Finding:
    check = "file.journal_mode"
    found = _file.header(path)
    if found is not None and found.wal:
        return ok(check, "WAL: readers and the writer do not wait for each other")
    if patient.reading is not None and patient.reading.wants_wal:
        return ok(check, "not WAL yet, but the first connection of this engine switches to it")
    return warn(
        check,
        "not WAL: a COMMIT waits for every reader, and readers wait for it",
        f"sqlite.configure({patient.advice_name}), or once: PRAGMA journal_mode=WAL",
    )


def _filesystem(path: Path) -> str | None:
    """Return the kind of file system of a path; None if it is not known."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    place, best, kind = path.resolve(), -1, None
    for line in lines:
        _, mount, found, *_ = line.split()
        where = Path(mount.replace("\\040", " "))
        # If two file systems are mounted in one place, the later one is visible.
        if place.is_relative_to(where) and len(where.parts) >= best:
            best, kind = len(where.parts), found
    return kind


_DECLARED = text("""
    SELECT count(*) FROM sqlite_master AS m, pragma_foreign_key_list(m.name) AS k WHERE m.type = 'table' AND k.seq = 0
""")


def foreign_keys(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look for rows that refer to missing rows."""
    check = "file.foreign_keys"
    declared = connection.execute(_DECLARED).scalar_one()
    if not declared:
        yield ok(check, "none declared")
        return
    broken = [f"{row[0]} -> {row[2]}" for row in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(1000)]
    if broken:
        many = "1000 rows or more refer" if len(broken) == 1000 else f"{len(broken)} rows refer"
        yield fail(
            check,
            f"{many} to missing rows: {a_few(sorted(set(broken)))}",
            "PRAGMA foreign_key_check lists them; fix or delete them, and enforce foreign keys",
        )
    else:
        yield ok(check, f"{declared} declared, and all rows satisfy them")


def engine(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check how the engine sets up its connections outside scopes, where sessionkit does not."""
    declared = connection.execute(_DECLARED).scalar_one()
    connection.close()  # the pool may have one only
    with patient.engine.connect() as plain:
        began = _began(plain)
        enforced = _pragma(plain, "foreign_keys") == 1
        waits = int(_pragma(plain, "busy_timeout"))
        plain.rollback()
    if not patient.own:
        yield warn(
            "engine.settings",
            f"an engine made from this URL alone has foreign keys {'on' if enforced else 'off'}, waits "
            f"{waits / 1000:g} s for a lock, and begins {_AS[began]}",
            "engine = sqlite.configure(create_engine(...)), and check that engine: sessionkit doctor module:engine",
        )
        return
    advice = f"sqlite.configure({patient.advice_name})"
    if enforced:
        yield ok("engine.foreign_keys", "enforced")
    elif declared:
        yield fail("engine.foreign_keys", f"off: none of the {declared} declared foreign keys is enforced", advice)
    else:
        yield warn("engine.foreign_keys", "off, but no table declares one so far", advice)
    if waits >= 1000:
        yield ok("engine.busy_timeout", f"{waits / 1000:g} s")
    else:
        yield warn(
            "engine.busy_timeout", f"{waits} ms: a statement that finds the database locked fails at once", advice
        )
    if began == "BEGIN IMMEDIATE":
        yield ok("engine.begin", f"{began}: writers queue")
    else:
        yield warn(
            "engine.begin",
            f"outside scopes a transaction begins {_AS[began]}",
            f'{advice} makes it send BEGIN IMMEDIATE; use begin="deferred" there if you want this',
        )


_AS = {
    "BEGIN IMMEDIATE": "with BEGIN IMMEDIATE",
    "BEGIN": "with BEGIN: one that reads and then writes fails if another connection has written meanwhile",
    "": "at its first write: earlier reads may be outdated by then, and an earlier savepoint cannot be rolled back",
}


def _began(plain: Connection) -> str:
    """Return how a transaction begins, as SQLite itself reports it."""
    driver: Any = plain.connection.driver_connection
    heard: list[str] = []
    asynchronous = plain.dialect.is_async
    for callback in (heard.append, None):
        done = driver.set_trace_callback(callback)
        if asynchronous:
            await_only(done)
        if callback is not None:
            plain.exec_driver_sql("SELECT 1")
    said = [statement.upper() for statement in heard if statement.upper().startswith("BEGIN")]
    if any("IMMEDIATE" in statement or "EXCLUSIVE" in statement for statement in said):
        return "BEGIN IMMEDIATE"
    return "BEGIN" if said or driver.in_transaction else ""
