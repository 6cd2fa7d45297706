"""Which tables of a SELECT can be locked. Pure: it looks at SQLAlchemy's constructs only.

A database refuses to lock a row that may not exist (on the nullable side of an outer join, such as an eager load makes).
It also refuses a row that does not come from a table (of a subquery with groups, say).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Alias, Join, Table
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.util import AliasedInsp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Select
    from sqlalchemy.sql import FromClause


def tables_of(entity: Any) -> list[FromClause]:
    """Return the tables of an entity, or an empty list if it is made of anything but tables.

    The table of the base class comes first, that of the class itself last. PostgreSQL locks in the order of ``FOR UPDATE
    OF``, so calls for different classes of a hierarchy lock the tables of a row in the same order and never deadlock.
    """
    if isinstance(entity, Mapper):
        tables: list[FromClause] = [table for table in entity.tables if isinstance(table, Table)]
        if len(tables) > 1:
            by_class = [each.local_table for each in reversed(list(entity.iterate_to_root()))]
            place = {table: number for number, (table, _) in enumerate(_leaves(by_class, False))}
            tables.sort(key=lambda table: place.get(table, len(place)))
        return tables
    if isinstance(entity, AliasedInsp):
        alias = entity.selectable
        return [alias] if type(alias) is Alias and isinstance(alias.element, Table) else []
    return []


def alone(statement: Select[Any]) -> list[FromClause] | None:
    """Return the tables of a statement that selects one class and joins nothing to it; None for any other statement.

    The answer is kept for each mapper: `nullable` would have to compile the statement, which costs more than sending it.
    """
    if statement._setup_joins or statement._from_obj or statement._with_options or len(statement._raw_columns) != 1:
        return None
    column: Any = statement._raw_columns[0]
    mapper = column._annotations.get("parententity")
    if not isinstance(mapper, Mapper) or not column.is_selectable:
        return None
    if mapper not in _joins_nothing:
        leaves = list(_leaves([mapper.persist_selectable], False))
        _joins_nothing[mapper] = (
            mapper.with_polymorphic is None
            and all(isinstance(each, Table) and not outer for each, outer in leaves)
            and not any(each.lazy in {"joined", False} for each in mapper.relationships)
        )
    return tables_of(mapper) if _joins_nothing[mapper] else None


_joins_nothing: WeakKeyDictionary[Mapper[Any], bool] = WeakKeyDictionary()
"""For each class, whether a SELECT of it reads only its own tables: no eager joins, no tables of subclasses."""


def nullable(statement: Select[Any]) -> set[FromClause]:
    """Return the tables on the nullable side of an outer join in a statement."""
    return {each for each, outer in _leaves(statement.get_final_froms(), False) if outer}


def certain(statement: Select[Any]) -> set[FromClause]:
    """Return the tables that have a row for each row of a statement."""
    return {each for each, outer in _leaves(statement.get_final_froms(), False) if not outer}


def _leaves(froms: Iterable[FromClause], outer: bool) -> Iterator[tuple[FromClause, bool]]:
    for each in froms:
        if isinstance(each, Join):
            yield from _leaves([each.left], outer or each.full)
            yield from _leaves([each.right], outer or each.isouter or each.full)
        else:
            yield each, outer
