"""Two-phase commit on PostgreSQL: PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED, sent as SQL.

The drivers' own ``tpc_*`` methods need the name when the transaction begins, and need to know then that it will have two
phases: before it is clear whether a second database takes part at all.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, text
from sqlalchemy.exc import DBAPIError

from ..errors import classify
from ._two_phase import Pending, TwoPhase

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection

logger = logging.getLogger("sessionkit")

_DRIVERS = ("psycopg", "psycopg_async", "psycopg2", "asyncpg")
_IDENTITY = text(
    "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())"
    " FROM pg_control_system()"
)
_PENDING = text(
    "SELECT gid, CAST(extract(epoch FROM clock_timestamp() - prepared) AS float8) FROM pg_prepared_xacts "
    "WHERE database = current_database() ORDER BY prepared, gid"
)


def _refusal(connection: Connection) -> str | None:
    driver = connection.dialect.driver
    if driver not in _DRIVERS:
        return f"sessionkit does not know how to do it with the driver {driver}; use psycopg, psycopg2 or asyncpg"
    # SHOW takes no snapshot: SET TRANSACTION is still possible after it.
    if connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one() == "0":
        return (
            "its server has max_prepared_transactions = 0, so nothing can be prepared; set it to at least "
            "max_connections and restart the server"
        )
    return None


def _identity(connection: Connection) -> str:
    cluster, database = connection.execute(_IDENTITY).one()
    return blake2b(f"{cluster}/{database}".encode(), digest_size=8).hexdigest()


def _named(command: str, gid: str) -> Executable:
    return text(f"{command} :gid").bindparams(bindparam("gid", gid, literal_execute=True))


@contextmanager
def _outside(connection: Connection) -> Generator[None, None, None]:
    driver: Any = connection.connection.dbapi_connection
    looks = connection.dialect.driver.startswith("psycopg") and connection.dialect.driver != "psycopg2"
    if looks:
        # psycopg asks libpq, sees that no transaction is open any more, and would begin one.
        driver.autocommit = True
    try:
        yield
    finally:
        if not connection.invalidated:
            try:
                if looks:
                    driver.autocommit = False
                else:
                    # These two trust what they have sent, and will send a COMMIT or ROLLBACK for it.
                    connection.exec_driver_sql("BEGIN")
            except Exception:
                # The work is done, no matter how the connection ended up.
                logger.warning("a connection was lost after a prepared transaction had ended on it", exc_info=True)
                connection.invalidate()


def _has_code(code: str, error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and classify(error).code == code


TWO_PHASE = TwoPhase(
    refusal=_refusal,
    identity=_identity,
    prepare=lambda gid: _named("PREPARE TRANSACTION", gid),
    end=lambda gid, commit: _named("COMMIT PREPARED" if commit else "ROLLBACK PREPARED", gid),
    outside=_outside,
    gone=lambda error: _has_code("42704", error),
    # object_not_in_prerequisite_state: another session is ending it; lock_not_available: on the marker's row.
    busy=lambda error: _has_code("55000", error) or _has_code("55P03", error),
    pending=lambda connection: [Pending(gid, age) for gid, age in connection.execute(_PENDING)],
)
