"""A SQLite file, and what an engine makes of it."""

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
"""File systems on which other machines may write: their locks are not SQLite's, and there is no shared memory."""

MOUNTS = Path("/proc/self/mounts")

BIG_WAL = 64 * 2**20
"""SQLite copies the log into the file at 4 MB; so much means that it could not for long."""


def modes(connection: Connection) -> tuple[bool, bool]:
    """Tell whether the transaction that runs is read-only; SQLite's readers are never in anybody's way."""
    return _pragma(connection, "query_only") == 1, False


def _pragma(connection: Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def missing(patient: Patient) -> Finding | None:
    """Look whether there is a file that can be read; what there is not must not be made by looking."""
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
            "look at the path (three slashes are relative to the working directory, four absolute); the first write of "
            "the application, or create_all(), makes it",
        )
    except IsADirectoryError:
        return fail(check, f"{path} is no file", "look at the path")
    except OSError as error:
        return fail(check, f"{path} cannot be read: {error.strerror}", "run the doctor as the application's user")
    if found is None:
        return fail(check, f"{path} is no SQLite database", "look at the path; or it is encrypted, or damaged")
    return None


def version(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Tell which SQLite it is."""
    yield ok("server.version", f"SQLite {connection.exec_driver_sql('SELECT sqlite_version()').scalar()}")


def file(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look at the file, what lies beside it, and where it is."""
    path = _file.path_of(patient.engine.url)
    if path is None and (listed := connection.exec_driver_sql("PRAGMA database_list").one()[2]):
        path = Path(listed)  # opened by a creator= of the application's
    if path is None:
        yield warn("file.exists", "the database is in memory, and ends with the process", "name a file, but for tests")
        return
    yield ok("file.exists", f"{path}, {size(path.stat().st_size)}")
    refused = [str(place) for place in (path, path.absolute().parent) if not os.access(place, os.W_OK)]
    if refused:
        yield warn(
            "file.permissions",
            f"this user may not write to {' and '.join(refused)}; SQLite makes files beside its own",
            "run the doctor as the application's user; if it is: chown, chmod",
        )
    kind = _filesystem(path)
    if kind in NETWORK:
        yield fail(
            "file.filesystem",
            f"the file is on {kind}, a network file system, where locks do not hold and WAL does not work",
            "move it to a local disk, or use PostgreSQL",
        )
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size >= BIG_WAL:
        yield warn(
            "file.wal",
            f"the log {wal.name} has grown to {size(wal.stat().st_size)}: a reader that never ends keeps it",
            "end long read transactions, then PRAGMA wal_checkpoint(TRUNCATE)",
        )
    yield _journal(patient, path)


def _journal(patient: Patient, path: Path) -> Finding:
    check = "file.journal_mode"
    found = _file.header(path)
    if found is not None and found.wal:
        return ok(check, "WAL: readers and the writer do not wait for each other")
    if patient.reading is not None and patient.reading.wants_wal:
        return ok(check, "not WAL yet; the first connection of this engine switches to it")
    return warn(
        check,
        "not WAL: a COMMIT waits for every reader, and readers for it",
        f"sqlite.configure({patient.advice_name}), or once: PRAGMA journal_mode=WAL",
    )


def _filesystem(path: Path) -> str | None:
    """Return the kind of file system of a path; None where the system does not tell."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    place, best, kind = path.resolve(), -1, None
    for line in lines:
        _, mount, found, *_ = line.split()
        where = Path(mount.replace("\\040", " "))
        # Of two mounts on one place the later one is seen.
        if place.is_relative_to(where) and len(where.parts) >= best:
            best, kind = len(where.parts), found
    return kind


_DECLARED = text("""
    SELECT count(*) FROM sqlite_master AS m, pragma_foreign_key_list(m.name) AS k WHERE m.type = 'table' AND k.seq = 0
""")


def foreign_keys(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look for rows that refer to nothing."""
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
            f"{many} to rows that are not there: {a_few(sorted(set(broken)))}",
            "PRAGMA foreign_key_check tells which; mend or delete them, and have foreign keys enforced",
        )
    else:
        yield ok(check, f"{declared} declared, and all rows keep to them")


def engine(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look at what the connections of the engine are set up to: outside of scopes, where nobody else looks after it."""
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
            f"an engine made from this URL has foreign keys {'on' if enforced else 'off'}, waits {waits / 1000:g} s for a "
            f"lock, and begins {_AS[began]}",
            "engine = sqlite.configure(create_engine(...)), and have the doctor look at that: sessionkit doctor "
            "module:engine",
        )
        return
    advice = f"sqlite.configure({patient.advice_name})"
    if enforced:
        yield ok("engine.foreign_keys", "enforced")
    elif declared:
        yield fail("engine.foreign_keys", f"off: none of the {declared} declared is enforced", advice)
    else:
        yield warn("engine.foreign_keys", "off; no table declares one so far", advice)
    if waits >= 1000:
        yield ok("engine.busy_timeout", f"{waits / 1000:g} s")
    else:
        yield warn("engine.busy_timeout", f"{waits} ms: whoever finds the database locked fails at once", advice)
    if began == "BEGIN IMMEDIATE":
        yield ok("engine.begin", f"{began}: writers queue")
    else:
        yield warn(
            "engine.begin",
            f"outside of scopes a transaction begins {_AS[began]}",
            f'{advice} has it say BEGIN IMMEDIATE; begin="deferred" there, if you mean it',
        )


_AS = {
    "BEGIN IMMEDIATE": "with BEGIN IMMEDIATE",
    "BEGIN": "with BEGIN: one that reads and then writes fails if somebody has written meanwhile",
    "": "at its first write: what is read before it may change, and a savepoint before it is not undone",
}


def _began(plain: Connection) -> str:
    """Return how a transaction begins, as SQLite heard it."""
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
