"""Context-sensitive defaults: the context that they receive, and functions that call them in SQLAlchemy's order.

https://docs.sqlalchemy.org/en/20/core/defaults.html#context-sensitive-default-functions.
`DefaultExecutionContext._process_execute_defaults` defines that order: first the values of the row, then the defaults in the
order of the table's columns. Each default sees the results of those before it, and None for those after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Connection


def takes_context(function: Callable[..., Any]) -> bool:
    """Return whether the function of a default wants the context.

    SQLAlchemy wraps a function without arguments in its own, which drops the context.
    """
    return getattr(function, "__globals__", None) is not vars(schema)


class DefaultContext:
    """The context of a context-sensitive default: what SQLAlchemy's execution context knows before a statement is sent.

    Attributes:
        connection: the connection that writes the rows.
        isinsert, isupdate: the kind of statement.
        current_column: the column that the value is for.
        current_parameters: the values of the row so far, by column key.
    """

    isdelete = False

    def __init__(self, connection: Connection) -> None:
        self.connection = self.root_connection = connection
        self.engine = connection.engine
        self.dialect = connection.dialect
        self.isinsert = self.isupdate = False
        self.current_column: Column[Any] | None = None
        self.current_parameters: dict[str, Any] = {}

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> dict[str, Any]:
        """Return the values of the row so far, by column key."""
        return self.current_parameters


_LATER = object()
"""Placeholder: a default supplies the value."""


def row_by_row(
    names: dict[str, Any],
    parts: Sequence[str],
    tables: Iterable[tuple[Table, Mapping[Any, int]]],
    ask: Mapping[int, Callable[[DefaultContext], Any]],
    *,
    is_insert: bool,
) -> Callable[[list[Any], DefaultContext], list[tuple[Any, ...]]]:
    """Return the function that makes the tuples of a page when a default looks at its row.

    Args:
        names: the names that the parts refer to.
        parts: for each cell its expression over ``r``; it gives ``D`` if a default supplies the value.
        tables: for each table, the cell of each of its columns.
        ask: for each cell that a default can fill, the function for its value.
        is_insert: whether the statement is an INSERT.
    """
    names = {**names, "D": _LATER, "ask": ask}
    lines = [
        "def build(rows, X):",
        " out = []",
        f" X.isinsert, X.isupdate = {is_insert}, {not is_insert}",
        " for r in rows:",
    ]
    lines += [f"  c{place} = {part}" for place, part in enumerate(parts)]
    for table, cells in tables:
        known = ", ".join(f"{column.key!r}: None if c{place} is D else c{place}" for column, place in cells.items())
        lines += [f"  X.current_parameters = p = {{{known}}}"]
        for column, place in cells.items():
            if "OMIT" in parts[place]:
                lines.append(f"  if c{place} is OMIT: del p[{column.key!r}]")
        for column in table.columns:
            place = cells.get(column, -1)
            if place in ask:
                given = f"column{place}"
                names[given] = column
                lines.append(
                    f"  if c{place} is D: X.current_column = {given}; p[{column.key!r}] = c{place} = ask[{place}](X)"
                )
    lines.append(f"  out.append(({' '.join(f'c{place},' for place in range(len(parts)))}))")
    lines.append(" return out")
    exec("\n".join(lines), names)  # noqa: S102 - made of names that this file chose and of literals
    build: Callable[[list[Any], DefaultContext], list[tuple[Any, ...]]] = names["build"]
    return build
