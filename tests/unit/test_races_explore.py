"""The planner of schedules, on models: what it leaves out is really like something that it runs."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest

from sessionkit._dialects._races import Effect, dependent
from sessionkit.testing._explore import Explorer, Sample, Taken, orders_like

Operation = tuple[str, str]


def conflicts(one: Operation, other: Operation) -> bool:
    return one[1] == other[1] and "w" in (one[0], other[0])


def run(units: list[list[Operation]], order: tuple[int, ...]) -> Any:
    """Return what a memory holds at the end, and what each unit has read."""
    memory: dict[str, Any] = {}
    read: list[list[Any]] = [[] for _ in units]
    at = [0] * len(units)
    for unit in order:
        kind, name = units[unit][at[unit]]
        at[unit] += 1
        if kind == "r":
            read[unit].append(memory.get(name))
        else:
            memory[name] = (unit, at[unit], tuple(read[unit]))
    return tuple(sorted(memory.items())), tuple(map(tuple, read))


def explore(units: list[list[Operation]]) -> tuple[list[tuple[int, ...]], int, int]:
    """Return the orders that were run, how many they stand for, and how many runs were for nothing."""
    explorer, orders, like, redundant, more = Explorer(conflicts), [], 0, 0, True
    while more:
        explorer.begin()
        at, order = [0] * len(units), []
        while pending := {number: unit[at[number]] for number, unit in enumerate(units) if at[number] < len(unit)}:
            unit = explorer.choose(pending)
            explorer.took(Taken(unit, pending[unit]))
            at[unit] += 1
            order.append(unit)
        if explorer.redundant:
            redundant += 1
        else:
            orders.append(tuple(order))
            taken = [Taken(unit, units[unit][order[:place].count(unit)]) for place, unit in enumerate(order)]
            like += orders_like(taken, conflicts)
        more = explorer.finish()
    return orders, like, redundant


@pytest.mark.parametrize("seed", range(40))
def test_the_orders_that_are_run_end_as_all_orders_do_and_stand_for_all_of_them(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.choice([2, 2, 3])
    units = [
        [(dice.choice("rw"), dice.choice("xyz")) for _ in range(dice.randint(1, 4 if count == 2 else 3))]
        for _ in range(count)
    ]
    every = set(permutations([number for number, unit in enumerate(units) for _ in unit]))
    orders, like, _ = explore(units)
    assert len(set(orders)) == len(orders)
    assert {run(units, order) for order in orders} == {run(units, order) for order in every}
    assert like == len(every)


def test_units_that_have_nothing_to_do_with_each_other_run_once() -> None:
    orders, like, redundant = explore([[("w", "x")] * 3, [("w", "y")] * 3, [("r", "z")] * 2])
    assert (len(orders), like, redundant) == (1, 560, 0)


def test_a_sample_reaches_every_order_and_the_same_one_with_the_same_seed() -> None:
    def drawn(seed: int) -> list[tuple[int, ...]]:
        dice, found = random.Random(seed), []
        for _ in range(200):
            sample, left, order = Sample(dice, {1: 2, 2: 2}), {1: 2, 2: 2}, []
            while pending := {unit: None for unit, steps in left.items() if steps}:
                unit = sample.choose(pending)
                left[unit] -= 1
                order.append(unit)
            found.append(tuple(order))
        return found

    assert drawn(1) == drawn(1) != drawn(2)
    counts = {order: drawn(3).count(order) for order in set(drawn(3))}
    assert len(counts) == 6
    assert min(counts.values()) > 15  # of 200: each has about the same chance


READ, WRITE = frozenset([("a", "1")]), frozenset([("a", "1", "u")])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Effect(0, reads=READ), Effect(0, reads=READ), False),
        (Effect(0, reads=READ), Effect(0, locks=WRITE), False),  # a reader sees what was committed before
        (Effect(0, reads=READ), Effect(0, ends=True, held=WRITE), True),
        (Effect(0, reads=frozenset([("a", "2")])), Effect(0, ends=True, held=WRITE), False),
        (Effect(0, reads=frozenset([("a", None)])), Effect(0, ends=True, held=WRITE), True),
        (Effect(0, snapshot=True), Effect(0, ends=True, held=WRITE), True),
        (Effect(0, locks=WRITE), Effect(0, locks=WRITE), True),
        (Effect(0, locks=WRITE), Effect(1, locks=WRITE), False),
        (Effect(0, locks=WRITE), Effect(0, locks=frozenset([("a", "1", "k")])), False),
        (Effect(0, locks=WRITE), Effect(0, locks=frozenset([("a", "1", "s")])), True),
        (Effect(0, locks=WRITE), Effect(0, unknown=True), True),
        (Effect(0), Effect(0, unknown=True), False),
        (Effect(0, seen=READ, serializable=True), Effect(0, locks=WRITE, serializable=True), True),
    ],
)
def test_what_depends_on_what(one: Effect, other: Effect, expected: bool) -> None:
    assert dependent(one, other) is expected
    assert dependent(other, one) is expected
