"""The moments in the life of a unit at which a feature can act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from ..._settings import InForce
    from ...context import State

Unit = Any  # unit.Unit, which builds on this file


class Feature:
    """Something that a unit was asked for. The methods are in the order in which they are called; here they do nothing.

    Attributes:
        state: how the unit ended, if the feature knows it better than the connections.
        key: the key of the unit's commit marker, for `CommitOutcomeUnknown`.
        asks: whether `entering` sends something.
        mutex: the text of the mutex that the unit asked for.
        claim: the key of ``once=`` that the unit has claimed, or whose result it has found.
        in_force: the settings and role of the unit's transactions, for the feature that sets them.
        two_phases: whether the unit's databases commit as one.
    """

    state: State | None = None
    key: str | None = None
    asks = False
    mutex: str | None = None
    claim: Any = None
    in_force: InForce | None = None
    two_phases = False

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def entering(self) -> None:
        """Ask the database before the body runs. If `asks` is set, it is called where I/O is possible."""

    def check(self, engine: Engine) -> None:
        """Refuse an engine that cannot provide the feature."""

    def refused(self) -> None:
        """Undo what making the feature has done, because the unit does not begin."""

    def route(self, bind: Any) -> Any:
        """Return what the unit connects to if its session is bound to `bind`."""
        return bind

    def begins(self, beginning: Any) -> Any:
        """Return how a connection's transaction begins that would begin as `beginning`, a ``_dialects.Beginning``."""
        return beginning

    def connected(self, connection: Connection) -> None:
        """Note a connection of the unit whose transaction has begun."""

    def connect_failed(self, bind: Any, error: Exception) -> bool:
        """Return whether to route the unit again, because it cannot connect to `bind`."""
        return False

    def savepoint_set(self) -> None:
        """Note that a savepoint scope inside the unit has set its savepoint."""

    def by_hand(self, method: str) -> bool:
        """Do what a manual commit(), rollback() or close() means here; return whether it means anything."""
        return False

    def claimed(self) -> None:
        """Take note that the unit has claimed its key, which stays whatever its body undoes."""

    def finishing(self) -> None:
        """Do the last work of the body, which ended without an error."""

    def permitted(self, held: list[Connection]) -> None:
        """Do what comes right before COMMIT, now that nothing speaks against it. Raising prevents COMMIT."""

    def commit(self, held: list[Connection]) -> bool:
        """Send COMMIT in another way; return whether that was done."""
        return False

    def ending(self) -> None:
        """Note that the transaction has ended and that the session is about to be closed."""

    def ended(self) -> None:
        """Note that the connections are back in the pool."""

    def publish(self) -> None:
        """Do what must be done in the context of the code that left the scope."""
