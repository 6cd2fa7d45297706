"""The settings of a SQLite engine from `sqlite.configure`, and how its connections get them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy.util import await_only

from ..errors import OptionError
from ._base import root_of
from ._sqlite_cut import interrupted

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_SET_UP = "sessionkit_set_up"
_AUTOCOMMIT = "sessionkit_autocommit"


OLDEST = (3, 35, 0)
"""The oldest release that sessionkit works on: the first with RETURNING, which SQLAlchemy uses from there on."""


def refuse_older(engine: Engine) -> None:
    """Refuse a SQLite library that the tests do not cover.

    Raises:
        OptionError: it is older than 3.35.
    """
    found: tuple[int, ...] = getattr(engine.dialect.loaded_dbapi, "sqlite_version_info", OLDEST)
    if found < OLDEST:
        raise OptionError(
            f"sessionkit needs SQLite {'.'.join(map(str, OLDEST[:2]))} or newer, for RETURNING, but {engine!r} uses the "
            f"library {'.'.join(map(str, found))}; use a Python that is linked to a newer one, or give create_engine() a "
            "driver that brings its own: module=pysqlite3"
        )


@dataclass(frozen=True, slots=True)
class Config:
    """The settings that `sqlite.configure` has given an engine."""

    wal: bool = True
    foreign_keys: bool = True
    busy_timeout: float = 5.0
    synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "NORMAL"
    begin: Literal["immediate", "deferred"] = "immediate"

    def pragmas(self) -> list[str]:
        """Return the pragmas for a new connection. The busy timeout comes first, because the others may have to wait."""
        return [
            f"PRAGMA busy_timeout={round(self.busy_timeout * 1000)}",
            f"PRAGMA foreign_keys={'ON' if self.foreign_keys else 'OFF'}",
            f"PRAGMA synchronous={self.synchronous}",
        ]


configs: WeakKeyDictionary[Engine, Config] = WeakKeyDictionary()
"""The settings of each configured engine, by the engine that others are derived from."""


def config_of(engine: Engine) -> Config | None:
    """Return the settings of an engine, or None if it was not configured."""
    return configs.get(root_of(engine))


def set_up(config: Config, dbapi_connection: Any, record: Any) -> None:
    """Give a connection that leaves the pool its settings, unless it already has them."""
    if record.info.get(_SET_UP) is config:
        return
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    # A driver that keeps a transaction open (autocommit=False, Python 3.12) would ignore the PRAGMAs in it.
    keeps_open = autocommit_of(record.info, driver) is False
    if driver.in_transaction and not keeps_open:
        return  # an in-memory database has one connection, and it is in use at the moment: next time
    cursor = dbapi_connection.cursor()
    try:
        if keeps_open:
            cursor.execute("ROLLBACK")
        for pragma in config.pragmas():
            cursor.execute(pragma)
            cursor.fetchall()
        if config.wal:
            _switch_to_wal(cursor, config.busy_timeout)
        if keeps_open:
            cursor.execute("BEGIN")
    except BaseException as error:
        if isinstance(error, Exception):
            cursor.close()
        else:
            interrupted(dbapi_connection, error, cursor)
        raise
    cursor.close()
    record.info[_SET_UP] = config


def _switch_to_wal(cursor: Any, seconds: float) -> None:
    # SQLite does not wait here, whatever the busy timeout: two first connections that switch together collide.
    ends = time.monotonic() + seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.fetchall()
        except Exception as error:
            if getattr(error, "sqlite_errorcode", _BUSY) & 0xFF != _BUSY or time.monotonic() > ends:
                raise
            cursor.execute("BEGIN EXCLUSIVE")  # this waits until all others have ended
            cursor.execute("ROLLBACK")
        else:
            return


_BUSY = 5  # https://www.sqlite.org/rescode.html


def autocommit_of(info: dict[Any, Any], driver: Any) -> Any:
    """Return the attribute ``autocommit`` of sqlite3 in Python 3.12 and later; asked once for each connection."""
    if _AUTOCOMMIT not in info:
        # aiosqlite wraps the connection, and only its thread may ask it.
        inner = getattr(driver, "_conn", None)
        info[_AUTOCOMMIT] = (
            getattr(driver, "autocommit", None)
            if inner is None
            else await_only(driver._execute(getattr, inner, "autocommit", None))
        )
    return info[_AUTOCOMMIT]
