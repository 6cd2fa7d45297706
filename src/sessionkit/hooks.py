"""Work that waits for the outcome: `on_commit`, `on_rollback`; and how to ask for a rollback.

A hook belongs to the savepoint in which you register it. When the outermost transaction has ended and its connection is
back in the pool, the hooks run in the order of registration: an on_commit hook if what it belongs to was committed, an
on_rollback hook if that was undone.
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
    """The hooks of a session that no scope owns: the session's events say how its outermost transaction ended."""

    def __init__(self, session: Session) -> None:
        self.savepoints = Savepoints(session)
        self.hooks: list[Hook] = []
        self.committed = False
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def _after_commit(self, session: Session) -> None:
        # Releasing a savepoint fires this event too.
        self.committed = not session.in_nested_transaction()

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        # close() ends a transaction without a rollback event: only what was seen to commit has committed.
        if transaction.parent is None and self.hooks:
            hooks, self.hooks, committed = self.hooks, [], self.committed
            self.committed = False
            if committed:
                run(due(hooks, "committed", self.savepoints), "committed")
            else:
                # There may be an error on its way to the caller, but in an async session's greenlet we cannot see it. So
                # log what fails here, and replace no error.
                run(due(hooks, "rolled back", self.savepoints), "rolled back", logged=True)


_PLAIN = "sessionkit_hooks"
"""The key in ``Session.info`` under which a session that no scope owns keeps its hooks, for as long as it lives."""


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
            f"{asked} got the async function {getattr(fn, '__qualname__', fn)!r}, but only an async scope can await it; "
            "register a plain function"
        )
    if unit is not None:
        nested = target.in_nested_transaction()
        unit.levels()
        level = target.get_nested_transaction() if nested else None
        hook = Hook(fn, after, level, robust)
        # The session knows its own savepoints. Savepoints set by hand are known only to their connection.
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

    It is dropped if the transaction, or the savepoint in which you registered it, is rolled back. Hooks run in the order
    of registration, after the connection is back in the pool. An error in one does not stop the others.

    Args:
        fn: a callable without arguments; in an async scope it may be async. Its result is ignored.
        session: the session whose transaction is meant, which may be a plain SQLAlchemy one; default: the ambient one.
        robust: log an error of `fn` instead of raising it.

    Returns:
        `fn`, so you can use this as a decorator.

    Raises:
        NoCurrentSession: no scope is open in this thread and task, and no session was given.
        ScopeError: `fn` is async and the session does not belong to an async scope.
        HookError: raised at the scope's exit if `fn` fails (and is not robust); it says that the data is committed.

    Emits no SQL.
    """
    return _register(fn, "committed", session, robust)


def on_rollback(fn: F, *, session: object | None = None, robust: bool = False) -> F:
    """Call `fn` once, after the outermost transaction has ended, if the work done here was rolled back.

    That is the case if the transaction failed, or if it was committed but the savepoint in which you registered `fn` was
    rolled back. Arguments, order and errors are as for `on_commit`, with two differences. If an exception is already on
    its way to the caller, a failing hook is logged and noted on it, and does not replace it. On a session that no scope
    owns, a failing hook is always logged.
    """
    return _register(fn, "rolled back", session, robust)


def set_rollback_only(session: object | None = None) -> None:
    """Make the innermost scope that runs on `session` roll back when it ends, without an exception.

    A scope that owns its transaction then commits nothing; a savepoint rolls back to where it began. If the scope has
    joined another one, that one cannot commit either: its exit raises ``UnexpectedRollback``, because its code does not
    know about the rollback.

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
    if entry is None or entry.opened:  # no entry: the session was passed on to another thread or task
        unit.rollback_only = True
    else:
        entry.rollback_only = True


_NOT_OURS = (
    "set_rollback_only() was called for a session that no scope owns: its owner ends the transaction; call "
    "session.rollback() instead"
)
