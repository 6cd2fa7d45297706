"""The table of ``once=`` in a migration: ``op.create_once_table()`` and ``op.drop_once_table()``."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import MetaData

from ...commits import once_table

__all__ = ["CreateOnceTableOp", "DropOnceTableOp"]


class CreateOnceTableOp(MigrateOperation):
    """Create the table of ``once=`` and `commits.consumed`. See `create_once_table`."""

    def __init__(self, *, schema: str | None = None) -> None:
        self.schema = schema

    @classmethod
    def create_once_table(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Create the table ``sessionkit_once``, as `commits.create_table` does.

        Args:
            operations: given by Alembic.
            schema: the table's schema.

        SQL: ``CREATE TABLE sessionkit_once (...)``, ``CREATE INDEX ix_sessionkit_once_expires_at``.
        """
        operations.invoke(cls(schema=schema))

    def reverse(self) -> DropOnceTableOp:
        """Return what undoes it."""
        return DropOnceTableOp(schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic compares operations."""
        return ("create_once_table", self.schema)


class DropOnceTableOp(MigrateOperation):
    """Drop the table of ``once=``. See `drop_once_table`."""

    def __init__(self, *, schema: str | None = None) -> None:
        self.schema = schema

    @classmethod
    def drop_once_table(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Drop the table ``sessionkit_once``; what was done once may then be done again.

        Args:
            operations: given by Alembic.
            schema: the table's schema.

        SQL: ``DROP TABLE sessionkit_once``.
        """
        operations.invoke(cls(schema=schema))

    def reverse(self) -> CreateOnceTableOp:
        """Return what undoes it."""
        return CreateOnceTableOp(schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic compares operations."""
        return ("drop_once_table", self.schema)


def register() -> None:
    """Tell Alembic of the operations."""
    Operations.register_operation("create_once_table")(CreateOnceTableOp)
    Operations.register_operation("drop_once_table")(DropOnceTableOp)
    Operations.implementation_for(CreateOnceTableOp)(_create)
    Operations.implementation_for(DropOnceTableOp)(_drop)


def _create(operations: Operations, operation: CreateOnceTableOp) -> None:
    operations.impl.create_table(once_table(MetaData(), schema=operation.schema))


def _drop(operations: Operations, operation: DropOnceTableOp) -> None:
    operations.impl.drop_table(once_table(MetaData(), schema=operation.schema))
