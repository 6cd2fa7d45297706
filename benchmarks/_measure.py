"""Compare alternatives: interleaved rounds in one process, the minimum of each, ratios.

A shared machine makes a time too long, never too short. So each case runs in many short rounds. Within a round the cases take
turns, in a new order each time, so that no case always follows the same neighbour. The shortest time counts. Compare the ratio of
two minima of one run, never times of different runs.

CPU time is that of the process, all threads, so it includes an async driver that works in its own thread. The server's time shows
in the wall time only.

    from benchmarks._measure import Case, Report, measure, repeat

    timings = measure([Case("ours", repeat(ours)), Case("theirs", repeat(theirs))])
    print(Report("One row", timings, reference="theirs").markdown())

A case that needs a fresh table passes `before=`, which is not measured, and usually `number=1`.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Runner
    from collections.abc import Callable, Coroutine, Iterable, Sequence

__all__ = ["Case", "Report", "Timing", "conditions", "cpu_seconds", "measure", "repeat", "repeat_async"]


@dataclass(frozen=True, slots=True)
class Case:
    """One alternative.

    Attributes:
        name: what the table calls it.
        run: does the thing so many times.
        before: prepares one round, unmeasured.
        after: cleans up after one round, unmeasured.
        number: how many times one round does it; None: as many as fit into the round.
    """

    name: str
    run: Callable[[int], object]
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """The timings of one case: seconds for doing it once, one figure per round."""

    name: str
    cpus: tuple[float, ...]
    walls: tuple[float, ...]
    number: int

    @property
    def cpu(self) -> float:
        return min(self.cpus)

    @property
    def wall(self) -> float:
        return min(self.walls)

    def beside(self, reference: Timing) -> float:
        """Return its CPU time as a multiple of the reference's: the median of the ratios within a round.

        On a machine that is never quiet this is steadier than the ratio of two best rounds: what runs beside a round slows
        all cases of it down alike.
        """
        return median(own / other for own, other in zip(self.cpus, reference.cpus, strict=True))

    @property
    def noise(self) -> float:
        """How far the typical round lies above the best one, in CPU time: 0.1 is 10 %."""
        return median(self.cpus) / self.cpu - 1 if self.cpu else 0.0


def repeat(once: Callable[[], object]) -> Callable[[int], None]:
    """Make the run of a case from a function that does it once."""

    def run(number: int) -> None:
        for _ in range(number):
            once()

    return run


def repeat_async(once: Callable[[], Coroutine[object, object, object]], runner: Runner) -> Callable[[int], None]:
    """Make the run of a case from a coroutine function. It enters the loop once per round."""

    async def many(number: int) -> None:
        for _ in range(number):
            await once()

    def run(number: int) -> None:
        runner.run(many(number))

    return run


def measure(
    cases: Iterable[Case], *, rounds: int = 40, round_seconds: float = 0.02, seed: int = 0
) -> dict[str, Timing]:
    """Run all cases in turn, `rounds` times, and return their timings by name.

    Args:
        cases: what is compared; their names differ.
        rounds: how often each of them takes its turn.
        round_seconds: about how long a turn lasts, where the case does not fix its number.
        seed: of the order within the rounds.
    """
    chosen = list(cases)
    assert len({case.name for case in chosen}) == len(chosen), "two cases have the same name"
    numbers = {case.name: case.number or _fitting(case, round_seconds) for case in chosen}
    cpus: dict[str, list[float]] = {case.name: [] for case in chosen}
    walls: dict[str, list[float]] = {case.name: [] for case in chosen}
    order = random.Random(seed)
    # The collection before each turn then looks only at what the turns make, and not at all that is imported.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            order.shuffle(chosen)
            for case in chosen:
                number = numbers[case.name]
                cpu, wall = _turn(case, number)
                cpus[case.name].append(cpu / number)
                walls[case.name].append(wall / number)
    finally:
        gc.unfreeze()
    return {name: Timing(name, tuple(cpus[name]), tuple(walls[name]), numbers[name]) for name in numbers}


def _turn(case: Case, number: int) -> tuple[float, float]:
    if case.before is not None:
        case.before()
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        case.run(number)
        return time.process_time() - cpu, time.perf_counter() - wall
    finally:
        gc.enable()
        if case.after is not None:
            case.after()


def _fitting(case: Case, seconds: float) -> int:
    """Find the number of repetitions that takes about `seconds` once the case is warm.

    By CPU time, and the best of three: on a busy machine the clock would find numbers so small that what a turn costs before
    it is warm is most of it. A case that only waits is measured by the clock.
    """
    _turn(case, 1)
    number = 1
    while True:
        spent = min(max(cpu, wall / 20) for cpu, wall in (_turn(case, number) for _ in range(3)))
        if spent >= seconds / 2:
            return max(1, round(number * seconds / spent))
        number *= 4 if spent < seconds / 16 else 2


@dataclass(frozen=True, slots=True)
class Report:
    """Timings of one run as a table of ratios.

    Attributes:
        title: stands above the table.
        timings: by name, as `measure` returned them; the table keeps the order.
        reference: the name of the case that is 1.
        targets: the ratio that a case should not exceed, by name; what misses it is marked.
        by: which figure the ratios are of.
    """

    title: str
    timings: dict[str, Timing]
    reference: str
    targets: dict[str, float] | None = None
    by: str = "cpu"

    def ratio(self, name: str, by: str | None = None) -> float:
        by = by or self.by
        return float(getattr(self.timings[name], by) / getattr(self.timings[self.reference], by))

    def missed(self) -> list[str]:
        """Return the names of the cases that miss their targets."""
        return [name for name, target in (self.targets or {}).items() if round(self.ratio(name), 2) > target]

    def rows(self) -> list[Sequence[str]]:
        header = ("", "CPU", "wall", "us CPU", "us wall", "noise", "target")
        return [header, *(self._row(timing) for timing in self.timings.values())]

    def _row(self, timing: Timing) -> Sequence[str]:
        target = (self.targets or {}).get(timing.name)
        verdict = "" if target is None else f"{target:.2f} {'missed' if timing.name in self.missed() else 'met'}"
        return (
            timing.name,
            f"{self.ratio(timing.name, 'cpu'):.2f}",
            f"{self.ratio(timing.name, 'wall'):.2f}",
            f"{timing.cpu * 1e6:.1f}",
            f"{timing.wall * 1e6:.1f}",
            f"{timing.noise:.0%}",
            verdict,
        )

    def markdown(self) -> str:
        header, *rows = self.rows()
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

        def line(row: Sequence[str]) -> str:
            cells = (
                cell.ljust(width) if not i else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return f"| {' | '.join(cells)} |"

        ruler = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        return "\n".join([f"### {self.title}", "", line(header), f"|{ruler}|", *map(line, rows), ""])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that another process has used, such as a backend of the server."""
    # Linux has nanoseconds here, and hundredths of a second everywhere else.
    told = Path(f"/proc/{pid}/schedstat")
    if told.exists():
        return int(told.read_text().split()[0]) / 1e9
    import psutil

    return sum(psutil.Process(pid).cpu_times()[:2])


def conditions(*modules: str) -> str:
    """Describe the conditions of the figures: versions, and the class of machine."""
    from importlib.metadata import version

    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", *modules))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {packages}; {os.cpu_count()} cores, {platform.machine()}{load}"
