"""What failed on a connection, and whether a savepoint has undone it.

PostgreSQL refuses everything after a failed statement and answers COMMIT with ROLLBACK, silently; SQLite
goes on and commits the rest. So that both behave the same, a scope asks here before it commits. The answer
comes from the engine's own events, which see every statement of the connection, whoever sent it.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.engine import TwoPhaseTransaction

from ..errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Connection, Engine, ExceptionContext

_order = count()


class Failure(NamedTuple):
    """Something went wrong: the error, and its place in the order of all failures of the process."""

    order: int
    error: BaseException

    @classmethod
    def now(cls, error: BaseException) -> Failure:
        return cls(next(_order), error)


class FailureLog:
    """The failures of one transaction that no savepoint has undone. Pure: names and errors go in."""

    __slots__ = ("_failures", "_marks", "_savepoints")

    def __init__(self) -> None:
        self._savepoints: list[str | None] = []  # None: set, but its name is not known yet
        self._failures: list[tuple[int, Failure]] = []  # (how many savepoints enclosed it, what)
        self._marks: list[tuple[int, object]] = []

    def failed(self, error: BaseException) -> None:
        """Note that a statement failed where the transaction stands now."""
        if self._savepoints and self._savepoints[-1] is None:
            del self._savepoints[-1]  # still without a name: it was SAVEPOINT that failed
        if not self._failures or self._failures[-1][1].error is not error:
            self._failures.append((len(self._savepoints), Failure.now(error)))

    def mark(self, what: object) -> None:
        """Note `what` where the transaction stands now: it `holds` until a savepoint around it is rolled back."""
        self._marks.append((len(self._savepoints), what))

    def holds(self, what: object) -> bool:
        """Tell whether `what`, which was marked, has not been rolled back."""
        return any(each is what for _, each in self._marks)

    def set(self) -> None:
        """SAVEPOINT: its name becomes known later, see `named`."""
        self._savepoints.append(None)

    def named(self, name: str) -> None:
        """The innermost savepoint that is known to be set is called `name`."""
        if self._savepoints and self._savepoints[-1] is None and name not in self._savepoints:
            self._savepoints[-1] = name

    def rolled_back_to(self, name: str) -> None:
        """ROLLBACK TO SAVEPOINT `name`: what failed since it was set is undone."""
        depth = self._depth(name)
        if depth is not None:
            self._failures = [f for f in self._failures if f[0] <= depth]
            self._marks = [m for m in self._marks if m[0] <= depth]
            del self._savepoints[depth:]

    def released(self, name: str) -> None:
        """RELEASE SAVEPOINT `name`: what failed since it was set now belongs to what encloses it."""
        depth = self._depth(name)
        if depth is not None:
            self._failures = [(min(f[0], depth), f[1]) for f in self._failures]
            self._marks = [(min(m[0], depth), m[1]) for m in self._marks]
            del self._savepoints[depth:]

    def _depth(self, name: str) -> int | None:
        # The innermost one counts where a name was used twice, as in SQL.
        for depth in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[depth] == name:
                return depth
        return None

    def first(self, depth: int = 0) -> Failure | None:
        """Return the first failure that lies inside at least `depth` savepoints."""
        return next((f for d, f in self._failures if d >= depth), None)

    @property
    def depth(self) -> int:
        """How many savepoints are set."""
        return len(self._savepoints)


_logs: WeakKeyDictionary[Connection, FailureLog] = WeakKeyDictionary()
_watched: WeakSet[Engine] = WeakSet()
_two_phases: WeakSet[Connection] = WeakSet()


SCOPED = "sessionkit_scope"
"""The execution option of the connections whose transactions belong to a scope."""

committing: ContextVar[list[Connection] | None] = ContextVar("sessionkit_committing", default=None)
"""While a scope commits: the connections to which COMMIT was sent so far, in order. Otherwise None."""

# Not those that work on savepoints or on prepared transactions.
_ENDS_TRANSACTION = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(COMMIT|END|ABORT|ROLLBACK|PREPARE\s+TRANSACTION)\b"
    r"(?!\s+(?:PREPARED|(?:(?:WORK|TRANSACTION)\s+)?TO)\b)",
    re.IGNORECASE | re.DOTALL,
)


def for_scopes(engine: Engine, follow: Callable[[Connection], None]) -> Engine:
    """Derive the engine whose connections belong to scopes; `follow` is called as a transaction begins."""
    scoped = engine.execution_options(**{SCOPED: True})
    event.listen(scoped, "before_cursor_execute", _refuse_end)
    event.listen(scoped, "begin", follow)
    return scoped


def _refuse_end(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    # A two-phase commit is sent as SQL by some of SQLAlchemy's dialects.
    if (match := _ENDS_TRANSACTION.match(statement)) is not None and committing.get() is None:
        raise ScopeError(
            f"{match[1].upper()} was sent as SQL inside a scope, which decides when its transaction ends; to have "
            "nothing committed, raise an exception or call set_rollback_only(session)"
        )


def failure_log(connection: Connection) -> FailureLog | None:
    """Return the log of the connection's transaction, or None where nothing ever went wrong in it."""
    return _logs.get(connection)


def mark(connections: Iterable[Connection], what: object) -> list[FailureLog]:
    """Note `what` on those of the connections that have a savepoint set, and return the logs that hold it.

    The session knows its own savepoints; those that were set on a connection by hand are known here only.
    """
    logs = [_log(connection) for connection in connections if connection.in_nested_transaction()]
    for log in logs:
        log.mark(what)
    return logs


def note_failure(connection: Connection, error: BaseException) -> None:
    """Note a failure that SQLAlchemy cannot see, of a statement sent through the driver's own cursor."""
    _log(connection).failed(error)


def note_two_phases(connection: Connection) -> None:
    """Note that the transaction of a scope's connection may come to be prepared."""
    _two_phases.add(connection)


def has_two_phases(connection: Connection) -> bool:
    """Tell whether the transaction may come to be prepared, by a scope or by SQLAlchemy."""
    return connection in _two_phases or isinstance(connection.get_transaction(), TwoPhaseTransaction)


def begun_again(connection: Connection) -> None:
    """Forget the failures of a transaction of which the driver has undone all, before anything else was sent in it."""
    _logs.pop(connection, None)


def watch(engine: Engine) -> None:
    """Begin to follow an engine, once. Its behaviour does not change."""
    if engine in _watched:
        return
    root = engine
    while (proxied := getattr(root, "_proxied", None)) is not None:
        root = proxied  # the listeners of an engine fire for what execution_options() derived from it
    if root not in _watched:
        _watched.add(root)
        event.listen(root, "begin", _on_begin)
        event.listen(root, "savepoint", _on_savepoint)
        event.listen(root, "rollback_savepoint", _on_rollback_savepoint)
        event.listen(root, "release_savepoint", _on_release_savepoint)
        event.listen(root, "handle_error", _on_error)
        event.listen(root, "commit", _on_commit)
        event.listen(root, "commit_twophase", _on_commit)
    _watched.add(engine)


def _on_begin(connection: Connection) -> None:
    _logs.pop(connection, None)


def _on_commit(connection: Connection, *_: Any) -> None:
    sent = committing.get()
    if sent is not None:
        sent.append(connection)
    elif connection.get_execution_options().get(SCOPED):
        raise ScopeError(
            "COMMIT was asked for on a connection or transaction inside a scope, which decides when its transaction "
            "ends: it "
            "commits when its block ends; for a transaction of your own, open a scope with propagation='new'"
        )


def _on_savepoint(connection: Connection, _: str | None) -> None:
    _log(connection).set()


def _on_rollback_savepoint(connection: Connection, name: str, _: None) -> None:
    _log(connection).rolled_back_to(name)


def _on_release_savepoint(connection: Connection, name: str, _: None) -> None:
    _log(connection).released(name)


def _log(connection: Connection) -> FailureLog:
    log = _logs.get(connection)
    if log is None:
        log = _logs[connection] = FailureLog()
    # The event of SAVEPOINT comes before SQLAlchemy has made up a name; the transaction object has it from then on.
    nested = connection.get_nested_transaction()
    if nested is not None:
        log.named(nested._savepoint)
    return log


def _on_error(context: ExceptionContext) -> None:
    # Without an execution context the statement was refused on the client's side (a value that a type cannot bind,
    # say) and nothing was sent: the transaction is as good as before. A lost connection has none either, but
    # is_disconnect.
    if context.connection is not None and (context.execution_context is not None or context.is_disconnect):
        _log(context.connection).failed(context.sqlalchemy_exception or context.original_exception)
