"""The operations on version columns. ``_steps`` implements them."""

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
    """What the operations on a table's version column share.

    Attributes:
        kind: the kind of the column.
        table_name: the table.
        column_name: the column.
        schema: the table's schema.
    """

    word: str
    instead: str
    """What to do instead if the database cannot do it."""

    def __init__(self, table_name: Any, column_name: Any, kind: Any, schema: str | None) -> None:
        self.kind: ColumnKind = kind_named(kind)
        self.table_name = _name("table_name", table_name)
        self.column_name = _name("column_name", self.kind.kind.attribute if column_name is None else column_name)
        self.schema = schema

    @property
    def asked(self) -> str:
        """Return the operation as a migration writes it."""
        return f"op.{self.word}({self.table_name!r}, {self.column_name!r})"


class AddVersionColumnOp(VersionColumnOp):
    """Add a version column to a table that may have rows. See `add_version_column`."""

    word = "add_version_column"
    instead = "use keep_default=True"

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
        """Add the column of a model that became versioned: NOT NULL at once, even on a table with rows, without a rewrite.

        Existing rows get a constant: 1, the time of the migration, or one new UUID for all of them (a version need only
        differ from the next one in its own row). This constant is first the column's default, so PostgreSQL writes no row and
        holds its lock for milliseconds.

        Args:
            operations: supplied by Alembic.
            table_name: the table.
            column_name: the column, if the model has a ``__version_column__``; default: the kind's default name.
            kind: "count" (`Versioned`), "timestamp" (`TimestampVersioned`) or "uuid" (`UUIDVersioned`).
                `XminVersioned` has no column, so there is nothing to migrate.
            schema: the table's schema.
            keep_default: keep a default on the column, so that code that does not know the column yet can still insert rows.
                False drops it; on SQLite this writes every row once.
            backfill: an SQL expression for existing rows, such as ``"changed_at"``, instead of the constant; rows where it is
                NULL get the constant. On PostgreSQL the column is then added without NOT NULL and filled in batches that
                commit one by one. NOT NULL comes last, through a CHECK that is validated without locking out writers. Earlier
                steps of the migration are committed too, and an interrupted migration can run again.
            batch_size: the approximate number of rows in a batch of `backfill`.

        Raises:
            MigrationError: an argument has an invalid value, or the database does not support the operation.

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
        """Do the same inside ``op.batch_alter_table()``, after the operations before it."""
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
        """Return the column as in a model."""
        return self.kind.column(self.column_name)

    def filling(self) -> Update:
        """Return the UPDATE that sets each row to `backfill`, or to the constant where that is NULL."""
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
    instead = "first drop everything that refers to the column"

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
            operations: supplied by Alembic.
            table_name: the table.
            column_name: the column; default: the kind's default name.
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
        """Do the same inside ``op.batch_alter_table()``."""
        impl: BatchOperationsImpl = _batch(operations)
        operations.invoke(cls(impl.table_name, column_name, kind=kind, schema=impl.schema))

    def reverse(self) -> AddVersionColumnOp:
        """Return the operation that undoes it."""
        return AddVersionColumnOp(self.table_name, self.column_name, kind=self.kind.name, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it: a column is removed."""
        return ("remove_column", self.schema, self.table_name, self.kind.column(self.column_name))


class AdoptVersionColumnOp(VersionColumnOp):
    """Turn a column that a class has maintained itself into its version. See `adopt_version_column`."""

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
            raise MigrationError(f"kind={kind!r} was asked for in {self.asked}, which only works with kind='timestamp'")
        for name, value in (("existing_nullable", existing_nullable), ("existing_timezone", existing_timezone)):
            if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise MigrationError(f"{name}={value!r} was given; use True or False")
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
        """Turn an ``updated_at`` that the code has maintained itself into the version of a `TimestampVersioned` class.

        The column becomes NOT NULL, and holds times with microseconds in UTC. Its present times stay; rows without a time get
        the time of the migration. Its default becomes the current time, so that code that does not know about versions can
        still insert rows. No trigger fires.

        Args:
            operations: supplied by Alembic.
            table_name: the table.
            column_name: the column.
            kind: "timestamp", the only one possible.
            schema: the table's schema.
            existing_nullable: whether the column can be NULL today; a downgrade restores that.
            existing_timezone: whether the column is a TIMESTAMP WITH TIME ZONE today.
            timezone: if it is not, the time zone of its values, such as "Europe/Berlin". On SQLite only "UTC".
            backfill: an SQL expression for rows without a time, such as ``"created_at"``.

        PostgreSQL rewrites the table under a lock that blocks readers and writers.

        Raises:
            MigrationError: an argument has an invalid value, or the database does not support the operation.

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
        """Do the same inside ``op.batch_alter_table()``, after the operations before it."""
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
    """Restore a column to what it was before it was a version. See `release_version_column`."""

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
        """Undo ``op.adopt_version_column()``: restore the type and whether it can be NULL. Its times and a default stay.

        Args:
            operations: supplied by Alembic.
            table_name: the table.
            column_name: the column.
            kind: "timestamp".
            schema: the table's schema.
            existing_nullable: as in ``op.adopt_version_column()``: whether the column could be NULL before that.
            existing_timezone: whether the column was a TIMESTAMP WITH TIME ZONE before that.
            timezone: if it was not, the time zone of its values.
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
        """Do the same inside ``op.batch_alter_table()``, after the operations before it."""
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
        raise MigrationError(f"{what}={name!r} was given; give a name")
    return name


def _check_options(keep_default: Any, backfill: Any, batch_size: Any) -> None:
    if not isinstance(keep_default, bool):
        raise MigrationError(f"keep_default={keep_default!r} was given; use True or False")
    _check_backfill(backfill)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise MigrationError(f"batch_size={batch_size!r} was given; give a number of rows, 1 or more")


def _check_backfill(backfill: Any) -> None:
    if backfill is not None and not isinstance(backfill, str | ClauseElement):
        raise MigrationError(f"backfill={backfill!r} was given; give an SQL expression, as text or from SQLAlchemy")


def _expression(sql: str | ClauseElement | None) -> Any:
    return text(sql) if isinstance(sql, str) else sql


def _batch(operations: BatchOperations) -> Any:
    return operations.impl
