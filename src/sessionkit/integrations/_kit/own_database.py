"""Template mode of the test kit: each test gets a copy of the database, and the engine connects to that copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from ..._spi import DatabaseCopy, root_of, seams

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from ..._spi import ScopeConnection

__all__ = ["OwnDatabase"]


class OwnDatabase(DatabaseCopy):
    """A copy of the database of an engine.

    Args:
        engine: the user's engine.
        at_commit: called when a unit commits.

    Raises:
        OptionError: the database cannot be copied.
    """

    def __init__(self, engine: Engine, at_commit: Callable[[ScopeConnection, str | None], None]) -> None:
        super().__init__(engine, "mode='template' was asked for")
        self._at_commit = at_commit
        seams.at_commit.append(self._commit)

    def _commit(self, connection: ScopeConnection) -> None:
        if root_of(connection.engine) is self._engine:
            self._at_commit(connection, None)

    def checked_out(self, dbapi_connection: Any) -> None:
        """Report nothing: each caller has its own connection."""

    def left_open(self) -> list[str]:
        """Report nothing: only connections can be left open here."""
        return []

    def end(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    async def async_end(self) -> None:
        """Close the connections in the event loop that used them."""
        await greenlet_spawn(self._engine.dispose)

    def abandon(self) -> None:
        """Forget the connections of an event loop that is gone: the server ends them."""
        self._engine.dispose(close=False)

    def detach(self) -> None:
        """Drop the copy."""
        seams.at_commit.remove(self._commit)
        super().detach()
