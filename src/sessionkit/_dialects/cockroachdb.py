"""CockroachDB: from its documentation, not in the test matrix.

Every level that is asked for is given as SERIALIZABLE, which it has always had and which is its default. (It has READ
COMMITTED as well by now, but whether that is one or SERIALIZABLE under its name is a setting of the cluster:
https://www.cockroachlabs.com/docs/stable/read-committed.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import event, text

from ._base import LEVELS, Asked, Dialect, all_of, refuse, root_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_OPTION = "sessionkit_cockroachdb_read_only"
_listening: WeakSet[Engine] = WeakSet()


def _engine_for(engine: Engine, asked: Asked) -> Engine:
    refuse("cockroachdb", asked, "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    options: dict[str, object] = {}
    if asked.isolation is not None:
        options["isolation_level"] = DIALECT.given(str(asked.isolation))
    if asked.read_only:
        root = root_of(engine)
        if root not in _listening:
            _listening.add(root)
            event.listen(root, "begin", _begin)
        options[_OPTION] = True
    return engine.execution_options(**options) if options else engine


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_OPTION):
        connection.execute(text("SET TRANSACTION READ ONLY"))


DIALECT = Dialect(
    "cockroachdb",
    levels=dict.fromkeys(LEVELS, "SERIALIZABLE"),
    anomalies={"SERIALIZABLE": all_of()},
    default_level="SERIALIZABLE",
    engine_for=_engine_for,
    aborts=True,
)
