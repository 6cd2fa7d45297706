"""What each dialect can do, and how: one table entry per dialect, so no other module names a dialect."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._base import Asked, Beginning, Dialect, deadline, is_autocommit, refuse_autocommit, root_of
from ._bulk import Bulk
from ._json import dumps_of
from ._replication import Position, Replication, Standing

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    # `X as X`: types that other modules use.
    from ._bulk import ColumnFacts as ColumnFacts
    from ._bulk import Sieve as Sieve
    from ._bulk import Sifted as Sifted
    from ._once import OnceKeys as OnceKeys
    from ._races import Gate as Gate
    from ._races import Move as Move
    from ._races import Raced as Raced
    from ._races import Rows as Rows
    from ._two_phase import TwoPhase as TwoPhase

__all__ = [
    "Asked",
    "Beginning",
    "Bulk",
    "Dialect",
    "Position",
    "Replication",
    "Standing",
    "deadline",
    "dumps_of",
    "is_autocommit",
    "of",
    "of_name",
    "refuse_autocommit",
    "register",
    "root_of",
]

_ENTRIES = {
    "cockroachdb": ("cockroachdb", "DIALECT"),
    "mariadb": ("mysql", "MARIADB"),
    "mysql": ("mysql", "MYSQL"),
    "postgresql": ("postgresql", "DIALECT"),
    "sqlite": ("sqlite", "DIALECT"),
}
"""Where the entries are. Each is loaded when it is first needed, together with SQLAlchemy's dialect."""

_TABLE: dict[str, Dialect] = {}


def register(entry: Dialect) -> None:
    """Add a dialect to the table, or replace its entry."""
    _TABLE[entry.name] = entry


def of(bind: Engine | Connection) -> Dialect:
    """Return the table entry for an engine or connection."""
    return of_name(bind.dialect.name)


def of_name(name: str) -> Dialect:
    """Return the table entry for SQLAlchemy's name of a dialect; without an entry, one that adds nothing."""
    entry = _TABLE.get(name)
    if entry is None:
        entry = _TABLE.setdefault(name, _load(name))
    return entry


def _load(name: str) -> Dialect:
    if name not in _ENTRIES:
        return Dialect(name)
    module, variable = _ENTRIES[name]
    entry: Dialect = getattr(import_module(f".{module}", __name__), variable)
    return entry
