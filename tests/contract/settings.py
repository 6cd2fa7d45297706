"""What a transaction really runs with, asked of the database; and what is left on the connections of a pool."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import READ_COMMITTED, READ_ONLY, REPEATABLE_READ, REPORT, SERIALIZABLE, SNAPSHOT, Preset

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tests.support.doors import Door

PRESETS = {
    "read committed": READ_COMMITTED,
    "repeatable read": REPEATABLE_READ,
    "serializable": SERIALIZABLE,
    "read only": READ_ONLY,
    "snapshot": SNAPSHOT,
    "report": REPORT,
    "writable": Preset(read_only=False),
    "timeouts": Preset(statement_timeout=7, lock_timeout=6.5),
    "all": Preset("SERIALIZABLE", read_only=True, statement_timeout=7, lock_timeout=6.5),
}

_POSTGRESQL = (
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
)
_SQLITE = ("query_only", "busy_timeout", "foreign_keys", "synchronous", "read_uncommitted")


async def in_force(doors: Door, connection: AsyncSession | AsyncConnection) -> dict[str, Any]:
    """Return the settings of the transaction that runs; what is sent to ask for them is one statement on PostgreSQL."""
    if doors.backend == "postgresql":
        asked = ", ".join(f"current_setting('{name}')" for name in _POSTGRESQL)
        row = (await connection.execute(text(f"SELECT {asked}"))).one()
        return dict(zip(_POSTGRESQL, row, strict=True))
    return {name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one() for name in _SQLITE}


def expected(doors: Door, preset: Preset, default: dict[str, Any]) -> dict[str, Any]:
    """Return what `in_force` should say under a preset, where it says `default` without one."""
    asked: dict[str, Any]
    if doors.backend == "postgresql":
        asked = {
            "transaction_isolation": preset.isolation and str(preset.isolation).lower(),
            "transaction_read_only": _on_or_off(preset.read_only),
            "transaction_deferrable": _on_or_off(preset.deferrable),
            "statement_timeout": _seconds(preset.statement_timeout),
            "lock_timeout": _seconds(preset.lock_timeout),
            "idle_in_transaction_session_timeout": _seconds(preset.idle_timeout),
        }
    else:
        timeouts = [seconds for seconds in (preset.lock_timeout, preset.statement_timeout) if seconds is not None]
        asked = {
            "query_only": None if preset.read_only is None else int(preset.read_only),
            # A statement that waits for a lock is a statement that takes its time.
            "busy_timeout": round(min(timeouts) * 1000) if preset.lock_timeout is not None else None,
        }
        if preset.lock_timeout is None and timeouts:
            asked["busy_timeout"] = min(round(timeouts[0] * 1000), default["busy_timeout"])
    return default | {name: value for name, value in asked.items() if value is not None}


def _on_or_off(flag: bool | None) -> str | None:
    return None if flag is None else ("on" if flag else "off")


def _seconds(seconds: float | None) -> str | None:
    """Spell it as PostgreSQL does."""
    if seconds is None:
        return None
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


# The pool


def pooled_engine(doors: Door, **kw: Any) -> Any:
    """Return an engine whose pool has two connections and makes no others."""
    return doors.make_engine(pool_size=2, max_overflow=0, **kw)


async def left_behind(doors: Door, engine: Any) -> list[dict[str, Any]]:
    """Look at every connection of a `pooled_engine`: the driver's attributes, and what a plain transaction gets."""
    seen = []
    async with AsyncExitStack() as stack:
        for _ in range(2):
            connection = await stack.enter_async_context(doors.enter(engine.connect()))
            attributes = driver_attributes(doors, connection)
            settings = await in_force(doors, connection)
            if doors.backend == "sqlite":
                # A forgotten progress handler would stop this one, since its deadline has passed long ago.
                settings["counts"] = (await connection.execute(text(LONGER_THAN_A_MOMENT))).scalar_one()
            await connection.rollback()
            seen.append(attributes | settings)
    return seen


# More of SQLite's instructions than lie between two calls of a progress handler.
LONGER_THAN_A_MOMENT = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) SELECT count(*) FROM n"
)


def driver_attributes(doors: Door, connection: AsyncConnection) -> dict[str, Any]:
    """Return what the driver will put into its next BEGIN."""
    sync_connection: Any = connection.sync_connection
    driver: Any = sync_connection.connection.dbapi_connection
    if doors.driver == "psycopg":
        driver = getattr(driver, "_connection", driver)
    names = {
        "psycopg": ("isolation_level", "read_only", "deferrable"),
        "psycopg2": ("isolation_level", "readonly", "deferrable"),
        "asyncpg": ("isolation_level", "readonly", "deferrable"),
    }.get(doors.driver, ("isolation_level",))
    return {f"driver's {name}": getattr(driver, name) for name in names}


def error_code(error: DBAPIError) -> Any:
    """Return the SQLSTATE, or SQLite's primary error code."""
    original: Any = error.orig
    for candidate in (original, original.__cause__):
        for name in ("sqlstate", "pgcode"):
            if getattr(candidate, name, None) is not None:
                return getattr(candidate, name)
        if getattr(candidate, "sqlite_errorcode", None) is not None:
            return candidate.sqlite_errorcode & 0xFF
    raise AssertionError(f"{original!r} has no code")


READ_ONLY_VIOLATION = {"postgresql": "25006", "sqlite": 8}
LOCK_NOT_AVAILABLE = {"postgresql": "55P03", "sqlite": 5}
STATEMENT_TIMED_OUT = {"postgresql": "57014", "sqlite": 9}


each_preset = pytest.mark.parametrize("preset", [pytest.param(preset, id=name) for name, preset in PRESETS.items()])


async def without_preset(doors: Door, engine: Any) -> dict[str, Any]:
    async with doors.enter(engine.connect()) as connection:
        return await in_force(doors, connection)
