"""Replicas as the primary sees them, and readers as they see themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from ._finding import Finding, fail, ok, warn
from ._words import age, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from sessionkit._spi import Position

    from ._patient import Patient

__all__ = ["position", "reader", "replicas"]

_REPLICAS = text("""
    SELECT CAST(pid AS text) AS pid, application_name, coalesce(host(client_addr), 'local') AS place, state,
           CAST(extract(epoch FROM replay_lag) AS float8) AS lag,
           CAST(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) AS float8) AS behind
    FROM pg_stat_replication WHERE state IS NULL OR state <> 'backup' ORDER BY application_name, pid
""")
_SLOTS = text("""
    SELECT CAST(slot_name AS text) AS name,
           CAST(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) AS float8) AS kept
    FROM pg_replication_slots WHERE NOT active AND NOT temporary ORDER BY slot_name
""")


def replicas(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check the standbys of this server, and look for unused slots."""
    check = "replication.replicas"
    if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one():
        return
    rows: list[Any] = list(connection.execute(_REPLICAS))
    late = [row for row in rows if row.lag is not None and row.lag >= patient.limits.max_lag]
    broken = [row for row in rows if row.state not in {None, "streaming"}]
    unseen = [row for row in rows if row.state is None]
    for row in late:
        yield warn(
            check,
            f"{_name(row)} is {age(row.lag)} and {size(row.behind)} behind",
            "check whether replay is paused there, or a long query blocks it; see also --reader",
        )
    for row in broken:
        yield warn(check, f"{_name(row)} is in state {row.state}, not streaming", "read the log of that server")
    if unseen:
        yield warn(
            check,
            f"{len(unseen)} replicas, whose state this role may not see",
            "GRANT pg_read_all_stats to the role (pg_monitor does as well), or name them with --reader",
        )
    if not late and not broken and not unseen:
        names = ", ".join(f"{_name(row)} ({size(row.behind or 0)} behind)" for row in rows)
        yield ok(check, names or "no standby follows this server")
    for slot in connection.execute(_SLOTS):
        kept = "" if slot.kept is None else f" and keeps {size(slot.kept)} of the log"
        yield warn(
            "replication.slots",
            f"the slot {slot.name} is not in use{kept}, which may fill the disk",
            f"start its consumer, or SELECT pg_drop_replication_slot('{slot.name.replace(chr(39), chr(39) * 2)}')",
        )


def _name(row: Any) -> str:
    return f"{row.application_name or 'a replica'} at {row.place}"


def position(connection: Connection, patient: Patient) -> Position | None:
    """Return the current position of a primary; None if it has none."""
    replication = patient.entry.replication
    if replication is None or replication.standing(connection).recovering:
        return None
    return replication.position(connection)


_PAUSED = text("SELECT pg_is_wal_replay_paused()")
_FOLLOWS = text("SELECT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)")


def reader(connection: Connection, patient: Patient, name: str, primary: Position | None) -> Iterator[Finding]:
    """Check a server that read-only scopes should read from."""
    check, replication = name, patient.entry.replication
    if replication is None:
        yield fail(check, f"{patient.asked} is {connection.dialect.name}, which has no readers", "leave it out")
        return
    standing = replication.standing(connection)
    if not standing.recovering:
        yield fail(
            check,
            f"{patient.asked} is not a standby: it follows no primary, and accepts writes",
            "remove it from readers=; allow_writable_readers=True is for servers that are kept in sync another way",
        )
        return
    if primary is not None and standing.position.cluster != primary.cluster:
        yield fail(check, f"{patient.asked} follows another primary", "name a standby of this primary in readers=")
        return
    lag = standing.lag or 0.0
    behind = "" if primary is None else f", {size(max(0, primary.lsn - standing.position.lsn))} behind"
    if connection.execute(_PAUSED).scalar_one():
        yield fail(
            check,
            f"{patient.asked} does not replay: it is paused, {age(lag)} behind{behind}",
            "SELECT pg_wal_replay_resume() on it",
        )
    elif not connection.execute(_FOLLOWS).scalar_one():
        yield fail(
            check,
            f"{patient.asked} receives nothing from a primary{behind}",
            "check primary_conninfo and the log of that server",
        )
    elif lag >= patient.limits.max_lag:
        yield fail(
            check,
            f"{patient.asked} is {age(lag)} late{behind}",
            "look for long queries on it (max_standby_streaming_delay), and check its disk; max_lag= of the factory "
            "makes scopes read elsewhere meanwhile",
        )
    else:
        yield ok(check, f"{patient.asked} follows{behind or f', {age(lag)} late'}")
