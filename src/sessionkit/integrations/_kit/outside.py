"""What goes past the connection that the units of a test share in rollback mode: it must not be committed.

A connection that somebody asks the engine for, or a session that no listed factory has made, would commit for good.
What it reads and rolls back is its own affair; its COMMIT is refused if it has written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event

from ..._spi import _dialects, is_autocommit
from ...errors import ScopeError, classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine, ExceptionContext

__all__ = ["Outside", "reads"]

_SPACE = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_READS = re.compile(
    _SPACE
    + r"(?:SELECT|VALUES|TABLE|SHOW|EXPLAIN|PRAGMA|SET|RESET|BEGIN|START|SAVEPOINT|RELEASE|ROLLBACK|ABORT|DECLARE|FETCH|"
    r"MOVE|CLOSE|LOCK|LISTEN|UNLISTEN|DISCARD|DEALLOCATE|ATTACH|DETACH|"
    r"WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b))\b",
    re.IGNORECASE | re.DOTALL,
)
_COMMITS = re.compile(_SPACE + r"(?:COMMIT|END|PREPARE\s+TRANSACTION)\b(?!\s+PREPARED\b)", re.IGNORECASE | re.DOTALL)


def reads(statement: str) -> bool:
    """Tell whether a statement is known to change nothing, functions aside."""
    return _READS.match(statement) is not None


class Outside:
    """The other connections of an engine.

    Args:
        engine: the user's.
        is_shared: tells whether a connection is the one that the units share.
        tell: takes what the test must be told at its end, should its code swallow the error.
        place: names the line of the test or the code under test that is running.
    """

    def __init__(
        self,
        engine: Engine,
        is_shared: Callable[[Connection], bool],
        tell: Callable[[str], None],
        place: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._is_shared = is_shared
        self._tell = tell
        self._place = place
        self._written: WeakSet[Connection] = WeakSet()
        self._listeners: dict[str, Any] = {
            "begin": self._begin,
            "before_cursor_execute": self._execute,
            "commit": self._commit,
            "prepare_twophase": self._commit,
            "handle_error": self._explain,
        }
        for name, listener in self._listeners.items():
            event.listen(engine, name, listener)

    def detach(self) -> None:
        """Stop to listen."""
        for name, listener in self._listeners.items():
            event.remove(self._engine, name, listener)

    def _begin(self, connection: Connection) -> None:
        self._written.discard(connection)

    def _execute(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if self._is_shared(connection):
            return
        if _COMMITS.match(statement):
            self._commit(connection)
        elif not reads(statement):
            if is_autocommit(connection):
                self._refuse("was to be written")
            self._written.add(connection)

    def _commit(self, connection: Connection, *_: Any) -> None:
        if self._is_shared(connection) or not self._has_written(connection):
            return
        connection.dialect.do_rollback(connection.connection)
        self._written.discard(connection)
        self._refuse("was written and was to be committed")

    def _has_written(self, connection: Connection) -> bool:
        # A function may write in a SELECT; the server knows.
        asked = _dialects.of(connection).has_written
        return connection in self._written if asked is None else asked(connection)

    def _refuse(self, what: str) -> None:
        message = (
            f"what {what} at {self._place()} would have stayed in the database: it went to a connection of its own, and "
            "in rollback mode only sessions of the factories that sessionkit_factories returns share the connection that is "
            'rolled back; use one of them, or mark the test with sessionkit(mode="template")'
        )
        self._tell(message)
        raise ScopeError(message)

    def _explain(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if error is None or context.connection is None or self._is_shared(context.connection):
            return
        if classify(error).kind in ("busy", "lock_not_available", "locked"):
            error.add_note(
                "in rollback mode the test's transaction stays open and keeps its locks until the test ends, and this "
                'connection is another one; mark the test with sessionkit(mode="template")'
            )
