"""``mutex=``: one unit at a time in the whole system, by a lock that ends with its transaction.

The body must see what all earlier holders have committed, so the lock is the first thing the transaction asks for. At
READ COMMITTED each later statement has a snapshot newer than the wait. At REPEATABLE READ the snapshot would be older, and
nothing would show it. At SERIALIZABLE it is older too, but there a stale read ends in 40001.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from ... import _dialects
from ..._arguments import ask
from ..._binds import primary_of
from ..._mutex import mutex_key, mutex_text, shown
from ...errors import NotLocked, OptionError, ScopeError, classify
from ...isolation import Isolation
from ..savepoints import connections
from .base import Feature

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import SessionTransaction

_BUSY = ("busy", "locked", "lock_not_available")


class Mutex(Feature):
    """The mutexes that a unit holds: its own, and those of scopes that have joined it.

    Args:
        unit: the unit whose transaction holds them.
        own: take the mutex that the unit itself asked for when it is entered.
    """

    def __init__(self, unit: Any, *, own: bool = True) -> None:
        super().__init__(unit)
        self.asks = own
        self._held: list[tuple[str, SessionTransaction | None]] = []
        if own:
            self._value = _value_of(unit.request)
            self.mutex = mutex_text(self._value)
            refuse_waiting_for_oneself(unit, Mutex, self.mutex, f"the mutex {self.mutex}")

    def holds(self, text: str | None) -> bool:
        """Return whether the unit's transaction has a mutex."""
        return any(held == text and (level is None or self.unit.levels().survives(level)) for held, level in self._held)

    def entering(self) -> None:
        self._take(self._value, self.unit.request.mutex_wait, joined=False)

    def join(self, request: Any) -> str:
        """Take the mutex of a scope that has joined the unit, and return its text. In a savepoint: the unit may go on.

        Raises:
            NotLocked: another transaction holds it.
            ScopeError: that transaction waits for this unit to end.
        """
        value = _value_of(request)
        text = mutex_text(value)
        if not self.holds(text):
            refuse_waiting_for_oneself(self.unit, Mutex, text, f"the mutex {text}")
            self._take(value, request.mutex_wait, joined=True)
        return text

    def _take(self, value: Any, wait: float | None, *, joined: bool) -> None:
        unit, text = self.unit, mutex_text(value)
        bind = primary_of(unit.session) or unit.session.get_bind()
        entry = _dialects.of(bind)
        locks = entry.locks
        if locks is None:
            raise OptionError(
                f"mutex= was asked for, but sessionkit has no lock for it on {entry.name}; leave it out there"
            )
        if unit.level is Isolation.REPEATABLE_READ:
            raise OptionError(_snapshot(text, unit))
        wait = bounded(wait, unit.preset.lock_timeout if locks.begins else None)
        if locks.begins:
            begin_with_it(unit, bind, locks, wait)
        try:
            connection: Connection = unit.session.connection(bind_arguments={"bind": bind})
        except DBAPIError as error:
            if locks.begins and classify(error).kind in _BUSY:
                raise NotLocked.of(error, _not_had(text, unit, wait, ())) from error
            raise
        if why := locks.refused(connection):
            raise OptionError(f"the mutex {text} was asked for by {unit}, but {why}")
        # On a connection that is not the unit's own, earlier work may precede the unit.
        own = getattr(connection, "unit", None) is unit and not joined
        savepoint = None if own else connection.begin_nested()
        try:
            level, got = locks.mutex(connection, mutex_key(value), wait)
        except DBAPIError as error:
            if classify(error).kind not in _BUSY:
                if savepoint is not None and not connection.invalidated:
                    savepoint.rollback()
                raise
            # As the unit's first statement it loses nothing but the transaction, which ends with it.
            pooled: Any = connection.connection.dbapi_connection
            (pooled if savepoint is None else savepoint).rollback()
            holders = locks.mutex_holders(connection, mutex_key(value))
            raise NotLocked.of(error, _not_had(text, unit, wait, holders), holders) from error
        if savepoint is not None:
            savepoint.commit()
        if level == Isolation.REPEATABLE_READ:
            raise OptionError(_snapshot(text, unit))
        if not got:
            holders = locks.mutex_holders(connection, mutex_key(value))
            raise NotLocked(_not_had(text, unit, wait, holders), holders)
        at = unit.session.get_nested_transaction()
        if at is not None:
            unit.levels()  # it is released with its savepoint
        self._held.append((text, at))

    def ended(self) -> None:
        self._held.clear()


class _Holder(Protocol):
    def holds(self, held: Any, /) -> bool: ...


def refuse_waiting_for_oneself(unit: Any, kind: type[_Holder], held: Any, what: str) -> None:
    """Refuse what the transaction of an enclosing scope holds: that one ends only after this one has stopped waiting.

    Raises:
        ScopeError: an enclosing scope has it, in the same database.
    """
    database = primary_of(unit.session)
    for enclosing in unit.enclosing:
        feature: _Holder | None = enclosing.feature(kind)
        if feature is None or not feature.holds(held):
            continue
        theirs = primary_of(enclosing.session)
        if database is None or theirs is None or database.engine.url == theirs.engine.url:
            raise ScopeError(
                f"{what} was asked for by {unit} in a transaction of its own, inside {enclosing}, which holds it: it would "
                "wait for itself; join that scope, or ask for another one"
            )


def join_mutex(unit: Any, request: Any) -> str:
    """Take the mutex that a joining scope asked for. I/O."""
    feature: Mutex | None = unit.feature(Mutex)
    if feature is None:
        feature = Mutex(unit, own=False)
        unit.features = (*unit.features, feature)
    return feature.join(request)


def _value_of(request: Any) -> Any:
    return ask(request.mutex, {}, "mutex") if callable(request.mutex) else request.mutex


def bounded(wait: float | None, lock_timeout: float | None) -> float | None:
    """Return the wait, bounded by the unit's deadline, and by its lock_timeout if the database does not apply that."""
    ends = _dialects.deadline.get()
    # A little less than is left: the error should say who holds the mutex, not that the connection was cut.
    left = None if ends is None else max(0.001, (ends - time.monotonic()) * 0.8)
    return min((each for each in (wait, lock_timeout, left) if each is not None), default=None)


def begin_with_it(unit: Any, bind: Any, locks: Any, wait: float | None) -> None:
    if not isinstance(bind, Engine) or any(held.engine is bind for held in connections(unit.transaction)):
        return
    if unit.preset.read_only:
        raise OptionError(
            f"mutex= was asked for by {unit}, which is read-only, but on {_dialects.of(bind).name} the write lock is the "
            "mutex; leave read_only out"
        )
    unit.beginnings = {**unit.beginnings, bind: locks.beginning(bind, unit.preset, wait)}


def _snapshot(text: str, unit: Any) -> str:
    return (
        f"the mutex {text} was asked for by {unit}, which runs REPEATABLE READ: its snapshot would be older than the wait, so "
        "the body would not see what the previous holder has committed; use READ COMMITTED, which is enough under a mutex"
    )


def _not_had(text: str, unit: Any, wait: float | None, holders: Any) -> str:
    wait = min((each for each in (wait, unit.preset.lock_timeout) if each is not None), default=None)
    within = "" if wait is None else " without a wait" if wait == 0 else f" within {shown(wait)}"
    held = f"it is held by {', '.join(map(str, holders))}" if holders else "somebody else holds it"
    return f"{unit} could not take the mutex {text}{within}: {held}"
