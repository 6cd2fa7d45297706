"""The errors of migrations. On the command line Alembic shows them without a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alembic.util.exc import CommandError

from ...errors import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Blocker", "MigrationBlocked", "MigrationError", "NotUpToDate"]


class MigrationError(SessionKitError, CommandError):
    """A migration asks for something that is impossible or not allowed."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that blocked a migration.

    Attributes:
        pid: its server process; ``SELECT pg_terminate_backend(pid)`` ends it.
        application: its ``application_name``.
        user: its database user.
        state: its state in ``pg_stat_activity``: "active", "idle in transaction".
        seconds: how long its transaction has been open.
        query: its current or last query.
    """

    pid: int
    application: str
    user: str
    state: str
    seconds: float
    query: str

    def __str__(self) -> str:
        """Return a line for a message."""
        who = " ".join(filter(None, [self.user, self.application and f"({self.application})"]))
        return f"{self.pid} {who}, {self.state}, in a transaction for {self.seconds:.1f} s: {self.query}"


class MigrationBlocked(MigrationError):
    """The migration did not get a lock in time: on a table that the application uses, or from another deployment.

    Args:
        message: what the migration wanted, and what it found.
        blockers: the transactions that blocked it, as far as they are known.

    Attributes:
        blockers: the same.
    """

    def __init__(self, message: str, blockers: Sequence[Blocker] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {blocker}" for blocker in blockers)]))
        self.blockers = tuple(blockers)


class NotUpToDate(MigrationError):
    """The database is not at the revision that the code expects.

    Attributes:
        current: the current revisions of the database.
        expected: the newest revisions of the code.
    """

    def __init__(self, message: str, current: Sequence[str], expected: Sequence[str]) -> None:
        super().__init__(message)
        self.current = tuple(current)
        self.expected = tuple(expected)
