"""What is examined: an engine, made from a URL or the application's own, which for the doctor only reads.

On PostgreSQL each look is a READ ONLY transaction with limits of its own: a preset. A SQLite file is opened read-only.
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
    """What was asked for on the command line is not there; the text says what is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is worth a word, and how long the doctor waits.

    Attributes:
        older_than: the age in seconds from which a transaction is left over.
        max_lag: by how many seconds a replica may be behind.
        timeout: of each connection attempt and statement, in seconds.
    """

    older_than: float = 60.0
    max_lag: float = 10.0
    timeout: float = 5.0


@dataclass(frozen=True)
class Patient:
    """An engine and how it is looked at.

    Attributes:
        asked: as it was named on the command line, without a password.
        engine: the sync engine that is asked; of an async engine, its `sync_engine`.
        own: it is the application's, not made from a URL.
        limits: of the examination.
        reading: how its SQLite file is opened; None: it has none.
    """

    asked: str
    engine: Engine
    own: bool
    limits: Limits
    reading: _file.FileReading | None

    @property
    def entry(self) -> _dialects.Dialect:
        """What sessionkit knows of its dialect."""
        return _dialects.of(self.engine)

    @property
    def address(self) -> str:
        """Where it is, without a password."""
        return address(self.engine.url)

    @property
    def secrets(self) -> list[str]:
        """What must not be printed."""
        return secrets_of(self.engine.url)

    @property
    def advice_name(self) -> str:
        """The engine in a piece of advice."""
        return self.asked.partition(":")[2] if self.own else "engine"

    @contextmanager
    def examined(self) -> Generator[None, None, None]:
        """Have the engine connect for reading, and within the limit; afterwards it is as it was."""
        reading = self.reading

        def connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
            if reading is not None:
                return reading.connect(dialect, cargs, cparams)
            return self._connect_in_time(dialect, cargs, cparams)

        if reading is not None:
            self.engine.dispose()  # a connection that it has already may write
        elif self.engine.dialect.is_async and self.entry.connect_within is not None:
            # What it connected while it was imported belongs to an event loop that has ended, and cannot be closed any more.
            self.engine.dispose(close=False)
        # A listener of the application's may make the connection, or say where it goes to; not to a file that is written.
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
            text = f"the server did not take the connection within {seconds:g} s"
            raise dialect.loaded_dbapi.OperationalError(text) from error

    @contextmanager
    def looking(self) -> Generator[Connection, None, None]:
        """Look at the database in a transaction that cannot change it, and ends without a COMMIT."""
        with self.looking_engine().connect() as connection:
            if str(_level_of(self.engine)).upper() == "AUTOCOMMIT":
                # Statements that each are a transaction of their own are under no preset.
                connection.execution_options(isolation_level=self.entry.default_level)
            yield connection  # what it has begun is rolled back when it is closed

    def looking_engine(self) -> Engine:
        """Return an engine for those who want one, all of whose transactions are such."""
        limit, engine, entry = self.limits.timeout, self.engine, self.entry
        asked = Preset(read_only=True, statement_timeout=limit, lock_timeout=limit)
        for preset in (asked, Preset(read_only=True)):
            try:
                return engine_that_begins(engine, entry.beginning(engine, preset))
            except OptionError:
                continue
        return engine  # of a dialect that sessionkit does not know; it is only asked for its version and level


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
"""With these the doctor itself gets through a pooler that hands server connections on."""


def named(name: str, what: str) -> Any:
    """Return an object that is named ``module:name``, from the working directory too.

    Raises:
        Unusable: there is none.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise Unusable(f"{what} is {name!r}; it is written module:name, for instance shop.models:Base")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        # What it prints, and what an engine with echo=True will log, must not get between the findings.
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
    """Return what is named by a URL, or as ``module:engine``.

    Raises:
        Unusable: there is no such engine, or none can be made.
    """
    if "://" not in asked:
        return _of_engine(asked, named(asked, what), limits, what)
    try:
        url = make_url(asked)
    except (ArgumentError, ValueError) as error:
        # Its text may hold what was asked, and so a password.
        hint = "a URL is written dialect+driver://user@host/database, with special characters quoted as in %40"
        raise Unusable(f"{what}: its URL cannot be read; {hint}") from error
    try:
        engine = create_engine(url, connect_args=_UNPREPARED.get(url.get_driver_name(), {}))
    except NoSuchModuleError as error:
        raise Unusable(f"{what} is {address(url)}, and SQLAlchemy has no dialect {url.drivername!r}") from error
    except ImportError as error:
        raise Unusable(f"{what} is {address(url)}, whose driver is not installed: {error}") from error
    except Exception as error:
        raise Unusable(f"{what} is {address(url)}, for which no engine can be made: {type(error).__name__}") from error
    return _patient(address(url), engine, False, limits)


def _of_engine(asked: str, found: Any, limits: Limits, what: str) -> Patient:
    engine = getattr(found, "sync_engine", found)
    if not isinstance(engine, Engine):
        raise Unusable(
            f"{what} is {asked!r}, which is a {type(found).__name__} and no Engine or AsyncEngine; name one, or a URL"
        )
    return _patient(asked, engine, True, limits)


def _patient(asked: str, engine: Engine, own: bool, limits: Limits) -> Patient:
    if engine.dialect.is_async and find_spec("greenlet") is None:
        raise Unusable(f"{asked} is async, which needs greenlet: pip install 'sessionkit[asyncio]'")
    return Patient(asked, engine, own, limits, _file.reading(engine))
