"""The unique keys of a table: by which of them an upsert can find its rows."""

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
    """Columns of which no two rows have the same values, among the rows for which `where` holds.

    Attributes:
        name: of the constraint or index; None where it has none in the mapping.
        unusable: why ON CONFLICT cannot go by it, in words; None if it can.
    """

    name: str | None
    columns: frozenset[Any]
    where: Any = None
    unusable: str | None = None


def unique_keys(table: Table, dialect: Dialect) -> list[UniqueKey]:
    """Return what the mapping knows of, the primary key first, then by name."""
    found: list[UniqueKey] = []
    for constraint in table.constraints:
        columns: frozenset[Any] = frozenset(getattr(constraint, "columns", ()))
        unusable = "is deferrable, and ON CONFLICT cannot go by a constraint that is" if constraint.deferrable else None
        if isinstance(constraint, UniqueConstraint):
            found.append(UniqueKey(_name(constraint), columns, None, unusable))
        elif constraint.__visit_name__ == "exclude_constraint":
            unusable = "is an exclusion constraint, by which ON CONFLICT can update nothing"
            found.append(UniqueKey(_name(constraint), columns, None, unusable))
    for index in table.indexes:
        if index.unique:
            plain = all(isinstance(e, Column) for e in index.expressions)
            where = index.dialect_options[dialect.name].get("where")
            unusable = None if plain else "is over expressions, of which bulk cannot tell which rows have the same"
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
        OptionError: they are no unique key of the table, or those of several; or ON CONFLICT cannot go by it.
    """
    known = unique_keys(table, dialect)
    if isinstance(match, str):
        named = [key for key in known if key.name == match]
        if not named:
            there_are = ", ".join(repr(key.name) for key in known if key.name) or "none that has a name"
            raise OptionError(
                f"match={match!r} is no unique constraint or index of {table.name}; there are {there_are}. (Attributes "
                f"are given in a list: match=[{plan.name}.{match}])"
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
        f"match names {', '.join(slot.label for slot in slots) or 'nothing'}, which is no unique key of {table.name}, "
        f"so that two rows could match; its unique keys are: {there_are}"
    )


def _is_constraint(key: UniqueKey, table: Table) -> bool:
    """Tell whether it is not an index over expressions: whose columns nobody means who names these."""
    return all(_name(index) != key.name for index in table.indexes)


def inferred(plan: MappingPlan, table: Table, held: Collection[Slot], dialect: Dialect) -> tuple[list[Slot], Any]:
    """Return the one unique key whose columns the rows hold.

    Raises:
        OptionError: there is none, or more than one.
    """
    columns = {slot.column for slot in held}
    possible = [key for key in unique_keys(table, dialect) if key.columns <= columns and key.unusable is None]
    if len({key.columns for key in possible}) != 1:
        found = "; ".join(sorted({_names(plan, key.columns) for key in possible})) or "none"
        raise OptionError(
            f"match was not given, and of the unique keys of {table.name} the rows hold {found}; say which one finds a "
            f"row: match=[{plan.name}...]"
        )
    return _only(plan, table, possible)


def _only(plan: MappingPlan, table: Table, keys: list[UniqueKey]) -> tuple[list[Slot], Any]:
    """Return the columns and the condition of the one key that is meant, of several over the same columns."""
    usable = [key for key in keys if key.unusable is None]
    if not usable:
        raise OptionError(f"match names {keys[0].name or _names(plan, keys[0].columns)}, which {keys[0].unusable}")
    # Where all rows are unique, it does not matter that some of them are by another index too.
    whole = [key for key in usable if key.where is None]
    if not whole and len(usable) > 1:
        names = ", ".join(f"match={key.name!r}" for key in usable)
        raise OptionError(
            f"{table.name} has several partial unique indexes over {_names(plan, usable[0].columns)}, and each finds other "
            f"rows; say which one is meant: {names}"
        )
    key = (whole or usable)[0]
    slots = {slot.column: slot for slot in (*plan.slots.values(), *plan.unmapped)}
    return [slots[column] for column in table.columns if column in key.columns], key.where


def _names(plan: MappingPlan, columns: Collection[Any]) -> str:
    labels = {slot.column: slot.label for slot in (*plan.slots.values(), *plan.unmapped)}
    return ", ".join(sorted(str(labels.get(column, column.name)) for column in columns))
