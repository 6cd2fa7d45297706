"""Ways to break things on purpose: driver calls that fail, statements that fail or stop half-way, cancellations."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.util import await_only

from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tests.support.doors import Door


# Statements and flushes that fail and are swallowed


async def swallow_failed_flush(session: AsyncSession, name: str = "taken") -> IntegrityError:
    """Flush a user whose name is taken (see `take`), and swallow what comes of it."""
    session.add(User(name=name))
    try:
        await session.flush()
    except IntegrityError as error:
        return error
    raise AssertionError("the flush did not fail")


async def swallow_failed_statement(session: AsyncSession | AsyncConnection, name: str = "taken") -> DBAPIError:
    """Insert a user whose name is taken (see `take`), and swallow what comes of it."""
    try:
        await session.execute(insert(User).values(name=name))
    except DBAPIError as error:
        return error
    raise AssertionError("the statement did not fail")


async def take(doors: Door, name: str = "taken") -> None:
    """Commit a user, whose name can be had no more."""
    await doors.write(insert(User).values(name=name))


async def names(doors: Door) -> list[str]:
    """Return the committed names, but for the one that `take` took."""
    return [name for (name,) in await doors.rows(select(User.name).order_by(User.id)) if name != "taken"]


# Driver calls that fail


@asynccontextmanager
async def failing_driver_call(
    doors: Door, method: str, failure: BaseException, *, after: bool = False
) -> AsyncIterator[list[str]]:
    """Have the dialect's `method` (do_commit, do_rollback, ...) fail once, before or after it was carried out."""
    async with doors.connect():
        pass  # the first connection of an engine calls them too
    dialect: Any = doors.sync_engine.dialect
    original: Callable[..., Any] = getattr(dialect, method)
    calls: list[str] = []

    def call(*args: Any, **kw: Any) -> Any:
        calls.append(method)
        if len(calls) == 1:
            if after:
                original(*args, **kw)
            raise failure
        return original(*args, **kw)

    setattr(dialect, method, call)
    try:
        yield calls
    finally:
        delattr(dialect, method)
    assert calls, f"{method} was never called"


@contextmanager
def failing_statement(doors: Door, start: str, failure: BaseException, *, times: int = 1) -> Iterator[list[str]]:
    """Have the driver refuse statements that start so, as if it had raised `failure`; what was refused was not sent."""
    refused: list[str] = []

    def refuse(_cursor: Any, statement: str, _parameters: Any, _context: Any) -> None:
        if statement.startswith(start) and len(refused) < times:
            refused.append(statement)
            raise failure

    engine = doors.sync_engine
    event.listen(engine, "do_execute", refuse)
    try:
        yield refused
    finally:
        event.remove(engine, "do_execute", refuse)
    assert refused, f"no statement began with {start}"


def driver_error(doors: Door, message: str = "the driver says no") -> Exception:
    """Return an OperationalError of the door's driver, which SQLAlchemy wraps as it does with a real one."""
    error: type[Exception] = doors.sync_engine.dialect.loaded_dbapi.OperationalError
    return error(message)


# Connections that die


async def backend_pid(session: AsyncSession) -> int:
    pid: int = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    return pid


async def kill_backend(doors: Door, pid: int) -> None:
    """End a PostgreSQL backend, and wait until it is gone."""
    await doors.write("SELECT pg_terminate_backend(:pid, 10000)", pid=pid)


# Statements that stop half-way


class Gate:
    """Statements that contain `word` stop here, before the driver gets them, until the gate opens."""

    def __init__(self, doors: Door) -> None:
        self._doors = doors
        self._open = doors.event()
        self.reached = doors.event()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.reached.set()
        if self._doors.colour == "async":
            await_only(self._open.wait())
            return
        inner = self._open._event  # type: ignore[attr-defined]
        assert isinstance(inner, threading.Event)
        assert inner.wait(30), "the gate was not opened"


@asynccontextmanager
async def gate(doors: Door, word: str = "gated") -> AsyncIterator[Gate]:
    """Stop statements that contain `word` (put it into a comment) inside the session that sends them."""
    made = Gate(doors)

    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if word in statement:
            made.pass_through()

    engine = doors.sync_engine
    event.listen(engine, "before_cursor_execute", stop)
    try:
        yield made
    finally:
        made.open()
        with suppress(Exception):
            event.remove(engine, "before_cursor_execute", stop)


GATED = text("SELECT 1 /* gated */")


# Cancelling


class Cancelled:
    """Awaits a coroutine, and cancels the task that does so at some of its awaits, counted from 0.

    `by`: what is called in the place of `task.cancel()`, and leads to it: a timeout that passes, a sibling that fails.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *awaits: int, by: Callable[[], None] | None = None) -> None:
        self._coroutine = coroutine
        self._awaits = awaits
        self._by = by
        self.done = 0
        """How many cancellations were asked for."""

    def __await__(self) -> Generator[Any, Any, Any]:
        number = 0
        resume: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            if number in self._awaits:
                self.done += 1
                task = asyncio.current_task()
                assert task is not None
                (self._by or task.cancel)()
            number += 1
            try:
                yield waits_for
                resume = partial(self._coroutine.send, None)
            except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine
                resume = partial(self._coroutine.throw, error)
