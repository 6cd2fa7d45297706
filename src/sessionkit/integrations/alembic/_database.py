"""One database: its lock, its transactions, and the retries when it cannot get a lock."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from ..._spi import sleep
from ...errors import OptionError, classify, set_outcome
from ...retry import Attempts, Retry
from . import _servers
from ._backfill import LOCK_TIMEOUT
from ._errors import Blocker, MigrationBlocked, MigrationError
from ._watcher import watching

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy.engine import Engine

    from ._servers import MigrationTurn, Server

log = logging.getLogger("alembic.sessionkit")


@dataclass(frozen=True, slots=True)
class Care:
    """How carefully a migration treats the application that runs meanwhile.

    Attributes:
        lock: one deployment at a time; None means if the database supports it.
        lock_wait: seconds to wait for another deployment.
        lock_timeout: seconds that a statement waits for a lock; None means no limit.
        retry: when to try again, and how often.
    """

    lock: bool | None
    lock_wait: float
    lock_timeout: float | None
    retry: Retry

    def check(self, dialect: str) -> None:
        """Refuse options that this dialect does not support.

        Raises:
            OptionError: an option is not supported.
        """
        server = _servers.of(dialect)
        if self.lock and not server.locks:
            raise OptionError(
                f"lock=True was asked for, but run_migrations() has no lock for {dialect}; use lock=False, and make "
                "sure that two deployments never migrate at once"
            )

    def limit(self, server: Server) -> float | None:
        """Return the lock timeout if the database has one."""
        return self.lock_timeout if server.timeouts else None


class Command(Protocol):
    """An Alembic command that runs on a connection."""

    def run(self, connection: Connection, ours: dict[str, Any]) -> None:
        """Run the command with these options of ``context.configure()`` in addition to the user's."""

    def can_begin_again(self) -> bool:
        """Return whether running it again leads to the same target."""
        ...


def migrate_on(engine: Engine, care: Care, turn: MigrationTurn | None, command: Command) -> None:
    """Run a command on an engine's database.

    Args:
        engine: the engine. All its connections are returned at the end.
        care: how careful to be.
        turn: which deployments exclude each other; None if the command changes nothing and needs no lock.
        command: the command. If it cannot get a lock, it runs again from its beginning.

    Raises:
        MigrationBlocked: it could not get a lock in all attempts.
    """
    server = _servers.of(engine.dialect.name)
    if turn is None:
        with engine.connect() as connection:
            command.run(connection, {})
        return
    with ExitStack() as stack:
        check: list[Any] = []
        if server.locks and not server.whole and care.lock is not False:
            check.append(stack.enter_context(_locked(engine, server, turn)))
        attempts = Attempts(care.retry, time.monotonic())
        while True:
            attempt = attempts.next()
            blockers: list[Blocker] = []
            try:
                with _connected(engine, server) as connection, ExitStack() as around:
                    # Blockers are looked up only if they are needed.
                    if attempt.number > 1 or care.retry.attempts == 1:
                        every = (care.limit(server) or 1.0) / 4
                        blockers = around.enter_context(watching(server, connection, every))
                    options = {**server.options, "on_version_apply": check}
                    around.enter_context(_prepared(connection, server, care, turn, options))
                    command.run(connection, options)
            except DBAPIError as error:
                # Every migration commits together with its revision, so starting again is right however the last one ended.
                set_outcome(error, "rolled back")
                if not attempts.failed(attempt, error, time.monotonic()):
                    _give_up(error, attempt.number, care, blockers)
                    raise
                if not command.can_begin_again():
                    error.add_note(
                        "this is not tried again: with a relative target that is partly done, it would go too far"
                    )
                    _give_up(error, attempt.number, care, blockers)
                    raise
                _tell(error, attempt.delay)
            else:
                return
            sleep(attempt.delay or 0.0, engine.dialect.is_async)


def migrate_within(connection: Connection, care: Care, turn: MigrationTurn | None, command: Command) -> None:
    """Run a command on a connection that the caller passed, in its transaction if it has one.

    It is not tried again: the earlier work of the transaction would be lost.
    """
    server = _servers.of(connection.dialect.name)
    if turn is None:
        command.run(connection, {})
    elif connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise OptionError(
            f"run_migrations() got the connection {connection!r}, which commits each statement on its own, so half a "
            "migration could not be undone; pass a connection without AUTOCOMMIT"
        )
    elif not connection.in_transaction():
        with ExitStack() as stack:
            check: list[Any] = []
            if server.locks and not server.whole and care.lock is not False:
                check.append(stack.enter_context(_locked(connection.engine, server, turn)))
            options = {**server.options, "on_version_apply": check}
            stack.enter_context(_prepared(connection, server, care, turn, options))
            command.run(connection, options)
    else:
        if server.locks and not server.whole and care.lock is not False:
            server.lock(connection, turn)
        with _limited(connection, server, care):
            command.run(connection, {})


def _connected(engine: Engine, server: Server) -> Connection:
    connection = engine.connect()
    return connection if server.level is None else connection.execution_options(isolation_level=server.level)


@contextmanager
def _limited(connection: Connection, server: Server, care: Care) -> Generator[None]:
    """Limit the wait for locks in a transaction, and restore its previous limit afterwards."""
    limit = care.limit(server)
    if limit is None or server.pid is None:
        yield
        return
    from sqlalchemy import text

    before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    server.limit(connection, limit)
    yield  # after an error there is nothing to restore: the transaction is aborted
    connection.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})


@contextmanager
def _locked(engine: Engine, server: Server, turn: MigrationTurn) -> Generator[Callable[..., None]]:
    """Hold the lock in a separate transaction; yield a function that raises if the lock is lost."""
    with _connected(engine, server) as holder:
        server.lock(holder, turn)

        def still_ours(**_: Any) -> None:
            try:
                holder.exec_driver_sql("SELECT 1")
            except Exception as error:
                # asyncpg raises an error of its own that SQLAlchemy does not know.
                raise MigrationError(
                    "the connection that held the lock of this migration was lost, so another deployment may have "
                    "started; the running migration was rolled back; run the command again"
                ) from error

        yield still_ours
        holder.rollback()


@contextmanager
def _prepared(
    connection: Connection, server: Server, care: Care, turn: MigrationTurn, options: dict[str, Any]
) -> Generator[None]:
    """Prepare each transaction of a connection as it begins, and restore the connection afterwards."""
    limit = care.limit(server)

    def begin(begun: Connection) -> None:
        if begun.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return  # inside autocommit_block()
        if server.begin is not None:
            server.begin(begun, turn)
        if limit is not None:
            server.limit(begun, limit)

    before = server.before(connection)
    options["sessionkit_check"] = lambda: server.check(connection, before)
    options[LOCK_TIMEOUT] = limit
    event.listen(connection, "begin", begin)
    try:
        yield
        server.ended(connection)
    finally:
        event.remove(connection, "begin", begin)
        if not connection.closed and not connection.invalidated:
            try:
                connection.rollback()
                server.after(connection, before)
            except Exception:
                # This does not change the result or the error; but the connection must not be used again.
                log.warning("Could not restore a connection; it is closed instead", exc_info=True)
                connection.invalidate()


def _tell(error: DBAPIError, delay: float | None) -> None:
    kind = classify(error).kind
    log.warning("The migration could not get a lock (%s); it starts again in %.1f s", kind, delay or 0.0)


def _give_up(error: DBAPIError, attempts: int, care: Care, blockers: list[Blocker]) -> None:
    if classify(error).kind not in {"lock_not_available", "busy", "busy_snapshot"}:
        return
    tried = "once" if attempts == 1 else f"{attempts} times"
    statement = " ".join((error.statement or "").split())
    within = "" if care.lock_timeout is None else f" within {care.lock_timeout} s"
    who = "" if blockers else "; the transaction that holds it could not be seen"
    raise MigrationBlocked(f"could not get a lock{within}, tried {tried}, for: {statement}{who}", blockers) from error


def with_locks(retry: Retry) -> Retry:
    """Return the policy, extended to retry when a lock is not available."""
    return retry if retry.on is not None else replace(retry, also=(*retry.also, "lock_not_available"))
