"""Finding rows by many keys at once."""

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

# SQLite takes 32,766 parameters in a statement; PostgreSQL 65,535, but plans long lists slowly.
_LIST = 1_000
_ARRAY = 20_000


def conditions(dialect: Bulk, columns: Sequence[Any], keys: Sequence[Key]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that together hold for the rows with these keys, each for as many as one statement can take."""
    if len(columns) == 1:
        plain = [key[0] for key in keys]
        parts = [plain[low : low + _ARRAY] for low in range(0, len(plain), _ARRAY)]
        together = [dialect.any_of(columns[0], columns[0].type, part) for part in parts]
        yield from (condition for condition in together if condition is not None)
        # What cannot be told in one parameter goes as a list.
        left = [part for part, condition in zip(parts, together, strict=True) if condition is None]
        for part in left:
            for low in range(0, len(part), _LIST):
                # Of the column's type, whatever the first of the values is: a list of them would take its type from it.
                values = bindparam("keys", part[low : low + _LIST], columns[0].type, expanding=True, unique=True)
                yield columns[0].in_(values)
        return
    size = _LIST // len(columns)
    for low in range(0, len(keys), size):
        yield tuple_(*columns).in_(keys[low : low + size])


def equal(columns: Sequence[Any], key: Key) -> list[ColumnElement[bool]]:
    """Return the conditions that a row has a key."""
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
    """Return, for each key that has a row, the values of the columns `also`.

    Args:
        call: where to ask.
        columns: the key.
        keys: what to look for, as it was given.
        also: more columns.
        where: only rows for which this holds.
        of_class: only rows of the mapped class, and not of another one in the same table.
        lock: so that nobody changes the rows before this transaction ends.
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
    # Two rows whose keys Python reads as one (a Numeric that is rounded as it is read) are told apart by the database alone.
    found = {key: rows[key] for key in wanted if key in rows} if count == len(rows) else {}
    if len(found) < count:
        # The database sees equals where Python does not ("5" and 5, a padded string): it has to say itself.
        for key in wanted:
            if key not in found:
                told = connection.execute(query.where(*equal(columns, key))).first()
                if told is not None:
                    found[key] = tuple(told[width:])
    return found


def holding(call: CallContext, page: Page, places: Iterable[int], condition: Any) -> list[int]:
    """Return those of the rows of a page, not written yet, for which a condition on the table would hold.

    What the database fills has the default that the mapping knows of; where it knows none, the condition is taken to hold.
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
