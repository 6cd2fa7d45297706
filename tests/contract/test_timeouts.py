"""Timeouts are the database's: for a statement, for a lock, for an idle transaction; and they end with the transaction."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from sessionkit import errors, sqlite
from tests.contract.breaking import backend_pid, names
from tests.contract.settings import LOCK_NOT_AVAILABLE, LONGER_THAN_A_MOMENT, STATEMENT_TIMED_OUT, error_code, in_force
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

# Each takes much longer than the timeouts here; SQLite's ends within a test's patience, and then the test sees that.
ENDLESS = {
    "postgresql": text("SELECT count(*) FROM pg_attribute a, pg_attribute b, pg_attribute c"),
    "sqlite": text(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 30000000) SELECT count(*) FROM n"
    ),
}


async def test_a_statement_that_takes_too_long_is_stopped_by_the_database(doors: Door) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(statement_timeout=0.05) as session:
            session.add(User(name="ann"))
            await session.flush()
            await session.execute(ENDLESS[doors.backend])
    assert error_code(caught.value) == STATEMENT_TIMED_OUT[doors.backend]
    assert await names(doors) == []


async def test_a_write_that_takes_too_long_is_stopped_and_cannot_be_committed_over(doors: Door) -> None:
    endless = str(ENDLESS[doors.backend]).replace("count(*)", "'u' || count(*)")
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(statement_timeout=0.05) as session:
            session.add(User(name="ann"))
            await session.flush()
            with pytest.raises(DBAPIError) as caught:
                await session.execute(text(f"INSERT INTO users (name) {endless}"))  # SQLite ends the transaction by it
            assert error_code(caught.value) == STATEMENT_TIMED_OUT[doors.backend]
    assert await names(doors) == []


async def test_a_statement_stopped_inside_a_savepoint_leaves_the_rest_alone(doors: Door) -> None:
    async with doors.scope(statement_timeout=0.05) as session:
        session.add(User(name="ann"))
        with pytest.raises(DBAPIError):
            async with doors.scope(propagation="savepoint"):
                await session.execute(ENDLESS[doors.backend])
        session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


async def test_the_time_of_a_statement_is_its_own_and_not_its_predecessors(doors: Door) -> None:
    seconds = 0.5
    async with doors.scope(statement_timeout=seconds) as session:
        started = time.monotonic()
        while time.monotonic() < started + 2 * seconds:
            assert (await session.execute(text(LONGER_THAN_A_MOMENT))).scalar_one() == 20000
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="sqlite")
async def test_a_listener_that_says_begin_by_itself_comes_before_the_limit_of_the_statements(doors: Door) -> None:
    engine = doors.make_engine()
    event.listen(doors.sync_engine_of(engine), "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    async with doors.scope(doors.factory(engine), statement_timeout=30) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_statement_timeout_is_over_with_its_transaction(doors: Door) -> None:
    Session = doors.factory(doors.make_engine(pool_size=1, max_overflow=0))
    async with doors.scope(Session, statement_timeout=0.001) as session:
        await session.connection()
    async with doors.session(Session) as session:
        assert (await session.execute(text(LONGER_THAN_A_MOMENT))).scalar_one() == 20000


# Locks


async def hold(doors: Door, holding: Any, done: Any) -> None:
    """Hold a lock that `wait_for_it` has to wait for, until `done`."""
    async with doors.scope() as session:
        await session.execute(update(User).values(email="held"))
        holding.set()
        await done.wait()


async def wait_for_it(doors: Door, holding: Any, done: Any, factory: Any, **options: Any) -> DBAPIError:
    await holding.wait()
    try:
        with pytest.raises(DBAPIError) as caught:
            async with doors.scope(factory, **options) as session:
                await session.execute(update(User).values(email="wanted"))
    finally:
        done.set()
    return caught.value


@pytest.mark.parametrize("configured", ["as it is", "configured", "deferred"])
async def test_a_wait_for_a_lock_ends_at_the_lock_timeout(doors: Door, configured: str) -> None:
    engine = await patient_engine(doors, configured)
    await doors.write(insert(User).values(name="ann"))
    holding, done = doors.event(), doors.event()
    _, error = await doors.together(
        hold(doors, holding, done), wait_for_it(doors, holding, done, doors.factory(engine), lock_timeout=0.05)
    )
    assert error_code(error) == LOCK_NOT_AVAILABLE[doors.backend]


@pytest.mark.parametrize("configured", ["as it is", "configured", "deferred"])
@pytest.mark.parametrize("lock_timeout", [None, 60])
async def test_a_statement_that_waits_for_a_lock_ends_at_its_statement_timeout(
    doors: Door, configured: str, lock_timeout: float | None
) -> None:
    """The engine, and the lock timeout, would wait longer than this test has patience."""
    engine = await patient_engine(doors, configured)
    await doors.write(insert(User).values(name="ann"))
    holding, done = doors.event(), doors.event()
    options = {"statement_timeout": 0.05, "lock_timeout": lock_timeout}
    _, error = await doors.together(
        hold(doors, holding, done), wait_for_it(doors, holding, done, doors.factory(engine), **options)
    )
    # SQLite has no word for it but "locked".
    assert (
        error_code(error)
        == (STATEMENT_TIMED_OUT if doors.backend == "postgresql" else LOCK_NOT_AVAILABLE)[doors.backend]
    )


async def patient_engine(doors: Door, configured: str) -> Any:
    if doors.backend == "postgresql":
        return doors.make_engine()
    engine = doors.make_engine(connect_args={"timeout": 60})
    if configured != "as it is":
        sqlite.configure(engine, busy_timeout=60, begin="deferred" if configured == "deferred" else "immediate")
        async with doors.enter(engine.connect()):
            pass  # the first connection switches to WAL, and waits to be alone
    return engine


async def test_a_lock_that_comes_free_in_time_is_got(doors: Door) -> None:
    await doors.write(insert(User).values(name="ann"))
    holding, done = doors.event(), doors.event()

    async def waiter() -> None:
        await holding.wait()
        async with doors.scope(lock_timeout=25) as session:
            done.set()
            await session.execute(update(User).values(email="wanted"))

    await doors.together(hold(doors, holding, done), waiter())
    assert await doors.rows(select(User.email)) == [("wanted",)]


# Idleness


@pytest.mark.doors(backend="postgresql")
async def test_a_transaction_that_is_idle_for_too_long_is_ended_by_the_server(doors: Door) -> None:
    with pytest.raises((DBAPIError, errors.UnexpectedRollback)):
        async with doors.scope(idle_timeout=0.01) as session:
            session.add(User(name="ann"))
            await session.flush()
            pid = await idle_pid(doors)
            while await doors.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid", pid=pid):
                pass
            await session.execute(text("SELECT 1"))
    assert await names(doors) == []


async def idle_pid(doors: Door) -> int:
    rows = await doors.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    )
    # It may have been ended by now; then there is nothing left to wait for.
    return int(rows[0][0]) if rows else 0


@pytest.mark.doors(backend="postgresql")
async def test_all_three_timeouts_are_in_force_together(doors: Door) -> None:
    async with doors.scope(statement_timeout=1.5, lock_timeout=0.0014, idle_timeout=3600) as session:
        settings = await in_force(doors, session)
        assert settings["statement_timeout"] == "1500ms"
        assert settings["lock_timeout"] == "1ms"
        assert settings["idle_in_transaction_session_timeout"] == "1h"
        assert await backend_pid(session)


@pytest.mark.parametrize("seconds", [0.001, 2_147_483])
@pytest.mark.parametrize("option", ["statement_timeout", "lock_timeout"])
async def test_the_shortest_and_the_longest_timeout_can_be_had(doors: Door, option: str, seconds: float) -> None:
    async with doors.scope(**{option: seconds}) as session:  # type: ignore[arg-type]
        await session.connection()
