"""What each dialect can do, and how it says it: one table entry per dialect, and no dialect's name elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cockroachdb, mysql, postgresql, sqlite
from ._base import Asked, Beginning, Dialect, deadline, is_autocommit, refuse_autocommit, root_of
from ._json import dumps_of
from ._replication import Position, Replication, Standing
from ._two_phase import TwoPhase

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

__all__ = [
    "Asked",
    "Beginning",
    "Dialect",
    "Position",
    "Replication",
    "Standing",
    "TwoPhase",
    "deadline",
    "dumps_of",
    "is_autocommit",
    "of",
    "of_name",
    "refuse_autocommit",
    "register",
    "root_of",
]

_TABLE: dict[str, Dialect] = {
    entry.name: entry for entry in (postgresql.DIALECT, sqlite.DIALECT, mysql.MYSQL, mysql.MARIADB, cockroachdb.DIALECT)
}


def register(entry: Dialect) -> None:
    """Add a dialect to the table, or replace its entry."""
    _TABLE[entry.name] = entry


def of(bind: Engine | Connection) -> Dialect:
    """Return the table entry for what an engine or connection talks to."""
    return of_name(bind.dialect.name)


def of_name(name: str) -> Dialect:
    """Return the table entry of a dialect by SQLAlchemy's name for it; if there is none, one that adds nothing."""
    entry = _TABLE.get(name)
    if entry is None:
        entry = _TABLE[name] = Dialect(name)
    return entry
