"""The classes that a mapped class inherits to become versioned, and the errors for misuse of their attribute."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from uuid import UUID, uuid4

from sqlalchemy import ColumnDefault, DateTime, FetchedValue, Integer, Uuid, event
from sqlalchemy.orm import Mapped, declared_attr, mapped_column
from sqlalchemy.orm.attributes import instance_state

from ..errors import VersionError
from ._kinds import COUNT, MOMENT, UUID4, XMIN, Moment, VersionKind, Xmin, first_moment, later_moment
from ._rows import OURS, name_of

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

_MARK = "sessionkit_version"
_TAKEN_OVER = "sessionkit_version_taken_over"


def kind_of_column(column: Column[Any]) -> VersionKind | None:
    """Return the kind of version that a column holds; None if it is not one of our version columns."""
    kind: VersionKind | None = column.info.get(_MARK)
    return kind


def was_taken_over(column: Column[Any]) -> bool:
    """Return whether the class had mapped this column already, and `TimestampVersioned` took it over."""
    return _TAKEN_OVER in column.info


class Base:
    """What the kinds share. Mapping a class that inherits it sets up the version column, whatever else the class declares.

    The attributes are not annotated for SQLAlchemy: an annotation would make them fields of a mapped dataclass, and
    those must come from dataclasses; see test_every_shape_of_class_is_versioned_and_finds_a_lost_update.
    """

    __version_kind__: ClassVar[VersionKind]
    __version_column__: ClassVar[str]


class Versioned(Base):
    """A mapped class whose rows count their changes.

    Adds ``version_id``, an integer, NOT NULL: 1 in the INSERT, one more in each UPDATE. The UPDATE and the DELETE of a row
    compare, in their WHERE, the version that was read. If another transaction has changed or deleted the row since, it does
    not match, and the flush raises `VersionConflict`.

    ::

        class Order(Versioned, Base):
            __tablename__ = "orders"
            __version_column__ = "lock_version"  # the column's name, where it is not "version_id"

    Raises (when the class is defined):
        VersionError: the class, or one that it inherits, already has a version or defines ``version_id`` itself; it shares
            the table of a class that is not versioned; it sets ``confirm_deleted_rows=False``.

    SQL::

        UPDATE orders SET name=?, version_id=4 WHERE orders.id = 7 AND orders.version_id = 3
        DELETE FROM orders WHERE orders.id = 7 AND orders.version_id = 3

    Source: SQLAlchemy, "Configuring a Version Counter".
    """

    __version_kind__ = COUNT
    __version_column__ = "version_id"

    if TYPE_CHECKING:
        version_id: Mapped[int]
    else:

        @declared_attr
        def version_id(cls):  # noqa: N805
            # The default serves a Core INSERT, which the mapper does not see.
            return mapped_column(cls.__version_column__, Integer, nullable=False, default=1, info={_MARK: COUNT})


class TimestampVersioned(Base):
    """A mapped class whose rows record when they last changed, to the microsecond, and use that time as their version.

    Adds ``updated_at``, an aware ``datetime`` in UTC, NOT NULL. The time comes from the server's clock, asked once per flush
    (``SELECT clock_timestamp()`` on PostgreSQL; SQLite uses the clock of its process). It strictly increases for each row: if
    the clock stands still or goes back, the next version is one microsecond after the last.

    A class that already maps ``updated_at`` hands the column over by naming it. The type, NOT NULL and the defaults are then
    those of a version, whatever the class declares; if the column had an ``onupdate``, a Core UPDATE keeps setting it. The
    table needs ``op.adopt_version_column()``.

    ::

        class Order(TimestampVersioned, Base):
            __tablename__ = "orders"
            __version_column__ = "updated_at"
            updated_at: Mapped[datetime] = mapped_column(onupdate=func.now())

    Everything else is as with `Versioned`.
    """

    __version_kind__ = MOMENT
    __version_column__ = "updated_at"

    if TYPE_CHECKING:
        updated_at: Mapped[datetime]
    else:

        @declared_attr
        def updated_at(cls):  # noqa: N805
            return mapped_column(
                cls.__version_column__, Moment(), nullable=False, default=first_moment, info={_MARK: MOMENT}
            )


class UUIDVersioned(Base):
    """A mapped class whose rows get a new random UUID with each change.

    Adds ``version_id``, a ``uuid.UUID``, NOT NULL. A version never repeats, even if a row is deleted and inserted again with
    the same key; a counter cannot tell those two rows apart. Everything else is as with `Versioned`.
    """

    __version_kind__ = UUID4
    __version_column__ = "version_id"

    if TYPE_CHECKING:
        version_id: Mapped[UUID]
    else:

        @declared_attr
        def version_id(cls):  # noqa: N805
            return mapped_column(cls.__version_column__, Uuid(), nullable=False, default=uuid4, info={_MARK: UUID4})


class XminVersioned(Base):
    """A mapped class that uses PostgreSQL's system column ``xmin`` as the version: no column is added.

    ``version_id`` is the id of the transaction that last wrote the row. Every UPDATE changes it, from any program, even one
    that sets the same values; only within one transaction it stays the same. The counter has 32 bits and wraps around, so do
    not keep a version for more than two billion transactions. RETURNING brings the value back.

    Raises (when a statement is compiled, before anything is sent):
        VersionError: the backend is not PostgreSQL.

    Source: PostgreSQL manual, 5.6 "System Columns".
    """

    __version_kind__ = XMIN
    __version_column__ = "xmin"

    if TYPE_CHECKING:
        version_id: Mapped[int]
    else:

        @declared_attr
        def version_id(cls):  # noqa: N805
            return mapped_column(
                cls.__version_column__, Xmin(), system=True, server_default=FetchedValue(), info={_MARK: XMIN}
            )


# Set up by an event and not by __mapper_args__, which a class with its own mapper arguments would silently override; see
# test_a_class_with_mapper_arguments_of_its_own_is_versioned.
@event.listens_for(Base, "after_mapper_constructed", propagate=True)
def _wire(mapper: Mapper[Any], cls: type[Base]) -> None:
    kind = cls.__version_kind__
    column: Column[Any] | None = mapper.columns.get(kind.attribute)
    inherited = mapper.inherits.version_id_col if mapper.inherits is not None and not mapper.concrete else None
    if column is not None and inherited is column and column.info.get(_MARK) is kind:
        return
    if mapper.version_id_col is not None:
        raise VersionError(
            f"{cls.__name__} inherits {kind.name}, but its mapper already uses {mapper.version_id_col} as the version; "
            f"remove version_id_col from its __mapper_args__, or {kind.name} from its bases"
        )
    if column is not None and column.info.get(_MARK) is not kind and kind is MOMENT and _hands_over(cls, column):
        _take_over(cls, column)
    if column is None or column.info.get(_MARK) is not kind:
        handing_over = "" if kind is not MOMENT else _how_to_hand_over(column)
        raise VersionError(
            f"{cls.__name__} inherits {kind.name}, but defines {kind.attribute!r} itself; remove that (and write "
            f'__version_column__ = "..." if the column has another name){handing_over}, or use version_id_col without '
            f"{kind.name}"
        )
    if mapper.single:
        raise VersionError(
            f"{cls.__name__} inherits {kind.name}, but shares the table {mapper.local_table} with "
            f"{mapper.inherits and mapper.inherits.class_.__name__}, whose rows would have no version; let the class "
            f"that has the table inherit {kind.name}"
        )
    if mapper.base_mapper.confirm_deleted_rows is False:
        raise VersionError(
            f"{cls.__name__} inherits {kind.name}, but confirm_deleted_rows=False makes SQLAlchemy trust every "
            "DELETE; remove it from its __mapper_args__"
        )
    mapper.version_id_col = column
    mapper.version_id_generator = kind.following or False
    attribute = getattr(cls, kind.attribute)
    event.listen(attribute, "set", _refuse_set, propagate=True, active_history=True)
    event.listen(attribute, "remove", _refuse_remove, propagate=True)
    event.listen(attribute, "modified", _refuse_flag, propagate=True)


# A column that the class has mapped itself


def _hands_over(cls: type[Base], column: Column[Any]) -> bool:
    """Return whether a class itself declares that its column is the version."""
    said = next(
        (each.__dict__["__version_column__"] for each in cls.__mro__ if "__version_column__" in vars(each)), None
    )
    above = next(each for each in cls.__mro__ if "__version_column__" in vars(each))
    return above is not TimestampVersioned and said == column.name


def _how_to_hand_over(column: Column[Any] | None) -> str:
    if column is None:
        return ""
    return f', or hand it over: write __version_column__ = "{column.name}" and migrate by op.adopt_version_column()'


def _take_over(cls: type[Base], column: Column[Any]) -> None:
    """Change a column to what TimestampVersioned would have created.

    Raises:
        VersionError: the column does not hold a time, or is part of the primary key.
    """
    if not isinstance(column.type, DateTime):
        raise VersionError(
            f"{cls.__name__} hands its column {column} over to TimestampVersioned, but its type is {column.type!r}; "
            "the version must be a DateTime"
        )
    if column.primary_key:
        raise VersionError(
            f"{cls.__name__} hands its column {column} over to TimestampVersioned, but the column is part of the "
            "primary key, which must not change; use another column"
        )
    column.type = Moment()
    column.nullable = False
    column.server_default = column.server_onupdate = None
    defaults: list[Any] = [ColumnDefault(first_moment)]
    if column.onupdate is not None:
        # Only for a Core UPDATE that does not name it: the flush and bulk do.
        defaults.append(ColumnDefault(later_moment(column), for_update=True))
    for default in defaults:
        default._set_parent(column)
    column.info.update({_MARK: MOMENT, _TAKEN_OVER: True})


def _refuse_set(target: Base, value: Any, old: Any, initiator: Any) -> None:
    if initiator is OURS or not instance_state(target).has_identity or value == old:
        return
    kind = target.__version_kind__
    if kind.ordered and isinstance(value, kind.type) and isinstance(old, kind.type) and value > old:
        return
    raise VersionError(
        f"{name_of(instance_state(target))} is at version {old!r}, and {value!r} was assigned to {kind.attribute}, "
        f"which would write it without a check; if {value!r} is what a client saw, use expect_version(obj, {value!r})"
        + ("" if kind.ordered else "; to force a new version, call bump_version(obj)")
    )


def _refuse_remove(target: Base, value: Any, initiator: Any) -> NoReturn:
    raise VersionError(f"{target.__version_kind__.attribute} of {name_of(instance_state(target))} cannot be deleted")


def _refuse_flag(target: Base, initiator: Any) -> NoReturn:
    raise VersionError(
        f"flag_modified() on {target.__version_kind__.attribute} of {name_of(instance_state(target))} would discard "
        "the version that was read, so there would be nothing to check; to force a new version, call "
        "bump_version(obj)"
    )
