"""PostgreSQL writes the good rows of a temporary table, and reports for each bad row what an error would have said.

A script in PL/pgSQL tries blocks of rows, each in a subtransaction, and the rows of a failing block one by one. Many round
trips for each bad row become a few for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from ._bulk import RefusedRow, Sieve, Sifted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Dialect

# https://www.postgresql.org/docs/current/errcodes-appendix.html, the classes that any other row would raise too: a lost
# connection, a deadlock, a timeout, a missing table. All others are about a row: 21, two rows of a statement collide; 22,
# data; 23, a constraint; 44, WITH CHECK OPTION; P0 and unknown classes, raised by a trigger.
OTHER_CLASSES = frozenset(
    [
        "00",
        "01",
        "02",
        "03",
        "08",
        "09",
        "0A",
        "0B",
        "0F",
        "0L",
        "0P",
        "0Z",
        "20",
        "24",
        "25",
        "26",
        "27",
        "28",
        "2B",
        "2D",
        "2F",
        "34",
        "38",
        "39",
        "3B",
        "3D",
        "3F",
        "40",
        "42",
        "53",
        "54",
        "55",
        "57",
        "58",
        "72",
        "F0",
        "HV",
        "XX",
    ]
)
# A value for a generated column; a value of another type than the column's; a text that is too long for an index.
ROW_STATES = frozenset({"428C9", "42804", "42846", "54000"})

# Without PL/pgSQL, or without the right to use it or to make temporary tables.
_MISSING = frozenset({"42501", "42704"})

_DIAGNOSTICS = {
    "code": "RETURNED_SQLSTATE",
    "message": "MESSAGE_TEXT",
    "detail": "PG_EXCEPTION_DETAIL",
    "hint": "PG_EXCEPTION_HINT",
    "column": "COLUMN_NAME",
    "constraint": "CONSTRAINT_NAME",
    "table": "TABLE_NAME",
    "schema": "SCHEMA_NAME",
    "type": "PG_DATATYPE_NAME",
    "context": "PG_EXCEPTION_CONTEXT",
}
_NAMES = {field: f"sessionkit_{field}" for field in _DIAGNOSTICS}

_BLOCK, _MOST = 8, 32  # rows: after a bad one, and after many good ones

# Every name has a prefix: without it, a column of the same name would be ambiguous. OTHERS does not cover a cancellation.
_SCRIPT = """
DO $sessionkit_script$
DECLARE
    sessionkit_low bigint := 1;
    sessionkit_high bigint;
    sessionkit_last bigint;
    sessionkit_alone bigint := 0;
    sessionkit_size bigint := {block};
    sessionkit_count bigint;
    sessionkit_some bigint := 0;
    sessionkit_written bigint := 0;
    sessionkit_new bigint := 0;
    {declared}
BEGIN
    SELECT count(*) FROM {source} INTO sessionkit_last;
    WHILE sessionkit_low <= sessionkit_last LOOP
        sessionkit_high := least(sessionkit_low + sessionkit_size - 1, sessionkit_last);
        BEGIN
            {statement};
            {count}
            sessionkit_written := sessionkit_written + sessionkit_count;
            sessionkit_new := sessionkit_new + sessionkit_some;
            sessionkit_low := sessionkit_high + 1;
            IF sessionkit_size > 1 THEN
                sessionkit_size := least(sessionkit_size * 2, {most});
            ELSIF sessionkit_low > sessionkit_alone THEN
                sessionkit_size := {block};
            END IF;
        EXCEPTION WHEN OTHERS THEN
            IF left(SQLSTATE, 2) IN ({classes}) AND SQLSTATE NOT IN ({states}) THEN
                RAISE;
            ELSIF sessionkit_high > sessionkit_low THEN
                IF sessionkit_size > {block} THEN
                    sessionkit_size := {block};
                ELSE
                    sessionkit_size := 1;
                    sessionkit_alone := sessionkit_high;
                END IF;
            ELSE
                GET STACKED DIAGNOSTICS {fields};
                INSERT INTO {source}_bad VALUES (sessionkit_low, {names});
                sessionkit_low := sessionkit_low + 1;
                IF sessionkit_low > sessionkit_alone THEN
                    sessionkit_size := {block};
                END IF;
                {end}
            END IF;
        END;
    END LOOP;
    INSERT INTO {source}_bad (n, code, message) VALUES (0, sessionkit_written, sessionkit_new);
END
$sessionkit_script$
"""


class NoScript(Exception):
    """These rows must be sent with savepoints around them."""


def is_rows(state: str) -> bool:
    """Return whether an error with this code is about a row, so that leaving the row out would help."""
    return state[:2] not in OTHER_CLASSES or state in ROW_STATES


def sqlstate(orig: BaseException | None) -> str | None:
    """Return the code of a driver's error."""
    return getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)


def _script(connection: Connection, source: str, statement: Any, *, counts: bool, first: bool) -> str:
    if connection.dialect.driver not in _MAKERS:
        raise NoScript(f"sessionkit does not know how {connection.dialect.driver} makes its errors")
    text = _with_literals(connection, statement)
    if counts:
        text += " INTO sessionkit_count, sessionkit_some"
    return _SCRIPT.format(
        source=source,
        statement=text,
        count="" if counts else "GET DIAGNOSTICS sessionkit_count = ROW_COUNT;",
        declared=" ".join(f"{name} text;" for name in _NAMES.values()),
        fields=", ".join(f"{_NAMES[field]} = {item}" for field, item in _DIAGNOSTICS.items()),
        names=", ".join(_NAMES.values()),
        classes=", ".join(f"'{each}'" for each in sorted(OTHER_CLASSES)),
        states=", ".join(f"'{each}'" for each in sorted(ROW_STATES)),
        block=_BLOCK,
        most=_MOST,
        end="EXIT;" if first else "",
    )


def _with_literals(connection: Connection, statement: Any) -> str:
    translation = connection.get_execution_options().get("schema_translate_map")
    options: dict[str, Any] = {}
    if translation is not None:
        options |= {"schema_translate_map": translation, "render_schema_translate": True}
    dialect = _written_out(connection.dialect)
    # A script takes no parameters. Numbers are written out; any other value, in a user's condition, stays bound, and such
    # rows are sent with savepoints around them.
    values = statement.compile(dialect=dialect, **options).params.values()
    if not all(value is None or isinstance(value, int) for value in values):
        raise NoScript("a script has no parameters for the values of a condition")
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}, **options))


def _written_out(dialect: Dialect) -> Dialect:
    """Return the dialect for SQL without parameters, with a parameter style that doubles no %."""
    from sqlalchemy.dialects.postgresql.base import PGDialect

    made: Any = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
    for name in ("_backslash_escapes", "_json_serializer", "_json_deserializer", "server_version_info"):
        if hasattr(dialect, name):
            setattr(made, name, getattr(dialect, name))
    return made  # type: ignore[no-any-return]


# A dropped table stays locked until the transaction ends, and a server has a limited number of locks. So each shape of rows
# gets its tables once per call.


def _make(connection: Connection, source: str, columns: str) -> None:
    fields = ", ".join(f'"{name}" text' for name in _DIAGNOSTICS)
    n = "n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {source} ({n}, {columns}) ON COMMIT DROP")
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {source}_bad (n bigint, {fields}) ON COMMIT DROP")


def _empty(connection: Connection, source: str) -> None:
    connection.exec_driver_sql(f"TRUNCATE {source}, {source}_bad RESTART IDENTITY")


def _drop(connection: Connection, source: str) -> None:
    connection.exec_driver_sql(f"DROP TABLE {source}, {source}_bad")


def _run(connection: Connection, source: str, script: str) -> Sifted:
    connection.exec_driver_sql(script, execution_options={"no_parameters": True})
    rows = connection.exec_driver_sql(f"SELECT * FROM {source}_bad ORDER BY n").all()  # noqa: S608 - our own name
    (_, written, new, *_), *refused = rows
    return Sifted([RefusedRow(row[0], row[1:]) for row in refused], int(written), int(new))


def _reads_words(connection: Connection) -> bool:
    return connection.dialect.driver != "asyncpg"  # asyncpg encodes every value itself


def _is_missing(error: BaseException) -> bool:
    return sqlstate(getattr(error, "orig", None)) in _MISSING


# The errors. A driver makes them from the server's message; here they are made the same way from the script's notes.


def _error(connection: Connection, refused: RefusedRow, statement: str, parameters: Any) -> DBAPIError:
    fields = {name: value for name, value in zip(_DIAGNOSTICS, refused.fields, strict=True) if value}
    # After the last "SQL statement" come the script's own text and the place where it was called.
    context = fields.pop("context", "").rpartition('SQL statement "')[0].strip()
    if context:
        fields["context"] = context
    dialect: Any = connection.dialect
    made: Any = DBAPIError.instance(
        statement,
        parameters,
        _MAKERS[dialect.driver](connection, fields),
        dialect.loaded_dbapi.Error,
        hide_parameters=connection.engine.hide_parameters,
        dialect=dialect,
    )
    return made  # type: ignore[no-any-return]


def _text(fields: dict[str, str]) -> str:
    more = [f"{name.upper()}:  {fields[name]}" for name in ("detail", "hint", "context") if name in fields]
    return "\n".join([fields["message"], *more])


def _class_for(lookup: Callable[[str], Any], code: str) -> Any:
    try:
        return lookup(code)
    except KeyError:  # a trigger's own code
        pass
    try:
        return lookup(code[:2] + "000").__mro__[1]  # the DBAPI's class for its kind
    except KeyError:
        return lookup("XX000").__mro__[2]  # for an unknown kind: DatabaseError


class _Info(dict[Any, bytes]):
    """The fields of a psycopg error; some releases ask for all of them, and expect None for missing ones."""

    def __missing__(self, field: object) -> None:
        return None


def _psycopg(connection: Connection, fields: dict[str, str]) -> Exception:
    from psycopg.errors import lookup
    from psycopg.pq import DiagnosticField as Field

    names = {
        "code": Field.SQLSTATE,
        "message": Field.MESSAGE_PRIMARY,
        "detail": Field.MESSAGE_DETAIL,
        "hint": Field.MESSAGE_HINT,
        "context": Field.CONTEXT,
        "column": Field.COLUMN_NAME,
        "constraint": Field.CONSTRAINT_NAME,
        "table": Field.TABLE_NAME,
        "schema": Field.SCHEMA_NAME,
        "type": Field.DATATYPE_NAME,
    }
    info: Any = _Info({names[name]: value.encode() for name, value in fields.items()})
    error: Exception = _class_for(lookup, fields["code"])(_text(fields), info=info)
    return error


def _psycopg2(connection: Connection, fields: dict[str, str]) -> Exception:
    from psycopg2.errors import lookup

    error: Any = _class_for(lookup, fields["code"])(_text(fields))
    # Its `diag` cannot be set.
    error.__setstate__({"pgcode": fields["code"], "pgerror": f"ERROR:  {_text(fields)}"})
    for name in ("column", "constraint", "table", "schema"):
        setattr(error, f"{name}_name", fields.get(name))
    return error  # type: ignore[no-any-return]


def _asyncpg(connection: Connection, fields: dict[str, str]) -> Exception:
    from asyncpg.exceptions import PostgresError

    letters = {
        "code": "C",
        "message": "M",
        "detail": "D",
        "hint": "H",
        "context": "W",
        "column": "c",
        "constraint": "n",
        "table": "t",
        "schema": "s",
        "type": "d",
    }
    error: Exception = PostgresError.new({letters[name]: value for name, value in fields.items()})
    adapted: Any = connection.connection.dbapi_connection
    try:
        adapted._handle_exception(error)  # it knows which DBAPI class an error belongs to
    except Exception as translated:  # noqa: BLE001 - this is the result
        return translated
    return error


_MAKERS: dict[str, Callable[[Connection, dict[str, str]], Exception]] = {
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
}

SIEVE = Sieve(
    low="sessionkit_low",
    high="sessionkit_high",
    make=_make,
    empty=_empty,
    drop=_drop,
    script=_script,
    run=_run,
    reads_words=_reads_words,
    error=_error,
    is_missing=_is_missing,
)
