"""Other connections than the one that the units of a test share in rollback mode: they must not commit.

A connection taken directly from the engine, or a session of a factory that is not listed, would really commit. It may read
and roll back, but its COMMIT is refused if it has written.
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
    """Return whether a statement certainly changes nothing, apart from functions that it calls."""
    return _READS.match(statement) is not None


class Outside:
    """The other connections of an engine.

    Args:
        engine: the user's engine.
        is_shared: returns whether a connection is the one that the units share.
        tell: receives problems to report at the end of the test, in case its code swallows the error.
        place: returns the running line of the test or of the code under test.
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
        """Remove the listeners."""
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
                self._refuse("a statement")
            self._written.add(connection)

    def _commit(self, connection: Connection, *_: Any) -> None:
        if self._is_shared(connection) or not self._has_written(connection):
            return
        connection.dialect.do_rollback(connection.connection)
        self._written.discard(connection)
        self._refuse("a COMMIT")

    def _has_written(self, connection: Connection) -> bool:
        # A SELECT may call a function that writes; the server knows.
        asked = _dialects.of(connection).has_written
        return connection in self._written if asked is None else asked(connection)

    def _refuse(self, what: str) -> None:
        message = (
            f"{what} at {self._place()} was refused, because it would change the database for good: in rollback mode only "
            "sessions of the factories that sessionkit_factories returns use the connection that is rolled back, and this "
            'is another connection; use one of those factories, or mark the test with sessionkit(mode="template")'
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
                'statement ran on another connection; mark the test with sessionkit(mode="template")'
            )
