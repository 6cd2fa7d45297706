"""Checks, when an application starts, that the database is at the revision that the code expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Engine

from ...errors import OptionError, SyncAsyncMismatch
from ._errors import MigrationError, NotUpToDate

if TYPE_CHECKING:
    import os

    from alembic.config import Config
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["assert_up_to_date", "async_assert_up_to_date"]


def assert_up_to_date(
    engine: Engine | Connection,
    config: Config | str | os.PathLike[str] = "alembic.ini",
    *,
    version_table: str = "alembic_version",
    version_table_schema: str | None = None,
) -> None:
    """Raise unless the database is at the newest revision of the migrations. Changes nothing, and runs no env.py.

    Args:
        engine: an engine of the database, or a connection.
        config: the path of alembic.ini, or Alembic's ``Config``, which locates the migrations.
        version_table: as in env.py.
        version_table_schema: as in env.py.

    Raises:
        NotUpToDate: the database is at another revision.
        MigrationError: there are no migrations at that place.

    SQL::

        SELECT version_num FROM alembic_version
    """
    if hasattr(engine, "sync_engine"):
        raise SyncAsyncMismatch(
            f"assert_up_to_date() was given {engine!r}; write `await async_assert_up_to_date(engine)`"
        )
    if not isinstance(engine, Engine | Connection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(f"assert_up_to_date() takes an engine or a connection, not {engine!r}")
    expected = _expected(config)
    if isinstance(engine, Engine):
        with engine.connect() as connection:
            current = _current(connection, version_table, version_table_schema)
    else:
        current = _current(engine, version_table, version_table_schema)
    _compare(current, expected, config)


async def async_assert_up_to_date(
    engine: AsyncEngine | AsyncConnection,
    config: Config | str | os.PathLike[str] = "alembic.ini",
    *,
    version_table: str = "alembic_version",
    version_table_schema: str | None = None,
) -> None:
    """Do the same as `assert_up_to_date` with an ``AsyncEngine`` or ``AsyncConnection``."""
    if not hasattr(engine, "sync_engine"):
        raise SyncAsyncMismatch(f"async_assert_up_to_date() was given {engine!r}; write `assert_up_to_date(engine)`")
    from sqlalchemy.ext.asyncio import AsyncEngine

    expected = _expected(config)
    if isinstance(engine, AsyncEngine):
        async with engine.connect() as connection:
            current = await connection.run_sync(_current, version_table, version_table_schema)
    else:
        current = await engine.run_sync(_current, version_table, version_table_schema)
    _compare(current, expected, config)


def _expected(config: Any) -> Any:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if not isinstance(config, Config):
        from pathlib import Path

        if not Path(config).exists():
            raise MigrationError(
                f"config={str(config)!r} was given, but there is no such file; give the path of alembic.ini"
            )
        config = Config(config)
    return ScriptDirectory.from_config(config)


def _current(connection: Connection, version_table: str, version_table_schema: str | None) -> tuple[str, ...]:
    from alembic.runtime.migration import MigrationContext

    opts = {"version_table": version_table, "version_table_schema": version_table_schema}
    return MigrationContext.configure(connection, opts=opts).get_current_heads()


def _compare(current: tuple[str, ...], script: Any, config: Any) -> None:
    from alembic.util.exc import CommandError

    expected = tuple(script.get_heads())
    if set(current) == set(expected):
        return
    at = ", ".join(current) or "no revision"
    heads = ", ".join(expected) or "none"
    try:
        known = all(script.get_revision(each) for each in current)
    except CommandError:
        known = False
    hint = (
        "run `alembic upgrade head`"
        if known
        else "the migrations do not know that revision: the code is older than the database; deploy newer code"
    )
    raise NotUpToDate(f"the database is at {at}, and the newest migration is {heads}; {hint}", current, expected)
