"""Async code and threads: cancellation, shared sessions, ambient sessions."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Pool, event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.compare.peers._sqlalchemy import Account
from benchmarks.compare.questions._question import Question
from benchmarks.compare.stage import named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.compare.peer import Peer
    from benchmarks.compare.stage import Stage

INSERT = "INSERT INTO account (id, name, balance) VALUES ({0}, 'name {0}', 0)"


@contextmanager
def lent() -> Iterator[set[Any]]:
    """Follow which connections all pools have lent."""
    out: set[Any] = set()

    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        out.add(record)

    def checkin(_connection: Any, record: Any) -> None:
        out.discard(record)

    event.listen(Pool, "checkout", checkout)
    event.listen(Pool, "checkin", checkin)
    try:
        yield out
    finally:
        event.remove(Pool, "checkout", checkout)
        event.remove(Pool, "checkin", checkin)


def cancelled(stage: Stage, peer: Peer) -> str:
    peer.open_async()
    with lent() as out:
        return asyncio.run(_cancelled(stage, peer, out))


async def _cancelled(stage: Stage, peer: Peer, out: set[Any]) -> str:
    engine: Any = None
    # The second cancellation arrives a little later each time: at every step of what the first one set off.
    for steps in range(6):
        running = asyncio.Event()

        async def unit(number: int = steps, running: asyncio.Event = running) -> None:
            nonlocal engine
            async with peer.async_unit() as session:
                engine = session.get_bind().engine
                await session.execute(text(INSERT.format(number)))
                running.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(unit())
        begun = asyncio.create_task(running.wait())
        await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            begun.cancel()
            await task  # it could not even begin
        task.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    # What was shielded from the cancellation may still be on its way.
    for _ in range(50):
        if not out and not stage.open_transactions():
            break
        await asyncio.sleep(0.01)
    hanging = stage.open_transactions()
    await AsyncEngine(engine).dispose()
    if out or hanging:
        return f"connections not given back: {len(out)} of 6; transactions left open: {hanging}"
    return "rolled back, connections given back" if not stage.names() else "committed"


def shared(stage: Stage, peer: Peer) -> str:
    peer.open_async()
    return asyncio.run(_shared(stage, peer, begun=True))


def shared_from_the_start(stage: Stage, peer: Peer) -> str:
    peer.open_async()
    return asyncio.run(_shared(stage, peer, begun=False))


async def _shared(stage: Stage, peer: Peer, *, begun: bool) -> str:
    engine: Any = None
    errors: list[BaseException] = []

    async def unit() -> None:
        nonlocal engine
        async with peer.async_unit() as session:
            engine = session.get_bind().engine
            if begun:
                await session.execute(text("SELECT 1"))

            async def write(number: int) -> None:
                session.add(Account(id=number, name=f"name {number}", balance=0))
                await session.flush()

            results = await asyncio.gather(write(1), write(2), return_exceptions=True)
            errors.extend(result for result in results if isinstance(result, BaseException))

    try:
        await unit()
    except Exception as error:
        if engine is None:
            raise
        exit_ = f"; the exit raises {named(error)}"
    else:
        exit_ = ""
    await AsyncEngine(engine).dispose()
    left = {0: "nothing", 1: "one row", 2: "both rows"}[len(stage.names())]
    if not errors and not exit_:
        return f"served; {left} committed"
    return (
        f"one task gets {named(*errors)}{exit_}; {left} committed"
        if errors
        else f"no task fails{exit_}; {left} committed"
    )


def ambient(stage: Stage, peer: Peer) -> str:
    with peer.context(), peer.unit():
        own = peer.ambient()
        found: dict[str, object] = {}

        def look() -> None:
            with peer.context():
                found["thread"] = "its own" if peer.ambient() is not own else "the same"

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

        async def child() -> str:
            try:
                return "its own" if peer.ambient() is not own else "the same"
            except Exception as error:  # noqa: BLE001 - what is raised is the outcome
                return f"refused with {named(error)}"

        async def parent() -> str:
            return await asyncio.create_task(child())

        found["task"] = asyncio.run(parent())
    return f"thread: {found['thread']}; task: {found['task']}"


QUESTIONS = [
    Question(
        "async_cancelled",
        "An async unit is cancelled, and again while it cleans up",
        "Six units insert a row and wait. Each is cancelled twice; the second cancellation comes one step later for each.",
        cancelled,
    ),
    Question(
        "async_shared",
        "Two tasks use one session at the same time",
        "Inside a unit that has sent a statement, `asyncio.gather` runs two tasks, each of which adds an object and flushes.",
        shared,
    ),
    Question(
        "async_shared_from_the_start",
        "... which has not connected yet",
        "The same with a session that has sent nothing.",
        shared_from_the_start,
    ),
    Question(
        "ambient",
        "Where the ambient session is visible",
        "Inside an open unit, a new thread and a new task ask for the ambient session or connection.",
        ambient,
        backends=("sqlite",),
    ),
]
