"""Keys that belong to one unit, on SQLite: claimed, or read with their result, in one statement.

One transaction writes at a time, so nothing is waited for here: BEGIN IMMEDIATE has done that. An upsert that changes
nothing is what returns a row that was there before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Float, String, bindparam, cast, func, literal_column
from sqlalchemy.dialects.sqlite import insert

from ._once import OnceKeys, parameters, renewal

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Executable, Table


def _now(*modifiers: Any) -> Any:
    return func.strftime(literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'"), *modifiers)


_EXPIRES = _now(cast(bindparam("ttl", type_=Float), String) + literal_column("' seconds'"))


def _over(table: Table) -> ColumnElement[bool]:
    over: ColumnElement[bool] = table.c.expires_at <= _now()
    return over


def _claim(table: Table) -> Executable:
    c = table.c
    return (
        insert(table)
        .values({**parameters(table), "expires_at": _EXPIRES})
        .on_conflict_do_update(index_elements=[c.key, c.kind], set_={"claim": c.claim})
        .returning(c.claim, c.fingerprint, c.state, c.result, _over(table).label("over"))
    )


ONCE = OnceKeys(_claim, lambda table: renewal(table, _EXPIRES), _over, writes=True)
