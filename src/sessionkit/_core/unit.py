"""One unit of work: a session and a transaction that a scope owns, from BEGIN to close.

Everything here is synchronous; async code runs it through the session's greenlet bridge.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.util import await_only

from .. import _dialects
from .._settings import NOTHING_IN_FORCE
from ..context import ENDING, Entry, State, describe, get_ident, get_running_loop, here
from ..errors import ConcurrentUse, OptionError, Outcome, ScopeError, add_note, is_aftermath, set_first
from ..isolation import NOTHING_ASKED, Isolation
from .commit import commit, first_failure
from .connection import USER, Failure, connect, follow, unfollow
from .features import features_of
from .savepoints import Savepoints, connections

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import SessionTransaction

    from .._plan import Request
    from .._settings import InForce
    from ..isolation import Preset
    from ..retry import Run
    from .connection import ScopeConnection
    from .features import Feature
    from .hooks import Hook
    from .session import ScopeAware

logger = logging.getLogger("sessionkit")

_OUTCOMES: dict[State, Outcome] = {State.COMMITTED: "committed", State.UNKNOWN: "unknown"}


_NOT_BEGUN: Any = None
"""The transaction of a unit whose session has not begun."""


class Unit(Entry):
    """The transaction of one opened scope, and the entry that opened it."""

    __slots__ = (
        "asynchronous",
        "beginnings",
        "borrowed",
        "causes",
        "enclosing",
        "features",
        "held",
        "hooks",
        "info",
        "inside",
        "outcomes",
        "question",
        "request",
        "restrictions",
        "run",
        "savepoints",
        "session",
        "transaction",
        "was_joined",
        "when_free",
    )

    opened = True

    def __init__(self, scope: Any, handed: Any, session: ScopeAware, owner: object, run: Run | None) -> None:
        Entry.__init__(self, scope, handed, owner)
        self.session: Any = session
        self.info = scope._info  # the FactoryInfo
        self.asynchronous = self.info.asynchronous
        self.request: Request = scope._request
        self.beginnings = scope._beginnings
        self.run = run  # which attempt it is; None if it is not retried
        self.inside: dict[str, object] = {}  # USER: the thread or task that is using the session now
        self.when_free: Callable[[], object] | None = None  # called when nothing uses the session any more
        self.hooks: list[Hook] = []
        self.causes: list[tuple[SessionTransaction | None, Failure]] = []  # why it must not commit, and at which level
        self.savepoints: Savepoints | None = None
        self.was_joined = False  # by a scope that has ended without an error
        self.restrictions = 0  # read-only scopes that have joined it
        self.borrowed: list[tuple[ScopeConnection, Unit | None]] = []  # a user's own connections
        self.held: list[ScopeConnection] = []  # the connections that get COMMIT
        self.outcomes: dict[Engine, Outcome] = {}  # if they ended differently
        self.features: tuple[Feature, ...] = ()
        self.question: Callable[[float], Any] | None = None  # finds out how a COMMIT ended whose answer was lost
        # The units of the same thread or task that wait until this one has ended.
        self.enclosing: list[Unit] = [] if self.outer is None else _enclosing(self.outer, owner)
        self.transaction: Any = _NOT_BEGUN
        session._sessionkit_unit = self
        session.begin()  # makes a UnitTransaction and sets it here: see `ScopeAware`
        if self.transaction is None:
            raise ScopeError(f"{self} was not opened: its session's begin() returned without having begun")
        request = self.request
        if request.special or run is not None or self.enclosing or session.twophase or self.info.readers is not None:
            self.features = features_of(self)
        if self.features or request.preset is not NOTHING_ASKED:
            self._check_all()

    def _check_all(self) -> None:
        try:
            for engine in bound_engines(self.session):
                self._check(engine)
        except BaseException:
            for feature in self.features:
                feature.refused()
            raise

    @property
    def unit(self) -> Unit:
        """Itself: see `Entry`."""
        return self

    def __str__(self) -> str:
        """The name of this unit's scope in messages."""
        return "a scope" if self.request.name is None else f"the scope {self.request.name!r}"

    @property
    def over(self) -> bool:
        """Whether its session is no longer usable."""
        return self.session is None or self.state is State.FORKED

    @property
    def outcome(self) -> Outcome:
        """How it ended, as far as that can be known."""
        return _OUTCOMES.get(self.state, "rolled back")

    @property
    def retried(self) -> bool:
        """Whether it is retried as a whole if that can help."""
        return self.run is not None

    @property
    def preset(self) -> Preset:
        """What was asked of the transaction."""
        return self.request.preset

    @property
    def read_only(self) -> bool:
        """Whether the database refuses writes now."""
        return bool(self.preset.read_only) or self.restrictions > 0

    @property
    def level(self) -> Isolation:
        """The isolation level of its transactions; if there are several, the weakest. Sends no SQL."""
        asked = self.preset.isolation
        levels: list[Isolation] = []
        # A connection may have a level of its own, from its execution options.
        for bind in connections(self.transaction) or bound_engines(self.session):
            dialect = _dialects.of(bind)
            levels.append(Isolation(dialect.running_level(bind) if asked is None else dialect.given(str(asked))))
        return min(levels, key=lambda level: level.strength, default=asked or Isolation.READ_UNCOMMITTED)

    @property
    def in_force(self) -> InForce:
        """The settings and the role that its transactions run with at this moment."""
        return next((each.in_force for each in self.features if each.in_force is not None), NOTHING_IN_FORCE)

    def feature(self, kind: type[Any]) -> Any:
        """Return the unit's feature of this kind, or None."""
        return next((each for each in self.features if isinstance(each, kind)), None)

    @property
    def claim(self) -> Any:
        """The key of ``once=`` that it has claimed, or whose result it has found; None if it has none."""
        return next((feature.claim for feature in self.features if feature.claim is not None), None)

    # -- what it talks to -------------------------------------------------------------------------------------------

    def connect(
        self, inherited: Callable[[Any, Any], Connection], bind: Engine | Connection, options: Any
    ) -> Connection:
        """Return the connection for a bind of the session, which the unit is using for the first time."""
        if not self.features:
            return self._connect(inherited, bind, options)
        while True:
            routed = bind
            for feature in self.features:
                routed = feature.route(routed)
            try:
                connection = self._connect(inherited, routed, options)
            except Exception as error:
                rerouted = [feature.connect_failed(routed, error) for feature in self.features]  # tell each of them
                if not any(rerouted):
                    raise
                continue
            for feature in self.features:
                feature.connected(connection)
            return connection

    def _connect(self, inherited: Callable[[Any, Any], Connection], bind: Any, options: Any) -> Connection:
        if isinstance(bind, Connection):
            return self._borrow(inherited, bind, options)
        if self.enclosing or self.restrictions:
            self._check(bind)
        return inherited(_Opener(self, bind), options)

    def _borrow(self, inherited: Callable[[Any, Any], Connection], bind: Connection, options: Any) -> Connection:
        """Run on a user's own connection, whose transaction the scope does not begin."""
        scoped = follow(bind)
        other = scoped.unit or scoped.borrower
        if not scoped.shared:
            if self.request.preset != NOTHING_ASKED:
                raise OptionError(
                    f"{self.request.preset} was asked for, but the session is bound to {bind!r}, whose transaction the "
                    "scope does not begin; bind the factory to an engine, or leave the options out"
                )
            if other is not None and other is not self:
                raise ScopeError(
                    f"{self} was opened on {bind!r}, on which {other} is in a transaction: the two would be committed "
                    "or rolled back together; end that one first, or bind the factory to an engine"
                )
        connection = inherited(bind, options)
        self.borrowed.append((scoped, scoped.borrower))
        scoped.borrower = self
        scoped.sent = scoped.committed = False
        return connection

    def beginning_of(self, engine: Engine) -> _dialects.Beginning:
        """Return how transactions of an engine begin for this unit.

        Raises:
            OptionError: the engine cannot keep what was asked for.
        """
        found: _dialects.Beginning | None = self.beginnings.get(engine)
        if found is None:
            _dialects.refuse_autocommit(engine)
            found = self.beginnings[engine] = _dialects.of(engine).beginning(engine, self.request.preset)
        return found

    def _check(self, engine: Engine) -> None:
        """Refuse an engine that cannot keep what was asked, or on which the unit could only wait for itself."""
        beginning = self.beginning_of(engine)
        for feature in self.features:
            feature.check(engine)
        if any(c.engine is engine for c in connections(self.transaction)):
            return
        if self.restrictions:
            raise ScopeError(
                f"{engine!r} was used for the first time inside a read-only scope that has joined a read-write one; use "
                "it before, or ask for propagation='new'"
            )
        for enclosing in self.enclosing:
            for held in () if enclosing.transaction is None else connections(enclosing.transaction):
                if _dialects.of(held) is beginning.dialect and (
                    why := beginning.dialect.conflict(held, engine, self.request.preset)
                ):
                    asked = (
                        "propagation='new' was asked for"
                        if self.request.propagation == "new"
                        else "a scope of another factory was opened"
                    )
                    raise ScopeError(f"{asked} inside {enclosing}, but {why}; join it, or end it first")

    # -- one user at a time -----------------------------------------------------------------------------------------

    def refuse(self, owner: object, what: str) -> NoReturn:
        """Raise the error that says why `owner` cannot use the session now."""
        if self.state is State.FORKED:
            raise ScopeError(
                f"session.{what}() was called in a forked child on the session of {self}, which its parent opened; "
                "open a scope in the child"
            )
        if self.session is None:
            raise ScopeError(
                f"session.{what}() was called by {describe(owner)} on the session of {self}, which has ended; "
                "do it inside the scope, or open another one"
            )
        if not self.live or self.state is ENDING:
            raise ScopeError(f"session.{what}() was called by {describe(owner)} while {self} is ending")
        user = self.inside.get(USER, "another user that has left by now")
        raise ConcurrentUse(
            f"session.{what}() was called by {describe(owner)} while {describe(user)} was inside the same session; "
            "give each thread and task a scope of its own, or let one finish before the other begins"
        )

    def by_hand(self, method: str, instead: str) -> None:
        """Refuse a manual commit(), rollback(), close() or reset(), or do what it means in this unit.

        Raises:
            ScopeError: the scope does not allow it.
        """
        if self.state is State.FORKED and method == "close":
            return  # a copy of the parent's: leave it alone
        owner = here()
        if self.state is not State.OPEN:
            self.refuse(owner, method)
        for feature in self.features:
            if feature.by_hand(method):
                return
        raise ScopeError(
            f"session.{method}() was called inside {self}, which decides when its transaction ends: {instead}; for a "
            "transaction of your own, open a scope with propagation='new'; an application that commits by hand can move "
            "in with manual_commit='savepoint'"
        )

    async def wait_until_free(self, owner: object) -> None:
        """Wait, in async code, until no task but `owner` uses the session; from now on no other can."""
        self.state = ENDING
        if self.inside.get(USER, owner) != owner:
            free = asyncio.get_running_loop().create_future()

            def set_free() -> None:
                if not free.done():
                    free.set_result(None)

            self.when_free = set_free
            await free

    def _wait_until_free(self, owner: object) -> None:
        """The sync twin of `wait_until_free`."""
        free = threading.Event()
        self.when_free = free.set
        if self.inside.get(USER, owner) != owner:
            free.wait()

    # -- what went wrong inside -------------------------------------------------------------------------------------

    def levels(self) -> Savepoints:
        """Return the record of this session's savepoints, which begins with the first call."""
        if self.savepoints is None:
            self.savepoints = Savepoints(self.session)
        return self.savepoints

    def must_roll_back(self, error: BaseException, level: SessionTransaction | None) -> None:
        """Stop the unit from committing because of `error`, unless the savepoint `level` is rolled back."""
        self.levels()
        self.causes.append((level, Failure.now(error)))

    def left_by(self, error: BaseException | None) -> bool:
        """Return whether an exception has left a ``with session:`` block while the unit goes on.

        Its close() was refused, but would have rolled back: so the unit must not commit if the exception is swallowed.
        """
        if error is None or self.state is not State.OPEN:
            return False
        self.must_roll_back(error, self.session.get_nested_transaction())
        return True

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """End the transaction and close the session: COMMIT if all is well, otherwise ROLLBACK.

        Raises:
            UnexpectedRollback: the body raised nothing, but nothing can be committed.
            Exception: the error of the flush or of COMMIT.
        """
        owner = get_ident() if get_running_loop() is None else here()
        self.state = ENDING
        if not self.asynchronous and self.inside.get(USER, owner) != owner:
            self._wait_until_free(owner)
        # An async unit is ended by another task than its owner, which waits for it.
        self.inside[USER] = self.owner = owner
        del owner  # a task that holds an error whose traceback holds this frame would live until the next collection
        try:
            if self.rollback_only or (error is not None and not self._commits_despite(error)):
                if error is not None:
                    self._explain(error)
                self.state = State.ROLLED_BACK  # listeners of the rollback run outside of the scope
                self.give_up_connection()
            else:
                commit(self, error)
        finally:
            state: Any = self.state  # others may have changed it, which type checkers do not know
            if state is ENDING or state is State.COMMITTING:
                self.state = State.ROLLED_BACK
            self._close()

    def _commits_despite(self, error: BaseException) -> bool:
        allowed = self.request.no_rollback_for
        return (
            bool(allowed)
            and isinstance(error, allowed)
            and self.transaction.is_active
            and first_failure(self.transaction, self) is None
        )

    def _explain(self, error: BaseException) -> None:
        """Add what the exception that rolls the unit back does not say itself."""
        self._blame_first(error)
        allowed = self.request.no_rollback_for
        if allowed and isinstance(error, allowed):
            add_note(
                error,
                f"{self} was rolled back despite no_rollback_for, because something else had failed in it and was "
                "swallowed",
            )
        if isinstance(error, GeneratorExit) and self.was_joined:
            message = (
                f"{self} was opened in a generator that was closed before its end: it is rolled back, together with the work "
                "of scopes that had joined it and ended without an error; run the generator to its end, or do that work "
                "outside of its iteration or with propagation='new'"
            )
            logger.error(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _close(self) -> None:
        """Close the session and let go of everything: a copied context may hold this record for long."""
        session = self.session
        try:
            try:
                for feature in self.features:
                    feature.ending()
            finally:
                if self.asynchronous:
                    self.end_by("close")
                else:
                    session.close()
        except Exception:
            logger.warning("closing the session of %s failed", self, exc_info=True)
        finally:
            for scoped, before in reversed(self.borrowed):
                scoped.borrower = before
                if before is None and not scoped.shared:
                    unfollow(scoped)
            try:
                for feature in self.features:
                    feature.ended()
            finally:
                self.inside.clear()
                self.session = self.transaction = self.question = self.when_free = None
                self.held = []
                self.borrowed.clear()
                self.causes.clear()
                self.enclosing = []

    def end_by(self, method: str) -> None:
        """Call the session's own commit(), rollback() or close(); an AsyncSession's, if its class overrides it."""
        handed = self.handed
        if handed is not self.session and handed is not None:
            base: Any = sys.modules["sqlalchemy.ext.asyncio"].AsyncSession
            if getattr(type(handed), method) is not getattr(base, method):
                await_only(getattr(handed, method)())
                return
        getattr(self.session, method)()

    def _blame_first(self, error: BaseException) -> None:
        """Make an error that is only the aftermath of another name that one."""
        if isinstance(error, DBAPIError | PendingRollbackError) and is_aftermath(error):
            first = first_failure(self.transaction, self)
            if first is not None and first is not error:
                set_first(error, first)

    def give_up_connection(self) -> None:
        """ROLLBACK, if that is possible; a lost connection does not go back to the pool."""
        try:
            self.end_by("rollback")
        except Exception:
            # The caller must see the error that led here; the pool drops a connection that cannot roll back.
            logger.warning("ROLLBACK failed in %s", self, exc_info=True)


class _Opener:
    """Takes the place of an engine when SQLAlchemy's session asks for a connection, and makes the unit's."""

    __slots__ = ("_engine", "_unit")

    def __init__(self, unit: Unit, engine: Engine) -> None:
        self._unit = unit
        self._engine = engine

    def connect(self) -> ScopeConnection:
        unit, engine = self._unit, self._engine
        beginning = unit.beginnings.get(engine) or unit.beginning_of(engine)
        for feature in unit.features:
            beginning = feature.begins(beginning)
        return connect(engine, beginning, unit)


def _enclosing(entry: Entry | None, owner: object) -> list[Unit]:
    """Return the units whose bodies wait until a unit that opens now has ended."""
    units: list[Unit] = []
    while entry is not None:
        if isinstance(entry, Unit) and entry.live and entry.belongs_to(owner):
            units.append(entry)
        entry = entry.outer
    return units


def bound_engines(session: Any) -> list[Engine]:
    """Return the engines that a session is bound to, as far as that is known without asking for a connection."""
    # The mapping of binds= is public in SQLAlchemy 2.1 and later.
    binds: dict[Any, Any] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return list({bind for bind in (session.bind, *binds.values()) if isinstance(bind, Engine)})
