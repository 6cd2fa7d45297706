"""The moments in the life of a unit at which a feature has a say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from ...context import State

Unit = Any  # unit.Unit, which stands on this file


class Feature:
    """Something that a unit was asked for. The methods stand in the order in which they are called; they do nothing.

    Attributes:
        state: how the unit has ended, where the feature knows it better than the connections.
        key: of the unit's commit marker, for `CommitOutcomeUnknown`.
        asks: whether `entering` sends something.
        mutex: the text of the mutex that the unit was asked for.
        claim: the key of ``once=`` that the unit has claimed, or whose result it has found.
        two_phases: whether the unit's databases commit as one.
    """

    state: State | None = None
    key: str | None = None
    asks = False
    mutex: str | None = None
    claim: Any = None
    two_phases = False

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def entering(self) -> None:
        """Ask the database before the body runs. Called where I/O is possible, if `asks`."""

    def check(self, engine: Engine) -> None:
        """Refuse an engine that cannot do it."""

    def refused(self) -> None:
        """Undo what making the feature has done: the unit does not begin."""

    def route(self, bind: Any) -> Any:
        """Return what the unit talks to where its session is bound to `bind`."""
        return bind

    def connected(self, connection: Connection) -> None:
        """Take note of a connection of the unit, whose transaction has begun."""

    def connect_failed(self, bind: Any, error: Exception) -> bool:
        """Return whether the unit is to be routed once more, since it cannot connect to `bind`."""
        return False

    def savepoint_set(self) -> None:
        """Take note of a savepoint scope inside the unit, which has set its savepoint."""

    def by_hand(self, method: str) -> bool:
        """Do what a commit(), rollback() or close() by hand stands for; return whether it stands for anything."""
        return False

    def claimed(self) -> None:
        """Take note that the unit has claimed its key, which stays whatever its body undoes."""

    def finishing(self) -> None:
        """Do the last thing of the body, which has ended well."""

    def permitted(self, held: list[Connection]) -> None:
        """Do what comes before COMMIT, now that nothing stands against it. What is raised keeps it from happening."""

    def commit(self, held: list[Connection]) -> bool:
        """Send COMMIT in another way; return whether this was done."""
        return False

    def ending(self) -> None:
        """Take note that the transaction is settled and the session is about to be closed."""

    def ended(self) -> None:
        """Take note that the connections were given back."""

    def publish(self) -> None:
        """Do what has to be done in the context of whoever left the scope."""
