"""What can be known about versioned classes and their rows without asking a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, inspect, or_
from sqlalchemy.orm import InstanceState, Mapper, PassiveFlag, attributes

from ..errors import Identity, VersionError, row_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm.attributes import History, InstrumentedAttribute

    from ._kinds import VersionKind

PARENTS = "__version_parents__"


class _Token:
    """Initiator of attribute events when sessionkit itself sets the version."""


OURS: Any = _Token()


def kind_of(mapper: Mapper[Any]) -> VersionKind | None:
    """Return the kind of version that a mapped class inherits from us; None if it inherits none."""
    return getattr(mapper.class_, "__version_kind__", None)


def parents_declared(mapper: Mapper[Any]) -> Any:
    """Return what a mapped class declares as its versioned parents, unchanged."""
    return getattr(mapper.class_, PARENTS, ())


def versioned(obj: object) -> tuple[InstanceState[Any], VersionKind]:
    """Return the state of a versioned object, and the kind of its version.

    Raises:
        VersionError: it is not an object of a versioned class.
    """
    state: InstanceState[Any] | None = inspect(obj, raiseerr=False)
    kind = kind_of(state.mapper) if isinstance(state, InstanceState) else None
    if state is None or kind is None:
        what = f"an object of {type(obj).__name__}" if isinstance(state, InstanceState) else repr(obj)
        raise VersionError(
            f"{what} has no version; pass an object of a mapped class that inherits Versioned, TimestampVersioned, "
            "UUIDVersioned or XminVersioned"
        )
    return state, kind


def stored(obj: object, what: str) -> tuple[InstanceState[Any], VersionKind]:
    """Do the same as `versioned`, and refuse an object that has no row in the database.

    Raises:
        VersionError: it has no row, or is not versioned.
    """
    state, kind = versioned(obj)
    if not state.has_identity:
        raise VersionError(
            f"{what} needs a row in the database, but this {type(obj).__name__} was never flushed; its INSERT gives "
            "it the first version"
        )
    return state, kind


def name_of(state: InstanceState[Any]) -> str:
    """Name a row for a message: ``Order 7``."""
    return row_name(state.mapper.class_, state.identity)


def version_read(state: InstanceState[Any], kind: VersionKind) -> Any:
    """Return the version that a row was read with, whatever was assigned to the attribute since."""
    history = attributes.get_history(state.obj(), kind.attribute, PassiveFlag.PASSIVE_OFF)
    read = history.deleted or history.unchanged
    return read[0] if read else None


def key_columns(mapper: Mapper[Any]) -> tuple[ColumnElement[Any], ...]:
    """Return the primary key of the table that holds the version, in the order of an identity."""
    assert mapper.version_id_col is not None
    table = mapper.version_id_col.table
    return tuple(
        next((same for same in mapper.get_property_by_column(column).columns if same.table is table), column)
        for column in mapper.primary_key
    )


def is_any_of(
    columns: Sequence[ColumnElement[Any] | InstrumentedAttribute[Any]], identities: Collection[Identity]
) -> ColumnElement[bool]:
    """Return a SQL condition: the key in `columns` is one of `identities`."""
    if len(columns) == 1:
        return columns[0].in_([identity[0] for identity in identities])
    return or_(*(and_(*(c == v for c, v in zip(columns, identity, strict=True))) for identity in identities))


def changes(state: InstanceState[Any]) -> dict[str, History]:
    """Return the net changes of columns by attribute, including the version."""
    columns = state.mapper.column_attrs
    found = {key: state.attrs[key].history for key in list(state.committed_state) if key in columns}
    return {key: history for key, history in found.items() if history.has_changes()}


def values_read(state: InstanceState[Any]) -> dict[str, Any]:
    """Return the values of the columns as they were read, for those that were."""
    histories = {prop.key: state.attrs[prop.key].history for prop in state.mapper.column_attrs}
    return {key: old[0] for key, history in histories.items() if (old := history.deleted or history.unchanged)}
