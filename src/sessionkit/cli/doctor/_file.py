"""A SQLite file, opened so that nothing is written to it or beside it.

``mode=ro`` alone is not enough. When a file in WAL mode is not open
elsewhere, even a reader creates a ``-wal`` and a ``-shm`` beside it, and may not delete them afterwards
(https://www.sqlite.org/wal.html, "Read-Only Databases"). Such a file is opened with ``immutable=1``: without a ``-wal``, the
file holds all the data.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from sqlalchemy.util import await_only

from sessionkit._spi import _dialects

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

__all__ = ["FileReading", "Header", "header", "path_of", "reading"]

_MAGIC = b"SQLite format 3\0"


def path_of(url: URL) -> Path | None:
    """Return the path of the file in a URL; None if there is no file."""
    name = url.database
    if url.query.get("mode") == "memory" or not name or name.startswith((":memory:", "file::memory:")):
        return None
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
        name = name.removeprefix("//localhost").removeprefix("//")
    return Path(name)


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a file show (https://www.sqlite.org/fileformat.html, "The Database Header").

    Attributes:
        wal: whether it is in WAL mode.
        empty: whether it has no bytes at all, as before its first table.
    """

    wal: bool
    empty: bool


def header(path: Path) -> Header | None:
    """Read the first bytes; None if it is not a SQLite database."""
    with path.open("rb") as file:
        start = file.read(100)
    if not start:
        return Header(False, True)
    return Header(start[18:20] == b"\2\2", False) if start.startswith(_MAGIC) else None


class FileReading:
    """Makes an engine open its file for reading.

    Attributes:
        wants_wal: whether a connection of the engine has asked for WAL mode, as `sqlite.configure` and many listeners do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.wants_wal = False

    def connect(self, dialect: Any, cargs: Any, cparams: Any) -> Any:
        """Connect the way the engine would, but only for reading."""
        given = str(cargs[0])
        query = dict(parse_qsl(given.partition("?")[2])) if given.startswith("file:") else {}
        query["mode"] = "ro"
        found = None if Path(f"{self._path}-wal").exists() else header(self._path)
        if found is not None and found.wal:
            query["immutable"] = "1"
        uri = f"file:{quote(str(self._path.absolute()))}?{urlencode(query)}"
        made = dialect.connect(uri, *cargs[1:], **{**cparams, "uri": True})
        if dialect.is_async:
            driver = made.driver_connection
            # In its own thread: the connection inside may not be used in any other.
            await_only(driver._execute(driver._conn.set_authorizer, self._authorize))
        else:
            made.set_authorizer(self._authorize)
        return made

    def _authorize(self, action: int, name: str | None, value: str | None, *_: object) -> int:
        # A reader may not change the journal mode, but listeners that set up the engine's connections may try: without this,
        # SQLite would refuse the connection.
        if action == sqlite3.SQLITE_PRAGMA and value is not None and str(name).lower() == "journal_mode":
            self.wants_wal = self.wants_wal or value.lower() == "wal"
            return sqlite3.SQLITE_IGNORE
        return sqlite3.SQLITE_OK


def reading(engine: Engine) -> FileReading | None:
    """Return the `FileReading` of an engine's file; None if it has no file."""
    path = path_of(engine.url) if _dialects.of(engine) is _dialects.of_name("sqlite") else None
    return None if path is None else FileReading(path)
