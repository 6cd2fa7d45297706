"""Alembic: version columns that migrate themselves, and an env.py in one call.

=================  ====================================================================================
``plugin``         what Alembic loads: the operations, and what autogenerate asks
``_kinds``         what a version column is in a table
``operations``     ``op.add_version_column`` and the others: what is asked
``_steps``         how it is done, one table entry per dialect; ``_backfill``: PostgreSQL's batches;
                   ``_sqlite``: in place, by ``_sqlite_text``
``_once``          ``op.create_once_table()``
``_batch``         within ``op.batch_alter_table()``: the order; ``_sqlite_copies``: what a copy would lose
``autogenerate``   from a model that became versioned to the operation; ``_history``: what was said before
``env``            `run_migrations`: from the command to the databases
``_binds``         which databases, in which order
``_session``       one database: its lock, its transaction, its retries
``_servers``       how each server locks, waits and tells who is in the way
``checks``         `assert_up_to_date`
``template``       what ``alembic init -t`` copies
=================  ====================================================================================

It needs ``sessionkit[alembic]``.
"""

# First, and whole: Alembic loads its plugins, this one among them, in the middle of its own import.
import alembic

from . import plugin as _plugin
from ._errors import Blocker, MigrationBlocked, MigrationError, NotUpToDate
from .checks import assert_up_to_date, async_assert_up_to_date
from .env import run_migrations
from .operations import (
    AddVersionColumnOp,
    AdoptVersionColumnOp,
    CreateOnceTableOp,
    DropOnceTableOp,
    DropVersionColumnOp,
    ReleaseVersionColumnOp,
)

__all__ = [
    "AddVersionColumnOp",
    "AdoptVersionColumnOp",
    "Blocker",
    "CreateOnceTableOp",
    "DropOnceTableOp",
    "DropVersionColumnOp",
    "MigrationBlocked",
    "MigrationError",
    "NotUpToDate",
    "ReleaseVersionColumnOp",
    "assert_up_to_date",
    "async_assert_up_to_date",
    "run_migrations",
]

if hasattr(alembic, "__version__"):  # it is imported wholly: nobody loads this as a plugin at this moment
    _plugin.set_up_once()
