"""`once=` under fire: many calls with one key at the same moment, bodies that fail, processes and backends that are killed.

Whatever happens, a key has one effect, and every answer that is given is the same. `SESSIONKIT_LONG=1` runs 10,000 keys in
all, through each driver, at each level, with 2, 8 and 50 calls of each at once; otherwise there are some hundred.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import Retry, async_sessionmaker, on_commit, sessionmaker, sqlite
from tests.contract.lost import create_markers
from tests.contract.once import Payments, keys, paid
from tests.support.models import Account
from tests.support.postgres import ROOT

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
ROUNDS = {2: 400, 8: 130, 50: 30} if LONG else {2: 8, 8: 4, 50: 1}
AT_A_TIME = {2: 40, 8: 13, 50: 1}
"""How many keys the calls share before they are looked at: bodies that run together have half a minute."""

pytestmark = pytest.mark.timeout(3600 if LONG else 180)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("calls", [2, 8, 50])
async def test_calls_with_one_key_have_one_effect_and_equal_answers(doors: Door, isolation: Any, calls: int) -> None:
    await create_markers(doors)
    engine = doors.make_engine(pool_size=calls, max_overflow=0, pool_timeout=120)
    if doors.backend == "sqlite":
        sqlite.configure(engine, busy_timeout=120)
    dice = random.Random(calls)
    rounds = ROUNDS[calls]
    fails = [dice.random() < 0.4 for _ in range(rounds)]
    hooks: Counter[int] = Counter()

    async def pay(session: AsyncSession, number: int) -> dict[str, int]:
        account = Account(owner=str(number))
        session.add(account)
        await session.flush()
        if fails[number]:
            fails[number] = False
            raise ZeroDivisionError
        on_commit(lambda: hooks.update([number]))
        return {"number": number, "id": account.id}

    factory = doors.factory(engine)
    retry = Retry(200, wait=0.001, wait_max=0.05)
    run = doors.decorate(pay, factory, once=lambda number: f"pay:{number}", isolation=isolation, retry=retry)
    for begin in range(0, rounds, AT_A_TIME[calls]):
        numbers = range(begin, min(begin + AT_A_TIME[calls], rounds))
        barrier = doors.barrier(calls)

        async def body(numbers: range = numbers, barrier: Any = barrier) -> list[dict[str, int] | None]:
            answers: list[dict[str, int] | None] = []
            for number in numbers:
                await barrier.wait()
                try:
                    answers.append(await run(number))
                except ZeroDivisionError:
                    answers.append(None)
            return answers

        for answers in zip(*await doors.together(*[body] * calls), strict=True):
            given = [answer for answer in answers if answer is not None]
            assert len(given) >= calls - 1
            assert len({answer["id"] for answer in given}) == 1
    effects = Counter(owner for (owner,) in await doors.rows(select(Account.owner)))
    assert effects == {str(number): 1 for number in range(rounds)}
    assert hooks == dict.fromkeys(range(rounds), 1)


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("expired", [False, True], ids=["new key", "key over its time"])
async def test_a_backend_that_is_killed_at_any_statement_leaves_one_effect(doors: Door, expired: bool) -> None:
    await create_markers(doors)
    unit = Payments()
    before = 0
    for at in range(1, 8):
        pay = unit.unit(doors, retry=Retry(5, wait=0.001))
        order = 100 + at
        if expired:
            await pay(order)
            before += 1
            await doors.write("UPDATE sessionkit_once SET expires_at = now() - interval '1 s'")
        pids: list[int] = []
        seen = [0]

        def strike(connection: Any, cursor: Any, *_: Any, at: int = at, pids: Any = pids, seen: Any = seen) -> None:
            if pids:
                return
            seen[0] += 1
            if seen[0] == at:
                pids.append(
                    connection.connection.driver_connection.info.backend_pid
                    if doors.driver != "asyncpg"
                    else connection.connection.driver_connection.get_server_pid()
                )
                terminate(doors, pids[0])

        event.listen(doors.sync_engine, "before_cursor_execute", strike)
        try:
            first = await pay(order)
        finally:
            event.remove(doors.sync_engine, "before_cursor_execute", strike)
        assert await pay(order) == first
        assert await paid(doors) == before + 1
        before += 1
    assert len(unit.hooks) == before


def terminate(doors: Door, pid: int) -> None:
    with doors.database.observer.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})


# -- processes that are killed --------------------------------------------------------------------------------------

MOMENTS = [("claim", "before"), ("claim", "after"), ("body", "after"), ("result", "before"), ("commit", "before")]
MOMENTS += [("commit", "after")]


def main(url: str, at: str, when: str, isolation: str) -> None:
    """Run the unit in a process of its own, which kills itself before or after one of its statements."""
    words = {"claim": "INSERT INTO sessionkit_once", "body": "INSERT INTO accounts", "result": "UPDATE sessionkit_once"}

    def strike() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def listen(engine: Any) -> None:
        if engine.dialect.name == "sqlite":
            sqlite.configure(engine, busy_timeout=60)
        if at == "commit":
            if when == "before":
                event.listen(engine, "commit", lambda _: strike())
            return

        def look(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if words[at] in statement:
                strike()

        event.listen(engine, f"{when}_cursor_execute", look)

    options: dict[str, Any] = {"once": lambda number: f"pay:{number}", "isolation": isolation, "retry": 5}
    if "aiosqlite" in url or "asyncpg" in url or "async" in url:
        asyncio.run(_async_main(url, listen, options, strike if (at, when) == ("commit", "after") else None))
        return
    engine = create_engine(url)
    listen(engine)

    def pay(session: Any, number: int) -> int:
        session.execute(insert(Account).values(owner=str(number)))
        return number

    run = sessionmaker(engine).scope(**options)(pay)
    run(7)
    strike()


async def _async_main(url: str, listen: Any, options: Any, then: Any) -> None:
    engine = create_async_engine(url)
    listen(engine.sync_engine)

    async def pay(session: Any, number: int) -> int:
        await session.execute(insert(Account).values(owner=str(number)))
        return number

    await async_sessionmaker(engine).scope(**options)(pay)(7)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(*arguments: str) -> bool:
    """Run the unit in a process; tell whether it has killed itself."""
    command = [sys.executable, "-m", "tests.concurrency.test_once_under_fire", *arguments]
    return subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"] if LONG else ["READ COMMITTED"])
@pytest.mark.parametrize(("at", "when"), MOMENTS)
async def test_a_process_that_is_killed_at_any_statement_leaves_one_effect(
    doors: Door, at: str, when: str, isolation: Any
) -> None:
    await create_markers(doors)
    url = doors.engine.url.render_as_string(hide_password=False)
    if doors.colour == "async" and doors.driver == "psycopg":
        url = url.replace("+psycopg:", "+psycopg_async:")
    arguments = [url, at, when, isolation]
    assert killed(*arguments)
    # COMMIT and what comes after it is done; before it, the server rolls back as soon as it sees that nobody is there.
    committed = at == "commit" and when == "after"
    assert await keys(doors) == ([("pay:7", "U")] if committed else [])

    ran: list[int] = []

    async def pay(session: AsyncSession, number: int) -> int:
        ran.append(number)
        await session.execute(insert(Account).values(owner=str(number)))
        return number

    if doors.backend == "sqlite":
        sqlite.configure(doors.engine, busy_timeout=60)
    run = doors.decorate(pay, once=lambda number: f"pay:{number}", isolation=isolation, retry=5)
    assert [await run(7), await run(7)] == [7, 7]
    assert (await paid(doors), len(ran)) == (1, 0 if committed else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
