"""How a version column is added: one table entry per dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from ._backfill import fill_in_batches
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.ddl.impl import DefaultImpl
    from alembic.operations import Operations

    from ._ops import AddVersionColumnOp


@dataclass(frozen=True, slots=True)
class Steps:
    """How one dialect adds a version column."""

    add: Callable[[Operations, AddVersionColumnOp], None]


def of(operations: Operations) -> Steps:
    """Return the entry of the database that is migrated."""
    return _TABLE.get(operations.migration_context.dialect.name, _OTHERS)


def _impl(operations: Operations) -> DefaultImpl:
    # Within batch_alter_table() `operations.impl` only collects what is to be done at its end. The column has to be
    # there before, with a default, since the copy of a table has no value for a column that is new in it.
    return operations.migration_context.impl


def _filled(operations: Operations, op: AddVersionColumnOp) -> str:
    """Add the column with the default that fills it; then overwrite that, where a back-fill was asked for."""
    initial = op.kind.initial_for(operations.migration_context.dialect.name)
    _impl(operations).add_column(op.table_name, op.kind.column(op.column_name, initial), schema=op.schema)
    if op.backfill is not None:
        table = sa.table(op.table_name, sa.column(op.column_name), schema=op.schema)
        asked: Any = sa.text(op.backfill) if isinstance(op.backfill, str) else op.backfill
        version = table.c[op.column_name]
        _impl(operations).execute(table.update().values({version: sa.func.coalesce(asked, version)}))
    return initial


def _set_default(operations: Operations, op: AddVersionColumnOp, default: str | None) -> None:
    _impl(operations).alter_column(
        op.table_name,
        op.column_name,
        server_default=None if default is None else sa.text(default),
        schema=op.schema,
        existing_type=op.kind.type,
        existing_nullable=False,
    )


# Others: ADD COLUMN with a default, which may be dropped after it


def _add(operations: Operations, op: AddVersionColumnOp) -> None:
    _filled(operations, op)
    if not op.keep_default:
        _set_default(operations, op, None)


# PostgreSQL


def _add_postgresql(operations: Operations, op: AddVersionColumnOp) -> None:
    # A default that is not volatile is kept in the catalogue for the rows that are there (PostgreSQL 11 and later): no
    # row is written or even read, whatever the size of the table.
    if op.backfill is None:
        _filled(operations, op)
    else:
        fill_in_batches(operations.migration_context, op)
    kept = op.kind.kept_on.get("postgresql")
    if not op.keep_default:
        _set_default(operations, op, None)
    elif kept is not None:
        _set_default(operations, op, kept)


# SQLite


def _add_sqlite(operations: Operations, op: AddVersionColumnOp) -> None:
    batch = _batch_of(operations)
    if not op.keep_default and operations.migration_context.as_sql and (batch is None or batch.copy_from is None):
        raise MigrationError(
            f"keep_default=False was asked for {op.table_name}.{op.column_name}, but SQLite drops a default only by "
            "copying the table, whose definition is not known in --sql mode; say keep_default=True, or hand the "
            "definition to op.batch_alter_table(..., copy_from=table)"
        )
    initial = _filled(operations, op)
    if batch is not None and batch.copy_from is not None:
        # The table that the batch copies has the column by now.
        definition = batch.copy_from.to_metadata(sa.MetaData())
        definition.append_column(op.kind.column(op.column_name, initial))
        batch.copy_from = definition
    if op.keep_default:
        return
    if batch is not None:
        _drop_default_in(operations, op)
    else:
        with operations.batch_alter_table(op.table_name, schema=op.schema) as new_batch:
            _drop_default_in(new_batch, op)


def _drop_default_in(batch: Any, op: AddVersionColumnOp) -> None:
    batch.impl.alter_column(
        op.table_name,
        op.column_name,
        server_default=None,
        schema=op.schema,
        existing_type=op.kind.type,
        existing_nullable=False,
    )


def _batch_of(operations: Operations) -> Any:
    from alembic.operations.batch import BatchOperationsImpl

    return operations.impl if isinstance(cast("Any", operations.impl), BatchOperationsImpl) else None


_OTHERS = Steps(_add)
_TABLE = {"postgresql": Steps(_add_postgresql), "sqlite": Steps(_add_sqlite)}
