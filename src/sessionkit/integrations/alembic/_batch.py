"""Version columns inside ``op.batch_alter_table()``, which collects operations and runs them at its end.

An operation on a version column runs at once: a copy of the table would have no value for a new column, and SQLite can add
and drop a column without a copy. So collected operations that must come before it run first. The rest of the batch may still
copy the table; this is refused if the copy would lose something.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.exc import DBAPIError

from . import _sqlite_copies
from ._errors import MigrationError

if TYPE_CHECKING:
    from alembic.operations import Operations

    from ._ops import VersionColumnOp

_BATCH = "sessionkit_batch"


def batch_of(operations: Operations) -> Any:
    """Return the object in which Alembic collects operations, or None outside a batch."""
    from alembic.operations.batch import BatchOperationsImpl

    return operations.impl if isinstance(cast("Any", operations.impl), BatchOperationsImpl) else None


def copies(batch: Any) -> bool:
    """Return whether the operations collected so far copy the table."""
    return bool(batch.batch) and batch._should_recreate()


def catch_up(operations: Operations, op: VersionColumnOp, *, needs_all: bool) -> None:
    """Run the collected operations that must come before an operation.

    Args:
        operations: the batch operations, or the plain ones.
        op: the operation that comes next.
        needs_all: whether it may depend on more than its own column.

    Raises:
        MigrationError: the table would be copied twice, the second time without the options.
    """
    batch = batch_of(operations)
    if batch is None or not batch.batch:
        return
    if copies(batch):
        if not needs_all and not any(_names(each, op.column_name) for each in batch.batch):
            return
        if options := said_of_the_copy(batch):
            raise MigrationError(
                f"{op.asked} comes after other changes of its column in op.batch_alter_table({op.table_name!r}, "
                f"{', '.join(f'{option}=' for option in options)}), so the table would be copied twice, the second "
                "time without these options; put it first in another op.batch_alter_table()"
            )
    type(batch).flush(batch)
    batch.batch.clear()
    if batch.recreate == "always":
        batch.recreate = "auto"  # the forced copy has been made


def whole(operations: Operations) -> None:
    """Have all of a batch be done, or nothing of it: what comes after an operation of it may fail, as a copy may.

    The savepoint ends with the batch. If the body of the batch fails, it is the caller's rollback that undoes it: Alembic
    does not say that a batch was left.
    """
    batch, connection = batch_of(operations), operations.migration_context.connection
    if batch is None or connection is None or operations.migration_context.as_sql or "flush" in vars(batch):
        return
    begun = None if connection.in_transaction() else connection.begin()
    connection.exec_driver_sql(f"SAVEPOINT {_BATCH}")

    def flush() -> None:
        try:
            type(batch).flush(batch)
        except BaseException:
            with suppress(DBAPIError):  # after an error such as a full disk SQLite has already rolled everything back
                connection.exec_driver_sql(f"ROLLBACK TO {_BATCH}")
                connection.exec_driver_sql(f"RELEASE {_BATCH}")
            if begun is not None:
                begun.rollback()
            raise
        connection.exec_driver_sql(f"RELEASE {_BATCH}")
        if begun is not None:
            begun.commit()

    batch.flush = flush


def said_of_the_copy(batch: Any) -> list[str]:
    """Return the options that apply to one copy only."""
    options = ("copy_from", "table_args", "table_kwargs", "partial_reordering")
    return [option for option in options if getattr(batch, option)]


def guard(operations: Operations, op: VersionColumnOp) -> None:
    """Refuse a copy that a batch makes on SQLite, before it begins, if it would lose something.

    Raises:
        MigrationError: at once, if the batch was given the definition of the table: then nothing shows when the copy begins.
    """
    batch, connection = batch_of(operations), operations.migration_context.connection
    if batch is None or connection is None or operations.migration_context.as_sql:
        return
    watch = _Guard(connection, op.table_name, op.schema)
    if batch.copy_from is not None:
        watch()
    # Alembic reads the definition of the table just before the copy.
    listeners: list[Any] = batch.reflect_kwargs["listeners"]
    if not any(isinstance(listener, _Guard) for _, listener in listeners):
        batch.reflect_kwargs["listeners"] = [*listeners, ("column_reflect", watch)]


class _Guard:
    def __init__(self, connection: Any, table: str, schema: str | None) -> None:
        self._connection = connection
        self._table = table
        self._schema = schema

    def __call__(self, *_: Any, **__: Any) -> None:
        if found := _sqlite_copies.what_is_lost(self._connection, self._table, self._schema):
            raise MigrationError(
                f"op.batch_alter_table({self._table!r}) asks for changes that SQLite can only make by copying the "
                f"table and dropping the old one, but {found[0]}; nothing was changed; {found[1]}"
            )


def _names(collected: Any, column: str) -> bool:
    """Return whether a collected operation concerns a column."""
    name, arguments, options = collected
    if name == "alter_column":
        return column in (arguments[1], options.get("name"))
    return name in ("add_column", "drop_column") and arguments[1].name == column
