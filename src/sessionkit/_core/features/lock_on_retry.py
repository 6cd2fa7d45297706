"""SELECTs that lock what they read, for a unit that has failed once and runs again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, event
from sqlalchemy import inspect as sa_inspect

from ..._lockable import alone, nullable, tables_of
from .base import Feature

if TYPE_CHECKING:
    from sqlalchemy.orm import ORMExecuteState
    from sqlalchemy.sql import FromClause


class LocksOnRetry(Feature):
    """Makes the unit's SELECTs of entities lock their rows."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        event.listen(unit.session, "do_orm_execute", lock_entities)


def lock_entities(state: ORMExecuteState) -> None:
    """Add FOR UPDATE to a SELECT of entities, and refresh those that the session has loaded.

    It leaves alone: SELECTs of columns, or with GROUP BY or DISTINCT (the database refuses to lock what is not a row of a
    table), statements that already say how they lock, and loads of relationships and expired columns.
    """
    statement = state.statement
    if not state.is_select or state.is_relationship_load or state.is_column_load or not isinstance(statement, Select):
        return
    if statement._for_update_arg is not None or statement._group_by_clauses or statement._distinct:
        return
    tables = alone(statement) or _certain(statement)
    if not tables:
        return
    state.statement = statement.with_for_update(of=tables)
    # What was read without a lock is stale. But do not overwrite changes that nothing flushes before the SELECT.
    flushes = state.session.autoflush and state.execution_options.get("autoflush", True)
    if flushes or not state.session.dirty:
        state.update_execution_options(populate_existing=True)


def _certain(statement: Select[Any]) -> list[FromClause]:
    """Return the tables of the entities of a statement, or an empty list if it selects anything else.

    Only the entities' own tables, and not those on the nullable side of an outer join (such as an eager load makes): the
    database refuses to lock a row that may not exist.
    """
    tables: list[FromClause] = []
    for description in statement.column_descriptions:
        found = tables_of(sa_inspect(description["expr"], raiseerr=False))
        if not found:
            return []
        tables += found
    not_certain = nullable(statement)
    return [table for table in tables if table not in not_certain]
