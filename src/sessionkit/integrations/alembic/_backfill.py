"""Filling a column of a big PostgreSQL table while the application goes on writing to it.

1. ADD COLUMN without a default and without NOT NULL, and then a default for the rows of code that does not know the
   column: two changes of the catalogue. (ADD COLUMN with a default would fill it.)
2. UPDATE by ranges of the table's blocks, each range in a transaction of its own. It waits for a row no longer than
   the lock timeout, and gives its own rows free before it tries again.
3. NOT NULL by a CHECK ... NOT VALID, which does not look at the rows; VALIDATE CONSTRAINT, which reads the table and
   locks out no writer; and SET NOT NULL, which then has nothing to read (PostgreSQL manual, ALTER TABLE, Notes).

Each step is in a transaction of its own, for a lock is held until the end of its transaction; and each can be run
again, for what was committed before a migration was interrupted is there when it is run the next time.
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
"""Under which name `run_migrations` tells the migration how long to wait for a lock, in seconds."""

_TRIES = 100  # for one range of blocks, before the migration fails

# Rows that are written while this runs may go to blocks that it has passed: so it looks again until there are none. On
# a partitioned table the ranges are those of every partition. A TID range is read without an index, and without the
# rest of the table, from PostgreSQL 14 on.
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
        MigrationError: the migration runs in a transaction of somebody else's, and so cannot commit.
    """
    if getattr(context, "_in_external_transaction", False):
        raise MigrationError(
            f"backfill= was asked for {op.table_name}.{op.column_name}, which commits batch by batch, but the "
            "migration runs in a transaction that was begun outside of it; hand an engine to the command, or a "
            "connection that has not begun, or leave backfill= out"
        )
    # Its own dialect: nothing of the SQL is a parameter, so no percent sign is doubled.
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

    _say(context, f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {type_}")
    _say(context, f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {initial}")
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
        _say(context, filling)
    _say(context, f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {check}")
    _say(context, f"ALTER TABLE {table} ADD CONSTRAINT {check} CHECK ({column} IS NOT NULL) NOT VALID")
    _commit(context)
    _say(context, f"ALTER TABLE {table} VALIDATE CONSTRAINT {check}")
    _commit(context)
    _say(context, f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL")
    _say(context, f"ALTER TABLE {table} DROP CONSTRAINT {check}")


def _commit(context: MigrationContext) -> None:
    with context.autocommit_block():
        pass


def _say(context: MigrationContext, statement: str) -> None:
    # A colon would begin a parameter.
    context.impl.execute(sa.text(statement.strip().replace(":", r"\:")))
