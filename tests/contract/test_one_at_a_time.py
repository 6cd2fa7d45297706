"""Law 7: two threads or tasks inside one session at the same moment get an error that names both."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import PendingRollbackError

from sessionkit import errors
from tests.contract.breaking import GATED, gate, names
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


async def _execute(session: Any) -> Any:
    return await session.execute(GATED)


# One at a time


async def test_a_second_thread_or_task_gets_an_error_that_names_both_and_the_first_finishes(doors: Door) -> None:
    async with gate(doors) as door, doors.scope() as session:
        results: list[Any] = []

        async def first() -> None:
            results.append((await session.execute(GATED)).scalar_one())

        async def second() -> None:
            await door.reached.wait()
            try:
                with pytest.raises(errors.ConcurrentUse) as caught:
                    await session.execute(text("SELECT 2"))
                results.append(str(caught.value))
            finally:
                door.open()

        await doors.together(first, second)
        message, one = results
        assert one == 1
        assert "'body-0'" in message
        assert "'body-1'" in message
        # Afterwards the session is as good as ever.
        assert (await session.execute(text("SELECT 3"))).scalar_one() == 3


METHODS: dict[str, Callable[[Any], Coroutine[Any, Any, Any]]] = {
    "execute": lambda s: s.execute(text("SELECT 2")),
    "scalar": lambda s: s.scalar(text("SELECT 2")),
    "scalars": lambda s: s.scalars(text("SELECT 2")),
    "stream": lambda s: s.stream(text("SELECT 2")),
    "get": lambda s: s.get(User, 2),
    "merge": lambda s: s.merge(User(id=2, name="merged")),
    "refresh": lambda s: s.refresh(s.info["ann"]),
    "flush": lambda s: s.flush(),
    "connection": lambda s: s.connection(),
    "begin_nested": lambda s: s.begin_nested().__aenter__(),
    "query": lambda s: s.run_sync(lambda sync: sync.query(User).all()),
    "bulk_save_objects": lambda s: s.run_sync(lambda sync: sync.bulk_save_objects([User(name="bulk")])),
    "bulk_insert_mappings": lambda s: s.run_sync(lambda sync: sync.bulk_insert_mappings(User, [{"name": "bulk"}])),
    "bulk_update_mappings": lambda s: s.run_sync(lambda sync: sync.bulk_update_mappings(User, [{"id": 1}])),
}


@pytest.mark.parametrize("method", METHODS)
async def test_every_way_into_the_database_is_watched(doors: Door, method: str) -> None:
    async with gate(doors) as door, doors.scope() as session:
        session.info["ann"] = User(name="ann")
        session.add(session.info["ann"])
        await session.flush()

        async def first() -> None:
            assert (await session.execute(GATED)).scalar_one() == 1

        async def second() -> None:
            await door.reached.wait()
            try:
                with pytest.raises(errors.ConcurrentUse):
                    await METHODS[method](session)
            finally:
                door.open()

        await doors.together(first, second)
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_gathered_queries_on_one_session_are_an_error_that_names_both_tasks(doors: Door) -> None:
    async with doors.scope() as session:
        tasks = [
            asyncio.create_task(session.execute(select(func.count()).select_from(User)), name=name)
            for name in ("one", "two", "three")
        ]
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert first.scalar_one() == 0
        for name, error in zip(("two", "three"), others, strict=True):
            assert isinstance(error, errors.ConcurrentUse)
            assert "'one'" in str(error)
            assert f"'{name}'" in str(error)
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_session_may_be_handed_on_from_one_to_the_next(doors: Door) -> None:
    async with doors.scope() as session:
        await session.execute(text("SELECT 1"))

        async def helper() -> None:
            session.add(User(name="ann"))
            await session.flush()

        await doors.together(helper)
        session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


@pytest.mark.doors(colour="async")
async def test_a_statement_may_have_a_timeout(doors: Door) -> None:
    """On Python 3.11 `asyncio.wait_for` runs it in a task of its own."""
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await asyncio.wait_for(session.flush(), timeout=60)
        assert (await asyncio.wait_for(session.execute(select(User.name)), timeout=60)).scalar_one() == "ann"
    assert await names(doors) == ["ann"]


async def test_a_scope_waits_for_who_is_still_inside_and_then_commits(doors: Door) -> None:
    leaving = doors.event()
    async with gate(doors) as door:

        async def owner() -> None:
            scope = doors.scope()
            session = await scope.__aenter__()
            session.add(User(name="ann"))
            await session.flush()
            handed.append(session)
            ready.set()
            await door.reached.wait()
            leaving.set()
            await scope.__aexit__(None, None, None)

        async def guest() -> None:
            await ready.wait()
            results.append((await handed[0].execute(GATED)).scalar_one())

        async def opener() -> None:
            await leaving.wait()
            door.open()

        handed: list[Any] = []
        results: list[int] = []
        ready = doors.event()
        await doors.together(owner, guest, opener)
    assert results == [1]
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_who_was_inside_gets_no_second_statement_once_the_scope_is_ending(doors: Door) -> None:
    """It would come between the scope and its COMMIT, in the very step of the loop in which the first one ends."""
    leaving, ready = doors.event(), doors.event()
    handed: list[Any] = []
    async with gate(doors) as door:

        async def owner() -> None:
            scope = doors.scope()
            session = await scope.__aenter__()
            session.add(User(name="ann"))
            await session.flush()
            handed.append(session)
            ready.set()
            await door.reached.wait()
            leaving.set()
            await scope.__aexit__(None, None, None)

        async def guest() -> None:
            await ready.wait()
            assert (await handed[0].execute(GATED)).scalar_one() == 1
            with pytest.raises(errors.ScopeError, match="ending"):
                await handed[0].execute(text("SELECT 2"))

        async def opener() -> None:
            await leaving.wait()
            door.open()

        await doors.together(owner, guest, opener)
    assert await names(doors) == ["ann"]


async def test_nobody_gets_in_while_the_scope_ends(doors: Door) -> None:
    """Neither with a statement nor with a rollback by hand: the COMMIT that runs is the scope's."""
    async with gate(doors, "users") as door:

        async def owner() -> None:
            async with doors.scope() as session:
                handed.append(session)
                session.add(User(name="ann"))  # its INSERT comes with the end, and stops at the gate

        async def guest() -> None:
            await door.reached.wait()
            try:
                for call in (METHODS["execute"], lambda s: s.rollback(), lambda s: s.close()):
                    try:
                        await call(handed[0])
                    except Exception as error:  # noqa: BLE001 - which ones is what the test asks
                        refused.append(error)
            finally:
                door.open()

        handed: list[Any] = []
        refused: list[Exception] = []
        await doors.together(owner, guest)
    assert [isinstance(error, errors.ScopeError) for error in refused] == [True] * 3, refused
    assert await names(doors) == ["ann"]


async def test_a_savepoint_scope_does_not_end_while_another_is_inside(doors: Door) -> None:
    """RELEASE and ROLLBACK TO are statements as well: they wait or are refused, and nothing is committed by half."""
    async with gate(doors) as door, doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()

        async def owner() -> None:
            # (A body of `together` is a thread or task of its own: it goes by the session that it was handed.)
            savepoint = await session.begin_nested()
            session.add(User(name="bob"))
            await session.flush()
            inside.set()
            await door.reached.wait()
            try:
                await savepoint.rollback()
            except errors.ConcurrentUse:
                door.open()
                await finished.wait()
                await savepoint.rollback()
            finally:
                door.open()

        async def guest() -> None:
            await inside.wait()
            await session.execute(GATED)
            finished.set()

        inside, finished = doors.event(), doors.event()
        await doors.together(owner, guest)
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_a_cancelled_guest_leaves_the_session_free_and_the_scope_honest(doors: Door) -> None:
    """Nobody waits for the guest any more; whether its connection is still good is the driver's to say."""
    free: list[bool] = []
    try:
        async with gate(doors) as door, doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            guest = asyncio.create_task(_execute(session))
            await door.reached.wait()
            guest.cancel()
            result: Any
            (result,) = await asyncio.gather(guest, return_exceptions=True)
            assert isinstance(result, asyncio.CancelledError)
            with suppress(PendingRollbackError):
                await session.execute(text("SELECT 3"))
            free.append(True)
    except errors.UnexpectedRollback:
        assert await names(doors) == []
    else:
        assert await names(doors) == ["ann"]
    assert free


async def test_a_session_used_after_its_scope_gets_an_error(doors: Door) -> None:
    """It would begin a transaction that nobody commits, and keep a connection."""
    async with doors.scope() as session:
        session.add(User(name="ann"))
    try:
        with pytest.raises(Exception, match=r"closed|ended|scope"):
            await session.execute(text("SELECT 1"))
    finally:
        await session.close()
