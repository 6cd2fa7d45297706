"""`commits.consumed`: an inbox, for messages that may be delivered twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import Retry, commits, errors
from sessionkit import sqlite as sqlite_
from tests.contract.lost import create_markers, somebody_waits_for_a_lock
from tests.contract.once import Payments, keys, paid
from tests.support.models import Account, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")


def consumed(doors: Door) -> Any:
    return doors.twin(commits.consumed, commits.async_consumed)


async def test_a_message_is_the_transactions_that_handles_it(doors: Door) -> None:
    await create_markers(doors)
    take = consumed(doors)
    with pytest.raises(ZeroDivisionError):
        async with doors.scope() as session:
            assert await take(session, "m1") is True
            raise ZeroDivisionError
    async with doors.scope() as session:
        assert await take(session, "m1") is True
        assert await take(session, "m1") is False  # in this very transaction
        assert await take(session, "m2") is True
        session.add(Account())
    async with doors.scope() as session:
        assert [await take(session, key) for key in ("m1", "m2", "m3")] == [False, False, True]
    assert await keys(doors) == [("m1", "M"), ("m2", "M"), ("m3", "M")]


async def test_a_note_in_a_savepoint_goes_with_it(doors: Door) -> None:
    await create_markers(doors)
    take = consumed(doors)
    async with doors.scope() as session:
        with pytest.raises(ZeroDivisionError):
            async with doors.scope(propagation="savepoint") as inner:
                assert await take(inner, "m1") is True
                raise ZeroDivisionError
        assert await take(session, "m1") is True


async def test_messages_and_units_have_names_of_their_own(doors: Door) -> None:
    await create_markers(doors)
    unit = Payments()
    await unit.unit(doors)(7)
    async with doors.scope() as session:
        assert await consumed(doors)(session, "pay:7") is True
    assert (await unit.unit(doors)(7), unit.runs) == ({"order": 7, "id": 1}, [7])


async def test_any_session_will_do(doors: Door) -> None:
    await create_markers(doors)
    take = consumed(doors)
    for expected in (True, False):
        async with doors.session(doors.plain_factory()) as session:
            assert await take(session, "plain") is expected
            await session.commit()
    scoped = doors.scoped()
    assert await take(scoped, "scoped") is True
    await scoped.rollback()
    assert await take(scoped, "scoped") is True
    await scoped.remove()
    assert await keys(doors) == [("plain", "M")]


@POSTGRESQL
@pytest.mark.parametrize("commits_", [False, True], ids=["rolls back", "commits"])
async def test_one_that_is_in_flight_is_waited_for(doors: Door, commits_: bool) -> None:
    await create_markers(doors)
    take, noted, waits = consumed(doors), doors.event(), doors.event()
    told: list[bool] = []

    async def first() -> None:
        async with doors.session(doors.plain_factory()) as session:
            assert await take(session, "m1") is True
            noted.set()
            await waits.wait()
            await (session.commit() if commits_ else session.rollback())

    async def second() -> None:
        await noted.wait()
        async with doors.scope() as session:
            told.append(await take(session, "m1"))

    async def watch() -> None:
        await noted.wait()
        await somebody_waits_for_a_lock(doors)
        waits.set()

    await doors.together(first, second, watch)
    assert told == [not commits_]


async def test_of_many_deliveries_at_once_one_is_handled(doors: Door) -> None:
    await create_markers(doors)
    if doors.backend == "sqlite":
        sqlite_.configure(doors.engine, busy_timeout=30)
    take = consumed(doors)

    async def handle(session: AsyncSession, key: str) -> None:
        if await take(session, key):
            session.add(Account())

    for isolation in (None, "SERIALIZABLE"):
        run = doors.decorate(handle, isolation=isolation, retry=Retry(20, wait=0.001))

        barrier = doors.barrier(4)

        async def body(run: Any = run, isolation: Any = isolation, barrier: Any = barrier) -> None:
            for number in range(5):
                await barrier.wait()
                await run(f"{isolation} {number}")

        await doors.together(*[body] * 4)
    assert await paid(doors) == 10


@POSTGRESQL
async def test_a_wait_that_is_too_long_is_not_locked(doors: Door) -> None:
    await create_markers(doors)
    take = consumed(doors)

    async def second() -> None:
        with pytest.raises(errors.NotLocked, match="m1") as caught:
            async with doors.scope(lock_timeout=0.02) as session:
                await take(session, "m1")
        assert isinstance(caught.value, DBAPIError)

    async with doors.scope() as session:
        await take(session, "m1")
        await doors.together(second)


async def test_after_its_time_a_message_is_handled_again(doors: Door) -> None:
    await create_markers(doors)
    take = consumed(doors)
    async with doors.scope() as session:
        await take(session, "m1", ttl=60)
    old = "'2001-01-01 00:00:00'" if doors.backend == "sqlite" else "now() - interval '1 s'"
    await doors.write(f"UPDATE sessionkit_once SET expires_at = {old}")
    for expected in (True, False):
        async with doors.scope() as session:
            assert await take(session, "m1") is expected


async def test_what_cannot_be_is_refused(doors: Door) -> None:
    take = consumed(doors)
    async with doors.scope() as session:
        for key in ("", None, 7, "x" * 201, "nul \0"):
            with pytest.raises(errors.OptionError, match="1 to 200 characters"):
                await take(session, key)
        for ttl in (0, -1, True, "1", float("inf"), None):
            with pytest.raises(errors.OptionError, match="ttl="):
                await take(session, "m1", ttl=ttl)
    async with doors.scope(read_only=True) as session:
        with pytest.raises(errors.ScopeError, match="read-only"):
            await take(session, "m1")
    with pytest.raises(errors.OptionError, match=r"commits\.create_table\(engine\)"):
        async with doors.scope() as session:
            await take(session, "m1")
    await create_markers(doors)
    autocommit = doors.factory(doors.make_engine(isolation_level="AUTOCOMMIT"))
    async with doors.session(doors.plain_factory(doors.raw(autocommit).kw["bind"])) as session:
        with pytest.raises(errors.ScopeError, match="AUTOCOMMIT"):
            await take(session, "m1")
    assert await keys(doors) == []


async def test_the_wrong_twin_is_refused_and_names_the_right_one(doors: Door) -> None:
    async with doors.scope() as session:
        if doors.colour == "sync":
            with pytest.raises(errors.SyncAsyncMismatch, match=r"call commits\.consumed"):
                await commits.async_consumed(doors.raw(session), "m1")
        else:
            with pytest.raises(errors.SyncAsyncMismatch, match=r"await commits\.async_consumed"):
                commits.consumed(doors.raw(session), "m1")


async def test_nothing_that_is_pending_is_lost(doors: Door) -> None:
    await create_markers(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        assert await consumed(doors)(session, "m1") is True
        await session.execute(text("SELECT 1"))
    assert await doors.scalar(select(func.count()).select_from(User)) == 1
