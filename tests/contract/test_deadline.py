"""`Retry(timeout=)`: no call outlives its deadline by more than a second, also when the server is a black hole."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, errors, on_commit
from tests.contract.breaking import backend_pid, kill_backend, names
from tests.contract.lost import create_markers, link
from tests.support.faults import Fault
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
TIMEOUT = 0.5
RETRY = Retry(1000, wait=0.01, wait_max=0.05, timeout=TIMEOUT)


@contextmanager
def in_time() -> Iterator[None]:
    """The one promise about time. What it is about would take minutes without it."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < TIMEOUT + 1


# A black hole, at every place where one can fall into it


@POSTGRESQL
async def test_a_server_that_falls_silent_inside_the_body_does_not_hold_the_call(doors: Door) -> None:
    with link(doors) as way:
        hooks: list[str] = []

        async def body(session: AsyncSession) -> None:
            on_commit(lambda: hooks.append("commit"))
            session.add(User(name="ann"))
            await session.flush()
            await doors._outside(way.proxy.swallow)
            await session.execute(text("SELECT 1"))

        with in_time(), pytest.raises(DBAPIError) as caught:
            await doors.decorate(body, way.factory, retry=RETRY)()
        assert errors.classify(caught.value).kind in {"connection_lost", "cannot_connect"}
        assert errors.outcome_of(caught.value) == "rolled back"
        assert f"at the timeout of {TIMEOUT} s" in caught.value.__notes__[-1]
        assert hooks == []
        way.proxy.heal()
        # The pool has nothing left of it.
        async with doors.scope(way.factory) as session:
            session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


@POSTGRESQL
async def test_a_server_that_takes_no_connection_does_not_hold_the_call(doors: Door) -> None:
    with link(doors) as way:
        async with doors.scope(way.factory) as session:
            await session.execute(text("SELECT 1"))
        way.proxy.swallow()
        cold = doors.factory(doors.make_engine(port=way.proxy.port))

        async def body(session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))

        with in_time(), pytest.raises(DBAPIError) as caught:
            await doors.decorate(body, cold, retry=RETRY)()
        assert errors.classify(caught.value).kind == "cannot_connect"
        assert "had not accepted the connection when the time of the unit was over" in str(caught.value)
        way.proxy.heal()
        async with doors.scope(cold) as session:
            await session.execute(text("SELECT 1"))


@POSTGRESQL
async def test_a_pooled_connection_that_leads_into_a_black_hole_does_not_hold_the_call(doors: Door) -> None:
    with link(doors) as way:
        async with doors.scope(way.factory) as session:
            await session.execute(text("SELECT 1"))
        way.proxy.swallow()

        async def body(session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))

        with in_time(), pytest.raises(DBAPIError):
            await doors.decorate(body, way.factory, retry=RETRY)()


@POSTGRESQL
async def test_a_black_hole_that_opens_at_the_end_of_the_time_does_not_hold_the_call(doors: Door) -> None:
    """The body has used up the time before it says anything to the server."""
    with link(doors) as way:
        async with doors.scope(way.factory) as session:
            await session.execute(text("SELECT 1"))
        way.proxy.swallow()

        async def body(session: AsyncSession) -> None:
            await doors._outside(lambda: _busy_until(time.monotonic() + TIMEOUT + 0.05))
            await session.execute(text("SELECT 1"))

        with in_time(), pytest.raises(DBAPIError):
            await doors.decorate(body, way.factory, retry=RETRY)()


def _busy_until(moment: float) -> None:
    while time.monotonic() < moment:
        pass


@POSTGRESQL
@pytest.mark.parametrize("fault", [Fault.SWALLOW, Fault.SWALLOW_REPLY], ids=lambda fault: fault.name)
async def test_a_commit_that_nobody_answers_does_not_hold_the_call(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", fault)

        async def body(session: AsyncSession) -> None:
            session.add(User(name="ann"))

        with in_time(), pytest.raises(errors.CommitOutcomeUnknown):
            await doors.decorate(body, way.factory, retry=RETRY)()


@POSTGRESQL
async def test_a_question_that_nobody_answers_does_not_hold_the_call(doors: Door) -> None:
    """The COMMIT is lost, and then the server, so that nobody can be asked."""
    await create_markers(doors)
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE_REPLY)

        def silence(*_: Any) -> None:
            way.proxy.swallow()

        async def body(session: AsyncSession) -> None:
            session.add(User(name="ann"))

        event.listen(doors.sync_engine_of(way.engine), "handle_error", silence)
        with in_time(), pytest.raises(errors.CommitOutcomeUnknown, match="got no answer") as caught:
            await doors.decorate(body, way.factory, retry=RETRY, verify_commit=True)()
        assert struck.struck
        assert caught.value.key is not None
    assert await names(doors) == ["ann"]


@POSTGRESQL
async def test_an_application_that_asks_a_black_hole_does_not_hold_the_call(doors: Door) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)

        async def ask(session: AsyncSession) -> bool:
            await session.execute(text("SELECT 1"))
            await doors._outside(way.proxy.swallow)
            await session.execute(text("SELECT 1"))
            return True

        async def body(session: AsyncSession) -> None:
            session.add(User(name="ann"))

        run = doors.decorate(body, way.factory, retry=RETRY, verify_commit=doors._coloured(ask))
        with in_time(), pytest.raises(errors.CommitOutcomeUnknown):
            await run()


@POSTGRESQL
async def test_a_unit_of_its_own_inside_shares_the_time_of_the_one_around_it(doors: Door) -> None:
    with link(doors) as way:

        async def body(_session: AsyncSession) -> None:
            async with doors.scope(way.factory, propagation="new") as inner:
                await inner.execute(text("SELECT 1"))
                await doors._outside(way.proxy.swallow)
                await inner.execute(text("SELECT 1"))

        with in_time(), pytest.raises(DBAPIError):
            await doors.decorate(body, way.factory, retry=RETRY)()


# Without a black hole


@POSTGRESQL
async def test_a_statement_that_takes_too_long_is_cut(doors: Door) -> None:
    pids: list[int] = []

    async def body(session: AsyncSession) -> None:
        pids.append(await backend_pid(session))
        await session.execute(text("SELECT pg_sleep(30)"))

    with in_time(), pytest.raises(DBAPIError) as caught:
        await doors.decorate(body, retry=RETRY)()
    assert errors.classify(caught.value).kind == "connection_lost"
    # The server has not noticed: it looks at its client when the statement is done (client_connection_check_interval).
    await kill_backend(doors, pids[-1])


@pytest.mark.doors(backend="sqlite")
async def test_a_statement_of_sqlite_that_takes_too_long_is_interrupted(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await session.execute(
            text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
        )

    with in_time(), pytest.raises(DBAPIError) as caught:
        await doors.decorate(body, retry=RETRY)()
    assert errors.classify(caught.value).kind == "query_canceled"
    async with doors.scope() as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


@POSTGRESQL
async def test_a_lock_that_is_not_given_free_is_not_waited_for_beyond_the_time(doors: Door) -> None:
    await doors.write(insert(Account).values(id=1))

    async def body(session: AsyncSession) -> None:
        await session.execute(text("UPDATE accounts SET balance = 1 WHERE id = 1"))

    async with doors.connect() as holder:
        await holder.execute(text("SELECT * FROM accounts FOR UPDATE"))
        with in_time(), pytest.raises(DBAPIError):
            await doors.decorate(body, retry=RETRY)()


@pytest.mark.doors(backend="sqlite")
async def test_a_file_that_is_not_given_free_is_not_waited_for_beyond_the_time(doors: Door) -> None:
    engine = doors.make_engine(connect_args={"timeout": 30})

    async def body(session: AsyncSession) -> None:
        session.add(User(name="ann"))

    async with doors.connect() as holder:
        await holder.execute(text("BEGIN IMMEDIATE"))
        with in_time(), pytest.raises(DBAPIError) as caught:
            await doors.decorate(body, doors.factory(engine), retry=RETRY)()
        await holder.rollback()
    assert errors.classify(caught.value).kind == "busy"
    # And the limit is not left behind.
    async with doors.scope(doors.factory(engine)) as session:
        assert (await session.execute(text("PRAGMA busy_timeout"))).scalar_one() == 30_000


async def test_the_waits_between_the_attempts_count_as_well(doors: Door) -> None:
    async def body(_session: AsyncSession) -> None:
        raise StaleDataError("somebody was faster")

    with in_time(), pytest.raises(StaleDataError) as caught:
        await doors.decorate(body, retry=Retry(1000, wait=30, wait_max=30, jitter=False, timeout=TIMEOUT))()
    assert caught.value.__notes__ == [
        f"gave up after 1 attempt, at the timeout of {TIMEOUT} s; there was no earlier one"
    ]


async def test_a_body_that_ends_after_its_time_is_not_committed(doors: Door) -> None:
    """On both backends: what was promised to be over cannot be committed afterwards."""
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="ann"))
        await session.flush()
        await doors._outside(lambda: _busy_until(time.monotonic() + 0.3))

    with pytest.raises((errors.UnexpectedRollback, DBAPIError)) as caught:
        await doors.decorate(body, retry=Retry(wait=0, timeout=0.1))()
    assert errors.outcome_of(caught.value) == "rolled back"
    assert runs == [1]
    assert await names(doors) == []


async def test_a_unit_that_is_done_in_time_does_not_notice(doors: Door) -> None:
    async def body(session: AsyncSession) -> str:
        session.add(User(name="ann"))
        return "done"

    assert await doors.decorate(body, retry=Retry(timeout=60))() == "done"
    assert await names(doors) == ["ann"]


async def test_a_listener_of_the_users_connects_as_before(doors: Door) -> None:
    """Limits on connecting come through an event that belongs to the user; all of its listeners are still asked."""
    engine = doors.make_engine()
    heard: list[str] = []

    def hear(name: str) -> Callable[..., None]:
        def listener(*_: Any) -> None:
            heard.append(name)

        return listener

    sync_engine = doors.sync_engine_of(engine)
    event.listen(sync_engine, "do_connect", hear("before"))
    factory = doors.factory(engine)

    async def body(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))

    run = doors.decorate(body, factory, retry=Retry(timeout=60))
    await run()
    event.listen(sync_engine, "do_connect", hear("after"))
    await (engine.dispose() if doors.colour == "async" else doors._outside(engine.dispose))
    heard.clear()
    await run()
    assert heard == ["before", "after"]
