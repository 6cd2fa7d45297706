"""The unique keys of a table: by which of them an upsert can find its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, UniqueConstraint

from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import Table

    from ._plan import Plan, Slot


class UniqueKey(NamedTuple):
    """Columns of which no two rows have the same values, among the rows for which `where` holds."""

    columns: frozenset[Any]
    where: Any = None


def unique_keys(table: Table, dialect_name: str) -> Iterator[UniqueKey]:
    """Yield what the mapping knows of."""
    yield UniqueKey(frozenset(table.primary_key.columns))
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield UniqueKey(frozenset(constraint.columns))
    for index in table.indexes:
        if index.unique and all(isinstance(e, Column) for e in index.expressions):
            yield UniqueKey(frozenset(index.expressions), index.dialect_options[dialect_name].get("where"))


def chosen(plan: Plan, table: Table, match: Iterable[Any], dialect_name: str) -> tuple[list[Slot], Any]:
    """Return the columns that `match` names, and the condition of their index.

    Raises:
        OptionError: they are no unique key of the table.
    """
    slots = [plan.slot_for(attribute, "match") for attribute in match]
    columns: frozenset[Any] = frozenset(slot.column for slot in slots)
    known = list(unique_keys(table, dialect_name))
    for key in known:
        if key.columns == columns:
            return slots, key.where
    there_are = "; ".join(sorted(_names(plan, key.columns) for key in known))
    raise OptionError(
        f"match names {', '.join(slot.label for slot in slots) or 'nothing'}, which is no unique key of {table.name}, "
        f"so that two rows could match; its unique keys are: {there_are}"
    )


def inferred(plan: Plan, table: Table, held: Collection[Slot], dialect_name: str) -> tuple[list[Slot], Any]:
    """Return the one unique key whose columns the rows hold.

    Raises:
        OptionError: there is none, or more than one.
    """
    columns = {slot.column for slot in held}
    possible = [key for key in dict.fromkeys(unique_keys(table, dialect_name)) if key.columns <= columns]
    if len(possible) != 1:
        found = "; ".join(sorted(_names(plan, key.columns) for key in possible)) or "none"
        raise OptionError(
            f"match was not given, and of the unique keys of {table.name} the rows hold {found}; say which one finds a "
            f"row: match=[{plan.name}...]"
        )
    slots = {slot.column: slot for slot in plan.slots.values()}
    return [slots[column] for column in table.columns if column in possible[0].columns], possible[0].where


def _names(plan: Plan, columns: Collection[Any]) -> str:
    labels = {slot.column: slot.label for slot in (*plan.slots.values(), *plan.unmapped)}
    return ", ".join(sorted(labels[column] for column in columns))
