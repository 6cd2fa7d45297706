"""Finds the scope that uses a connection, and so sends its statements."""

from __future__ import annotations

import weakref
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, orm
from sqlalchemy.engine import Connection, Engine

from .._spi import root_of, sync_session_of, top
from ..errors import OptionError
from ._observed import name_of

__all__ = ["follow_sessions", "name_of_sender", "root_engine"]


def root_engine(engine: object, asked: str) -> Engine:
    """Return the root engine, whose listeners see everything sent through the engine that the user passed.

    Raises:
        OptionError: it is not an engine.
    """
    inner = getattr(engine, "sync_engine", engine)
    if not isinstance(inner, Engine):
        raise OptionError(f"{asked} takes an Engine or an AsyncEngine, not {engine!r}")
    return root_of(inner)


_sessions: WeakKeyDictionary[Connection, weakref.ref[orm.Session]] = WeakKeyDictionary()
"""The session whose transaction runs on a connection."""


def follow_sessions() -> None:
    """From now on, remember which session has begun a transaction on which connection."""
    if not event.contains(orm.Session, "after_begin", _after_begin):
        event.listen(orm.Session, "after_begin", _after_begin)


def _after_begin(session: orm.Session, transaction: orm.SessionTransaction, connection: Connection) -> None:
    _sessions[connection] = weakref.ref(session)


def name_of_sender(connection: Connection) -> str | None:
    """Return the name of the innermost named scope of this context that runs in the connection's transaction.

    The innermost scope alone would be wrong: code inside a scope of another factory may use the outer session. And when a
    scope ends, it is no longer the ambient one when its last flush is sent.
    """
    reference = _sessions.get(connection)
    session = None if reference is None else reference()
    if session is None:
        return None
    unit: Any = session.__dict__.get("_sessionkit_unit")
    entry = top()
    while entry is not None:
        name = name_of(entry)
        ours = entry.unit is unit and (unit is not None or sync_session_of(entry.handed, "a scope") is session)
        if ours and entry.live and name is not None:
            return name
        entry = entry.outer
    request = getattr(unit, "request", None)
    return None if request is None else request.name
