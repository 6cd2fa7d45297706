"""The log of failures against its model: a stack of savepoints, each with what failed in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from sessionkit._core.connection import FailureLog


class Step(NamedTuple):
    """One thing that happens on a connection. `place` chooses among the savepoints that are set."""

    what: Literal["set", "fail", "fail to set", "roll back", "release"]
    place: int = 0


@dataclass
class Model:
    """What SQL says: RELEASE hands what happened to the savepoint around, ROLLBACK TO undoes it."""

    levels: list[list[BaseException]] = field(default_factory=lambda: [[]])
    names: list[str] = field(default_factory=list)
    made: int = 0

    def set(self) -> str:
        self.made += 1
        self.names.append(f"sp{self.made}")
        self.levels.append([])
        return self.names[-1]

    def roll_back(self, depth: int) -> str:
        name = self.names[depth]
        del self.names[depth:], self.levels[depth + 1 :]
        return name

    def release(self, depth: int) -> str:
        name = self.names[depth]
        for level in self.levels[depth + 1 :]:
            self.levels[depth].extend(level)
        del self.names[depth:], self.levels[depth + 1 :]
        return name

    def first(self, depth: int) -> BaseException | None:
        # (In the order in which they failed: an error is made with its number.)
        failed = [error for level in self.levels[depth:] for error in level]
        return min(failed, key=lambda error: error.args[0], default=None)


steps = st.lists(
    st.builds(Step, st.sampled_from(["set", "fail", "fail to set", "roll back", "release"]), st.integers(0, 5)),
    max_size=40,
)


def run(happened: list[Step]) -> tuple[Model, FailureLog]:
    model, log = Model(), FailureLog()
    for number, (what, place) in enumerate(happened):
        if what == "set":
            log.set(model.set())
        elif what == "fail":
            error = LookupError(number)
            model.levels[-1].append(error)
            log.failed(error)
        elif what == "fail to set":
            error = LookupError(number)  # the innermost savepoint is the one before
            model.levels[-1].append(error)
            log.failed(error)
        elif model.names:
            depth = place % len(model.names)
            if what == "roll back":
                log.rolled_back_to(model.roll_back(depth))
            else:
                log.released(model.release(depth))
    return model, log


def error_of(log: FailureLog, depth: int = 0) -> BaseException | None:
    failure = log.first(depth)
    return None if failure is None else failure.error


@given(steps)
def test_the_first_failure_that_nothing_has_undone_is_known(happened: list[Step]) -> None:
    model, log = run(happened)
    assert error_of(log) is model.first(0)


@given(steps)
def test_the_first_failure_inside_each_savepoint_is_known(happened: list[Step]) -> None:
    model, log = run(happened)
    assert log.depth == len(model.names)
    for depth in range(log.depth + 1):
        assert error_of(log, depth) is model.first(depth)


@given(steps)
def test_rolling_back_to_the_outermost_savepoint_leaves_what_failed_before_it(happened: list[Step]) -> None:
    before = LookupError(-1)
    model, log = run(happened)
    model_before = list(model.levels[0])
    if model.names:
        log.rolled_back_to(model.roll_back(0))
    first = min(model_before, key=lambda error: error.args[0], default=None)
    assert error_of(log) is first
    log.failed(before)
    assert error_of(log) is (first or before)


@given(steps, st.text())
def test_a_name_that_is_not_set_undoes_nothing(happened: list[Step], name: str) -> None:
    model, log = run(happened)
    if name in model.names:
        return
    log.rolled_back_to(name)
    log.released(name)
    assert error_of(log) is model.first(0)
    assert log.depth == len(model.names)


def test_one_error_that_is_seen_twice_is_one_failure() -> None:
    """SQLAlchemy tells of an error at each layer that it passes."""
    log = FailureLog()
    error = LookupError()
    log.failed(error)
    log.set("sp1")
    log.failed(error)
    log.rolled_back_to("sp1")
    assert error_of(log) is error


def test_failures_of_several_logs_have_one_order() -> None:
    one, other = FailureLog(), FailureLog()
    first, second = LookupError("first"), LookupError("second")
    other.failed(first)
    one.failed(second)
    failures = [one.first(), other.first()]
    assert min(f for f in failures if f is not None).error is first
