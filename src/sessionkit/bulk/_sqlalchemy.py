"""The path through SQLAlchemy's own executemany, which can express everything, on every driver."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import ClauseElement, insert, literal_column

from ._made_keys import missing_keys, with_keys_made
from ._page import Cell
from ._result import PageResult, Unfit
from ._statements import column_in, delete_of, insert_of, parameter, parameter_name, tables_of, update_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Table

    from ._context import CallContext
    from ._page import Page
    from ._result import Status


def refusal(call: CallContext, page: Page, method: str) -> str | None:
    """Return None: this path refuses nothing."""
    return None


def prepare(call: CallContext, page: Page, method: str, *, probe: bool = False) -> Callable[[], PageResult]:
    """Return a function that sends the page. SQLAlchemy processes the values as it sends them."""
    send = {"insert": _insert, "update": _update, "upsert": _upsert, "delete": _delete}[call.work.verb]
    return lambda: _sent(send, call, page)


def _sent(send: Callable[[CallContext, Page], PageResult], call: CallContext, page: Page) -> PageResult:
    """Send rows that hold SQL expressions one by one: the expressions are part of the statement, so each row needs its own."""
    alone = [place for place, row in enumerate(page.values) if any(map(_is_sql, row))]
    if not alone or len(page) == 1:
        return send(call, page)
    outcomes = [(place,) for place in alone]
    rest = tuple(place for place in range(len(page)) if place not in set(alone))
    return PageResult.merged([(places, send(call, page.only(places))) for places in (rest, *outcomes) if places])


def _is_sql(value: object) -> bool:
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _parameters(
    page: Page, places: Sequence[int], columns: Sequence[Any]
) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """Return the expressions of an INSERT by column, and the parameters of the other columns, by column key."""
    keys = [column.key for column in columns]
    rows = [dict(zip(keys, (row[place] for place in places), strict=True)) for row in page.values]
    if len(rows) > 1:
        return {}, rows
    first = page.values[0]
    written = {c: first[place] for place, c in zip(places, columns, strict=True) if _is_sql(first[place])}
    return written, [{key: value for key, value in rows[0].items() if not _is_sql(value)}]


def _insert(call: CallContext, page: Page) -> PageResult:
    plan = call.plan
    if plan.table is None:
        return _insert_into_several(call, page)
    statement: Any = insert_of(page, plan.table)
    expressions, rows = _parameters(page, range(len(page.cells)), [cell.slot.column for cell in page.cells])
    if expressions:
        statement = statement.values(expressions)
    if not call.work.wants_keys:
        return PageResult(inserted=_count_inserted(call, statement, rows))
    if not missing_keys(plan, page):
        return PageResult(inserted=_count_inserted(call, statement, rows), keys=page.of_slots(plan.key))
    keyed = with_keys_made(call, page) if len(rows) > 1 else None
    if keyed is not None:
        return _insert(call, keyed)
    keys = _inserted_keys(call, statement, rows)
    return PageResult(inserted=len(keys) - keys.count(None), keys=keys)


def _inserted_keys(call: CallContext, statement: Any, rows: list[dict[str, Any]]) -> list[tuple[Any, ...] | None]:
    """Insert, and return the key that the server made for each row; None for a row that a trigger suppressed."""
    columns = [slot.column for slot in call.plan.key]
    if call.dialect.reserve is None and len(rows) > 1:
        in_order = statement.returning(*columns, sort_by_parameter_order=True)
        return [tuple(row) for row in call.connection.execute(in_order, rows)]
    # One by one: nothing else proves which key belongs to which row. SQLAlchemy, too, sorts by what it assumes to be an
    # ascending number.
    statement = statement.returning(*columns)
    told = [call.connection.execute(statement, row).first() for row in rows]
    return [None if row is None else tuple(row) for row in told]


def _count_inserted(call: CallContext, statement: Any, rows: list[dict[str, Any]]) -> int:
    """Insert, and return the number of rows written; a trigger may suppress some."""
    dialect = call.connection.dialect
    if len(rows) == 1 or (dialect.supports_sane_multi_rowcount and not dialect.use_insertmanyvalues_wo_returning):
        return written(call, statement, rows)
    # asyncpg's executemany counts nothing, nor does SQLAlchemy when it combines many rows into one statement. Returned rows
    # can be counted.
    return len(call.connection.execute(statement.returning(literal_column("1")), rows).all())


def written(call: CallContext, statement: Any, parameters: Any) -> int:
    """Execute an INSERT, and return the number of rows written."""
    result = call.connection.execute(statement, parameters, execution_options={"preserve_rowcount": True})
    return result.rowcount


def _insert_into_several(call: CallContext, page: Page) -> PageResult:
    """Insert into one table after the other; the first makes the key if the rows do not hold it."""
    plan = call.plan
    first, *others = tables_of(plan)
    keys: list[tuple[Any, ...]]
    if {cell.slot for cell in page.cells}.issuperset(plan.key):
        _insert_parts(call, page, first)
        keys = page.of_slots(plan.key)
    else:
        made = [plan.columns[slot, first] for slot in plan.key]
        keys = _insert_parts(call, page, first, returning=made)
        page = page.with_cells([Cell("set", slot) for slot in plan.key], keys)
    for table in others:
        _insert_parts(call, page, table)
    return PageResult(inserted=len(page), keys=keys)


def _insert_parts(call: CallContext, page: Page, table: Table, returning: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Insert the columns of a page that belong to one table."""
    columns = {place: column_in(call.plan, cell, table) for place, cell in enumerate(page.cells)}
    places = [place for place, column in columns.items() if column is not None]
    expressions, rows = _parameters(page, places, [columns[place] for place in places])
    statement: Any = insert(table).values(expressions) if expressions else insert(table)
    if not returning:
        call.connection.execute(statement, rows)
        return []
    statement = statement.returning(*returning, sort_by_parameter_order=len(rows) > 1)
    return [tuple(row) for row in call.connection.execute(statement, rows)]


def _update(call: CallContext, page: Page) -> PageResult:
    value = _value(page)
    count = 0
    for table in tables_of(call.plan):
        statement = update_of(call.plan, page, value, table)
        if statement is not None:
            count = _count(call, statement, page)
            call.work.compare(call, page, count)  # type: ignore[attr-defined]
    return PageResult(updated=count)


def _delete(call: CallContext, page: Page) -> PageResult:
    value = _value(page)
    count = 0
    for table in call.plan.below:
        _count(call, delete_of(call.plan, page, value, table), page)
    for table in reversed(tables_of(call.plan)):
        count = _count(call, delete_of(call.plan, page, value, table), page)
        call.work.compare(call, page, count)  # type: ignore[attr-defined]
    return PageResult(deleted=count)


def _upsert(call: CallContext, page: Page) -> PageResult:
    work: Any = call.work
    statement = work.statement(call, page)
    expressions, rows = _parameters(page, range(len(page.cells)), [cell.slot.column for cell in page.cells])
    if expressions:
        statement = statement.values(expressions)
    is_new: ColumnElement[bool] | None = work.is_new(call)
    if work.status or work.index_where is not None:
        return _upsert_one_by_one(call, page, statement, rows, is_new)
    if is_new is None:
        there = work.existing(call, page)
        if len(rows) > 1 and not call.connection.dialect.supports_sane_multi_rowcount:
            return upsert_outcome(work, call, page, there, sum(written(call, statement, row) for row in rows))
        return upsert_outcome(work, call, page, there, written(call, statement, rows))
    counts = Counter(work.executed(call, statement.returning(is_new), rows).scalars())
    untouched = len(rows) - counts.total()
    status: list[Status] = [
        *_times("inserted", counts[True]),
        *_times("updated", counts[False]),
        *_times("unchanged", untouched),
    ]
    return work.outcome(call, page, status)  # type: ignore[no-any-return]


def _upsert_one_by_one(
    call: CallContext, page: Page, statement: Any, rows: list[dict[str, Any]], is_new: ColumnElement[bool] | None
) -> PageResult:
    """Send each row alone: it is new, or the returned key is that of the existing row."""
    work: Any = call.work
    keys = [slot.column for slot in call.plan.key]
    statement = statement.returning(*keys, *(() if is_new is None else (is_new,)))
    width = len(keys)
    status: list[Status] = []
    found: list[tuple[Any, ...] | None] = []
    for place, row in enumerate(rows):
        before = work.found(call, page, place) if is_new is None else None
        told = work.executed(call, statement, row).first()
        key = before if told is None else tuple(told[:width])
        new = told is not None and (key != before if is_new is None else bool(told[width]))
        status.append("unchanged" if told is None else "inserted" if new else "updated")
        if key is None and work.returning:
            key = work.found(call, page, place)
        found.append(key)
    return PageResult.of(status, found if work.returning else None, wanted=work.status)


def _times(status: Status, count: int) -> list[Status]:
    return [status] * count


def upsert_outcome(work: Any, call: CallContext, page: Page, there: list[bool], count: int) -> PageResult:
    """Return the result of an upsert, given which rows existed before and how many were written in total."""
    updates = work.updates(page)
    inserted = there.count(False)
    if count != (len(page) if updates else inserted):
        # A condition was false, or a trigger suppressed rows.
        if work.status:
            raise Unfit
        after = work.existing(call, page)
        inserted = sum(now and not before for now, before in zip(after, there, strict=True))
        outcome = PageResult(inserted=inserted, updated=count - inserted, unchanged=len(page) - count)
        outcome.keys = work.keys_of(call, page)
        return outcome
    written: Status = "updated" if updates else "unchanged"
    return work.outcome(call, page, [written if old else "inserted" for old in there])  # type: ignore[no-any-return]


def _count(call: CallContext, statement: Any, page: Page) -> int:
    """Execute a statement for all rows of a page, and return the number of rows matched."""
    names = [parameter_name(place) for place in range(len(page.cells))]
    rows = [dict(zip(names, row, strict=True)) for row in page.values]
    if len(rows) == 1:
        return call.connection.execute(statement, rows[0]).rowcount
    if call.connection.dialect.supports_sane_multi_rowcount:
        return call.connection.execute(statement, rows).rowcount
    # asyncpg's executemany counts nothing.
    return sum(call.connection.execute(statement, row).rowcount for row in rows)


def _value(page: Page) -> Callable[[int], ColumnElement[Any]]:
    """Return a function that gives the value of each cell in a statement: its parameter, or its expression."""
    by_parameter = parameter(page)
    if len(page) > 1:
        return by_parameter
    return lambda place: value if _is_sql(value := page.values[0][place]) else by_parameter(place)
