"""A COMMIT of a unit with `once=` whose answer is lost is settled by its key: no other table, no other statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from sessionkit import Retry, errors
from sessionkit._core import seams
from tests.contract.breaking import backend_pid, kill_backend
from tests.contract.lost import (
    FAULTS,
    LOST_COMMITS,
    RETRY,
    create_markers,
    link,
    markers,
    slow_down_commits,
    somebody_waits_for_a_lock,
)
from tests.contract.once import Payments, keys, paid
from tests.support.faults import Fault
from tests.support.wire import wire

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")


@pytest.fixture
def unit() -> Payments:
    return Payments()


@POSTGRESQL
@FAULTS
@pytest.mark.parametrize("verify", [False, True], ids=["once", "once and verify_commit"])
async def test_a_lost_commit_is_settled_and_the_unit_happens_once(
    doors: Door, unit: Payments, fault: Fault, verify: bool
) -> None:
    await create_markers(doors)
    with link(doors) as way:
        pay = unit.unit(doors, way.factory, retry=RETRY, verify_commit=verify)
        struck = way.proxy.at("COMMIT", fault)
        first = await pay(7)
        assert struck.struck
        assert await pay(7) == first
    assert (unit.hooks, await paid(doors), await keys(doors)) == ([7], 1, [("pay:7", "U")])
    assert len(unit.runs) == (1 if LOST_COMMITS[fault] else 2)
    assert await markers(doors) == []


@POSTGRESQL
@FAULTS
async def test_without_retry_a_lost_commit_returns_or_raises_the_drivers_error(
    doors: Door, unit: Payments, fault: Fault
) -> None:
    await create_markers(doors)
    with link(doors) as way:
        pay = unit.unit(doors, way.factory)
        way.proxy.at("COMMIT", fault)
        if LOST_COMMITS[fault]:
            assert (await pay(7))["order"] == 7
        else:
            with pytest.raises(DBAPIError) as caught:
                await pay(7)
            assert errors.outcome_of(caught.value) == "rolled back"
            assert await keys(doors) == []
        assert (await pay(7))["order"] == 7
    assert (unit.hooks, await paid(doors)) == ([7], 1)


@POSTGRESQL
async def test_a_commit_that_the_server_is_still_carrying_out_is_waited_for(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    await slow_down_commits_of_accounts(doors)
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.SWALLOW_REPLY)
        pay = unit.unit(doors, way.factory, retry=RETRY, commit_timeout=0.2)
        async with doors.connect() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))

            async def letting_go() -> None:
                await somebody_waits_for_a_lock(doors, 2)  # the COMMIT, and the question for its outcome
                assert await paid(doors) == 0
                await holder.rollback()

            answer, _ = await doors.together(lambda: pay(7), letting_go)
        assert struck.struck
    assert answer["order"] == 7
    assert (unit.runs, unit.hooks, await paid(doors)) == ([7], [7], 1)


async def slow_down_commits_of_accounts(doors: Door) -> None:
    await slow_down_commits(doors)
    await doors.write(
        "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )


@POSTGRESQL
@pytest.mark.parametrize("killed", [False, True], ids=["arrives", "its backend dies"])
async def test_a_commit_that_is_still_on_its_way_is_waited_for(doors: Door, unit: Payments, killed: bool) -> None:
    """The row of the key was written before: whoever asks waits for its transaction, with every driver."""
    await create_markers(doors)
    with link(doors) as way:
        late = way.proxy.at("COMMIT", Fault.LATE)
        pids: list[int] = []

        async def body(session: AsyncSession, order: int) -> Any:
            pids.append(await backend_pid(session))
            return await unit.pay(session, order)

        pay = doors.decorate(body, way.factory, once=lambda order: f"pay:{order}", retry=RETRY)

        async def ending() -> None:
            await somebody_waits_for_a_lock(doors)
            assert await paid(doors) == 0
            if killed:
                await kill_backend(doors, pids[0])
            else:
                await doors._outside(late.deliver)

        answer, _ = await doors.together(lambda: pay(7), ending)
        assert await pay(7) == answer
        assert late.struck
    assert (len(unit.runs), unit.hooks, await paid(doors)) == (1 + killed, [7], 1)


@POSTGRESQL
async def test_an_answer_that_cannot_be_had_in_time_is_unknown_and_has_the_key(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE_REPLY)

        async def body(session: AsyncSession, order: int) -> Any:
            result = await unit.pay(session, order)
            await doors._outside(way.proxy.stop_listening)
            return result

        pay = doors.decorate(body, way.factory, once=lambda order: f"pay:{order}", retry=Retry(5, timeout=1))
        with pytest.raises(errors.CommitOutcomeUnknown, match="got no answer") as caught:
            await pay(7)
        assert struck.struck
        assert caught.value.key == "pay:7"
        assert errors.outcome_of(caught.value) == "unknown"
        await doors._outside(way.proxy.heal)
        assert (await pay(7))["order"] == 7  # the way to find out is to call again
    assert (unit.runs, await paid(doors)) == ([7], 1)


@POSTGRESQL
@FAULTS
async def test_a_key_that_was_taken_over_is_told_apart_from_the_one_before(
    doors: Door, unit: Payments, fault: Fault
) -> None:
    await create_markers(doors)
    with link(doors) as way:
        pay = unit.unit(doors, way.factory, retry=RETRY)
        first = await pay(7)
        await doors.write("UPDATE sessionkit_once SET expires_at = now() - interval '1 s'")
        way.proxy.at("COMMIT", fault)
        second = await pay(7)
        assert second != first
        assert await pay(7) == second
    assert (unit.hooks, await paid(doors)) == ([7, 7], 2)


@POSTGRESQL
async def test_the_result_has_no_round_trip_of_its_own_where_the_driver_can_send_it_with_commit(doors: Door) -> None:
    await create_markers(doors)
    unit = Payments()
    with wire(doors) as proxy:
        engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args=proxy.connect_args(doors))
        pay = unit.unit(doors, doors.factory(engine))
        for order in range(8):
            proxy.take()
            await pay(order)
        first = proxy.take()
        await pay(7)
        again = proxy.take()
    words = [line.split()[0] for line in first.statements]
    if doors.driver == "psycopg":
        assert words == ["BEGIN", "WITH", "INSERT", "UPDATE"]
        assert first.statements[-1].endswith("COMMIT")
        assert first.round_trips == 4
    else:
        assert [word.rstrip(";") for word in words if word != "DEALLOCATE"] == [
            "BEGIN",
            "WITH",
            "INSERT",
            "UPDATE",
            "COMMIT",
        ]
    assert [line.split()[0].rstrip(";") for line in again.statements] == ["BEGIN", "WITH", "COMMIT"]
    assert again.round_trips <= 3 + (doors.driver == "asyncpg")


async def test_a_lost_answer_of_the_test_kit_is_settled_too(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    pay = unit.unit(doors, retry=RETRY)
    await pay(1)

    def commit_and_lose(connection: Any) -> None:
        seams.at_commit.clear()
        connection.send_commit()
        raise LookupError

    def lose(_: Any) -> None:
        seams.at_commit.clear()
        raise LookupError

    seams.at_commit.append(commit_and_lose)
    first = await pay(7)
    assert await pay(7) == first
    seams.at_commit.append(lose)
    with pytest.raises(LookupError) as caught:
        await pay(8)
    assert errors.outcome_of(caught.value) == "rolled back"
    assert (await pay(8))["order"] == 8
    assert (unit.hooks, await paid(doors)) == ([1, 7, 8], 3)


@POSTGRESQL
@FAULTS
async def test_a_lost_commit_of_a_replay_has_nothing_to_lose_and_is_run_again(
    doors: Door, unit: Payments, fault: Fault
) -> None:
    await create_markers(doors)
    with link(doors) as way:
        pay = unit.unit(doors, way.factory, retry=RETRY)
        first = await pay(7)
        struck = way.proxy.at("COMMIT", fault)
        assert await pay(7) == first
        assert struck.struck
        way.proxy.at("COMMIT", fault)
        with pytest.raises(DBAPIError) as caught:
            await unit.unit(doors, way.factory)(7)
        assert errors.outcome_of(caught.value) == "rolled back"
    assert (unit.runs, unit.hooks) == ([7], [7])


@POSTGRESQL
async def test_a_unit_whose_key_another_has_taken_since_was_not_committed(doors: Door, unit: Payments) -> None:
    """Its COMMIT never arrived, and another call was faster than the question: the row is there, but not by this unit."""
    await create_markers(doors)
    other = await unit.unit(doors)(7)
    observer = doors.database.observer
    with observer.begin() as connection:
        connection.execute(text("CREATE TABLE meanwhile AS SELECT * FROM sessionkit_once"))
        connection.execute(text("DELETE FROM sessionkit_once"))
    taken: list[int] = []
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE)

        def take(*_: object) -> None:
            if struck.struck and not taken:
                taken.append(1)
                with observer.begin() as connection:  # waits until the server has rolled the unit back
                    connection.execute(text("INSERT INTO sessionkit_once SELECT * FROM meanwhile"))

        event.listen(doors.sync_engine_of(way.engine), "checkout", take)
        assert await unit.unit(doors, way.factory, retry=RETRY)(7) == other
    assert taken == [1]
    assert (len(unit.runs), unit.hooks, await paid(doors)) == (2, [7], 1)
