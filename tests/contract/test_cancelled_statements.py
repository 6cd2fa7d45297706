"""Law 2 and law 14 under asyncio: a statement that is cancelled in the driver leaves no lock, no connection and no task."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text

from sessionkit import errors, sqlite
from tests.contract.breaking import names
from tests.contract.cancelling import (
    MOST,
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
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.doors(colour="async")

# `aiosqlite.connect()` that is cancelled leaves its sqlite3 connection to the collector, by itself as much as in a scope
# (aiosqlite 0.22 in a program of ten lines); Python 3.13 and later warn of that.
cancelled_as_it_connects = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <sqlite3.Connection:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    """What only a collection would clean up is a lock that is held for as long as none comes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()  # what is left is told of the test that left it


def the_verdict_is_true(seen: Cut, there: bool, at: str) -> None:
    assert isinstance(seen.error, asyncio.CancelledError), f"{at}: it ended with {seen.error!r}"
    said = errors.outcome_of(seen.error)
    assert said == ("committed" if there else "rolled back"), f"{at}: {said} is said, but it is there: {there}"


def factory_of(doors: Door, how: str) -> tuple[Any, Any]:
    """Return a factory, and its engine: as it is, configured, or of SQLAlchemy's."""
    engine = doors.make_engine()
    if how == "configured":
        sqlite.configure(engine, busy_timeout=1.0, wal=False)
    return (doors.plain_factory if how == "plain" else doors.factory)(engine), engine


@pytest.fixture(params=["ours", "plain", "configured"])
def factory(request: pytest.FixtureRequest, doors: Door) -> Any:
    if request.param == "configured" and doors.backend != "sqlite":
        request.param = "ours"
    return factory_of(doors, request.param)[0]


async def everywhere(doors: Door, body: Callable[[], Awaitable[None]], *, times: int = 1, warm: bool = True) -> int:
    """Cancel a unit at each of its awaits; check after each. Return how often it was cut."""
    await accounts(doors)
    if warm:
        await body()
    before = asyncio.all_tasks()
    for number in range(MOST):
        at = f"cancelled {times} times from await {number} on"
        was = await balance(doors)

        async def run() -> None:
            await body()

        seen = await cut(run(), *range(number, number + times), by=cancel(times))
        await nothing_is_left(doors, before, at)
        there = await balance(doors) - was
        assert there in {0, 1}
        if not seen.done:
            assert seen.error is None, f"it was not cancelled, and yet it failed: {seen.error!r}"
            assert there == 1
            return number
        the_verdict_is_true(seen, bool(there), at)
    raise AssertionError("the scope has more awaits than were tried")


# At every await


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_unit_can_be_cancelled_at_every_await(doors: Door, factory: Any, times: int) -> None:
    async def unit() -> None:
        async with doors.scope(factory) as session:
            await transfer(session)

    assert await everywhere(doors, unit, times=times) > 3


@pytest.mark.parametrize("times", [1, 2])
async def test_a_decorated_function_can_be_cancelled_at_every_await(doors: Door, times: int) -> None:
    assert await everywhere(doors, doors.decorate(transfer), times=times) > 3


@pytest.mark.parametrize("times", [1, 2])
async def test_a_unit_whose_flush_is_its_end_can_be_cancelled_at_every_await(doors: Door, times: int) -> None:
    async def unit() -> None:
        async with doors.scope() as session:
            for account in await session.scalars(select(Account)):
                account.balance += 1

    assert await everywhere(doors, unit, times=times) > 3


@cancelled_as_it_connects
@pytest.mark.parametrize("times", [1, 2])
async def test_a_unit_that_opens_its_connection_can_be_cancelled_at_every_await(doors: Door, times: int) -> None:
    """Each run has an engine of its own, whose pool is empty."""

    async def unit() -> None:
        async with doors.scope(doors.factory(doors.make_engine())) as session:
            await transfer(session)

    assert await everywhere(doors, unit, times=times, warm=False) > 3


async def test_a_unit_with_inner_scopes_can_be_cancelled_at_every_await(doors: Door) -> None:
    async def unit() -> None:
        async with doors.scope() as session:
            async with doors.scope(propagation="savepoint") as inner:
                await transfer(inner)
            async with doors.scope() as inner:
                await inner.execute(text("SELECT 1"))
            assert session is not None

    assert await everywhere(doors, unit) > 3


# A statement that waits for a lock


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("free", ["at the cancellation", "once the task has ended"])
async def test_a_unit_that_waits_for_the_lock_does_not_keep_it_when_it_was_cancelled(
    doors: Door, factory: Any, free: str, times: int
) -> None:
    """BEGIN IMMEDIATE goes on in the driver's thread, and succeeds when nobody waits for it any more."""
    await accounts(doors)
    holder = sqlite3.connect(str(doors.database.url("pysqlite").database), isolation_level=None, timeout=0)
    before = asyncio.all_tasks()
    cuts = 0

    async def unit() -> None:
        async with doors.scope(factory, lock_timeout=0.5) as session:
            await transfer(session)

    await unit()
    for number in range(MOST):
        at = f"cancelled at await {number}"
        was = await balance(doors)
        holder.execute("BEGIN IMMEDIATE")

        def strike() -> None:
            cancel(times)()
            if free == "at the cancellation" and holder.in_transaction:
                holder.execute("ROLLBACK")

        seen = await cut(unit(), number, by=strike)
        if holder.in_transaction:
            holder.execute("ROLLBACK")
        await nothing_is_left(doors, before, at)
        there = await balance(doors) - was
        if not seen.done:
            break
        cuts += 1
        # Struck so late that the driver had failed already, it may say so.
        if isinstance(seen.error, asyncio.CancelledError):
            the_verdict_is_true(seen, bool(there), at)
    holder.close()
    assert cuts > 0


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("times", [1, 2])
async def test_a_statement_that_waits_for_a_row_is_given_up_in_the_server_too(doors: Door, times: int) -> None:
    from tests.contract.lost import somebody_waits_for_a_lock

    await accounts(doors)
    before = asyncio.all_tasks()
    async with doors.session(doors.plain_factory(doors.make_engine())) as holder:
        await transfer(holder)
        left: list[BaseException] = []

        async def unit() -> None:
            try:
                async with doors.scope() as session:
                    await transfer(session)
            except BaseException as error:
                left.append(error)
                raise

        task = asyncio.create_task(unit())
        await somebody_waits_for_a_lock(doors)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)
        assert errors.outcome_of(left[0]) == "rolled back"
        assert doors.checked_out() == 1
        await holder.commit()
    await nothing_is_left(doors, before, "cancelled while it waited")
    assert await balance(doors) == 1


# By whom it is cancelled


@pytest.mark.parametrize("how", [by_a_timeout, by_a_sibling])
async def test_a_unit_can_be_cut_by_others_at_every_await(doors: Door, factory: Any, how: Any) -> None:
    await accounts(doors)

    async def unit() -> None:
        async with doors.scope(factory) as session:
            await transfer(session)

    await unit()
    before = asyncio.all_tasks()
    for number in range(MOST):
        at = f"{how.__name__} at await {number}"
        was = await balance(doors)
        seen = await how(unit, number)
        await nothing_is_left(doors, before, at)
        there = bool(await balance(doors) - was)
        if not seen.done:
            assert there
            return
        # The cancellation comes a turn of the loop later: at the last awaits the unit may be through.
        if seen.error is None:
            assert there, at
        else:
            the_verdict_is_true(seen, there, at)
    raise AssertionError("the scope has more awaits than were tried")


# Many


@cancelled_as_it_connects
async def test_units_that_are_cancelled_while_others_go_on_leave_the_others_whole(doors: Door) -> None:
    """Five at once on one pool; each of them is cancelled at another of its awaits, then none."""
    await accounts(doors)
    engine = doors.make_engine()
    if doors.backend == "sqlite":
        sqlite.configure(engine, busy_timeout=5.0)
    factory = doors.factory(engine)
    before = asyncio.all_tasks()
    committed = 0

    async def unit() -> None:
        async with doors.scope(factory) as session:
            await transfer(session)

    for number in range(0, 15, 3):
        barrier = asyncio.Barrier(5)

        async def one(at: int, barrier: asyncio.Barrier = barrier) -> Cut:
            await barrier.wait()
            return await cut(unit(), at)

        cuts = await asyncio.gather(*[one(number + offset if offset < 3 else MOST) for offset in range(5)])
        for seen in cuts:
            if seen.error is not None:
                assert isinstance(seen.error, asyncio.CancelledError), seen.error
                assert errors.outcome_of(seen.error) in {"committed", "rolled back"}
            committed += seen.error is None or errors.outcome_of(seen.error) == "committed"
        await nothing_is_left(doors, before, f"round {number}")
        assert await balance(doors) == committed


@cancelled_as_it_connects
async def test_names_of_users_that_were_cancelled_in_the_flush_are_free_again(doors: Door) -> None:
    """What a cancelled INSERT holds in the server or in the file would make the next one wait."""

    async def unit() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()

    for number in range(MOST):
        seen = await cut(unit(), number)
        if not seen.done or await names(doors):
            break
    else:
        raise AssertionError("the scope has more awaits than were tried")
    assert await names(doors) == ["ann"]


async def test_a_unit_that_is_cancelled_as_its_connection_is_there_gives_it_back(doors: Door) -> None:
    """The cancellation is not lost, nor is the connection."""
    await accounts(doors)
    engine = doors.make_engine()
    factory = doors.factory(engine)
    before = asyncio.all_tasks()

    async def unit() -> None:
        async with doors.scope(factory) as session:
            await transfer(session)

    tasks: list[asyncio.Task[None]] = []

    def strike(_connection: Any) -> None:
        tasks[0].cancel()

    for _ in range(2):  # with an empty pool, and with one that has a connection
        tasks[:] = [asyncio.create_task(unit())]
        event.listen(engine.sync_engine, "engine_connect", strike)
        (result,) = await asyncio.gather(*tasks, return_exceptions=True)
        event.remove(engine.sync_engine, "engine_connect", strike)
        assert isinstance(result, asyncio.CancelledError)
        assert await balance(doors) == 0
        await nothing_is_left(doors, before, "cancelled as it was connected")
        await unit()
        assert await balance(doors) == 1
        await doors.write("UPDATE accounts SET balance = 0")
