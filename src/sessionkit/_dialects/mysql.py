"""MySQL and MariaDB with InnoDB: written from their documentation, not in the test matrix.

Their timeouts are refused: they are settings of the session, which would leak to the next user of a pooled connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from ._base import Asked, Beginning, Dialect, all_of, at_level, refuse

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_READ_ONLY = text("SET TRANSACTION READ ONLY")  # MySQL: for the next transaction, which begins after it

# Hermitage, mysql.md: REPEATABLE READ stops PMP and G-single only for read-only transactions, and does not stop lost updates.
_ANOMALIES = {
    "READ UNCOMMITTED": all_of("G1a", "G1b", "G1c", "OTV", "PMP", "P4", "G-single", "G2-item", "G2"),
    "READ COMMITTED": all_of("PMP", "P4", "G-single", "G2-item", "G2"),
    "REPEATABLE READ": all_of("PMP", "P4", "G-single", "G2-item", "G2"),
    "SERIALIZABLE": all_of(),
}


def _beginning(engine: Engine, asked: Asked) -> Beginning:
    refuse(engine.dialect.name, asked, "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    level = None if asked.isolation is None else at_level(str(asked.isolation))
    if not asked.read_only:
        return Beginning(DIALECTS[engine.dialect.name], level)

    def before(connection: Any) -> None:
        if level is not None:
            level(connection)
        connection.execute(_READ_ONLY)

    return Beginning(DIALECTS[engine.dialect.name], before)


MYSQL = Dialect("mysql", anomalies=_ANOMALIES, default_level="REPEATABLE READ", beginning=_beginning)
MARIADB = Dialect("mariadb", anomalies=_ANOMALIES, default_level="REPEATABLE READ", beginning=_beginning)
DIALECTS = {entry.name: entry for entry in (MYSQL, MARIADB)}
