"""Units that are cancelled at random awaits while others run: whole or not at all, and nothing of them is left.

`SESSIONKIT_LONG=1` runs 10,000 units in each way and through each driver; otherwise there are 300.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sessionkit import Retry, errors
from tests.contract.cancelling import (
    Cut,
    accounts,
    balance,
    by_a_sibling,
    by_a_timeout,
    cancel,
    cut,
    nothing_is_left,
    transfer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
UNITS = 10_000 if LONG else 300
TOGETHER = 50
AWAITS = 24
"""As many as a unit of these has; one that waits for a connection or is run again has more."""

pytestmark = [
    pytest.mark.doors("sqlite-async", "postgresql-async", "postgresql-async-psycopg"),
    pytest.mark.timeout(1800 if LONG else 180),
]


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    """What only a collection would clean up is a lock that is held for as long as none comes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def once(unit: Any, at: int) -> Cut:
    return await cut(unit(), at)


async def twice_at_one_await(unit: Any, at: int) -> Cut:
    return await cut(unit(), at, by=cancel(2))


async def at_two_awaits(unit: Any, at: int) -> Cut:
    return await cut(unit(), at, at + 1)


async def at_many_awaits(unit: Any, at: int) -> Cut:
    return await cut(unit(), *range(at, at + 8))


async def not_at_all(unit: Any, at: int) -> Cut:
    return await cut(unit())


WAYS: list[Callable[..., Coroutine[Any, Any, Cut]]] = [
    once,
    twice_at_one_await,
    at_two_awaits,
    at_many_awaits,
    by_a_timeout,
    by_a_sibling,
    not_at_all,
]


def engine_of(doors: Door) -> Any:
    """Return an engine with fewer connections than units, all of which wait patiently."""
    patient: dict[str, Any] = {"connect_args": {"timeout": 60}} if doors.backend == "sqlite" else {}
    return doors.make_engine(poolclass=AsyncAdaptedQueuePool, pool_size=5, max_overflow=0, pool_timeout=60, **patient)


@pytest.mark.parametrize("retried", [False, True], ids=["once", "retried"])
async def test_of_many_units_that_are_cancelled_at_random_each_is_whole_and_nothing_is_left(
    doors: Door, retried: bool
) -> None:
    await accounts(doors)
    options: dict[str, Any] = {}
    if retried:
        # On PostgreSQL these fail all the time, since all of them write the same two rows.
        options = {"isolation": "SERIALIZABLE", "retry": Retry(8, wait=0.001, wait_max=0.01)}
    unit = doors.decorate(transfer, doors.factory(engine_of(doors)), **options)
    before = asyncio.all_tasks()
    committed = cancelled = 0
    for seed in range(UNITS // TOGETHER):
        dice = random.Random(seed)
        # Not each of them as a task of its own: a unit is one, in each of these ways.
        seen: list[Cut] = await asyncio.gather(
            *[dice.choice(WAYS)(unit, dice.randrange(AWAITS * (1 + retried))) for _ in range(TOGETHER)]
        )
        for each in seen:
            said = "committed" if each.error is None else errors.outcome_of(each.error)
            assert said in {"committed", "rolled back"}, f"seed {seed}: {said} is said of {each.error!r}"
            if retried and isinstance(each.error, DBAPIError):  # given up after the last attempt
                assert errors.classify(each.error).retryable, f"seed {seed}: {each.error!r}"
            else:
                assert each.error is None or isinstance(each.error, asyncio.CancelledError), (
                    f"seed {seed}: {each.error!r}"
                )
            assert each.done or each.error is None or retried, f"seed {seed}: not cancelled, and yet {each.error!r}"
            committed += said == "committed"
            cancelled += isinstance(each.error, asyncio.CancelledError)
        await nothing_is_left(doors, before, f"seed {seed}")
        assert await balance(doors) == committed, f"seed {seed}: what was said to be committed, and what is there"
        seen.clear()
        gc.collect()
    assert committed > UNITS // 10
    assert cancelled > UNITS // 10
