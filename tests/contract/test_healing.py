"""Law 1 and savepoints: a failure that its savepoint has undone is healed, and no other."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import errors
from tests.contract.breaking import (
    driver_error,
    failing_driver_call,
    failing_statement,
    names,
    swallow_failed_flush,
    swallow_failed_statement,
    take,
)
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door


async def test_a_failure_in_a_savepoint_scope_is_healed(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(IntegrityError):
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                inner.add(User(name="taken"))
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_failure_in_a_savepoint_of_the_sessions_is_healed(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(User(name="taken"))
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(insert(User).values(name="taken"))
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_failure_in_a_savepoint_of_the_connections_is_healed(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        connection = await session.connection()
        with pytest.raises(DBAPIError):
            async with connection.begin_nested():
                await connection.execute(insert(User).values(name="taken"))
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_swallowed_error_whose_savepoint_is_rolled_back_by_hand_is_healed(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        savepoint = await session.begin_nested()
        await swallow_failed_statement(session)
        await savepoint.rollback()
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_joined_scope_that_failed_inside_a_savepoint_is_healed_with_it(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with doors.scope(propagation="savepoint"), doors.scope() as joined:
                joined.add(User(name="bob"))
                raise LookupError
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_savepoint_heals_what_failed_in_savepoints_within_it(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        with pytest.raises(LookupError):
            async with doors.scope(propagation="savepoint"):
                with suppress(DBAPIError):
                    async with session.begin_nested():
                        await session.execute(insert(User).values(name="taken"))
                with suppress(errors.UnexpectedRollback):
                    async with doors.scope(propagation="savepoint") as inner:
                        await swallow_failed_statement(inner)
                raise LookupError
        session.add(User(name="eve"))
    assert await names(doors) == ["eve"]


async def test_a_failure_before_the_savepoint_is_not_healed_by_it(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await swallow_failed_statement(session)
            with suppress(Exception):
                async with doors.scope(propagation="savepoint") as inner:
                    inner.add(User(name="bob"))
                    raise LookupError
    assert await names(doors) == []


async def test_what_was_pending_outside_is_not_healed_by_the_savepoint_that_flushed_it(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(User(name="taken"))
            with suppress(IntegrityError):
                async with doors.scope(propagation="savepoint"):
                    pytest.fail("the savepoint was set though what is outside of it failed")
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_savepoint_that_could_not_be_set_is_healed_with_the_one_around_it(doors: Door) -> None:
    """PostgreSQL refuses SAVEPOINT in an aborted transaction."""
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with session.begin_nested():
                await swallow_failed_statement(session)
                with pytest.raises(DBAPIError):
                    async with session.begin_nested():
                        await session.execute(text("SELECT 1"))
                raise LookupError
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_savepoint_scope_that_swallowed_its_error_says_so_and_the_outer_one_may_go_on(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                first = await swallow_failed_statement(inner)
        assert caught.value.__cause__ is first
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_savepoint_scope_whose_flush_failed_and_was_swallowed_says_so(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                first = await swallow_failed_flush(inner)
        assert caught.value.__cause__ is first
        session.add(User(name="eve"))
    assert await names(doors) == ["ann", "eve"]


async def test_a_savepoint_left_open_after_a_swallowed_flush_error_is_not_healed(doors: Door) -> None:
    """SQLAlchemy rolls such a savepoint back by itself: what was done in it is gone, and nobody was told."""
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            await session.begin_nested()
            session.add(User(name="bob"))
            await session.flush()
            first = await swallow_failed_flush(session)
    assert caught.value.__cause__ is first
    assert await names(doors) == []


async def test_a_savepoint_left_open_in_a_savepoint_scope_after_a_swallowed_flush_error_is_not_healed(
    doors: Door,
) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(propagation="savepoint"):
                await session.begin_nested()
                session.add(User(name="bob"))
                await session.flush()
                await swallow_failed_flush(session)
    assert await names(doors) == ["ann"]


async def test_a_savepoint_block_left_quietly_after_a_swallowed_flush_error_is_not_healed(doors: Door) -> None:
    """`with session.begin_nested()` ends without an exception then, though it kept nothing."""
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            async with session.begin_nested():
                session.add(User(name="bob"))
                await session.flush()
                first = await swallow_failed_flush(session)
    assert caught.value.__cause__ is first
    assert await names(doors) == []


async def test_a_savepoint_left_open_is_kept(doors: Door) -> None:
    async with doors.scope() as session:
        await session.begin_nested()
        session.add(User(name="ann"))
        async with doors.scope(propagation="savepoint"):
            await session.begin_nested()
            session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


async def test_a_released_savepoint_goes_down_with_the_scope(doors: Door) -> None:
    """Without a real BEGIN SQLite would keep it."""
    with pytest.raises(LookupError):
        async with doors.scope():
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="ann"))
            raise LookupError
    assert await names(doors) == []


async def test_a_savepoint_that_could_not_be_rolled_back_dooms_the_outer_scope(doors: Door) -> None:
    mine = LookupError("inner")
    refused = driver_error(doors)
    with pytest.raises((errors.UnexpectedRollback, DBAPIError)):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(LookupError) as caught, failing_statement(doors, "ROLLBACK TO SAVEPOINT", refused):
                async with doors.scope(propagation="savepoint") as inner:
                    inner.add(User(name="bob"))
                    await inner.flush()
                    raise mine
            assert caught.value is mine
    assert await names(doors) == []


async def test_a_savepoint_whose_rollback_never_reached_the_driver_dooms_the_outer_scope(doors: Door) -> None:
    """As when the call is cut off before anything is sent: no statement failed, yet the work is still there."""
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(LookupError):
                async with failing_driver_call(doors, "do_rollback_to_savepoint", RuntimeError("not sent")):
                    async with doors.scope(propagation="savepoint") as inner:
                        inner.add(User(name="bob"))
                        await inner.flush()
                        raise LookupError
    assert await names(doors) == []
