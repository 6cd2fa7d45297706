"""The SQLite engine preset: what a pooled, concurrent application needs from SQLite, in one call."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

from ._dialects import sqlite as _sqlite
from .errors import OptionError

__all__ = ["configure"]

E = TypeVar("E")

Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]
Begin = Literal["immediate", "deferred"]


def configure(
    engine: E,
    *,
    wal: bool = True,
    foreign_keys: bool = True,
    busy_timeout: float = 5.0,
    synchronous: Synchronous = "NORMAL",
    begin: Begin = "immediate",
) -> E:
    """Set a SQLite engine up, and return it: ``engine = sqlite.configure(create_engine("sqlite:///app.db"))``.

    Every transaction of the engine then begins with a real BEGIN, inside and outside of scopes. So reads are repeatable,
    DDL is transactional, and a savepoint is undone with the transaction around it.

    Args:
        engine: an ``Engine`` or ``AsyncEngine``. Existing connections are set up when they are next used.
        wal: write-ahead logging: readers and the writer do not wait for each other. False leaves the journal mode
            alone.
        foreign_keys: make SQLite enforce them.
        busy_timeout: how long a statement waits for another connection's lock, in seconds.
        synchronous: how often SQLite waits for the disk. In WAL mode ``"NORMAL"`` cannot corrupt a database, but a power
            failure may lose the last transactions (https://www.sqlite.org/pragma.html#pragma_synchronous).
        begin: ``"immediate"``: a transaction that is not read-only takes the write lock when it begins, so that writers
            queue. ``"deferred"``: it takes the lock with its first write, which fails without waiting if anything that it
            read has changed since.

    Raises:
        OptionError: it is not a SQLite engine, an option cannot have this value, or SQLite is older than 3.35.

    SQL, on each new connection: ``PRAGMA busy_timeout``, ``foreign_keys``, ``journal_mode``, ``synchronous``; then
    ``BEGIN`` or ``BEGIN IMMEDIATE`` for each transaction.
    """
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    name = getattr(getattr(sync_engine, "dialect", None), "name", None)
    if name != _sqlite.DIALECT.name:
        raise OptionError(f"sqlite.configure() takes a SQLite engine, not {engine!r}")
    seconds: Any = busy_timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 2_147_483:
        raise OptionError(f"busy_timeout={busy_timeout!r} was given; it is a number of seconds, 0 or more")
    if synchronous not in get_args(Synchronous):
        raise OptionError(f"synchronous={synchronous!r} was given; it is one of {', '.join(get_args(Synchronous))}")
    if begin not in get_args(Begin):
        raise OptionError(f"begin={begin!r} was given; it is one of {', '.join(get_args(Begin))}")
    config = _sqlite.Config(bool(wal), bool(foreign_keys), float(busy_timeout), synchronous, begin)
    _sqlite.configure(sync_engine, config)
    return engine
