"""Retry of what a database really says, and of what really is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from sessionkit import Retry, errors
from tests.contract.breaking import (
    backend_pid,
    kill_backend,
    names,
)
from tests.contract.failing import AT_ONCE, Failing, awaited, stale
from tests.contract.lost import link
from tests.support.models import Account, Shift, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from sessionkit.retry import Attempt
    from tests.support.doors import Door


# What a database says


@pytest.mark.doors(backend="postgresql")
async def test_a_serialization_failure_is_replayed_from_its_reads(doors: Door) -> None:
    await doors.write(insert(Account).values(id=1, balance=0))
    barrier = doors.barrier(2)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        first = len(runs) < 2
        runs.append(1)
        account = await session.get_one(Account, 1)
        if first:
            await barrier.wait()
        account.balance += 1

    increment = doors.decorate(body, isolation="SERIALIZABLE", retry=AT_ONCE)
    await doors.together(increment, increment)
    assert len(runs) == 3
    assert await doors.scalar("SELECT balance FROM accounts") == 2


@pytest.mark.doors(backend="postgresql")
async def test_a_write_skew_that_is_found_at_commit_is_replayed(doors: Door) -> None:
    """Two doctors go off duty, each because the other stays. The second COMMIT fails, not a statement."""
    await doors.write(insert(Shift).values([{"doctor": "ann", "on_call": True}, {"doctor": "bob", "on_call": True}]))
    barrier = doors.barrier(2)
    failed_at: list[str] = []
    runs: list[str] = []

    async def go_off_duty(session: AsyncSession, doctor: str) -> bool:
        first = len(runs) < 2
        runs.append(doctor)
        on_call = (await session.scalars(select(Shift.doctor).where(Shift.on_call))).all()
        if first:
            await barrier.wait()
        if len(on_call) < 2:
            return False
        await session.execute(update(Shift).where(Shift.doctor == doctor).values(on_call=False))
        if first:
            await barrier.wait()
        return True

    def before(attempt: Attempt) -> None:
        assert isinstance(attempt.error, DBAPIError)
        failed_at.append("COMMIT" if attempt.error.statement is None else attempt.error.statement)

    retry = Retry(5, wait=0, before_retry=before)
    leave = doors.decorate(go_off_duty, isolation="SERIALIZABLE", retry=retry)
    left = await doors.together(lambda: awaited(leave("ann")), lambda: awaited(leave("bob")))
    assert sorted(left) == [False, True]
    assert failed_at == ["COMMIT"]
    assert await doors.scalar(select(text("count(*)")).select_from(Shift).where(Shift.on_call)) == 1


@pytest.mark.doors(backend="postgresql")
async def test_of_two_transfers_that_deadlock_the_victim_is_replayed(doors: Door) -> None:
    await doors.write(insert(Account).values([{"id": 1, "balance": 100}, {"id": 2, "balance": 100}]))
    barrier = doors.barrier(2)
    runs: list[int] = []
    kinds: list[str] = []

    async def transfer(session: AsyncSession, source: int, target: int) -> None:
        first = len(runs) < 2
        runs.append(source)
        for account, amount in ((source, -10), (target, 10)):
            await session.execute(update(Account).where(Account.id == account).values(balance=Account.balance + amount))
            if first and account == source:
                await barrier.wait()

    def before(attempt: Attempt) -> None:
        assert attempt.error is not None
        kinds.append(errors.classify(attempt.error).kind)

    run = doors.decorate(transfer, retry=Retry(5, wait=0, before_retry=before))
    await doors.together(lambda: awaited(run(1, 2)), lambda: awaited(run(2, 1)))
    assert set(kinds) == {"deadlock_detected"}
    assert await doors.rows("SELECT balance FROM accounts ORDER BY id") == [(100,), (100,)]


@pytest.mark.doors(backend="postgresql")
async def test_when_all_connections_of_the_pool_are_dead_one_retry_is_enough(doors: Door) -> None:
    """What is lost on one connection is lost on all, so the first loss refreshes the pool."""
    engine = doors.make_engine(pool_size=4)
    factory = doors.factory(engine)
    barrier = doors.barrier(4)

    async def connected() -> int:
        async with doors.scope(factory) as session:
            pid = await backend_pid(session)
            await barrier.wait()
            return pid

    for pid in await doors.together(*[connected] * 4):
        await kill_backend(doors, pid)
    unit = Failing(doors)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        await unit.body(session)

    await doors.decorate(body, factory, retry=Retry(2, wait=0))()
    assert len(runs) == 2
    assert unit.hooks == ["rollback 1", "commit 2"]


@pytest.mark.doors(backend="postgresql")
async def test_a_server_that_refuses_connections_for_a_while_is_waited_for(doors: Door) -> None:
    unit = Failing(doors)
    refused: list[str] = []
    with link(doors) as way:

        def before(attempt: Attempt) -> None:
            assert attempt.error is not None
            refused.append(errors.classify(attempt.error).kind)
            if len(refused) == 2:
                way.proxy.heal()

        way.proxy.refuse()
        await doors.decorate(unit.body, way.factory, retry=Retry(5, wait=0, before_retry=before))()
    assert refused == ["cannot_connect", "cannot_connect"]


@pytest.mark.doors(backend="sqlite")
async def test_a_file_that_is_locked_is_waited_for_without_a_retry(doors: Door) -> None:
    """BEGIN IMMEDIATE queues: with a busy timeout nobody sees SQLITE_BUSY."""
    await doors.write(insert(Account).values(id=1, balance=0))
    retries: list[Attempt] = []
    engine = doors.make_engine(connect_args={"timeout": 30})

    async def body(session: AsyncSession) -> None:
        account = await session.get_one(Account, 1)
        account.balance += 1

    run = doors.decorate(body, doors.factory(engine), retry=Retry(wait=0, before_retry=retries.append))
    await doors.together(*[run] * 8)
    assert await doors.scalar("SELECT balance FROM accounts") == 8
    assert retries == []


@pytest.mark.doors(backend="sqlite")
async def test_a_file_that_stays_locked_is_retried_as_often_as_was_asked(doors: Door) -> None:
    engine = doors.make_engine(connect_args={"timeout": 0})
    kinds: list[str] = []

    def before(attempt: Attempt) -> None:
        assert attempt.error is not None
        kinds.append(errors.classify(attempt.error).kind)

    unit = Failing(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        run = doors.decorate(unit.body, doors.factory(engine), retry=Retry(3, wait=0, before_retry=before))
        with pytest.raises(DBAPIError) as caught:
            await doors.in_other_thread(run) if doors.colour == "sync" else await asyncio.create_task(awaited(run()))
    assert kinds == ["busy", "busy"]
    assert "gave up after 3 attempts" in caught.value.__notes__[0]


# Asynchronous code


@pytest.mark.doors(colour="async")
async def test_a_cancellation_is_never_retried_and_never_swallowed(doors: Door) -> None:
    runs: list[int] = []
    inside = asyncio.Event()

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="ann"))
        await session.flush()
        inside.set()
        await asyncio.Event().wait()

    # `on` cannot name it, and a predicate is not asked.
    task = asyncio.create_task(awaited(doors.decorate(body, retry=Retry(wait=0, on=lambda _: True))()))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert runs == [1]
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []


@pytest.mark.doors(colour="async")
async def test_the_wait_between_attempts_can_be_cancelled_and_holds_no_connection(doors: Door) -> None:
    waiting = asyncio.Event()

    def before(_attempt: Attempt) -> None:
        waiting.set()

    failure = stale()
    unit = Failing(doors, failure)
    retry = Retry(wait=3600, wait_max=3600, jitter=False, before_retry=before)
    task = asyncio.create_task(awaited(doors.decorate(unit.body, retry=retry)()))
    await waiting.wait()
    await asyncio.sleep(0)
    assert doors.checked_out() == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert unit.runs == 1
    assert errors.outcome_of(caught.value) == "rolled back"
    assert caught.value.__context__ is failure


@pytest.mark.doors(colour="async")
async def test_a_timeout_around_the_retries_ends_them(doors: Door) -> None:
    unit = Failing(doors, *[stale() for _ in range(10)])
    limit: asyncio.Timeout

    def before(attempt: Attempt) -> None:
        if attempt.number == 2:
            limit.reschedule(asyncio.get_running_loop().time())

    retry = Retry(10, wait=3600, wait_max=3600, before_retry=before)
    retry = Retry(10, wait=0.0, wait_max=3600, before_retry=before)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(None) as limit:
            await doors.decorate(unit.body, retry=retry)()
            raise AssertionError
    assert unit.runs >= 2
    assert errors.outcome_of(caught.value) == "rolled back"
