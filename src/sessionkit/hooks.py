"""Work that waits for the outcome: `on_commit`, `on_rollback`; and asking for a rollback.

A hook belongs to the savepoint in which it was registered. When the outermost transaction has ended, the hooks run in
the order of their registration, after the connection was given back: an on_commit hook if what it belongs to was
committed, an on_rollback hook if that was undone.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import event

from ._core.connection import ScopeConnection
from ._core.hooks import Hook, HookFunction, due, run
from ._core.savepoints import Savepoints, connections
from ._core.session import unit_of
from .context import Entry, here, require, sync_session_of, top
from .errors import Outcome, ScopeError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["on_commit", "on_rollback", "set_rollback_only"]

F = TypeVar("F", bound=HookFunction)


class _PlainHooks:
    """The hooks of a session that no scope owns: its own events tell how its outermost transaction ended."""

    def __init__(self, session: Session) -> None:
        self.savepoints = Savepoints(session)
        self.hooks: list[Hook] = []
        self.committed = False
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def _after_commit(self, session: Session) -> None:
        # A savepoint's release fires this event as well.
        self.committed = not session.in_nested_transaction()

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        # close() ends a transaction without any rollback event: only what was seen to commit has committed.
        if transaction.parent is None and self.hooks:
            hooks, self.hooks, committed = self.hooks, [], self.committed
            self.committed = False
            if committed:
                run(due(hooks, "committed", self.savepoints), "committed")
            else:
                # Maybe because of an error that is on its way to the caller; in an async session's greenlet it cannot
                # be seen. So what fails here is logged, and takes no error's place.
                run(due(hooks, "rolled back", self.savepoints), "rolled back", logged=True)


_PLAIN = "sessionkit_hooks"
"""The key in ``Session.info`` under which a session that no scope owns keeps its hooks: they live as long as it does."""


def _register(fn: F, after: Outcome, session: object | None, robust: bool) -> F:
    asked = "on_commit()" if after == "committed" else "on_rollback()"
    if not callable(fn):
        raise ScopeError(f"{asked} takes a callable without arguments, not {fn!r}")
    if session is None:
        entry = require(None, asked)
        unit = entry.unit
        target = sync_session_of(entry.handed, asked) if unit is None else unit.session
    else:
        target = sync_session_of(session, asked)
        unit = unit_of(target)
    if inspect.iscoroutinefunction(fn) and not (unit is not None and unit.asynchronous):
        raise ScopeError(
            f"{asked} got the async function {getattr(fn, '__qualname__', fn)!r}, but only an async scope can await "
            f"it; "
            "register a plain function"
        )
    if unit is not None:
        nested = target.in_nested_transaction()
        unit.levels()
        level = target.get_nested_transaction() if nested else None
        hook = Hook(fn, after, level, robust)
        # The session knows its own savepoints; those that were set on a connection by hand are known there only.
        for connection in connections(unit.transaction):
            if isinstance(connection, ScopeConnection) and connection.in_nested_transaction():
                connection.log().mark(hook)
                hook.marked.append(connection.log())
        unit.hooks.append(hook)
        return fn
    if not target.in_transaction():
        target.begin()
    plain: _PlainHooks | None = target.info.get(_PLAIN)
    if plain is None:
        plain = target.info[_PLAIN] = _PlainHooks(target)
    plain.hooks.append(Hook(fn, after, target.get_nested_transaction(), robust))
    return fn


def on_commit(fn: F, *, session: object | None = None, robust: bool = False) -> F:
    """Call `fn` once, after the real COMMIT of the outermost transaction.

    It is dropped when the transaction, or the savepoint in which it was registered, is rolled back. Hooks run in the
    order of registration, when the connection has been given back; an error in one does not keep the others from
    running.

    Args:
        fn: a callable without arguments; in an async scope it may be async. Its result is ignored.
        session: the session whose transaction is meant, also a plain SQLAlchemy one; default: the ambient one.
        robust: log an error of `fn` instead of raising it.

    Returns:
        `fn`, so that this can be used as a decorator.

    Raises:
        NoCurrentSession: no scope is open in this thread and task, and no session was given.
        ScopeError: `fn` is async and the session is not an async scope's.
        HookError: raised by the scope's exit if `fn` fails (and is not robust): it says that the data is committed.

    Emits no SQL.
    """
    return _register(fn, "committed", session, robust)


def on_rollback(fn: F, *, session: object | None = None, robust: bool = False) -> F:
    """Call `fn` once, after the outermost transaction has ended, if what was done here was rolled back.

    That is so when the transaction failed, and also when it was committed but the savepoint in which `fn` was
    registered was rolled back. Arguments, order and errors are those of `on_commit`; where an exception is on its way
    to the caller already, a failing hook is logged and noted on it, never raised in its place; on a session that no
    scope owns, it is always logged.
    """
    return _register(fn, "rolled back", session, robust)


def set_rollback_only(session: object | None = None) -> None:
    """Have the innermost scope that runs on `session` roll back when it ends, without an exception.

    A scope that owns its transaction then commits nothing; a savepoint rolls back to where it began; if the scope had
    joined another one, that one cannot commit either, and its exit raises ``UnexpectedRollback``, since its code does
    not know.

    Args:
        session: the scope's session; default: the ambient one.

    Raises:
        NoCurrentSession: no scope is open in this thread and task, and no session was given.
        ScopeError: the session belongs to no scope; call its own ``rollback()``.
    """
    if session is None:
        entry: Entry | None = require(None, "set_rollback_only()")
        assert entry is not None
        unit = entry.unit
    else:
        unit = unit_of(sync_session_of(session, "set_rollback_only()"))
        owner, entry = here(), top()
        while entry is not None and not (entry.unit is unit and entry.live and entry.belongs_to(owner)):
            entry = entry.outer
    if unit is None:
        raise ScopeError(_NOT_OURS)
    if entry is None or entry.opened:  # no entry: the session was handed on to another thread or task
        unit.rollback_only = True
    else:
        entry.rollback_only = True


_NOT_OURS = (
    "set_rollback_only() was asked for on a session that no scope owns; its owner ends its transaction: "
    "call session.rollback()"
)
