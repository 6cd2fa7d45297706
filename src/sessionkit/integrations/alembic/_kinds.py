"""A version column in a table: its type, and the value that existing rows get."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from sqlalchemy import Column, DateTime, Integer, Text, Uuid, text
from sqlalchemy.types import CHAR

from ... import version
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.types import TypeEngine

    from ...version import VersionKind

KindName = Literal["count", "timestamp", "uuid"]


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """One kind of version column.

    Attributes:
        name: its name in `op.add_version_column`.
        kind: the corresponding kind of the models.
        type: the type of the column. Not the model's own type, which a migration would have to import.
        initial: SQL for the version that existing rows get. It is the same for all of them, so it can be the column's
            default, and no row is rewritten. A version need only differ from the previous and the next version of its own
            row.
        initial_on: the same for dialects that need different SQL.
        kept_on: a better default for rows that are inserted later, by dialect.
    """

    name: KindName
    kind: VersionKind
    type: TypeEngine[Any]
    initial: Callable[[], str]
    initial_on: Mapping[str, Callable[[], str]]
    kept_on: Mapping[str, str]

    def column(self, name: str, default: str | None = None, *, strict: bool = False) -> Column[Any]:
        """Return the column, NOT NULL. In a STRICT table of SQLite it has the storage type that SQLAlchemy writes."""
        type_ = Text() if strict and self.name != "count" else self.type
        return Column(name, type_, nullable=False, server_default=None if default is None else text(default))

    def initial_for(self, dialect: str) -> str:
        """Return the default that fills a column of this kind. Each call may return a different one."""
        return self.initial_on.get(dialect, self.initial)()


def _new_uuid() -> str:
    # A new one for each migration, not a constant such as the nil UUID: after a downgrade and another upgrade, a version that
    # a client still holds must not appear again. gen_random_uuid() is volatile: as a default of ADD COLUMN it would make
    # PostgreSQL rewrite the table under an exclusive lock. The form is the one that
    # SQLAlchemy's Uuid writes without a native type; PostgreSQL reads it too.
    return f"'{uuid4().hex}'"


def _now_as_text() -> str:
    # SQLite cannot add a column with a default that is not constant to a table with rows. The form is that of SQLAlchemy's
    # DateTime.
    return f"'{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}'"


_KINDS = {
    "count": ColumnKind("count", version.Versioned.__version_kind__, Integer(), lambda: "1", {}, {}),
    # now() and CURRENT_TIMESTAMP are stable: PostgreSQL evaluates them once and does not rewrite the table.
    "timestamp": ColumnKind(
        "timestamp",
        version.TimestampVersioned.__version_kind__,
        DateTime(timezone=True),
        lambda: "CURRENT_TIMESTAMP",
        {"postgresql": lambda: "now()", "sqlite": _now_as_text},
        {},
    ),
    "uuid": ColumnKind(
        "uuid",
        version.UUIDVersioned.__version_kind__,
        Uuid(),
        _new_uuid,
        {},
        {"postgresql": "gen_random_uuid()"},
    ),
}


def kind_named(name: object) -> ColumnKind:
    """Return the kind with this name.

    Raises:
        MigrationError: there is no such kind, or it needs no column.
    """
    if name == "xmin":
        raise MigrationError(
            "kind='xmin' was asked for, but XminVersioned uses the system column xmin, which every PostgreSQL table "
            "has, so there is no column to add or drop; leave the operation out"
        )
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MigrationError(f"kind={name!r} was asked for; use one of {', '.join(map(repr, _KINDS))}")
    return kind


def kind_of(column: Column[Any]) -> ColumnKind | None:
    """Return the kind of a model's column; None if it is not one of our version columns."""
    found = version.kind_of_column(column)
    return next((kind for kind in _KINDS.values() if kind.kind is found), None)


def was_taken_over(column: Column[Any]) -> bool:
    """Return whether a model's column is one that its class has mapped itself and hands over."""
    return version.was_taken_over(column)


def is_xmin(column: Column[Any]) -> bool:
    """Return whether a model's column is the system column of `XminVersioned`."""
    return version.kind_of_column(column) is version.XminVersioned.__version_kind__


def kind_of_type(type_: TypeEngine[Any]) -> ColumnKind | None:
    """Return the kind that a column of the database may be, by its type."""
    if isinstance(type_, Integer):
        return _KINDS["count"]
    if isinstance(type_, DateTime):
        return _KINDS["timestamp"]
    # SQLite, where SQLAlchemy stores a Uuid as 32 digits.
    if isinstance(type_, Uuid) or (isinstance(type_, CHAR) and type_.length == 32):
        return _KINDS["uuid"]
    return None


def kind_by_default_name(column: Column[Any]) -> ColumnKind | None:
    """Return the kind of a database column that looks like ours: by its name, its type, and NOT NULL.

    Only for ``version_id``: an ``updated_at`` may have any purpose.
    """
    kind = kind_of_type(column.type)
    if kind is None or column.nullable or column.name != "version_id" or kind.name == "timestamp":
        return None
    return kind
