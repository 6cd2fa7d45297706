"""Finds rows by many keys at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, literal, literal_column, null, select, text, tuple_, type_coerce

from ._plan import OMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement

    from .._dialects import Bulk
    from ._context import CallContext
    from ._page import Page

    Key = tuple[Any, ...]

# SQLite allows 32,766 parameters in a statement; PostgreSQL 65,535, but it plans long lists slowly.
_LIST = 1_000
_ARRAY = 20_000


def conditions(dialect: Bulk, columns: Sequence[Any], keys: Sequence[Key]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that together match the rows with these keys, each for as many keys as fit into one statement."""
    if len(columns) == 1:
        plain = [key[0] for key in keys]
        parts = [plain[low : low + _ARRAY] for low in range(0, len(plain), _ARRAY)]
        together = [dialect.any_of(columns[0], columns[0].type, part) for part in parts]
        yield from (condition for condition in together if condition is not None)
        # Keys that do not fit into one parameter are sent as a list.
        left = [part for part, condition in zip(parts, together, strict=True) if condition is None]
        for part in left:
            for low in range(0, len(part), _LIST):
                # With the column's type: otherwise the list would take the type of its first value.
                values = bindparam("keys", part[low : low + _LIST], columns[0].type, expanding=True, unique=True)
                yield columns[0].in_(values)
        return
    size = _LIST // len(columns)
    for low in range(0, len(keys), size):
        yield tuple_(*columns).in_(keys[low : low + size])


def equal(columns: Sequence[Any], key: Key) -> list[ColumnElement[bool]]:
    """Return the conditions for a row to have this key."""
    return [column == literal(value, column.type) for column, value in zip(columns, key, strict=True)]


def find(
    call: CallContext,
    columns: Sequence[Any],
    keys: Iterable[Key],
    *,
    also: Sequence[Any] = (),
    where: Any = None,
    of_class: bool = False,
    lock: bool = False,
) -> dict[Key, Any]:
    """Return the values of the columns `also` for each key that has a row.

    Args:
        call: the call whose connection is asked.
        columns: the columns of the key.
        keys: the keys to look for, as they were passed in.
        also: further columns to return.
        where: restricts the search to rows that match this condition.
        of_class: restricts it to rows of the mapped class, without those of other classes in the same table.
        lock: locks the rows, so that they stay unchanged until this transaction ends.
    """
    connection, dialect = call.connection, call.dialect
    wanted = list(dict.fromkeys(keys))
    query = select(*columns, *also).select_from(call.plan.mapper.persist_selectable)
    if where is not None:
        query = query.where(where)
    if of_class:
        query = query.where(*call.plan.of_class.values())
    if lock and dialect.locks_rows:
        query = query.with_for_update()
    width = len(columns)
    rows: dict[Key, Any] = {}
    count = 0
    for condition in conditions(dialect, columns, wanted):
        for row in connection.execute(query.where(condition)).all():
            values = tuple(row)
            rows[values[:width]] = values[width:]
            count += 1
    # Python may read two keys as the same value (a Numeric rounded on reading); only the database can tell them apart.
    found = {key: rows[key] for key in wanted if key in rows} if count == len(rows) else {}
    if len(found) < count:
        # Values may be equal to the database but not to Python ("5" and 5, a padded string): ask the database.
        for key in wanted:
            if key not in found:
                told = connection.execute(query.where(*equal(columns, key))).first()
                if told is not None:
                    found[key] = tuple(told[width:])
    return found


def holding(call: CallContext, page: Page, places: Iterable[int], condition: Any) -> list[int]:
    """Return the rows of a page, not written yet, that would satisfy a condition on the table.

    For a column that the database fills, the mapping's default is used. If the mapping has none, the row counts as satisfying
    it.
    """
    table: Any = call.plan.table
    compiler: Any = call.connection.dialect.ddl_compiler(call.connection.dialect, None)  # type: ignore[arg-type]
    # As in CREATE INDEX: names without their table.
    words = compiler.sql_compiler.process(condition, include_table=False, literal_binds=True)
    where = {cell.slot.column: i for i, cell in enumerate(page.cells)}
    held: list[int] = []
    for place in places:
        row = page.values[place]
        values: list[Any] = []
        for column in table.columns:
            value = row[where[column]] if column in where else OMIT
            given: Any = call.dialect.parameter(value, column.type)
            if value is OMIT:
                default: Any = getattr(column.server_default, "arg", None)
                given = null() if default is None else text(default) if isinstance(default, str) else default
            values.append(type_coerce(given, column.type).label(column.name))
        relation = select(*values).subquery(table.name)
        told: Any = call.connection.scalar(select(literal_column(words)).select_from(relation))
        left_open = any(row[i] is OMIT for i in where.values())
        if told or (told is None and left_open):
            held.append(place)
    return held
