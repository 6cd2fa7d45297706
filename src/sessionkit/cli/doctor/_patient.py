"""The engine to examine, made from a URL or the application's own, restricted to reading.

On PostgreSQL each check runs in a READ ONLY transaction with limits, which is a preset. A SQLite file is opened read-only.
"""

from __future__ import annotations

import importlib
import sys
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from sessionkit._spi import _dialects, engine_that_begins
from sessionkit.errors import OptionError
from sessionkit.isolation import Preset

from . import _file
from ._words import address, secrets_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy.engine import Connection

__all__ = ["Limits", "Patient", "Unusable", "named", "patient_of"]


class Unusable(Exception):
    """Something named on the command line cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits from which to report a problem, and how long the doctor waits.

    Attributes:
        older_than: the age in seconds from which a transaction counts as abandoned.
        max_lag: how many seconds a replica may lag behind.
        timeout: the limit for each connection attempt and statement, in seconds.
    """

    older_than: float = 60.0
    max_lag: float = 10.0
    timeout: float = 5.0


@dataclass(frozen=True)
class Patient:
    """An engine, and how to examine it.

    Attributes:
        asked: its name on the command line, without a password.
        engine: the sync engine to query; for an async engine, its `sync_engine`.
        own: whether it is the application's engine, not one made from a URL.
        limits: the limits of the examination.
        reading: how its SQLite file is opened; None if it has none.
    """

    asked: str
    engine: Engine
    own: bool
    limits: Limits
    reading: _file.FileReading | None

    @property
    def entry(self) -> _dialects.Dialect:
        """What sessionkit knows about its dialect."""
        return _dialects.of(self.engine)

    @property
    def address(self) -> str:
        """Its URL without a password."""
        return address(self.engine.url)

    @property
    def secrets(self) -> list[str]:
        """Texts that must not be printed."""
        return secrets_of(self.engine.url)

    @property
    def advice_name(self) -> str:
        """The name of the engine in advice."""
        return self.asked.partition(":")[2] if self.own else "engine"

    @contextmanager
    def examined(self) -> Generator[None, None, None]:
        """Make the engine connect only for reading and within the limit; restore it afterwards."""
        reading = self.reading

        def connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
            if reading is not None:
                return reading.connect(dialect, cargs, cparams)
            return self._connect_in_time(dialect, cargs, cparams)

        if reading is not None:
            self.engine.dispose()  # an existing connection might write
        elif self.engine.dialect.is_async and self.entry.connect_within is not None:
            # Connections opened during the import belong to an event loop that has ended, and can no longer be closed.
            self.engine.dispose(close=False)
        # A listener of the application may make the connection or change its target, but not to a file opened for writing.
        event.listen(self.engine, "do_connect", connect, insert=reading is not None)
        try:
            yield
        finally:
            event.remove(self.engine, "do_connect", connect)
            self.engine.dispose()

    def _connect_in_time(self, dialect: Any, cargs: Any, cparams: Any) -> Any:
        within, seconds, begun = self.entry.connect_within, self.limits.timeout, time.monotonic()
        if within is None:
            return None
        try:
            return within(dialect, cargs, cparams, seconds)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() - begun < seconds:
                raise
            text = f"the server did not accept the connection within {seconds:g} s"
            raise dialect.loaded_dbapi.OperationalError(text) from error

    @contextmanager
    def looking(self) -> Generator[Connection, None, None]:
        """Examine the database in a transaction that cannot change it and ends without a COMMIT."""
        with self.looking_engine().connect() as connection:
            if str(_level_of(self.engine)).upper() == "AUTOCOMMIT":
                # In AUTOCOMMIT each statement is its own transaction, without the preset.
                connection.execution_options(isolation_level=self.entry.default_level)
            yield connection  # closing it rolls back what it has begun

    def looking_engine(self) -> Engine:
        """Return an engine, for functions that need one, whose transactions are all of this kind."""
        limit, engine, entry = self.limits.timeout, self.engine, self.entry
        asked = Preset(read_only=True, statement_timeout=limit, lock_timeout=limit)
        for preset in (asked, Preset(read_only=True)):
            try:
                return engine_that_begins(engine, entry.beginning(engine, preset))
            except OptionError:
                continue
        return engine  # a dialect that sessionkit does not know; only its version and level are queried


def _level_of(engine: Engine) -> object:
    own = getattr(engine.dialect, "_on_connect_isolation_level", None)
    return engine.get_execution_options().get("isolation_level", own)


_UNPREPARED: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg_async": {"prepare_threshold": None},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__{uuid4()}__",
    },
}
"""These settings let the doctor itself work through a pooler in transaction mode."""


def named(name: str, what: str) -> Any:
    """Return the object named ``module:name``; searches the working directory too.

    Raises:
        Unusable: there is no such object.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise Unusable(f"{what} is {name!r}, which is not of the form module:name; write it like shop.models:Base")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        # Output of the module, and the log of an engine with echo=True, must not mix with the findings.
        with redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0]
        raise Unusable(f"{what} is {name!r}, but importing {module} raised {type(error).__name__}: {first}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise Unusable(f"{what} is {name!r}, but there is no {part!r} in {module}")
        found = getattr(found, part)
    return found


def patient_of(asked: str, limits: Limits, what: str = "the database") -> Patient:
    """Return the patient for a URL or a ``module:engine``.

    Raises:
        Unusable: there is no such engine, or it cannot be created.
    """
    if "://" not in asked:
        return _of_engine(asked, named(asked, what), limits, what)
    try:
        url = make_url(asked)
    except (ArgumentError, ValueError) as error:
        # The error's text may contain the URL, and so a password.
        hint = "write it as dialect+driver://user@host/database, with special characters quoted as in %40"
        raise Unusable(f"{what}: its URL cannot be read; {hint}") from error
    try:
        engine = create_engine(url, connect_args=_UNPREPARED.get(url.get_driver_name(), {}))
    except NoSuchModuleError as error:
        raise Unusable(f"{what} is {address(url)}, and SQLAlchemy has no dialect {url.drivername!r}") from error
    except ImportError as error:
        raise Unusable(f"{what} is {address(url)}, whose driver is not installed: {error}") from error
    except Exception as error:
        raise Unusable(f"{what} is {address(url)}, but create_engine() raised {type(error).__name__}") from error
    return _patient(address(url), engine, False, limits)


def _of_engine(asked: str, found: Any, limits: Limits, what: str) -> Patient:
    engine = getattr(found, "sync_engine", found)
    if not isinstance(engine, Engine):
        raise Unusable(
            f"{what} is {asked!r}, which is a {type(found).__name__}, not an Engine or AsyncEngine; name an engine, "
            "or give a URL"
        )
    return _patient(asked, engine, True, limits)


def _patient(asked: str, engine: Engine, own: bool, limits: Limits) -> Patient:
    if engine.dialect.is_async and find_spec("greenlet") is None:
        raise Unusable(f"{asked} is async, which needs greenlet: pip install 'sessionkit[asyncio]'")
    return Patient(asked, engine, own, limits, _file.reading(engine))
