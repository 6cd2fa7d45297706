"""Alembic: operations for version columns, and an env.py in one call.

=================  ====================================================================================
``plugin``         what Alembic loads: the operations, and the hook of autogenerate
``_kinds``         the type and default of a version column in a table
``operations``     ``op.add_version_column`` and the other operations
``_steps``         how they work, one table entry per dialect; ``_backfill``: PostgreSQL's batches;
                   ``_sqlite``: in place, by ``_sqlite_text``
``_once``          ``op.create_once_table()``
``_batch``         inside ``op.batch_alter_table()``: the order; ``_sqlite_copies``: what a copy would lose
``_row_security``  ``op.enable_row_security``: a policy from a template, and the way back
``autogenerate``   from a model that became versioned to the operation; ``_history``: earlier migrations
``env``            `run_migrations`: from the command to the databases
``_binds``         which databases to migrate, in which order
``_session``       one database: its lock, its transaction, its retries
``_servers``       how each server locks, waits and reports blockers
``checks``         `assert_up_to_date`
``template``       what ``alembic init -t`` copies
=================  ====================================================================================

It needs ``sessionkit[alembic]``.
"""

# First, and completely: Alembic loads its plugins, including this one, in the middle of its own import.
import alembic

from . import plugin as _plugin
from ._errors import Blocker, MigrationBlocked, MigrationError, NotUpToDate
from ._row_security import DisableRowSecurityOp, EnableRowSecurityOp
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
    "DisableRowSecurityOp",
    "DropOnceTableOp",
    "DropVersionColumnOp",
    "EnableRowSecurityOp",
    "MigrationBlocked",
    "MigrationError",
    "NotUpToDate",
    "ReleaseVersionColumnOp",
    "assert_up_to_date",
    "async_assert_up_to_date",
    "run_migrations",
]

if hasattr(alembic, "__version__"):  # Alembic is fully imported, so it is not loading this module as a plugin now
    _plugin.set_up_once()
