"""A PostgreSQL server: its settings, its sessions, abandoned transactions, and lock waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sessionkit.binding import recover_prepared

from ._finding import Finding, fail, ok, warn
from ._words import age, at_least, query_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.engine import Connection

    from ._patient import Patient

__all__ = ["durability", "idle_timeout", "left_over", "modes", "prepared", "privileges", "standby", "version", "waits"]

MOST = 3
"""The number of findings of one kind that are listed one by one."""


def show(connection: Connection, *names: str) -> list[str]:
    """Query settings. This takes no snapshot."""
    return [str(connection.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in names]


def modes(connection: Connection) -> tuple[bool, bool]:
    """Return whether the current transaction is read-only and deferrable."""
    read_only, deferrable = show(connection, "transaction_read_only", "transaction_deferrable")
    return read_only == "on", deferrable == "on"


def version(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Report the version of the server."""
    (number,) = show(connection, "server_version")
    yield ok("server.version", f"PostgreSQL {number}")


def durability(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether a commit survives a crash."""
    off = [
        name
        for name in ("fsync", "full_page_writes", "synchronous_commit")
        if show(connection, name) == ["off"]
    ]  # fmt: skip
    if not off:
        yield ok("server.durability", "a commit survives a crash of the server")
        return
    yield warn(
        "server.durability",
        f"{', '.join(off)} off: a crash may lose committed transactions"
        + ("" if off == ["synchronous_commit"] else ", or all of the data"),
        "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off) + "; SELECT pg_reload_conf()",
    )


def standby(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether the server accepts writes."""
    if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one():
        yield warn(
            "server.role",
            "a standby, which refuses every write and SERIALIZABLE",
            "run the doctor on the primary, with this server as --reader",
        )
    elif show(connection, "default_transaction_read_only") == ["on"]:
        yield warn(
            "server.role",
            "default_transaction_read_only is on: a scope without read_only=False cannot write",
            "ALTER ROLE ... or ALTER DATABASE ... RESET default_transaction_read_only",
        )
    else:
        yield ok("server.role", "a primary")


# Other sessions

_PRIVILEGES = text(
    "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), CAST(quote_ident(current_user) AS text)"
)


def privileges(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether the role can see the sessions of other roles."""
    may, name = connection.execute(_PRIVILEGES).one()
    if may:
        yield ok("sessions.privileges", "the role can see the sessions of all roles")
    else:
        yield warn(
            "sessions.privileges",
            f"the role {name} can only see its own sessions: the report about others is incomplete",
            f"GRANT pg_read_all_stats TO {name} (pg_monitor includes it)",
        )


# Walsenders and workers are not clients. An ordinary role does not see the kind of another role's backend.
_SESSIONS = text("""
    WITH waiting AS (
        SELECT unnest(pg_blocking_pids(pid)) AS pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'
    )
    SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(CAST(a.usename AS text), '') AS role,
           coalesce(a.state, '') AS state, coalesce(a.query, '') AS query,
           CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS float8) AS age,
           CAST(extract(epoch FROM clock_timestamp() - a.state_change) AS float8) AS since,
           (SELECT count(*) FROM waiting WHERE waiting.pid = a.pid) AS waiting
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
      AND coalesce(a.backend_type, 'client backend') = 'client backend'
    ORDER BY a.xact_start
""")


def left_over(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look for abandoned transactions, and for long ones."""
    limit = patient.limits.older_than
    rows: list[Any] = list(connection.execute(_SESSIONS))
    idle = [row for row in rows if row.state.startswith("idle in transaction") and row.since >= limit]
    long = [row for row in rows if row.state == "active" and row.age >= limit]
    yield from _listed(
        "sessions.idle",
        idle,
        lambda row: fail(
            "sessions.idle",
            f"{_who(row)} {row.state} for {age(row.since)} (begun {age(row.age)} ago), after: {query_start(row.query)}"
            + _in_the_way(row),
            f"pg_terminate_backend({row.pid}) ends it; idle_timeout= of a scope or preset prevents it",
        ),
        f"no transaction has been idle {at_least(limit)}",
    )
    yield from _listed(
        "sessions.long",
        long,
        lambda row: (fail if row.waiting else warn)(
            "sessions.long",
            f"{_who(row)} in a transaction for {age(row.age)}, running: {query_start(row.query)}" + _in_the_way(row),
            f"pg_cancel_backend({row.pid}) interrupts it; statement_timeout= of a scope or preset limits it",
        ),
        f"no transaction has been running {at_least(limit)}",
    )


# A prepared transaction blocks as process 0. One query finds all waits, because they may change between two queries.
_WAITS = text("""
    WITH waiting AS MATERIALIZED (
        SELECT pid, pg_blocking_pids(pid) AS blockers FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
    )
    SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(CAST(a.usename AS text), '') AS role,
           coalesce(a.state, '') AS state, coalesce(a.query, '') AS query,
           CAST(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start)) AS float8) AS age,
           CAST(extract(epoch FROM clock_timestamp() - a.query_start) AS float8) AS since,
           coalesce(array_to_string(w.blockers, ' '), '') AS blockers
    FROM pg_stat_activity a LEFT JOIN waiting w ON w.pid = a.pid
    WHERE w.pid IS NOT NULL OR a.pid IN (SELECT unnest(blockers) FROM waiting)
    ORDER BY a.xact_start, a.pid
""")


def waits(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Draw the waits of this moment as a tree: each blocking session, and below it the sessions that wait for it."""
    check = "sessions.waits"
    rows = {row.pid: row for row in connection.execute(_WAITS)}
    blockers = {pid: [int(each) for each in row.blockers.split()] for pid, row in rows.items()}
    if not any(blockers.values()):
        yield ok(check, "no session waits for a lock")
        return
    roots = [pid for pid in rows if not blockers[pid]]
    if any(0 in each for each in blockers.values()):
        yield warn(check, "a prepared transaction", "sessions.prepared lists them, and how to end them")
        yield from _below(0, rows, blockers, 1, set())
    told: set[int] = set()
    # A cycle has no root: the server ends it after deadlock_timeout.
    for root in roots or sorted(rows)[:1]:
        row = rows[root]
        yield warn(
            check,
            f"{_who(row)} {row.state or 'at work'}, in a transaction for {age(row.age)}: {query_start(row.query)}",
            f"pg_cancel_backend({root}) interrupts it, pg_terminate_backend({root}) ends it",
        )
        yield from _below(root, rows, blockers, 1, told)


def _below(
    pid: int, rows: dict[int, Any], blockers: dict[int, list[int]], depth: int, told: set[int]
) -> Iterator[Finding]:
    for waiting in [each for each in rows if pid in blockers[each]]:
        row, again = rows[waiting], waiting in told
        told.add(waiting)
        yield warn(
            "sessions.waits",
            f"{'   ' * (depth - 1)}└─ {_who(row)} waits for {age(row.since)}: {query_start(row.query)}"
            + (" (told above)" if again else ""),
            f"pg_cancel_backend({waiting}) makes it give up",
        )
        if not again:
            yield from _below(waiting, rows, blockers, depth + 1, told)


def _listed(check: str, rows: list[Any], tell: Callable[[Any], Finding], none: str) -> Iterator[Finding]:
    if not rows:
        yield ok(check, none)
    yield from map(tell, rows[:MOST])
    if len(rows) > MOST:
        yield fail(
            check,
            f"and {len(rows) - MOST} more: pid {', '.join(str(row.pid) for row in rows[MOST:][:8])}"
            + (" ..." if len(rows) > MOST + 8 else ""),
            "SELECT * FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start",
        )


def _who(row: Any) -> str:
    names = [*([f"{row.application}"] if row.application else []), f"role {row.role}"]
    return f"pid {row.pid} ({', '.join(names)})"


def _in_the_way(row: Any) -> str:
    return f"; {row.waiting} waiting for it" if row.waiting else ""


def idle_timeout(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether the server ends idle transactions automatically."""
    check = "sessions.idle_timeout"
    (limit,) = show(connection, "idle_in_transaction_session_timeout")
    if limit != "0":
        yield ok(check, f"the server ends a transaction that has been idle for {limit}")
        return
    yield warn(
        check,
        "idle_in_transaction_session_timeout is 0: a transaction that its client abandons keeps its locks for ever",
        f"ALTER ROLE {_role(connection)} SET idle_in_transaction_session_timeout = '60s'",
    )


def _role(connection: Connection) -> str:
    return str(connection.exec_driver_sql("SELECT CAST(quote_ident(current_user) AS text)").scalar_one())


def prepared(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look for abandoned prepared transactions, of sessionkit and of other programs."""
    check, limit, two_phase = "sessions.prepared", patient.limits.older_than, patient.entry.two_phase
    if two_phase is None or show(connection, "max_prepared_transactions") == ["0"]:
        yield ok(check, "impossible here (max_prepared_transactions = 0, so twophase=True is refused)")
        return
    pending = two_phase.pending(connection)
    connection.close()  # the pool may have only one connection
    ours = {each.gid for each in recover_prepared(patient.looking_engine(), resolve=False)} if pending else set[str]()
    old = [each for each in pending if each.age >= limit]
    if not old:
        young = f" ({len(pending)} younger)" if pending else ""
        yield ok(check, f"no transaction has been prepared {at_least(limit)}{young}")
    shown: Iterable[Any] = old[:MOST]
    for each in shown:
        mine = each.gid in ours
        literal = "'" + each.gid.replace("'", "''") + "'"
        yield fail(
            check,
            f"{each.gid if mine else repr(each.gid)}, {'of sessionkit' if mine else 'not of sessionkit'}, prepared "
            f"{age(each.age)} ago: it keeps its locks until it is ended",
            f"sessionkit.binding.recover_prepared({patient.advice_name}, ...) with the engines of all its databases"
            if mine
            else f"find out which program prepared it; COMMIT PREPARED {literal} or ROLLBACK PREPARED {literal} ends "
            "it",
        )
    if len(old) > MOST:
        yield fail(check, f"and {len(old) - MOST} more", "SELECT * FROM pg_prepared_xacts ORDER BY prepared")
