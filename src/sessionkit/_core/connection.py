"""The connection of a unit: SQLAlchemy's ``Connection``, which begins as asked and knows what failed on it.

After a failed statement PostgreSQL refuses everything, and answers COMMIT silently with ROLLBACK; SQLite goes on and
commits the rest. To make both behave the same, a connection notes what failed in its transaction and which savepoint
undid it, and the unit checks this before it commits. A subclass does it without engine events: a single listener of them
would cost every statement of the engine about twenty Python calls (tests/contract/test_call_counts.py).
"""

from __future__ import annotations

import os
import re
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection, TwoPhaseTransaction
from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from .. import _dialects
from .._bridge import uncut
from ..context import State, forks, here
from ..errors import ScopeError, UnexpectedRollback, classify, describe
from . import seams

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from sqlalchemy.engine import Engine, RootTransaction
    from sqlalchemy.pool import Pool

    from .._dialects import Beginning

_order = count()

WITH_COMMIT = "sessionkit_with_commit"
"""The execution option of the statement that is sent in one message with COMMIT."""

ONE = (StaticPool, SingletonThreadPool)
"""The pools that give the same connection to everybody, or to everybody in a thread."""

HELD = "sessionkit_unit"
"""The key under which the record of a pool's only connection says which unit uses it."""


class Failure(NamedTuple):
    """An error, and its position in the order of all failures of the process."""

    order: int
    error: BaseException

    @classmethod
    def now(cls, error: BaseException) -> Failure:
        return cls(next(_order), error)


class FailureLog:
    """The failures of one transaction that no savepoint has undone. Pure: it only gets names and errors."""

    __slots__ = ("_failures", "_marks", "_savepoints")

    def __init__(self) -> None:
        self._savepoints: list[str] = []
        self._failures: list[tuple[int, Failure]] = []  # (number of savepoints around it, the failure)
        self._marks: list[tuple[int, object]] = []

    def failed(self, error: BaseException) -> None:
        """Note that a statement failed at the current place in the transaction."""
        if not self._failures or self._failures[-1][1].error is not error:
            self._failures.append((len(self._savepoints), Failure.now(error)))

    def mark(self, what: object) -> None:
        """Note `what` at the current place in the transaction: it `holds` until a savepoint around it is rolled back."""
        self._marks.append((len(self._savepoints), what))

    def holds(self, what: object) -> bool:
        """Return whether `what`, which was marked, has not been rolled back."""
        return any(each is what for _, each in self._marks)

    def set(self, name: str) -> None:
        """SAVEPOINT `name`."""
        self._savepoints.append(name)

    def rolled_back_to(self, name: str) -> None:
        """ROLLBACK TO SAVEPOINT `name`: failures since it was set are undone."""
        depth = self._depth(name)
        if depth is not None:
            self._failures = [f for f in self._failures if f[0] <= depth]
            self._marks = [m for m in self._marks if m[0] <= depth]
            del self._savepoints[depth:]

    def released(self, name: str) -> None:
        """RELEASE SAVEPOINT `name`: failures since it was set now belong to what encloses it."""
        depth = self._depth(name)
        if depth is not None:
            self._failures = [(min(f[0], depth), f[1]) for f in self._failures]
            self._marks = [(min(m[0], depth), m[1]) for m in self._marks]
            del self._savepoints[depth:]

    def forget(self) -> None:
        """Drop the failures: the driver has undone the whole transaction, before anything else was sent in it."""
        self._failures.clear()

    def undone(self, error: BaseException) -> None:
        """Drop a failure that left nothing behind: the database undoes such a statement alone, and goes on."""
        self._failures = [f for f in self._failures if f[1].error is not error]

    def _depth(self, name: str) -> int | None:
        # If a name was used twice, the innermost savepoint counts, as in SQL.
        for depth in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[depth] == name:
                return depth
        return None

    def first(self, depth: int = 0) -> Failure | None:
        """Return the first failure inside at least `depth` savepoints."""
        return next((f for d, f in self._failures if d >= depth), None)

    @property
    def depth(self) -> int:
        """The number of open savepoints."""
        return len(self._savepoints)


# Without the statements that work on savepoints or on prepared transactions.
_ends_transaction = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(COMMIT|END|ABORT|ROLLBACK|PREPARE\s+TRANSACTION)\b"
    r"(?!\s+(?:PREPARED|(?:(?:WORK|TRANSACTION)\s+)?TO)\b)",
    re.IGNORECASE | re.DOTALL,
).match


class ScopeConnection(Connection):
    """A connection whose transaction a unit follows.

    ``engine.connect()`` makes the connection, even if somebody has wrapped that method; then its class is changed. This
    also works for a user's own connection that a session is bound to.
    """

    # The state of a unit while it runs. The class holds the values of a connection without a unit.
    unit: Any = None  # the owner of the transaction; None: it is the user's own, and the scope only follows it
    borrower: Any = None  # the unit that runs on a user's own connection
    shared = False  # by the units of a test, in turns: releasing a savepoint is their COMMIT
    beginning: Beginning | None = None  # how its transactions begin
    failures: FailureLog | None = None  # None: nothing ever failed and no savepoint was set
    notes: dict[str, Any]  # the dialect's
    at_end: list[Callable[[Any], None]]  # what the dialect undoes before COMMIT or ROLLBACK
    marker: Any = None  # the statement that is sent in one message with COMMIT
    sent = False  # COMMIT was sent
    committed = False  # and answered
    held: dict[Any, Any] | None = None  # for a pool's only connection: the record that says which unit uses it
    tell_connect = False  # call the listeners of engine_connect again, because their transaction was rolled back
    prepares = False  # its transaction may get prepared

    def log(self) -> FailureLog:
        """Return the log of its transaction."""
        failures = self.failures
        if failures is None:
            failures = self.failures = FailureLog()
        return failures

    # -- begin ------------------------------------------------------------------------------------------------------

    def _begin_impl(self, transaction: RootTransaction) -> None:
        self.failures = None
        beginning = self.beginning
        if beginning is None:
            super()._begin_impl(transaction)
            return
        if beginning.before is not None:
            # Statements sent here belong to this BEGIN; without the flag SQLAlchemy would begin a second time for them.
            self._Connection__in_begin = True
            try:
                beginning.before(self)
            finally:
                self._Connection__in_begin = False
        super()._begin_impl(transaction)
        if beginning.after is not None:
            beginning.after(self)
        if self.tell_connect:
            self._tell_connect()

    def _tell_connect(self) -> None:
        # Their work belongs to the first transaction, as in a plain session: a tenant's name set locally, or a row.
        self.tell_connect = False
        self._Connection__in_begin = True
        try:
            self.dispatch.engine_connect(self)
        finally:
            self._Connection__in_begin = False

    # -- what is sent -----------------------------------------------------------------------------------------------

    def _exec_single_context(self, dialect: Any, context: Any, statement: Any, parameters: Any) -> Any:
        # Some of SQLAlchemy's dialects send a two-phase commit as SQL.
        if (
            (found := _ends_transaction(context.statement)) is not None
            and (unit := self.unit or (self.borrower if self.shared else None)) is not None
            and unit.state is not State.COMMITTING
        ):
            raise ScopeError(
                f"{found[1].upper()} was sent as SQL inside a scope, which decides when its transaction ends; to have "
                "nothing committed, raise an exception or call set_rollback_only(session)"
            )
        if self.marker is not None and context.execution_options.get(WITH_COMMIT):
            # A cursor that holds the statement back: every listener sees it, and it is sent with COMMIT.
            context.cursor.close()
            context.cursor = self.marker
        result = super()._exec_single_context(dialect, context, statement, parameters)
        if context._is_server_side and type(result.cursor_strategy) is BufferedRowCursorFetchStrategy:
            result.cursor_strategy.__class__ = _Streamed
        return result

    def _handle_dbapi_exception(
        self, e: BaseException, statement: Any, parameters: Any, cursor: Any, context: Any, is_sub_exec: bool = False
    ) -> NoReturn:
        if not isinstance(e, Exception):
            # SQLAlchemy closes what was interrupted, but that is not always enough.
            (_dialects.of(self) if self.beginning is None else self.beginning.dialect).interrupted(self, e, cursor)
        elif self._refuses_writes(e):
            # All connections of the pool lead to this server. SQLAlchemy drops them, and the next one finds the primary.
            self._is_disconnect = True
        try:
            super()._handle_dbapi_exception(e, statement, parameters, cursor, context, is_sub_exec)
        except BaseException as error:
            # Without an execution context nothing was sent, because the client refused the statement (a type could not
            # bind a value, say): the transaction is as good as before. A lost connection has no context either.
            if context is not None or self.invalidated:
                self.log().failed(error)
            raise

    def _refuses_writes(self, error: Exception) -> bool:
        """Return whether the server no longer takes writes, although it was chosen because it did."""
        if self.beginning is None or self.shared or (self.unit is not None and self.unit.read_only):
            return False
        asked = self.engine.url.query.get("target_session_attrs")
        return asked in ("read-write", "primary") and classify(error).code == "25006"

    def fail(self, error: BaseException, statement: str) -> NoReturn:
        """Raise what the driver raised for a statement that bypassed SQLAlchemy.

        After an interrupted statement the connection is not fit for the pool, and SQLAlchemy invalidates it.
        """
        self._handle_dbapi_exception(error, statement, None, None, None)

    # -- savepoints -------------------------------------------------------------------------------------------------

    def _savepoint_impl(self, name: str | None = None) -> str:
        name = super()._savepoint_impl(name)
        self.log().set(name)
        return name

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        if self.failures is not None:
            self.failures.rolled_back_to(name)
        super()._rollback_to_savepoint_impl(name)

    def _release_savepoint_impl(self, name: str) -> None:
        try:
            if (unit := self.borrower) is not None and unit.state is State.COMMITTING:
                self._commit_by_release(name)
            else:
                super()._release_savepoint_impl(name)
        finally:  # a failed release is noted inside the savepoint, which may have been rolled back since
            if self.failures is not None:
                self.failures.released(name)

    def _commit_by_release(self, name: str) -> None:
        # On a user's own connection, or a test's, releasing a savepoint is a unit's COMMIT.
        self.sent = True
        for commit in tuple(seams.at_release):
            commit(self, name)
        super()._release_savepoint_impl(name)
        self.committed = True

    # -- the end ----------------------------------------------------------------------------------------------------

    def _commit_impl(self) -> None:
        unit = self.unit or (self.borrower if self.shared else None)
        if unit is None:
            super()._commit_impl()
            return
        if unit.state is not State.COMMITTING:
            refused = ScopeError(
                "COMMIT was asked for on a connection or transaction inside a scope, which decides when its transaction "
                "ends: it commits when its block ends; for a transaction of your own, open a scope with "
                "propagation='new'"
            )
            self.log().failed(refused)  # SQLAlchemy now believes that the transaction has ended, so what follows fails
            raise refused
        # As SQLAlchemy does, but with a check between the listeners and COMMIT: a listener may have swallowed a failure,
        # and PostgreSQL would silently answer COMMIT with ROLLBACK.
        if self._has_events or self.engine._has_events:
            self._tell_listeners(unit)
        if self._echo:
            self._log_info("COMMIT")
        if self.at_end:
            self.undo()
        self.sent = True
        for commit in seams.at_commit:
            commit(self)
        try:
            self.send_commit()
        except BaseException as error:  # noqa: BLE001 - SQLAlchemy raises it, as for its own COMMIT
            if self.beginning is not None:
                self.beginning.dialect.commit_failed(self)
            try:
                self._handle_dbapi_exception(error, None, None, None, None)
            except DBAPIError as wrapped:
                if self.marker is not None and self.marker.refused:
                    from .._markers import explain

                    explain(wrapped)
                raise
        self.committed = True

    def send_commit(self) -> None:
        """Send COMMIT, together with the marker if there is one."""
        if self.marker is None:
            self.dialect.do_commit(cast("Any", self.connection))
        else:
            self.marker.commit(self)

    def _tell_listeners(self, unit: Any) -> None:
        """Call the listeners of the engine's commit event, and check what they did to the transaction."""
        before = None if self.failures is None else self.failures.first()
        try:
            self.dispatch.commit(self)
        except BaseException:
            entry = None if self.beginning is None else self.beginning.dialect
            pooled = self._dbapi_connection
            if entry is not None and pooled is not None and not entry.driver_in_transaction(pooled.driver_connection):
                self.sent = True  # a listener has ended it
                if self.marker is not None:
                    unit.question = None  # and the marker was not sent with it, so it cannot answer
            raise
        failure = None if self.failures is None else self.failures.first()
        if failure is not None and failure is not before:
            raise UnexpectedRollback(
                f"nothing of {unit} was committed: a listener of the engine's commit event swallowed "
                f"{describe(failure.error)}"
            ) from failure.error

    def _rollback_impl(self) -> None:
        if self.at_end and not self.invalidated:
            self.undo()
        super()._rollback_impl()

    def undo(self) -> None:
        """Undo what the dialect set for the transaction."""
        steps, self.at_end[:] = self.at_end[::-1], []
        adapted = cast("Any", self.connection).dbapi_connection
        for step in steps:
            step(adapted)

    def close(self) -> None:
        unit = self.unit
        if unit is not None and unit.state is State.OPEN and unit.asynchronous:
            # It could not begin, and SQLAlchemy's session closes it: cancelled here, the pool would lose it.
            self.unit = None
            try:
                uncut(self.close)
            finally:
                self.failures = self.beginning = self.marker = None
            return
        try:
            super().close()
        finally:
            if self.held is not None:
                self.held.pop(HELD, None)
            if self.unit is not None:
                self.unit = self.failures = self.beginning = self.marker = None


USER = "user"
"""The key in `Unit.inside` for the thread or task that is using the session."""


class _Streamed(BufferedRowCursorFetchStrategy):
    """Reads a result that the server is still sending: like a statement, it takes the session while it asks for rows."""

    __slots__ = ()

    def _buffer_rows(self, result: Any, dbapi_cursor: Any) -> None:
        _as_user(result, super()._buffer_rows, dbapi_cursor)

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return _as_user(result, super().fetchmany, dbapi_cursor, size)

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return _as_user(result, super().fetchall, dbapi_cursor)


def _as_user(result: Any, read: Callable[..., Any], *args: Any) -> Any:
    if result.connection.closed:
        raise ScopeError(
            "a streamed result was read after the end of the scope that opened it, and its connection may be in use by "
            "others by now; read it inside the scope"
        )
    unit = getattr(result.connection, "unit", None)
    owner = here()
    if unit is None or unit.inside.get(USER) == owner:
        return read(result, *args)
    if unit.inside.setdefault(USER, owner) != owner:
        unit.refuse(owner, "stream")
    try:
        return read(result, *args)
    finally:
        unit.inside.pop(USER, None)
        if unit.when_free is not None:
            unit.when_free()


_classes: dict[type[Connection], type[ScopeConnection]] = {Connection: ScopeConnection}


def follow(connection: Connection) -> ScopeConnection:
    """Turn a connection into a ScopeConnection, and return it. If its class is a user's own, that stays in force."""
    # Not type(connection): a wrapper (of wrapt, say) answers with the class of the connection inside, and sets it there.
    kind: type[Any] = connection.__class__
    if not issubclass(kind, ScopeConnection):
        if not issubclass(kind, Connection):
            raise ScopeError(
                f"{kind.__name__} wraps a connection of SQLAlchemy's but does not derive from Connection, so a scope cannot "
                "follow what fails on it; derive it from Connection, or hand out the connection itself"
            )
        ours = _classes.get(kind)
        if ours is None:
            ours = _classes[kind] = type(kind.__name__, (ScopeConnection, kind), {"__module__": kind.__module__})
        connection.__class__ = ours
        scoped = cast("ScopeConnection", connection)
        scoped.notes = {}
        scoped.at_end = []
        return scoped
    return cast("ScopeConnection", connection)


def engine_that_begins(engine: Engine, beginning: Beginning) -> Engine:
    """Return an engine on the same pool whose transactions all begin as asked; for code that needs an engine."""

    class Connection_(ScopeConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.beginning, self.notes, self.at_end = beginning, {}, []
            super().__init__(*args, **kwargs)

    derived = engine.execution_options()
    derived._connection_cls = Connection_
    return derived


def unfollow(connection: Connection) -> None:
    """Give a user's own connection its class back."""
    kind = connection.__class__
    for given, ours in _classes.items():
        if ours is kind:
            connection.__class__ = given
            for name in ("borrower", "failures", "notes", "at_end", "sent", "committed", "prepares"):
                connection.__dict__.pop(name, None)
            return


def has_two_phases(connection: Connection) -> bool:
    """Return whether the transaction may get prepared, by a scope or by SQLAlchemy."""
    prepares = isinstance(connection, ScopeConnection) and connection.prepares
    return prepares or isinstance(connection.get_transaction(), TwoPhaseTransaction)


def failures_of(connection: Connection) -> FailureLog | None:
    """Return the log of a connection's transaction; None if it has none, or nothing ever failed."""
    return connection.failures if isinstance(connection, ScopeConnection) else None


# -- one connection is one transaction ------------------------------------------------------------------------------

# Some pools give one connection to several units (StaticPool, SingletonThreadPool), and a forked process has copies of its
# parent's sockets. The second unit is refused before it touches anything: giving the connection back would already roll
# the first one back.


def _held_by(pool: Any) -> Any:
    """Return the pool's record of the connection that it would give out now; None if it has none yet."""
    if isinstance(pool, StaticPool):
        return pool.__dict__.get("connection")
    current: Any = getattr(pool._conn, "current", None)  # per thread, and weak
    return None if current is None else current()


def refuse_shared(engine: Engine, unit: Any) -> None:
    """Refuse to begin on a pool's only connection while a transaction is open on it.

    Raises:
        ScopeError: another unit or session has a transaction there.
    """
    record = _held_by(engine.pool)
    if record is None:
        return
    holder = record.info.get(HELD)
    if holder is not None:
        raise ScopeError(
            f"{unit} was opened on {engine!r}, whose pool has only one connection, and {holder} is in a transaction on "
            "it: the two would be committed or rolled back together; end that one first, or use an engine with a pool of "
            "several connections (for SQLite, a database file)"
        )
    driver = None if record.dbapi_connection is None else record.driver_connection
    if driver is not None and _dialects.of(engine).driver_in_transaction(driver):
        raise ScopeError(
            f"{unit} was opened on {engine!r}, whose only connection is in a transaction that belongs to no scope: the two "
            "would be committed or rolled back together; end that one first, or use an engine with a pool of several "
            "connections (for SQLite, a database file)"
        )


_made_in: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
"""The process that made a pool, or that was found to own it; only in forked processes."""


def leave_parents_pool(engine: Engine) -> None:
    """Give an engine a new pool in a forked process, once: the connections in the old one belong to the parent."""
    if _made_in.get(engine.pool) != os.getpid():
        if not (isinstance(engine.pool, ONE) and _dialects.of(engine).lives_in_memory(engine)):
            engine.dispose(close=False)
        _made_in[engine.pool] = os.getpid()


def connect(engine: Engine, beginning: Beginning, unit: Any = None) -> ScopeConnection:
    """Return a connection of an engine that begins as asked and whose transaction belongs to `unit`.

    Raises:
        ScopeError: another transaction is open on the pool's only connection.
    """
    if forks:
        leave_parents_pool(engine)
    one = unit is not None and isinstance(engine.pool, ONE)
    if one:
        refuse_shared(engine, unit)
    open_ = beginning.dialect.connect if engine.dialect.is_async else None
    connection: Connection | None = None
    try:  # an interrupt may arrive at any line, and SQLAlchemy's session does not know the connection yet
        connection = engine.connect() if open_ is None else open_(engine)
        early = connection._transaction is not None
        if early:
            connection.rollback()  # a listener of engine_connect has begun a transaction, but not as asked
        scoped = follow(connection)
        if early:
            scoped.tell_connect = True
        scoped.beginning = beginning
        scoped.unit = unit
        if one:
            scoped.held = scoped.connection.info
            scoped.held[HELD] = str(unit)
        return scoped  # noqa: TRY300 - inside, because an interrupt may hit this line too
    except BaseException:
        if connection is not None:
            connection.close()
        raise
