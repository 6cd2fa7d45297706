"""The operations on version columns: what is asked for in ``_ops``, how it is done in ``_steps``, and both for Alembic."""

from __future__ import annotations

from alembic.operations import BatchOperations, Operations

from . import _steps
from ._ops import AddVersionColumnOp, DropVersionColumnOp

__all__ = ["AddVersionColumnOp", "DropVersionColumnOp"]


def register() -> None:
    """Tell Alembic of the operations, through the door that its own go through."""
    for cls, name in ((AddVersionColumnOp, "add_version_column"), (DropVersionColumnOp, "drop_version_column")):
        Operations.register_operation(name)(cls)
        BatchOperations.register_operation(name, f"batch_{name}")(cls)
    Operations.implementation_for(AddVersionColumnOp)(_add)
    Operations.implementation_for(DropVersionColumnOp)(_drop)


def _add(operations: Operations, operation: AddVersionColumnOp) -> None:
    _steps.of(operations).add(operations, operation)


def _drop(operations: Operations, operation: DropVersionColumnOp) -> None:
    column = operation.kind.column(operation.column_name)
    operations.impl.drop_column(operation.table_name, column, schema=operation.schema)
