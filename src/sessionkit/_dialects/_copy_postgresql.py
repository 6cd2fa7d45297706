"""PostgreSQL's COPY and binary parameters, through each of its drivers."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    TEXT,
    VARCHAR,
    Integer,
    String,
    Text,
    Unicode,
    UnicodeText,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy import column as sa_column
from sqlalchemy import values as sa_values
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.util import await_only

from ._bulk import ColumnFacts, as_list

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Connection, Dialect

_driverless: WeakKeyDictionary[Dialect, Dialect] = WeakKeyDictionary()


def driverless(dialect: Dialect) -> Dialect:
    """Return PostgreSQL's dialect with a driver's name but none of its types, and with the engine's JSON functions."""
    found = _driverless.get(dialect)
    if found is None:
        from sqlalchemy.dialects.postgresql import HSTORE
        from sqlalchemy.dialects.postgresql.base import PGDialect

        class Dictionary(HSTORE):
            def bind_processor(self, dialect: Dialect) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                """Leave the dict as it is, like the drivers that support it."""

        found = _driverless[dialect] = PGDialect()  # type: ignore[no-untyped-call]
        found.driver = dialect.driver
        found.colspecs = {**found.colspecs, HSTORE: Dictionary}
        for name in ("_json_serializer", "_json_deserializer"):
            setattr(found, name, getattr(dialect, name, None))
        found.supports_native_decimal = True  # SQLAlchemy sets this on its drivers, not on PostgreSQL
    return found


# The catalogue


def _plain(connection: Connection, quoted: str) -> str:
    # For drivers with %-style parameters the preparer doubles % in names, and only the driver's own formatting undoes that.
    return quoted.replace("%%", "%") if connection.dialect.identifier_preparer._double_percents else quoted


def table_name(connection: Connection, table: Table | str) -> str:
    """Return the name of a table as it is written in SQL that is sent without parameters."""
    preparer = connection.dialect.identifier_preparer
    if isinstance(table, str):
        return preparer.quote_identifier(table)
    schema = connection.schema_for_object(table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    return _plain(connection, prefix + preparer.quote(table.name))


_COLUMNS = text(
    """
    SELECT a.attname, coalesce(b.typname, t.typname) AS type, coalesce(b.typtype, t.typtype)::text AS kind,
           e.typname AS element,
           a.attidentity = 'a' OR a.attgenerated <> '' AS generated,
           c.relkind IN ('r', 'p', 'f') AND NOT c.relhasrules AND NOT row_security_active(c.oid) AS plain
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
    LEFT JOIN pg_type e ON coalesce(b.typcategory, t.typcategory) = 'A' AND e.oid = coalesce(b.typelem, t.typelem)
    WHERE c.oid = to_regclass(:name)
""".replace("::text", "\\:\\:text")
)


def columns(connection: Connection, table: Table) -> dict[str, ColumnFacts] | str:
    """Ask the catalogue for the columns of a table; or return why COPY would not do what an INSERT does."""
    rows = connection.execute(_COLUMNS, {"name": table_name(connection, table)}).all()
    if not rows:
        return f"there is no table {table.name}"
    if not rows[0].plain:
        return f"{table.name} is a view, or has rules or row security, which COPY does not obey"
    return {row.attname: ColumnFacts(row.type, row.kind, row.element, row.generated) for row in rows}


_DEFAULTS = text(
    """
    SELECT a.attname, CASE a.attidentity
             WHEN '' THEN pg_get_expr(d.adbin, d.adrelid) ELSE format('nextval(%L)', s.seq) END AS expression
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (:names)
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    CROSS JOIN LATERAL (SELECT CASE WHEN a.attidentity <> '' THEN pg_get_serial_sequence(:table, a.attname) END AS seq) s
    WHERE c.oid = to_regclass(:table) AND c.relkind IN ('r', 'p') AND NOT c.relhasrules
      AND (a.attidentity <> 'a' OR :always) AND a.attgenerated = ''
      AND (s.seq IS NULL OR has_sequence_privilege(s.seq, 'USAGE'))
      AND NOT EXISTS (SELECT 1 FROM pg_trigger g
                      WHERE (g.tgrelid = c.oid OR g.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
                        AND NOT g.tgisinternal AND (g.tgtype & 7) = 7)
"""
)


def reserve(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], count: int, always: bool
) -> list[tuple[Any, ...]] | None:
    """Evaluate the defaults of columns for new rows, if nothing else gives the columns their values.

    A trigger before the INSERT, or a rule, could change these values. An INSERT may not write an identity that is
    GENERATED ALWAYS, but COPY may.
    """
    names = [column.name for column in columns]
    parameters = {"table": table_name(connection, table), "names": names, "always": always}
    defaults = {row.attname: row.expression for row in connection.execute(_DEFAULTS, parameters)}
    if any(defaults.get(column.name) is None for column in columns):
        return None
    # The server's own text of the expression, which it would evaluate for each new row.
    made = select(*(literal_column(defaults[column.name], column.type) for column in columns))
    return [tuple(row) for row in connection.execute(made.select_from(func.generate_series(1, count)))]


_EQUALITY = text(
    """
    SELECT format_type(a.atttypid, a.atttypmod) AS type, coalesce(l.collisdeterministic, true) AS deterministic,
           quote_ident(n.nspname) || '.' || quote_ident(l.collname) AS collation, coalesce(b.typname, t.typname) AS name
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
    WHERE a.attrelid = to_regclass(:table) AND a.attname = :column
"""
)


def same(connection: Connection, column: Column[Any]) -> Callable[[Any, Any], bool]:
    """Return a function that says whether two values are the same key in a column, as the server compares them."""
    found = connection.execute(
        _EQUALITY, {"table": table_name(connection, column.table), "column": column.name}
    ).first()
    # (A text that is longer than its column loses spaces at its end.)
    as_given = type(column.type) in _AS_GIVEN and getattr(column.type, "length", None) is None
    if found is None or (found.deterministic and found.name in {"text", "varchar"} and as_given):
        return lambda a, b: bool(a == b)
    # Both words are the server's own, from its catalogue.
    collate = f" COLLATE {found.collation}" if not found.deterministic else ""
    a, b = (f"CAST(:{name} AS {found.type}){collate}".replace("::", "\\:\\:") for name in "ab")
    query = text(f"SELECT {a} = {b}").bindparams(bindparam("a", type_=column.type), bindparam("b", type_=column.type))
    return lambda a, b: bool(connection.scalar(query, {"a": a, "b": b}))


_AT_ONCE = 1_000  # values in one statement


def canonical(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Sequence[Any] | None:
    """Make the server write out values as a column would hold them; None if it refuses one of them."""
    found = connection.execute(
        _EQUALITY, {"table": table_name(connection, column.table), "column": column.name}
    ).first()
    if found is None:
        return None
    written = f"CAST(CAST(v AS {found.type}) AS text)"  # the server's own word, from its catalogue
    texts: list[Any] = []
    try:
        for low in range(0, len(values), _AT_ONCE):
            rows = [
                (low + i, cast(literal(v, column.type), column.type))
                for i, v in enumerate(values[low : low + _AT_ONCE])
            ]
            given = sa_values(sa_column("n", Integer), sa_column("v", column.type), name="given").data(rows)
            with connection.begin_nested():
                query: Any = select(literal_column(written)).select_from(given).order_by(given.c.n)
                texts += connection.scalars(query).all()
    except SQLAlchemyError:
        return None  # such a row is refused when it is written, with an error of its own
    if found.name in {"numeric", "float4", "float8"}:  # 1 and 1.0, 0 and -0
        return [value if value in {None, "NaN"} else Decimal(value) for value in texts]
    return texts


_AS_GIVEN = frozenset({String, Text, Unicode, UnicodeText, VARCHAR, TEXT})


# The drivers


def has_not_begun(connection: Connection) -> bool:
    """Return whether the driver is not in a transaction. Known drivers begin one with the first statement."""
    idle = _IDLE.get(connection.dialect.driver)
    return idle is not None and idle(connection.connection)


def _idle_psycopg(proxied: Any) -> bool:
    driver = proxied.driver_connection
    return bool(driver.info.transaction_status == 0) and not driver.autocommit


def _idle_asyncpg(proxied: Any) -> bool:
    adapted = proxied.dbapi_connection  # this sends the BEGIN
    return adapted._transaction is None and not adapted.autocommit and not proxied.driver_connection.is_in_transaction()


def unpackable(connection: Connection) -> str | None:
    """Return why packed data cannot be sent through a connection: their text is UTF-8, and nothing would notice."""
    driver: Any = connection.connection.driver_connection
    info = getattr(driver, "info", None)
    encoding = info.parameter_status("client_encoding") if info else driver.get_settings().client_encoding
    return None if str(encoding).upper() in {"UTF8", "UTF-8"} else f"the client's encoding is {encoding}, not UTF-8"


watching: list[Callable[[Connection, str], None]] = []
"""Called before COPY, of which SQLAlchemy's events know nothing. For tests."""


def copy_in(
    connection: Connection, table: Table | str, names: Sequence[Column[Any] | str], data: Iterable[bytes]
) -> int:
    """Send binary COPY data; return the number of rows it made."""
    send = _SENDERS[connection.dialect.driver]
    driver = connection.connection
    for watch in watching:
        watch(connection, _statement(connection, table, names))
    try:
        return send(connection, table, names, data)
    except Exception as error:
        dialect = connection.dialect
        dbapi = dialect.loaded_dbapi
        if not isinstance(error, dbapi.Error):
            raise
        lost = dialect.is_disconnect(error, driver.dbapi_connection, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            _statement(connection, table, names),
            None,
            error,
            dbapi.Error,
            connection_invalidated=lost,
            dialect=dialect,
        ) from error
    except BaseException as interruption:
        # Cut off in the middle of COPY (by a cancellation or Ctrl-C), the connection waits for data that never come.
        connection.invalidate(interruption)
        raise


def _statement(connection: Connection, table: Table | str, names: Sequence[Column[Any] | str]) -> str:
    preparer = connection.dialect.identifier_preparer
    columns = ", ".join(
        preparer.quote_identifier(name) if isinstance(name, str) else _plain(connection, preparer.quote(name.name))
        for name in names
    )
    return f"COPY {table_name(connection, table)} ({columns}) FROM STDIN (FORMAT BINARY)"


def _psycopg(
    connection: Connection, table: Table | str, names: Sequence[Column[Any] | str], data: Iterable[bytes]
) -> int:
    statement = _statement(connection, table, names)
    driver: Any = connection.connection.driver_connection
    if connection.dialect.is_async:
        return await_only(_psycopg_async(driver, statement, data))
    with driver.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for part in data:
                copy.write(part)
        return int(cursor.rowcount)


async def _psycopg_async(driver: Any, statement: str, data: Iterable[bytes]) -> int:
    async with driver.cursor() as cursor:
        async with cursor.copy(statement) as copy:
            for part in data:
                await copy.write(part)
        return int(cursor.rowcount)


def _psycopg2(
    connection: Connection, table: Table | str, names: Sequence[Column[Any] | str], data: Iterable[bytes]
) -> int:
    from io import BytesIO

    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        cursor.copy_expert(_statement(connection, table, names), BytesIO(b"".join(data)), size=1 << 16)
        return int(cursor.rowcount)


def _asyncpg(
    connection: Connection, table: Table | str, names: Sequence[Column[Any] | str], data: Iterable[bytes]
) -> int:
    driver: Any = connection.connection.driver_connection
    schema = None if isinstance(table, str) else connection.schema_for_object(table)
    work = driver.copy_to_table(
        table if isinstance(table, str) else str(table.name),
        source=_pieces(data),
        columns=[name if isinstance(name, str) else str(name.name) for name in names],
        schema_name=schema,
        format="binary",
    )
    try:
        tag: str = await_only(work)  # "COPY 20000"
    except Exception as error:
        # SQLAlchemy's adapter knows which DBAPI class an error of asyncpg belongs to.
        adapted: Any = connection.connection.dbapi_connection
        adapted._handle_exception(error)
        raise
    return int(tag.rsplit(maxsplit=1)[-1])


async def _pieces(data: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in data:
        yield part


_IDLE: dict[str, Callable[[Any], bool]] = {
    "psycopg": _idle_psycopg,
    "psycopg_async": _idle_psycopg,
    "psycopg2": _idle_psycopg,  # its attributes have the same names
    "asyncpg": _idle_asyncpg,
}
_SENDERS: dict[str, Callable[..., int]] = {
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
}


class _Packed(bytes):
    """An array in PostgreSQL's binary form, on its way through psycopg."""

    __slots__ = ()


_PREPARED = "sessionkit_packed"


def array(
    connection: Connection, type_: Any, values: Sequence[Any], absent: object, pack: Callable[[Any], bytes]
) -> Any:
    """Return a parameter for all the values of a column.

    psycopg takes bytes that are already packed; asyncpg packs lists itself, as fast; psycopg2 sends text.
    """
    if connection.dialect.driver not in {"psycopg", "psycopg_async"}:
        if connection.dialect.driver == "psycopg2":
            # In an array psycopg2 accepts values that it refuses on their own. The packer refuses them too.
            pack(values)
        return as_list(connection, type_, values, absent)
    if _PREPARED not in connection.connection.info:
        _teach_psycopg(connection.connection.driver_connection)
        connection.connection.info[_PREPARED] = True
    return _Packed(pack(values))


def _teach_psycopg(driver: Any) -> None:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class PackedDumper(Dumper):
        format = Format.BINARY
        # No oid: the cast around the parameter gives the type.

        def dump(self, obj: Any) -> bytes:
            return bytes(obj)

    driver.adapters.register_dumper(_Packed, PackedDumper)
