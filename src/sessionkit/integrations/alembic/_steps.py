"""How a version column is added, dropped and taken over: one table entry per dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from . import _sqlite
from ._backfill import fill_in_batches
from ._batch import catch_up
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.ddl.impl import DefaultImpl
    from alembic.operations import Operations

    from ._ops import (
        AddVersionColumnOp,
        AdoptVersionColumnOp,
        DropVersionColumnOp,
        ReleaseVersionColumnOp,
        VersionColumnOp,
    )


@dataclass(frozen=True, slots=True)
class Steps:
    """How one dialect performs the operations."""

    add: Callable[[Operations, AddVersionColumnOp], None]
    drop: Callable[[Operations, DropVersionColumnOp], None]
    adopt: Callable[[Operations, AdoptVersionColumnOp], None]
    release: Callable[[Operations, ReleaseVersionColumnOp], None]


def of(operations: Operations, op: VersionColumnOp) -> Steps:
    """Return the entry for the database being migrated.

    Raises:
        MigrationError: the operation would change a different table than intended.
    """
    context = operations.migration_context
    if context.connection is not None and not context.as_sql:
        schemas = context.connection.get_execution_options().get("schema_translate_map") or {}
        schema = schemas.get(op.schema, op.schema)
        if schema != op.schema:
            raise MigrationError(
                f"{op.asked} was asked for with schema={op.schema!r}, which the schema_translate_map of the "
                f"connection maps to {schema!r}; Alembic's ALTER TABLE ignores that map and would change another "
                f"table of the same name; use schema={schema!r}"
            )
    return _TABLE.get(context.dialect.name, _OTHERS)


def _impl(operations: Operations) -> DefaultImpl:
    # Inside batch_alter_table() `operations.impl` only collects; see _batch.
    return operations.migration_context.impl


def _filled(operations: Operations, op: AddVersionColumnOp) -> None:
    """Add the column with the default that fills it; then overwrite the values if there is a backfill."""
    initial = op.kind.initial_for(operations.migration_context.dialect.name)
    _impl(operations).add_column(op.table_name, op.kind.column(op.column_name, initial), schema=op.schema)
    if op.backfill is not None:
        _impl(operations).execute(op.filling())


def _set_default(operations: Operations, op: AddVersionColumnOp, default: str | None) -> None:
    _impl(operations).alter_column(
        op.table_name,
        op.column_name,
        server_default=None if default is None else sa.text(default),
        schema=op.schema,
        existing_type=op.kind.type,
        existing_nullable=False,
    )


# Other dialects: ADD COLUMN with a default, which may be dropped afterwards


def _add(operations: Operations, op: AddVersionColumnOp) -> None:
    catch_up(operations, op, needs_all=op.backfill is not None)
    _filled(operations, op)
    if not op.keep_default:
        _set_default(operations, op, None)


def _drop(operations: Operations, op: DropVersionColumnOp) -> None:
    # In a batch it is collected like other operations.
    operations.impl.drop_column(op.table_name, op.kind.column(op.column_name), schema=op.schema)


def _adopt(operations: Operations, op: AdoptVersionColumnOp | ReleaseVersionColumnOp) -> None:
    raise MigrationError(
        f"{op.asked} was asked for, but sessionkit does not know how to change the type of a column on "
        f"{operations.migration_context.dialect.name}; use op.alter_column() there"
    )


_release = _adopt


# PostgreSQL


def _add_postgresql(operations: Operations, op: AddVersionColumnOp) -> None:
    catch_up(operations, op, needs_all=op.backfill is not None)
    # PostgreSQL 11 and later keep a default that is not volatile in the catalogue for existing rows: no row is written or
    # even read, whatever the size of the table.
    if op.backfill is None:
        _filled(operations, op)
    else:
        fill_in_batches(operations.migration_context, op)
    kept = op.kind.kept_on.get("postgresql")
    if not op.keep_default:
        _set_default(operations, op, None)
    elif kept is not None:
        _set_default(operations, op, kept)


def _adopt_postgresql(operations: Operations, op: AdoptVersionColumnOp) -> None:
    catch_up(operations, op, needs_all=True)
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    asked: Any = sa.text(op.backfill) if isinstance(op.backfill, str) else op.backfill
    instead = [] if asked is None else [str(asked.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))]
    column = dialect.identifier_preparer.quote(op.column_name)
    is_now = column if op.existing_timezone else f"{column} AT TIME ZONE {_literal(op.timezone)}"
    # The change of type fills the column, because an UPDATE would fire triggers. The default is dropped first: PostgreSQL
    # would convert it in the time zone of the session.
    _alter(
        operations,
        op,
        "DROP DEFAULT",
        f"TYPE TIMESTAMP WITH TIME ZONE USING coalesce({', '.join([is_now, *instead, 'now()'])})",
        "SET DEFAULT now()",
        "SET NOT NULL",
    )


def _release_postgresql(operations: Operations, op: ReleaseVersionColumnOp) -> None:
    catch_up(operations, op, needs_all=True)
    zone = _literal(op.timezone)
    column = postgresql.dialect().identifier_preparer.quote(op.column_name)  # type: ignore[no-untyped-call]
    changes = []
    if not op.existing_timezone:
        changes = [
            "DROP DEFAULT",
            f"TYPE TIMESTAMP WITHOUT TIME ZONE USING {column} AT TIME ZONE {zone}",
            f"SET DEFAULT (now() AT TIME ZONE {zone})",
        ]
    if op.existing_nullable:
        changes.append("DROP NOT NULL")
    if changes:
        _alter(operations, op, *changes)


def _alter(operations: Operations, op: VersionColumnOp, *changes: str) -> None:
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    table = preparer.format_table(sa.table(op.table_name, schema=op.schema))
    column = preparer.quote(op.column_name)
    statement = f"ALTER TABLE {table} {', '.join(f'ALTER COLUMN {column} {change}' for change in changes)}"
    # A colon would start a parameter.
    _impl(operations).execute(sa.text(statement.replace(":", r"\:")))


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


_OTHERS = Steps(_add, _drop, _adopt, _release)
_TABLE = {
    "postgresql": Steps(_add_postgresql, _drop, _adopt_postgresql, _release_postgresql),
    "sqlite": Steps(_sqlite.add, _sqlite.drop, _sqlite.adopt, _sqlite.release),
}
