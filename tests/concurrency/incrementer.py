"""Increments a row again and again, as one of several processes: `python -m tests.concurrency.incrementer '{...}'`.

Prints what it was told, as JSON: how many increments were acknowledged, how many ended with an unknown outcome, how
many hooks ran, how many attempts there were beyond the first, and what failed for good.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import Retry, async_sessionmaker, errors, on_commit, sessionmaker, sqlite
from tests.support.models import Account


@dataclass
class Task:
    """What one process is to do."""

    url: str
    count: int
    verify: bool = False
    attempts: int = 200
    tasks: int = 2


class Worker:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.told: Counter[str] = Counter()
        # Long enough for a server that restarts; a unit that waits for a connection is one that has not failed.
        self.options: dict[str, Any] = {
            "isolation": "SERIALIZABLE",
            "verify_commit": task.verify,
            "retry": Retry(task.attempts, wait=0.005, wait_max=0.2, before_retry=lambda _: self._count("retries")),
        }

    def _count(self, what: str) -> None:
        self.told[what] += 1

    def _failed(self, error: Exception) -> None:
        outcome = errors.outcome_of(error)
        if outcome == "unknown" and isinstance(error, errors.CommitOutcomeUnknown):
            self._count("unknown")
        else:
            meaning = errors.classify(error)
            self._count(f"{outcome} with {type(error).__name__}, {meaning.kind}: {error}")

    def run(self) -> None:
        engine = create_engine(self.task.url)
        if engine.dialect.name == "sqlite":
            sqlite.configure(engine, busy_timeout=60)

        @sessionmaker(engine).scope(**self.options)
        def increment(session: Any) -> None:
            account = session.scalars(select(Account).where(Account.id == 1)).one()
            account.balance += 1
            on_commit(lambda: self._count("hooks"))

        for _ in range(self.task.count):
            try:
                increment()
            except Exception as error:  # noqa: BLE001 - counted, and judged by the test
                self._failed(error)
            else:
                self._count("acknowledged")
        engine.dispose()

    async def async_run(self) -> None:
        engine = create_async_engine(self.task.url)

        @async_sessionmaker(engine).scope(**self.options)
        async def increment(session: Any) -> None:
            account = (await session.scalars(select(Account).where(Account.id == 1))).one()
            account.balance += 1
            on_commit(lambda: self._count("hooks"))

        async def some() -> None:
            for _ in range(self.task.count // self.task.tasks):
                try:
                    await increment()
                except Exception as error:  # noqa: BLE001 - counted, and judged by the test
                    self._failed(error)
                else:
                    self._count("acknowledged")

        async with asyncio.TaskGroup() as group:
            for _ in range(self.task.tasks):
                group.create_task(some())
        await engine.dispose()


def main() -> None:
    worker = Worker(Task(**json.loads(sys.argv[1])))
    if "asyncpg" in worker.task.url:
        asyncio.run(worker.async_run())
    else:
        worker.run()
    sys.stdout.write(json.dumps(worker.told))


if __name__ == "__main__":
    main()
