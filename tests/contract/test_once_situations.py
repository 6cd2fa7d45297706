"""Situations that others have reported of idempotency keys, inboxes and queues, each rebuilt in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from sessionkit import Retry, commits, errors, on_commit
from sessionkit import sqlite as sqlite_
from tests.contract.lost import create_markers
from tests.contract.once import Payments, keys, paid
from tests.support.models import Account

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers
POSTGRESQL = pytest.mark.doors(backend="postgresql")


@pytest.fixture
def unit() -> Payments:
    return Payments()


async def test_the_second_request_comes_before_the_first_has_ended(doors: Door, unit: Payments) -> None:
    """mastodon/mastodon#37879, jcagarcia/grape-idempotency#10: the key was looked for, and stored with the result only."""
    await create_markers(doors)
    sqlite_.configure(doors.engine, busy_timeout=30) if doors.backend == "sqlite" else None
    pay, barrier = unit.unit(doors), doors.barrier(2)

    async def request() -> Any:
        await barrier.wait()
        return await pay(7)

    one, other = await doors.together(request, request)
    assert (one, len(unit.runs)) == (other, 1)


async def test_the_loser_of_a_race_gets_the_answer_and_no_error_of_a_constraint(doors: Door, unit: Payments) -> None:
    """idempot-dev/idempot-js#186, alphagov/pay-connector#4460: the loser met the unique constraint, and answered 503."""
    await create_markers(doors)
    sqlite_.configure(doors.engine, busy_timeout=30) if doors.backend == "sqlite" else None
    pay, barrier = unit.unit(doors), doors.barrier(6)

    async def request() -> int:
        await barrier.wait()
        return int((await pay(7))["id"])

    assert len(set(await doors.together(*[request] * 6))) == 1
    assert await paid(doors) == 1


async def test_a_handler_that_fails_does_not_block_its_key_until_that_expires(doors: Door) -> None:
    """thesongzhu/Friday#403: a reservation that no path removes keeps every repetition out."""
    await create_markers(doors)
    outcomes: list[Any] = [ZeroDivisionError, KeyboardInterrupt, errors.VersionConflict([]), "done"]

    async def handler(session: AsyncSession) -> Any:
        session.add(Account())
        await session.flush()
        outcome = outcomes.pop(0)
        if outcome != "done":
            raise outcome
        return outcome

    run = doors.decorate(handler, once="key")
    for kind in (ZeroDivisionError, KeyboardInterrupt, errors.VersionConflict):
        with pytest.raises(kind):
            await run()
        assert await keys(doors) == []
    assert await run() == "done"
    assert await paid(doors) == 1


async def test_there_is_no_moment_with_a_key_and_without_the_work(doors: Door, unit: Payments) -> None:
    """mhayk/Overpass#16: a key in a transaction of its own swallows the submission if the process dies in between."""
    await create_markers(doors)
    seen: list[tuple[int, int]] = []

    async def pay(session: AsyncSession, order: int) -> Any:
        result = await unit.pay(session, order)
        seen.append((len(await keys(doors)), await paid(doors)))
        return result

    await doors.decorate(pay, once="key")(7)
    seen.append((len(await keys(doors)), await paid(doors)))
    assert seen == [(0, 0), (1, 1)]


async def test_a_key_with_another_payload_is_no_repetition(doors: Door) -> None:
    """fossasia/eventyay#602: other payloads under one key were taken for the same request; a dict has no order, though."""
    await create_markers(doors)

    async def order(session: AsyncSession, payload: dict[str, int]) -> int:
        return sum(payload.values())

    run = doors.decorate(order, once="key")
    assert await run({"tea": 1, "cups": 2}) == await run({"cups": 2, "tea": 1}) == 3
    with pytest.raises(errors.OnceMismatch):
        await run({"tea": 1, "cups": 20})


async def test_a_job_that_is_delivered_again_while_it_still_runs(doors: Door) -> None:
    """celery/celery#5935, #5306: a job that runs longer than the visibility timeout is given to a second worker."""
    await create_markers(doors)
    sqlite_.configure(doors.engine, busy_timeout=30) if doors.backend == "sqlite" else None
    take = doors.twin(commits.consumed, commits.async_consumed)
    running, delivered = doors.event(), doors.event()
    handled: list[str] = []

    async def worker(name: str) -> None:
        if name == "second":
            await running.wait()
            delivered.set()
        async with doors.scope() as session:
            if await take(session, "job-1"):
                running.set()
                await delivered.wait()
                session.add(Account())
                handled.append(name)

    await doors.together(lambda: worker("first"), lambda: worker("second"))
    assert (handled, await paid(doors)) == (["first"], 1)


async def test_a_webhook_that_is_delivered_twice_half_a_minute_apart(doors: Door) -> None:
    """picqer/moneybird-php-client#305, stellarBank/StellarBank#39: both deliveries were answered with 200, and both applied."""
    await create_markers(doors)
    take = doors.twin(commits.consumed, commits.async_consumed)

    async def webhook(session: AsyncSession, event: str) -> int:
        if await take(session, event):
            session.add(Account())
        return 200

    run = doors.decorate(webhook, retry=3)
    assert [await run("evt_1"), await run("evt_1"), await run("evt_2")] == [200, 200, 200]
    assert await paid(doors) == 2


async def test_nothing_is_done_before_the_key_is_looked_at(doors: Door) -> None:
    """airqo-platform/AirQo-api#7029: a late duplicate ran its handlers first, and was found to be one afterwards."""
    await create_markers(doors)
    mails: list[str] = []

    async def handler(session: AsyncSession, event: str) -> None:
        on_commit(lambda: mails.append(event))

    run = doors.decorate(handler, once=lambda event: f"event:{event}")
    for event in ("evt_1", "evt_2", "evt_1"):
        await run(event)
    assert mails == ["evt_1", "evt_2"]


@POSTGRESQL
async def test_at_repeatable_read_a_key_that_the_snapshot_does_not_show_is_found(doors: Door, unit: Payments) -> None:
    """dj-stripe/dj-stripe#455: at REPEATABLE READ, the default of MySQL, get_or_create() of a key does not see the other's."""
    await create_markers(doors)
    pay = unit.unit(doors, isolation="REPEATABLE READ")
    ran: list[int] = []

    async def outer(session: AsyncSession) -> Any:
        ran.append(1)
        await session.execute(select(Account))
        if len(ran) == 1:
            await doors.together(lambda: pay(7))
        return await pay(7)

    answer = await doors.decorate(outer, isolation="REPEATABLE READ", retry=Retry(3, wait=0))()
    assert answer == await pay(7)
    assert (unit.runs, await paid(doors)) == ([7], 1)


@POSTGRESQL
async def test_a_call_to_a_payment_service_keeps_its_key_though_the_request_is_rolled_back(doors: Door) -> None:
    """dj-stripe/dj-stripe#455: the charge is made, the request fails, and its transaction takes the key along."""
    await create_markers(doors)
    charges: list[int] = []

    async def charge(session: AsyncSession, order: int) -> str:
        charges.append(order)  # at the service
        return f"charge-{order}"

    once = doors.decorate(charge, once=lambda order: f"charge:{order}", propagation="new")
    for attempt in range(2):
        with pytest.raises(ZeroDivisionError) if attempt == 0 else doors.statements():
            async with doors.scope() as session:
                await session.execute(text("SELECT 1"))
                assert await once(7) == "charge-7"
                if attempt == 0:
                    raise ZeroDivisionError
    assert charges == [7]
