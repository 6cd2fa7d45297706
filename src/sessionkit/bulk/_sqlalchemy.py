"""The way through SQLAlchemy's own executemany: it can express everything, on every driver."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import ClauseElement, insert

from ._page import Cell
from ._result import Outcome
from ._statements import column_in, delete_of, insert_of, parameter, parameter_name, tables_of, update_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Table

    from ._context import CallContext
    from ._page import Page
    from ._result import Status


def refusal(call: CallContext, page: Page, method: str) -> str | None:
    """Nothing is refused."""
    return None


def prepare(call: CallContext, page: Page, method: str, *, probe: bool = False) -> Callable[[], Outcome]:
    """Return what sends the page. Values are processed as they are sent."""
    send = {"insert": _insert, "update": _update, "upsert": _upsert, "delete": _delete}[call.work.verb]
    return lambda: _sent(send, call, page)


def _sent(send: Callable[[CallContext, Page], Outcome], call: CallContext, page: Page) -> Outcome:
    """Send rows that hold SQL expressions one by one: they are a part of the statement, and each one makes another."""
    alone = [place for place, row in enumerate(page.values) if any(map(_is_sql, row))]
    if not alone or len(page) == 1:
        return send(call, page)
    outcomes = [(place,) for place in alone]
    rest = tuple(place for place in range(len(page)) if place not in set(alone))
    return Outcome.merged([(places, send(call, page.only(places))) for places in (rest, *outcomes) if places])


def _is_sql(value: object) -> bool:
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _parameters(
    page: Page, places: Sequence[int], columns: Sequence[Any]
) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """Return the expressions by column that go into an INSERT, and the parameters for the others, by column key."""
    keys = [column.key for column in columns]
    rows = [dict(zip(keys, (row[place] for place in places), strict=True)) for row in page.values]
    if len(rows) > 1:
        return {}, rows
    first = page.values[0]
    written = {c: first[place] for place, c in zip(places, columns, strict=True) if _is_sql(first[place])}
    return written, [{key: value for key, value in rows[0].items() if not _is_sql(value)}]


def _insert(call: CallContext, page: Page) -> Outcome:
    work: Any = call.work
    plan = call.plan
    outcome = Outcome(inserted=len(page))
    if plan.table is None:
        return _insert_into_several(call, page)
    statement = insert_of(page, plan.table)
    written, rows = _parameters(page, range(len(page.cells)), [cell.slot.column for cell in page.cells])
    if written:
        statement = statement.values(written)
    if work.wants_keys:
        statement = statement.returning(*(slot.column for slot in plan.key), sort_by_parameter_order=len(rows) > 1)
        outcome.keys = [tuple(row) for row in call.connection.execute(statement, rows)]
    else:
        call.connection.execute(statement, rows)
    return outcome


def _insert_into_several(call: CallContext, page: Page) -> Outcome:
    """Insert into one table after the other: the first one makes the key, if the rows do not hold it."""
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
    return Outcome(inserted=len(page), keys=keys)


def _insert_parts(call: CallContext, page: Page, table: Table, returning: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Insert what a page holds of the rows of one table."""
    columns = {place: column_in(call.plan, cell, table) for place, cell in enumerate(page.cells)}
    places = [place for place, column in columns.items() if column is not None]
    written, rows = _parameters(page, places, [columns[place] for place in places])
    statement: Any = insert(table).values(written) if written else insert(table)
    if not returning:
        call.connection.execute(statement, rows)
        return []
    statement = statement.returning(*returning, sort_by_parameter_order=len(rows) > 1)
    return [tuple(row) for row in call.connection.execute(statement, rows)]


def _update(call: CallContext, page: Page) -> Outcome:
    value = _value(page)
    count = 0
    for table in tables_of(call.plan):
        statement = update_of(call.plan, page, value, table)
        if statement is not None:
            count = _count(call, statement, page)
            call.work.compare(call, page, count)  # type: ignore[attr-defined]
    return Outcome(updated=count)


def _delete(call: CallContext, page: Page) -> Outcome:
    value = _value(page)
    count = 0
    for table in call.plan.below:
        _count(call, delete_of(call.plan, page, value, table), page)
    for table in reversed(tables_of(call.plan)):
        count = _count(call, delete_of(call.plan, page, value, table), page)
        call.work.compare(call, page, count)  # type: ignore[attr-defined]
    return Outcome(deleted=count)


def _upsert(call: CallContext, page: Page) -> Outcome:
    work: Any = call.work
    statement = work.statement(call, page)
    written, rows = _parameters(page, range(len(page.cells)), [cell.slot.column for cell in page.cells])
    if written:
        statement = statement.values(written)
    execute = call.connection.execute
    status: list[Status]
    if call.dialect.is_new is not None:
        statement = statement.returning(call.dialect.is_new)
        if work.status and len(rows) > 1:
            told = [execute(statement, row).scalars().all() for row in rows]
            status = [("inserted" if new[0] else "updated") if new else "unchanged" for new in told]
            return work.outcome(call, page, status)  # type: ignore[no-any-return]
        counts = Counter(execute(statement, rows).scalars())
        untouched = len(rows) - counts.total()
        status = [*_times("inserted", counts[True]), *_times("updated", counts[False]), *_times("unchanged", untouched)]
        return work.outcome(call, page, status)  # type: ignore[no-any-return]
    there = work.existing(call, page)
    if work.status and work.is_conditional:
        known = zip(there, [execute(statement, row).rowcount for row in rows], strict=True)
        status = [("updated" if old else "inserted") if count else "unchanged" for old, count in known]
        return work.outcome(call, page, status)  # type: ignore[no-any-return]
    return upsert_outcome(work, call, page, there, execute(statement, rows).rowcount)


def _times(status: Status, count: int) -> list[Status]:
    return [status] * count


def upsert_outcome(work: Any, call: CallContext, page: Page, there: list[bool], count: int) -> Outcome:
    """Return what became of the rows of an upsert, from which were there before and how many were written in all."""
    written: Status = "updated" if page.places("set") else "unchanged"
    status: list[Status] = [written if old else "inserted" for old in there]
    outcome: Outcome = work.outcome(call, page, status)
    if written == "updated":  # but for those of which a condition did not hold
        outcome.unchanged = len(page) - count
        outcome.updated -= outcome.unchanged
    return outcome


def _count(call: CallContext, statement: Any, page: Page) -> int:
    """Execute for all rows of a page, and return how many were matched."""
    names = [parameter_name(place) for place in range(len(page.cells))]
    rows = [dict(zip(names, row, strict=True)) for row in page.values]
    if len(rows) == 1:
        return call.connection.execute(statement, rows[0]).rowcount
    if call.connection.dialect.supports_sane_multi_rowcount:
        return call.connection.execute(statement, rows).rowcount
    # asyncpg's executemany counts nothing.
    return sum(call.connection.execute(statement, row).rowcount for row in rows)


def _value(page: Page) -> Callable[[int], ColumnElement[Any]]:
    """Return what gives the value of each cell to a statement: its parameter, or its expression."""
    by_parameter = parameter(page)
    if len(page) > 1:
        return by_parameter
    return lambda place: value if _is_sql(value := page.values[0][place]) else by_parameter(place)
