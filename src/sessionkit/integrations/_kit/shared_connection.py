"""Rollback mode of the test kit: all units of a test share one connection, each in a savepoint; a ROLLBACK ends the test.

Savepoints of one connection are nested, so units take turns: a unit waits until the one before has ended, unless both belong
to the same thread or task, where the earlier one waits anyway. What this mode cannot do (keep an inner unit committed while
the outer one is rolled back) is reported as a problem of the test.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.pool import SingletonThreadPool, StaticPool
from sqlalchemy.util import greenlet_spawn

from ..._spi import ScopeConnection, _dialects, connect, describe, here, seams, set_at_begin, sleep
from ...errors import ScopeError
from ...isolation import Preset
from .._place import place
from .outside import Outside, reads

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine, RootTransaction
    from sqlalchemy.orm import SessionTransaction
    from sqlalchemy.pool import Pool

__all__ = ["Problem", "SharedConnection"]

TURN = 10.0
"""Seconds that a unit waits for its turn."""

Problem = str
_OF_BEGIN = frozenset({"isolation_level", "postgresql_readonly", "postgresql_deferrable"})
_ELSEWHERE = 'mark the test with sessionkit(mode="template")'


class _User:
    """A session that has a savepoint on the connection."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.owner = here()
        self.place = place()
        self.committed = False
        self.savepoint: str | None = None
        self.wrote = False
        self.options: Any = None  # the connection's options when it was lent
        self.loses: str | None = None  # work of another unit that its rollback would undo
        unit: Any = session.__dict__.get("_sessionkit_unit")
        self.enclosing = [] if unit is None else [outer.session for outer in unit.enclosing]
        self.read_only = unit is not None and bool(unit.preset.read_only)
        self.settings: dict[str, str | None] = {} if unit is None else set_at_begin(unit)
        self.before: Any = None  # what the connection was set to instead


class SharedConnection:
    """Replaces an engine. See the top of this file.

    Args:
        engine: the user's engine.
        problems: collects problems to report at the end of the test.
        at_commit: called when a unit commits, with the connection and the name of its savepoint.
        release: close the connection at the end, because other processes wait until no connection is left.
    """

    def __init__(
        self,
        engine: Engine,
        problems: list[Problem],
        at_commit: Callable[[ScopeConnection, str | None], None],
        *,
        release: bool = False,
    ) -> None:
        self._given = engine
        self._problems = problems
        # The one connection of an in-memory database is the database.
        self._only_one = isinstance(engine.pool, StaticPool | SingletonThreadPool)
        self._release = release and not self._only_one
        self._at_commit = at_commit
        self._beginning = _dialects.of(engine).beginning(engine, Preset())
        self._connection: ScopeConnection | None = None
        self._transaction: RootTransaction | None = None
        self._pool: Pool | None = None  # the pool that the connection belongs to
        self._loop: asyncio.AbstractEventLoop | None = None
        self.asynchronous = engine.dialect.is_async
        self._users: list[_User] = []
        self._asking: _User | None = None  # the session that got the connection last, and so sends the next statement
        self._taking = threading.Lock()
        self._listeners: dict[str, Any] = {
            "after_begin": self._after_begin,
            "after_commit": self._after_commit,
            "after_transaction_end": self._after_end,
        }
        self._outside = Outside(engine, lambda each: each is self._connection, problems.append, place)
        # On all sessions: adding listeners to each one would take longer than a small unit.
        for name, listener in self._listeners.items():
            event.listen(Session, name, listener)
        self._follows: dict[str, Any] = {
            "before_cursor_execute": self._on_execute,
            "rollback_savepoint": self._on_rollback,
            "set_connection_execution_options": self._on_options,
        }
        for name, listener in self._follows.items():
            event.listen(engine, name, listener)
        seams.at_release.append(self._on_release)

    # -- its turn -------------------------------------------------------------------------------------------------

    def connection_for(self, session: Session) -> Connection:
        """Wait for the session's turn, and return the connection.

        Raises:
            ScopeError: the turn did not come, or the connection belongs to another event loop.
        """
        known = self._user(session)
        if known is not None:
            self._asking = known
            return self._open()
        self._asking = user = _User(session)
        self._take_turn(user)
        try:
            connection = self._open()
        except BaseException:
            self._users.remove(user)
            raise
        user.options = connection.get_execution_options()
        session.join_transaction_mode = "create_savepoint"
        session.twophase = False  # a savepoint cannot be prepared
        if not session.in_transaction():
            session.begin()
        return connection

    def side_connection(self) -> Connection:
        """Return the connection on which a scope asks how its COMMIT ended."""
        return self._open()

    def checked_out(self, dbapi_connection: Any) -> None:
        """Report other code that got the shared connection: when that code returns it, the pool resets it."""
        ours = self._connection
        if ours is not None and not ours.invalidated and ours.connection.dbapi_connection is dbapi_connection:
            self._problems.append(
                f"a connection was requested at {place()}, but this database has only one, which all units share in "
                "rollback mode, and returning it ends their transaction; use a session of a factory"
            )

    def _take_turn(self, user: _User) -> None:
        ends = time.monotonic() + TURN
        while True:
            with self._taking:
                holder = self._users[-1] if self._users else None
                if holder is None or holder.owner == user.owner or holder.session in user.enclosing:
                    self._users.append(user)
                    return
            if time.monotonic() > ends:
                raise ScopeError(
                    f"all units of a test share one connection in rollback mode: {describe(user.owner)} waited "
                    f"{TURN:.0f} s for {_opened(holder)} by {describe(holder.owner)}, which has not ended; if the two "
                    f"wait for each other, {_ELSEWHERE}"
                )
            sleep(0.002, self.asynchronous)

    def _open(self) -> Connection:
        loop = asyncio.get_running_loop() if self.asynchronous else None
        if self._loop is not None and self._loop is not loop:
            raise ScopeError(
                "all units of a test share one connection in rollback mode: it belongs to the event loop that used it first, "
                "but another loop asked for it; run everything in one loop (one `with TestClient(app)` for all requests, "
                f"one asyncio.run()), or {_ELSEWHERE}"
            )
        connection = self._connection
        if connection is None:
            self._pool = self._given.pool
            connection = connect(self._given, self._beginning)
            connection.shared = True
            try:
                self._transaction = connection.begin()
            except BaseException:
                connection.close()
                raise
            self._connection, self._loop = connection, loop
        return connection

    # -- what the session does ------------------------------------------------------------------------------------

    def _user(self, session: Session) -> _User | None:
        return next((user for user in self._users if user.session is session), None)

    def _after_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        user = self._user(session)
        if user is None or connection is not self._connection or transaction.parent is not None:
            return
        nested = connection.get_nested_transaction()
        user.savepoint = None if nested is None else nested._savepoint
        self._set(user, connection)
        if user.read_only:
            _dialects.of(connection).restrict(connection)

    def _set(self, user: _User, connection: Connection) -> None:
        """Set the connection to what the unit asked for, and undo what others have set: a new transaction would not have it."""
        entry = _dialects.of(connection).settings
        others = {name: None for other in self._users if other is not user for name in other.settings}
        settings = sorted({**others, **user.settings}.items(), key=lambda item: item[0] == "role")  # which comes last
        if entry is not None and settings:
            user.settings = dict(settings)
            user.before = entry.change(connection, user.settings)

    def _put_back(self, user: _User) -> None:
        # The rollback of its savepoint has put them back already.
        if (
            user.before is not None
            and user.committed
            and self._connection is not None
            and not self._connection.invalidated
        ):
            entry = _dialects.of(self._connection).settings
            assert entry is not None
            entry.put_back(self._connection, user.before)

    def _after_commit(self, session: Session) -> None:
        user = self._user(session)
        if user is not None:
            user.committed = not session.in_nested_transaction()

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        user = self._user(session)
        if user is None or transaction.parent is not None:
            return
        if user.read_only and self._connection is not None and not self._connection.invalidated:
            _dialects.of(self._connection).lift(self._connection)
        self._put_back(user)
        if not user.committed and user.loses is not None:
            self._problems.append(
                f"{_opened(user)} was rolled back, and in rollback mode this also undoes {user.loses}, which would "
                f"otherwise be kept; {_ELSEWHERE}"
            )
        if self._connection is not None:
            self._connection._execution_options = user.options  # the next session must not get options of this one
        with self._taking:
            self._users.remove(user)
            if user.committed and self._users:
                self._users[-1].loses = f"what {_opened(user)} committed"

    def _on_execute(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if connection is not self._connection or not self._users or reads(statement):
            return
        user = self._asking if self._asking in self._users else self._users[-1]
        user.wrote = True
        if user is not self._users[-1]:
            self._users[-1].loses = f"what {_opened(user)} did meanwhile"

    def _on_rollback(self, connection: Connection, name: str, _: None) -> None:
        user = next((each for each in self._users if each.savepoint == name), None)
        if connection is not self._connection or user is None or user.loses is None or user.wrote or user.read_only:
            return
        # It has only read, so there is nothing to roll back, and other units keep what they have committed meanwhile.
        with suppress(Exception):  # after a failed statement the server only accepts a rollback
            connection.dialect.do_release_savepoint(connection, name)
            connection.dialect.do_savepoint(connection, name)
            user.loses = None

    def _on_release(self, connection: ScopeConnection, name: str) -> None:
        if connection is not self._connection or not self._users:
            return
        try:
            if self._users[-1].read_only:
                # Nothing was written; this resets PostgreSQL's local setting.
                connection.dialect.do_rollback_to_savepoint(connection, name)
                self._at_commit(connection, name)
                return
            _dialects.of(connection).check_deferred(connection)
            self._at_commit(connection, name)
        except BaseException:
            # SQLAlchemy considers a savepoint ended even if its RELEASE has failed.
            with suppress(Exception):
                connection._rollback_to_savepoint_impl(name)
            raise

    def _on_options(self, connection: Connection, options: dict[str, Any]) -> None:
        # Options that only BEGIN can set have no effect here, like those of presets.
        if connection is self._connection:
            for name in _OF_BEGIN.intersection(options):
                del options[name]

    # -- the end --------------------------------------------------------------------------------------------------

    def left_open(self) -> list[Problem]:
        """Return a problem for each session that has not ended."""
        return [f"{_opened(user)} is still in a transaction: close it, or end its scope" for user in self._users]

    def end(self) -> None:
        """Roll back, and return the connection to its pool; the next unit opens another one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            for user in self._users[::-1]:
                with suppress(Exception):  # what was left open has been reported already
                    Session.close(user.session)
            if connection.invalidated:
                self._problems.append(
                    f"the connection that all units share in rollback mode was lost during the test; {_ELSEWHERE}"
                )
            elif not self._is_open(connection):
                if not self._only_one:
                    connection.invalidate()  # it may still be in the transaction, which SQLAlchemy no longer knows about
                self._problems.append(
                    "the test called COMMIT or ROLLBACK on a session's connection, which all units share in rollback "
                    f"mode; {_ELSEWHERE}"
                )
            else:
                if not self._users:
                    _dialects.of(connection).check_deferred(connection)
                connection.rollback()
        finally:
            connection.close()
            # The code under test may have disposed of the engine, as applications do when they end. This connection was
            # checked out then, and returns to a pool that is no longer used: it would stay open there.
            if self._pool is not None and self._pool is not self._given.pool:
                self._pool.dispose()
            if self._release:
                self._given.dispose()

    def _is_open(self, connection: Connection) -> bool:
        if self._transaction is None or not self._transaction.is_active:
            return False
        return _dialects.of(connection).in_transaction(connection)

    async def async_end(self) -> None:
        """Do the same as `end` in the event loop that used the connections; another loop could not use them."""
        try:
            await greenlet_spawn(self.end)
        finally:
            if not self._only_one:
                await greenlet_spawn(self._given.dispose)

    def renew(self) -> None:
        """Do nothing: the next unit opens another transaction."""

    def abandon(self) -> None:
        """Drop the connection of an event loop that is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            pooled: Any = connection.connection
            with suppress(Exception):  # some drivers can only drop it then
                connection.dialect.do_terminate(pooled.dbapi_connection)
            pooled.detach()
        if not self._only_one:
            self._given.dispose(close=False)

    def detach(self) -> None:
        """Remove the listeners."""
        self._outside.detach()
        for name, listener in self._follows.items():
            event.remove(self._given, name, listener)
        seams.at_release.remove(self._on_release)
        for name, listener in self._listeners.items():
            event.remove(Session, name, listener)


def _opened(user: _User | None) -> str:
    return "another unit" if user is None else f"the session opened at {user.place}"
