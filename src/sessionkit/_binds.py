"""What a factory may be bound to: an engine of its kind (sync or async), or a connection. Checked when you pass it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import orm
from sqlalchemy.engine import URL, Connection, Engine

from .errors import OptionError, ScopeError, SessionKitError, SyncAsyncMismatch

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_OURS = __name__.partition(".")[0]


def check_binds(arguments: Mapping[str, Any], asynchronous: bool, where: str) -> None:
    """Check ``bind`` and ``binds`` of a factory's arguments. None is fine: ``configure()`` may follow.

    Raises:
        SyncAsyncMismatch: an engine or connection is async where a sync one is needed, or the other way round.
        OptionError: something is neither an engine nor a connection.
    """
    bind, binds = arguments.get("bind"), arguments.get("binds")
    if bind is not None:
        _check(bind, asynchronous, where, "as bind")
    if binds is None:
        return
    if not isinstance(binds, Mapping):
        raise OptionError(f"binds={binds!r} was given to {where}; it maps classes and tables to engines")
    for key, each in binds.items():
        if each is not None:
            _check(each, asynchronous, where, f"in binds, for {getattr(key, '__name__', key)}")


def _check(bind: Any, asynchronous: bool, where: str, place: str) -> None:
    found = _mistake(bind, asynchronous)
    if found is not None:
        kind, what, remedy = found
        raise kind(f"{what} was given to {where} {place}; {remedy}")


def _mistake(bind: Any, asynchronous: bool) -> tuple[type[SessionKitError], str, str] | None:
    asyncio_part = sys.modules.get("sqlalchemy.ext.asyncio")
    of_asyncio = asyncio_part is not None and isinstance(bind, asyncio_part.AsyncEngine | asyncio_part.AsyncConnection)
    if of_asyncio:
        remedy = "make the factory with async_sessionmaker(), or pass an engine from create_engine()"
        return None if asynchronous else (SyncAsyncMismatch, f"{bind!r}, which is async,", remedy)
    if asynchronous and isinstance(bind, Engine | Connection):
        return (
            SyncAsyncMismatch,
            f"{bind!r}, which is sync,",
            "pass an engine from create_async_engine(), or make the factory with sessionmaker()",
        )
    make = "create_async_engine(url)" if asynchronous else "create_engine(url)"
    if isinstance(bind, str | URL):
        # Not quoted: it may hold a password.
        return OptionError, "a URL" if isinstance(bind, URL) else "a string", f"pass the engine that {make} makes"
    if isinstance(bind, orm.Session) or (asyncio_part is not None and isinstance(bind, asyncio_part.AsyncSession)):
        return OptionError, f"the session {bind!r}", "pass its engine"
    # Look for an attribute instead of the class: tests of applications pass objects that only resemble an engine.
    if not hasattr(bind, "dialect"):
        return OptionError, f"{bind!r}", f"pass an engine, such as {make} makes"
    return None


def refuse_unbound(session: Session) -> None:
    """Refuse a session that has no engine and no way of its own to find one. Called when none was found.

    Not earlier: a statement may name its engine itself, with ``bind_arguments``.

    Raises:
        ScopeError: it has neither ``bind`` nor ``binds``, and its ``get_bind`` is SQLAlchemy's.
    """
    # The mapping of binds= is public in SQLAlchemy 2.1 and later.
    if session.bind is not None or getattr(session, "binds", None) or getattr(session, "_Session__binds", None):
        return
    for kind in type(session).__mro__:
        if kind is orm.Session:
            break
        if "get_bind" in kind.__dict__ and kind.__module__.partition(".")[0] != _OURS:
            return
    raise ScopeError(
        "a scope was opened on a factory that has no engine; give it one: sessionmaker(engine), binds={...}, or "
        "Session.configure(bind=engine) before the first scope"
    )


def primary_of(session: Any) -> Any:
    """Return where the mutex and the keys of a session are held: its bind, or its first engine; None where it has neither."""
    if session.bind is not None:
        return session.bind
    # The mapping of binds= is public from SQLAlchemy 2.1 on.
    binds: dict[Any, Any] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return next((bind for bind in binds.values() if isinstance(bind, Engine)), None)
