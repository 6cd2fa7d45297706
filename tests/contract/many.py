"""Two databases behind one factory, and ways to have one of them fail at the worst moment."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event, text

from sessionkit import commits
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door


@dataclass
class Two:
    """Users are in the first database, pledges in the second."""

    doors: Door
    users: Any
    pledges: Any

    @property
    def users_sync(self) -> Engine:
        return self.doors.sync_engine_of(self.users)

    @property
    def pledges_sync(self) -> Engine:
        return self.doors.sync_engine_of(self.pledges)

    def factory(self, **kw: Any) -> Any:
        return self.doors.factory(binds={User: self.users, Pledge: self.pledges}, **kw)

    async def committed(self) -> tuple[int, int]:
        """Return how many users and pledges are there, for whoever looks from outside."""
        return await self._count(self.users, "users"), await self._count(self.pledges, "pledges")

    async def _count(self, engine: Any, table: str) -> int:
        async with self.doors.enter(engine.connect()) as connection:
            found: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            return found

    async def backend(self, session: AsyncSession, model: type) -> int:
        statement = text("SELECT pg_backend_pid()")
        pid: int = (await session.execute(statement, bind_arguments={"mapper": model})).scalar_one()
        return pid

    async def prepared(self) -> list[str]:
        """Return the names of the transactions that are prepared in the two databases."""
        found: list[str] = []
        for engine in (self.users, self.pledges):
            async with self.doors.enter(engine.connect()) as connection:
                names = await connection.execute(
                    text("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
                )
                found += names.scalars().all()
        return found

    async def make_markers(self) -> None:
        for engine in (self.users, self.pledges):
            await self.doors.twin(commits.create_table, commits.async_create_table)(engine)


def two_databases(doors: Door, **kw: Any) -> Two:
    return Two(doors, doors.make_engine(**kw), doors.other_engine(**kw))


def work(session: AsyncSession, *, breaks: bool = False, name: str = "ann") -> None:
    """Add a user and a pledge; the pledge may point to an account that is not there, which its database sees last."""
    session.add(User(name=name))
    session.add(Pledge(account_id=1) if not breaks else Pledge(account_id=404))


@contextmanager
def at_commit(engine: Engine, act: Callable[[Any], None]) -> Iterator[None]:
    """Call `act` with the connection each time an engine is about to send COMMIT."""
    event.listen(engine, "commit", act)
    try:
        yield
    finally:
        event.remove(engine, "commit", act)


@contextmanager
def at_statement(engine: Engine, start: str, act: Callable[[Any], None], *, after: bool = False) -> Iterator[list[str]]:
    """Call `act` with the connection once, before or after the first statement that starts so."""
    seen: list[str] = []

    def look(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(start) and not seen:
            seen.append(statement)
            act(connection)

    name = "after_cursor_execute" if after else "before_cursor_execute"
    event.listen(engine, name, look)
    try:
        yield seen
    finally:
        event.remove(engine, name, look)
    assert seen, f"no statement began with {start}"


def cut(connection: Any) -> None:
    """Take the link to the server away under the driver."""
    from sessionkit import _dialects

    _dialects.of(connection).cut(connection)
