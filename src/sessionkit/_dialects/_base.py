"""The shape of a table entry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..errors import OptionError
from ._bulk import Bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Engine

    from ._locks import Locks
    from ._once import OnceKeys
    from ._races import Raced
    from ._replication import Replication
    from ._settings import Settings
    from ._template import Template
    from ._two_phase import TwoPhase
    from ._with_commit import WithCommit

deadline: ContextVar[float | None] = ContextVar("sessionkit_deadline", default=None)
"""When a unit that is talking to its database must be done, on the monotonic clock."""

LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
"""Weakest first. Strings, because `isolation` builds on this package and not the other way round."""

ANOMALIES = ("G0", "G1a", "G1b", "G1c", "OTV", "PMP", "P4", "G-single", "G2-item", "G2")
"""Adya's phenomena in the order of the Hermitage suite."""


class Asked(Protocol):
    """The part of an `isolation.Preset` that this package reads."""

    @property
    def isolation(self) -> str | None: ...
    @property
    def read_only(self) -> bool | None: ...
    @property
    def deferrable(self) -> bool | None: ...
    @property
    def statement_timeout(self) -> float | None: ...
    @property
    def lock_timeout(self) -> float | None: ...
    @property
    def idle_timeout(self) -> float | None: ...


def all_of(*names: str) -> frozenset[str]:
    """Return a set of anomalies, checked."""
    assert set(names) <= set(ANOMALIES)
    return frozenset(names)


def root_of(engine: Engine) -> Engine:
    """Return the engine that `engine` was derived from with ``execution_options()``: its listeners are called for both."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine


class Beginning(NamedTuple):
    """How the transactions of an engine begin for units with one preset.

    Attributes:
        dialect: the table entry.
        before: called with the connection before SQLAlchemy calls its listeners of BEGIN.
        after: called after them.
    """

    dialect: Dialect
    before: Callable[[Any], None] | None = None
    after: Callable[[Any], None] | None = None


def at_level(level: str) -> Callable[[Any], None]:
    """Return a function that makes a connection run its transaction at a level, the way SQLAlchemy does it."""

    def run_at(connection: Any) -> None:
        connection.execution_options(isolation_level=level)

    return run_at


def _sqlalchemys_own(engine: Engine, asked: Asked) -> Beginning:
    """Return what SQLAlchemy itself can do for a dialect without an entry: isolation_level, and nothing else."""
    name = engine.dialect.name
    refuse(name, asked, "read_only", "deferrable", "statement_timeout", "lock_timeout", "idle_timeout")
    return Beginning(Dialect(name), None if asked.isolation is None else at_level(str(asked.isolation)))


def is_autocommit(bind: Any) -> bool:
    """Return whether each statement on an engine or connection commits on its own, according to SQLAlchemy's options."""
    level: object = bind.get_execution_options().get("isolation_level")
    return str(level or getattr(bind.dialect, "_on_connect_isolation_level", None)).upper() == "AUTOCOMMIT"


def refuse_autocommit(engine: Engine) -> None:
    """Refuse an engine on which a scope could not roll back.

    Raises:
        OptionError: its isolation_level is AUTOCOMMIT.
    """
    if is_autocommit(engine):
        raise OptionError(
            f"a scope was opened on {engine!r}, whose isolation_level is AUTOCOMMIT: each statement commits on its own, "
            "and the scope could not roll it back; use an engine without it, such as "
            "engine.execution_options(isolation_level='READ COMMITTED')"
        )


def undo_at_checkin(connection: Any, undo: Callable[[Any], None]) -> None:
    """Call `undo` with the driver's connection when the pool gets it back, even from a unit that was never ended."""
    # This is how SQLAlchemy itself resets what an execution option has changed; every user would pay for a pool event.
    connection.connection._connection_record.finalize_callback.append(undo)


def undo_at_end(connection: Any, undo: Callable[[Any], None]) -> None:
    """Call `undo` before COMMIT or ROLLBACK: a pool's only connection may not go back until much later."""
    steps: list[Callable[[Any], None]] = connection.at_end
    if not steps:
        undo_at_checkin(connection, partial(_undo_all, steps))
    steps.append(undo)


def _undo_all(steps: list[Callable[[Any], None]], dbapi_connection: Any) -> None:
    while steps:
        steps.pop()(dbapi_connection)


def refuse(name: str, asked: Asked, *options: str) -> None:
    """Raise an OptionError if one of `options` was asked for, because the dialect cannot keep it."""
    for option in options:
        value = getattr(asked, option)
        if value is not None and value is not False:
            raise OptionError(
                f"{option}={value!r} was asked for, but sessionkit cannot have it enforced on {name}; leave it out there"
            )


def _nothing(connection: Connection) -> str | None:
    return None


def _unrestricted(connection: Connection) -> None:
    raise OptionError(
        "read_only=True was asked for inside a read-write transaction, but sessionkit cannot enforce that on "
        f"{connection.dialect.name}; ask for propagation='new'"
    )


def _cannot_cut(connection: Connection) -> None:
    """Do nothing: there is no known way to interrupt this driver from outside."""


def _closed(connection: Any, error: BaseException, cursor: Any) -> None:
    """Do nothing: SQLAlchemy closes the connection, and that is enough."""


def _ended(connection: Connection) -> None:
    """Do nothing: a failed COMMIT has ended the transaction."""


def _never(_: Any) -> bool:
    return False


def _unbounded(connection: Connection, seconds: float | None) -> None:
    if seconds is not None:
        raise OptionError(
            f"commit_timeout={seconds} s was asked for, but sessionkit cannot keep it on {connection.dialect.name}; "
            "leave it out there"
        )


def _no_insert_or_wait(table: Table) -> Any:
    raise OptionError(
        "verify_commit=True was asked for, but sessionkit cannot claim commit markers on this dialect; pass a function"
    )


def _never_with_commit(connection: Connection) -> WithCommit | None:
    return None


def _no_conflict(held: Connection, wanted: Engine, asked: Asked) -> str | None:
    return None


def _with_sqlstate(base: type[Exception], code: str | None, message: str) -> Exception:
    if code is not None and len(code) != 5:
        raise OptionError(f"{code!r} is not a SQLSTATE; use five characters, such as '40001'")
    error: Any = type(base.__name__, (base,), {"sqlstate": code, "pgcode": code})(message)
    error.sqlstate = error.pgcode = code  # asyncpg's errors, as SQLAlchemy wraps them, keep theirs in the instance
    return cast("Exception", error)


def _believed(connection: Connection) -> bool:
    return connection.in_transaction()


def _checked_at_once(connection: Connection) -> None:
    """Do nothing: checking deferred constraints early is not supported here."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one dialect does in its own way.

    Attributes:
        name: SQLAlchemy's name for it.
        levels: the level it provides for each level you can ask for; a level without an entry is refused.
        anomalies: what can still happen at each level that it provides.
        default_level: the level if none was asked for and the engine does not know better.
        beginning: returns how transactions of an engine begin as asked; raises OptionError for what it cannot keep.
        aborts: a failed statement aborts the transaction, and COMMIT then silently means ROLLBACK.
        lost: returns why the transaction of a unit's connection can no longer be committed, as far as the driver knows
            without a round trip; None if all is well or the driver does not know.
        commit_failed: ends a transaction that a failed COMMIT has left open.
        interrupted: prepares a connection, and the driver's cursor if there is one, for closing: a statement on it was
            interrupted or cancelled, and SQLAlchemy closes the connection because of that.
        driver_in_transaction: returns whether a driver's connection is in a transaction.
        lives_in_memory: returns whether an engine's database is in the memory of its only connection.
        restrict: makes the database refuse writes on a connection from now on, inside a savepoint.
        lift: ends that, if the rollback of the savepoint does not.
        conflict: returns why a new transaction on an engine could only wait for the one that a connection of the same
            thread or task holds; None if it need not wait.
        insert_or_wait: an INSERT that does nothing if the row exists, and that waits for an open transaction that has
            inserted it.
        with_commit: returns a cursor that holds one statement back and sends it together with COMMIT; None if the driver
            cannot do that.
        cut: ends whatever a connection is waiting for, from another thread or task: the waiting code gets the driver's
            error.
        connect: returns a connection of an async engine, if asking the engine for one is not enough.
        connect_within: connects within a number of seconds, or raises the driver's OperationalError; None if connecting
            cannot hang, or a limit is not supported yet.
        bound_commit: prepares for a COMMIT that will be cut after a number of seconds, if there is anything to prepare.
        two_phase: how several of its databases commit as one; None if they cannot.
        locks: how to lock rows and take a mutex; None: not supported yet.
        once: how to claim a key that belongs to one unit; None: not supported yet.
        replication: how its replicas report how far they have come; None: not supported yet.
        settings: how to set a transaction to values that end with it; None: it cannot, or not supported yet.
        row_security: its tables can have policies that decide which rows a transaction sees.
        settings_ignorable: a factory may ask to ignore settings there, for tests.
        now: asks for the server's time, an aware datetime with microseconds; None: not supported yet.
        later: SQL for a timestamp after the one in ``{column}``, or the server's time if that is later; None as above.
        new_uuid: SQL for a random UUID, as SQLAlchemy's type `Uuid` stores it; None as above.
        xmin: a system column of this name says which transaction wrote a row.
        template: how to copy its databases, for tests; None: not supported yet.
        raced: loads what runs units against each other in its databases, for tests; None: not supported yet.
        in_transaction: returns whether the driver's connection is in a transaction, if that is known; for tests.
        has_written: asks the server whether the connection's transaction has written; for tests; None: not supported yet.
        check_deferred: makes the database check what it would check at COMMIT, without changing anything; for tests.
        name_transaction: names an open transaction where the server shows who is connected; None: the server has no such
            place, or it is not supported yet.
        with_code: makes a driver's error from its class, code and message; for tests.
    """

    name: str
    levels: Mapping[str, str] = field(default_factory=lambda: {level: level for level in LEVELS})
    anomalies: Mapping[str, frozenset[str]] = field(default_factory=dict)
    default_level: str = "READ COMMITTED"
    beginning: Callable[[Engine, Asked], Beginning] = _sqlalchemys_own
    aborts: bool = False
    lost: Callable[[Any], str | None] = _nothing
    commit_failed: Callable[[Any], None] = _ended
    interrupted: Callable[[Any, BaseException, Any], None] = _closed
    driver_in_transaction: Callable[[Any], bool] = _never
    lives_in_memory: Callable[[Any], bool] = _never
    restrict: Callable[[Connection], None] = _unrestricted
    lift: Callable[[Connection], None] = _unrestricted
    conflict: Callable[[Connection, Engine, Asked], str | None] = _no_conflict
    insert_or_wait: Callable[[Table], Any] = _no_insert_or_wait
    with_commit: Callable[[Connection], WithCommit | None] = _never_with_commit
    cut: Callable[[Connection], None] = _cannot_cut
    connect: Callable[[Engine], Connection] | None = None
    connect_within: Callable[[Any, Any, Any, float], Any] | None = None
    bound_commit: Callable[[Connection, float | None], None] = _unbounded
    bulk: Bulk = field(default_factory=Bulk)
    two_phase: TwoPhase | None = None
    locks: Locks | None = None
    once: OnceKeys | None = None
    replication: Replication | None = None
    settings: Settings | None = None
    row_security: bool = False
    settings_ignorable: bool = False
    now: Callable[[Connection], datetime] | None = None
    later: str | None = None
    new_uuid: str | None = None
    xmin: bool = False
    template: Template | None = None
    raced: Callable[[], type[Raced]] | None = None
    in_transaction: Callable[[Connection], bool] = _believed
    has_written: Callable[[Connection], bool] | None = None
    check_deferred: Callable[[Connection], None] = _checked_at_once
    name_transaction: Callable[[Connection, str], None] | None = None
    with_code: Callable[[type[Exception], str | None, str], Exception] = _with_sqlstate

    def given(self, level: str) -> str:
        """Return the level that this dialect provides for the one asked for."""
        try:
            return self.levels[level]
        except KeyError:
            raise OptionError(
                f"isolation={level!r} was asked for, but {self.name} has neither it nor a stronger one; "
                f"it has {', '.join(map(repr, self.levels))}"
            ) from None

    def running_level(self, bind: Engine | Connection) -> str:
        """Return the level at which a transaction of `bind` runs if none was asked for."""
        dialect = bind.dialect
        known = (
            bind.get_execution_options().get("isolation_level")
            or getattr(dialect, "_on_connect_isolation_level", None)  # create_engine(isolation_level=...)
            or getattr(dialect, "default_isolation_level", None)  # reported by the server at the first connection
        )
        return self.levels.get(str(known).upper().replace("_", " "), self.default_level)
