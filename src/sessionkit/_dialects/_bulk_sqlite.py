"""How SQLite moves many rows: one prepared statement, and a real BEGIN before any savepoint."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Enum, Integer, String, TypeDecorator, bindparam, delete, false, func, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from ._bulk import Bulk
from ._json import dumps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Column, ColumnElement, Table
    from sqlalchemy.engine import Connection, Dialect

# https://www.sqlite.org/rescode.html, primary codes: TOOBIG, CONSTRAINT, MISMATCH, RANGE.
_ROW_CODES = frozenset({18, 19, 20, 25})


def _has_not_begun(connection: Connection) -> bool:
    return not getattr(connection.connection.driver_connection, "in_transaction", True)


def _begin(connection: Connection) -> None:
    # Outside of a transaction SAVEPOINT would begin one, and its RELEASE would commit.
    if _has_not_begun(connection):
        connection.exec_driver_sql("BEGIN")


def _blames_the_row(error: BaseException) -> bool:
    if not isinstance(error, StatementError):
        return False
    if not isinstance(error, DBAPIError):
        return True  # a type could not bind a value
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _ROW_CODES
    # Without a code SQLite was not asked: the driver could not bind a value. A closed or misused connection also raises
    # ProgrammingError; then the same error comes back from the first row alone, and that row gets the blame.
    return type(error).__name__ in {"InterfaceError", "ProgrammingError", "DataError", "DBAPIError"}


# SQLite names the column only in the text, which is part of its source and never translated.
_FAILED = re.compile(r"constraint failed: (?P<table>[^,]+)\.(?P<column>[^.,]+)$")


def _column_of(error: BaseException, table: Table) -> str | None:
    match = _FAILED.search(str(getattr(error, "orig", "")))
    return match["column"] if match and match["table"] == table.name and match["column"] in _names(table) else None


def _names(table: Table) -> set[str]:
    return {column.name for column in table.columns}


def _upsert(table: Table) -> Any:
    from sqlalchemy.dialects.sqlite import insert

    return insert(table)


def _reserve(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], count: int, _always: bool
) -> list[tuple[Any, ...]] | None:
    """Return the next rowids. It takes the write lock first, so no other transaction gets them before this one ends."""
    column = table.autoincrement_column
    if column is None or list(columns) != [column] or not table.dialect_options["sqlite"]["with_rowid"]:
        return None
    connection.execute(delete(table).where(false()))  # takes the lock, and nothing else
    preparer = connection.dialect.identifier_preparer
    schema = connection.schema_for_object(table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    name = (table.name,)
    # A trigger could insert into the same table.
    triggers = f"SELECT count(*) FROM {prefix}sqlite_master WHERE type = 'trigger' AND tbl_name = ?"  # noqa: S608 - quoted
    if connection.exec_driver_sql(triggers, name).scalar_one():
        return None
    last: int = connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()
    if table.dialect_options["sqlite"]["autoincrement"]:
        sequence = f"SELECT seq FROM {prefix}sqlite_sequence WHERE name = ?"  # noqa: S608 - quoted
        last = max(last, connection.exec_driver_sql(sequence, name).scalar() or 0)
    if last < 0 or last + count >= 2**63:
        return None  # SQLite would look for a gap, at random
    return list(zip(range(last + 1, last + 1 + count), strict=True))


def _stored_key(type_: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return a function that turns a value into what SQLite stores: the type's form of it, by the column's affinity."""
    process = type_._cached_bind_processor(dialect)
    declared = str(type_.compile(dialect)).upper()
    # https://www.sqlite.org/datatype3.html, 3.1
    is_number = "INT" in declared or not any(word in declared for word in ("CHAR", "CLOB", "TEXT", "BLOB"))
    is_text = not is_number and "BLOB" not in declared

    def stored(value: Any) -> Any:
        made = value if process is None else process(value)
        if is_text and isinstance(made, int | float):
            return str(made)
        if is_number and isinstance(made, str):
            with suppress(ValueError):
                return int(made) if made.strip().lstrip("+-").isdigit() else float(made)
        return made

    return stored


def _same(connection: Connection, column: Column[Any]) -> Callable[[Any, Any], bool]:
    """Return a function that says whether two values are the same key in a column, by its unique index's collation."""
    preparer = connection.dialect.identifier_preparer
    schema = connection.schema_for_object(column.table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""

    def pragma(name: str, of: str) -> Any:
        return connection.exec_driver_sql(f"PRAGMA {prefix}{name}({preparer.quote_identifier(of)})").mappings().all()

    collations = [
        part["coll"]
        for index in pragma("index_list", column.table.name)
        if index["unique"]
        for part in pragma("index_xinfo", index["name"])
        if part["name"] == column.name
    ]
    collate = f" COLLATE {preparer.quote_identifier(collations[0])}" if collations else ""
    sides = bindparam("a", type_=column.type), bindparam("b", type_=column.type)
    query = text(f"SELECT :a = :b{collate}").bindparams(*sides)
    return lambda a, b: bool(connection.scalar(query, {"a": a, "b": b}))


# ON CONFLICT, OR and RAISE(): ROLLBACK ends the transaction, FAIL keeps a part of the failing row, and IGNORE silently
# leaves a row out, so that the rows before the failing one cannot be counted.
_KEEPS_PARTS = re.compile(r"\b(FAIL|ROLLBACK|IGNORE)\b", re.IGNORECASE)


def _keeps_earlier(connection: Connection, table: Table) -> bool:
    # Triggers lead from table to table, so look at the whole schema.
    preparer = connection.dialect.identifier_preparer
    schema = connection.schema_for_object(table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    texts = " UNION ALL ".join(
        f"SELECT sql FROM {master} WHERE sql LIKE '%ROLLBACK%' OR sql LIKE '%FAIL%' OR sql LIKE '%IGNORE%'"  # noqa: S608 - quoted
        for master in (f"{prefix}sqlite_master", "sqlite_temp_master")
    )
    return not any(_KEEPS_PARTS.search(sql) for sql in connection.exec_driver_sql(texts).scalars())


_JSON_KEYS = frozenset({int, str})


def _any_of(column: Any, type_: Any, values: list[Any]) -> ColumnElement[bool] | None:
    # Only types that pass values on unchanged, and that JSON writes as SQLite stores them. The list is then one parameter.
    if (
        not isinstance(type_, Integer | String)
        or isinstance(type_, Enum)
        or not _JSON_KEYS.issuperset(map(type, values))
    ):
        return None
    listing = json.dumps(values)
    if r"\u0000" in listing:
        return None  # json_each ends a text at its first NUL, and would find another key
    listed = func.json_each(listing).table_valued("value")
    result: ColumnElement[bool] = column.in_(select(listed.c.value))
    return result


_BOOLS = {"BOOLS": {True: 1, False: 0}}


def _plain_json(type_: Any) -> bool:
    own: Any = JSON
    return isinstance(type_, JSON) and getattr(type_.__class__, "bind_processor", None) is own.bind_processor


def _stored_as(type_: Any, dialect: Any) -> tuple[str, dict[str, Any]] | None:
    # By exact class and format, so that a subclass or a user's storage_format goes through its own processor, which takes
    # five times as long for a datetime.
    impl = type_.dialect_impl(dialect)
    if not type(impl).__module__.startswith("sqlalchemy.") or getattr(dialect, "native_datetime", False):
        return None
    if _plain_json(impl) and not isinstance(type_, TypeDecorator):
        # Like SQLAlchemy's processor, without the code around it; expressions such as null() make it raise. The constant
        # is an integer, and json.dumps would write it as a number.
        return (
            ("('null' if {0} is JSON_NULL else dumps({0}))", {"JSON_NULL": JSON.NULL, "dumps": dumps_of(dialect)})
            if impl.none_as_null
            else None
        )
    found = _EXPRESSIONS.get(type(impl).__name__)
    if found is None or getattr(impl, "_storage_format", None) != found[1]:
        return None
    if type(impl).__name__ == "Uuid" and not impl.as_uuid:
        return None
    return found[0], _BOOLS


_YMD = "%(year)04d-%(month)02d-%(day)02d"
_HMS = "%(hour)02d:%(minute)02d:%(second)02d.%(microsecond)06d"
# What SQLAlchemy's types store on SQLite: they drop the time zone and always write microseconds.
_EXPRESSIONS: dict[str, tuple[str, str | None]] = {
    "DATETIME": ("{}.isoformat(' ', 'microseconds')[:26]", f"{_YMD} {_HMS}"),
    "DATE": ("{}.isoformat()[:10]", _YMD),
    "_SQLite_pysqliteDate": ("{}.isoformat()[:10]", _YMD),
    "_SQLite_pysqliteTimeStamp": ("{}.isoformat(' ', 'microseconds')[:26]", f"{_YMD} {_HMS}"),
    "TIME": ("{}.isoformat('microseconds')[:15]", _HMS),
    "Boolean": ("BOOLS[{}]", None),
    "Uuid": ("{}.hex", None),
}


BULK = Bulk(
    ladders=dict.fromkeys(("insert", "update", "upsert", "delete"), ((1, "executemany"),)),
    forced=dict.fromkeys(("insert", "update", "upsert", "delete"), ("executemany",)),
    begin=_begin,
    has_not_begun=_has_not_begun,
    blames_the_row=_blames_the_row,
    column_of=_column_of,
    upsert=_upsert,
    locks_rows=False,
    any_of=_any_of,
    reserve=_reserve,
    stored_key=_stored_key,
    same=_same,
    stored_as=_stored_as,
    tells_bad_rows="counted",
    keeps_earlier=_keeps_earlier,
)
