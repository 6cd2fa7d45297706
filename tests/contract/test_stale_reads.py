"""A locking read in a scope that hands back an object as it was read before says so, once at each line."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select

from sessionkit import errors, locks
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

LOCKED = select(Account).with_for_update()


async def told(doors: Door, read: Callable[[AsyncSession], Awaitable[Any]], factory: Any = None) -> list[Any]:
    """Return the warnings of a read, made twice in each of two scopes, of objects that are loaded already."""
    await doors.write(insert(Account).values([{"id": 1, "balance": 1}, {"id": 2, "balance": 2}]))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            async with doors.scope(factory) as session:
                kept = (await session.scalars(select(Account))).all()
                for _ in range(2):
                    await read(session)
                assert len(kept) == 2
    return [each for each in seen if issubclass(each.category, errors.StaleRead)]


async def _execute(session: AsyncSession) -> None:
    (await session.execute(LOCKED)).scalars().all()


async def _scalars(session: AsyncSession) -> None:
    (await session.scalars(LOCKED)).first()


async def _scalar(session: AsyncSession) -> None:
    await session.scalar(LOCKED)


async def _get(session: AsyncSession) -> None:
    await session.get(Account, 1, with_for_update=True)


async def _two(session: AsyncSession) -> None:
    (await session.execute(select(Account.id, Account).with_for_update())).all()


async def _partitions(session: AsyncSession) -> None:
    list((await session.execute(LOCKED)).yield_per(1).partitions())


async def _query(session: AsyncSession) -> None:
    await session.run_sync(lambda s: s.query(Account).with_for_update().first())


@pytest.mark.parametrize("read", [_execute, _scalars, _scalar, _get, _two, _partitions, _query])
async def test_each_line_is_told_once(doors: Door, read: Any) -> None:
    seen = await told(doors, read)
    lines, first = inspect.getsourcelines(read)
    if doors.colour == "async":  # in the sync colour a facade of the tests is what calls
        assert [(each.filename, each.lineno) for each in seen] == [(__file__, first + len(lines) - 1)]
    else:
        assert len(seen) == 1


async def _refreshed(session: AsyncSession) -> None:
    (await session.execute(LOCKED.execution_options(populate_existing=True))).all()
    (await session.execute(LOCKED, execution_options={"populate_existing": True})).all()
    await session.get(Account, 1, with_for_update=True, populate_existing=True)
    account = await session.get_one(Account, 1)
    await session.refresh(account, with_for_update=True)
    session.expire(account)
    await session.get(Account, 1, with_for_update=True)


async def _others(session: AsyncSession) -> None:
    (await session.scalars(select(User).with_for_update())).all()
    (await session.execute(select(Account.id).with_for_update())).all()
    (await session.scalars(select(Account))).all()
    (await session.scalars(LOCKED.where(Account.id > 7))).all()


@pytest.mark.parametrize("read", [_refreshed, _others])
async def test_what_is_fresh_or_not_loaded_is_not_told(doors: Door, read: Any) -> None:
    assert await told(doors, read) == []


async def test_the_functions_of_locks_are_not_told(doors: Door) -> None:
    lock = doors.twin(locks.lock, locks.async_lock)
    take = doors.twin(locks.take, locks.async_take)

    async def read(session: AsyncSession) -> None:
        await lock(session, Account, 1)
        await take(session, select(Account))

    assert await told(doors, read) == []


async def test_it_can_be_switched_off(doors: Door) -> None:
    assert await told(doors, _execute, doors.factory(warn_stale_locks=False)) == []
    with pytest.raises(errors.OptionError, match="warn_stale_locks"):
        doors.factory(warn_stale_locks="no")


async def test_plain_sessions_are_left_alone(doors: Door) -> None:
    await doors.write(insert(Account).values(id=1))
    async with doors.session() as session:
        await session.get_one(Account, 1)
        await session.get(Account, 1, with_for_update=True)
