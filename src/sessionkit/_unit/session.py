"""The session as a scope sees it: one user at a time, and nobody ends its transaction by hand.

`ScopeAware` sits in front of SQLAlchemy's Session in the MRO. Outside a scope it passes everything on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy import orm
from sqlalchemy.util.concurrency import in_greenlet

from ..context import describe, here
from ..errors import ScopeError, UnexpectedRollback, told
from .standins import stand_in_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

    from .unit import Unit

    _Base = orm.Session  # whose overloads the type checkers are to see
else:
    from ..version import VersionAware as _Base


class _Over:
    """Stands in a session for the unit that has ended: whatever would begin another transaction is refused.

    It would begin one that nobody commits, on a connection that nobody gives back. It stands in the place of the session's
    `autobegin` too: SQLAlchemy asks for that before it takes an object in, for which no method of ours is called.
    """

    ending = True
    inside: ClassVar[dict[str, object]] = {}  # nobody

    def claim(self, owner: object, what: str) -> NoReturn:
        raise ScopeError(
            f"session.{what}() was called by {describe(owner)} on the session of a scope that has ended; "
            "do it inside the scope, or open another one"
        )

    def route(self, bind: object) -> NoReturn:
        self.claim(here(), "get_bind")

    def __bool__(self) -> NoReturn:
        raise ScopeError(_ENDED)


OVER: Any = _Over()
_ENDED = "the session is that of a scope that has ended; do it inside the scope, or open another one"


def unit_of(session: orm.Session) -> Unit | None:
    """Return the unit that owns a session, or None if no scope does.

    Raises:
        ScopeError: its scope has ended.
    """
    unit: Unit | _Over | None = getattr(session, "_sessionkit_unit", None)
    if isinstance(unit, _Over):
        raise ScopeError(_ENDED)
    return unit


logger = logging.getLogger("sessionkit")

_listeners: list[Callable[[orm.Session], None]] = []


def tell_made(listener: Callable[[orm.Session], None], on: bool) -> None:
    """Have `listener` be called with each session of ours that is made from now on, or no more.

    The constructor that does it is there only while somebody listens: without it a session is made as SQLAlchemy makes it.
    """
    if on:
        _listeners.append(listener)
        name = "__init__"
        setattr(ScopeAware, name, _made)
    else:
        _listeners.remove(listener)
        if not _listeners:
            del ScopeAware.__init__


def _made(self: ScopeAware, *args: Any, **kwargs: Any) -> None:
    super(ScopeAware, self).__init__(*args, **kwargs)
    for listener in tuple(_listeners):
        try:
            listener(self)
        except Exception:
            logger.exception("%r failed as a session was made", listener)


class ScopeAware(_Base):
    """Makes a Session refuse, inside a scope, what would break the scope's promise."""

    _sessionkit_unit: Unit | _Over | None = None

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        bind = super().get_bind(*args, **kwargs)
        unit = self._sessionkit_unit
        if unit is not None:
            return unit.route(bind)
        stand_in = stand_in_for(bind)
        if stand_in is None or (bind.dialect.is_async and not in_greenlet()):
            return bind
        return stand_in.lend(self)

    def commit(self) -> None:
        if (unit := self._sessionkit_unit) is not None and unit is not OVER:
            self._refuse(unit, "commit", "it commits when its block ends")
        super().commit()

    def rollback(self) -> None:
        if (unit := self._sessionkit_unit) is not None and unit is not OVER:
            self._refuse(
                unit, "rollback", "to have nothing committed, raise an exception or call set_rollback_only(session)"
            )
        super().rollback()

    def close(self) -> None:
        if (unit := self._sessionkit_unit) is not None and unit is not OVER:
            self._refuse(unit, "close", "it closes its session when its block ends")
        super().close()

    def reset(self) -> None:
        if (unit := self._sessionkit_unit) is not None and unit is not OVER:
            self._refuse(unit, "reset", "it closes its session when its block ends")
        super().reset()

    # What the unit calls to end its transaction: as with SQLAlchemy's own context managers, not the session's commit().

    def _end_flush(self) -> None:
        super().flush()

    def _end_commit(self) -> None:
        super().commit()

    def _end_rollback(self) -> None:
        super().rollback()

    def _end_close(self) -> None:
        super().close()

    def _refuse(self, unit: object, method: str, instead: str) -> NoReturn:
        raise ScopeError(
            f"session.{method}() was called inside {unit}, which decides when its transaction ends: "
            f"{instead}; for a transaction of your own, open a scope with propagation='new'"
        )


class _Savepoint(orm.SessionTransaction):
    """A savepoint inside a scope whose block does not end in silence with its work gone.

    A flush that fails rolls its savepoint back. If the error is swallowed inside the block, SQLAlchemy leaves the
    block without a word, and what was done in it before is lost.
    """

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        failure: BaseException | None = self._rollback_exception
        closed = getattr(self, "session", None) is None  # by a rollback by hand, which heals
        lost = failure if kind is None and not closed and not self.is_active else None
        super().__exit__(kind, error, traceback)
        if lost is not None:
            raise UnexpectedRollback(
                f"a savepoint was rolled back: an error was swallowed inside its block: {told(lost)}"
            ) from lost


def _nested(transaction: orm.SessionTransaction) -> orm.SessionTransaction:
    transaction.__class__ = _Savepoint
    return transaction


def _one_at_a_time(name: str, finish: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    def method(self: ScopeAware, *args: Any, **kwargs: Any) -> Any:
        inherited = getattr(super(ScopeAware, self), name)
        unit: Any = self._sessionkit_unit
        if unit is None:
            return inherited(*args, **kwargs)
        owner = here()
        if unit.inside.get("user") == owner:  # the session calls itself: a flush before a query, a query of a lazy load
            return inherited(*args, **kwargs)
        unit.claim(owner, name)
        try:
            result = inherited(*args, **kwargs)
        finally:
            unit.release()
        return result if finish is None else finish(result)

    method.__name__ = name
    return method


# The public methods through which everything reaches the database: a lazy load, get(), refresh(), merge() and the
# legacy Query go through execute(). They are set here, out of the type checkers' sight, to keep SQLAlchemy's overloads.
_GUARDED = (
    "begin_nested",
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "connection",
    "execute",
    "flush",
    "scalar",
    "scalars",
)
for _name in _GUARDED:
    setattr(ScopeAware, _name, _one_at_a_time(_name, _nested if _name == "begin_nested" else None))


_aware_classes: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def make_aware(session: orm.Session) -> ScopeAware:
    """Return `session` as a ScopeAware one.

    A session of another factory than ours changes its class to one derived from its own: an instance's methods
    cannot be guarded otherwise, and its own overrides stay in force behind ours.
    """
    if isinstance(session, ScopeAware):
        return session
    session.__class__ = aware_class(type(session))
    assert isinstance(session, ScopeAware)
    return session


def aware_class(kind: type[orm.Session]) -> type[orm.Session]:
    """Return the ScopeAware class derived from that of a session, one and the same for each."""
    if issubclass(kind, ScopeAware):
        return kind
    aware = _aware_classes.get(kind)
    if aware is None:
        aware = _aware_classes[kind] = type(kind.__name__, (ScopeAware, kind), {"__module__": kind.__module__})
    return aware
