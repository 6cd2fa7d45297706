"""What an SQLite engine was told to be by `sqlite.configure`, and how its connections become that."""

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
"""The first release that sessionkit works on: it has RETURNING, and SQLAlchemy uses it from here on."""


def refuse_older(engine: Engine) -> None:
    """Refuse a library of SQLite that the tests do not run on.

    Raises:
        OptionError: it is older than 3.35.
    """
    found: tuple[int, ...] = getattr(engine.dialect.loaded_dbapi, "sqlite_version_info", OLDEST)
    if found < OLDEST:
        raise OptionError(
            f"sessionkit works with SQLite {'.'.join(map(str, OLDEST[:2]))} or newer, which has RETURNING, but "
            f"{engine!r} uses the library {'.'.join(map(str, found))}; use a Python that is linked to a newer one, or give "
            "create_engine() a driver that brings its own: module=pysqlite3"
        )


@dataclass(frozen=True, slots=True)
class Config:
    """How `sqlite.configure` has set an engine up."""

    wal: bool = True
    foreign_keys: bool = True
    busy_timeout: float = 5.0
    synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "NORMAL"
    begin: Literal["immediate", "deferred"] = "immediate"

    def pragmas(self) -> list[str]:
        """Return what a new connection is told, the busy timeout first: the others may have to wait."""
        return [
            f"PRAGMA busy_timeout={round(self.busy_timeout * 1000)}",
            f"PRAGMA foreign_keys={'ON' if self.foreign_keys else 'OFF'}",
            f"PRAGMA synchronous={self.synchronous}",
        ]


configs: WeakKeyDictionary[Engine, Config] = WeakKeyDictionary()
"""Of each engine that was configured; by the one that others are derived from."""


def config_of(engine: Engine) -> Config | None:
    """Return how an engine was set up, if it was."""
    return configs.get(root_of(engine))


def set_up(config: Config, dbapi_connection: Any, record: Any) -> None:
    """Tell a connection that leaves the pool what it is to be, unless it was told already."""
    if record.info.get(_SET_UP) is config:
        return
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    # A driver that keeps a transaction open (autocommit=False, Python 3.12) would ignore the PRAGMAs in it.
    keeps_open = autocommit_of(record.info, driver) is False
    if driver.in_transaction and not keeps_open:
        return  # the one connection of an in-memory database, which somebody uses at this moment: next time
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
            cursor.execute("BEGIN EXCLUSIVE")  # this waits until all others are out
            cursor.execute("ROLLBACK")
        else:
            return


_BUSY = 5  # https://www.sqlite.org/rescode.html


def autocommit_of(info: dict[Any, Any], driver: Any) -> Any:
    """Return the attribute that sqlite3 has from Python 3.12 on; asked once for each connection."""
    if _AUTOCOMMIT not in info:
        # aiosqlite keeps the connection inside, in whose thread alone it may be asked.
        inner = getattr(driver, "_conn", None)
        info[_AUTOCOMMIT] = (
            getattr(driver, "autocommit", None)
            if inner is None
            else await_only(driver._execute(getattr, inner, "autocommit", None))
        )
    return info[_AUTOCOMMIT]
