"""What is remembered of a function whose units keep conflicting."""

from __future__ import annotations

from random import Random

from sqlalchemy.orm.exc import StaleDataError

from sessionkit.errors import set_outcome
from sessionkit.retry import REMEMBERED, Attempts, Heat, Retry

POLICY = Retry(5, wait=0, lock_on_retry=True)


def unit(heats: dict[str, Heat], conflicts: bool, name: str | None = "f") -> bool:
    """Run a unit whose first attempt conflicts if it does not lock; return whether it locks from the first on."""
    attempts = Attempts(POLICY, 0.0)
    attempts.heats, attempts.learns = heats, name
    attempt = attempts.next()
    locked = attempts.run_of(attempt).lock
    if conflicts and not locked:
        error = StaleDataError("somebody was faster")
        set_outcome(error, "rolled back")
        assert attempts.failed(attempt, error, 0.0)
        attempt = attempts.next()
        assert attempts.run_of(attempt).lock
    attempts.went_well(attempt)
    return locked


def test_ten_conflicts_in_a_row_make_a_function_hot_and_two_hundred_without_calm() -> None:
    heats: dict[str, Heat] = {}
    assert not any(unit(heats, True) for _ in range(5))
    for _ in range(5):
        unit(heats, True)
    assert heats["f"].hot
    for _ in range(10_000):
        unit(heats, True)
    assert heats["f"].hot
    for _ in range(200):
        unit(heats, False)
    assert "f" not in heats or not heats["f"].hot
    assert not any(unit(heats, False) for _ in range(100))
    assert "f" not in heats


def test_a_hot_function_probes_now_and_then() -> None:
    heats: dict[str, Heat] = {}
    for _ in range(10):
        unit(heats, True)
    locked = [unit(heats, True) for _ in range(640)]
    assert locked.count(False) == 10


def test_a_few_conflicts_among_many_units_do_not_make_it_hot() -> None:
    heats: dict[str, Heat] = {}
    dice = Random(7)
    assert sum(unit(heats, dice.random() < 0.1) for _ in range(5_000)) < 50


def test_nothing_is_remembered_of_what_has_no_name_or_never_conflicts() -> None:
    heats: dict[str, Heat] = {}
    for _ in range(20):
        unit(heats, True, None)
        unit(heats, False, "g")
    assert heats == {}


def test_what_is_remembered_is_bounded() -> None:
    heats: dict[str, Heat] = {}
    for number in range(3 * REMEMBERED):
        unit(heats, True, f"f{number}")
    assert len(heats) == REMEMBERED
