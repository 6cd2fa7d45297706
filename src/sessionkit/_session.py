"""The session as a scope sees it: one user at a time, and nobody ends its transaction by hand.

`ScopeAware` sits in front of SQLAlchemy's Session in the MRO. Outside a scope it passes everything on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

from .context import here
from .errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import orm
    from sqlalchemy.engine import Connection, Engine

    from ._unit import Unit

    _Base = orm.Session
else:
    _Base = object


class ScopeAware(_Base):
    """Makes a Session refuse, inside a scope, what would break the scope's promise."""

    _sessionkit_unit: Unit | None = None

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        bind = super().get_bind(*args, **kwargs)
        unit = self._sessionkit_unit
        return bind if unit is None else unit.route(bind)

    def commit(self) -> None:
        if (unit := self._sessionkit_unit) is not None and not unit.ending:
            self._refuse(unit, "commit", "it commits when its block ends")
        super().commit()

    def rollback(self) -> None:
        if (unit := self._sessionkit_unit) is not None and not unit.ending:
            self._refuse(
                unit, "rollback", "to have nothing committed, raise an exception or call set_rollback_only(session)"
            )
        super().rollback()

    def close(self) -> None:
        if (unit := self._sessionkit_unit) is not None and not unit.ending:
            self._refuse(unit, "close", "it closes its session when its block ends")
        super().close()

    def reset(self) -> None:
        if (unit := self._sessionkit_unit) is not None and not unit.ending:
            self._refuse(unit, "reset", "it closes its session when its block ends")
        super().reset()

    def _refuse(self, unit: Unit, method: str, instead: str) -> NoReturn:
        raise ScopeError(
            f"session.{method}() was called inside {unit}, which decides when its transaction ends: "
            f"{instead}; for a transaction of your own, open a scope with propagation='new'"
        )


def _one_at_a_time(name: str) -> Callable[..., Any]:
    def method(self: ScopeAware, *args: Any, **kwargs: Any) -> Any:
        inherited = getattr(super(ScopeAware, self), name)
        unit = self._sessionkit_unit
        if unit is None:
            return inherited(*args, **kwargs)
        owner = here()
        if unit.user == owner:  # the session calls itself: a flush before a query, a query of a lazy load
            return inherited(*args, **kwargs)
        unit.claim(owner, name)
        try:
            return inherited(*args, **kwargs)
        finally:
            unit.release()

    method.__name__ = name
    return method


# The public methods through which everything reaches the database: a lazy load, get(), refresh(), merge() and the
# legacy Query go through execute(). They are set here, out of the type checkers' sight, to keep SQLAlchemy's overloads.
for _name in ("execute", "scalar", "scalars", "flush", "connection", "begin_nested", "bulk_save_objects"):
    setattr(ScopeAware, _name, _one_at_a_time(_name))


_aware_classes: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def make_aware(session: orm.Session) -> ScopeAware:
    """Return `session` as a ScopeAware one.

    A session of another factory than ours changes its class to one derived from its own: an instance's methods
    cannot be guarded otherwise, and its own overrides stay in force behind ours.
    """
    if isinstance(session, ScopeAware):
        return session
    kind = type(session)
    aware = _aware_classes.get(kind)
    if aware is None:
        aware = _aware_classes[kind] = type(kind.__name__, (ScopeAware, kind), {"__module__": kind.__module__})
    session.__class__ = aware
    assert isinstance(session, ScopeAware)
    return session
