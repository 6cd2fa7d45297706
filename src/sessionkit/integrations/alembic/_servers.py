"""How each server locks out a second deployment, limits the wait for a lock, and tells who is in the way.

One table entry per dialect. Everything is local to a transaction, so that it works behind a pooler too, where a session
is whoever's turn it is.
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

_POLL = 0.2  # seconds between two looks at a lock that somebody else has


@dataclass(frozen=True, slots=True)
class MigrationTurn:
    """What makes one deployment wait for the other.

    Attributes:
        key: of the lock: deployments that share their table of versions exclude each other.
        wait: how long to wait for it, in seconds.
        log: is told, once, that somebody else is at it.
    """

    key: str
    wait: float
    log: Callable[[str], None]


def _no_lock(connection: Connection, turn: MigrationTurn) -> None:
    raise AssertionError("a dialect without locks was asked for one")


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _nobody(connection: Connection, pid: int) -> list[Blocker]:
    return []


def _no_timeout(connection: Connection, seconds: float) -> None:
    raise OptionError(
        f"lock_timeout={seconds!r} was asked for, but run_migrations() does not know how {connection.dialect.name} limits "
        "the wait for a lock; say lock_timeout=None there"
    )


@dataclass(frozen=True, slots=True)
class Server:
    """What one dialect does in its own way.

    Attributes:
        locks: it can lock out a second deployment: on a connection of its own, by `lock`.
        level: at which a command runs, whatever the engine has: with AUTOCOMMIT nothing could be undone.
        whole: an upgrade is one transaction, which by `begin` locks out every other one.
        lock: takes the lock in the transaction that `connection` has begun, whose end gives it free.
        begin: begins the transaction of an upgrade, where `whole`.
        before: prepares a connection, before its first transaction.
        check: looks at what was done, before COMMIT, and raises what forbids it.
        ended: looks whether a transaction has ended with its COMMIT.
        after: undoes `before`.
        timeouts: it can limit the wait for a lock, by `limit`.
        limit: limits the wait for a lock in the transaction that begins.
        pid: the server's name for a connection, for `blockers`; None where nobody can be named.
        blockers: who is in the way of the connection with that name at this moment, asked on another one.
        options: of ``context.configure()``.
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
    blockers: Callable[[Connection, int], list[Blocker]] = _nobody
    options: dict[str, Any] = field(default_factory=dict)


def of(dialect: str) -> Server:
    """Return the entry of a dialect; for one that has none, an entry that can do nothing."""
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
    # The lock is held by a transaction that does nothing else, so no timeout may end it.
    patient = text(
        "SELECT set_config(name, '0', true) FROM pg_settings "
        "WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    number = _number(turn.key)
    ends = time.monotonic() + turn.wait
    told = False
    connection.execute(patient).all()
    # It asks again and again instead of waiting in one statement: that would hold a snapshot, for which a CREATE INDEX
    # CONCURRENTLY of the other deployment would wait, which is to say a deadlock.
    while not connection.scalar(_TRY, {"key": number}):
        if time.monotonic() >= ends:
            raise MigrationBlocked(
                f"waited {turn.wait} s for another migration of this database, which has not ended (lock_wait=)",
                _who(connection, _HOLDERS, key=number),
            )
        if not told:
            turn.log("Another migration of this database runs; waiting for it to end")
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
    # The driver begins no transaction before DDL, and a deferred one would let two upgrades read the same revision.
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        connection.exec_driver_sql("ROLLBACK")  # begun by a listener, nothing is done in it yet
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
                    "migration or the application holds (lock_wait=)"
                ) from error
        else:
            return
        if not told:
            turn.log("The database is being written to; waiting for the write lock")
            told = True
        sleep(_POLL, connection.dialect.is_async)


def _before_sqlite(connection: Connection) -> Counter[str] | None:
    # ALTER TABLE by copying drops the old table, and with it, where foreign keys are enforced, every row that refers to
    # it with ON DELETE CASCADE (https://www.sqlite.org/lang_altertable.html, section 7). In a transaction the PRAGMA
    # does nothing.
    enforced = _ask(connection, "PRAGMA foreign_keys")[0][0]
    if not enforced:
        return None
    broken = _broken(connection)
    _ask(connection, "PRAGMA foreign_keys=OFF")
    return broken


def _broken(connection: Connection) -> Counter[str]:
    return Counter(f"{table} -> {parent}" for table, _row, parent, _key in _ask(connection, "PRAGMA foreign_key_check"))


def _ask(connection: Connection, pragma: str) -> list[Any]:
    # Past SQLAlchemy, which would begin a transaction.
    cursor = connection.connection.cursor()
    try:
        cursor.execute(pragma)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def _check_sqlite(connection: Connection, before: Counter[str] | None) -> None:
    # What was broken before, by somebody who does not enforce foreign keys, is not the migration's to answer for.
    broken = Counter[str]() if before is None else _broken(connection) - before
    if broken:
        raise MigrationError(
            f"{broken.total()} rows would refer to rows that are not there ({', '.join(sorted(broken))}), so nothing of "
            "the migration was committed; have it delete or change them"
        )


def _ended_sqlite(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        raise MigrationError(
            f"nothing of the migration was committed: the driver of {connection.engine!r} ignores commit(); leave "
            "autocommit=True out of connect_args"
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
        # A lock is held until its transaction ends: not while the next migration works on other tables.
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
        # It has one lock, which `begin` takes.
        timeouts=True,
        limit=_nothing,
        options={"transactional_ddl": True, "transaction_per_migration": False},
    ),
}
