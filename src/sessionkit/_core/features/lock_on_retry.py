"""SELECTs that lock what they read: for a unit that has failed once and is run again."""

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
    """Has the unit's SELECTs of entities lock their rows."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        event.listen(unit.session, "do_orm_execute", lock_entities)


def lock_entities(state: ORMExecuteState) -> None:
    """Add FOR UPDATE to a SELECT of entities, and refresh what the session has of them already.

    Left alone: what selects columns, groups or makes distinct (the database refuses to lock what is no row of a
    table), what says itself how it locks, and the loads of relationships and expired columns.
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
    # What was read without a lock is stale. Changes that nothing flushes before the SELECT are not to be overwritten.
    flushes = state.session.autoflush and state.execution_options.get("autoflush", True)
    if flushes or not state.session.dirty:
        state.update_execution_options(populate_existing=True)


def _certain(statement: Select[Any]) -> list[FromClause]:
    """Return the tables of the entities of a statement, or nothing where it selects something else.

    Only the entities' own, and not on the nullable side of an outer join (as an eager load makes one): the database
    refuses to lock a row that may not be there.
    """
    tables: list[FromClause] = []
    for description in statement.column_descriptions:
        found = tables_of(sa_inspect(description["expr"], raiseerr=False))
        if not found:
            return []
        tables += found
    not_certain = nullable(statement)
    return [table for table in tables if table not in not_certain]
