"""The operations on version columns: what is asked for. How it is done is in ``_steps``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import BatchOperations, MigrateOperation, Operations
from sqlalchemy import ClauseElement, func, table, text
from sqlalchemy import column as column_named

from ._errors import MigrationError
from ._kinds import ColumnKind, KindName, kind_named

if TYPE_CHECKING:
    from alembic.operations.batch import BatchOperationsImpl
    from sqlalchemy import Column, Update

__all__ = ["AddVersionColumnOp", "AdoptVersionColumnOp", "DropVersionColumnOp", "ReleaseVersionColumnOp"]


class VersionColumnOp(MigrateOperation):
    """An operation on the version column of a table: what they share.

    Attributes:
        kind: what the column is.
        table_name: the table.
        column_name: the column.
        schema: the table's schema.
    """

    word: str
    instead: str
    """What to do where the database does not do it."""

    def __init__(self, table_name: Any, column_name: Any, kind: Any, schema: str | None) -> None:
        self.kind: ColumnKind = kind_named(kind)
        self.table_name = _name("table_name", table_name)
        self.column_name = _name("column_name", self.kind.kind.attribute if column_name is None else column_name)
        self.schema = schema

    @property
    def asked(self) -> str:
        """Return the operation as it is written."""
        return f"op.{self.word}({self.table_name!r}, {self.column_name!r})"


class AddVersionColumnOp(VersionColumnOp):
    """Add a version column to a table that may be full. See `add_version_column`."""

    word = "add_version_column"
    instead = "say keep_default=True"

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
        super().__init__(table_name, column_name, kind, schema)
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
                inserting rows. False drops it; on SQLite that writes every row once.
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
        """Do the same within ``op.batch_alter_table()``, after what stands before it there."""
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

    def filling(self) -> Update:
        """Return the UPDATE that gives each row the value of `backfill`, or the one that it has by default."""
        filled = table(self.table_name, column_named(self.column_name), schema=self.schema)
        version = filled.c[self.column_name]
        asked = _expression(self.backfill)
        return filled.update().values({version: version if asked is None else func.coalesce(asked, version)})

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it: a column is added."""
        return ("add_column", self.schema, self.table_name, self.column())


class DropVersionColumnOp(VersionColumnOp):
    """Drop a version column. See `drop_version_column`."""

    word = "drop_version_column"
    instead = "drop first what speaks of the column"

    def __init__(
        self,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "count",
        schema: str | None = None,
    ) -> None:
        super().__init__(table_name, column_name, kind, schema)

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


class AdoptVersionColumnOp(VersionColumnOp):
    """Have a column that a class has kept by itself be its version. See `adopt_version_column`."""

    word = "adopt_version_column"
    instead = "change the column by op.batch_alter_table(), and leave this operation out"

    def __init__(
        self,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        schema: str | None = None,
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
        backfill: str | ClauseElement | None = None,
    ) -> None:
        super().__init__(table_name, column_name, kind, schema)
        if self.kind.name != "timestamp":
            raise MigrationError(f"kind={kind!r} was asked for in {self.asked}; it is only for kind='timestamp'")
        for name, value in (("existing_nullable", existing_nullable), ("existing_timezone", existing_timezone)):
            if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise MigrationError(f"{name}={value!r} was given; it is True or False")
        _check_backfill(backfill)
        self.existing_nullable = existing_nullable
        self.existing_timezone = existing_timezone
        self.timezone = _name("timezone", timezone)
        self.backfill = backfill

    @classmethod
    def adopt_version_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        schema: str | None = None,
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
        backfill: str | ClauseElement | None = None,
    ) -> None:
        """Have an ``updated_at`` that the code has kept by itself be the version of a `TimestampVersioned` class.

        The column becomes NOT NULL, and holds times with microseconds in UTC. What it holds already stays; rows without
        a time get that of the migration. Its default becomes the current time, so that code which does not know of
        versions can go on inserting rows. No trigger fires.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column.
            kind: "timestamp"; there is no other.
            schema: the table's schema.
            existing_nullable: the column can be NULL today; a downgrade has it so again.
            existing_timezone: the column is a TIMESTAMP WITH TIME ZONE today.
            timezone: where it is not, the zone of the times in it, such as "Europe/Berlin". On SQLite only "UTC".
            backfill: an SQL expression for rows without a time, such as ``"created_at"``.

        On PostgreSQL the table is rewritten, under a lock that shuts out everybody.

        Raises:
            MigrationError: an argument has a value that it cannot have, or the database cannot do what is asked.

        SQL, on PostgreSQL::

            ALTER TABLE orders ALTER COLUMN updated_at DROP DEFAULT,
                ALTER COLUMN updated_at TYPE TIMESTAMP WITH TIME ZONE
                    USING coalesce(updated_at AT TIME ZONE 'UTC', now()),
                ALTER COLUMN updated_at SET DEFAULT now(), ALTER COLUMN updated_at SET NOT NULL
        """
        operations.invoke(
            cls(
                table_name,
                column_name,
                kind=kind,
                schema=schema,
                existing_nullable=existing_nullable,
                existing_timezone=existing_timezone,
                timezone=timezone,
                backfill=backfill,
            )
        )

    @classmethod
    def batch_adopt_version_column(
        cls,
        operations: BatchOperations,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
        backfill: str | ClauseElement | None = None,
    ) -> None:
        """Do the same within ``op.batch_alter_table()``, after what stands before it there."""
        impl: BatchOperationsImpl = _batch(operations)
        operations.invoke(
            cls(
                impl.table_name,
                column_name,
                kind=kind,
                schema=impl.schema,
                existing_nullable=existing_nullable,
                existing_timezone=existing_timezone,
                timezone=timezone,
                backfill=backfill,
            )
        )

    def reverse(self) -> ReleaseVersionColumnOp:
        """Return the operation that undoes it."""
        return ReleaseVersionColumnOp(
            self.table_name,
            self.column_name,
            kind=self.kind.name,
            schema=self.schema,
            existing_nullable=self.existing_nullable,
            existing_timezone=self.existing_timezone,
            timezone=self.timezone,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it."""
        return (self.word, self.schema, self.table_name, self.kind.column(self.column_name))


class ReleaseVersionColumnOp(VersionColumnOp):
    """Have a column be as it was before it was a version. See `release_version_column`."""

    word = "release_version_column"
    instead = "leave the column as it is"

    def __init__(
        self,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        schema: str | None = None,
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
    ) -> None:
        super().__init__(table_name, column_name, kind, schema)
        self.existing_nullable = existing_nullable
        self.existing_timezone = existing_timezone
        self.timezone = _name("timezone", timezone)

    @classmethod
    def release_version_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        schema: str | None = None,
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
    ) -> None:
        """Undo ``op.adopt_version_column()``: the type and NULL as they were. Its times stay, and so does a default.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column.
            kind: "timestamp".
            schema: the table's schema.
            existing_nullable: as in ``op.adopt_version_column()``: before it, the column could be NULL.
            existing_timezone: before it, the column was a TIMESTAMP WITH TIME ZONE.
            timezone: where it was not, the zone of the times in it.
        """
        operations.invoke(
            cls(
                table_name,
                column_name,
                kind=kind,
                schema=schema,
                existing_nullable=existing_nullable,
                existing_timezone=existing_timezone,
                timezone=timezone,
            )
        )

    @classmethod
    def batch_release_version_column(
        cls,
        operations: BatchOperations,
        column_name: str | None = None,
        *,
        kind: KindName = "timestamp",
        existing_nullable: bool = True,
        existing_timezone: bool = False,
        timezone: str = "UTC",
    ) -> None:
        """Do the same within ``op.batch_alter_table()``, after what stands before it there."""
        impl: BatchOperationsImpl = _batch(operations)
        operations.invoke(
            cls(
                impl.table_name,
                column_name,
                kind=kind,
                schema=impl.schema,
                existing_nullable=existing_nullable,
                existing_timezone=existing_timezone,
                timezone=timezone,
            )
        )

    def reverse(self) -> AdoptVersionColumnOp:
        """Return the operation that undoes it."""
        return AdoptVersionColumnOp(
            self.table_name,
            self.column_name,
            kind=self.kind.name,
            schema=self.schema,
            existing_nullable=self.existing_nullable,
            existing_timezone=self.existing_timezone,
            timezone=self.timezone,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it."""
        return (self.word, self.schema, self.table_name, self.kind.column(self.column_name))


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise MigrationError(f"{what}={name!r} was given; it is a name")
    return name


def _check_options(keep_default: Any, backfill: Any, batch_size: Any) -> None:
    if not isinstance(keep_default, bool):
        raise MigrationError(f"keep_default={keep_default!r} was given; it is True or False")
    _check_backfill(backfill)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise MigrationError(f"batch_size={batch_size!r} was given; it is a number of rows, 1 or more")


def _check_backfill(backfill: Any) -> None:
    if backfill is not None and not isinstance(backfill, str | ClauseElement):
        raise MigrationError(f"backfill={backfill!r} was given; it is an SQL expression, as text or as SQLAlchemy's")


def _expression(sql: str | ClauseElement | None) -> Any:
    return text(sql) if isinstance(sql, str) else sql


def _batch(operations: BatchOperations) -> Any:
    return operations.impl
