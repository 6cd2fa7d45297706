"""Units of mixed tenants on one connection, and behind a pooler: no row of another tenant is seen, and nothing is left.

`SESSIONKIT_LONG=1` runs 10,000 units through each driver; otherwise there are 300.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import REQUIRED, SYSTEM, Retry
from sessionkit.errors import classify
from tests.contract.cancelling import cut
from tests.contract.tenants import ROLE, TENANT, create_notes
from tests.support.pgbouncer import SERVER_CONNECTIONS, connect_args

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
BATCH = 25
UNITS = 10_000 if LONG else 300
WORKERS = 5
TENANTS = ("a", "b", 'it\'s \\ "c"\n')

pytestmark = [pytest.mark.doors(backend="postgresql"), pytest.mark.timeout(1800 if LONG else 180)]

WHAT_IS_SET = text(f"SELECT current_setting('{TENANT}', true), current_user = '{ROLE}'")
WHOSE = text("SELECT DISTINCT tenant FROM notes")
INSERT = text("INSERT INTO notes (tenant, body) VALUES (:tenant, 'new')")


class Mine(Exception):
    pass


class Watch:
    """Units of tenants, and what they have seen that they should not."""

    def __init__(self, doors: Door, engine: Any) -> None:
        self.doors = doors
        self.Session = doors.factory(engine, settings={TENANT: REQUIRED}, role=ROLE)
        self.Plain = doors.factory(engine)
        self.foreign: list[Any] = []
        self.left: list[Any] = []
        self.done: Counter[str] = Counter()

    async def sees_only(self, session: Any, tenant: str) -> None:
        found = set((await session.execute(WHOSE)).scalars())
        if not found <= {tenant}:
            self.foreign.append((tenant, found))

    # Each kind of unit: what it does, and how it ends.

    async def reads_and_writes(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Session, settings={TENANT: tenant}, lock_timeout=30) as session:
            await self.sees_only(session, tenant)
            await session.execute(INSERT, {"tenant": tenant})
            await self.sees_only(session, tenant)

    async def fails(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Session, settings={TENANT: lambda: tenant}) as session:
            await self.sees_only(session, tenant)
            raise Mine

    async def writes_for_another(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Session, settings={TENANT: tenant}) as session:
            await session.execute(INSERT, {"tenant": other})
            self.foreign.append((tenant, "wrote", other))

    async def changes_in_a_savepoint(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Session, settings={TENANT: tenant}) as session:
            async with self.doors.scope(self.Session, settings={TENANT: other}, propagation="savepoint"):
                await self.sees_only(session, other)
                await session.execute(INSERT, {"tenant": other})
            await self.sees_only(session, tenant)
            try:
                async with self.doors.scope(self.Session, settings={TENANT: other}, propagation="savepoint"):
                    await self.sees_only(session, other)
                    await session.execute(text("SELECT * FROM no_such_table"))
            except DBAPIError as error:
                assert classify(error).code == "42P01"
            await self.sees_only(session, tenant)
            await session.execute(INSERT, {"tenant": tenant})

    async def is_run_again(self, tenant: str, other: str) -> None:
        tenants = iter([other, tenant])
        asked: list[str] = []

        def ask() -> str:
            asked.append(next(tenants))
            return asked[-1]

        async def body(session: Any) -> None:
            await self.sees_only(session, asked[-1])
            if len(asked) == 1:
                raise Mine

        retry = Retry(2, wait=0, on=Mine)
        await self.doors.decorate(body, self.Session, settings={TENANT: ask}, retry=retry)()

    async def runs_without(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Session, settings=SYSTEM, name="all") as session:
            found = (await session.execute(WHOSE)).scalars().all()
            if found:  # with the role, and so under the policy, but of no tenant
                self.foreign.append(("nobody", found))

    async def looks_what_is_left(self, tenant: str, other: str) -> None:
        async with self.doors.scope(self.Plain) as session:
            (of_tenant, of_role) = (await session.execute(WHAT_IS_SET)).one()
            if of_tenant or of_role:
                self.left.append((of_tenant, of_role))

    @property
    def kinds(self) -> list[Callable[[str, str], Awaitable[None]]]:
        return [
            self.reads_and_writes,
            self.fails,
            self.writes_for_another,
            self.changes_in_a_savepoint,
            self.is_run_again,
            self.runs_without,
            self.looks_what_is_left,
        ]

    async def one(self, dice: random.Random) -> None:
        unit: Any = dice.choice(self.kinds)
        tenant, other = dice.sample(TENANTS, 2)
        cancels = self.doors.colour == "async" and dice.random() < 0.3
        try:
            if cancels:
                seen = await cut(unit(tenant, other), dice.randrange(30))
                if seen.error is not None and not isinstance(seen.error, asyncio.CancelledError):
                    raise seen.error
                self.done["cancelled"] += seen.error is not None
            else:
                await unit(tenant, other)
        except Mine:
            self.done["failed"] += 1
        except DBAPIError as error:
            assert classify(error).code == "42501", error
            self.done["refused"] += 1
        self.done[unit.__name__] += 1

    async def run(self, seed: int = 0) -> None:
        async def worker(number: int) -> None:
            dice = random.Random(seed + number)
            for _ in range(BATCH // WORKERS):
                await self.one(dice)

        for batch in range(UNITS // BATCH):  # what runs together is given up after 30 s
            workers = range(batch * WORKERS, (batch + 1) * WORKERS)
            await self.doors.together(*[lambda number=number: worker(number) for number in workers])
        assert self.foreign == []
        assert self.left == []
        assert min(self.done[kind.__name__] for kind in self.kinds) > UNITS // 20
        assert self.done["failed"] > UNITS // 20
        assert self.done["refused"] > UNITS // 40
        if self.doors.colour == "async":
            assert self.done["cancelled"] > UNITS // 20


async def test_on_one_connection_no_tenant_sees_a_row_of_another_and_nothing_is_left(doors: Door) -> None:
    await create_notes(doors, *TENANTS)
    await Watch(doors, doors.make_engine(pool_size=1, max_overflow=0, pool_timeout=60)).run()
    assert {tenant for (tenant,) in await doors.rows("SELECT DISTINCT tenant FROM notes")} == set(TENANTS)


@pytest.mark.pgbouncer
async def test_behind_a_pooler_neither(doors: Door, pgbouncer_port: int) -> None:
    await create_notes(doors, *TENANTS)
    engine = doors.make_engine(pool_size=WORKERS, max_overflow=0, connect_args=connect_args(pgbouncer_port, doors))
    watch = Watch(doors, engine)
    await watch.run(seed=100)
    barrier = doors.barrier(SERVER_CONNECTIONS)

    async def look() -> None:
        async with doors.enter(engine.connect()) as connection:
            row = (await connection.execute(WHAT_IS_SET)).one()
            await barrier.wait()  # so that each has a server connection of its own
            watch.left.extend([tuple(row)] if any(row) else [])

    await doors.together(*[look for _ in range(SERVER_CONNECTIONS)])
    assert watch.left == []


@pytest.mark.pgbouncer
async def test_what_a_client_sets_for_its_session_would_be_seen_here(doors: Door, pgbouncer_port: int) -> None:
    """The calibration: this is the leak that the others look for."""
    await create_notes(doors)
    engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args=connect_args(pgbouncer_port, doors))
    async with doors.enter(engine.connect()) as connection:
        await connection.execute(text(f"SET {TENANT} = 'a'"))
        await connection.commit()
    watch = Watch(doors, engine)
    for _ in range(SERVER_CONNECTIONS):
        await watch.looks_what_is_left("a", "b")
    assert watch.left
    async with doors.enter(engine.connect()) as connection:
        await connection.execute(text(f"RESET {TENANT}"))
        await connection.commit()
