"""Where the test kit takes the place of the database. Outside of tests all of this is empty, which is all that it costs.

By the engine and not by the context: threads and tasks that the code under test starts are in the test as well, and a
thread does not inherit a context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.engine import Connection, Engine

from .._dialects import root_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session


class Override(Protocol):
    """Answers for one engine."""

    def connection_for(self, session: Session) -> Connection:
        """Return the connection that a session works on, in its turn; it begins there with a savepoint. I/O."""
        ...

    def side_connection(self) -> Connection:
        """Return the connection for a question of the scope's own, which has ended by then. I/O."""
        ...


overrides: dict[Engine, Override] = {}
"""By the user's engine, of which others may be derived."""

at_commit: list[Callable[[Any], None]] = []
"""Called with a unit's connection as COMMIT is sent; what they raise stands for its answer."""

at_release: list[Callable[[Any, str], None]] = []
"""The same where the release of a savepoint is the COMMIT: with the connection and the savepoint's name."""


def override_of(bind: Engine | Connection) -> Override | None:
    """Return what answers for an engine, if anything does."""
    if not overrides or isinstance(bind, Connection):
        return None
    return overrides.get(root_of(bind))
