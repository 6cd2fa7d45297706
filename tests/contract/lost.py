"""Losing connections and answers, for the tests of retry and commit. The faults themselves: tests/support/faults.py."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import text

from sessionkit import Retry, commits, on_commit, on_rollback
from tests.support.faults import Fault, FaultProxy
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

# What a COMMIT can meet, and whether the server carries it out.
LOST_COMMITS = {
    Fault.LOSE: False,
    Fault.LOSE_REPLY: True,
}
SILENT_COMMITS = {
    Fault.SWALLOW: False,
    Fault.SWALLOW_REPLY: True,
}


class Link(NamedTuple):
    """A way to the door's database with a proxy in it."""

    proxy: FaultProxy
    engine: Any
    factory: Any


@contextmanager
def link(doors: Door, **options: Any) -> Iterator[Link]:
    """Give a factory whose connections go through a proxy. `options`: of the factory; `connect_args` of the engine."""
    server = doors.database.server  # type: ignore[attr-defined]
    engine_options = {name: options.pop(name) for name in ("connect_args", "pool_pre_ping") if name in options}
    with FaultProxy(server.host, server.port) as proxy:
        engine = doors.make_engine(port=proxy.port, **engine_options)
        yield Link(proxy, engine, doors.factory(engine, **options))


async def create_markers(doors: Door, engine: Any = None) -> None:
    await doors.twin(commits.create_table, commits.async_create_table)(engine or doors.engine)


async def markers(doors: Door) -> list[tuple[str, str]]:
    return [(str(key), str(state)) for key, state in await doors.rows("SELECT key, state FROM sessionkit_commit")]


async def settled(doors: Door) -> None:
    """Have a connection in the pool, and nothing of a cancelled one left: see test_cancellation.py."""
    gc.collect()
    async with doors.connect():
        pass


async def slow_down_commits(doors: Door) -> None:
    """Have a COMMIT that has written users wait for whoever holds the advisory lock 1."""
    await doors.write(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$"
    )
    await doors.write(
        "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )


async def somebody_waits_for_a_lock(doors: Door, number: int = 1) -> None:
    """Wait until a backend of the test's database, or so many of them, wait for a lock."""
    # The pause stands alone: joined to what is looked for, it would not be made where nothing is found.
    looking = (
        "SELECT (SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock') FROM pg_sleep(0.02)"
    )
    for _ in range(1000):
        if await doors.scalar(text(looking)) >= number:
            return
    raise AssertionError(f"there were never {number} who waited for a lock")


async def backend_is_gone(doors: Door, pid: int) -> None:
    """Wait until a backend has ended."""
    for _ in range(1000):
        if not await doors.scalar(
            text("SELECT count(*) FROM pg_stat_activity, pg_sleep(0.02) WHERE pid = :pid"), pid=pid
        ):
            return
    raise AssertionError(f"backend {pid} is still there")


FAULTS = pytest.mark.parametrize("fault", LOST_COMMITS, ids=lambda fault: fault.name)

RETRY = Retry(5, wait=0.001)


class Log:
    """A unit that writes one row for each of its runs, and notes what it is told."""

    def __init__(self) -> None:
        self.runs = 0
        self.hooks: list[str] = []

    async def body(self, session: Any) -> int:
        self.runs += 1
        run = self.runs
        session.add(User(name=f"run {run}"))
        on_commit(lambda: self.hooks.append(f"commit {run}"))
        on_rollback(lambda: self.hooks.append(f"rollback {run}"))
        return run
