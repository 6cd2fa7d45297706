"""The session of a unit: it has one user at a time, and only the scope ends its transaction.

`ScopeAware` comes before SQLAlchemy's Session in the MRO. Outside of scopes it passes everything on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Select, orm
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm.session import SessionTransactionOrigin, SessionTransactionState
from sqlalchemy.util.concurrency import in_greenlet

from .._binds import refuse_unbound
from .._settings import NOTHING_IN_FORCE, refuse_lacking
from ..context import OPEN, State, get_ident, get_running_loop, here
from ..errors import ScopeError, UnexpectedRollback, describe
from . import seams
from .commit import prepare
from .connection import USER

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy.engine import Connection, Engine

    _Base = orm.Session  # type checkers must see its overloads
else:
    from .._stale import StaleAware as _Base

Unit = Any  # unit.Unit, which builds on this file

logger = logging.getLogger("sessionkit")

_ACTIVE = SessionTransactionState.ACTIVE


def unit_of(session: orm.Session) -> Unit | None:
    """Return the unit that owns a session, or None if no scope does.

    Raises:
        ScopeError: its scope has ended.
    """
    unit: Unit | None = getattr(session, "_sessionkit_unit", None)
    if unit is not None and unit.over:
        raise ScopeError(_ended(unit))
    return unit


def _ended(unit: Unit) -> str:
    if unit.state is State.FORKED:
        return (
            f"the session belongs to {unit}, which was opened in the parent of this process; open a scope in the child"
        )
    return f"the session belongs to {unit}, which has ended; do this inside the scope, or open another one"


def _one_at_a_time(name: str) -> Callable[..., Any]:
    """Return a method that lets one thread or task at a time use the session of a unit.

    Everything that reaches the database passes through one of these methods: a lazy load, get(), refresh(), merge() and
    the legacy Query call execute().
    """
    reads = name in {"execute", "scalar", "scalars"}

    def method(self: ScopeAware, *args: Any, **kwargs: Any) -> Any:
        inherited = getattr(super(ScopeAware, self), name)
        unit: Any = self._sessionkit_unit
        if unit is None:
            return inherited(*args, **kwargs)
        owner = get_ident() if get_running_loop() is None else here()
        inside = unit.inside
        if inside.get(USER) == owner:  # the session calls itself: a flush before a query, the query of a lazy load
            return inherited(*args, **kwargs)
        # Atomic, but not a lock: an interrupt may arrive between any two lines, and nothing may wait for ever then.
        if unit.state is not OPEN or inside.setdefault(USER, owner) != owner:
            unit.refuse(owner, name)
        try:
            if reads and args:
                statement = args[0]
                if statement.__class__ is Select and statement._for_update_arg is not None and unit.info.warns:
                    from .._stale_reads import watch

                    return watch(self, inherited, statement, args, kwargs)
            return inherited(*args, **kwargs)
        except UnboundExecutionError:
            refuse_unbound(self)
            raise
        finally:
            inside.pop(USER, None)
            if unit.when_free is not None:
                unit.when_free()

    method.__name__ = name
    return method


def _of_the_scope(name: str, instead: str) -> Callable[..., Any]:
    """Return a method that is refused when called by hand, or works on a savepoint instead.

    The scope itself also ends through it, so that overrides see the end.
    """

    def method(self: ScopeAware) -> None:
        unit: Any = self._sessionkit_unit
        if (
            unit is None
            or unit.session is None
            or (
                unit.state is not OPEN
                and unit.inside.get(USER) == (get_ident() if get_running_loop() is None else here())
            )
        ):
            getattr(super(ScopeAware, self), name)()
        else:
            unit.by_hand(name, instead)

    method.__name__ = name
    return method


class ScopeAware(_Base):
    """Makes a Session refuse, inside a scope, calls that would break the scope's promise."""

    _sessionkit_unit: Unit | None = None

    if not TYPE_CHECKING:  # hidden from type checkers, to keep SQLAlchemy's overloads
        close = _of_the_scope("close", "it closes its session when its block ends")
        commit = _of_the_scope(
            "commit",
            "it commits when its block ends; to get generated keys, call session.flush(); to make the work durable, end "
            "the block",
        )
        reset = _of_the_scope("reset", "it closes its session when its block ends")
        rollback = _of_the_scope(
            "rollback", "to have nothing committed, raise an exception or call set_rollback_only(session)"
        )

        begin_nested = _one_at_a_time("begin_nested")
        bulk_insert_mappings = _one_at_a_time("bulk_insert_mappings")
        bulk_save_objects = _one_at_a_time("bulk_save_objects")
        bulk_update_mappings = _one_at_a_time("bulk_update_mappings")
        connection = _one_at_a_time("connection")
        execute = _one_at_a_time("execute")
        flush = _one_at_a_time("flush")
        scalar = _one_at_a_time("scalar")
        scalars = _one_at_a_time("scalars")

    def _autobegin_t(self, begin: bool = False) -> orm.SessionTransaction:
        # SQLAlchemy asks for a transaction before it sends anything or takes an object in. If the scope has ended, nothing
        # would commit that transaction, and nothing would give its connection back.
        unit = self._sessionkit_unit
        if unit is not None:
            if unit.transaction is None and unit.state is OPEN:
                # Listeners of its creation may already send SQL: make it the unit's own from the first moment.
                made = unit.transaction = UnitTransaction.__new__(UnitTransaction)
                made.__init__(self, SessionTransactionOrigin.BEGIN)  # type: ignore[misc]
                return made
            if unit.over:
                raise ScopeError(_ended(unit))
        return super()._autobegin_t(begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = self._sessionkit_unit
        try:
            super().__exit__(kind, error, traceback)
        except ScopeError:  # close() by hand; show the first error instead
            if unit is None or not unit.left_by(error):
                raise


class AwareSession(ScopeAware, orm.Session):
    """SQLAlchemy's Session with that added: the base of `sessionkit.Session`, and of the classes derived from a user's."""


class UnitTransaction(orm.SessionTransaction):
    """The root transaction of a unit: it connects as the unit asks, and commits only what the unit allows."""

    session: Any  # a ScopeAware one

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Connection:
        held = self._connections.get(bind)
        if held is not None and self._state is _ACTIVE and not execution_options:
            return held[0]
        unit = self.session._sessionkit_unit
        if held is not None or self._state is not _ACTIVE:
            return super()._connection_for_bind(bind, execution_options)
        connection: Connection = unit.connect(super()._connection_for_bind, bind, execution_options)
        return connection

    def _begin(self, nested: bool = False) -> orm.SessionTransaction:
        return _as_savepoint(super()._begin(nested), nested)

    def _prepare_impl(self) -> None:
        unit = self.session._sessionkit_unit
        if unit.state is OPEN:
            raise ScopeError(
                f"commit() was called on the transaction of {unit}, which decides when its transaction ends: it commits "
                "when its block ends; for a transaction of your own, open a scope with propagation='new'"
            )
        prepare(unit, super()._prepare_impl)


class Savepoint(orm.SessionTransaction):
    """A savepoint inside a scope, whose block cannot end silently with its work lost.

    A flush that fails rolls its savepoint back. If the error is swallowed inside the block, SQLAlchemy leaves the block
    without an error, although the earlier work in it is lost.
    """

    def _begin(self, nested: bool = False) -> orm.SessionTransaction:
        return _as_savepoint(super()._begin(nested), nested)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        failure: BaseException | None = self._rollback_exception
        closed = getattr(self, "session", None) is None  # by a manual rollback, which heals it
        lost = failure if kind is None and not closed and not self.is_active else None
        super().__exit__(kind, error, traceback)
        if lost is not None:
            raise UnexpectedRollback(
                "a savepoint was rolled back: an error was swallowed inside its block; catch the error around the block "
                f"instead; it was {describe(lost)}"
            ) from lost


def _as_savepoint(transaction: orm.SessionTransaction, nested: bool) -> orm.SessionTransaction:
    if nested:
        transaction.__class__ = Savepoint
    return transaction


# -- sessions of other factories ------------------------------------------------------------------------------------

_aware_classes: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def make_aware(session: orm.Session) -> ScopeAware:
    """Return `session` as a ScopeAware one.

    A session of any other factory gets a class derived from its own: there is no other way to guard the methods of an
    instance.
    """
    if isinstance(session, ScopeAware):
        return session
    session.__class__ = aware_class(type(session))
    assert isinstance(session, ScopeAware)
    return session


def aware_class(kind: type[orm.Session]) -> type[orm.Session]:
    """Return the ScopeAware class derived from a session's class, always the same one for each class.

    `AwareSession` comes between the given class and SQLAlchemy's, just as it does below a subclass of `AwareSession`. So
    overrides see the same calls, whatever they derive from.
    """
    if issubclass(kind, ScopeAware):
        return kind
    aware = _aware_classes.get(kind)
    if aware is None:
        try:
            users = cast("type[Any]", kind)  # type checkers believe that it is Session itself
            aware = type(kind.__name__, (users, AwareSession), {"__module__": kind.__module__})
        except TypeError:  # the bases of the given class do not allow this order
            aware = type(kind.__name__, (ScopeAware, kind), {"__module__": kind.__module__})
        _aware_classes[kind] = aware
    return aware


# -- sessions of a factory that requires settings --------------------------------------------------------------------


class _Demanding(ScopeAware):
    """A session of a factory that requires settings: without a scope it sends nothing."""

    _sessionkit_info: Any  # the FactoryInfo
    _sessionkit_in_force: Any = None  # set where it works for a unit, and with the settings of that

    @property
    def refused(self) -> bool:
        """Whether it works for no unit, while its factory still requires something."""
        alone = self._sessionkit_unit is None and self._sessionkit_in_force is None
        return alone and bool(self._sessionkit_info.defaults.settings.demands)

    def _autobegin_t(self, begin: bool = False) -> orm.SessionTransaction:
        transaction = super()._autobegin_t(begin)
        if type(transaction) is orm.SessionTransaction and self.refused:
            transaction.__class__ = _Unset
        return transaction


class _Unset(orm.SessionTransaction):
    """The transaction of a session that no scope has given its settings."""

    def _connection_for_bind(self, bind: Any, execution_options: Any) -> Connection:
        session = cast("_Demanding", self.session)
        required = session._sessionkit_info.defaults.settings
        refuse_lacking(required, NOTHING_IN_FORCE, "a session was used outside of a scope, and so without")
        return super()._connection_for_bind(bind, execution_options)


def demanding(kind: type[Any], info: Any) -> type[Any]:
    """Return the class of the sessions of a factory that requires settings."""
    if issubclass(kind, _Demanding) and kind._sessionkit_info is info:
        return kind
    body = {"__module__": kind.__module__, "_sessionkit_info": info}
    return type(kind.__name__, (_Demanding, aware_class(kind)), body)


# -- listeners for new sessions -------------------------------------------------------------------------------------

_listeners: list[Callable[[orm.Session], None]] = []


def tell_made(listener: Callable[[orm.Session], None], on: bool) -> None:
    """Call `listener` with each session that is made from now on, or stop calling it.

    The constructor that calls it exists only while there is a listener; otherwise sessions are made as in SQLAlchemy.
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


def answer_by_overrides(on: bool) -> None:
    """Make our sessions ask `seams.overrides` for their bind, while tests run; or stop that."""
    name = "get_bind"
    if on:
        setattr(ScopeAware, name, _overridden_bind)
    elif name in ScopeAware.__dict__:
        delattr(ScopeAware, name)


def _overridden_bind(self: ScopeAware, *args: Any, **kwargs: Any) -> Engine | Connection:
    bind = super(ScopeAware, self).get_bind(*args, **kwargs)
    override = seams.override_of(bind)
    # If the caller only asks, nothing is sent, and in async code nothing can be.
    unit = self._sessionkit_unit
    if isinstance(self, _Demanding) and self.refused:
        return bind
    if override is None or (bind.dialect.is_async and not in_greenlet()) or (unit is not None and not unit.inside):
        return bind
    return override.connection_for(self)
