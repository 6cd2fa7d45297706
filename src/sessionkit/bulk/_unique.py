"""The unique keys of a table, and which of them an upsert can use to find its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, UniqueConstraint

from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Table
    from sqlalchemy.engine import Dialect

    from ._plan import MappingPlan, Slot


@dataclass(frozen=True, slots=True, eq=False)
class UniqueKey:
    """Columns whose values are unique among the rows that match `where`.

    Attributes:
        name: the name of the constraint or index; None if the mapping gives it none.
        unusable: why ON CONFLICT cannot use it, in words; None if it can.
    """

    name: str | None
    columns: frozenset[Any]
    where: Any = None
    unusable: str | None = None


def unique_keys(table: Table, dialect: Dialect) -> list[UniqueKey]:
    """Return the unique keys in the mapping: the primary key first, then the others by name."""
    found: list[UniqueKey] = []
    for constraint in table.constraints:
        columns: frozenset[Any] = frozenset(getattr(constraint, "columns", ()))
        unusable = (
            "is deferrable, and ON CONFLICT cannot use a deferrable constraint" if constraint.deferrable else None
        )
        if isinstance(constraint, UniqueConstraint):
            found.append(UniqueKey(_name(constraint), columns, None, unusable))
        elif constraint.__visit_name__ == "exclude_constraint":
            unusable = "is an exclusion constraint, which ON CONFLICT DO UPDATE cannot use"
            found.append(UniqueKey(_name(constraint), columns, None, unusable))
    for index in table.indexes:
        if index.unique:
            plain = all(isinstance(e, Column) for e in index.expressions)
            where = index.dialect_options[dialect.name].get("where")
            unusable = None if plain else "is over expressions, whose values bulk cannot compare"
            found.append(UniqueKey(_name(index), frozenset(index.columns), where, unusable))
    primary = frozenset(table.primary_key.columns)
    return [
        UniqueKey(_name(table.primary_key), primary, None, "is deferrable" if table.primary_key.deferrable else None),
        *sorted(found, key=lambda key: (key.name or "", sorted(column.name for column in key.columns))),
    ]


def _name(thing: Any) -> str | None:
    return None if thing.name is None or not str(thing.name) else str(thing.name)


def chosen(plan: MappingPlan, table: Table, match: Iterable[Any] | str, dialect: Dialect) -> tuple[list[Slot], Any]:
    """Return the columns that `match` names, and the condition of their index.

    Raises:
        OptionError: they are not a unique key of the table, or fit several, or ON CONFLICT cannot use it.
    """
    known = unique_keys(table, dialect)
    if isinstance(match, str):
        named = [key for key in known if key.name == match]
        if not named:
            there_are = ", ".join(repr(key.name) for key in known if key.name) or "none with a name"
            raise OptionError(
                f"match={match!r} is not a unique constraint or index of {table.name}, which has {there_are}. (To "
                f"name attributes, pass a list: match=[{plan.name}.{match}])"
            )
        return _only(plan, table, named)
    slots = [plan.slot_for(attribute, "match") for attribute in match]
    columns: frozenset[Any] = frozenset(slot.column for slot in slots)
    fitting = [key for key in known if key.columns == columns and (key.unusable is None or _is_constraint(key, table))]
    if fitting:
        _, where = _only(plan, table, fitting)
        return slots, where
    there_are = "; ".join(sorted({_names(plan, key.columns) for key in known if key.unusable is None}))
    raise OptionError(
        f"match names {', '.join(slot.label for slot in slots) or 'nothing'}, which is not a unique key of "
        f"{table.name}, so two rows could match; its unique keys are: {there_are}"
    )


def require(plan: MappingPlan, table: Table, slots: Collection[Slot], dialect: Dialect) -> None:
    """Check that no two rows of a table can hold the same values in these columns.

    Raises:
        OptionError: no unique key is over exactly these columns, or ON CONFLICT cannot use it.
    """
    columns: frozenset[Any] = frozenset(slot.column for slot in slots)
    known = unique_keys(table, dialect)
    fitting = [key for key in known if key.columns == columns and key.where is None]
    if any(key.unusable is None for key in fitting):
        return
    if not slots:
        raise OptionError(f"the key is empty; give the attributes of a unique constraint of {table.name}")
    names = ", ".join(slot.label for slot in slots)
    if fitting:
        raise OptionError(f"the key is {names}, whose unique key {fitting[0].name or ''} {fitting[0].unusable}")
    partial = next((key.name for key in known if key.columns == columns), None)
    if partial is not None:
        raise OptionError(
            f"the key is {names}, and the unique index {partial!r} holds for some rows of {table.name} only; use "
            f"bulk.upsert(..., match={partial!r}, update=[]), and look for the row with the condition of the index"
        )
    there_are = "; ".join(
        sorted({_names(plan, key.columns) for key in known if key.unusable is None and key.where is None})
    )
    quoted = ", ".join(repr(str(slot.column.name)) for slot in slots)
    raise OptionError(
        f"the key is {names}, and no unique constraint of {table.name} covers exactly that, so two calls could insert two "
        f"rows; add UniqueConstraint({quoted}) to it, or use one of its unique keys: {there_are}"
    )


def _is_constraint(key: UniqueKey, table: Table) -> bool:
    """Return whether it is not an index over expressions: naming columns never means such an index."""
    return all(_name(index) != key.name for index in table.indexes)


def inferred(plan: MappingPlan, table: Table, held: Collection[Slot], dialect: Dialect) -> tuple[list[Slot], Any]:
    """Return the one unique key whose columns the rows hold.

    Raises:
        OptionError: the rows hold none, or more than one.
    """
    columns = {slot.column for slot in held}
    possible = [key for key in unique_keys(table, dialect) if key.columns <= columns and key.unusable is None]
    if len({key.columns for key in possible}) != 1:
        found = "; ".join(sorted({_names(plan, key.columns) for key in possible})) or "none"
        raise OptionError(
            f"match was not given, and of the unique keys of {table.name} the rows hold {found}; say which one "
            f"identifies a row: match=[{plan.name}...]"
        )
    return _only(plan, table, possible)


def _only(plan: MappingPlan, table: Table, keys: list[UniqueKey]) -> tuple[list[Slot], Any]:
    """Return the columns and condition of the intended key, out of several over the same columns."""
    usable = [key for key in keys if key.unusable is None]
    if not usable:
        raise OptionError(f"match names {keys[0].name or _names(plan, keys[0].columns)}, which {keys[0].unusable}")
    # If all rows are unique, it does not matter that another index covers some of them too.
    whole = [key for key in usable if key.where is None]
    if not whole and len(usable) > 1:
        names = ", ".join(f"match={key.name!r}" for key in usable)
        raise OptionError(
            f"{table.name} has several partial unique indexes over {_names(plan, usable[0].columns)}, and each covers "
            f"different rows; say which one you mean: {names}"
        )
    key = (whole or usable)[0]
    slots = {slot.column: slot for slot in (*plan.slots.values(), *plan.unmapped)}
    return [slots[column] for column in table.columns if column in key.columns], key.where


def _names(plan: MappingPlan, columns: Collection[Any]) -> str:
    labels = {slot.column: slot.label for slot in (*plan.slots.values(), *plan.unmapped)}
    return ", ".join(sorted(str(labels.get(column, column.name)) for column in columns))
