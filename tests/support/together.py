"""Several bodies at the same time: threads in the sync colours, tasks in the async ones; and what they meet at.

No body ever sleeps. Bodies order themselves by barriers and events, whose waits fail after `PATIENCE` seconds; when
one body fails, the barriers and events of its test break, so that the others fail at once instead of waiting for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.neutral import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

T = TypeVar("T")

PATIENCE = 30.0


class Broken(AssertionError):
    """Another body failed, or never came."""


class Body:
    """What `together` takes: a coroutine, or an `async def` without arguments."""

    def __init__(self, work: Coroutine[Any, Any, Any] | Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.coroutine = work if inspect.iscoroutine(work) else work()  # type: ignore[operator]


class Meeting(ABC):
    """A barrier or an event."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait for the others."""

    @abstractmethod
    def break_(self) -> None:
        """Send away all that wait or will wait."""


class ThreadBarrier(Meeting):
    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=PATIENCE)

    async def wait(self) -> None:
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError as error:
            raise Broken("not all came to the barrier") from error

    def break_(self) -> None:
        self._barrier.abort()


class TaskBarrier(Meeting):
    def __init__(self, parties: int) -> None:
        self._barrier = asyncio.Barrier(parties)
        self._broken = False

    async def wait(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                if self._broken:
                    await self._barrier.abort()
                await self._barrier.wait()
        except (asyncio.BrokenBarrierError, TimeoutError) as error:
            self.break_()
            raise Broken("not all came to the barrier") from error

    def break_(self) -> None:
        self._broken = True
        with suppress(RuntimeError):  # nobody waits if no loop runs
            task = asyncio.get_running_loop().create_task(self._barrier.abort())
            # Kept by the barrier, because the loop holds its tasks only weakly.
            self._aborting = task


class Event(Meeting):
    """Set once by one body, waited for by others. Setting it is sync in both colours."""

    @abstractmethod
    def set(self) -> None:
        """Let all that wait go on."""

    @abstractmethod
    def is_set(self) -> bool:
        """Tell whether it was set."""


class ThreadEvent(Event):
    def __init__(self) -> None:
        self._event = threading.Event()
        self._broken = False

    async def wait(self) -> None:
        came = self._event.wait(PATIENCE)
        if self._broken or not came:
            raise Broken("the event was not set")

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set() and not self._broken

    def break_(self) -> None:
        if not self._event.is_set():
            self._broken = True
            self._event.set()


class TaskEvent(Event):
    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._broken = False

    async def wait(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._event.wait()
        except TimeoutError as error:
            raise Broken("the event was not set") from error
        if self._broken:
            raise Broken("the event was not set")

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set() and not self._broken

    def break_(self) -> None:
        if not self._event.is_set():
            self._broken = True
            self._event.set()


class Meetings:
    """All that the bodies of one test may wait at."""

    def __init__(self) -> None:
        self._made: list[Meeting] = []

    def add(self, meeting: Meeting) -> None:
        self._made.append(meeting)

    def break_all(self) -> None:
        for meeting in self._made:
            meeting.break_()


class Outcomes:
    """What became of each body, and which error is the one to show."""

    def __init__(self, count: int, meetings: Meetings) -> None:
        self._meetings = meetings
        self._results: list[Any] = [None] * count
        # In the order of failing: the first failure is the reason of the later ones.
        self._errors: list[tuple[int, BaseException]] = []

    def done(self, number: int, result: Any) -> None:
        self._results[number] = result

    def failed(self, number: int, error: BaseException) -> None:
        self._errors.append((number, error))
        self._meetings.break_all()

    def give(self, *, return_exceptions: bool) -> list[Any]:
        if return_exceptions:
            for number, error in self._errors:
                self._results[number] = error
            return self._results
        real = [error for _, error in self._errors if not isinstance(error, Broken)]
        shown = real or [error for _, error in self._errors]
        if len(shown) == 1:
            raise shown[0]
        if shown:
            raise BaseExceptionGroup("several of the bodies failed", shown)
        return self._results


def in_threads(bodies: Sequence[Body], meetings: Meetings, *, return_exceptions: bool) -> list[Any]:
    """Drive each body in a thread of its own. A thread starts with an empty context, as a server's would."""
    outcomes = Outcomes(len(bodies), meetings)

    def run(number: int, body: Body) -> None:
        try:
            # An empty context, which a thread of some builds of Python does not have by itself.
            outcomes.done(number, contextvars.Context().run(drive, body.coroutine))
        except BaseException as error:  # noqa: BLE001 - handed to the test, which is the one to judge it
            outcomes.failed(number, error)

    threads = [
        # Daemons, so that a body that hangs fails its test and not the whole run.
        threading.Thread(target=run, args=(number, body), name=f"body-{number}", daemon=True)
        for number, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
    try:
        join(threads)
    finally:
        # If one hangs, the others are let go.
        meetings.break_all()
    return outcomes.give(return_exceptions=return_exceptions)


def join(threads: Sequence[threading.Thread]) -> None:
    """Wait for threads; fail with the place where they hang."""
    for thread in threads:
        thread.join(PATIENCE)
    hanging = [thread for thread in threads if thread.is_alive()]
    if hanging:
        raise AssertionError(f"after {PATIENCE:.0f} s these bodies still run:\n" + _stacks(hanging))


def _stacks(threads: Iterable[threading.Thread]) -> str:
    frames = sys._current_frames()
    return "\n".join(
        f"{thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threads
        if thread.ident in frames
    )


async def in_tasks(bodies: Sequence[Body], meetings: Meetings, *, return_exceptions: bool) -> list[Any]:
    """Run each body in a task of its own."""
    outcomes = Outcomes(len(bodies), meetings)

    async def run(number: int, body: Body) -> None:
        try:
            outcomes.done(number, await body.coroutine)
        except asyncio.CancelledError as error:
            # Ours when the patience is over; else it is a result like any other.
            outcomes.failed(number, error)
        except BaseException as error:  # noqa: BLE001 - handed to the test, which is the one to judge it
            outcomes.failed(number, error)

    tasks = [asyncio.create_task(run(number, body), name=f"body-{number}") for number, body in enumerate(bodies)]
    _, hanging = await asyncio.wait(tasks, timeout=PATIENCE)
    if hanging:
        others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
        places = ["and these threads:\n" + _stacks(others)]
        for task in hanging:
            places.append(f"{task.get_name()}:\n" + _where(task.get_coro()))
            task.cancel()
        await asyncio.wait(hanging, timeout=PATIENCE)
        raise AssertionError(f"after {PATIENCE:.0f} s these bodies still run:\n" + "\n".join(reversed(places)))
    return outcomes.give(return_exceptions=return_exceptions)


def _where(waiting: Any) -> str:
    """Return the chain of awaits of a coroutine. (`Task.get_stack()` knows its first link only.)"""
    lines = []
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        lines += traceback.format_list(
            [traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]
        )
        waiting = waiting.cr_await
    return "".join(lines)


def call_in_thread(fn: Callable[[], Any]) -> Any:
    """Call a function, or drive an `async def`, in another thread with an empty context."""
    return in_threads([Body(_as_coroutine(fn))], Meetings(), return_exceptions=False)[0]


async def call_in_thread_from_a_task(fn: Callable[[], Any]) -> Any:
    """Do the same from an event loop, which goes on meanwhile. An `async def` gets a loop of its own in its thread."""
    outcomes = Outcomes(1, Meetings())

    def work() -> Any:
        return asyncio.run(fn()) if inspect.iscoroutinefunction(fn) else fn()

    def run() -> None:
        try:
            outcomes.done(0, contextvars.Context().run(work))
        except BaseException as error:  # noqa: BLE001 - handed to the test, which is the one to judge it
            outcomes.failed(0, error)

    thread = threading.Thread(target=run, name="other-thread", daemon=True)
    thread.start()
    await beside_the_loop(lambda: join([thread]))
    return outcomes.give(return_exceptions=False)[0]


async def beside_the_loop(work: Callable[[], T]) -> T:
    """Call a function in a thread of its own, with an empty context, while the event loop goes on.

    Not in a pool of threads: with Python 3.11 on a busy machine a call was seen to lie in the pool's queue while all of its
    threads waited for one, until something else woke them.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():  # nobody waits any more
            settle(outcome)

    def run() -> None:
        told: tuple[Callable[[Any], None], Any]
        try:
            told = (done.set_result, contextvars.Context().run(work))
        except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
            told = (done.set_exception, error)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=run, name="beside-the-loop", daemon=True).start()
    return await done


async def _as_coroutine(fn: Callable[[], Any]) -> Any:
    value = fn()
    return await value if inspect.isawaitable(value) else value
