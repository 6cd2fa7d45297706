"""Copies of a database, for tests that each have one of their own."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL, Dialect

    Say = Callable[[URL, str], None]
    """Sends a statement to a database, outside of transactions."""


@dataclass(frozen=True, slots=True)
class Template:
    """How one dialect copies a database.

    Attributes:
        copy: copies the database of an address and returns the address of the copy.
        drop: drops the copy, whoever is connected to it.
    """

    copy: Callable[[Dialect, URL, Say], URL]
    drop: Callable[[Dialect, URL, Say], None]


def _name(original: str) -> str:
    # PostgreSQL cuts a name after 63 bytes, and what makes it unique stands at the end.
    return f"{original[:40]}_{secrets.token_hex(6)}"


def _copy_postgresql(dialect: Dialect, url: URL, say: Say) -> URL:
    original = url.database or url.username
    if not original:
        raise OptionError(f"{url!r} names no database that could be copied")
    copy, quote = _name(original), dialect.identifier_preparer.quote
    say(url.set(database="postgres"), f"CREATE DATABASE {quote(copy)} TEMPLATE {quote(original)}")
    return url.set(database=copy)


def _drop_postgresql(dialect: Dialect, copy: URL, say: Say) -> None:
    assert copy.database is not None
    name = dialect.identifier_preparer.quote(copy.database)
    say(copy.set(database="postgres"), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _copy_sqlite(dialect: Dialect, url: URL, say: Say) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise OptionError(f"{url!r} is no file that could be copied; use mode='rollback', or a database file")
    copy = Path(url.database).with_name(_name(Path(url.database).name))
    say(url, "PRAGMA wal_checkpoint(TRUNCATE)")  # what is committed may still lie beside the file
    shutil.copyfile(url.database, copy)
    return url.set(database=str(copy))


def _drop_sqlite(dialect: Dialect, copy: URL, say: Say) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{copy.database}{suffix}").unlink(missing_ok=True)


POSTGRESQL = Template(_copy_postgresql, _drop_postgresql)
SQLITE = Template(_copy_sqlite, _drop_sqlite)
