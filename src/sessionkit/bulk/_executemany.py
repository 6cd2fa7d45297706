"""One prepared statement for all rows, bypassing SQLAlchemy's handling of parameters: the path for SQLite.

One generated list comprehension converts the values to the form that the driver stores.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import delete as sa_delete

from ._made_keys import missing_keys, with_keys_made
from ._page import Page
from ._plan import OMIT
from ._result import PageResult, Unfit
from ._sqlalchemy import upsert_outcome
from ._statements import delete_of, insert_of, parameter, parameter_name, update_of, written_places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Dialect

    from ._context import CallContext


def refusal(call: CallContext, page: Page, method: str) -> str | None:
    """Return why the rows cannot be sent this way; None if they can."""
    work: Any = call.work
    if work.verb == "upsert" and work.status and work.is_conditional:
        return "the driver does not report for each row whether it was written; 'sqlalchemy' asks"
    if work.verb == "upsert" and work.index_where is not None:
        return "whether a row is new depends on the predicate of a partial index; 'sqlalchemy' asks for each row"
    return None


def prepare(call: CallContext, page: Page, method: str, *, probe: bool = False) -> Callable[[], PageResult]:
    """Convert the values to the driver's form, and return a function that sends them."""
    if call.work.wants_keys:
        rows = _adapt(call, page, range(len(page.cells)))
        return lambda: _with_reserved_keys(call, page, rows)
    if call.work.verb == "delete" and len(page.cells) == 1:
        column = call.plan.key[0].column
        every = call.dialect.any_of(column, column.type, [row[0] for row in page.values])
        if every is not None:
            return lambda: _delete_all(call, page, every, *call.plan.of_class.values())
    sql, rows = statement_and_rows(call, page)
    return lambda: _send(call, page, sql, rows)


def statement_and_rows(call: CallContext, page: Page) -> tuple[str, list[tuple[Any, ...]]]:
    """Return the SQL for a page, and its rows in the driver's form."""
    sql, places, constants = statement_of(call, page)
    return sql, _adapt(call, page, places, constants)


def _send(call: CallContext, page: Page, sql: str, rows: list[tuple[Any, ...]]) -> PageResult:
    work: Any = call.work
    there: list[bool] = work.existing(call, page) if work.verb == "upsert" else []
    count = call.connection.exec_driver_sql(sql, rows).rowcount
    if work.verb == "insert":
        return PageResult(inserted=count)
    if work.verb == "upsert":
        return upsert_outcome(work, call, page, there, count)
    work.compare(call, page, count)
    return PageResult(updated=count) if work.verb == "update" else PageResult(deleted=count)


def _delete_all(call: CallContext, page: Page, *conditions: ColumnElement[bool]) -> PageResult:
    """Delete by one list of keys, which is faster than a statement per key."""
    assert call.plan.table is not None
    count = call.connection.execute(sa_delete(call.plan.table).where(*conditions)).rowcount
    call.work.compare(call, page, count)  # type: ignore[attr-defined]
    return PageResult(deleted=count)


def _with_reserved_keys(call: CallContext, page: Page, rows: list[tuple[Any, ...]]) -> PageResult:
    """Insert rows whose keys the caller wants: make the keys here, while no other connection can write.

    Args:
        call: the call that writes.
        page: the rows.
        rows: the same rows in the driver's form, cell by cell.
    """
    made = missing_keys(call.plan, page)
    keyed = with_keys_made(call, page)
    if keyed is None:
        raise Unfit
    if made:
        cells, keys = keyed.cells[len(page.cells) :], [row[len(page.cells) :] for row in keyed.values]
        stored = _adapt(call, Page(cells, keys, page.positions, page.rows), range(len(cells)))
        rows = [(*row, *key) for row, key in zip(rows, stored, strict=True)]
    sql, places, constants = statement_of(call, keyed)
    if constants:
        rows = _adapt(call, keyed, places, constants)
    elif places != list(range(len(keyed.cells))):
        rows = list(map(itemgetter(*places), rows))  # several places: with one, the rows are in order already
    count = call.connection.exec_driver_sql(sql, rows).rowcount
    return PageResult(inserted=count, keys=keyed.of_slots(call.plan.key))


def statement_of(call: CallContext, page: Page) -> tuple[str, list[int], dict[int, Any]]:
    """Return the SQL, the cell of each parameter, and the values of the parameters that are the same for all rows."""
    plan, verb = call.plan, call.work.verb
    dialect = call.connection.dialect
    translation = call.connection.get_execution_options().get("schema_translate_map")
    if verb == "upsert":  # its conditions belong to this call
        return _compiled(call, page, dialect, translation)
    schemas = None if translation is None else tuple(sorted(translation.items(), key=repr))
    key = ("executemany", verb, page.cells, page.bumps, dialect, schemas)
    found: tuple[str, list[int], dict[int, Any]] = plan.cached(key, lambda: _compiled(call, page, dialect, translation))
    return found


def _compiled(
    call: CallContext, page: Page, dialect: Dialect, translation: Any
) -> tuple[str, list[int], dict[int, Any]]:
    plan, work = call.plan, call.work
    table: Any = plan.table
    names = {parameter_name(place): place for place in range(len(page.cells))}
    options: dict[str, Any] = {}
    if work.verb in {"insert", "upsert"}:
        written = written_places(page)
        names = {page.cells[place].slot.column.key: place for place in written}
        options["column_keys"] = list(names)
        statement = insert_of(page, table) if work.verb == "insert" else work.statement(call, page)  # type: ignore[attr-defined]
    elif work.verb == "update":
        statement = update_of(plan, page, parameter(page), table)
    else:
        statement = delete_of(plan, page, parameter(page), table)
    if translation is not None:
        options |= {"schema_translate_map": translation, "render_schema_translate": True}
    compiled = cast(Any, statement).compile(dialect=dialect, **options)
    places: list[int] = []
    constants: dict[int, Any] = {}
    values: dict[str, Any] = compiled.params
    for name in compiled.positiontup or ():
        place = names.get(name, -1)
        if place < 0:
            process = compiled._bind_processors.get(name)
            constants[len(places)] = values[name] if process is None else process(values[name])
        places.append(place)
    return str(compiled), places, constants


def _adapt(
    call: CallContext, page: Page, places: Sequence[int], constants: dict[int, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows in the driver's form."""
    dialect = call.connection.dialect
    key = ("adapt", page.cells, tuple(places), page.may_omit, dialect)
    build = _adapter(page, places, call) if constants else call.plan.cached(key, lambda: _adapter(page, places, call))
    rows: list[tuple[Any, ...]] = build(page.values, constants)
    return rows


def _adapter(page: Page, places: Sequence[int], call: CallContext) -> Callable[..., list[tuple[Any, ...]]]:
    dialect = call.connection.dialect
    names: dict[str, Any] = {"OMIT": OMIT}
    parts: list[str] = []
    for number, place in enumerate(places):
        if place < 0:
            parts.append(f"k[{number}]")
            continue
        type_ = page.cells[place].slot.column.type
        value = f"c{place}"
        known = call.dialect.stored_as(type_, dialect)
        process = type_._cached_bind_processor(dialect)
        if known is not None:
            template, needed = known
            names |= needed
            part = f"(None if {value} is None else {template.format(value)})"
        elif process is not None:
            names[f"p{place}"] = process
            part = f"p{place}({value})"
        else:
            part = value
        if place in page.may_omit:
            part = f"(None if {value} is OMIT else {part})"
        parts.append(part)
    cells = " ".join(f"c{place}," for place in range(len(page.cells)))
    body = " ".join(part + "," for part in parts)
    target = f"for ({cells}) in rows" if cells else "for _ in rows"
    return eval(f"lambda rows, k: [({body}) {target}]", names)  # type: ignore[no-any-return]  # noqa: S307 - as in _build.py
