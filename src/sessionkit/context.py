"""The ambient session: which scope this thread and this task are inside of.

One ``ContextVar`` holds the innermost `Entry`; entries are linked outwards. An entry is visible only to
the thread and the asyncio task that made it: a child task inherits a copy of the context, but a session
is no thing to share, so there the entry is passed over (see tests/contract/test_ownership.py). The exception
is an entry that an integration has lent to the thread for which its owner waits (see Entry.lent).
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import NoCurrentSession, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.ext.asyncio import async_scoped_session as sa_async_scoped_session
    from sqlalchemy.orm import Session, sessionmaker
    from sqlalchemy.orm import scoped_session as sa_scoped_session

    from ._inner import Inner
    from ._observers import Observation
    from ._unit.unit import Unit

    S = TypeVar("S", bound=Session)
    AS = TypeVar("AS", bound=AsyncSession)

__all__ = ["current_session"]

_get_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
_get_ident = threading.get_ident


def here() -> object:
    """Return who is running: the asyncio task if there is one, else the thread's identifier."""
    loop = _get_running_loop()
    if loop is not None:
        task = _current_task(loop)
        if task is not None:
            return task
    return _get_ident()


def describe(owner: object) -> str:
    """Name a thread or task as `here` returned it, for a message."""
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()!r}"
    for thread in threading.enumerate():
        if thread.ident == owner:
            return f"thread {thread.name!r}"
    return f"thread {owner}"


class Entry:
    """One entry into a scope: what its exit has to undo.

    A scope is a value that many threads may enter at once, so nothing of an entry is kept in the scope.
    """

    __slots__ = (
        "handed",
        "inner",
        "key",
        "lent",
        "live",
        "observations",
        "opened",
        "outer",
        "owner",
        "rollback_only",
        "scope",
        "unit",
    )

    def __init__(
        self,
        scope: object,
        key: object,
        unit: Unit | None,
        handed: Any,
        outer: Entry | None,
        owner: object,
        opened: bool,
        inner: Inner,
    ) -> None:
        self.scope = scope
        self.key = key  # the factory: a scope joins only the scopes of its own factory
        self.unit = unit  # None: the session was passed in by the caller, who owns it
        self.handed = handed  # what the body got: a Session, or an AsyncSession
        self.outer = outer
        self.owner = owner
        self.opened = opened  # whether this entry began the transaction, and so ends it
        self.inner = inner  # what the end of an entry that did not begin the transaction has to end
        self.rollback_only = False
        self.live = True
        self.observations: tuple[Observation, ...] = ()  # who is told when it is left
        # Tells of a thread or task that inherited this context whether it works for the owner, who waits for it
        # meanwhile: a framework that runs a part of a request in a worker thread. Set by integrations only.
        self.lent: Callable[[object], bool] | None = None

    def belongs_to(self, owner: object) -> bool:
        """Tell whether `owner` may see it."""
        return self.owner == owner or (self.lent is not None and self.lent(owner))


_innermost: ContextVar[Entry | None] = ContextVar("sessionkit_innermost_scope", default=None)


def top() -> Entry | None:
    """Return the innermost entry of this context, whoever owns it."""
    return _innermost.get()


def push(entry: Entry) -> None:
    """Make `entry` the innermost one."""
    _innermost.set(entry)


def pop(entry: Entry) -> None:
    """End `entry`. In a context that never saw it (a teardown elsewhere) there is nothing to restore."""
    entry.live = False
    if _innermost.get() is entry:
        _innermost.set(entry.outer)


def innermost(key: object | None, owner: object) -> Entry | None:
    """Return the innermost live entry of `owner`, of the factory `key` if one is given."""
    entry = _innermost.get()
    while entry is not None:
        if entry.live and (key is None or entry.key is key) and entry.belongs_to(owner):
            return entry
        entry = entry.outer
    return None


def factory_key(factory: object) -> object:
    """Return what identifies a factory: a scoped session stands for the factory inside it."""
    inner = getattr(factory, "session_factory", None)
    return factory if inner is None else factory_key(inner)


def require(key: object | None, asked: str) -> Entry:
    """Return the innermost entry, or raise an error that tells why there is none."""
    owner = here()
    entry = innermost(key, owner)
    if entry is not None:
        return entry
    which = "" if key is None else f" of {key!r}"
    other = _innermost.get()
    while other is not None:
        if other.live and (key is None or other.key is key):
            raise NoCurrentSession(
                f"{asked} was called in {describe(owner)}, where no scope{which} is open; the one that is open "
                f"belongs to "
                f"{describe(other.owner)}, and a session is never shared between threads or tasks: "
                "open a scope here, or pass plain values instead of the session"
            )
        other = other.outer
    raise NoCurrentSession(
        f"{asked} was called where no scope{which} is open; call it inside `with Session.scope()`, or pass session="
    )


@overload
def current_session(factory: sessionmaker[S] | sa_scoped_session[S]) -> S: ...
@overload
def current_session(factory: async_sessionmaker[AS] | sa_async_scoped_session[AS]) -> AS: ...
@overload
def current_session(factory: None = None) -> Any: ...
def current_session(factory: object | None = None) -> Any:
    """Return the session of the innermost scope of this thread and task.

    Args:
        factory: look only at scopes of this factory (or of the factory inside this scoped session).

    Returns:
        The very object that the scope handed to its body: a ``Session``, or an ``AsyncSession``.

    Raises:
        NoCurrentSession: no such scope is open in this thread and task. The scope of a parent task
            or of another thread does not count: it is not theirs to share.

    Emits no SQL.
    """
    return require(None if factory is None else factory_key(factory), "current_session()").handed


def current_of(session: Any) -> Any:
    """Return the session that a scoped session stands for, in the colour of both; anything else as it is."""
    registry = getattr(session, "registry", None)
    return registry() if registry is not None and hasattr(session, "session_factory") else session


def sync_session_of(session: Any, asked: str) -> Session:
    """Return the ``Session`` inside what a user calls a session.

    Raises:
        ScopeError: it is none.
    """
    from sqlalchemy.orm import Session

    seen = session
    for _ in range(3):
        if isinstance(seen, Session):
            return seen
        seen = getattr(seen, "sync_session", None) or current_of(seen)
    raise ScopeError(f"{asked} takes a Session, an AsyncSession or a scoped session, not {session!r}")
