"""A read-only scope inside a read-write transaction: the database refuses writes until the inner scope ends.

PostgreSQL: ``SET LOCAL transaction_read_only`` in a savepoint that is rolled back to, since a transaction that was
made read-only cannot be made read-write again otherwise. SQLite: ``PRAGMA query_only``, and a savepoint as well, so
that both behave the same.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import UnboundExecutionError

from .. import _dialects
from ..errors import UnexpectedRollback, told
from .savepoints import connections
from .watch import SCOPED, failure_log

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, NestedTransaction

    from .unit import Unit

logger = logging.getLogger("sessionkit")


class Restriction:
    """Writes are refused on the connections of a unit, from when this is made until `finish`."""

    __slots__ = ("_held", "_unit")

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._held: list[tuple[Connection, NestedTransaction]] = []
        session = unit.session
        session.flush()  # what is pending was written outside
        # With binds= only, the connections that the unit has are restricted, and it gets no others meanwhile.
        with suppress(UnboundExecutionError):
            session.connection()
        held = connections(unit.transaction)
        for connection in held:
            # The session sets its own savepoint on a connection at its first use inside; it must enclose ours.
            scoped = connection.get_execution_options().get(SCOPED)
            session.connection(bind_arguments={"bind": connection.engine if scoped else connection})
        try:
            for connection in held:
                # Not session.begin_nested(): its rollback would expire objects and drop hooks, and nothing is undone
                # here.
                self._held.append((connection, connection.begin_nested()))
                _dialects.of(connection).restrict(connection)
        except BaseException:
            self._lift()
            raise
        unit.restrictions += 1

    def finish(self, error: BaseException | None) -> None:
        """Let the database accept writes again.

        Raises:
            Exception: what the database says to a write that was still pending.
            UnexpectedRollback: a write was refused before, and that was swallowed.
        """
        try:
            if error is None:
                self._unit.session.flush()
                for connection, _ in self._held:
                    log = failure_log(connection)
                    failure = None if log is None else log.first(depth=log.depth)
                    if failure is not None:
                        raise UnexpectedRollback(
                            f"something failed inside a read-only scope in {self._unit} and was swallowed; the first "
                            f"error was {told(failure.error)}"
                        ) from failure.error
                for connection, savepoint in self._held:
                    # Nothing is undone by its rollback: what was registered inside (a hook, say) stays.
                    log = failure_log(connection)
                    if log is not None:
                        log.named(savepoint._savepoint)
                        log.released(savepoint._savepoint)
        finally:
            self._unit.restrictions -= 1
            self._lift()

    def _lift(self) -> None:
        for connection, savepoint in reversed(self._held):
            try:
                if not connection.invalidated and not connection.closed:
                    _dialects.of(connection).lift(connection)
                    if savepoint.is_active:
                        savepoint.rollback()
            except Exception:
                # The connection is gone, and with it the transaction: the unit's own end finds it out.
                logger.warning("ending a read-only scope failed in %s", self._unit, exc_info=True)
