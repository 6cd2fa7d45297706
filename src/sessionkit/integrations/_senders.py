"""Whose statement it is: the scope that a connection is used by."""

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
    """Return the engine whose listeners hear of all that is sent through what a user calls an engine.

    Raises:
        OptionError: it is none.
    """
    inner = getattr(engine, "sync_engine", engine)
    if not isinstance(inner, Engine):
        raise OptionError(f"{asked} takes an Engine or an AsyncEngine, not {engine!r}")
    return root_of(inner)


_sessions: WeakKeyDictionary[Connection, weakref.ref[orm.Session]] = WeakKeyDictionary()
"""Whose transaction runs on a connection."""


def follow_sessions() -> None:
    """Remember from now on which session has begun a transaction on which connection."""
    if not event.contains(orm.Session, "after_begin", _after_begin):
        event.listen(orm.Session, "after_begin", _after_begin)


def _after_begin(session: orm.Session, transaction: orm.SessionTransaction, connection: Connection) -> None:
    _sessions[connection] = weakref.ref(session)


def name_of_sender(connection: Connection) -> str | None:
    """Return the name of the innermost named scope of this context that runs in the connection's transaction.

    Not simply of the innermost scope: inside a scope of another factory, the session of the outer one may be used. And
    as a scope ends, its last flush is sent when it is the ambient one no more.
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
