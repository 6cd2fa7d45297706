"""What a migration is refused with. On the command line Alembic shows each without a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alembic.util.exc import CommandError

from ...errors import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Blocker", "MigrationBlocked", "MigrationError", "NotUpToDate"]


class MigrationError(SessionKitError, CommandError):
    """A migration was asked for what cannot be done, or must not be."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that was in the way of a migration.

    Attributes:
        pid: of its server process; ``SELECT pg_terminate_backend(pid)`` ends it.
        application: what it calls itself.
        user: who it is.
        state: as in ``pg_stat_activity``: "active", "idle in transaction".
        seconds: how long its transaction had been open.
        query: what it runs, or ran last.
    """

    pid: int
    application: str
    user: str
    state: str
    seconds: float
    query: str

    def __str__(self) -> str:
        """Return it as a line of a message."""
        who = " ".join(filter(None, [self.user, self.application and f"({self.application})"]))
        return f"{self.pid} {who}, {self.state}, in a transaction for {self.seconds:.1f} s: {self.query}"


class MigrationBlocked(MigrationError):
    """A lock could not be had in time: of a table that the application uses, or of another deployment.

    Args:
        message: what was asked and what was found.
        blockers: the transactions in the way, as far as they could be seen.

    Attributes:
        blockers: the same.
    """

    def __init__(self, message: str, blockers: Sequence[Blocker] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {blocker}" for blocker in blockers)]))
        self.blockers = tuple(blockers)


class NotUpToDate(MigrationError):
    """The database is not at the revision that the code expects.

    Attributes:
        current: the revisions of the database.
        expected: the newest ones of the code.
    """

    def __init__(self, message: str, current: Sequence[str], expected: Sequence[str]) -> None:
        super().__init__(message)
        self.current = tuple(current)
        self.expected = tuple(expected)
