"""`races`: units of work against each other, in every order of their statements, on the real database."""

from __future__ import annotations

import inspect
import random
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column

from .._spi import FactoryInfo, engines_of, factory_key, skipping
from ..errors import CommitOutcomeUnknown, OptionError, classify, first_of, outcome_of
from ._conduct import Conductor
from ._explore import Diverged, Explorer, Sample, orders_like
from ._result import Races
from ._schedule import Outcome, Schedule, Serial, Step, freeze, multiset
from ._stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from .._spi import _dialects
    from ._conduct import Chooser, Played
    from ._explore import Taken
    from ._unit import Unit

__all__ = ["races"]


def races(
    *units: Callable[[], Any],
    factories: Iterable[object],
    setup: Callable[[], Any] | None = None,
    check: Callable[..., Any] | None = None,
    state: Callable[[], Any] | None = None,
    ignore: Sequence[Any] = (),
    max_schedules: int = 1000,
    max_seconds: float = 60.0,
    step_timeout: float = 10.0,
    seed: int | str = 0,
) -> Races:
    """Run units of work against each other, in every order of their statements, on the real database.

    Each unit runs in its own thread, an async one in a task. It stops before each statement, COMMIT and ROLLBACK that it
    sends through the engines of `factories`: by scopes, sessions or connections. One unit goes on at a time. If it waits
    for a lock of another unit, the database says so, and the others go on until the lock is free. Waits between attempts
    are skipped. Orders that differ only in independent steps are run once.

    A statement is one step, so what happens inside one is not taken apart. Time does not pass: no ``lock_timeout`` expires
    because another unit is stopped. A thread that a unit starts without its context is not stopped.

    It works on a copy of the database (in template mode: on the test's copy), and restores it before each schedule. It
    sends what the units send, and on PostgreSQL ``SELECT ... FROM pg_locks`` on a connection of its own.

    Args:
        *units: two or more functions without arguments, `def` or `async def`.
        factories: those of the application, sync and async ones, or engines. The fixture of this name takes them from
            `sessionkit_factories`.
        setup: is called before each schedule, to fill the tables.
        check: is called after each schedule, with the `Schedule` if it takes an argument. It fails by an exception or by
            returning False.
        state: returns what is compared by `assert_serial` in place of the rows of all tables.
        ignore: columns that are not compared, such as ``Order.id``.
        max_schedules: how many schedules are run at the most. Where there are more orders, half of the runs explore, and
            the other half are drawn by lot.
        max_seconds: the same in seconds.
        step_timeout: a unit that comes to no step for so many seconds is given up, and the schedule fails.
        seed: what draws the sample; or the seed of a schedule, which runs that one alone.

    Returns:
        What was found. Nothing is raised before one of its methods is called: `assert_serial`, `assert_none`.

    Raises:
        OptionError: an argument cannot be honoured, the database cannot be copied, or its connection is one for all.
        Exception: what `setup` or `state` has raised.
    """
    names = _check_units(units)
    _check_limits(max_schedules, max_seconds, step_timeout)
    given = _order_of(seed, len(units))
    factories = list(factories)
    engines = engines_of(factories)
    if not engines:
        raise OptionError(f"races() was called with factories={factories!r}, which are bound to no engine")
    wants = _parameters(check, "check", most=1)
    _parameters(setup, "setup")
    _parameters(state, "state")
    ignored = {_column_of(each) for each in ignore}
    conductor = Conductor(step_timeout)
    stage = Stage(engines, conductor, conductor.loop, len(units) + 1)
    conductor.stage = stage
    runner = _Runner(units, stage, conductor, factories, setup, state, ignored, check, wants)
    try:
        with _without_waits():
            stage.open()
            try:
                if given is None:
                    runner.explore(max_schedules, max_seconds, int(seed))
                else:
                    runner.replay(given, str(seed))
                schedules = runner.judge()
            finally:
                stage.close()
    finally:
        conductor.close()
    return Races(
        schedules=schedules,
        pruned=runner.pruned,
        complete=runner.complete,
        seed=seed,
        names=names,
        ignored=tuple(sorted(runner.unstable)),
        serial=runner.serial(),
        checked=check is not None,
    )


RESTARTS = 3
"""How often the exploration begins again where units do not do the same each time."""


class _Runner:
    """Runs schedules and keeps what came of them."""

    def __init__(
        self,
        units: Sequence[Callable[[], Any]],
        stage: Stage,
        conductor: Conductor,
        factories: Sequence[Any],
        setup: Callable[[], Any] | None,
        state: Callable[[], Any] | None,
        ignored: set[tuple[str, str]],
        check: Callable[..., Any] | None,
        wants: int,
    ) -> None:
        self._units = dict(enumerate(units, 1))
        self._stage = stage
        self._conductor = conductor
        keys = [factory_key(each) for each in factories]
        self._infos = [
            info for each in keys if isinstance(info := getattr(each, "_sessionkit_info", None), FactoryInfo)
        ]
        self._setup = setup
        self._state = state
        self._ignored = ignored
        self._check = check
        self._wants = wants
        self._ran: list[_Ran] = []
        self._orders: set[tuple[int, ...]] = set()
        self._serially: dict[tuple[int, ...], _Ran] = {}
        self.unstable: set[str] = set()
        self.pruned = 0
        self.complete = False
        self._lengths: dict[int, int] = {}

    # -- schedules --------------------------------------------------------------------------------------------------

    def explore(self, max_schedules: int, max_seconds: float, seed: int) -> None:
        """Run all orders that matter; where they are too many, a half of the budget is for a sample."""
        began = time.monotonic()
        # What an application does at its first call only (it fills its caches) is done by then.
        self._run_serially(tuple(self._units))
        for _ in range(RESTARTS):
            try:
                self.complete = self._explore(max_schedules, max_seconds, began)
                break
            except Diverged:  # the units do something else than before: what was planned does not fit them
                self.pruned = 0
        if not self.complete:
            self._sample(max_schedules, began + max_seconds, seed)

    def _explore(self, max_schedules: int, max_seconds: float, began: float) -> bool:
        """Return whether all orders were run that matter."""
        explorer = Explorer(self._dependent)
        while True:
            explorer.begin()
            played = self._play(self._units, explorer)
            if not explorer.redundant:
                self._keep(played)
                self.pruned += orders_like(played.taken, self._dependent) - 1
            if not explorer.finish():
                return True
            if 2 * len(self._ran) >= max_schedules or 2 * (time.monotonic() - began) >= max_seconds:
                return False

    def _sample(self, max_schedules: int, ends: float, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - the same lots each time are what it is for
        for _ in range(2 * max_schedules):  # where few orders are left, most of those that are drawn were had
            if len(self._ran) >= max_schedules or time.monotonic() >= ends:
                return
            self._keep(self._play(self._units, Sample(dice, self._lengths)))

    def replay(self, order: Sequence[int], seed: str) -> None:
        """Run the order of a seed."""
        try:
            self._keep(self._play(self._units, _Given(order)))
        except Diverged:
            raise OptionError(
                f"seed={seed!r} does not fit these units: it was drawn from others, or they have changed since; leave it "
                "out, and take the seed that a failure prints"
            ) from None

    def _dependent(self, one: Any, other: Any) -> bool:
        return self._stage.dependent(one, other)

    def _play(self, units: Mapping[int, Callable[[], Any]], chooser: Chooser) -> Played:
        self._stage.restore()
        for info in self._infos:
            info.heats.clear()  # what one schedule has taught the units is not for the next one
        if self._setup is not None:
            self._conductor.call(self._setup)
        played = self._conductor.play(units, chooser)
        if len(units) == len(self._units):
            for unit in played.units:
                self._lengths[unit.number] = max(self._lengths.get(unit.number, 0), unit.steps)
        return played

    def _keep(self, played: Played) -> None:
        if played.order in self._orders:
            return
        self._orders.add(played.order)
        ran = _Ran(played, _outcomes(played), self._end_state())
        self._ran.append(ran)
        if self._check is not None:
            ran.error = self._failure(self._schedule(ran))

    def _end_state(self) -> Any:
        return self._stage.state() if self._state is None else self._conductor.call(self._state)

    def _failure(self, schedule: Schedule) -> BaseException | None:
        assert self._check is not None
        try:
            answer = self._conductor.call(self._check, *([schedule] if self._wants else []))
        except Exception as error:  # noqa: BLE001 - it is the schedule's
            return error
        return AssertionError("it returned False") if answer is False else None

    def _schedule(self, ran: _Ran) -> Schedule:
        return Schedule(
            order=ran.played.order,
            steps=tuple(
                Step(unit, move.statement, move.values, move.text, move.result, move.error, move.waited)
                for unit, move in ran.played.moves
            ),
            outcomes=ran.outcomes,
            state=self._shown(ran.state),
            seed=_seed_of(ran.played.order, len(self._units)),
            serial=ran.serial,
            error=ran.error,
        )

    # -- one after the other ----------------------------------------------------------------------------------------

    def judge(self) -> tuple[Schedule, ...]:
        """Find out which schedules end as the units do one after the other, and return all of them."""
        known = -1
        while known != len(self.unstable):  # what differs each time shows in the runs that are made meanwhile
            known = len(self.unstable)
            for ran in self._ran:
                ran.serial = self._is_serial(ran)
        return tuple(map(self._schedule, self._ran))

    def _is_serial(self, ran: _Ran) -> bool:
        if any(unit.given_up for unit in ran.played.units):
            return False
        numbers = [number for number, outcome in enumerate(ran.outcomes, 1) if not outcome.refused]
        return any(self._alike(ran, self._run_serially(order)) for order in permutations(numbers))

    def _run_serially(self, order: tuple[int, ...]) -> _Ran:
        if order not in self._serially:
            units = {number: self._units[number] for number in order}
            runs = []
            for _ in range(2):
                played = self._play(units, _Given(order, strict=False))
                runs.append(_Ran(played, _outcomes(played), self._end_state()))
            self._serially[order] = runs[0]
            self._find_unstable(*runs)
        return self._serially[order]

    def _find_unstable(self, one: _Ran, other: _Ran) -> None:
        """Take note of what two runs of the same order have done differently."""
        for mine, theirs in zip(one.played.units, other.played.units, strict=True):
            if mine.frozen != theirs.frozen:
                self.unstable.add(_returned(mine.number))
        if self._state is not None:
            return
        for name in one.state:
            mine, theirs = one.state[name], other.state[name]
            for place, column in enumerate(mine.columns):
                if multiset(mine.rows, [place]) != multiset(theirs.rows, [place]):
                    self.unstable.add(f"{name}.{column}")
            if multiset(mine.rows, self._kept(name, mine)) != multiset(theirs.rows, self._kept(name, theirs)):
                self.unstable.add(name)

    def _alike(self, ran: _Ran, serial: _Ran) -> bool:
        mine = {unit.number: unit for unit in ran.played.units}
        for unit in serial.played.units:
            if type(mine[unit.number].error) is not type(unit.error):
                return False
            if mine[unit.number].frozen != unit.frozen and _returned(unit.number) not in self.unstable:
                return False
        return bool(self._comparable(ran.state) == self._comparable(serial.state))

    def _comparable(self, state: Any) -> Any:
        if self._state is not None:
            return freeze(state)
        return {
            name: multiset(rows.rows, self._kept(name, rows))
            for name, rows in state.items()
            if name not in self.unstable
        }

    def _kept(self, name: str, rows: _dialects.Rows) -> list[int]:
        """Return the places of the columns that are compared."""
        table = name.rpartition(".")[2].rpartition(": ")[2]
        return [
            place
            for place, column in enumerate(rows.columns)
            if (table, column) not in self._ignored and f"{name}.{column}" not in self.unstable
        ]

    def _shown(self, state: Any) -> Any:
        if self._state is not None:
            return state
        return {
            name: tuple(tuple(row[place] for place in self._kept(name, rows)) for row in rows.rows)
            for name, rows in state.items()
        }

    def serial(self) -> tuple[Serial, ...]:
        """Return the runs that the others were compared with."""
        return tuple(
            Serial(
                order,
                {unit.number: outcome for unit, outcome in zip(ran.played.units, ran.outcomes, strict=True)},
                self._shown(ran.state),
            )
            for order, ran in self._serially.items()
        )


@dataclass(slots=True)
class _Ran:
    """A schedule that was run."""

    played: Played
    outcomes: tuple[Outcome, ...]
    state: Any
    error: BaseException | None = None
    serial: bool = True


class _Given:
    """Takes the turns in a given order; a unit at a time where it is not strict."""

    def __init__(self, order: Sequence[int], *, strict: bool = True) -> None:
        self._order = list(order)
        self._strict = strict

    def choose(self, pending: Mapping[int, Any]) -> int:
        """Return whose turn it is."""
        if not self._strict:
            return next(unit for unit in self._order if unit in pending)
        unit = self._order.pop(0) if self._order else 0
        if unit not in pending:
            raise Diverged
        return unit

    def took(self, taken: Taken) -> None:
        """Do nothing: the order is given."""


def _outcomes(played: Played) -> tuple[Outcome, ...]:
    return tuple(Outcome(unit.value, unit.error, _is_refused(unit, played)) for unit in played.units)


def _is_refused(unit: Unit, played: Played) -> bool:
    """Tell whether the database has refused a unit, which is rolled back and could be run again."""
    error = unit.error
    if not isinstance(error, Exception) or unit.given_up or not classify(first_of(error)).retryable:
        return False
    if isinstance(error, CommitOutcomeUnknown) or outcome_of(error) == "committed":
        return False
    # A session without a scope marks its errors with nothing: what was sent last tells.
    ends = [move for number, move in played.moves if number == unit.number and move.effect.ends]
    return outcome_of(error) == "rolled back" or not ends or ends[-1].statement != "COMMIT" or bool(ends[-1].error)


def _returned(number: int) -> str:
    return f"what unit {number} returns"


# -- what is asked for --------------------------------------------------------------------------------------------------


def _check_units(units: Sequence[Any]) -> tuple[str, ...]:
    for unit in units:
        if inspect.isawaitable(unit):
            name = getattr(unit, "__name__", repr(unit))
            if inspect.iscoroutine(unit):
                unit.close()
            raise OptionError(
                f"races() was given a call of {name}; it calls the units itself, many times: write lambda: {name}(...)"
            )
        if not callable(unit):
            raise OptionError(f"races() was given {unit!r} as a unit; a unit is a function without arguments")
        _parameters(unit, "a unit")
    if len(units) < 2:
        raise OptionError(f"races() was given {len(units)} unit(s); it takes two or more that run against each other")
    return tuple(map(_name, units))


def _name(unit: Any) -> str:
    """Name a unit: a lambda by what it calls."""
    name = getattr(unit, "__name__", None)
    if name is None:
        name = getattr(getattr(unit, "func", None), "__name__", repr(unit))
    if name == "<lambda>":
        name = [name, *unit.__code__.co_freevars[:1], *unit.__code__.co_names][-1]
    return str(name)


def _parameters(fn: Any, what: str, most: int = 0) -> int:
    """Return how many arguments a function takes.

    Raises:
        OptionError: they are too many.
    """
    if fn is None:
        return 0
    if not callable(fn):
        raise OptionError(f"races() was given {fn!r} as {what}; it is a function")
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a built-in does not say
        return 0
    wanted = [
        each
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if len(wanted) > most:
        takes = "no arguments" if most == 0 else "no argument, or the Schedule"
        names = ", ".join(each.name for each in wanted)
        raise OptionError(f"races() was given {_name(fn)}({names}) as {what}, which takes {takes}; wrap it in a lambda")
    return len(wanted)


def _check_limits(max_schedules: Any, max_seconds: Any, step_timeout: Any) -> None:
    if isinstance(max_schedules, bool) or not isinstance(max_schedules, int) or max_schedules < 1:
        raise OptionError(
            f"max_schedules={max_schedules!r} was given to races(); it is a number of schedules, 1 or more"
        )
    for name, seconds in (("max_seconds", max_seconds), ("step_timeout", step_timeout)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise OptionError(f"{name}={seconds!r} was given to races(); it is a number of seconds above 0")


def _seed_of(order: Sequence[int], count: int) -> str:
    return ("" if count < 10 else "-").join(map(str, order))


def _order_of(seed: Any, count: int) -> tuple[int, ...] | None:
    """Return the order of a schedule's seed; None for a seed that draws a sample."""
    if isinstance(seed, int) and not isinstance(seed, bool):
        return None
    if isinstance(seed, str) and re.fullmatch(r"\d+" if count < 10 else r"\d+(-\d+)*", seed):
        order = tuple(map(int, seed if count < 10 else seed.split("-")))
        if all(1 <= unit <= count for unit in order):
            return order
    raise OptionError(
        f"seed={seed!r} was given to races() with {count} units; it is a number that draws the sample, or the text that a "
        "failure of these units prints"
    )


def _column_of(given: Any) -> tuple[str, str]:
    expression = getattr(given, "expression", given)
    column = getattr(expression, "_sa_deannotated", None) or expression
    column = column if isinstance(column, Column) else getattr(column, "element", column)
    table = getattr(getattr(column, "table", None), "name", None)
    if not isinstance(table, str) or not isinstance(getattr(column, "name", None), str):
        raise OptionError(f"ignore={given!r} was given to races(); it takes columns, such as Order.id")
    return table, column.name


@contextmanager
def _without_waits() -> Generator[None, None, None]:
    """Have no waits between attempts."""
    skipped: list[float] = []
    skipping.append(skipped)
    try:
        yield
    finally:
        skipping[:] = [each for each in skipping if each is not skipped]
