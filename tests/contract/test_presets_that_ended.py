"""A preset ends with its transaction, and leaves nothing on the connection, however the transaction ends."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from sessionkit import (
    READ_ONLY,
    REPORT,
    SERIALIZABLE,
    SNAPSHOT,
    Preset,
    errors,
)
from tests.contract.breaking import backend_pid, kill_backend
from tests.contract.settings import (
    PRESETS,
    expected,
    in_force,
    left_behind,
    pooled_engine,
    without_preset,
)
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

on_postgresql = pytest.mark.doors(backend="postgresql")


# Gone after the transaction


class Mine(Exception):
    pass


async def end_well(doors: Door, factory: Any, preset: Preset) -> None:
    async with doors.scope(factory, preset=preset) as session:
        await session.execute(text("SELECT 1"))


async def end_by_an_error(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(Mine):
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT 1"))
            raise Mine


async def end_by_a_failed_statement(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(DBAPIError):
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT * FROM no_such_table"))


async def end_without_a_statement(doors: Door, factory: Any, preset: Preset) -> None:
    async with doors.scope(factory, preset=preset):
        pass


async def end_with_a_swallowed_error(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory, preset=preset) as session:
            with suppress(DBAPIError):
                await session.execute(text("SELECT * FROM no_such_table"))


async def end_by_a_lost_connection(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.backend == "postgresql":
        with pytest.raises(DBAPIError):
            async with doors.scope(factory, preset=preset) as session:
                await kill_backend(doors, await backend_pid(session))
                await session.execute(text("SELECT 1"))
    else:
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(factory, preset=preset) as session:
                connection = await session.connection()
                await connection.invalidate()


async def end_by_a_connection_lost_unnoticed(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.backend == "sqlite":
        await end_by_a_lost_connection(doors, factory, preset)
        return
    with pytest.raises(Mine):
        async with doors.scope(factory, preset=preset) as session:
            await kill_backend(doors, await backend_pid(session))
            raise Mine


async def end_by_a_cancellation(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.colour == "sync":
        with pytest.raises(KeyboardInterrupt):
            async with doors.scope(factory, preset=preset) as session:
                await session.execute(text("SELECT 1"))
                raise KeyboardInterrupt
        return
    inside = asyncio.Event()

    async def body() -> None:
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT 1"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def end_by_a_cancelled_statement(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.colour == "sync" or doors.backend == "sqlite":
        await end_by_a_cancellation(doors, factory, preset)
        return

    async def body() -> None:
        async with doors.scope(factory, preset=preset) as session:
            pid.set_result(await backend_pid(session))
            await session.execute(text("SELECT pg_advisory_xact_lock(3)"))

    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with doors.connect() as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(3)"))
        task = asyncio.create_task(body())
        while not await doors.scalar("SELECT count(*) FROM pg_locks WHERE pid = :pid AND NOT granted", pid=await pid):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


each_end = pytest.mark.parametrize(
    "end",
    [
        pytest.param(end, id=end.__name__.removeprefix("end_"))
        for end in (
            end_well,
            end_without_a_statement,
            end_by_an_error,
            end_by_a_failed_statement,
            end_with_a_swallowed_error,
            end_by_a_lost_connection,
            end_by_a_connection_lost_unnoticed,
            end_by_a_cancellation,
            end_by_a_cancelled_statement,
        )
    ],
)


@each_end
async def test_nothing_of_a_preset_is_left_on_any_connection_of_the_pool(doors: Door, end: Any) -> None:
    engine = pooled_engine(doors)
    before = await left_behind(doors, engine)
    Session = doors.factory(engine)
    for number, preset in enumerate(PRESETS.values()):
        # A millisecond is over by the time that somebody else uses the connection.
        if doors.backend == "sqlite" and preset.statement_timeout is not None:
            preset = preset.replace(statement_timeout=0.001)
        await end(doors, Session, preset)
        assert await left_behind(doors, engine) == before
        # The transaction itself is over as well: other scopes can write.
        async with doors.scope(Session) as session:
            session.add(User(name=f"after {number}"))
            await session.flush()


@on_postgresql
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_an_engine_that_was_made_with_a_level_gets_it_back(doors: Door, level: str) -> None:
    engine = pooled_engine(doors, isolation_level=level)
    before = await left_behind(doors, engine)
    assert {state["transaction_isolation"] for state in before} == {level.lower()}
    default = await without_preset(doors, engine)
    for preset in PRESETS.values():
        async with doors.scope(doors.factory(engine), preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        assert await left_behind(doors, engine) == before


@on_postgresql
@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "SERIALIZABLE"},
        {"postgresql_readonly": True},
        {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True},
    ],
    ids=["level", "read only", "report"],
)
async def test_an_engine_with_execution_options_leaves_nothing_to_the_engine_whose_pool_it_shares(
    doors: Door, options: dict[str, Any]
) -> None:
    engine = pooled_engine(doors)
    derived = engine.execution_options(**options)
    await without_preset(doors, derived)  # SQLAlchemy writes its own default into the driver as it takes an option back
    await left_behind(doors, engine)
    async with doors.enter(derived.connect()) as one, doors.enter(derived.connect()) as two:
        default = await in_force(doors, one)
        await in_force(doors, two)
    before = await left_behind(doors, engine)
    for preset in PRESETS.values():
        if preset.deferrable is None and "postgresql_deferrable" in options and preset.isolation is not None:
            continue
        async with doors.scope(doors.factory(derived), preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        assert await left_behind(doors, engine) == before


@on_postgresql
async def test_two_engines_of_one_pool_share_it_without_disturbing_each_other(doors: Door) -> None:
    engine = pooled_engine(doors)
    before = await left_behind(doors, engine)
    default = await without_preset(doors, engine)
    derived = engine.execution_options(mine=True)
    asked = Preset("SERIALIZABLE", read_only=True, lock_timeout=3)
    for bind in (derived, engine, derived.execution_options(more=True)):
        with doors.statements(engine) as sql:
            async with doors.scope(doors.factory(bind), preset=asked) as session:
                assert await in_force(doors, session) == expected(doors, asked, default)
        assert len([line for line in sql if "set_config" in line]) == 1
        assert await left_behind(doors, engine) == before


@on_postgresql
async def test_settings_of_the_users_connection_come_back_after_timeouts(doors: Door) -> None:
    engine = pooled_engine(doors)

    @event.listens_for(doors.sync_engine_of(engine), "connect")
    def mine(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("SET statement_timeout = '11s'")
        cursor.close()
        dbapi_connection.commit()

    before = await left_behind(doors, engine)
    assert {state["statement_timeout"] for state in before} == {"11s"}
    async with doors.scope(doors.factory(engine), statement_timeout=2, idle_timeout=5) as session:
        settings = await in_force(doors, session)
        assert (settings["statement_timeout"], settings["idle_in_transaction_session_timeout"]) == ("2s", "5s")
    assert await left_behind(doors, engine) == before


async def test_scopes_with_and_without_presets_take_turns_on_one_connection(doors: Door) -> None:
    engine = doors.make_engine(pool_size=1, max_overflow=0)
    default = await without_preset(doors, engine)
    Session = doors.factory(engine)
    for preset in PRESETS.values():
        async with doors.scope(Session, preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        async with doors.scope(Session) as session:
            assert await in_force(doors, session) == default
        async with doors.session(Session) as session:
            assert await in_force(doors, session) == default


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("preset", [None, SERIALIZABLE], ids=["no preset", "serializable"])
async def test_the_first_scopes_of_a_factory_opened_together_have_one_connection_each(
    doors: Door, preset: Preset | None
) -> None:
    """In threads only: each makes what it needs of the engine, and must not change it under the other's feet."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            Session = doors.factory()
            meet = doors.barrier(4)

            async def body(meet: Any = meet, Session: Any = Session) -> None:
                await meet.wait()
                async with doors.scope(Session, preset=preset) as session:
                    bind = session.get_bind()
                    await meet.wait()
                    assert session.get_bind() is bind

            await doors.together(*(body() for _ in range(4)))
    finally:
        sys.setswitchinterval(interval)


async def test_a_plain_session_of_the_same_factory_knows_nothing_of_the_factorys_preset(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    async with doors.session(doors.factory(preset=REPORT)) as session:
        assert await in_force(doors, session) == default


async def test_scopes_with_other_presets_run_at_the_same_time(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    asked = [READ_ONLY, SNAPSHOT, REPORT]
    all_here = doors.barrier(len(asked))

    async def body(preset: Preset) -> None:
        async with doors.scope(preset=preset) as session:
            await all_here.wait()
            assert await in_force(doors, session) == expected(doors, preset, default)
            await all_here.wait()

    await doors.together(*(body(preset) for preset in asked))
