"""Watches which transactions block a migration while it waits for a lock: afterwards nothing shows it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy.engine import Connection, Engine

    from ._errors import Blocker
    from ._servers import Server


@contextmanager
def watching(server: Server, connection: Connection, every: float) -> Generator[list[Blocker]]:
    """Poll what blocks a connection; the list holds the blockers seen last.

    Sync code uses a thread, async code a task, each with its own connection.
    """
    seen: list[Blocker] = []
    if server.pid is None:
        yield seen
        return
    pid = server.pid(connection)
    connection.rollback()

    def look(other: Connection) -> None:
        found = server.blockers(other, pid)
        other.rollback()
        if found:
            seen[:] = found

    with (_in_task if connection.dialect.is_async else _in_thread)(connection.engine, look, every):
        yield seen


@contextmanager
def _in_thread(engine: Engine, look: Callable[[Connection], None], every: float) -> Generator[None]:
    done = threading.Event()

    def run() -> None:
        # If watching fails, there is nothing to report; the user must see the migration's own error.
        with suppress(SQLAlchemyError), engine.connect() as connection:
            while not done.wait(every):
                look(connection)

    thread = threading.Thread(target=run, name="sessionkit-migration-watcher")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _in_task(engine: Engine, look: Callable[[Connection], None], every: float) -> Generator[None]:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.util import await_only

    done = asyncio.Event()

    async def run() -> None:
        with suppress(SQLAlchemyError):
            async with AsyncEngine(engine).connect() as connection:
                while not done.is_set():
                    await connection.run_sync(look)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(done.wait(), every)

    task = asyncio.get_running_loop().create_task(run())
    try:
        yield
    finally:
        done.set()
        await_only(task)
