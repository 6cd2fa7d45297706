"""How SQLite adds, drops and takes over a version column: in place, without copying the table.

A copy would lose the table's triggers and, with foreign keys on, the rows that refer to it; see ``_sqlite_copies``. For
changes that ALTER TABLE does not support, such as dropping a default, SQLite documents a way: edit the text of the definition
(https://www.sqlite.org/lang_altertable.html, section 7, "changes that do not affect the on-disk content"). Each operation
runs in a savepoint, because the driver may begin no transaction before DDL.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from . import _sqlite_text
from ._batch import batch_of, catch_up, copies, guard, said_of_the_copy, whole
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    from ._ops import (
        AddVersionColumnOp,
        AdoptVersionColumnOp,
        DropVersionColumnOp,
        ReleaseVersionColumnOp,
        VersionColumnOp,
    )

_TEMPORARILY = "sessionkit_version"
_SECOND = "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
_MOMENT = _SECOND.replace("[ T]", " ") + "." + "[0-9]" * 6
_NOW = "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"
"""The form in which SQLAlchemy writes a time, so that rows from code that does not know about versions match too."""


def add(operations: Operations, op: AddVersionColumnOp) -> None:
    """Add the column with a default, fill it, and drop the default if that was asked for."""
    context = operations.migration_context
    if not op.keep_default and context.as_sql:
        raise MigrationError(
            f"keep_default=False was asked for {op.table_name}.{op.column_name}, but SQLite can only drop a default "
            "by changing the table's definition, which is not known in --sql mode; use keep_default=True"
        )
    guard(operations, op)
    whole(operations)
    catch_up(operations, op, needs_all=op.backfill is not None)
    initial = op.kind.initial_for("sqlite")
    column = op.kind.column(op.column_name, initial, strict=_is_strict(context, op))
    with _at_once(context):
        context.impl.add_column(op.table_name, column, schema=op.schema)
        if op.backfill is not None or not op.keep_default:
            with _triggers_off(context, op):
                # Even without a backfill: a row that is not rewritten takes its value from the default.
                context.impl.execute(op.filling())
        if not op.keep_default:
            _redefine(context, op, lambda text: _sqlite_text.without_default(text, initial), {"dflt_value": None})
    batch = batch_of(operations)
    if batch is not None and batch.copy_from is not None:
        # The table that the batch copies now has the column; the caller's definition must not change.
        batch.copy_from = batch.copy_from.to_metadata(sa.MetaData())
        batch.copy_from.append_column(op.kind.column(op.column_name, initial if op.keep_default else None))


def drop(operations: Operations, op: DropVersionColumnOp) -> None:
    """Drop the column; the server refuses this if an index, a view, a trigger or a check refers to it."""
    context = operations.migration_context
    batch = batch_of(operations)
    guard(operations, op)
    whole(operations)
    column = op.kind.column(op.column_name)
    if batch is not None and (batch.copy_from is not None or (copies(batch) and said_of_the_copy(batch))):
        batch.drop_column(op.table_name, column, schema=op.schema)  # as part of the copy that is made anyway
        return
    catch_up(operations, op, needs_all=True)
    with _at_once(context):
        context.impl.drop_column(op.table_name, column, schema=op.schema)


def adopt(operations: Operations, op: AdoptVersionColumnOp) -> None:
    """Rewrite each time in SQLAlchemy's form, fill the column where it is NULL, and make it NOT NULL."""
    context = operations.migration_context
    _refuse_script(context, op)
    if op.timezone != "UTC":
        raise MigrationError(
            f"timezone={op.timezone!r} was asked for in {op.asked}, but SQLite has no time zones; convert the times "
            "to UTC first, and leave timezone= out"
        )
    guard(operations, op)
    whole(operations)
    catch_up(operations, op, needs_all=True)
    connection: Any = context.connection
    table, column = _names(context, op)
    asked: Any = sa.text(op.backfill) if isinstance(op.backfill, str) else op.backfill
    instead = [] if asked is None else [str(asked.compile(connection, compile_kwargs={"literal_binds": True}))]
    value = f"coalesce({', '.join([column, *instead, op.kind.initial_for('sqlite')])})"
    # The version is compared as text, so a time without microseconds, such as CURRENT_TIMESTAMP, would never match.
    written = (
        f"UPDATE {table} SET {column} = replace(substr({value}, 1, 19), 'T', ' ') || "  # noqa: S608 - quoted
        f"CASE WHEN {value} GLOB '{_SECOND}' THEN '.000000' ELSE substr(substr({value}, 20) || '000000', 1, 7) END "
        f"WHERE {column} IS NULL OR {column} GLOB '{_SECOND}' OR {column} GLOB '{_SECOND}.*'"
    )
    not_written = f"{column} NOT GLOB '{_MOMENT}' OR typeof({column}) <> 'text'"
    _facts(context, op)
    with _at_once(context):
        with _triggers_off(context, op):
            connection.exec_driver_sql(written)
        strange = connection.exec_driver_sql(f"SELECT {column} FROM {table} WHERE {not_written} LIMIT 1").first()  # noqa: S608 - quoted
        if strange is not None:
            raise MigrationError(
                f"{op.asked} was asked for, but the column holds {strange[0]!r}, which is not a time in SQLAlchemy's "
                "form ('2026-01-31 12:00:00.000000', in UTC); nothing was changed; let the migration convert these "
                "rows first"
            )
        _redefine(
            context,
            op,
            lambda text: _sqlite_text.not_null(_sqlite_text.with_default(_sqlite_text.nullable(text), _NOW)),
            {"notnull": 1, "dflt_value": _NOW[1:-1]},
        )


def release(operations: Operations, op: ReleaseVersionColumnOp) -> None:
    """Make the column nullable again if it was before."""
    context = operations.migration_context
    _refuse_script(context, op)
    guard(operations, op)
    whole(operations)
    catch_up(operations, op, needs_all=True)
    if op.existing_nullable and _facts(context, op)["notnull"]:
        with _at_once(context):
            _redefine(context, op, _sqlite_text.nullable, {"notnull": 0})


def _refuse_script(context: MigrationContext, op: VersionColumnOp) -> None:
    if context.as_sql:
        raise MigrationError(
            f"{op.asked} was asked for in --sql mode, but SQLite can only do this by changing the table's definition, "
            "which is not known there; run this migration online"
        )


# All of an operation, or nothing


@contextmanager
def _at_once(context: MigrationContext) -> Generator[None]:
    connection = context.connection
    if connection is None or context.as_sql:
        yield
        return
    with nullcontext() if connection.in_transaction() else connection.begin():
        connection.exec_driver_sql(f"SAVEPOINT {_TEMPORARILY}")
        try:
            yield
        except BaseException:
            with suppress(DBAPIError):  # after an error such as a full disk, SQLite has already rolled everything back
                connection.exec_driver_sql(f"ROLLBACK TO {_TEMPORARILY}")
                connection.exec_driver_sql(f"RELEASE {_TEMPORARILY}")
            raise
        connection.exec_driver_sql(f"RELEASE {_TEMPORARILY}")


@contextmanager
def _triggers_off(context: MigrationContext, op: VersionColumnOp) -> Generator[None]:
    """Keep the table's triggers from firing: giving a row its first version is not a change of the row."""
    connection = context.connection
    if connection is None or context.as_sql:
        yield
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    inside = quote(op.schema or "main")
    theirs = "type = 'trigger' AND tbl_name = ? COLLATE NOCASE ORDER BY rowid"
    query = f"SELECT name, sql FROM {inside}.sqlite_master WHERE {theirs}"  # noqa: S608 - quoted
    triggers: list[Any] = list(connection.exec_driver_sql(query, (op.table_name,)))
    for name, _ in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {inside}.{quote(name)}")
    yield
    for _, sql in triggers:
        # In the text that SQLite keeps, the name has no schema.
        connection.exec_driver_sql(sql.replace("CREATE TRIGGER ", f"CREATE TRIGGER {inside}.", 1))


def _names(context: MigrationContext, op: VersionColumnOp) -> tuple[str, str]:
    """Return the table and the column, quoted."""
    quote = context.dialect.identifier_preparer.quote_identifier
    return f"{quote(op.schema or 'main')}.{quote(op.table_name)}", quote(op.column_name)


# The definition of a table


def _redefine(
    context: MigrationContext, op: VersionColumnOp, change: Callable[[str], str], expected: dict[str, Any]
) -> None:
    """Change the column's definition in the text that SQLite keeps, and check that nothing else has changed."""
    connection = context.connection
    assert connection is not None
    inside = connection.dialect.identifier_preparer.quote_identifier(op.schema or "main")

    def ask(sql: str, *values: Any) -> Any:
        return connection.exec_driver_sql(sql, values)

    before = _columns(context, op)
    found = f"{inside}.sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE"
    name, sql = ask(f"SELECT name, sql FROM {found}", op.table_name).one()  # noqa: S608 - quoted
    text = _sqlite_text.with_column(sql, op.column_name, change)
    if text is None:
        raise _cannot(op, f"the text of the table's definition does not contain the column: {sql}")
    change_it = f"UPDATE {inside}.sqlite_master SET sql = ? WHERE type = 'table' AND name = ?"  # noqa: S608 - quoted
    schema_version = ask(f"PRAGMA {inside}.schema_version").scalar()
    try:
        try:
            ask("PRAGMA writable_schema=ON")
            ask(change_it, text, name)
            ask(f"PRAGMA {inside}.schema_version={schema_version + 1}")  # makes every connection read it again
        finally:
            ask("PRAGMA writable_schema=RESET")
        after = _columns(context, op)
    except DBAPIError as error:
        raise _cannot(op, f"SQLite refuses the change of the definition ({error.orig})") from error
    key = op.column_name.lower()
    if after != {**before, key: {**before[key], **expected}}:
        raise _cannot(op, f"sessionkit cannot parse its definition: {sql}")


def _columns(context: MigrationContext, op: VersionColumnOp) -> dict[str, dict[str, Any]]:
    assert context.connection is not None
    quote = context.connection.dialect.identifier_preparer.quote_identifier
    info = context.connection.exec_driver_sql(
        f"PRAGMA {quote(op.schema or 'main')}.table_xinfo({quote(op.table_name)})"
    )
    return {row["name"].lower(): dict(row) for row in info.mappings()}


def _facts(context: MigrationContext, op: VersionColumnOp) -> dict[str, Any]:
    found = _columns(context, op).get(op.column_name.lower())
    if found is None:
        raise MigrationError(
            f"{op.asked} was asked for, but the table has no column {op.column_name!r}; add one with "
            "op.add_version_column()"
        )
    return found


def _cannot(op: VersionColumnOp, why: str) -> MigrationError:
    return MigrationError(f"{op.asked} was asked for, but {why}; nothing was changed; {op.instead}")


def _is_strict(context: MigrationContext, op: VersionColumnOp) -> bool:
    """Return whether a table is STRICT, and so accepts only SQLite's own types."""
    connection = context.connection
    if connection is None or context.as_sql:
        return False
    inside = connection.dialect.identifier_preparer.quote_identifier(op.schema or "main")
    query = f"SELECT sql FROM {inside}.sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE"  # noqa: S608 - quoted
    sql = connection.exec_driver_sql(query, (op.table_name,)).scalar()
    return isinstance(sql, str) and "STRICT" in sql[sql.rfind(")") + 1 :].upper()
