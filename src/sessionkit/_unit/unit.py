"""One unit of work: a session and a transaction that a scope owns, from BEGIN to close.

Everything here is synchronous; the async shell runs it through the session's greenlet bridge.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from .. import _dialects
from .._dialects import deadline
from .._schemas import translate
from ..context import describe, here
from ..errors import ConcurrentUse, OptionError, Outcome, ScopeError, UnexpectedRollback, is_aftermath, set_first
from ..isolation import Isolation
from .commit import commit
from .locking import lock_entities
from .readers import NEVER, replication_of
from .routes import bound_engines, check_route
from .savepoints import Savepoints, connections
from .session import OVER
from .standins import stand_in_for
from .twophase import admit_begun, two_phase_of
from .verdict import RollbackAsked, first_failure, obstacle, swallowed
from .watch import Failure
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import SessionTransaction

    from .._attempts import Run
    from .._dialects import Position
    from .._plan import Request
    from ..hooks import Hook
    from ..isolation import Preset
    from .readers import Readers
    from .routes import Routes
    from .session import ScopeAware

logger = logging.getLogger("sessionkit")


class Unit:
    """The transaction of one opened scope."""

    __slots__ = (
        "__weakref__",
        "asynchronous",
        "deadline",
        "doomed",
        "enclosing",
        "ending",
        "factory",
        "hooks",
        "idle",
        "inside",
        "key",
        "outcome",
        "over",
        "position",
        "reader",
        "readers",
        "request",
        "restrictions",
        "rollback_only",
        "routes",
        "run",
        "savepoints",
        "session",
        "transaction",
        "twophase",
        "watchdog",
    )

    def __init__(
        self,
        session: ScopeAware,
        asynchronous: bool,
        request: Request,
        routes: Routes,
        enclosing: list[Unit],
        factory: Callable[[], Any],
        run: Run | None,
        readers: Readers | None,
    ) -> None:
        self.session = session
        self.asynchronous = asynchronous
        self.request = request
        self.routes = routes
        self.enclosing = enclosing  # the units of the same thread or task that wait until this one is done
        self.restrictions = 0
        self.readers = readers
        self.reader: Engine | None = None  # what stands for the primary in the whole transaction, once it is chosen
        self.position: Position | None = None  # after its commit, in the log of the primary
        self.factory = factory
        self.run = run
        self.deadline: float | None = _earliest(
            None if run is None else run.deadline, *[unit.deadline for unit in enclosing]
        )
        self.watchdog: Watchdog | None = None
        self.key: str | None = None  # of the commit marker
        self.inside: dict[str, object] = {}  # "user": who is inside the session at this moment
        self.ending = False
        self.over = False
        self.idle: Callable[[], None] | None = None
        self.hooks: list[Hook] = []
        self.doomed: list[tuple[SessionTransaction | None, Failure]] = []
        self.savepoints: Savepoints | None = None
        self.rollback_only = False
        self.outcome: Outcome = "rolled back"
        # The transactions begin as any others; whether they are prepared is decided when it is known how many they are.
        self.twophase = session.twophase
        session.twophase = False
        self._check_enclosing()
        self.transaction: SessionTransaction = session.begin()
        session._sessionkit_unit = self
        if self.twophase:
            event.listen(session, "after_begin", admit_begun)
        if request.schemas is not None:
            translate(session, request.schemas)
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            self.watchdog = Watchdog(left, lambda: connections(self.transaction), asynchronous)
            self.watchdog.__enter__()
        if run is not None and run.lock and not self.preset.read_only:
            event.listen(session, "do_orm_execute", lock_entities)

    def _check_enclosing(self) -> None:
        for outer in self.enclosing:
            if outer.twophase and self.request.propagation != "new":
                raise ScopeError(
                    f"a scope of another factory was opened inside {outer}, whose databases commit as one, but this one "
                    "would not take part: have one factory with binds= for all of them, or ask for propagation='new' "
                    "if it is to commit by itself"
                )

    def __str__(self) -> str:
        """What a message calls this unit's scope."""
        return "a scope" if self.request.name is None else f"the scope {self.request.name!r}"

    @property
    def retried(self) -> bool:
        """Whether it is run again as a whole where that can help."""
        return self.run is not None

    @property
    def preset(self) -> Preset:
        """What the transaction was asked to be."""
        return self.request.preset

    @property
    def read_only(self) -> bool:
        """Whether the database refuses writes now."""
        return bool(self.preset.read_only) or self.restrictions > 0

    @property
    def level(self) -> Isolation:
        """The level that its transactions run at, the weakest where they are several. Asks nobody."""
        asked = self.preset.isolation
        levels: list[Isolation] = []
        for engine in [c.engine for c in connections(self.transaction)] or bound_engines(self.session):
            dialect = _dialects.of(engine)
            levels.append(Isolation(dialect.running_level(engine) if asked is None else dialect.given(str(asked))))
        return min(levels, key=lambda level: level.strength, default=asked or Isolation.READ_UNCOMMITTED)

    # -- what it talks to ---------------------------------------------------------------------------------------

    def check_options(self) -> None:
        """Refuse now what the engines that are known already cannot keep."""
        for engine in bound_engines(self.session):
            self.route(engine)

    def route(self, bind: Engine | Connection) -> Engine | Connection:
        """Return what the unit talks to where its session is bound to `bind`."""
        stand_in = stand_in_for(bind)
        # What stands in for the primary has not been replicated.
        engine = self.routes(bind if self.readers is None or stand_in is not None else self._read_from(bind))
        if self.twophase:
            two_phase_of(engine)
        if stand_in is not None:
            self.twophase = False  # a savepoint cannot be prepared
            # Where somebody only asks, nothing is to be sent, and in async code nothing can be.
            return stand_in.lend(self.session) if self.inside else engine
        if self.twophase and isinstance(engine, Connection):
            raise OptionError(
                f"twophase=True was asked for, but the session is bound to {engine!r}, whose transaction is not the "
                "scope's to prepare; bind the factory to an engine"
            )
        if self.enclosing or self.restrictions:
            check_route(self, engine)
        return engine

    def _read_from(self, bind: Engine | Connection) -> Engine | Connection:
        """Return the reader in the place of the primary, if the unit is one that a reader can serve."""
        if bind is not self.session.bind or not self.request.preset.read_only or self.twophase or self.readers is None:
            return bind
        if self.reader is None:
            if not self.inside:
                return bind  # somebody only asks, nothing is to be sent, and in async code nothing can be
            asked = self.preset.isolation
            if asked is not None and asked in replication_of(bind.engine).refused:
                return bind
            self.reader = self.readers.choose(self.asynchronous) or bind.engine
        return self.reader

    def _note_position(self) -> None:
        """Ask for the place of the commit in the primary's log; while it is not known, no reader will do."""
        primary, readers = self.session.bind, self.readers
        if readers is None or self.outcome == "rolled back" or self.preset.read_only or not readers.tracks:
            return
        if not isinstance(primary, Engine):
            return
        used = [self.routes.given(connection.engine) for connection in connections(self.transaction)]
        if self.outcome == "unknown":
            self.position = NEVER
        elif primary in used:
            self.position = NEVER  # should what follows be interrupted
            self.position = readers.after_commit(primary)

    def remember(self) -> None:
        """Have the context of the caller know the position; that of the commit may have been another one."""
        if self.position is not None and self.readers is not None:
            self.readers.position.set(self.position)

    # -- one user at a time -------------------------------------------------------------------------------------

    def claim(self, owner: object, what: str) -> None:
        """Take the session for `owner`, or raise an error that names who has it."""
        if self.ending:
            raise ScopeError(f"session.{what}() was called by {describe(owner)} while {self} is ending")
        # Atomic, and no lock: an interrupt may arrive between any two lines, and nobody is to wait for ever then.
        user = self.inside.setdefault("user", owner)
        if user != owner:
            raise ConcurrentUse(
                f"session.{what}() was called by {describe(owner)} while {describe(user)} was inside the same session; "
                "give each thread and task a scope of its own, or let one finish before the other begins"
            )
        if self.deadline is not None:
            deadline.set(self.deadline)

    def release(self) -> None:
        """Give the session free."""
        if self.deadline is not None:
            deadline.set(None)
        self.inside.pop("user", None)
        if self.idle is not None:
            self.idle()

    async def quiet(self, owner: object) -> None:
        """Wait, in async code, until no task but `owner` is inside the session; nobody gets in any more."""
        self.ending = True
        if self.inside.get("user", owner) != owner:
            free = asyncio.get_running_loop().create_future()
            self.idle = partial(_set, free)
            await free

    def _quiet(self, owner: object) -> None:
        """Wait, in sync code, until no thread but `owner` is inside the session; nobody gets in any more."""
        self.ending = True
        if self.inside.get("user", owner) != owner:
            free = threading.Event()
            self.idle = free.set
            if self.inside.get("user", owner) != owner:
                free.wait()

    # -- what went wrong inside ---------------------------------------------------------------------------------

    def levels(self) -> Savepoints:
        """Return the record of this session's savepoints, kept from the first call on."""
        if self.savepoints is None:
            self.savepoints = Savepoints(self.session)
        return self.savepoints

    def left(self, error: BaseException | None, rollback_only: bool) -> None:
        """Note how a joined scope was left: unless a savepoint undoes its failure, the unit must not commit."""
        if error is None:
            if not rollback_only:
                return
            error = RollbackAsked("a scope that had joined it called set_rollback_only()")
        self.doom(error, self.levels().current())

    def doom(self, error: BaseException, level: SessionTransaction | None) -> None:
        """Keep the unit from committing because of `error`, unless the savepoint `level` is rolled back."""
        self.levels()
        self.doomed.append((level, Failure.now(error)))

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """End the transaction and close the session: COMMIT if all is well, else ROLLBACK.

        Raises:
            UnexpectedRollback: the body raised nothing, yet nothing can be committed.
            Exception: what the flush or COMMIT raised.
        """
        owner = here()
        if not self.asynchronous:
            self._quiet(owner)
        self.inside["user"] = owner
        session = self.session
        deadline.set(self.deadline)
        try:
            if error is None and not self.rollback_only:
                self._commit()
            else:
                self._blame_first(error)
                self.give_up_connection()
        finally:
            try:
                if self.watchdog is not None:
                    self.watchdog.__exit__(None, None, None)
                self._close()
                self._note_position()
            finally:
                deadline.set(None)
                session._sessionkit_unit = session.autobegin = OVER
                self.over = True
                self.inside.clear()

    def _close(self) -> None:
        try:
            self.session._end_close()
        except Exception:
            logger.warning("closing the session of %s failed", self, exc_info=True)

    def _commit(self) -> None:
        try:
            if self.transaction.is_active:
                self._flush()
            found = obstacle(self)
            if found is not None:
                why, error = found
                raise UnexpectedRollback(f"nothing of {self} was committed: {why}") from error
            if self.watchdog is not None and self.watchdog.fired:
                raise UnexpectedRollback(f"nothing of {self} was committed: its body ended when its time was over")
            commit(self)
        except BaseException:
            if self.outcome != "committed":
                self.give_up_connection()
            raise

    def _flush(self) -> None:
        try:
            self.session._end_flush()
        except (DBAPIError, PendingRollbackError) as error:
            # What the server refuses because something failed before is no failure of its own.
            first = self._blame_first(error)
            if first is None:
                raise
            raise UnexpectedRollback(f"nothing of {self} was committed: {swallowed(first)}") from first

    def _blame_first(self, error: BaseException | None) -> BaseException | None:
        """Return the failure of which `error` is only the aftermath, if it is."""
        if not isinstance(error, DBAPIError | PendingRollbackError) or not is_aftermath(error):
            return None
        first = first_failure(self.transaction, self)
        if first is None or first is error:
            return None
        set_first(error, first)
        return first

    def give_up_connection(self) -> None:
        """ROLLBACK, as far as it can be had; a connection that is lost goes out of the pool."""
        try:
            self.session._end_rollback()
        except Exception:
            # What the caller must see is the error that led here; the pool drops a connection that cannot roll back.
            logger.warning("ROLLBACK failed in %s", self, exc_info=True)


def _earliest(*deadlines: float | None) -> float | None:
    return min((each for each in deadlines if each is not None), default=None)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
