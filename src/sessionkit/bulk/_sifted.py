"""Finds bad rows on the server itself: on PostgreSQL, by a script over a temporary table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, cast, column, func, literal_column, select
from sqlalchemy import table as sa_table
from sqlalchemy.exc import DBAPIError

from .._core.connection import has_two_phases
from . import _executemany
from ._packer import CopyData, fields_of, row_packer
from ._plan import OMIT
from ._result import PageResult, Unpackable
from ._sets import typed_columns
from ._statements import delete_of, insert_of, parameter_name, update_of, written_places
from ._wire import wires

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._dialects import Sieve, Sifted
    from ._context import CallContext
    from ._packer import Field
    from ._page import Page

    Search = Callable[[dict[int, Exception]], PageResult | None]


class Unable(Exception):
    """The server cannot do it: it has no PL/pgSQL, or this user may not create temporary tables."""


_UNABLE = "unable to sift"
_TABLES = "tables to sift"


def prepare(call: CallContext, page: Page) -> Search | None:
    """Return a function that sends the rows and notes the errors of those that fail; None if that is not possible."""
    sieve = call.dialect.sieve
    if sieve is None or has_two_phases(call.connection) or call.cached(_UNABLE, set[str]):
        return None
    dialect = call.dialect.driverless(call.connection.dialect)
    fields = fields_of(page, dialect)
    if isinstance(fields, str):
        return None
    # A NULL where the table forbids it is a bad row like any other. So is text instead of a number, if the driver lets the
    # server parse it.
    words = set[int]()
    if sieve.reads_words(call.connection):
        words = {place for place, field in enumerate(fields) if _is_word(field, page.values[0][place])}
    as_text = wires(dialect.driver)["text"]
    fields = [
        field._replace(nullable=True, wire=as_text if place in words else field.wire)
        for place, field in enumerate(fields)
    ]
    order, pack = call.plan.cached(("rows", tuple(fields)), lambda: row_packer(fields))
    work: Any = call.work
    counts = work.verb == "upsert" and not work.status and not work.returning
    if counts and work.is_new(call) is None:
        return None
    kept = counts or (work.verb == "insert" and not work.wants_keys)
    columns = ", ".join(f"c{place} {field.sql}" for place, field in enumerate(fields))
    tables = call.cached(_TABLES, dict[str, str])
    name = tables.get(columns) or f"{call.temporary_name}_{len(tables)}"
    try:
        data = CopyData(pack, page.values)
        statement = _statement(call, page, name, fields, words, sieve, counts=counts)
        script = sieve.script(call.connection, name, statement, counts=counts, first=not call.collects)
    except Exception:  # noqa: BLE001 - a value or a user's condition that can only be sent as a parameter
        return None

    def search(errors: dict[int, Exception]) -> PageResult | None:
        sifted = _sift(call, sieve, name, columns, order, data, script)
        sql = _executemany.statement_of(call, page)[0] if sifted.refused else ""
        for told in sifted.refused:
            place = told.place - 1
            errors[place] = sieve.error(call.connection, told, sql, _parameters(call, page, place))
        if not kept or not call.collects:
            return None
        _keep(call, sieve, name, columns)
        good = len(page) - len(errors)
        if not counts:
            return PageResult(inserted=sifted.written)
        return PageResult(inserted=sifted.new, updated=sifted.written - sifted.new, unchanged=good - sifted.written)

    return search


_READ_AS_THEY_ARE = frozenset({"text", "bpchar", "bytea", "json", "jsonb"})


def _is_word(field: Field, value: object) -> bool:
    """Return whether a value is text for a column of another type, and only the server parses it."""
    plain = field.process is None and field.dumps is None and not field.array
    return type(value) is str and plain and field.wire.name not in _READ_AS_THEY_ARE


def _sift(
    call: CallContext, sieve: Sieve, name: str, columns: str, order: list[int], data: CopyData, script: str
) -> Sifted:
    """Load the rows into a temporary table, and run the script."""
    try:
        if columns in call.cached(_TABLES, dict[str, str]):
            sieve.empty(call.connection, name)
        else:
            sieve.make(call.connection, name, columns)
        call.dialect.copy_in(call.connection, name, [f"c{place}" for place in order], data)
        return sieve.run(call.connection, name, script)
    except Unpackable:
        raise Unable from None
    except DBAPIError as error:
        if sieve.is_missing(error):
            call.cached(_UNABLE, set[str]).add("no")
            raise Unable from None
        if call.dialect.blames_the_row(error) or call.dialect.lacks_is_new(error):
            raise Unable from None
        raise


def _keep(call: CallContext, sieve: Sieve, name: str, columns: str) -> None:
    """Keep a table for later pages: it is not undone."""
    tables = call.cached(_TABLES, dict[str, str])
    if columns not in tables:
        tables[columns] = name
        call.at_end.append(lambda: sieve.drop(call.connection, name))


def _statement(
    call: CallContext, page: Page, name: str, fields: list[Field], words: set[int], sieve: Sieve, *, counts: bool
) -> Any:
    """Return the statement for a part of the rows."""
    plan = call.plan
    work: Any = call.work
    table: Any = plan.table
    cells = [
        column(f"c{place}", Text() if place in words else cell.slot.column.type)
        for place, cell in enumerate(page.cells)
    ]
    source = sa_table(name, *cells, column("n"))
    part = source.c.n.between(literal_column(sieve.low), literal_column(sieve.high))
    values = [
        cast(value, cell.slot.column.type) if place in words else value
        for place, (cell, value) in enumerate(zip(page.cells, typed_columns(page, fields, source), strict=True))
    ]
    if work.verb == "insert":
        return insert_of(page, table, values, order=source.c.n, where=part)
    if work.verb == "update":
        return update_of(plan, page, values.__getitem__, table).where(part)
    if work.verb == "delete":
        return delete_of(plan, page, values.__getitem__, table).where(part)
    statement = work.statement(call, page, values, part)
    if not counts:
        return statement
    is_new: Any = work.is_new(call)
    written = statement.returning(is_new.label("is_new")).cte("written")
    return select(func.count(), func.count().filter(written.c.is_new)).select_from(written)


def _parameters(call: CallContext, page: Page, place: int) -> dict[str, Any]:
    """Return the parameters that SQLAlchemy would send for a row."""
    row = page.values[place]
    if call.work.verb in {"insert", "upsert"}:
        named = {page.cells[i].slot.column.key: row[i] for i in written_places(page)}
    else:
        named = {parameter_name(i): value for i, value in enumerate(row)}
    return {name: None if value is OMIT else value for name, value in named.items()}
