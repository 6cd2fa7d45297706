"""CockroachDB: written from its documentation, not in the test matrix.

Whatever level you ask for, you get SERIALIZABLE, which it has always had and which is its default. (By now it also has READ
COMMITTED, but a setting of the cluster decides whether that is real or only another name for SERIALIZABLE:
https://www.cockroachlabs.com/docs/stable/read-committed.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from ._base import LEVELS, Asked, Beginning, Dialect, all_of, at_level, refuse

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_READ_ONLY = text("SET TRANSACTION READ ONLY")


def _beginning(engine: Engine, asked: Asked) -> Beginning:
    refuse("cockroachdb", asked, "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    level = None if asked.isolation is None else at_level(DIALECT.given(str(asked.isolation)))
    if not asked.read_only:
        return Beginning(DIALECT, level)

    def before(connection: Any) -> None:
        if level is not None:
            level(connection)
        connection.execute(_READ_ONLY)

    return Beginning(DIALECT, before)


DIALECT = Dialect(
    "cockroachdb",
    levels=dict.fromkeys(LEVELS, "SERIALIZABLE"),
    anomalies={"SERIALIZABLE": all_of()},
    default_level="SERIALIZABLE",
    beginning=_beginning,
    aborts=True,
)
