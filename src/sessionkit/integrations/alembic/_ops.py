"""The operations on version columns: what is asked for. How it is done is in ``_steps``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import BatchOperations, MigrateOperation, Operations
from sqlalchemy import ClauseElement

from ._errors import MigrationError
from ._kinds import ColumnKind, KindName, kind_named

if TYPE_CHECKING:
    from alembic.operations.batch import BatchOperationsImpl
    from sqlalchemy import Column

__all__ = ["AddVersionColumnOp", "DropVersionColumnOp"]


class AddVersionColumnOp(MigrateOperation):
    """Add a version column to a table that may be full. See `add_version_column`."""

    def __init__(
        self,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        schema: str | None = None,
        keep_default: bool = True,
        backfill: str | ClauseElement | None = None,
        batch_size: int = 5_000,
    ) -> None:
        self.kind: ColumnKind = kind_named(kind)
        self.table_name = _name("table_name", table_name)
        self.column_name = _name("column_name", self.kind.kind.attribute if column_name is None else column_name)
        self.schema = schema
        _check_options(keep_default, backfill, batch_size)
        self.keep_default = keep_default
        self.backfill = backfill
        self.batch_size = batch_size

    @classmethod
    def add_version_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        schema: str | None = None,
        keep_default: bool = True,
        backfill: str | ClauseElement | None = None,
        batch_size: int = 5_000,
    ) -> None:
        """Add the column of a model that became versioned: NOT NULL at once, on a full table too, without a rewrite.

        The rows that are there get a constant: 1, the time of the migration, or one new UUID for all of them (a
        version need only differ from the next one in its own row). That is the column's default for a moment, so that
        PostgreSQL writes no row and holds its lock for milliseconds.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column, where the model has a ``__version_column__``; default: that of the kind.
            kind: "count" (`Versioned`), "timestamp" (`TimestampVersioned`) or "uuid" (`UUIDVersioned`).
                `XminVersioned` has no column, so there is nothing to migrate.
            schema: the table's schema.
            keep_default: leave a default on the column, so that code which does not know the column yet can go on
                inserting rows. False drops it; on SQLite that copies the table.
            backfill: an SQL expression for the rows that are there, such as ``"changed_at"``, instead of the
                constant; where it is NULL they get that. On PostgreSQL the column is then added without NOT NULL and
                filled in batches that commit one by one, and NOT NULL comes last, by a CHECK that is validated
                without locking out writers. What comes before it in the migration is committed with it, and a
                migration that was interrupted can be run again.
            batch_size: about how many rows a batch of `backfill` changes.

        Raises:
            MigrationError: an argument has a value that it cannot have, or the database cannot do what is asked.

        SQL, on PostgreSQL::

            ALTER TABLE orders ADD COLUMN version_id INTEGER DEFAULT 1 NOT NULL
        """
        operations.invoke(
            cls(
                table_name,
                column_name,
                kind=kind,
                schema=schema,
                keep_default=keep_default,
                backfill=backfill,
                batch_size=batch_size,
            )
        )

    @classmethod
    def batch_add_version_column(
        cls,
        operations: BatchOperations,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        keep_default: bool = True,
        backfill: str | ClauseElement | None = None,
        batch_size: int = 5_000,
    ) -> None:
        """Do the same within ``op.batch_alter_table()``."""
        impl: BatchOperationsImpl = _batch(operations)
        operations.invoke(
            cls(
                impl.table_name,
                column_name,
                kind=kind,
                schema=impl.schema,
                keep_default=keep_default,
                backfill=backfill,
                batch_size=batch_size,
            )
        )

    def reverse(self) -> DropVersionColumnOp:
        """Return the operation that undoes it."""
        return DropVersionColumnOp(self.table_name, self.column_name, kind=self.kind.name, schema=self.schema)

    def column(self) -> Column[Any]:
        """Return the column as a model has it."""
        return self.kind.column(self.column_name)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it: a column is added."""
        return ("add_column", self.schema, self.table_name, self.column())


class DropVersionColumnOp(MigrateOperation):
    """Drop a version column. See `drop_version_column`."""

    def __init__(
        self,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        schema: str | None = None,
    ) -> None:
        self.kind: ColumnKind = kind_named(kind)
        self.table_name = _name("table_name", table_name)
        self.column_name = _name("column_name", self.kind.kind.attribute if column_name is None else column_name)
        self.schema = schema

    @classmethod
    def drop_version_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        schema: str | None = None,
    ) -> None:
        """Drop the column of a model that is no longer versioned.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column; default: that of the kind.
            kind: as in ``op.add_version_column``.
            schema: the table's schema.

        SQL::

            ALTER TABLE orders DROP COLUMN version_id
        """
        operations.invoke(cls(table_name, column_name, kind=kind, schema=schema))

    @classmethod
    def batch_drop_version_column(
        cls, operations: BatchOperations, column_name: str | None = None, *, kind: KindName = "count"
    ) -> None:
        """Do the same within ``op.batch_alter_table()``."""
        impl: BatchOperationsImpl = _batch(operations)
        operations.invoke(cls(impl.table_name, column_name, kind=kind, schema=impl.schema))

    def reverse(self) -> AddVersionColumnOp:
        """Return the operation that undoes it."""
        return AddVersionColumnOp(self.table_name, self.column_name, kind=self.kind.name, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it: a column is removed."""
        return ("remove_column", self.schema, self.table_name, self.kind.column(self.column_name))


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise MigrationError(f"{what}={name!r} was given; it is a name")
    return name


def _check_options(keep_default: Any, backfill: Any, batch_size: Any) -> None:
    if not isinstance(keep_default, bool):
        raise MigrationError(f"keep_default={keep_default!r} was given; it is True or False")
    if backfill is not None and not isinstance(backfill, str | ClauseElement):
        raise MigrationError(f"backfill={backfill!r} was given; it is an SQL expression, as text or as SQLAlchemy's")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise MigrationError(f"batch_size={batch_size!r} was given; it is a number of rows, 1 or more")


def _batch(operations: BatchOperations) -> Any:
    return operations.impl
