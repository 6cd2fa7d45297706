"""Inner scopes: entries that do not begin the transaction. They join, set a savepoint, or refuse writes.

Synchronous; where it does I/O, the async shell runs it through the session's greenlet bridge. To be read-only inside a
read-write transaction, PostgreSQL has ``SET LOCAL transaction_read_only``. It runs in a savepoint that is rolled back at
the end, because nothing else makes the transaction read-write again. SQLite has ``PRAGMA query_only``, and gets a
savepoint as well, so that both behave the same.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import UnboundExecutionError

from .. import _dialects
from .._plan import Step
from ..context import ENDING, Entry, State
from ..errors import ScopeError, UnexpectedRollback, describe
from .commit import RollbackAsked, first_failure, flush_error, swallowed
from .connection import ScopeConnection, failures_of, follow, unfollow
from .savepoints import connections

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, NestedTransaction
    from sqlalchemy.orm import Session, SessionTransaction

    from .._plan import Request
    from .unit import Unit

logger = logging.getLogger("sessionkit")


class Joined(Entry):
    """An entry into the transaction of a unit, or of a session that the caller passed in (then `unit` is None)."""

    __slots__ = ("_by_hand", "_followed", "_narrowing", "claim", "mutex", "request", "restriction", "savepoint", "unit")

    def __init__(self, scope: Any, handed: Any, owner: object, unit: Unit | None) -> None:
        Entry.__init__(self, scope, handed, owner)
        self.unit: Unit | None = unit
        self.request: Request = scope._request
        self.savepoint: SessionTransaction | None = None
        self.restriction: Restriction | None = None
        self._followed: list[Connection] = []
        self.mutex: str | None = None  # the text of the mutex that it has taken
        self.claim: Any = None  # the key of `once` that it has claimed, or whose result it has found
        self._narrowing: Any = None  # the settings that last as long as its savepoint
        self._by_hand: Any = None  # the feature for manual commits, if the unit itself refuses them

    @property
    def only_joins(self) -> bool:
        """Whether it has set nothing that must be ended with it."""
        return self.savepoint is None and self.restriction is None and self._by_hand is None and self.claim is None

    @property
    def begins(self) -> bool:
        """Whether joining does more than join."""
        return self.takes_mutex or self.allows_commits or self.request.compares or self.request.once is not None

    @property
    def takes_mutex(self) -> bool:
        """Whether the scope itself asked for a mutex; a factory's default applies only to the outermost scope."""
        return self.request.mutex is not None and "mutex" in self.request.given

    @property
    def allows_commits(self) -> bool:
        """Whether it asks for manual commits in a unit that refuses them."""
        return (
            self.request.manual_commit == "savepoint"
            and self.unit is not None
            and self.unit.request.manual_commit == "refuse"
        )

    def begin(self, session: Session, step: Step) -> Joined:
        """Do what the step asks for. I/O, unless the step is only to join."""
        saves = step in (Step.SAVEPOINT, Step.SAVEPOINT_READ_ONLY)
        narrowing: Any = None
        if self.unit is not None and self.request.compares:
            from .features.settings import settle

            narrowing = settle(self.unit, self.request, saves)
        if saves:
            self.savepoint = self._set_savepoint(session)
        try:
            if narrowing is not None:
                self._narrowing = narrowing
                narrowing.begin(self.savepoint)
            if self.unit is not None and self.takes_mutex:
                from .features.mutex import join_mutex

                self.mutex = join_mutex(self.unit, self.request)
            if self.unit is not None and self.request.once is not None:
                from .features.once import join_once

                self.claim = join_once(self.unit, self.request)
            if step in (Step.JOIN_READ_ONLY, Step.SAVEPOINT_READ_ONLY):
                assert self.unit is not None
                self.restriction = Restriction(self.unit)
        except BaseException:
            if self.savepoint is not None:
                self.savepoint.rollback()
            if self._narrowing is not None:
                self._narrowing.end()
            raise
        if self.allows_commits:
            from .features.manual_commit import ManualCommit

            assert self.unit is not None
            self._by_hand = ManualCommit(self.unit)
            self.unit.features = (*self.unit.features, self._by_hand)
        return self

    def _set_savepoint(self, session: Session) -> SessionTransaction:
        """SAVEPOINT, when the first statement needs it. First flushes pending changes, which belong outside of it."""
        savepoint = session.begin_nested()
        for feature in () if self.unit is None else self.unit.features:
            feature.savepoint_set()
        if self.unit is None:
            # Follow the connections of a plain session while the savepoint lasts, to see a failure that is swallowed
            # inside it.
            session.connection()
            for connection in connections(savepoint):
                if not isinstance(connection, ScopeConnection):
                    nested = connection.get_nested_transaction()
                    log = follow(connection).log()
                    if nested is not None:
                        log.set(nested._savepoint)
                    self._followed.append(connection)
        return savepoint

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, session: Session | None, error: BaseException | None) -> None:
        """End what this entry has begun. I/O, unless it has only joined: then the session is not needed."""
        unit = self.unit
        if unit is not None and (unit.session is None or unit.state is State.FORKED):
            if error is None:
                raise ScopeError(
                    f"a scope that had joined {unit} was left after that had ended, so its later work was in no "
                    "transaction; leave the inner scope first"
                )
            return
        self.state = ENDING
        try:
            if self.restriction is not None:
                self.restriction.finish(error)
            if self.claim is not None and error is None and not self.rollback_only:
                self.claim.store()
        except BaseException as failure:
            self._finish(session, failure)
            raise
        self._finish(session, error)

    def _finish(self, session: Session | None, error: BaseException | None) -> None:
        if error is not None and self._passes(error):
            error = None
        if error is None and self.unit is not None:
            self.unit.was_joined = True
        if self._by_hand is not None:
            assert self.unit is not None
            self.unit.features = tuple(each for each in self.unit.features if each is not self._by_hand)
            (self._by_hand.finishing if error is None else self._by_hand.give_up)()
        if self.savepoint is not None:
            assert session is not None
            try:
                self._finish_savepoint(session, self.savepoint, error)
            finally:
                if self._narrowing is not None:
                    self._narrowing.end()
                for connection in self._followed:
                    unfollow(connection)
        elif self.unit is not None and (error is not None or self.rollback_only):
            if error is None:
                error = RollbackAsked("a scope that had joined it called set_rollback_only()")
            self.unit.must_roll_back(error, self.unit.session.get_nested_transaction())

    def _passes(self, error: BaseException) -> bool:
        """Return whether an exception may leave the scope without stopping the commit: nothing has failed."""
        allowed = self.request.no_rollback_for
        where = self.savepoint or (None if self.unit is None else self.unit.transaction)
        return (
            bool(allowed)
            and isinstance(error, allowed)
            and where is not None
            and where.is_active
            and first_failure(where, self.unit) is None
        )

    def _finish_savepoint(self, session: Session, savepoint: SessionTransaction, error: BaseException | None) -> None:
        """RELEASE SAVEPOINT if all is well inside it, otherwise ROLLBACK TO SAVEPOINT.

        Raises:
            UnexpectedRollback: the body raised nothing, but its work could not be kept.
        """
        try:
            if error is None and not self.rollback_only:
                self._release(session, savepoint)
                return
        except BaseException as failure:
            self._undo(session, savepoint, failure)
            raise
        self._undo(session, savepoint, error)

    def _release(self, session: Session, savepoint: SessionTransaction) -> None:
        label = "a session that was passed in" if self.unit is None else str(self.unit)
        while (inner := session.get_nested_transaction()) not in (savepoint, None):
            assert inner is not None
            if not inner.is_active:
                failure = flush_error(inner)
                why = "one inside it was rolled back" if failure is None else swallowed(failure)
                raise UnexpectedRollback(f"a savepoint of {label} was rolled back: {why}") from failure
            getattr(inner, "keep", inner.commit)()  # a savepoint for manual commits ends without events
        if session.get_nested_transaction() is not savepoint:
            raise UnexpectedRollback(f"a savepoint of {label} was ended by hand inside its scope; let the scope end it")
        # Check before the flush too: in a failed transaction PostgreSQL would refuse the flush for its own reason.
        failure = first_failure(savepoint, self.unit)
        if failure is None and savepoint.is_active:
            session.flush()
            failure = first_failure(savepoint, self.unit)
        if failure is not None or not savepoint.is_active:
            why = "it was rolled back inside" if failure is None else swallowed(failure)
            raise UnexpectedRollback(f"a savepoint of {label} was rolled back: {why}") from failure
        savepoint.commit()
        if self._narrowing is not None:
            self._narrowing.put_back()

    def _undo(self, session: Session, savepoint: SessionTransaction, error: BaseException | None) -> None:
        try:
            if _is_open(savepoint, session):
                savepoint.rollback()
                return
            error = error or UnexpectedRollback("a savepoint was ended by hand inside its scope; let the scope end it")
        except Exception as failure:
            logger.warning(
                "ROLLBACK TO SAVEPOINT failed in %s", self.unit or "a session that was passed in", exc_info=True
            )
            error = failure
        # The work of this scope can no longer be undone alone: the whole unit must roll back.
        if self.unit is not None:
            parent = savepoint.parent
            self.unit.must_roll_back(error, parent if parent is not None and parent.nested else None)

    def left(self) -> None:
        """Let go of everything: a copied context may hold this record for long."""
        self.state = State.LEFT
        self.savepoint = self.restriction = self._by_hand = self._narrowing = None
        if self.claim is not None:
            self.claim.left()
        self._followed.clear()


def _is_open(savepoint: SessionTransaction, session: Session) -> bool:
    current = session.get_nested_transaction()
    while current is not None and current is not savepoint:
        current = current.parent
    return current is savepoint


class Restriction:
    """Makes the connections of a unit refuse writes, until `finish`."""

    __slots__ = ("_held", "_unit")

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._held: list[tuple[Connection, NestedTransaction]] = []
        session = unit.session
        session.flush()  # pending changes were made outside
        # With only binds=, restrict the connections that the unit has; it gets no others until the end.
        with suppress(UnboundExecutionError):
            session.connection()
        held = connections(unit.transaction)
        for connection in held:
            # The session sets its own savepoint when it first uses a connection inside; that one must enclose ours.
            ours = isinstance(connection, ScopeConnection) and connection.unit is not None
            session.connection(bind_arguments={"bind": connection.engine if ours else connection})
        try:
            for connection in held:
                # Not session.begin_nested(): its rollback would expire objects and drop hooks, but nothing is undone here.
                self._held.append((connection, connection.begin_nested()))
                _dialects.of(connection).restrict(connection)
        except BaseException:
            self._lift()
            raise
        unit.restrictions += 1

    def finish(self, error: BaseException | None) -> None:
        """Let the database accept writes again.

        Raises:
            Exception: the database's answer to a write that was still pending.
            UnexpectedRollback: a write was refused earlier, and the error was swallowed.
        """
        try:
            if error is None:
                self._unit.session.flush()
                for connection, _ in self._held:
                    log = failures_of(connection)
                    failure = None if log is None else log.first(depth=log.depth)
                    if failure is not None:
                        raise UnexpectedRollback(
                            f"something failed inside a read-only scope in {self._unit} and was swallowed; the first "
                            f"error was {describe(failure.error)}"
                        ) from failure.error
                for connection, savepoint in self._held:
                    # Its rollback undoes nothing, so what was registered inside (a hook, say) stays.
                    log = failures_of(connection)
                    if log is not None:
                        log.released(savepoint._savepoint)
        finally:
            self._unit.restrictions -= 1
            self._lift()

    def _lift(self) -> None:
        for connection, savepoint in reversed(self._held):
            try:
                if not connection.invalidated and not connection.closed:
                    _dialects.of(connection).lift(connection)
                    if savepoint.is_active:
                        savepoint.rollback()
            except Exception:
                # The connection is gone and the transaction with it: the unit's own end finds that out.
                logger.warning("ending a read-only scope failed in %s", self._unit, exc_info=True)
