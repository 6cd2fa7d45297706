"""What a mapping says about its columns: where a value comes from, and under which name a row holds it.

A `MappingPlan` is made once for a mapper. A `Slot` is a column that can be written.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Table, func, inspect, or_
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import ColumnProperty, CompositeProperty, Mapper, SynonymProperty

from ..errors import OptionError
from ..version import kind_of
from ._defaults import takes_context

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import ColumnElement


class _Omit(enum.Enum):
    OMIT = enum.auto()


OMIT: Final = _Omit.OMIT
"""Placeholder: the statement leaves the column out, and the database fills it."""

Source = Literal["null", "constant", "call", "context", "database"]
"""NULL; the same for all rows; the result of a function; of a function that sees the row; made by the database."""


class Supply(NamedTuple):
    """What a column gets if a row has no value for it."""

    kind: Source
    value: Any = None


NULL: Final = Supply("null")
DATABASE: Final = Supply("database")
SQL: Final = Supply("database", "sql")
"""Like DATABASE, but the table does not define it: SQLAlchemy writes it into the statement."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A column that can be written.

    Attributes:
        key: the attribute; None for a column of the table that no attribute maps.
        column: the column.
        supply: what an INSERT writes if the row has no value.
        onupdate: what an UPDATE writes if the row has no value; None if it leaves the column alone.
        none_is_value: None is a real value here (JSON ``null``), and never means the default.
        generated: always filled from `supply`, whatever a new row holds: a version column.
    """

    key: str | None
    column: Column[Any]
    supply: Supply
    onupdate: Supply | None
    none_is_value: bool
    generated: bool

    @property
    def label(self) -> str:
        return self.key or self.column.name

    @property
    def omitted_is_null(self) -> bool:
        """Whether leaving the column out is the same as writing NULL."""
        return self.supply.kind == "null"


class Composite(NamedTuple):
    """An attribute that stands for several columns."""

    slots: tuple[Slot, ...]
    split: Callable[[Any], Sequence[Any]]


@dataclass(slots=True)
class MappingPlan:
    """What bulk needs to know about a mapper.

    Attributes:
        table: the table of the mapper; None if it has several (joined inheritance).
        slots: every column that can be written, by attribute; `unmapped` holds the unmapped columns of the table.
        key: the primary key.
        version: the version column, if there is one.
        generator: makes the next version from the current one (None at first); None if the database makes it.
        bump: the next version as SQL; None if only `generator` can make it.
        columns: the column of a slot in each table that has one; the columns of a key hold equal values.
        of_class: by table, the condition for a row to be of this class, and not of another class in the hierarchy.
        below: tables in which subclasses keep further columns of a row; tables that others refer to come last.
    """

    mapper: Mapper[Any]
    table: Table | None
    slots: dict[str, Slot]
    unmapped: list[Slot]
    key: tuple[Slot, ...]
    version: Slot | None
    generator: Callable[[Any], Any] | None
    bump: Callable[[Any], Any] | None
    columns: dict[tuple[Slot, Any], Column[Any]]
    of_class: dict[Any, ColumnElement[bool]]
    below: Sequence[Table]
    names: dict[str, Slot | Composite]
    cache: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @property
    def name(self) -> str:
        return str(self.mapper.class_.__name__)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the cached value for `key`, or make it. It may depend only on the mapper and the key."""
        try:
            return self.cache[key]
        except KeyError:
            if len(self.cache) >= 512:
                self.cache.clear()  # the input keeps bringing new shapes
            value = self.cache[key] = make()
            return value

    def refusal(self, name: object) -> str | None:
        """Return why an attribute cannot be written; None if it can."""
        if name in self.names:
            return None
        if not isinstance(name, str):
            return f"{name!r} is not an attribute name; the keys of a row must be strings"
        found = self.mapper.all_orm_descriptors.get(name)
        if name in self.mapper.relationships:
            columns = sorted(
                self.mapper.get_property_by_column(column).key
                for column in self.mapper.relationships[name].local_columns
            )
            return f"{name!r} is a relationship of {self.name}; bulk writes columns, so give {' and '.join(columns)}"
        if found is not None:
            return f"{name!r} of {self.name} is computed and cannot be written; give the columns it is made of"
        near = get_close_matches(name, self.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(self.names))}"
        return f"{self.name} has no attribute {name!r}; {hint}"

    def left_to_sql(self, given: Collection[Slot]) -> Slot | None:
        """Return a column that the rows leave out and whose default only SQLAlchemy's own statement writes."""
        slots = (*self.slots.values(), *self.unmapped)
        return next((slot for slot in slots if slot.supply is SQL and slot not in given), None)

    def slots_of(self, name: str) -> tuple[Slot, ...]:
        named = self.names[name]
        return named.slots if isinstance(named, Composite) else (named,)

    def slot_for(self, attribute: object, option: str) -> Slot:
        """Return the slot that an option names: an attribute (``User.email``), its name, or the table's column."""
        name = attribute if isinstance(attribute, str) else getattr(attribute, "key", None)
        owner = getattr(attribute, "class_", None)
        if isinstance(attribute, Column):
            found = next((slot for slot in self.slots.values() if slot.column is attribute), None)
        elif owner is not None and not self.mapper.isa(inspect(owner)):
            found = None
        else:
            named = self.names.get(name) if isinstance(name, str) else None
            found = named if isinstance(named, Slot) else None
        if found is None:
            reason = self.refusal(name) if isinstance(name, str) else None
            raise OptionError(
                f"{option} names {attribute}, which is not a column of {self.name}" + (f": {reason}" if reason else "")
            )
        return found


_plans: WeakKeyDictionary[Mapper[Any], MappingPlan] = WeakKeyDictionary()


def plan_for(entity: object) -> MappingPlan:
    """Return the plan of a mapped class."""
    try:
        found: Any = inspect(entity)
    except NoInspectionAvailable:
        found = None
    if not isinstance(found, Mapper):
        raise OptionError(f"bulk works on mapped classes, and {entity!r} is not one; pass a mapped class")
    mapper = cast(Any, found)
    plan = _plans.get(mapper)
    if plan is None:
        mapper._check_configure()  # configures relationships and the like of classes that were never used before
        if not all(isinstance(column.table, Table) for column in mapper.primary_key):
            raise OptionError(
                f"bulk works on classes that are mapped to tables, and {mapper.class_.__name__} is mapped to a query; "
                "pass the class of the table behind it, or use the session"
            )
        plan = _plans[mapper] = _make(mapper)
    return plan


def _make(mapper: Mapper[Any]) -> MappingPlan:
    single: Any = mapper.persist_selectable
    table = cast(Any, single if isinstance(single, Table) and len(mapper.tables) == 1 else None)
    version = mapper.version_id_col
    chosen = mapper.version_id_generator if version is not None else False
    generator = chosen if callable(chosen) else None
    slots, unmapped = _slots(mapper, table, generator)
    by_column = {slot.column: slot for slot in (*slots.values(), *unmapped)}
    key = tuple(by_column[mapper.get_property_by_column(c).columns[0]] for c in mapper.primary_key)
    columns = {(slot, slot.column.table): slot.column for slot in unmapped}
    for slot in slots.values():
        columns |= {(slot, c.table): c for c in mapper.get_property(str(slot.key)).columns if isinstance(c, Column)}
    aliases: dict[str, Slot] = {}
    for slot in key:
        for c in _equal_columns(mapper, slot.column):
            columns.setdefault((slot, c.table), c)
            other = by_column.get(c)
            if other is not None and other not in key and other.key is not None and c.primary_key:
                # The key of a joined table, under its own name.
                aliases[other.key] = slot
                del slots[other.key]
    return MappingPlan(
        mapper=mapper,
        table=table,
        slots=slots,
        unmapped=unmapped,
        key=key,
        version=None if version is None else slots[mapper.get_property_by_column(version).key],
        generator=generator,
        bump=_bump(mapper, generator),
        columns=columns,
        of_class=_of_class(mapper),
        below=_below(mapper),
        names=_names(mapper, slots, aliases),
    )


def _slots(
    mapper: Mapper[Any], table: Table | None, generator: Callable[[Any], Any] | None
) -> tuple[dict[str, Slot], list[Slot]]:
    """Return a slot for each mapped column, by attribute, and for each unmapped column of the table."""
    orm_defaults = {
        column: value
        for rows in getattr(mapper, "_insert_orm_defaults", {}).values()  # SQLAlchemy 2.1
        for _, column, value in rows
    }

    def slot(key: str | None, column: Column[Any], others: Sequence[Any] = ()) -> Slot:
        generated = column is mapper.version_id_col and (generator is not None or column.system)
        if generated and generator is not None:
            supply = _first_version(mapper, generator)
        elif column is mapper.polymorphic_on and getattr(mapper, "_set_polymorphic_identity", None):
            supply = Supply("constant", mapper.polymorphic_identity)
        elif column in orm_defaults:
            supply = Supply("constant", orm_defaults[column])
        else:
            # The key of a joined table is known once the key of its parent is made.
            supplies = [_supply(c) for c in (column, *others) if isinstance(c, Column)]
            supply = next((found for found in supplies if found is not NULL), NULL)
        none_is_value = bool(column.type.should_evaluate_none)
        return Slot(key, column, supply, None if generated else _onupdate(column), none_is_value, generated)

    slots: dict[str, Slot] = {}
    mapped: set[Any] = set()
    for prop in mapper.iterate_properties:
        if isinstance(prop, ColumnProperty):
            mapped.update(prop.columns)
            first = prop.columns[0]
            if isinstance(first, Column) and first.table in mapper.tables:
                slots[prop.key] = slot(prop.key, first, prop.columns[1:])
    return slots, [slot(None, c) for c in table.columns if c not in mapped] if table is not None else []


def _names(mapper: Mapper[Any], slots: dict[str, Slot], aliases: dict[str, Slot]) -> dict[str, Slot | Composite]:
    """Return what a row can hold, by name: columns, composites, and synonyms of both."""
    names: dict[str, Slot | Composite] = {**slots, **aliases}
    for prop in mapper.iterate_properties:
        if isinstance(prop, CompositeProperty):
            parts = tuple(slots[p.key] for p in prop.props)
            names[prop.key] = Composite(parts, partial(_split, prop, (None,) * len(parts)))
    for prop in mapper.iterate_properties:
        if isinstance(prop, SynonymProperty) and prop.name in names:
            names[prop.key] = names[prop.name]
    return names


def _of_class(mapper: Mapper[Any]) -> dict[Any, ColumnElement[bool]]:
    # SQLAlchemy adds this condition to each query of such a class, so the key of a sibling finds nothing.
    column = mapper.polymorphic_on
    if mapper.inherits is None or mapper.concrete or not isinstance(column, Column):
        return {}
    named = [m.polymorphic_identity for m in mapper.self_and_descendants if m.polymorphic_identity is not None]
    return {column.table: or_(*(column == identity for identity in named))} if named else {}


def _below(mapper: Mapper[Any]) -> Sequence[Table]:
    heirs = {table for heir in mapper.self_and_descendants if not heir.concrete for table in heir.tables}
    # The tables of the whole hierarchy, each after the tables that it refers to.
    known: Any = cast(Any, mapper)._sorted_tables
    return [table for table in reversed(known) if table in heirs and table not in mapper.tables]


def _equal_columns(mapper: Mapper[Any], column: Any) -> list[Any]:
    """Return a column, and the columns of other tables in the hierarchy that are joined to it."""
    joined: Any = cast(Any, mapper)._equivalent_columns
    found = {column: None}
    ahead = [column]
    while ahead:
        following = joined.get(ahead.pop(), ())
        ahead += [c for c in following if c not in found]
        found.update(dict.fromkeys(following))
    return list(found)


def _bump(mapper: Mapper[Any], generator: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    kind = kind_of(mapper)
    if kind is not None and kind.following is generator:
        return kind.following_sql
    if _is_sqlalchemys(generator):
        return lambda column: func.coalesce(column, 0) + 1 if column.nullable else column + 1
    return None


def _is_sqlalchemys(generator: Callable[[Any], Any] | None) -> bool:
    return getattr(generator, "__module__", None) == "sqlalchemy.orm.mapper"  # its default: lambda x: (x or 0) + 1


def _first_version(mapper: Mapper[Any], generator: Callable[[Any], Any]) -> Supply:
    kind = kind_of(mapper)
    if _is_sqlalchemys(generator) or (kind is not None and kind.type is int and kind.following is generator):
        return Supply("constant", generator(None))  # a count: the same for all
    return Supply("call", lambda _: generator(None))


def _split(prop: CompositeProperty[Any], absent: tuple[None, ...], value: Any) -> Sequence[Any]:
    return absent if value is None else prop._composite_values_from_instance(value)


def _supply(column: Column[Any]) -> Supply:
    default = column.default
    if default is not None:
        if default.is_scalar:
            return Supply("constant", default.arg)  # type: ignore[attr-defined]
        if default.is_callable:
            return _called(default.arg)  # type: ignore[attr-defined]
        return SQL  # an expression, or a sequence
    if column.server_default is not None or column is getattr(column.table, "autoincrement_column", None):
        return DATABASE  # also Identity and Computed
    return NULL


def _onupdate(column: Column[Any]) -> Supply | None:
    onupdate: Any = column.onupdate
    if onupdate is None:
        return None
    if onupdate.is_scalar:
        return Supply("constant", onupdate.arg)
    return _called(onupdate.arg) if onupdate.is_callable else DATABASE


def _called(function: Callable[..., Any]) -> Supply:
    return Supply("context" if takes_context(function) else "call", function)
