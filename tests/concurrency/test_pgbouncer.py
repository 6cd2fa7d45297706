"""Behind a pooler that works by transaction, a preset is in force in its transaction and nowhere else.

PgBouncer hands a server connection on after each COMMIT and does not reset it: what a client has SET, the next client gets.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit.integrations.application_name import name_transactions
from tests.contract.breaking import names
from tests.contract.lost import create_markers, markers
from tests.contract.settings import PRESETS, expected, in_force
from tests.support.models import Pledge, User
from tests.support.pgbouncer import SERVER_CONNECTIONS, connect_args

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from sessionkit import Preset
    from tests.support.doors import Door

pytestmark = [pytest.mark.pgbouncer, pytest.mark.doors(backend="postgresql")]

WORKERS = 10
SCOPES = 200
MIXED: list[Preset | None] = [None, *PRESETS.values(), PRESETS["all"].replace(idle_timeout=8)]


class Mine(Exception):
    pass


def pooled(doors: Door, port: int, size: int = WORKERS) -> Any:
    return doors.make_engine(pool_size=size, max_overflow=0, connect_args=connect_args(port, doors))


async def server_connections(doors: Door, engine: Any) -> AsyncIterator[AsyncConnection]:
    """Give a connection on each of the server connections: as many transactions at once as there are."""
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(doors.enter(engine.connect())) for _ in range(SERVER_CONNECTIONS)
        ]
        pids = {(await one.execute(text("SELECT pg_backend_pid()"))).scalar_one() for one in connections}
        assert len(pids) == SERVER_CONNECTIONS
        for connection in connections:
            yield connection


async def settings_everywhere(doors: Door, engine: Any) -> list[Any]:
    """Return what a plain transaction gets on each server connection, and what was ever SET on it."""
    changed = text("SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY name")
    found = [
        (await in_force(doors, connection), (await connection.execute(changed)).all())
        async for connection in server_connections(doors, engine)
    ]
    return sorted(found, key=str)


async def test_two_hundred_scopes_of_mixed_presets_leak_no_setting(doors: Door, pgbouncer_port: int) -> None:
    async with doors.connect() as direct:
        default = await in_force(doors, direct)
    engine = pooled(doors, pgbouncer_port)
    before = await settings_everywhere(doors, engine)
    assert [settings for settings, _ in before] == [default] * SERVER_CONNECTIONS
    Session = doors.factory(engine)

    async def worker(number: int) -> None:
        dice = random.Random(number)
        for turn in range(SCOPES // WORKERS):
            preset = dice.choice(MIXED)
            try:
                async with doors.scope(Session, preset=preset) as session:
                    asked = default if preset is None else expected(doors, preset, default)
                    assert await in_force(doors, session) == asked
                    if asked["transaction_read_only"] == "off":
                        session.add(User(name=f"{number} {turn}"))
                        await session.flush()
                    assert await in_force(doors, session) == asked
                    how = dice.random()
                    if how < 0.1:
                        raise Mine
                    if how < 0.2:
                        await session.execute(text("SELECT * FROM no_such_table"))
            except Mine:
                pass
            except DBAPIError as error:
                # 42P01 is ours; a serializable writer may also have been the one to give way.
                assert getattr(error.orig, "sqlstate", getattr(error.orig, "pgcode", None)) in {"42P01", "40001"}

    await doors.together(*(worker(number) for number in range(WORKERS)))
    assert await settings_everywhere(doors, engine) == before


async def test_a_read_only_scope_inside_another_restricts_its_own_transaction_only(
    doors: Door, pgbouncer_port: int
) -> None:
    engine = pooled(doors, pgbouncer_port)
    before = await settings_everywhere(doors, engine)
    Session = doors.factory(engine)
    for _ in range(2 * SERVER_CONNECTIONS):
        async with doors.scope(Session) as session:
            async with doors.scope(Session, read_only=True) as inner:
                assert (await in_force(doors, inner))["transaction_read_only"] == "on"
            assert (await in_force(doors, session))["transaction_read_only"] == "off"
    assert await settings_everywhere(doors, engine) == before


async def test_every_unit_commits_its_own_marker(doors: Door, pgbouncer_port: int) -> None:
    await create_markers(doors)
    engine = pooled(doors, pgbouncer_port)
    Session = doors.factory(engine, verify_commit=True)

    async def worker(number: int) -> None:
        for turn in range(4):
            try:
                async with doors.scope(Session) as session:
                    session.add(User(name=f"{number} {turn}"))
                    if turn % 2:
                        session.add(Pledge(account_id=1))  # which COMMIT refuses
            except IntegrityError:
                assert turn % 2

    await doors.together(*(worker(number) for number in range(WORKERS)))
    assert len(await markers(doors)) == len(await names(doors)) == 2 * WORKERS


async def test_what_a_client_sets_for_its_session_would_be_seen_here(doors: Door, pgbouncer_port: int) -> None:
    """The calibration: this is the leak that the others look for."""
    engine = pooled(doors, pgbouncer_port)
    before = await settings_everywhere(doors, engine)
    async with doors.enter(engine.connect()) as connection:
        await connection.execute(text("SET statement_timeout = '7s'"))
        await connection.commit()
    try:
        assert await settings_everywhere(doors, engine) != before
    finally:
        async for connection in server_connections(doors, engine):
            await connection.execute(text("RESET statement_timeout"))
            await connection.commit()


async def test_the_name_of_a_transaction_is_that_of_its_scope_only(doors: Door, pgbouncer_port: int) -> None:
    engine = pooled(doors, pgbouncer_port)
    before = await settings_everywhere(doors, engine)
    Session = doors.factory(name_transactions(engine))
    shown = text("SELECT current_setting('application_name')")
    async with doors.scope(Session) as session:
        unnamed = (await session.execute(shown)).scalar_one()

    async def worker(number: int) -> None:
        for turn in range(10):
            name = f"{number} {turn}" if turn % 2 else None
            async with doors.scope(Session, name=name) as session:
                assert (await session.execute(shown)).scalar_one() == (name or unnamed)

    await doors.together(*(worker(number) for number in range(WORKERS)))
    assert await settings_everywhere(doors, engine) == before


CLIENTS = 200


async def test_a_mutex_lets_in_one_of_two_hundred_clients_at_a_time_and_leaves_nothing(
    doors: Door, pgbouncer_port: int
) -> None:
    """A lock of the session would stay on a server connection, which the next client gets."""
    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'ann', 0)")
    factory = doors.factory(pooled(doors, pgbouncer_port, CLIENTS))

    async def client() -> None:
        async with doors.scope(factory, mutex=("counter", 1)) as session:
            balance = (await session.execute(text("SELECT balance FROM accounts"))).scalar_one()
            await session.execute(text("UPDATE accounts SET balance = :more").bindparams(more=balance + 1))

    await doors.together(*[client for _ in range(CLIENTS)])
    assert await doors.scalar("SELECT balance FROM accounts") == CLIENTS
    left = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' AND datname = "
    assert await doors.scalar(f"{left}current_database()") == 0
