"""One statement for all rows, sent as a relation: parallel arrays (`unnest`), or a temporary table."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, cast, column, func, select
from sqlalchemy import delete as sa_delete
from sqlalchemy import table as sa_table
from sqlalchemy import types as sqltypes
from sqlalchemy.types import UserDefinedType

from .._core.connection import has_two_phases
from ._made_keys import missing_keys, with_keys_made
from ._packer import CopyData, Field, column_packer, fields_of, row_packer
from ._plan import OMIT
from ._result import PageResult, Unfit
from ._sqlalchemy import upsert_outcome, written
from ._statements import delete_of, insert_of, parameter_name, update_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement, FromClause

    from ._context import CallContext
    from ._equality import Equality
    from ._page import Page
    from ._result import Status


class _Array(UserDefinedType[Any]):
    """An array type spelled out in SQL, whatever form the driver gets."""

    cache_ok = True

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def get_col_spec(self, **_: Any) -> str:
        return f"{self.sql}[]"


def refusal(call: CallContext, page: Page, method: str) -> str | None:
    """Return why the rows cannot be sent this way; None if they can."""
    if not page.cells:
        return "rows that consist of defaults only have no columns to send"
    fields = _fields(call, page)
    if isinstance(fields, str):
        return f"sessionkit does not know the binary form of {fields!r} for certain"
    if method == "unnest" and any(field.array for field in fields):
        return "unnest cannot split arrays of arrays; 'temp' can send them"
    unpackable = call.dialect.unpackable(call.connection)
    if unpackable is not None:
        return unpackable
    unlisted = next((field.wire.name for field in fields if not field.wire.listed), None)
    if method == "unnest" and unlisted is not None:
        return f"this driver cannot send an array of {unlisted}; 'temp' works"
    if method == "temp" and has_two_phases(call.connection):
        return (
            "PostgreSQL cannot prepare a transaction that has used a temporary table, and this one may be committed in "
            "two phases; 'unnest' can be used there"
        )
    if method == "temp" and call.work.wants_keys:
        return "a temporary table does not keep the order in which keys are made; 'copy' and 'unnest' do"
    return None


def prepare(call: CallContext, page: Page, method: str, *, probe: bool = False) -> Callable[[], PageResult]:
    """Pack the values, and return a function that sends them."""
    fields = _fields(call, page)
    assert not isinstance(fields, str), fields
    if method == "temp":
        order, pack = call.plan.cached(("rows", tuple(fields)), lambda: row_packer(fields))
        data = CopyData(pack, page.values)
        return lambda: _through_table(call, page, fields, order, data)
    if call.work.wants_keys and not probe and missing_keys(call.plan, page):
        return lambda: _with_made_keys(call, page, method)
    parameters: dict[str, Any] = {}
    for place, (field, values) in enumerate(zip(fields, zip(*page.values, strict=True), strict=True)):
        pack = call.plan.cached(("column", field), partial(column_packer, field))
        type_ = page.cells[place].slot.column.type
        parameters[parameter_name(place)] = call.dialect.array(call.connection, type_, values, OMIT, pack)
    return lambda: _send(call, page, fields, lambda: _unnested(page, fields), parameters, "unnest")


def _with_made_keys(call: CallContext, page: Page, method: str) -> PageResult:
    keyed = with_keys_made(call, page)
    if keyed is None or isinstance(_fields(call, keyed), str):
        raise Unfit
    return prepare(call, keyed, method)()


def _fields(call: CallContext, page: Page) -> list[Field] | str:
    dialect = call.dialect.driverless(call.connection.dialect)
    key = ("fields", page.cells, page.may_omit, dialect)
    fields: list[Field] | str = call.plan.cached(key, lambda: fields_of(page, dialect))
    return fields


# Where the rows come from


def _unnested(page: Page, fields: list[Field]) -> FromClause:
    arrays = [_array_of(place, field) for place, field in enumerate(fields)]
    columns = [column(f"c{place}", cell.slot.column.type) for place, cell in enumerate(page.cells)]
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="n", name="s")
    return rows.render_derived(name="s")


def _array_of(place: int, field: Field) -> ColumnElement[Any]:
    type_ = _Array(field.sql)
    return cast(bindparam(parameter_name(place), type_=type_), type_)


def _through_table(call: CallContext, page: Page, fields: list[Field], order: list[int], data: CopyData) -> PageResult:
    name = call.temporary_name
    columns = ", ".join(f"c{place} {field.sql}" for place, field in enumerate(fields))
    execute = call.connection.exec_driver_sql
    # Dropped with the transaction in any case, so the next user of this connection does not see it.
    execute(f"CREATE TEMPORARY TABLE {name} ({columns}) ON COMMIT DROP")
    call.dialect.copy_in(call.connection, name, [f"c{place}" for place in order], data)

    def source() -> FromClause:
        return sa_table(name, *(column(f"c{place}", cell.slot.column.type) for place, cell in enumerate(page.cells)))

    joins = call.work.verb in {"update", "delete"}
    with call.dialect.by_index(call.connection) if joins else nullcontext():
        outcome = _send(call, page, fields, source, {_ALL: True}, name)
    execute(f"DROP TABLE {name}")
    return outcome


# A condition that is always true: a statement that reads a temporary table has no other parameter, and without one SQLAlchemy
# cannot send psycopg a name with a % in it; see test_bulk_differential.py.
_ALL = "sessionkit_all"


def _every_row(kind: str) -> ColumnElement[bool] | None:
    return None if kind == "unnest" else bindparam(_ALL, type_=sqltypes.Boolean())


# What is done with them


def _send(
    call: CallContext,
    page: Page,
    fields: list[Field],
    source: Callable[[], FromClause],
    parameters: dict[str, Any],
    kind: str,
) -> PageResult:
    work: Any = call.work
    verb = work.verb
    if verb == "upsert":
        return _upsert(call, page, typed_columns(page, fields, source()), parameters, _every_row(kind))
    key = ("set", kind, verb, page.cells, page.bumps, work.wants_keys, tuple(fields))
    statement = call.plan.cached(key, lambda: _statement(call, page, fields, source(), kind))
    if verb == "insert":
        count = written(call, statement, parameters)
        return PageResult(inserted=count, keys=page.of_slots(call.plan.key) if work.wants_keys else None)
    count = call.connection.execute(statement, parameters).rowcount
    work.compare(call, page, count)
    return PageResult(updated=count) if verb == "update" else PageResult(deleted=count)


def _statement(call: CallContext, page: Page, fields: list[Field], source: FromClause, kind: str) -> Any:
    plan = call.plan
    table: Any = plan.table
    verb = call.work.verb
    if verb == "insert":
        return insert_of(page, table, typed_columns(page, fields, source), where=_every_row(kind))
    values = typed_columns(page, fields, source)
    if verb == "update":
        statement = update_of(plan, page, values.__getitem__, table)
    elif kind == "unnest" and len(page.cells) == 1:
        # An array instead of a relation: PostgreSQL then scans the index, while a join may scan the whole table.
        key, array = plan.key[0].column, _array_of(0, fields[0])
        if fields[0].wire.cast:
            array = cast(array, sqltypes.ARRAY(key.type))
        by_key = sa_delete(table).where(key == func.any(array))
        return by_key.where(*plan.of_class.values())
    else:
        statement = delete_of(plan, page, values.__getitem__, table)
    every = _every_row(kind)
    return statement if every is None else statement.where(every)


def typed_columns(page: Page, fields: list[Field], source: FromClause) -> list[ColumnElement[Any]]:
    """Return the columns of the relation; an enum was sent as text."""
    return [
        cast(value, cell.slot.column.type) if field.wire.cast else value
        for cell, field, value in zip(page.cells, fields, source.c, strict=False)
    ]


def _upsert(
    call: CallContext,
    page: Page,
    values: list[ColumnElement[Any]],
    parameters: dict[str, Any],
    every: ColumnElement[bool] | None,
) -> PageResult:
    work: Any = call.work
    statement = work.statement(call, page, values, every)
    is_new: ColumnElement[bool] | None = work.is_new(call)
    if work.status or work.returning:
        return _upsert_telling_rows(call, page, statement, parameters, is_new)
    if is_new is None:
        there = work.existing(call, page)
        return upsert_outcome(work, call, page, there, written(call, statement, parameters))
    rows = statement.returning(is_new.label("is_new")).cte("written")
    counted = select(func.count(), func.count().filter(rows.c.is_new)).select_from(rows)
    count, new = work.executed(call, counted, parameters).one()
    return PageResult(inserted=new, updated=count - new, unchanged=len(page) - count)


def _upsert_telling_rows(
    call: CallContext, page: Page, statement: Any, parameters: dict[str, Any], is_new: ColumnElement[bool] | None
) -> PageResult:
    """Send an upsert, and find the result of each row by the key that matched it."""
    work: Any = call.work
    places: list[int] = work.where(page)
    equality: Equality = work.equality(call, page)
    wanted = equality.folded(page.at(places))
    if is_new is None or len(set(wanted)) < len(wanted):
        raise Unfit  # two rows with one key, outside the predicate of a partial index: their keys do not distinguish them
    columns: list[Any] = [page.cells[place].slot.column for place in places]
    keys = [slot.column for slot in call.plan.key] if work.returning else []
    rows = work.executed(call, statement.returning(*columns, is_new, *keys), parameters).all()
    width = len(places)
    told = dict(zip(equality.folded([tuple(row[:width]) for row in rows]), rows, strict=True))
    status: list[Status] = [
        ("inserted" if told[key][width] else "updated") if key in told else "unchanged" for key in wanted
    ]
    if len(rows) != len(status) - status.count("unchanged"):
        raise Unfit  # the database returns keys in a different form than they were passed in
    known = {
        key: tuple(told[fold][width + 1 :]) for key, fold in zip(page.at(places), wanted, strict=True) if fold in told
    }
    return work.outcome(call, page, status, known if work.returning else None)  # type: ignore[no-any-return]
