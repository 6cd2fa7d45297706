"""A result that the server still sends is read inside the session, one user at a time; and what closes sessions by the dozen."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, orm, select, text

from sessionkit import errors
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

STREAMS = pytest.mark.doors("sqlite-async", "postgresql-async", "postgresql-async-psycopg")


async def fill(doors: Door) -> None:
    await doors.write(insert(User).values([{"name": f"user {number:04}"} for number in range(500)]))


@STREAMS
async def test_a_stream_that_another_task_reads_while_a_statement_runs_is_refused_by_us(doors: Door) -> None:
    """asyncpg would say "another operation is in progress", psycopg wait, aiosqlite mix the two."""
    await fill(doors)
    inside, leave = doors.event(), doors.event()
    refused: list[BaseException] = []

    async with doors.scope() as session:
        result = await session.stream(select(User.name).execution_options(yield_per=10))
        await result.fetchmany(3)

        async def statement() -> None:
            await session.run_sync(hold)

        def hold(sync_session: Any) -> None:
            from sqlalchemy.util import await_only

            inside.set()
            sync_session.connection()
            unit = sync_session._sessionkit_unit
            owner = unit.inside.setdefault("user", object())  # as a statement that waits for its answer
            await_only(leave.wait())
            assert unit.inside.pop("user") is owner

        async def reader() -> None:
            await inside.wait()
            try:
                while await result.fetchmany(50):
                    pass
            except errors.ConcurrentUse as error:
                refused.append(error)
            finally:
                leave.set()

        await doors.together(statement, reader)
        await result.close()
    assert len(refused) == 1
    assert "session.stream()" in str(refused[0])


@STREAMS
async def test_a_stream_is_read_to_its_end_and_the_scope_commits(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        seen = 0
        async for _ in await session.stream_scalars(select(User).execution_options(yield_per=50)):
            seen += 1
        assert seen == 500
        await session.execute(text("DELETE FROM users"))
    assert await names(doors) == []


@STREAMS
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # psycopg's cursor
async def test_a_stream_that_is_read_after_the_scope_is_an_error(doors: Door) -> None:
    await fill(doors)
    async with doors.scope() as session:
        result = await session.stream(select(User.name).execution_options(yield_per=10))
        await result.fetchmany(3)
    with pytest.raises(errors.ScopeError, match="after the end of the scope"):
        await result.fetchmany(100)
    del result
    gc.collect()


async def test_closing_all_sessions_inside_a_scope_is_refused_and_the_scope_goes_on(doors: Door) -> None:
    with pytest.raises(errors.ScopeError, match=r"close\(\) was called inside a scope"):
        async with doors.scope() as session:
            session.add(User(name="lost"))
            await session.flush()
            orm.close_all_sessions()
    assert await names(doors) == []
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.ScopeError):
            orm.close_all_sessions()
    orm.close_all_sessions()
    assert await names(doors) == ["ann"]
