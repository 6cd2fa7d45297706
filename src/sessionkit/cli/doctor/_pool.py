"""The engine's pool against the server's limits, and poolers between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.pool import NullPool, QueuePool

from ._finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine

    from ._patient import Patient

__all__ = ["SILENT_POOLER", "pool", "pooler"]

ROUNDS = 4
"""How often two connections take turns before we believe that each has its own server connection."""


def _room_of(engine: Engine) -> tuple[str, int | None]:
    """Return a description of the pool, and how many connections it may open; None means no limit."""
    kept = engine.pool
    name = type(kept).__name__
    if not isinstance(kept, QueuePool):
        return name, None if isinstance(kept, NullPool) else 1
    overflow: int = kept._max_overflow
    if overflow < 0:
        return f"{name} without a limit (max_overflow=-1)", None
    if kept.size() == 0:
        return f"{name} without a limit (pool_size=0)", None
    return f"{name} of {kept.size()} + {overflow}", kept.size() + overflow


_PLACES = text("""
    SELECT (SELECT CAST(sum(numbackends) AS int) FROM pg_stat_database),
           CAST(current_setting('max_connections') AS int)
           - CAST(current_setting('superuser_reserved_connections') AS int)
           - coalesce(CAST(current_setting('reserved_connections', true) AS int), 0),
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
""")


def pool(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether the server has room for the pool's connections."""
    check = "pool.size"
    said, most = _room_of(patient.engine)
    used, places, role, database = connection.execute(_PLACES).one()
    limit = min(value for value in (places, role, database) if value >= 0)
    told = f"{said}; the server has {limit} connection slots for clients, {used} in use"
    if most is not None and most > limit:
        yield fail(
            check,
            f"{told}: one process alone could open {most}",
            "create_engine(pool_size=..., max_overflow=...), so that all processes together stay below that",
        )
    elif used >= 0.8 * places:
        yield warn(
            check,
            told,
            "make the pools smaller, put a pooler in between, or raise max_connections",
        )
    elif most == 1 and not isinstance(patient.engine.pool, QueuePool):
        yield warn(
            check,
            f"{told}: all sessions share one connection, and so one transaction",
            "remove poolclass= from create_engine()",
        )
    else:
        own = "" if patient.own or isinstance(patient.engine.pool, NullPool) else " (SQLAlchemy's default)"
        processes = f": enough for {limit // most} processes" if most else ""
        yield ok(check, f"{said}{own}; the server has {limit} connection slots for clients, {used} in use{processes}")


# Poolers in between. The protocol gives a client the process id of its backend, and SQL can query it: a pooler sends its own
# number in the protocol (https://www.postgresql.org/docs/current/protocol-flow.html, BackendKeyData).


SILENT_POOLER = warn(
    "pool.pooler",
    "there is one, and a second connection has to wait for the first: it is in session mode, and all its server "
    "connections are taken",
    "pool_mode = transaction, or a bigger default_pool_size",
)


def _protocol_pid(driver_connection: Any) -> int | None:
    if hasattr(driver_connection, "get_server_pid"):  # asyncpg
        return int(driver_connection.get_server_pid())
    info = getattr(driver_connection, "info", None)
    return None if info is None else int(info.backend_pid)


def _pid(connection: Connection) -> int:
    found = int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    connection.rollback()
    return found


def pooler(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check for a pooler, and whether it switches server connections between transactions.

    This changes no setting: two connections begin transactions in turn, one at a time, and query their backend.
    """
    check = "pool.pooler"
    told = _protocol_pid(connection.connection.driver_connection)
    if told is None:
        yield warn(check, f"the driver {connection.dialect.driver} does not report its backend", "use another driver")
        return
    if told == int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()):
        yield ok(check, "none: the driver talks directly to the server")
        return
    fits = patient.own and _is_set(connection)
    connection.close()
    if _room_of(patient.engine)[1] == 1:
        yield warn(
            check,
            "there is one; its mode is not known, because the engine's pool has only one connection",
            "use the default pool",
        )
        return
    looking = patient.looking_engine()
    with looking.connect() as one, looking.connect() as other:
        seen = {_pid(one)}
        shared = False
        for _ in range(ROUNDS):
            theirs = _pid(other)
            ours = _pid(one)
            shared = shared or theirs in seen or ours not in seen
            seen.add(ours)
    if not shared:
        yield ok(check, "there is one, which gives each client its own server connection (session mode)")
        return
    found = "there is one that may switch the server connection after each transaction (PgBouncer: transaction mode)"
    remedy = _REMEDIES.get(patient.engine.dialect.driver)
    if remedy is None or fits:
        yield ok(check, f"{found}; the engine prepares no statements and leaves nothing behind there")
        return
    yield warn(
        check,
        f"{found}: a statement prepared on one connection is unknown on the next, unless the pooler tracks it",
        f"create_engine(connect_args={remedy}), or PgBouncer 1.21 or newer with max_prepared_statements",
    )


_PSYCOPG = '{"prepare_threshold": None}'
_ASYNCPG = (
    '{"statement_cache_size": 0, "prepared_statement_cache_size": 0, '
    '"prepared_statement_name_func": lambda: f"__{uuid4()}__"}'
)
_REMEDIES = {"psycopg": _PSYCOPG, "psycopg_async": _PSYCOPG, "asyncpg": _ASYNCPG}
"""The settings that keep a driver from preparing statements; psycopg2 never prepares any."""


def _is_set(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "prepare_threshold"):
        return driver.prepare_threshold is None
    return getattr(getattr(driver, "_config", None), "statement_cache_size", None) == 0
