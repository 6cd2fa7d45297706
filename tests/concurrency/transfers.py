"""A program that moves money between two databases in two phases, and can be told when to kill itself.

    python -m tests.concurrency.transfers DRIVER URL1 URL2 AMOUNT [STEP]

STEP is ``<1|2> <PREPARE|COMMIT> <before|after>``: which database, which of the two statements, which side of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, NullPool, create_engine, event, update
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import async_sessionmaker, sessionmaker
from tests.support.models import Account, Pledge

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = [
    f"{database} {statement} {side}"
    for statement in ("PREPARE", "COMMIT")
    for database in (1, 2)
    for side in ("before", "after")
]


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(engines: list[Engine], step: str, act: Callable[[], None] = die) -> None:
    database, word, side = step.split()

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(word) and "PREPARE" in statement:
            act()

    name = "before_cursor_execute" if side == "before" else "after_cursor_execute"
    event.listen(engines[int(database) - 1], name, look)


TAKE = update(Account).where(Account.id == 1)
# A mapped class of its own for the second database, with a statement on the same table there.
GIVE = update(Account).where(Account.id == 1)


def sync_transfer(engines: list[Engine], amount: int) -> None:
    factory = sessionmaker(binds={Account: engines[0], Pledge: engines[1]}, twophase=True)
    with factory.scope() as session:
        session.execute(TAKE.values(balance=Account.balance - amount))
        session.execute(GIVE.values(balance=Account.balance + amount), bind_arguments={"bind": engines[1]})


async def async_transfer(engines: list[Any], amount: int) -> None:
    factory = async_sessionmaker(binds={Account: engines[0], Pledge: engines[1]}, twophase=True)
    async with factory.scope() as session:
        await session.execute(TAKE.values(balance=Account.balance - amount))
        await session.execute(
            GIVE.values(balance=Account.balance + amount), bind_arguments={"bind": engines[1].sync_engine}
        )


def main(driver: str, first: str, second: str, amount: str, step: str | None = None) -> None:
    if driver == "asyncpg":
        engines = [create_async_engine(url, poolclass=NullPool) for url in (first, second)]
        if step is not None:
            arm([engine.sync_engine for engine in engines], step)
        asyncio.run(async_transfer(engines, int(amount)))
    else:
        sync_engines = [create_engine(url, poolclass=NullPool) for url in (first, second)]
        if step is not None:
            arm(sync_engines, step)
        sync_transfer(sync_engines, int(amount))


if __name__ == "__main__":
    main(*sys.argv[1:])
