"""Locks of PostgreSQL: FOR UPDATE and its kin, and advisory locks that end with their transaction.

If a wait takes too long, the server answers 55P03, whatever the lock was (manual, 20.11 and 13.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    bindparam,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

from ..errors import Holder
from ._locks import Locks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

# A SELECT evaluates its columns from left to right. A lock_timeout of 0 means no limit.
_BOUND = text(
    "SELECT current_setting('lock_timeout'), set_config('lock_timeout', CAST(least(:ms, coalesce(nullif("
    "CAST(extract(epoch FROM CAST(current_setting('lock_timeout') AS interval)) * 1000 AS integer), 0), :ms)) AS text), "
    "true)"
).bindparams(bindparam("ms", type_=Integer))
_UNBOUND = text("SELECT set_config('lock_timeout', :before, true)")


def _bound(connection: Connection, seconds: float) -> Any:
    return connection.scalar(_BOUND, {"ms": min(max(1, round(seconds * 1000)), 2_147_483_647)})


def _unbound(connection: Connection, before: Any) -> None:
    connection.execute(_UNBOUND, {"before": before})


_pid = Column("pid", Integer)
_application = Column("application_name", Text)
_since = Column("xact_start", TIMESTAMP(timezone=True))
_activity = Table("pg_stat_activity", MetaData(), _pid, _application, _since, schema="pg_catalog")
_locks = Table(
    "pg_locks",
    MetaData(),
    Column("pid", Integer),
    Column("locktype", Text),
    Column("granted", Boolean),
    schema="pg_catalog",
)
_HOLDERS = select(_pid, _application, _since).where(_pid != literal_column("pg_backend_pid()"))


def _holders(connection: Connection, table: Table, where: Sequence[ColumnElement[bool]]) -> tuple[Holder, ...]:
    # A row lock is written into the row: xmax is the transaction that holds it, and that holds a lock on its own number.
    # (If several share the lock, xmax is the number of a list of them, and the result is empty.) SQL looks for the name in
    # the innermost query first: a view has no xmax, so that of `nothing` is used.
    nothing = select(literal_column("CAST(NULL AS xid)").label("xmax")).subquery("nothing")
    rows: Any = select(literal_column("xmax").label("held")).select_from(table).where(*where)
    held = rows.correlate(nothing).lateral("held")
    transaction = and_(
        _locks.c.locktype == "transactionid",
        _locks.c.granted,
        literal_column("pg_catalog.pg_locks.transactionid = held.held"),
    )
    pids = select(_locks.c.pid).select_from(nothing).join(held, literal_column("true")).join(_locks, transaction)
    return _holders_in(connection, _HOLDERS.where(_pid.in_(pids)))


def _holders_in(connection: Connection, query: Any) -> tuple[Holder, ...]:
    rows: Any = connection.execute(query)
    return tuple(Holder(pid, name or None, since) for pid, name, since in rows)


# At REPEATABLE READ the snapshot would be older than the wait, so do not take the lock.
def _locking(call: str) -> Any:
    level = "current_setting('transaction_isolation')"
    return text(f"SELECT {level}, CASE {level} WHEN 'repeatable read' THEN false ELSE {call} END").bindparams(
        bindparam("key", type_=BigInteger)
    )


_LOCK = _locking("CAST(pg_advisory_xact_lock(:key) AS text) IS NOT NULL")
_TRY = _locking("pg_try_advisory_xact_lock(:key)")


def _mutex(connection: Connection, key: int, wait: float | None) -> tuple[str, bool]:
    before = None if not wait else _bound(connection, wait)
    answer: Any = connection.execute(_TRY if wait == 0 else _LOCK, {"key": key}).one()
    if before is not None:
        _unbound(connection, before)
    level, got = answer
    return level.upper(), got


_MUTEX_HOLDERS = text(
    "SELECT activity.pid, activity.application_name, activity.xact_start FROM pg_catalog.pg_locks AS lock "
    "JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = lock.pid "
    "WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 1 "
    "AND lock.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) "
    "AND lock.classid = CAST(:high AS oid) AND lock.objid = CAST(:low AS oid) AND lock.pid <> pg_backend_pid()"
).bindparams(bindparam("high", type_=BigInteger), bindparam("low", type_=BigInteger))


def _mutex_holders(connection: Connection, key: int) -> tuple[Holder, ...]:
    halves = {"high": key >> 32 & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}
    return _holders_in(connection, _MUTEX_HOLDERS.bindparams(**halves))


LOCKS = Locks(bound=_bound, unbound=_unbound, holders=_holders, mutex=_mutex, mutex_holders=_mutex_holders)
