"""Registers the operations on version columns with Alembic: ``_ops`` defines them, ``_steps`` implements them."""

from __future__ import annotations

from alembic.operations import BatchOperations, Operations

from . import _steps
from ._ops import AddVersionColumnOp, AdoptVersionColumnOp, DropVersionColumnOp, ReleaseVersionColumnOp

__all__ = ["AddVersionColumnOp", "AdoptVersionColumnOp", "DropVersionColumnOp", "ReleaseVersionColumnOp"]


def register() -> None:
    """Register the operations with Alembic the way it registers its own."""
    for cls in (AddVersionColumnOp, DropVersionColumnOp, AdoptVersionColumnOp, ReleaseVersionColumnOp):
        Operations.register_operation(cls.word)(cls)
        BatchOperations.register_operation(cls.word, f"batch_{cls.word}")(cls)
    Operations.implementation_for(AddVersionColumnOp)(_add)
    Operations.implementation_for(DropVersionColumnOp)(_drop)
    Operations.implementation_for(AdoptVersionColumnOp)(_adopt)
    Operations.implementation_for(ReleaseVersionColumnOp)(_release)


def _add(operations: Operations, operation: AddVersionColumnOp) -> None:
    _steps.of(operations, operation).add(operations, operation)


def _drop(operations: Operations, operation: DropVersionColumnOp) -> None:
    _steps.of(operations, operation).drop(operations, operation)


def _adopt(operations: Operations, operation: AdoptVersionColumnOp) -> None:
    _steps.of(operations, operation).adopt(operations, operation)


def _release(operations: Operations, operation: ReleaseVersionColumnOp) -> None:
    _steps.of(operations, operation).release(operations, operation)
