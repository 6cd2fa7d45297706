"""Bodies that fail so often, for the tests of retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, current_session, on_commit, on_rollback
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

AT_ONCE = Retry(5, wait=0)


class Failing:
    """A body that fails with the errors it was given, one for each run, and then succeeds."""

    def __init__(self, doors: Door, *failures: BaseException) -> None:
        self._doors = doors
        self._failures = failures
        self.sessions: list[Any] = []
        self.hooks: list[str] = []

    @property
    def runs(self) -> int:
        return len(self.sessions)

    async def body(self, session: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        # Kept, so that the next one does not get its place in memory.
        self.sessions.append(self._doors.raw(session))
        run = self.runs
        assert current_session() is self._doors.raw(session)
        session.add(User(name=f"run {run}"))
        on_commit(lambda: self.hooks.append(f"commit {run}"))
        on_rollback(lambda: self.hooks.append(f"rollback {run}"))
        await session.flush()
        if run <= len(self._failures):
            raise self._failures[run - 1]
        return args, kwargs


def stale() -> StaleDataError:
    return StaleDataError("somebody was faster")


async def awaited(value: Any) -> Any:
    return await value
