"""Where the test kit replaces the database. Outside of tests all of this is empty, and checking that is all it costs.

By engine, not by context: threads and tasks that the code under test starts belong to the test as well, and a thread does
not inherit a context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.engine import Connection, Engine

from .._dialects import root_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session


class Override(Protocol):
    """Supplies the connections for one engine."""

    def connection_for(self, session: Session) -> Connection:
        """Return the connection for a session, when it is its turn; the session begins there with a savepoint. I/O."""
        ...

    def side_connection(self) -> Connection:
        """Return a connection for a question that the scope asks on its own behalf, after it has ended. I/O."""
        ...


overrides: dict[Engine, Override] = {}
"""By the user's engine, which other engines may be derived from."""

at_commit: list[Callable[[Any], None]] = []
"""Called with a unit's connection just before COMMIT; what they raise counts as the answer to COMMIT."""

at_release: list[Callable[[Any, str], None]] = []
"""The same if releasing a savepoint is the COMMIT: called with the connection and the savepoint's name."""


def override_of(bind: Engine | Connection) -> Override | None:
    """Return the override for an engine, or None."""
    if not overrides or isinstance(bind, Connection):
        return None
    return overrides.get(root_of(bind))
