"""An env.py in one call."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, StaticPool
from sqlalchemy.engine import Connection

from ...errors import OptionError
from ...retry import Retry, as_retry
from ._binds import Bind, binds_of, chosen
from ._database import Care, migrate_on, migrate_within, with_locks
from ._errors import MigrationError
from ._servers import MigrationTurn

if TYPE_CHECKING:
    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import orm
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.ext import asyncio as sa_asyncio
    from sqlalchemy.ext.asyncio import AsyncEngine

    Factory = (
        orm.sessionmaker[Any]
        | orm.scoped_session[Any]
        | sa_asyncio.async_sessionmaker[Any]
        | sa_asyncio.async_scoped_session[Any]
    )
    Models = MetaData | Sequence[MetaData] | None
    Target = Models | Mapping[str, Models] | Factory
    Source = Engine | AsyncEngine | Connection | URL | str | Factory

__all__ = ["run_migrations"]

log = logging.getLogger("alembic.sessionkit")

_OURS = {"connection", "url", "target_metadata", "upgrade_token", "downgrade_token", "as_sql", "fn"}


def run_migrations(
    target: Target,
    *,
    engine: Source | Mapping[str, Source] | None = None,
    lock: bool | None = None,
    lock_wait: float = 600.0,
    lock_timeout: float | None = 2.0,
    retry: Retry | int = Retry(20, wait=0.5, wait_max=15.0),  # noqa: B008 - frozen
    **configure: Any,
) -> None:
    """Run the Alembic command: this is all that an env.py needs.

    ::

        from sessionkit.integrations.alembic import run_migrations
        from shop.models import Base

        run_migrations(Base.metadata)

    On PostgreSQL a command that changes the database first takes an advisory lock, so a second deployment waits and then
    finds nothing to do. A transaction on a separate connection holds the lock. Each migration is a transaction. Each of its
    statements waits at most `lock_timeout` for a lock, because statements of the application would queue behind it. If a lock
    is not available in time, the migration rolls back and runs again after a pause. On SQLite an upgrade is one transaction,
    which begins with the write lock and checks the foreign keys before it commits.

    Args:
        target: the ``MetaData`` of the models, or a list of them; or a factory with ``binds=``, which tells which tables are
            in which database; with several databases also a mapping from names to the metadata of each. None if autogenerate
            has nothing to compare.
        engine: an ``Engine``, ``AsyncEngine``, URL, ``Connection`` or factory; with several databases a mapping from names to
            these. Default: ``sqlalchemy.url`` in alembic.ini; with several databases, which ``databases = a, b`` names there,
            the one in each of the sections ``[a]`` and ``[b]``. A connection in ``config.attributes["connection"]`` takes
            precedence. If a connection is in a transaction, the caller commits, and nothing is tried again. An
            ``AsyncEngine`` runs in a new event loop and is disposed of afterwards.
        lock: False does not lock out other deployments. True refuses a database where that is not possible.
        lock_wait: seconds to wait for another deployment.
        lock_timeout: seconds that a statement waits for a lock; None means no limit.
        retry: how often, and after which pauses, to run a migration again that could not get a lock.
        configure: options of Alembic's ``context.configure()``, such as ``compare_server_default=True``.

    The lock and the timeout work on PostgreSQL and SQLite; elsewhere ``lock=True`` is refused. An engine passed in must allow
    three connections. Work that a migration commits itself, in ``autocommit_block()``, stays when it runs again, so the
    migration must allow for that.

    Several databases are migrated in the order of the mapping, each in its own transactions; ``-x bind=name`` selects one,
    and may be repeated. Their migrations have functions ``upgrade_name()``.

    Raises:
        MigrationBlocked: the migration could not get a lock in all attempts; the error names the blocking transactions.
        MigrationError: a database that was asked for is not known.
        OptionError: an argument has an invalid value.

    SQL, on PostgreSQL::

        SELECT pg_try_advisory_xact_lock(...)                         -- on its own connection
        BEGIN; SELECT set_config('lock_timeout', '2000ms', true); ... UPDATE alembic_version ...; COMMIT
    """
    from alembic import context

    environment: Any = context
    care = _care(lock, lock_wait, lock_timeout, retry)
    for name in _OURS & set(configure):
        raise OptionError(f"{name}= was given to run_migrations(), which sets it itself; leave it out")
    binds = binds_of(target, engine, environment.config)
    several = any(bind.name for bind in binds)
    binds = chosen(binds, environment.get_x_argument())
    for bind in binds:
        care.check(bind.url.get_dialect().name)
    if environment.is_offline_mode():
        _offline(environment, binds, several, configure)
        return
    for place, bind in enumerate(binds):
        try:
            _online(environment, bind, several, care, configure)
        except Exception as error:
            if several:
                done = ", ".join(each.name for each in binds[:place]) or "none"
                error.add_note(f"this was the database {bind.name}; already migrated: {done}")
            raise


def _care(lock: Any, lock_wait: Any, lock_timeout: Any, retry: Any) -> Care:
    if lock not in (None, True, False):
        raise OptionError(f"lock={lock!r} was given to run_migrations(); use True, False or None")
    for name, seconds in (("lock_wait", lock_wait), ("lock_timeout", lock_timeout)):
        if name == "lock_timeout" and seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 10**6:
            raise OptionError(f"{name}={seconds!r} was given to run_migrations(); give a number of seconds, 0 or more")
    if lock_timeout == 0:
        # For PostgreSQL 0 means no limit.
        raise OptionError(
            "lock_timeout=0 was given to run_migrations(); use None for no limit, or 0.001 for hardly any wait"
        )
    return Care(lock, lock_wait, lock_timeout, with_locks(as_retry(retry, "run_migrations()")))


def _options(bind: Bind, several: bool, configure: dict[str, Any]) -> dict[str, Any]:
    """Return the options of ``context.configure()`` for one database."""
    options = {"target_metadata": bind.metadata, **configure}
    if several:
        options |= {"upgrade_token": f"{bind.name}_upgrades", "downgrade_token": f"{bind.name}_downgrades"}
    if bind.tables is not None:
        theirs = configure.get("include_object")
        tables = {(table.schema, table.name) for table in bind.tables}
        metadata: Any = bind.metadata  # for a factory, this is a list
        of_others = {(table.schema, table.name) for each in metadata for table in each.sorted_tables} - tables

        def include(item: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
            # Tables of another database are not missing here.
            if type_ == "table" and (item.schema, name) in of_others:
                return False
            return theirs is None or theirs(item, name, type_, reflected, compare_to)

        options["include_object"] = include
    return options


def _arguments(bind: Bind, several: bool) -> dict[str, Any]:
    return {"engine_name": bind.name} if several else {}


# Offline


def _offline(context: Any, binds: list[Bind], several: bool, configure: dict[str, Any]) -> None:
    if len(binds) != 1:
        raise MigrationError(
            f"--sql writes a script for one database, but there are {len(binds)}; select one with -x bind=: "
            f"{', '.join(bind.name for bind in binds)}"
        )
    (bind,) = binds
    options = {"literal_binds": True, "dialect_opts": {"paramstyle": "named"}, **_options(bind, several, configure)}
    options.setdefault("transaction_per_migration", True)
    context.configure(url=bind.url, **options)
    with context.begin_transaction():
        context.run_migrations(**_arguments(bind, several))


# Online


def _online(context: Any, bind: Bind, several: bool, care: Care, configure: dict[str, Any]) -> None:
    command = _Command(context, _options(bind, several, configure), _arguments(bind, several))
    turn = _turn(configure, care) if _changes_something(context) else None
    connectable = bind.connectable()
    if isinstance(connectable, Connection):
        migrate_within(connectable, care, turn, command)
    elif hasattr(connectable, "sync_engine"):
        _in_a_loop(connectable, lambda engine: migrate_on(engine, care, turn, command))
    else:
        try:
            migrate_on(connectable, care, turn, command)
        finally:
            if connectable is not bind.source:  # created here
                connectable.dispose()


class _Command:
    """The Alembic command on a connection: a `_database.Command`."""

    def __init__(self, context: Any, own: dict[str, Any], arguments: dict[str, Any]) -> None:
        self._context = context
        self._own = own
        self._arguments = arguments
        self._relative = False
        self._applied = 0

    def run(self, connection: Connection, ours: dict[str, Any]) -> None:
        if ours.get("transactional_ddl") and self._own.get("transaction_per_migration"):
            raise OptionError(
                f"transaction_per_migration=True was given to run_migrations(), but on {connection.dialect.name} an "
                "upgrade is one transaction, which locks out a second upgrade; leave the option out there"
            )
        callbacks = [*_listed(self._own.get("on_version_apply")), *ours.get("on_version_apply", ()), self._count]
        options = {**ours, **self._own, "on_version_apply": callbacks}
        check: Any = options.pop("sessionkit_check", None)
        context = self._context
        context.configure(connection=connection, **options)
        self._relative = _is_relative(context.get_context().opts.get("destination_rev"))
        with context.begin_transaction():
            context.run_migrations(**self._arguments)
            if check is not None:
                check()

    def can_begin_again(self) -> bool:
        # `upgrade +2` with one revision done would go on to the third.
        return not (self._relative and self._applied)

    def _count(self, **_: Any) -> None:
        self._applied += 1


def _is_relative(revision: object) -> bool:
    return isinstance(revision, str) and re.search(r"[+-]\d+$", revision) is not None


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, Sequence | set | frozenset) else [callbacks]


def _changes_something(context: EnvironmentContext) -> bool:
    """Return whether the command is upgrade, downgrade or stamp: only these have a destination."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def _turn(configure: dict[str, Any], care: Care) -> MigrationTurn:
    key = f"{configure.get('version_table_schema') or ''}.{configure.get('version_table', 'alembic_version')}"
    return MigrationTurn(key, care.lock_wait, log.info)


def _in_a_loop(engine: AsyncEngine, work: Callable[[Any], None]) -> None:
    from sqlalchemy.ext.asyncio import AsyncSession

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise MigrationError(
            "an Alembic command with an AsyncEngine was called inside a running event loop, which it would block; call it in "
            'a thread with another engine, or pass a connection: config.attributes["connection"] = connection, inside '
            "`await connection.run_sync(...)`"
        )

    async def run() -> None:
        try:
            # A session bridges into sync code without opening a connection.
            async with AsyncSession(engine) as bridge:
                await bridge.run_sync(lambda _: work(engine.sync_engine))
        finally:
            # Its connections belong to this loop. For an in-memory database the connection is the database.
            if not isinstance(engine.pool, StaticPool):
                await engine.dispose()

    asyncio.run(run())
