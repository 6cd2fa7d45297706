"""PostgreSQL, through psycopg, psycopg2 and asyncpg; also other drivers, and other servers that speak its protocol.

Level, READ ONLY and DEFERRABLE go into BEGIN, where the three drivers put them: this adds no statement. SQLAlchemy's own
options ``postgresql_readonly`` and ``postgresql_deferrable`` would do the same, but afterwards they reset the driver to
READ WRITE instead of to the server's default, and a standby refuses that. So this module sets the driver's own attributes,
and restores them. All timeouts go into one ``set_config`` statement, local to the transaction.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert

from ..errors import OptionError
from . import _asyncpg, _template
from ._base import Asked, Beginning, Dialect, all_of, undo_at_checkin
from ._bulk_postgresql import BULK
from ._connect import connect_within
from ._locks_postgresql import LOCKS
from ._once_postgresql import ONCE
from ._replication_postgresql import REPLICATION
from ._settings_postgresql import send, settings
from ._two_phase_postgresql import TWO_PHASE
from ._with_commit import with_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection, Engine

    from ._races import Raced

# Hermitage, postgresql.md; tests/concurrency/test_anomalies.py proves each cell.
_ANOMALIES = {
    "READ COMMITTED": all_of("PMP", "P4", "G-single", "G2-item", "G2"),
    "REPEATABLE READ": all_of("G2-item", "G2"),
    "SERIALIZABLE": all_of(),
}


class _Modes(NamedTuple):
    """What a driver puts into BEGIN; None means the server's default."""

    isolation: Any
    read_only: bool | None
    deferrable: bool | None


class _Driver(NamedTuple):
    """How to read and set what a driver puts into BEGIN.

    Attributes:
        get: returns the current modes.
        set: changes them.
        level: spells a level the way the driver does.
        begun: returns whether the driver has already sent BEGIN.
        unsaid: returns the wanted modes that the driver cannot put into BEGIN.
    """

    get: Callable[[Any], _Modes]
    set: Callable[[Any, _Modes], None]
    level: Callable[[str], Any]
    begun: Callable[[Any], bool]
    unsaid: Callable[[Any, _Wanted], list[str]] = lambda _, __: []


def _psycopg_level(level: str) -> Any:
    from psycopg import IsolationLevel

    return IsolationLevel[level.replace(" ", "_")]


def _psycopg_get(connection: Any) -> _Modes:
    driver = getattr(connection, "_connection", connection)  # SQLAlchemy's async adapter wraps psycopg's
    return _Modes(driver.isolation_level, driver.read_only, driver.deferrable)


def _psycopg_set(connection: Any, modes: _Modes) -> None:
    connection.set_isolation_level(modes.isolation)
    connection.set_read_only(modes.read_only)
    connection.set_deferrable(modes.deferrable)


def _attributes_get(connection: Any) -> _Modes:
    return _Modes(connection.isolation_level, connection.readonly, connection.deferrable)


def _attributes_set(connection: Any, modes: _Modes) -> None:
    connection.isolation_level, connection.readonly, connection.deferrable = modes


def _libpq_begun(driver_connection: Any) -> bool:
    return bool(driver_connection.info.transaction_status != _IDLE)


def _asyncpg_unsaid(driver_connection: Any, wanted: _Wanted) -> list[str]:
    """Return the modes that are the standard's defaults: its BEGIN omits them, although the server's may differ."""
    modes = []
    # PostgreSQL 14 and later report it to the driver; a pooler may have withheld it.
    if wanted.read_only is False and getattr(driver_connection.get_settings(), _DEFAULT_READ_ONLY, None) != "off":
        modes.append("READ WRITE")
    if wanted.deferrable is False:
        modes.append("NOT DEFERRABLE")
    return modes


_DEFAULT_READ_ONLY = "default_transaction_read_only"

# libpq, PQtransactionStatus: https://www.postgresql.org/docs/current/libpq-status.html
_IDLE, _INERROR, _UNKNOWN = 0, 3, 4

_PSYCOPG = _Driver(_psycopg_get, _psycopg_set, _psycopg_level, _libpq_begun)
_PSYCOPG2 = _Driver(_attributes_get, _attributes_set, lambda level: level, _libpq_begun)
_DRIVERS = {
    "psycopg": _PSYCOPG,
    "psycopg_async": _PSYCOPG,
    "psycopg2": _PSYCOPG2,
    # asyncpg's BEGIN is sent by SQLAlchemy's adapter, which keeps the three in attributes of its own.
    "asyncpg": _Driver(
        _attributes_get,
        _attributes_set,
        lambda level: level.lower().replace(" ", "_"),
        lambda driver_connection: bool(driver_connection.is_in_transaction()),
        _asyncpg_unsaid,
    ),
}

_SETTINGS = {
    "statement_timeout": "statement_timeout",
    "lock_timeout": "lock_timeout",
    "idle_timeout": "idle_in_transaction_session_timeout",
}


def _beginning(engine: Engine, asked: Asked) -> Beginning:
    wanted = _wanted(asked)
    follows = _asyncpg.follow if engine.dialect.driver == "asyncpg" else None

    def after(connection: Any) -> None:
        if getattr(connection._dbapi_connection.dbapi_connection, "autocommit", False):
            raise OptionError(
                f"a scope was opened on {connection.engine!r}, but its driver's connections are in autocommit mode, "
                "where no transaction begins; leave autocommit out of connect_args"
            )
        if follows is not None:
            follows(connection)

    return Beginning(DIALECT, None if wanted is None else partial(_begin, wanted), after)


class _Wanted(NamedTuple):
    isolation: str | None
    read_only: bool | None
    deferrable: bool | None
    timeouts: dict[str, str]
    set_timeouts: Executable | None


_NOTHING = _Wanted(None, None, None, {}, None)


def _wanted(asked: Asked) -> _Wanted | None:
    level = None if asked.isolation is None else DIALECT.given(str(asked.isolation))
    timeouts = {
        setting: f"{max(1, round(seconds * 1000))}ms"
        for option, setting in _SETTINGS.items()
        if (seconds := getattr(asked, option)) is not None
    }
    wanted = _Wanted(level, asked.read_only, asked.deferrable, timeouts, _set_config(timeouts))
    return None if wanted == _NOTHING else wanted


def _set_config(values: dict[str, str]) -> Executable | None:
    """Return one statement for all timeouts, made once: to build and to compile it would cost more than to send it."""
    if not values:
        return None
    calls = ", ".join(f"set_config('{setting}', :{setting}, true)" for setting in values)
    return text(f"SELECT {calls}").bindparams(**values)


# Before the user's listeners: what a listener sends to the database when a transaction begins should already run under the
# preset.
def _begin(wanted: _Wanted, connection: Connection, *, values: Mapping[str, str | None] | None = None) -> None:
    if wanted[:3] != (None, None, None):
        driver = _DRIVERS.get(connection.dialect.driver)
        pooled = connection.connection
        if driver is None or driver.begun(pooled.driver_connection):
            connection.execute(_set_transaction(_modes(wanted)))
        else:
            _tell_driver(driver, wanted, connection)
            unsaid = driver.unsaid(pooled.driver_connection, wanted)
            if unsaid:
                connection.execute(_set_transaction(unsaid))
    if values:
        send(connection, {**wanted.timeouts, **values})
    elif wanted.set_timeouts is not None:
        connection.execute(wanted.set_timeouts)


def _tell_driver(driver: _Driver, wanted: _Wanted, connection: Connection) -> None:
    """Make the driver put the modes into its next BEGIN, and restore them when the pool gets the connection back."""
    options, adapted = connection.get_execution_options(), connection.connection.dbapi_connection
    before = driver.get(adapted)
    # SQLAlchemy itself restores what was set with its own options.
    ours = tuple(option not in options for option in _SQLALCHEMYS)
    undo_at_checkin(connection, partial(_restore, driver, before, ours))
    driver.set(
        adapted,
        _Modes(
            before.isolation if wanted.isolation is None else driver.level(wanted.isolation),
            before.read_only if wanted.read_only is None else wanted.read_only,
            before.deferrable if wanted.deferrable is None else wanted.deferrable,
        ),
    )


def _restore(driver: _Driver, before: _Modes, ours: tuple[bool, ...], dbapi_connection: Any) -> None:
    now = driver.get(dbapi_connection)
    driver.set(dbapi_connection, _Modes(*(b if mine else n for b, n, mine in zip(before, now, ours, strict=True))))


_SQLALCHEMYS = ("isolation_level", "postgresql_readonly", "postgresql_deferrable")


def _modes(wanted: _Wanted) -> list[str]:
    return [
        *([] if wanted.isolation is None else [f"ISOLATION LEVEL {wanted.isolation}"]),
        *([] if wanted.read_only is None else ["READ ONLY" if wanted.read_only else "READ WRITE"]),
        *([] if wanted.deferrable is None else ["DEFERRABLE" if wanted.deferrable else "NOT DEFERRABLE"]),
    ]


def _set_transaction(modes: list[str]) -> Executable:
    return text(f"SET TRANSACTION {', '.join(modes)}")


def _lost(connection: Any) -> str | None:
    # psycopg and psycopg2 know the state from the protocol's ReadyForQuery; asyncpg does not reveal it, so there we use the
    # log of failed statements.
    if connection.dialect.driver == "asyncpg":
        return _asyncpg.lost(connection)
    adapted = connection._dbapi_connection.dbapi_connection
    info = getattr(getattr(adapted, "_connection", adapted), "info", None)
    status = getattr(info, "transaction_status", None)
    if status == _INERROR:
        return "a statement sent through the driver's own cursor failed, so the server has aborted the transaction"
    if status == _UNKNOWN:
        return "the connection to the server is lost"
    return None


def _restrict(connection: Connection) -> None:
    connection.execute(select(func.set_config("transaction_read_only", "on", True)))


def _cut(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    # If it still comes back to the pool, the pool replaces it.
    connection.connection.invalidate(soft=True)
    if hasattr(driver, "terminate"):  # asyncpg, from within its event loop
        driver.terminate()
        return
    # libpq is waiting on this socket, maybe in another thread, so leave the connection object alone. Shutting the socket
    # down under it ends the wait as if the server had gone.
    with socket.socket(fileno=os.dup(driver.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)


def _bound_commit(connection: Connection, seconds: float | None) -> None:
    """Do nothing: the watchdog cuts the connection."""


def _lift(connection: Connection) -> None:
    """Do nothing: rolling back the savepoint resets a local setting."""


def _now(connection: Connection) -> datetime:
    # Not now(): that is the start of the transaction, and a rival that began later may have committed earlier.
    return cast("datetime", connection.scalar(select(func.clock_timestamp())))


def _in_transaction(connection: Connection) -> bool:
    driver = _DRIVERS.get(connection.dialect.driver)
    return connection.in_transaction() if driver is None else driver.begun(connection.connection.driver_connection)


def _has_written(connection: Connection) -> bool:
    # A transaction that has written has an id. Through a cursor, so that tests that count statements do not count this one.
    cursor: Any = connection.connection.cursor()
    try:
        cursor.execute("SELECT txid_current_if_assigned() IS NOT NULL")
        return bool(cursor.fetchone()[0])
    except connection.dialect.loaded_dbapi.Error:
        return False  # an aborted transaction commits nothing
    finally:
        cursor.close()


# In a block that ends with an exception, so that the constraints are deferred again; in one statement, because every COMMIT
# of a test asks.
_CHECK_DEFERRED = """DO $$ BEGIN SET CONSTRAINTS ALL IMMEDIATE; RAISE SQLSTATE 'SK000';
EXCEPTION WHEN SQLSTATE 'SK000' THEN NULL; END $$"""


def _check_deferred(connection: Connection) -> None:
    connection.exec_driver_sql(_CHECK_DEFERRED)


_APPLICATION = text("SELECT set_config('application_name', :name, true)")
_LONGEST_NAME = 63  # NAMEDATALEN - 1, in bytes


def _name_transaction(connection: Connection, name: str) -> None:
    # As the server itself does in most versions: https://www.postgresql.org/docs/current/runtime-config-logging.html
    shown = "".join(char if " " <= char <= "~" else "?" for char in name)[:_LONGEST_NAME]
    connection.execute(_APPLICATION, {"name": shown})


def _driver_in_transaction(driver_connection: Any) -> bool:
    if hasattr(driver_connection, "is_in_transaction"):  # asyncpg
        return bool(driver_connection.is_in_transaction())
    return hasattr(driver_connection, "info") and _libpq_begun(driver_connection)


def _raced() -> type[Raced]:
    from ._races_postgresql import RacedPostgresql

    return RacedPostgresql


DIALECT = Dialect(
    "postgresql",
    # PostgreSQL manual 13.2: READ UNCOMMITTED behaves like READ COMMITTED.
    levels={
        "READ UNCOMMITTED": "READ COMMITTED",
        "READ COMMITTED": "READ COMMITTED",
        "REPEATABLE READ": "REPEATABLE READ",
        "SERIALIZABLE": "SERIALIZABLE",
    },
    anomalies=_ANOMALIES,
    beginning=_beginning,
    aborts=True,
    lost=_lost,
    driver_in_transaction=_driver_in_transaction,
    restrict=_restrict,
    lift=_lift,
    insert_or_wait=lambda table: insert(table).on_conflict_do_nothing(),
    with_commit=with_commit,
    cut=_cut,
    connect_within=connect_within,
    bound_commit=_bound_commit,
    bulk=BULK,
    two_phase=TWO_PHASE,
    locks=LOCKS,
    once=ONCE,
    replication=REPLICATION,
    settings=settings(partial(_begin, _NOTHING)),
    row_security=True,
    now=_now,
    later="greatest(clock_timestamp(), {column} + interval '1 microsecond')",
    new_uuid="gen_random_uuid()",
    xmin=True,
    template=_template.POSTGRESQL,
    raced=_raced,
    in_transaction=_in_transaction,
    has_written=_has_written,
    check_deferred=_check_deferred,
    name_transaction=_name_transaction,
)
