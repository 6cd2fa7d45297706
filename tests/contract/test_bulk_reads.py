"""`get` and `stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from sessionkit import bulk
from sessionkit.errors import BulkError, OptionError
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door


async def users(doors: Door, count: int) -> None:
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(
            session, User, [{"id": i, "name": f"n{i:04}"} for i in range(count)]
        )


async def chunks(doors: Door, session: Any, statement: Any, **options: Any) -> Any:
    """Yield what the stream of this colour yields."""
    if doors.colour == "sync":
        for part in bulk.stream(doors.sync(session), statement, **options):
            yield part
    else:
        async for part in bulk.async_stream(session, statement, **options):
            yield part


async def test_objects_come_in_the_order_of_their_keys(doors: Door) -> None:
    await users(doors, 50)
    get = doors.twin(bulk.get, bulk.async_get)
    async with doors.scope() as session:
        known = await session.get(User, 7)
        found = await get(session, User, iter([40, 7, 99, 7, {"id": 3}, (4,)]))
        assert [user and user.id for user in found] == [40, 7, None, 7, 3, 4]
        assert found[1] is known
        with doors.statements() as sql:
            await get(session, User, [40, 7])
        assert sql == []  # the session has them
        with pytest.raises(BulkError, match="row 1 has no value for 'id'"):
            await get(session, User, [1, None])


@pytest.mark.parametrize("keyset", [False, True])
async def test_a_stream_gives_every_row_once(doors: Door, keyset: bool) -> None:
    await users(doors, 25)
    reports: list[Any] = []
    async with doors.scope() as session:
        objects = [
            part
            async for part in chunks(
                doors, session, select(User), chunk=10, keyset=keyset, on_progress=lambda *r: reports.append(r)
            )
        ]
        assert [len(part) for part in objects] == [10, 10, 5]
        assert sorted(user.id for part in objects for user in part) == list(range(25))
        rows = [part async for part in chunks(doors, session, select(User.name, User.email), chunk=10, keyset=keyset)]
        assert sorted(row.name for part in rows for row in part) == [f"n{i:04}" for i in range(25)]
        assert {len(row) for part in rows for row in part} == {2}
    assert reports == [(10, None), (20, None), (25, None)]


async def test_a_stream_by_key_goes_on_after_a_commit_and_writes_back(doors: Door) -> None:
    await users(doors, 25)
    async with doors.session() as session:
        async for part in chunks(doors, session, select(User), chunk=10, keyset=True):
            for user in part:
                user.email = "seen"
            await session.commit()
    assert await doors.scalar("SELECT count(*) FROM users WHERE email = 'seen'") == 25


async def test_changed_objects_are_flushed_and_let_go(doors: Door) -> None:
    await users(doors, 30)
    async with doors.scope() as session:
        held = []
        async for part in chunks(doors, session, select(User), chunk=10):
            held.append(len(session.identity_map))
            for user in part:
                user.email = "seen"
            del user, part
        assert max(held) <= 20
    assert await doors.scalar("SELECT count(*) FROM users WHERE email = 'seen'") == 30


async def test_a_stream_that_is_left_early_gives_its_cursor_back(doors: Door) -> None:
    await users(doors, 30)
    async with doors.scope() as session:
        stream = chunks(doors, session, select(User), chunk=5)
        async for _ in stream:
            break
        await stream.aclose()
        session.add(User(id=100, name="after"))
    assert await doors.scalar("SELECT count(*) FROM users") == 31


async def test_a_statement_that_has_no_key_to_read_by_is_refused(doors: Door) -> None:
    async with doors.scope() as session:
        for statement, said in (
            (select(User).order_by(User.name), "order_by"),
            (select(User).limit(3), "limit"),
            (select(User.name).distinct(), "distinct"),
            (select(1), "one mapped class"),
        ):
            with pytest.raises(OptionError, match=said):
                async for _ in chunks(doors, session, statement, keyset=True):
                    pass
