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

from . import _dialects
from ._commit import commit
from ._locking import lock_entities
from ._routes import bound_engines, check_route
from ._savepoints import Savepoints, connections
from ._session import OVER
from ._verdict import RollbackAsked, obstacle
from ._watch import Failure
from ._watchdog import Watchdog
from .context import describe, here
from .errors import ConcurrentUse, Outcome, ScopeError, UnexpectedRollback
from .isolation import Isolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.orm import SessionTransaction

    from ._attempts import Run
    from ._plan import Request
    from ._routes import Routes
    from ._session import ScopeAware
    from .hooks import Hook
    from .isolation import Preset

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
        "key",
        "lock",
        "outcome",
        "over",
        "request",
        "restrictions",
        "retried",
        "rollback_only",
        "routes",
        "savepoints",
        "session",
        "transaction",
        "user",
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
    ) -> None:
        self.session = session
        self.asynchronous = asynchronous
        self.request = request
        self.routes = routes
        self.enclosing = enclosing  # the units of the same thread or task that wait until this one is done
        self.restrictions = 0
        self.factory = factory
        self.retried = run is not None  # it is run again as a whole where that can help
        self.deadline = None if run is None else run.deadline
        self.watchdog: Watchdog | None = None
        self.key: str | None = None  # of the commit marker
        self.user: object | None = None  # who is inside the session at this moment
        self.lock = threading.Lock()
        self.ending = False
        self.over = False
        self.idle: Callable[[], None] | None = None
        self.hooks: list[Hook] = []
        self.doomed: list[tuple[SessionTransaction | None, Failure]] = []
        self.savepoints: Savepoints | None = None
        self.rollback_only = False
        self.outcome: Outcome = "rolled back"
        self.transaction = session.begin()
        session._sessionkit_unit = self
        if run is not None:
            self._begin_run(run)

    def _begin_run(self, run: Run) -> None:
        if run.deadline is not None:
            left = run.deadline - time.monotonic()
            self.watchdog = Watchdog(left, lambda: connections(self.transaction), self.asynchronous)
            self.watchdog.__enter__()
        if run.lock and not self.preset.read_only:
            event.listen(self.session, "do_orm_execute", lock_entities)

    def __str__(self) -> str:
        """What a message calls this unit's scope."""
        return "a scope" if self.request.name is None else f"the scope {self.request.name!r}"

    @property
    def preset(self) -> Preset:
        """What the transaction was asked to be."""
        return self.request.preset

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
        engine = self.routes(bind)
        if self.enclosing or self.restrictions:
            check_route(self, engine)
        return engine

    # -- one user at a time -------------------------------------------------------------------------------------

    def claim(self, owner: object, what: str) -> None:
        """Take the session for `owner`, or raise an error that names who has it."""
        if self.ending:
            raise ScopeError(f"session.{what}() was called by {describe(owner)} while {self} is ending")
        if self.lock.acquire(blocking=False):
            self.user = owner
            return
        raise ConcurrentUse(
            f"session.{what}() was called by {describe(owner)} while {describe(self.user)} was inside the same "
            f"session; "
            "give each thread and task a scope of its own, or let one finish before the other begins"
        )

    def release(self) -> None:
        """Give the session free."""
        self.user = None
        self.lock.release()
        if self.idle is not None:
            self.idle()

    async def quiet(self) -> None:
        """Wait, in async code, until no other task is inside the session; nobody gets in any more."""
        self.ending = True
        if self.lock.locked():
            free = asyncio.get_running_loop().create_future()
            self.idle = partial(_set, free)
            await free

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
        self.ending = True
        self.lock.acquire()  # another thread may be inside the session still: its statement ends, then we end
        self.user = here()
        session = self.session
        try:
            if error is None and not self.rollback_only:
                self._commit()
            else:
                self.give_up_connection()
        finally:
            if self.watchdog is not None:
                self.watchdog.__exit__(None, None, None)
            try:
                session._end_close()
            except Exception:
                logger.warning("closing the session of %s failed", self, exc_info=True)
            session._sessionkit_unit = OVER
            self.over = True
            self.user = None
            self.lock.release()

    def _commit(self) -> None:
        session = self.session
        try:
            if self.transaction.is_active:
                session._end_flush()
            found = obstacle(self)
            if found is not None:
                why, error = found
                raise UnexpectedRollback(f"nothing of {self} was committed: {why}") from error
            commit(self)
        except BaseException:
            if self.outcome != "committed":
                self.give_up_connection()
            raise

    def give_up_connection(self) -> None:
        """ROLLBACK, as far as it can be had; a connection that is lost goes out of the pool."""
        try:
            self.session._end_rollback()
        except Exception:
            # What the caller must see is the error that led here; the pool drops a connection that cannot roll back.
            logger.warning("ROLLBACK failed in %s", self, exc_info=True)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
