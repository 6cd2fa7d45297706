"""What `races` returns: the schedules that were run, and which of them went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._schedule import Schedule, Serial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

__all__ = ["Races"]


@dataclass(frozen=True)
class Races:
    """What was found.

    Attributes:
        schedules: those that were run, in that order.
        explored: how many they are. The runs of the units one after the other, to compare with, are not among them.
        pruned: how many orders were not run, since each differs from one that was in nothing that matters.
        complete: whether these are all orders; if not, they are a sample.
        seed: what draws the sample.
        ignored: what of the end state was left out, because it differs each time.
        names: of the units.
        serial: the runs of the units one after the other that were made to compare with.
    """

    schedules: tuple[Schedule, ...]
    pruned: int
    complete: bool
    seed: int | str
    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    serial: tuple[Serial, ...] = ()
    checked: bool = field(default=False, repr=False)

    @property
    def explored(self) -> int:
        """How many schedules were run."""
        return len(self.schedules)

    @property
    def failures(self) -> tuple[Schedule, ...]:
        """The schedules that failed ``check``; without one, those that are not serial. The shortest come first."""
        return self._shortest([each for each in self.schedules if _failed(each, self.checked)])

    def assert_serial(self) -> None:
        """Have each schedule end as the units do one after the other, in some order.

        A unit that the database has refused, and that was not retried, counts as one that has not run.

        Raises:
            AssertionError: one does not; it tells the shortest.
        """
        wrong = self._shortest([each for each in self.schedules if not each.serial])
        if wrong:
            raise AssertionError(self._story(wrong, "ended as they do in no order one after the other"))

    def assert_none(self) -> None:
        """Have no schedule fail its ``check``.

        Raises:
            AssertionError: one does; it tells the shortest. Or there is no ``check``.
        """
        if not self.checked:
            raise AssertionError(
                "assert_none() has nothing to look at: races() was called without check=; give it one, or call "
                "assert_serial()"
            )
        wrong = self.failures
        if wrong:
            raise AssertionError(self._story(wrong, "failed their check"))

    def svg(self, path: str | PathLike[str]) -> None:
        """Draw the shortest failure, or the first schedule where none failed, as an SVG file."""
        from ._svg import draw

        shown = (self.failures or self.schedules)[0]
        Path(path).write_text(draw(self, shown), encoding="utf-8")

    def __str__(self) -> str:
        """Tell what was run, and the shortest failure."""
        failures = self.failures
        if not failures:
            from ._story import summary

            return summary(self)
        return self._story(failures, "failed their check" if self.checked else "are not serial")

    def __rich__(self) -> Any:
        """Show the same in rich, with styles."""
        from ._story import styled

        failures = self.failures
        return styled(self, failures[0] if failures else None, len(failures))

    def _story(self, wrong: Sequence[Schedule], what: str) -> str:
        from ._story import story

        return story(self, wrong[0], f"{len(wrong)} of the {self.explored} schedules {what}")

    def _shortest(self, schedules: Sequence[Schedule]) -> tuple[Schedule, ...]:
        return tuple(sorted(schedules, key=lambda each: (each.switches, len(each.order))))


def _failed(schedule: Schedule, checked: bool) -> bool:
    gave_up = any(isinstance(each.error, TimeoutError) and not each.refused for each in schedule.outcomes)
    return gave_up or (schedule.error is not None if checked else not schedule.serial)
