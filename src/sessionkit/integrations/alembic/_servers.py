"""How each server locks out a second deployment, limits the wait for a lock, and reports blockers.

One table entry per dialect. Everything is local to a transaction, so it also works behind a pooler, where a server session is
not bound to a client.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, bindparam, text
from sqlalchemy.exc import DBAPIError

from ..._spi import sleep
from ...errors import OptionError, classify
from ._errors import Blocker, MigrationBlocked, MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

_POLL = 0.2  # seconds between two attempts to get a lock


@dataclass(frozen=True, slots=True)
class MigrationTurn:
    """What makes one deployment wait for another.

    Attributes:
        key: the key of the lock: deployments that share their version table exclude each other.
        wait: seconds to wait for the lock.
        log: called once, with a message, if another deployment is running.
    """

    key: str
    wait: float
    log: Callable[[str], None]


def _no_lock(connection: Connection, turn: MigrationTurn) -> None:
    raise AssertionError("this dialect has no lock")


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _no_blockers(connection: Connection, pid: int) -> list[Blocker]:
    return []


def _no_timeout(connection: Connection, seconds: float) -> None:
    raise OptionError(
        f"lock_timeout={seconds!r} was asked for, but run_migrations() does not know how to limit the wait for a lock "
        f"on {connection.dialect.name}; use lock_timeout=None there"
    )


@dataclass(frozen=True, slots=True)
class Server:
    """What differs between dialects.

    Attributes:
        locks: `lock` can lock out a second deployment, on a separate connection.
        level: the isolation level for commands, whatever the engine uses: with AUTOCOMMIT nothing could be undone.
        whole: an upgrade is one transaction, and `begin` makes it lock out every other one.
        lock: takes the lock in the transaction of `connection`; the end of that transaction releases it.
        begin: begins the transaction of an upgrade, if `whole`.
        before: prepares a connection before its first transaction.
        check: checks the work before COMMIT, and raises an error that prevents it.
        ended: checks that COMMIT really ended the transaction.
        after: undoes `before`.
        timeouts: `limit` can limit the wait for a lock.
        limit: limits the wait for locks in the transaction that begins.
        pid: the server's id of a connection, for `blockers`; None if blockers are not known.
        blockers: returns what blocks the connection with that id now; asked on another connection.
        options: options of ``context.configure()``.
    """

    locks: bool = False
    level: str | None = None
    whole: bool = False
    lock: Callable[[Connection, MigrationTurn], None] = _no_lock
    begin: Callable[[Connection, MigrationTurn], None] | None = None
    before: Callable[[Connection], Any] = _nothing
    check: Callable[[Connection, Any], None] = _nothing
    ended: Callable[[Connection], None] = _nothing
    after: Callable[[Connection, Any], None] = _nothing
    timeouts: bool = False
    limit: Callable[[Connection, float], None] = _no_timeout
    pid: Callable[[Connection], int] | None = None
    blockers: Callable[[Connection, int], list[Blocker]] = _no_blockers
    options: dict[str, Any] = field(default_factory=dict)


def of(dialect: str) -> Server:
    """Return the entry of a dialect; for an unknown one, an entry that supports nothing."""
    return _TABLE.get(dialect, _OTHERS)


# PostgreSQL

_WHO = """
    SELECT a.pid, coalesce(a.application_name, ''), coalesce(a.usename, ''), coalesce(a.state, ''),
           coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0), coalesce(a.query, '')
    FROM pg_stat_activity a WHERE a.pid IN ({pids}) ORDER BY a.xact_start
"""
_BLOCKERS = text(_WHO.format(pids="SELECT unnest(pg_blocking_pids(:pid))"))
_HOLDERS = text(
    _WHO.format(
        pids="SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database "
        "= (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32) | l.objid::bigint = :key AND l.pid <> pg_backend_pid()"
    )
).bindparams(bindparam("key", type_=BigInteger))
_TRY = text("SELECT pg_try_advisory_xact_lock(:key)").bindparams(bindparam("key", type_=BigInteger))


def _number(key: str) -> int:
    return int.from_bytes(blake2b(f"sessionkit migrations {key}".encode(), digest_size=8).digest(), signed=True)


def _who(connection: Connection, query: Any, **values: Any) -> list[Blocker]:
    rows: list[Any] = list(connection.execute(query, values))
    return [
        Blocker(pid, application, user, state, float(seconds), " ".join(sql.split()))
        for pid, application, user, state, seconds, sql in rows
    ]


def _lock_postgresql(connection: Connection, turn: MigrationTurn) -> None:
    # The transaction that holds the lock does nothing else, so no timeout may end it.
    patient = text(
        "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
        "('idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    number = _number(turn.key)
    ends = time.monotonic() + turn.wait
    told = False
    connection.execute(patient).all()
    # Polls instead of waiting in one statement: a waiting statement holds a snapshot, and a CREATE INDEX CONCURRENTLY of the
    # other deployment would wait for that snapshot, which is a deadlock.
    while not connection.scalar(_TRY, {"key": number}):
        if time.monotonic() >= ends:
            raise MigrationBlocked(
                f"waited {turn.wait} s for another migration of this database, which has not ended; try again later, "
                "or raise lock_wait=",
                _who(connection, _HOLDERS, key=number),
            )
        if not told:
            turn.log("Another migration of this database is running; waiting for it to end")
            told = True
        sleep(_POLL, connection.dialect.is_async)


def _limit_postgresql(connection: Connection, seconds: float) -> None:
    limit = text("SELECT set_config('lock_timeout', :value, true)")
    connection.execute(limit, {"value": f"{max(1, round(seconds * 1000))}ms"})


def _pid_postgresql(connection: Connection) -> int:
    pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return pid


# SQLite


def _begin_sqlite(connection: Connection, turn: MigrationTurn) -> None:
    # The driver begins no transaction before DDL, and in a deferred one two upgrades could read the same revision.
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        connection.exec_driver_sql("ROLLBACK")  # a listener began it; it has done nothing yet
    ends = time.monotonic() + turn.wait
    told = False
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except DBAPIError as error:
            if classify(error).kind != "busy":
                raise
            if time.monotonic() >= ends:
                raise MigrationBlocked(
                    f"waited {turn.wait} s for the write lock of {connection.engine.url.database}, which another "
                    "migration or the application holds; try again later, or raise lock_wait="
                ) from error
        else:
            return
        if not told:
            turn.log("Another connection is writing to the database; waiting for the write lock")
            told = True
        sleep(_POLL, connection.dialect.is_async)


def _before_sqlite(connection: Connection) -> Counter[str] | None:
    # ALTER TABLE by copying drops the old table, and if foreign keys are enforced, this deletes every row that refers to it
    # with ON DELETE CASCADE (https://www.sqlite.org/lang_altertable.html, section 7). Inside a transaction the PRAGMA has no
    # effect.
    enforced = _ask(connection, "PRAGMA foreign_keys")[0][0]
    if not enforced:
        return None
    broken = _broken(connection)
    _ask(connection, "PRAGMA foreign_keys=OFF")
    return broken


def _broken(connection: Connection) -> Counter[str]:
    return Counter(f"{table} -> {parent}" for table, _row, parent, _key in _ask(connection, "PRAGMA foreign_key_check"))


def _ask(connection: Connection, pragma: str) -> list[Any]:
    # Bypasses SQLAlchemy, which would begin a transaction.
    cursor = connection.connection.cursor()
    try:
        cursor.execute(pragma)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def _check_sqlite(connection: Connection, before: Counter[str] | None) -> None:
    # The migration is not responsible for rows that were broken before, by code that does not enforce foreign keys.
    broken = Counter[str]() if before is None else _broken(connection) - before
    if broken:
        raise MigrationError(
            f"{broken.total()} rows would refer to missing rows ({', '.join(sorted(broken))}), so nothing of the "
            "migration was committed; let the migration delete or change them"
        )


def _ended_sqlite(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        raise MigrationError(
            f"nothing of the migration was committed: the driver of {connection.engine!r} ignores commit(); remove "
            "autocommit=True from connect_args"
        )


def _after_sqlite(connection: Connection, before: Counter[str] | None) -> None:
    if before is not None:
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            _ask(connection, "ROLLBACK")
        _ask(connection, "PRAGMA foreign_keys=ON")


_OTHERS = Server()
_TABLE = {
    "postgresql": Server(
        locks=True,
        level="READ COMMITTED",
        lock=_lock_postgresql,
        timeouts=True,
        limit=_limit_postgresql,
        pid=_pid_postgresql,
        blockers=lambda connection, pid: _who(connection, _BLOCKERS, pid=pid),
        # A transaction holds its locks until it ends, so each migration has its own.
        options={"transaction_per_migration": True},
    ),
    "sqlite": Server(
        locks=True,
        level="SERIALIZABLE",
        whole=True,
        begin=_begin_sqlite,
        before=_before_sqlite,
        check=_check_sqlite,
        ended=_ended_sqlite,
        after=_after_sqlite,
        # SQLite has one lock, which `begin` takes.
        timeouts=True,
        limit=_nothing,
        options={"transactional_ddl": True, "transaction_per_migration": False},
    ),
}
