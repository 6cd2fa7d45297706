"""Copies of a database, so that each test can have one of its own."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..errors import OptionError, classify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Executable
    from sqlalchemy.engine import URL, Dialect

    Say = Callable[[URL, str | Executable], Sequence[Any]]
    """Sends a statement to a database, outside of transactions, and returns the rows of the answer."""

QUIET = 30.0
"""How long to wait until no connection to the original is left, in seconds."""

_IN_USE = "55006"


@dataclass(frozen=True, slots=True)
class Template:
    """How one dialect copies a database.

    Attributes:
        copy: copies the database at an address and returns the address of the copy.
        drop: drops the copy, even if connections to it are open.
    """

    copy: Callable[[Dialect, URL, Say], URL]
    drop: Callable[[Dialect, URL, Say], None]


def _copy_postgresql(dialect: Dialect, url: URL, say: Say) -> URL:
    original = url.database or url.username
    if not original:
        raise OptionError(f"{url!r} names no database to copy; put a database name into the URL")
    # PostgreSQL cuts a name after 63 bytes, and the part that makes it unique is at the end.
    copy, quote = f"{original[:40]}_{secrets.token_hex(6)}", dialect.identifier_preparer.quote
    server, ends = url.set(database="postgres"), time.monotonic() + QUIET
    while True:
        # Several processes may copy at the same time. While one waits, for up to 5 s, new connections wait for it. So the
        # tests of other processes that share the original let it through as soon as the running ones have ended.
        try:
            say(server, f"CREATE DATABASE {quote(copy)} TEMPLATE {quote(original)}")
        except DBAPIError as error:
            if classify(error).code != _IN_USE:
                raise
            if time.monotonic() < ends:
                continue
            raise OptionError(
                f"mode='template' was asked for, but {url!r} cannot be copied while others are connected to it: "
                f"{_connected(server, original, say)}; end them first, with engine.dispose() or poolclass=NullPool"
            ) from error
        return url.set(database=copy)


_WHO = text(
    "SELECT pid, coalesce(nullif(application_name, ''), 'unnamed'), coalesce(state, backend_type) "
    "FROM pg_stat_activity WHERE datname = :name ORDER BY pid"
)


def _connected(server: URL, database: str, say: Say) -> str:
    rows = say(server, _WHO.bindparams(name=database))
    return ", ".join(f"backend {pid} ({program}, {state})" for pid, program, state in rows) or "they have gone by now"


def _drop_postgresql(dialect: Dialect, copy: URL, say: Say) -> None:
    assert copy.database is not None
    name = dialect.identifier_preparer.quote(copy.database)
    say(copy.set(database="postgres"), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _copy_sqlite(dialect: Dialect, url: URL, say: Say) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise OptionError(f"{url!r} is not a file that can be copied; use mode='rollback', or a database file")
    import sqlite3

    copy = Path(tempfile.mkdtemp(prefix="sessionkit-")) / Path(url.database).name
    # A consistent copy, including the write-ahead log, even if somebody writes to it meanwhile.
    with closing(sqlite3.connect(url.database)) as original, closing(sqlite3.connect(copy)) as target:
        target.execute("PRAGMA synchronous = OFF")  # the copy need not survive a power failure
        original.backup(target)
    return url.set(database=str(copy))


def _drop_sqlite(dialect: Dialect, copy: URL, say: Say) -> None:
    shutil.rmtree(Path(str(copy.database)).parent)


POSTGRESQL = Template(_copy_postgresql, _drop_postgresql)
SQLITE = Template(_copy_sqlite, _drop_sqlite)
