"""Registers the operations with Alembic: ``_ops`` and ``_steps`` have those on version columns, ``_once`` the table of keys."""

from __future__ import annotations

from alembic.operations import BatchOperations, Operations

from . import _once, _steps
from ._once import CreateOnceTableOp, DropOnceTableOp
from ._ops import AddVersionColumnOp, AdoptVersionColumnOp, DropVersionColumnOp, ReleaseVersionColumnOp

__all__ = [
    "AddVersionColumnOp",
    "AdoptVersionColumnOp",
    "CreateOnceTableOp",
    "DropOnceTableOp",
    "DropVersionColumnOp",
    "ReleaseVersionColumnOp",
]


def register() -> None:
    """Register the operations with Alembic the way it registers its own."""
    for cls in (AddVersionColumnOp, DropVersionColumnOp, AdoptVersionColumnOp, ReleaseVersionColumnOp):
        Operations.register_operation(cls.word)(cls)
        BatchOperations.register_operation(cls.word, f"batch_{cls.word}")(cls)
    Operations.implementation_for(AddVersionColumnOp)(_add)
    Operations.implementation_for(DropVersionColumnOp)(_drop)
    Operations.implementation_for(AdoptVersionColumnOp)(_adopt)
    Operations.implementation_for(ReleaseVersionColumnOp)(_release)
    _once.register()


def _add(operations: Operations, operation: AddVersionColumnOp) -> None:
    _steps.of(operations, operation).add(operations, operation)


def _drop(operations: Operations, operation: DropVersionColumnOp) -> None:
    _steps.of(operations, operation).drop(operations, operation)


def _adopt(operations: Operations, operation: AdoptVersionColumnOp) -> None:
    _steps.of(operations, operation).adopt(operations, operation)


def _release(operations: Operations, operation: ReleaseVersionColumnOp) -> None:
    _steps.of(operations, operation).release(operations, operation)
