"""Which orders of steps are worth a run. Pure: what each unit does next goes in, whose turn it is comes out.

Two orders that differ only in steps which do not depend on each other end alike, so one of them is run. What depends is
found as the runs go: a run ends, and where two dependent steps of different units could have come the other way round, a
run is planned in which they do. This is dynamic partial order reduction with source sets and sleep sets (Abdulla,
Aronis, Jonsson, Sagonas: "Optimal dynamic partial order reduction", POPL 2014).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping, Sequence

    Dependent = Callable[[Any, Any], bool]

__all__ = ["Explorer", "Taken", "orders_like"]


@dataclass(slots=True)
class Taken:
    """A step as it was taken.

    Attributes:
        unit: whose.
        effect: what it does.
        released: the units that had waited and went on because of it.
    """

    unit: int
    effect: Any
    released: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Node:
    """A place in a run where it was decided whose turn it is.

    Attributes:
        pending: the units that could take a step, and what it would do.
        chosen: the one that did.
        backtrack: those that must be tried here.
        done: those that were tried here.
        sleep: those whose turn would give a run that was had before.
    """

    pending: Mapping[int, Any]
    chosen: int
    backtrack: set[int]
    sleep: dict[int, Any]
    done: set[int] = field(default_factory=set)


class Diverged(Exception):
    """The units did not do the same as in the run before, so the plan does not fit."""


class Explorer:
    """Plans run after run until all orders are covered.

    Args:
        dependent: tells whether the order of two steps may make a difference.
    """

    def __init__(self, dependent: Dependent) -> None:
        self._dependent = dependent
        self._nodes: list[_Node] = []
        self._depth = 0
        self._taken: list[Taken] = []
        self.redundant = False

    def begin(self) -> None:
        """Begin a run."""
        self._depth, self._taken, self.redundant = 0, [], False

    def choose(self, pending: Mapping[int, Any]) -> int:
        """Return whose turn it is, of the units that can take a step.

        Raises:
            Diverged: that unit cannot.
        """
        depth = self._depth
        self._depth += 1
        if depth < len(self._nodes):
            node = self._nodes[depth]
            if node.chosen not in pending:
                raise Diverged
            node.pending = pending
            return node.chosen
        last = self._taken[-1].unit if self._taken else None
        if self.redundant:
            return _default(last, pending)
        sleep = self._sleep()
        awake = [unit for unit in pending if unit not in sleep]
        if not awake:
            self.redundant = True
            return _default(last, pending)
        chosen = _default(last, awake)
        self._nodes.append(_Node(pending, chosen, {chosen}, sleep))
        return chosen

    def _sleep(self) -> dict[int, Any]:
        """Return the units whose turn has been tried before the last step, with which it has nothing to do."""
        if not self._nodes:
            return {}
        above = self._nodes[-1]
        effect = above.pending[above.chosen]
        asleep = {**above.sleep, **{unit: above.pending[unit] for unit in above.done if unit in above.pending}}
        return {
            unit: theirs
            for unit, theirs in asleep.items()
            if unit != above.chosen and not self._dependent(theirs, effect)
        }

    def took(self, taken: Taken) -> None:
        """Take note of the step that was taken."""
        self._taken.append(taken)
        if self._depth <= len(self._nodes):
            # What it did is known better now than before: a statement that fails gives up its locks.
            node = self._nodes[self._depth - 1]
            node.pending = {**node.pending, taken.unit: taken.effect}

    def finish(self) -> bool:
        """End a run: plan the next one. Return whether there is one."""
        before = happened_before(self._taken, self._dependent)
        for later in range(len(self._taken)):
            for earlier in races_with(later, before, self._taken, self._dependent):
                if earlier < len(self._nodes):
                    self._turn_round(earlier, later, before)
        return self._next()

    def _turn_round(self, earlier: int, later: int, before: Sequence[int]) -> None:
        """Have a run in which `later` comes before `earlier`."""
        node = self._nodes[earlier]
        apart = [index for index in range(earlier + 1, later) if not before[index] >> earlier & 1] + [later]
        first: dict[int, bool] = {}
        for position, index in enumerate(apart):
            unit = self._taken[index].unit
            if unit not in first:
                first[unit] = not any(before[index] >> other & 1 for other in apart[:position])
        initials = {unit for unit, is_first in first.items() if is_first}
        if initials & node.backtrack:
            return
        can = initials & node.pending.keys()
        if can:
            unit = self._taken[later].unit
            node.backtrack.add(unit if unit in can else min(can))
        else:
            node.backtrack.update(node.pending)

    def _next(self) -> bool:
        while self._nodes:
            node = self._nodes[-1]
            node.done.add(node.chosen)
            left = [
                unit
                for unit in sorted(node.backtrack)
                if unit not in node.done and unit not in node.sleep and unit in node.pending
            ]
            if left:
                node.chosen = left[0]
                return True
            self._nodes.pop()
        return False


def _default(last: int | None, units: Collection[int]) -> int:
    """Return the unit that goes on where nothing else was planned: so the first run is one after the other."""
    return last if last is not None and last in units else min(units)


def happened_before(taken: Sequence[Taken], dependent: Dependent) -> list[int]:
    """Return for each step, as the bits of a number, the steps that it could not have come before."""
    before: list[int] = []
    last: dict[int, int] = {}
    released: dict[int, int] = {}
    for index, step in enumerate(taken):
        bits = 0
        if step.unit in last:
            bits |= before[last[step.unit]] | 1 << last[step.unit]
        if step.unit in released:
            bits |= before[released[step.unit]] | 1 << released[step.unit]
        for earlier in range(index - 1, -1, -1):
            if not bits >> earlier & 1 and dependent(taken[earlier].effect, step.effect):
                bits |= before[earlier] | 1 << earlier
        before.append(bits)
        last[step.unit] = index
        for unit in step.released:
            released[unit] = index
    return before


def races_with(later: int, before: Sequence[int], taken: Sequence[Taken], dependent: Dependent) -> list[int]:
    """Return the steps of other units that could have come after `later`, and on whose order something depends."""
    found = []
    for earlier in range(later):
        if taken[earlier].unit == taken[later].unit or not dependent(taken[earlier].effect, taken[later].effect):
            continue
        between = before[later] >> (earlier + 1)
        index, follows = earlier + 1, False
        while between and not follows:
            follows = bool(between & 1) and bool(before[index] >> earlier & 1)
            between >>= 1
            index += 1
        if not follows:
            found.append(earlier)
    return found


def orders_like(taken: Sequence[Taken], dependent: Dependent) -> int:
    """Return how many orders of the same steps differ from this one in nothing that matters, itself included."""
    before = happened_before(taken, dependent)
    lines: dict[int, list[int]] = {}
    for index, step in enumerate(taken):
        lines.setdefault(step.unit, []).append(index)
    if prod(len(line) + 1 for line in lines.values()) > COUNTED:
        return 1
    # How far each unit has come, in how many ways it can have come there, and which steps are done then.
    ways: dict[tuple[int, ...], tuple[int, int]] = {tuple(0 for _ in lines): (1, 0)}
    for _ in taken:
        further: dict[tuple[int, ...], tuple[int, int]] = {}
        for at, (count, done) in ways.items():
            for number, line in enumerate(lines.values()):
                if at[number] < len(line) and not before[line[at[number]]] & ~done:
                    place = (*at[:number], at[number] + 1, *at[number + 1 :])
                    there = further.get(place, (0, 0))[0]
                    further[place] = (there + count, done | 1 << line[at[number]])
        ways = further
    return sum(count for count, _ in ways.values())


COUNTED = 100_000
"""Where units have more places than this together, their orders are not counted."""


class Sample:
    """Draws orders by lot: each of those that are left at a place has about the same chance."""

    def __init__(self, dice: random.Random, lengths: Mapping[int, int]) -> None:
        self._dice = dice
        self._left = dict(lengths)

    def choose(self, pending: Mapping[int, Any]) -> int:
        """Return whose turn it is."""
        units = sorted(pending)
        weights = [max(1, self._left.get(unit, 1)) for unit in units]
        unit = self._dice.choices(units, weights)[0]
        self._left[unit] = self._left.get(unit, 1) - 1
        return unit

    def took(self, taken: Taken) -> None:
        """Do nothing: lots have no memory."""
