"""Turns models that became versioned, or ceased to be, into operations, and operations into lines of a migration.

It runs after Alembic's comparison. It replaces what Alembic found about version columns, and leaves everything else alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from sqlalchemy import Column

from ._history import version_columns
from ._kinds import is_xmin, kind_by_default_name, kind_named, kind_of, kind_of_type, was_taken_over
from .operations import AddVersionColumnOp, AdoptVersionColumnOp, DropVersionColumnOp, ReleaseVersionColumnOp

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableSequence

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import MigrateOperation, UpgradeOps

    from ._ops import VersionColumnOp

INFO = "sessionkit_version"
"""The key in ``op.create_table(..., info=)`` that records the version columns, for the day they are dropped."""


def use_version_operations(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any) -> None:
    """Replace operations that Alembic found by operations on version columns."""
    for op in upgrade_ops.ops:
        if isinstance(op, ops.CreateTableOp):
            _create(op)
        elif isinstance(op, ops.ModifyTableOps):
            op.ops = [new for old in op.ops for new in _modified(context, old)]
    _adopt(context, upgrade_ops)
    upgrade_ops.ops = [op for op in upgrade_ops.ops if not (isinstance(op, ops.ModifyTableOps) and op.is_empty())]


def _create(op: ops.CreateTableOp) -> None:
    columns: MutableSequence[Any] = list(op.columns)
    marked = {}
    for place, column in enumerate(columns):
        if isinstance(column, Column) and (kind := kind_of(column)) is not None:
            marked[column.name] = kind.name
            # The model's own type would be rendered with a private name of sessionkit that the migration does not import.
            columns[place] = Column(
                column.name,
                kind.type,
                nullable=column.nullable,
                server_default=column.server_default,
                comment=column.comment,
            )
    # A system column of PostgreSQL: CREATE TABLE does not name it.
    op.columns = [column for column in columns if not (isinstance(column, Column) and is_xmin(column))]
    if marked:
        op.info = {**(op.info or {}), INFO: marked}


def _adopt(context: AutogenContext, upgrade_ops: UpgradeOps) -> None:
    """Let a class take over a column that it has maintained itself, even if the column looks the same afterwards."""
    columns = [(table, column) for table in context.sorted_tables for column in table.c if was_taken_over(column)]
    if not columns or context.connection is None:
        return
    said = version_columns(context.migration_context.script)
    for table, column in columns:
        schema = None if table.schema == context.dialect.default_schema_name else table.schema
        if (schema, table.name, column.name) in said or (table.schema, table.name, column.name) in said:
            continue
        if not context.run_object_filters(table, table.name, "table", False, None):
            continue  # include_object excludes it: it belongs to another database
        if not context.inspector.has_table(table.name, schema=schema):
            continue
        there = next(
            (c for c in context.inspector.get_columns(table.name, schema=schema) if c["name"] == column.name), None
        )
        if there is None or _is_as_a_version(there):
            continue
        of_table = _changes_of(upgrade_ops, table.name, schema)
        if any(isinstance(op, AdoptVersionColumnOp) and op.column_name == column.name for op in of_table.ops):
            continue
        of_table.ops.append(
            AdoptVersionColumnOp(
                table.name,
                column.name,
                schema=schema,
                existing_nullable=there["nullable"],
                existing_timezone=bool(getattr(there["type"], "timezone", False)),
            )
        )


def _is_as_a_version(there: Any) -> bool:
    """Return whether a database column needs no change. On SQLite, which has no time zones, this is never certain."""
    type_ = there["type"]
    return bool(
        not there["nullable"] and getattr(type_, "timezone", False) and getattr(type_, "precision", None) in {None, 6}
    )


def _changes_of(upgrade_ops: UpgradeOps, table: str, schema: str | None) -> ops.ModifyTableOps:
    for op in upgrade_ops.ops:
        if isinstance(op, ops.ModifyTableOps) and (op.schema, op.table_name) == (schema, table):
            return op
    new = ops.ModifyTableOps(table, [], schema=schema)
    upgrade_ops.ops.append(new)
    return new


def _modified(context: AutogenContext, op: MigrateOperation) -> Iterator[MigrateOperation]:
    """Return the operations that replace one operation on an existing table."""
    if isinstance(op, ops.AddColumnOp) and (kind := kind_of(op.column)) is not None:
        yield AddVersionColumnOp(op.table_name, op.column.name, kind=kind.name, schema=op.schema)
    elif isinstance(op, ops.DropColumnOp):
        yield _dropped(context, op)
    elif isinstance(op, ops.AlterColumnOp):
        yield from _altered(context, op)
    else:
        yield op


def _dropped(context: AutogenContext, op: ops.DropColumnOp) -> MigrateOperation:
    column = op.to_column(context.migration_context)
    kind = kind_by_default_name(column)
    if kind is None and kind_of_type(column.type) is not None:
        said = version_columns(context.migration_context.script).get((op.schema, op.table_name, op.column_name))
        kind = None if said is None else kind_named(said)
    if kind is None:
        return op
    return DropVersionColumnOp(op.table_name, op.column_name, kind=kind.name, schema=op.schema)


def _altered(context: AutogenContext, op: ops.AlterColumnOp) -> Iterator[MigrateOperation]:
    # Alembic leaves out the default schema, even if the model names it.
    default = context.dialect.default_schema_name
    asked = (op.schema or default, op.table_name)
    table = next((t for t in context.sorted_tables if (t.schema or default, t.name) == asked), None)
    column = None if table is None else next((c for c in table.c if c.name == op.column_name), None)
    kind = None if column is None else kind_of(column)
    if kind is None:
        yield op
        return
    before = None if op.existing_type is None else kind_of_type(op.existing_type)
    if op.modify_type is not None and before is not None and before is not kind:
        # From a count to a UUID: there is no cast, and the old versions are useless.
        yield DropVersionColumnOp(op.table_name, op.column_name, kind=before.name, schema=op.schema)
        yield AddVersionColumnOp(op.table_name, op.column_name, kind=kind.name, schema=op.schema)
        return
    if kind is before and (op.modify_type is not None or op.modify_nullable is False) and kind.name == "timestamp":
        yield AdoptVersionColumnOp(
            op.table_name,
            op.column_name,
            schema=op.schema,
            existing_nullable=op.modify_nullable is False or bool(op.existing_nullable),
            existing_timezone=bool(getattr(op.existing_type, "timezone", False)),
        )
        return
    if op.modify_server_default is None and column is not None and column.server_default is None:
        # The default was kept on purpose, for code that does not know the column.
        op.modify_server_default = False
    if op.has_changes():
        yield op


# As a line of a migration


def register() -> None:
    """Register how Alembic renders the operations."""
    # Not from alembic.autogenerate, which is only partly imported when Alembic loads its plugins.
    from alembic.autogenerate.render import renderers

    renderers.dispatch_for(AddVersionColumnOp)(_render_add)
    renderers.dispatch_for(DropVersionColumnOp)(_render_drop)
    renderers.dispatch_for(AdoptVersionColumnOp)(_render_adopt)
    renderers.dispatch_for(ReleaseVersionColumnOp)(_render_adopt)


def _render_add(context: AutogenContext, op: AddVersionColumnOp) -> str:
    return _render(context, op, f"kind={op.kind.name!r}, keep_default={op.keep_default!r}")


def _render_drop(context: AutogenContext, op: DropVersionColumnOp) -> str:
    return _render(context, op, f"kind={op.kind.name!r}")


def _render_adopt(context: AutogenContext, op: AdoptVersionColumnOp | ReleaseVersionColumnOp) -> str:
    was = f"existing_nullable={op.existing_nullable!r}, existing_timezone={op.existing_timezone!r}"
    return _render(context, op, f"kind={op.kind.name!r}, {was}")


def _render(context: AutogenContext, op: VersionColumnOp, options: str) -> str:
    # When the migration runs, nothing else may have imported this module, which adds the operation to `op`.
    context.imports.add("import sessionkit.integrations.alembic")
    if context._has_batch:
        return f"batch_op.{op.word}({str(op.column_name)!r}, {options})"
    prefix = context.opts.get("alembic_module_prefix") or ""
    schema = f", schema={str(op.schema)!r}" if op.schema else ""
    return f"{prefix}{op.word}({str(op.table_name)!r}, {str(op.column_name)!r}, {options}{schema})"
