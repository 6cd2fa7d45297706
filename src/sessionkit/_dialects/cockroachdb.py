"""CockroachDB: from its documentation, not in the test matrix.

By default every level that is asked for runs as SERIALIZABLE (https://www.cockroachlabs.com/docs/stable/transactions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import event, text

from ._base import LEVELS, Asked, Dialect, all_of, refuse

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_OPTION = "sessionkit_cockroachdb_read_only"
_listening: WeakSet[Engine] = WeakSet()


def _engine_for(engine: Engine, asked: Asked) -> Engine:
    refuse("cockroachdb", asked, "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    if not asked.read_only:
        return engine
    if engine not in _listening:
        _listening.add(engine)
        event.listen(engine, "begin", _begin)
    return engine.execution_options(**{_OPTION: True})


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_OPTION):
        connection.execute(text("SET TRANSACTION READ ONLY"))


DIALECT = Dialect(
    "cockroachdb",
    levels=dict.fromkeys(LEVELS, "SERIALIZABLE"),
    anomalies={"SERIALIZABLE": all_of()},
    default_level="SERIALIZABLE",
    engine_for=_engine_for,
)
