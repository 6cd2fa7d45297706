"""Keys that belong to one unit, on PostgreSQL: claimed, or read with their result, in one statement.

The row that ``INSERT`` has made in a ``WITH`` is not yet visible to the query around it, so the two halves of the union
never find the same row. Where the ``INSERT`` has waited for another transaction, whose row is newer than the snapshot of
the statement, neither half finds one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Boolean, Float, bindparam, cast, exists, func, literal_column, null, select, union_all
from sqlalchemy.dialects.postgresql import insert

from ._once import OnceKeys, is_row, parameters, renewal

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Executable, Table

_EXPIRES = func.clock_timestamp() + bindparam("ttl", type_=Float) * literal_column("interval '1 second'")


def _over(table: Table) -> ColumnElement[bool]:
    over: ColumnElement[bool] = table.c.expires_at <= func.clock_timestamp()
    return over


def _claim(table: Table) -> Executable:
    c = table.c
    new = (
        insert(table)
        .values({**parameters(table), "expires_at": _EXPIRES})
        .on_conflict_do_nothing(index_elements=[c.key, c.kind])
        .returning(c.claim, c.fingerprint, c.state)
        .cte("new")
    )
    no_result = cast(null(), c.result.type).label("result")
    mine = select(*new.c, no_result, literal_column("false", Boolean).label("over"))
    there = select(c.claim, c.fingerprint, c.state, c.result, _over(table).label("over"))
    # Not looked for where it is not there: at SERIALIZABLE a read of a page that others insert into is a conflict.
    nobody = ~exists(select(new.c.claim))
    return union_all(mine, there.where(nobody, *is_row(table)))


ONCE = OnceKeys(_claim, lambda table: renewal(table, _EXPIRES), _over)
