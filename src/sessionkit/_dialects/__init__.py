"""What each dialect can do, and how it says it: one table entry per dialect, and no dialect's name elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import postgresql, sqlite
from ._base import Dialect

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_TABLE: dict[str, Dialect] = {d.name: d for d in (postgresql.DIALECT, sqlite.DIALECT)}
_OTHER = Dialect("other")


def of(bind: Engine | Connection) -> Dialect:
    """Return the table entry for what an engine or connection talks to."""
    return _TABLE.get(bind.dialect.name, _OTHER)
