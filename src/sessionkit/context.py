"""The ambient session: the innermost scope of this thread and task.

One ``ContextVar`` holds the innermost `Entry`; each entry links to the one around it. Only the thread or asyncio task
that made an entry sees it: a child task inherits a copy of the context, but a session must not be shared, so the lookup
skips the entry there (see tests/contract/test_ownership.py). The exception is an entry that an integration has lent to a
thread while the owner waits for that thread (see Entry.lent).
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import NoCurrentSession, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.ext.asyncio import async_scoped_session as sa_async_scoped_session
    from sqlalchemy.orm import Session, sessionmaker
    from sqlalchemy.orm import scoped_session as sa_scoped_session

    S = TypeVar("S", bound=Session)
    AS = TypeVar("AS", bound=AsyncSession)

__all__ = ["current_session"]

get_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
get_ident = threading.get_ident


def here() -> object:
    """Return what is running: the asyncio task if there is one, else the thread's identifier."""
    loop = get_running_loop()
    if loop is not None:
        task = _current_task(loop)
        if task is not None:
            return task
    return get_ident()


def describe(owner: object) -> str:
    """Name a thread or task, as returned by `here`, for a message."""
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()!r}"
    for thread in threading.enumerate():
        if thread.ident == owner:
            return f"thread {thread.name!r}"
    return f"thread {owner}"


class State(Enum):
    """The state of an entry into a scope."""

    OPEN = "its body runs"
    ENDING = "it is ending: listeners and the last flush still run inside it"
    COMMITTING = "it is committing"
    COMMITTED = "it has committed"
    ROLLED_BACK = "it was rolled back"
    UNKNOWN = "it has ended, and whether it was committed is not known"
    LEFT = "it has ended; it had joined a transaction, which goes on"
    FORKED = "it belongs to the parent of this process"

    # Enum's own is written in Python and hashes the name.
    __hash__ = object.__hash__


OPEN, ENDING = State.OPEN, State.ENDING


class Entry:
    """One entry into a scope, as the context remembers it.

    Many threads may enter a scope at once, so the scope holds no state of its entries. What an entry begins and ends is in
    its subclasses, `Unit` and `Joined`.
    """

    __slots__ = (
        "__weakref__",
        "factory",
        "handed",
        "lent",
        "observations",
        "outer",
        "owner",
        "rollback_only",
        "scope",
        "state",
    )

    opened = False  # whether this entry began the transaction, and so ends it

    def __init__(self, scope: Any, handed: Any, owner: object) -> None:
        self.scope = scope
        self.factory = scope._factory  # a scope joins only the scopes of its own factory
        self.handed = handed  # what the body got: a Session or an AsyncSession; None once the entry has ended
        self.owner = owner
        self.state = OPEN
        self.rollback_only = False
        self.observations: tuple[Any, ...] = ()  # of the observers: see _observers
        # Says whether a thread or task that inherited this context works for the owner, which waits for it in the
        # meantime: a framework may run part of a request in a worker thread. Set only by integrations.
        self.lent: Callable[[object], bool] | None = None
        # Do not link to an entry that has ended: a task that starts a task that starts a task would keep them all.
        outer = _innermost.get()
        while outer is not None and outer.handed is None:
            outer = outer.outer
        self.outer: Entry | None = outer

    if TYPE_CHECKING:
        unit: Any  # the unit of work it takes part in; None on a session that the caller passed in

    @property
    def live(self) -> bool:
        """Whether it is ambient: its body is running, or the flush at its end."""
        return self.state is OPEN or self.state is ENDING

    def belongs_to(self, owner: object) -> bool:
        """Return whether `owner` may see it."""
        return self.owner == owner or (self.lent is not None and self.lent(owner))


_innermost: ContextVar[Entry | None] = ContextVar("sessionkit_innermost_scope", default=None)

top = _innermost.get
"""Return the innermost entry of this context, whichever thread or task owns it."""

push = _innermost.set
"""Make an entry the innermost one."""


def pop(entry: Entry) -> None:
    """Drop an entry that has ended. A context that never saw it (a teardown elsewhere) stays as it is."""
    if entry.state is OPEN or entry.state is ENDING:
        entry.state = State.LEFT
    # A copied context (of a task, a thread, a driver's timer) may live long, and so may a task's exception.
    entry.handed = entry.owner = entry.lent = None
    if _innermost.get() is entry:
        outer = entry.outer
        while outer is not None and outer.handed is None:  # scopes that ended out of order
            outer = outer.outer
        _innermost.set(outer)


def innermost(factory: object | None, owner: object) -> Entry | None:
    """Return the innermost live entry of `owner`; of one factory, if you pass one."""
    entry = _innermost.get()
    while entry is not None:
        if (
            (entry.state is OPEN or entry.state is ENDING)
            and (factory is None or entry.factory is factory)
            and (entry.owner == owner or (entry.lent is not None and entry.lent(owner)))
        ):
            return entry
        entry = entry.outer
    return None


# -- fork ---------------------------------------------------------------------------------------------------------

forks: list[int] = []
"""The process identifiers of the forks between the process that imported this module and this one; usually empty."""

process = [os.getpid()]
"""The process that this module knows it runs in. A server written in C, such as uWSGI, forks without calling Python's hooks, so
each scope compares when it begins."""

_inherited: list[Entry] = []
"""The parent's open entries in a forked child. They are kept, so that no destructor touches the parent's connections."""


def forked() -> None:
    """Take note that this process is a new one, whose parent owns the open scopes."""
    process[0] = os.getpid()
    forks.append(os.getpid())
    entry = _innermost.get()
    while entry is not None:
        entry.state = State.FORKED
        _inherited.append(entry)
        entry = entry.outer
    _innermost.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forked)


# -- asking for the ambient session ---------------------------------------------------------------------------------


def factory_key(factory: object) -> object:
    """Return the object that identifies a factory: for a scoped session, the factory inside it."""
    inner = getattr(factory, "session_factory", None)
    return factory if inner is None else factory_key(inner)


def require(factory: object | None, asked: str) -> Entry:
    """Return the innermost entry, or raise an error that says why no scope is open here."""
    owner = here()
    entry = innermost(factory, owner)
    if entry is not None:
        return entry
    which = "" if factory is None else f" of {factory!r}"
    other = _innermost.get()
    while other is not None:
        if other.live and (factory is None or other.factory is factory):
            raise NoCurrentSession(
                f"{asked} was called in {describe(owner)}, where no scope{which} is open; the one that is open belongs "
                f"to {describe(other.owner)}, and a session is never shared between threads or tasks: open a scope "
                "here, or pass plain values instead of the session"
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
        The same object that the scope handed to its body: a ``Session`` or an ``AsyncSession``.

    Raises:
        NoCurrentSession: no such scope is open in this thread and task. A scope of a parent task or of another thread
            does not count, because a session must not be shared.

    Emits no SQL.
    """
    return require(None if factory is None else factory_key(factory), "current_session()").handed


def current_of(session: Any) -> Any:
    """Return the current session of a scoped session, sync or async; anything else unchanged."""
    registry = getattr(session, "registry", None)
    return registry() if registry is not None and hasattr(session, "session_factory") else session


def sync_session_of(session: Any, asked: str) -> Session:
    """Return the ``Session`` inside a Session, an AsyncSession or a scoped session.

    Raises:
        ScopeError: it is something else.
    """
    from sqlalchemy.orm import Session

    # A scoped session holds an AsyncSession, which holds a Session.
    seen = session
    for _ in range(3):
        if isinstance(seen, Session):
            return seen
        seen = getattr(seen, "sync_session", None) or current_of(seen)
    raise ScopeError(f"{asked} takes a Session, an AsyncSession or a scoped session, not {session!r}")
