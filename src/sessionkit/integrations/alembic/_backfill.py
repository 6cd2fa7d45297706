"""Fills a column of a big PostgreSQL table while the application keeps writing to it.

1. ADD COLUMN without a default and without NOT NULL, then SET DEFAULT for rows from code that does not know the column: two
  changes of the catalogue. (ADD COLUMN with a default would fill it.)
2. UPDATE by ranges of the table's blocks, each range in its own transaction. It waits for a row no longer than the lock
  timeout, and releases its own rows before it tries again.
3. NOT NULL in three steps: a CHECK ... NOT VALID, which does not read the rows; VALIDATE CONSTRAINT, which reads the table
  without locking out writers; and SET NOT NULL, which then need not read it (PostgreSQL manual, ALTER TABLE, Notes).

Each step has its own transaction, because a transaction holds its locks until it ends. Each step can run again, because an
interrupted migration has already committed a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ._errors import MigrationError

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

    from ._ops import AddVersionColumnOp

LOCK_TIMEOUT = "sessionkit_lock_timeout"
"""The key under which `run_migrations` passes the lock timeout to the migration, in seconds."""

_TRIES = 100  # for one range of blocks, before the migration fails

# Rows written meanwhile may go to blocks that are already done, so it repeats until no NULL is left. On a partitioned table
# the ranges apply to every partition. From PostgreSQL 14 on, a TID range is read without an index and without the rest of the
# table.
_IN_BATCHES = """
DO $backfill$
DECLARE
    pages bigint;
    last bigint;
    page bigint;
    tries integer;
BEGIN
    -- A table that was never analyzed: 50 rows in a block are as good a guess as any.
    SELECT greatest(1, {batch_size} / CASE WHEN sum(reltuples) >= sum(relpages) AND sum(relpages) > 0
                                           THEN sum(reltuples)::numeric / sum(relpages) ELSE 50 END)::bigint
        INTO pages FROM pg_class WHERE oid IN (SELECT {literal}::regclass UNION SELECT relid FROM pg_partition_tree({literal}));
    LOOP
        SELECT max(pg_relation_size(relid)) / current_setting('block_size')::bigint
            INTO last FROM (SELECT {literal}::regclass AS relid UNION SELECT relid FROM pg_partition_tree({literal})) AS tree;
        page := 0;
        WHILE page <= last LOOP
            tries := 0;
            LOOP
                BEGIN
                    PERFORM set_config('lock_timeout', '{milliseconds}ms', true);
                    UPDATE {table} SET {column} = coalesce({value}, {initial})
                        WHERE {column} IS NULL
                        AND ctid >= format('(%s,0)', page)::tid AND ctid < format('(%s,0)', page + pages)::tid;
                    EXIT;
                EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                    tries := tries + 1;
                    IF tries >= {tries} THEN
                        RAISE;
                    END IF;
                END;
                COMMIT;  -- no snapshot is held while it waits
                PERFORM pg_sleep(0.05);
            END LOOP;
            COMMIT;
            page := page + pages;
        END LOOP;
        EXIT WHEN NOT EXISTS (SELECT FROM {table} WHERE {column} IS NULL);
    END LOOP;
END
$backfill$
"""


def fill_in_batches(context: MigrationContext, op: AddVersionColumnOp) -> None:
    """Add the column, fill it, and make it NOT NULL.

    Raises:
        MigrationError: the migration runs in a transaction that other code has begun, and so cannot commit.
    """
    if getattr(context, "_in_external_transaction", False):
        raise MigrationError(
            f"backfill= was asked for {op.table_name}.{op.column_name}, which commits batch by batch, but the "
            "migration runs in a transaction that was begun outside it; pass the command an engine or a connection "
            "without a transaction, or leave backfill= out"
        )
    # A separate dialect: the SQL has no parameters, so percent signs must not be doubled.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    preparer = dialect.identifier_preparer
    table = preparer.format_table(sa.table(op.table_name, schema=op.schema))
    column = preparer.quote(op.column_name)
    check = preparer.quote(f"{op.column_name}_is_there")
    initial = op.kind.initial_for("postgresql")
    asked = sa.text(op.backfill) if isinstance(op.backfill, str) else op.backfill
    assert asked is not None
    value = str(asked.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    type_ = op.kind.type.compile(dialect=dialect)
    seconds = context.opts.get(LOCK_TIMEOUT) or 2.0

    _execute(context, f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {type_}")
    _execute(context, f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {initial}")
    filling = _IN_BATCHES.format(
        table=table,
        literal="'" + table.replace("'", "''") + "'",
        column=column,
        value=value,
        initial=initial,
        batch_size=op.batch_size,
        milliseconds=max(1, round(seconds * 1000)),
        tries=_TRIES,
    )
    with context.autocommit_block():
        _execute(context, filling)
    _execute(context, f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {check}")
    _execute(context, f"ALTER TABLE {table} ADD CONSTRAINT {check} CHECK ({column} IS NOT NULL) NOT VALID")
    _commit(context)
    _execute(context, f"ALTER TABLE {table} VALIDATE CONSTRAINT {check}")
    _commit(context)
    _execute(context, f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL")
    _execute(context, f"ALTER TABLE {table} DROP CONSTRAINT {check}")


def _commit(context: MigrationContext) -> None:
    with context.autocommit_block():
        pass


def _execute(context: MigrationContext, statement: str) -> None:
    # A colon would start a parameter.
    context.impl.execute(sa.text(statement.strip().replace(":", r"\:")))
