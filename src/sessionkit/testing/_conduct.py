"""One schedule: the units in threads and tasks of their own, of which one takes a step at a time.

A unit stops at the gate before each step, and goes on when it is its turn. Then all wait until it has come to its next
step, has ended, or is seen to wait: for a lock of another unit, as PostgreSQL tells, or because SQLite is busy. Nothing
is decided by the time that something takes; only a unit that comes to no step at all is given up after a while.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy.util import await_only

from ._explore import Taken
from ._schedule import freeze
from ._unit import BLOCKED, BUSY, DONE, PARKED, RUNNING, LoopThread, Ticket, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .._spi import _dialects
    from ._stage import Stage

__all__ = ["Chooser", "Conductor", "GivenUp", "Played"]

STEPS = 1000
"""How many steps a unit may take before it is taken for one that never ends."""

_here: contextvars.ContextVar[Unit | None] = contextvars.ContextVar("sessionkit_races", default=None)


class GivenUp(BaseException):
    """Raised in an abandoned unit, wherever it comes to a step."""


class Played(NamedTuple):
    """A schedule as it went.

    Attributes:
        order: whose turn it was.
        moves: what was done, with whose.
        taken: the same for the explorer.
        units: how they have ended.
    """

    order: tuple[int, ...]
    moves: list[tuple[int, _dialects.Move]]
    taken: list[Taken]
    units: list[Unit]


class Chooser(Protocol):
    """Decides whose turn it is."""

    def choose(self, pending: Mapping[int, Any]) -> int:
        """Return one of these units; the values are what its next step does."""
        ...

    def took(self, taken: Taken) -> None:
        """Take note of the step that it has taken."""
        ...


class Conductor:
    """Lets units take their steps one at a time. It is the gate that they pass.

    Args:
        step_timeout: how long a unit may take to come to its next step, in seconds.
    """

    def __init__(self, step_timeout: float) -> None:
        self._step_timeout = step_timeout
        self._changed = threading.Condition()
        self._units: list[Unit] = []
        self._loop: LoopThread | None = None
        self.stage: Stage | None = None

    # -- the gate ---------------------------------------------------------------------------------------------------

    def here(self) -> Unit | None:
        """Return the unit that runs here."""
        return _here.get()

    def before(self, unit: Unit, move: _dialects.Move, *, asynchronous: bool = False) -> None:
        """Wait for the unit's turn.

        Raises:
            GivenUp: it is not waited for any more.
        """
        if unit.given_up and move.effect.ends and move.statement != "COMMIT":
            return  # so that its sessions can close
        if asynchronous:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._park(unit, Ticket(move, lambda: _set(loop, future)))
            await_only(future)
        else:
            turn = threading.Semaphore(0)
            self._park(unit, Ticket(move, turn.release))
            turn.acquire()
        if unit.given_up:
            raise GivenUp

    def _park(self, unit: Unit, ticket: Ticket) -> None:
        with self._changed:
            if unit.given_up:
                raise GivenUp
            unit.tickets.append(ticket)
            unit.standing = PARKED
            self._changed.notify_all()

    def after(self, unit: Unit, move: _dialects.Move) -> None:
        """Take note that a step is done."""
        with self._changed:
            if unit.tickets and unit.standing is RUNNING:
                unit.standing = PARKED
                self._changed.notify_all()

    def again(self, unit: Unit, move: _dialects.Move) -> bool:
        """Wait until another unit has moved, and tell whether to send the step once more."""
        turn = threading.Semaphore(0)
        with self._changed:
            if unit.given_up:
                return False
            unit.wake = turn.release
            unit.standing = BUSY
            move.waited = True
            self._changed.notify_all()
        turn.acquire()
        return unit.retry and not unit.given_up

    # -- the schedule -----------------------------------------------------------------------------------------------

    def play(self, calls: Mapping[int, Callable[[], Any]], chooser: Chooser) -> Played:
        """Run units to their ends; `chooser` says whose turn it is, of those that can take a step."""
        units = [Unit(number, call) for number, call in calls.items()]
        self._units = []  # one after the other, so that each comes to its first step alone
        played = Played((), [], [], units)
        order: list[int] = []
        try:
            for unit in units:
                self._units.append(unit)
                self._start(unit)
                self._settle()
            while True:
                parked = {unit.number: unit for unit in units if unit.standing is PARKED}
                if parked:
                    number = chooser.choose({number: unit.tickets[0].move.effect for number, unit in parked.items()})
                    order.append(number)
                    self._step(parked[number], played)
                    chooser.took(played.taken[-1])
                elif busy := [unit for unit in units if unit.standing is BUSY]:
                    self._resend(busy[0], retry=False)  # the one that has waited for longest gives up first
                    self._settle()
                    self._resend_others()
                elif any(unit.standing is BLOCKED for unit in units):
                    self._wait_for_the_server()
                else:
                    break
        finally:
            self._end()
        return played._replace(order=tuple(order))

    def _step(self, unit: Unit, played: Played) -> None:
        waiting = {other.number for other in self._units if other.standing in (BLOCKED, BUSY)}
        ticket = unit.tickets.pop(0)
        unit.move, unit.steps = ticket.move, unit.steps + 1
        played.moves.append((unit.number, ticket.move))
        if unit.steps > STEPS:
            self._give_up(unit, f"it had taken {STEPS} steps and had not ended")
        else:
            unit.standing, unit.since = RUNNING, time.monotonic()
        ticket.wake()
        self._settle()
        effect = ticket.move.effect
        if effect.ends or ticket.move.error is not None:
            # Its locks are free now, also those of a transaction that a failed statement has aborted.
            for other in self._units:
                if other.standing is BLOCKED and other is not unit:
                    other.standing = RUNNING
            self._settle()
        self._resend_others()
        released = {
            other.number for other in self._units if other.number in waiting and other.standing not in (BLOCKED, BUSY)
        }
        played.taken.append(Taken(unit.number, ticket.move.effect, frozenset(released)))

    def _resend_others(self) -> None:
        for other in [each for each in self._units if each.standing is BUSY]:
            self._resend(other, retry=True)
            self._settle()

    def _resend(self, unit: Unit, *, retry: bool) -> None:
        wake, unit.wake = unit.wake, None
        unit.retry, unit.standing, unit.since = retry, RUNNING, time.monotonic()
        assert wake is not None
        wake()

    def _wait_for_the_server(self) -> None:
        """Wait until it refuses one of those that wait for each other."""
        with self._changed:
            self._changed.wait(0.005)
        for unit in self._units:
            if unit.standing is BLOCKED:
                unit.standing = RUNNING
        self._settle()

    def _settle(self) -> None:
        """Wait until no unit runs: each waits for its turn, for another one, or has ended."""
        patience = 0.002
        while True:
            with self._changed:
                running = [unit for unit in self._units if unit.standing is RUNNING]
                if not running:
                    return
                if self._changed.wait(patience):
                    continue
            patience = min(0.05, patience * 1.5)
            self._look(running)

    def _look(self, running: list[Unit]) -> None:
        """Find out which of those that run wait for another one, and give up those that have run for too long."""
        assert self.stage is not None
        moves = {unit.number: unit.move for unit in running}
        waiting = self.stage.waiting(self._units)
        now = time.monotonic()
        for unit in running:
            with self._changed:
                if unit.standing is not RUNNING or unit.move is not moves[unit.number]:
                    continue
                if unit.number in waiting:
                    unit.standing = BLOCKED
                    if unit.move is not None:
                        unit.move.waited = True
                    if now - unit.since <= self._step_timeout:
                        continue
            if now - unit.since > self._step_timeout:
                self._give_up(unit, f"it did not come to its next step in {self._step_timeout:g} s")

    # -- units ------------------------------------------------------------------------------------------------------

    def loop(self) -> LoopThread:
        """Return the loop of the async units, which is there once it is asked for."""
        if self._loop is None:
            self._loop = LoopThread("sessionkit-races")
        return self._loop

    def _start(self, unit: Unit) -> None:
        context = contextvars.copy_context()
        context.run(_here.set, unit)
        unit.since = time.monotonic()
        if inspect.iscoroutinefunction(unit.call):
            self._start_task(unit, unit.call, context)
        else:
            unit.thread = threading.Thread(
                target=context.run, args=(self._run, unit, context), name=f"unit {unit.number}", daemon=True
            )
            unit.thread.start()

    def _run(self, unit: Unit, context: contextvars.Context) -> None:
        try:
            value = unit.call()
        except BaseException as error:  # noqa: BLE001 - it is the unit's outcome
            self._ended(unit, None, error)
        else:
            if inspect.isawaitable(value):  # lambda: withdraw("ann", 70)
                self._start_task(unit, lambda: value, context.copy())
            else:
                self._ended(unit, value, None)

    def _start_task(self, unit: Unit, call: Callable[[], Any], context: contextvars.Context) -> None:
        async def run() -> None:
            try:
                value = await call()
            except BaseException as error:  # noqa: BLE001 - it is the unit's outcome
                self._ended(unit, None, error)
            else:
                self._ended(unit, value, None)

        def start() -> None:
            unit.task = self.loop().loop.create_task(run(), name=f"unit {unit.number}", context=context)

        self.loop().loop.call_soon_threadsafe(start)

    def _ended(self, unit: Unit, value: Any, error: BaseException | None) -> None:
        frozen = None if error is not None else freeze(value)
        with self._changed:
            if unit.given_up:
                return
            unit.value, unit.frozen, unit.error, unit.standing = value, frozen, error, DONE
            self._changed.notify_all()

    def _give_up(self, unit: Unit, why: str) -> None:
        assert self.stage is not None
        stood = _stack(unit)
        at = "" if unit.move is None else f" after {' '.join(unit.move.statement.split())}"
        error = TimeoutError(f"unit {unit.number} was given up: {why}{at}; it stood at\n{stood}")
        with self._changed:
            unit.given_up, unit.error, unit.standing = True, error, DONE
            tickets, unit.tickets = unit.tickets, []
            wake, unit.wake = unit.wake, None
        for driver_connection, number, raced in list(unit.connections.values()):
            with suppress(Exception):
                raced.end(driver_connection, number)
        for ticket in tickets:
            ticket.wake()
        if wake is not None:
            wake()
        if unit.task is not None:
            self.loop().loop.call_soon_threadsafe(unit.task.cancel)
        self.stage.is_dirty = True

    def _end(self) -> None:
        """End what is still there, as after an interrupt, and take back what was left open."""
        for unit in self._units:
            if unit.standing is not DONE:
                self._give_up(unit, "the run was interrupted")
        for unit in self._units:
            if unit.thread is not None and not unit.given_up:
                unit.thread.join()
            for driver_connection, number, raced in list(unit.connections.values()):
                with suppress(Exception):
                    raced.end(driver_connection, number)
                assert self.stage is not None
                self.stage.is_dirty = True

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may be async, outside of the scopes and the loop of this thread."""
        if inspect.iscoroutinefunction(fn):
            return self.loop().run(fn(*args))
        found: list[Any] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(fn(*args))
            except BaseException as error:  # noqa: BLE001 - raised by who has called
                failed.append(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        value = found[0]
        return self.loop().run(_awaited(value)) if inspect.isawaitable(value) else value

    def close(self) -> None:
        """End the loop."""
        if self._loop is not None:
            self._loop.close()


async def _awaited(value: Any) -> Any:
    return await value


def _set(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def set_() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_soon_threadsafe(set_)


def _stack(unit: Unit) -> str:
    """Return where a unit is, without what is ours."""
    frames: list[traceback.FrameSummary] = []
    if unit.task is not None:
        awaited: Any = unit.task.get_coro()
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            frames += traceback.extract_stack(frame, limit=1)
            awaited = awaited.cr_await
    elif unit.thread is not None and unit.thread.ident is not None:
        frame = sys._current_frames().get(unit.thread.ident)
        frames += [] if frame is None else traceback.extract_stack(frame)
    theirs = [each for each in frames if each.filename not in (__file__, threading.__file__, contextvars.__file__)]
    return "".join(traceback.format_list(theirs)) or "an unknown place"
