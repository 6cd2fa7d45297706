"""What stands in for an engine while a test runs: the seam at which the test kit takes the place of the database.

By the engine and not by the context: threads and tasks that the code under test starts are in the test as well, and a
thread does not inherit a context. Outside of tests the table is empty, and looking into it is all that it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sqlalchemy.engine import Connection, Engine

from .. import _dialects

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class StandIn(Protocol):
    """Answers for one engine."""

    def lend(self, session: Session) -> Connection:
        """Return the connection that a session is to work on, in its turn; it begins there with a savepoint. I/O."""
        ...

    def borrow(self) -> Connection:
        """Return the connection for a question of the scope's own, which has ended by then. I/O."""
        ...


in_force: dict[Engine, StandIn] = {}
"""By the user's engine, of which others may be derived."""


def stand_in_for(bind: Engine | Connection) -> StandIn | None:
    """Return what stands in for an engine, if anything does."""
    if not in_force or isinstance(bind, Connection):
        return None
    return in_force.get(_dialects.root_of(bind))
