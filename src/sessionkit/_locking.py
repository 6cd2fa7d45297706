"""SELECTs that lock what they read: for a unit that has failed once, and shall not fail again for the same reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Mapper

if TYPE_CHECKING:
    from sqlalchemy.orm import ORMExecuteState


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
    mappers: list[Mapper[object]] = []
    for description in statement.column_descriptions:
        mapper = sa_inspect(description["expr"], raiseerr=False)
        if not isinstance(mapper, Mapper):
            return
        mappers.append(mapper)
    # Only the entities: the nullable side of an outer join, as a joined eager load makes one, cannot be locked.
    state.statement = statement.with_for_update(of=mappers)
    state.update_execution_options(populate_existing=True)
