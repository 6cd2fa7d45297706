"""MySQL and MariaDB with InnoDB: from their documentation, not in the test matrix.

Their timeouts are settings of the session, which would leak to the next user of a pooled connection, so they are
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import event, text

from ._base import Asked, Dialect, all_of, refuse, root_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_OPTION = "sessionkit_mysql_read_only"
_listening: WeakSet[Engine] = WeakSet()

# Hermitage, mysql.md: REPEATABLE READ stops PMP and G-single for read-only transactions only, and lost updates not at
# all.
_ANOMALIES = {
    "READ UNCOMMITTED": all_of("G1a", "G1b", "G1c", "OTV", "PMP", "P4", "G-single", "G2-item", "G2"),
    "READ COMMITTED": all_of("PMP", "P4", "G-single", "G2-item", "G2"),
    "REPEATABLE READ": all_of("PMP", "P4", "G-single", "G2-item", "G2"),
    "SERIALIZABLE": all_of(),
}


def _engine_for(engine: Engine, asked: Asked) -> Engine:
    refuse(engine.dialect.name, asked, "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    options: dict[str, object] = {}
    if asked.isolation is not None:
        options["isolation_level"] = str(asked.isolation)
    if asked.read_only:
        root = root_of(engine)
        if root not in _listening:
            _listening.add(root)
            event.listen(root, "begin", _begin)
        options[_OPTION] = True
    return engine.execution_options(**options) if options else engine


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_OPTION):
        # For the next transaction only, which begins with the statement after it.
        connection.execute(text("SET TRANSACTION READ ONLY"))


MYSQL = Dialect("mysql", anomalies=_ANOMALIES, default_level="REPEATABLE READ", engine_for=_engine_for)
MARIADB = Dialect("mariadb", anomalies=_ANOMALIES, default_level="REPEATABLE READ", engine_for=_engine_for)
