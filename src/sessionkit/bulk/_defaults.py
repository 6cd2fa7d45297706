"""Defaults that look at their row: what a context-sensitive one is given, and the functions that call it in SQLAlchemy's order.

https://docs.sqlalchemy.org/en/20/core/defaults.html#context-sensitive-default-functions. SQLAlchemy's own order is in
`DefaultExecutionContext._process_execute_defaults`: what the row holds first, then one default after the other in the order
of the table's columns; each sees what those before it have given, and None for those after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Connection


def takes_context(function: Callable[..., Any]) -> bool:
    """Tell whether the function of a default wants the context.

    One without arguments stands in a function of SQLAlchemy's own, which leaves the context out.
    """
    return getattr(function, "__globals__", None) is not vars(schema)


class DefaultContext:
    """What a context-sensitive default is given: of SQLAlchemy's execution context, what is known before a statement is sent.

    Attributes:
        connection: the connection that the rows are written on.
        isinsert, isupdate: which kind of statement asks.
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
"""In the place of a value: a default gives it."""


def row_by_row(
    names: dict[str, Any],
    parts: Sequence[str],
    tables: Iterable[tuple[Table, Mapping[Any, int]]],
    ask: Mapping[int, Callable[[DefaultContext], Any]],
    *,
    is_insert: bool,
) -> Callable[[list[Any], DefaultContext], list[tuple[Any, ...]]]:
    """Return what makes the tuples of a page where a default looks at the row.

    Args:
        names: what the parts refer to.
        parts: for each cell its expression over ``r``; ``D`` where a default gives the value.
        tables: for each table the cell of each of its columns.
        ask: for each cell that a default can fill, what gives its value.
        is_insert: what the context says.
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
