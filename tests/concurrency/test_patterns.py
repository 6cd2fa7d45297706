"""What the how-tos promise of their patterns when two units meet: get or create, and a job that is done once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from sessionkit import Retry, bulk, errors
from tests.support.models import Shift, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

ANN = select(User).filter_by(name="ann")


class Meeting:
    """Two units that have both looked for a row, and found none, before either of them creates it."""

    def __init__(self, doors: Door) -> None:
        self.doors = doors
        self._both = doors.barrier(2)
        self._upsert = doors.twin(bulk.upsert, bulk.async_upsert)

    async def look(self, session: AsyncSession, number: int = 1) -> User | None:
        found = (await session.scalars(ANN)).one_or_none()
        if number == 1:
            await self._both.wait()
        return found

    async def by_upsert(self, session: AsyncSession) -> int:
        await self._upsert(session, User, [{"name": "ann"}], match=[User.name], update=[])
        return (await session.scalars(ANN)).one().id

    async def by_savepoint(self, session: AsyncSession) -> int:
        user = User(name="ann")
        try:
            async with self.doors.scope(propagation="savepoint"):
                session.add(user)
        except IntegrityError as error:
            if errors.classify(error).kind != "unique_violation":
                raise
            user = (await session.scalars(ANN)).one()
        return user.id


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("way", ["by_upsert", "by_savepoint"])
async def test_two_units_that_miss_the_same_row_get_the_same_row(doors: Door, way: str) -> None:
    meeting = Meeting(doors)

    async def unit() -> int:
        async with doors.scope() as session:
            assert await meeting.look(session) is None
            found: int = await getattr(meeting, way)(session)
        return found

    first, second = await doors.together(unit, unit)
    assert first == second
    assert await doors.rows("SELECT name FROM users") == [("ann",)]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_above_read_committed_the_second_upsert_is_a_serialization_failure(doors: Door, level: Any) -> None:
    meeting = Meeting(doors)

    async def unit() -> int | str:
        try:
            async with doors.scope(isolation=level) as session:
                assert await meeting.look(session) is None
                return await meeting.by_upsert(session)
        except Exception as error:  # noqa: BLE001 - which one is the question
            return errors.classify(error).kind

    outcomes = await doors.together(unit, unit)
    assert "serialization_failure" in outcomes
    assert await doors.rows("SELECT name FROM users") == [("ann",)]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_above_read_committed_a_retry_of_the_whole_unit_finds_the_row(doors: Door, level: Any) -> None:
    meeting = Meeting(doors)

    async def unit() -> int:
        found = 0
        retry = Retry(5, wait=0, also=("unique_violation",))
        async for attempt in doors.attempts(retry=retry, isolation=level):
            async with attempt as session:
                user = await meeting.look(session, attempt.number)
                if user is None:
                    user = User(name="ann")
                    session.add(user)
                    await session.flush()
                found = user.id
        return found

    first, second = await doors.together(unit, unit)
    assert first == second


async def test_three_servers_that_start_the_same_job_do_it_once(doors: Door) -> None:
    start = doors.barrier(3)

    async def server() -> str:
        await start.wait()
        async with doors.scope(mutex="nightly") as session:
            if await session.get(Shift, "nightly"):
                return "done already"
            session.add(Shift(doctor="nightly", on_call=True))
            await session.flush()
            session.add(User(name="the work"))
        return "done"

    outcomes = await doors.together(server, server, server)
    assert sorted(outcomes) == ["done", "done already", "done already"]
    assert await doors.rows("SELECT name FROM users") == [("the work",)]
