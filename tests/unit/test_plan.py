"""The plan is a pure function: what runs and what is asked go in, a step or an error comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionkit._plan import Options, Propagation, Request, Step, plan, plan_passed
from sessionkit.errors import OptionError, ScopeError, UnknownOptionError
from sessionkit.isolation import Isolation, Preset

if TYPE_CHECKING:
    from collections.abc import Callable

PROPAGATIONS: tuple[Propagation, ...] = get_args(Propagation)


@dataclass
class Unit:
    """A unit of work that runs."""

    name: str = "the scope 'outer'"
    preset: Preset = field(default_factory=Preset)
    level: Isolation = Isolation.SERIALIZABLE
    retried: bool = False
    request: Request = field(default_factory=Request)

    @property
    def read_only(self) -> bool:
        return bool(self.preset.read_only)

    def __str__(self) -> str:
        return self.name


# The whole table of what propagation does. None: an error.
TABLE: dict[Propagation, tuple[Step | None, Step | None, Step | None]] = {
    # no scope runs, one runs, a session was passed in
    "join": (Step.OPEN, Step.JOIN, Step.JOIN),
    "savepoint": (Step.OPEN, Step.SAVEPOINT, Step.SAVEPOINT),
    "new": (Step.OPEN, Step.OPEN, None),
    "require": (None, Step.JOIN, Step.JOIN),
    "forbid": (Step.OPEN, None, None),
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(PROPAGATIONS)


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_every_propagation_does_what_the_table_says(propagation: Propagation) -> None:
    request = Request(propagation)
    decisions: list[Callable[[], Step]] = [
        lambda: plan(None, request),
        lambda: plan(Unit(), request),
        lambda: plan_passed(None, request),
    ]
    for expected, decide in zip(TABLE[propagation], decisions, strict=True):
        if expected is None:
            with pytest.raises(ScopeError, match=f"propagation='{propagation}'"):
                decide()
        else:
            assert decide() is expected


@pytest.mark.parametrize("propagation", ["join", "savepoint", "require"])
def test_a_passed_session_of_a_scope_is_planned_like_that_scope(propagation: Propagation) -> None:
    assert plan_passed(Unit(), Request(propagation)) is plan(Unit(), Request(propagation))


def test_an_error_names_what_runs_and_shows_the_way_out() -> None:
    with pytest.raises(ScopeError, match=r"the scope 'outer' is already open.*propagation='join' or 'new'"):
        plan(Unit(), Request("forbid"))
    with pytest.raises(ScopeError, match=r"no scope of this factory is open.*propagation='join'"):
        plan(None, Request("require"))


@given(st.sampled_from(PROPAGATIONS), st.none() | st.text(), st.none() | st.builds(Unit))
def test_a_name_changes_no_decision(propagation: Propagation, name: str | None, running: Unit | None) -> None:
    def decided(request: Request) -> object:
        try:
            return plan(running, request)
        except ScopeError as error:
            return str(error)

    assert decided(Request(propagation, name)) == decided(Request(propagation))


@given(st.none() | st.builds(Unit), st.sampled_from(PROPAGATIONS))
def test_only_what_runs_can_be_joined(running: Unit | None, propagation: Propagation) -> None:
    try:
        step = plan(running, Request(propagation))
    except ScopeError:
        return
    if running is None:
        assert step is Step.OPEN


# Options

options = st.fixed_dictionaries(
    {}, optional={"propagation": st.sampled_from(PROPAGATIONS), "name": st.none() | st.text()}
)


@given(options, options)
def test_later_options_win_and_the_others_stay(first: dict[str, Any], second: dict[str, Any]) -> None:
    request = Request().but(first, "here").but(second, "here")
    merged = {**first, **second}
    assert request.propagation == merged.get("propagation", "join")
    assert request.name == merged.get("name")


@given(options)
def test_no_options_leave_the_request_as_it_was(given_: dict[str, Any]) -> None:
    request = Request().but(given_, "here")
    assert request.but({}, "here") is request


@given(options)
def test_a_request_is_never_changed_in_place(given_: dict[str, Any]) -> None:
    request = Request()
    request.but(given_, "here")
    assert request == Request()


@given(st.text().filter(lambda name: name not in Options.__annotations__), st.integers())
def test_an_unknown_option_is_never_ignored(name: str, value: int) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        Request().but({name: value}, "somewhere")
    assert caught.value.asked == name
    assert "somewhere" in str(caught.value)


@given(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
def test_a_propagation_is_one_of_the_five_or_an_error(value: Any) -> None:
    if value in PROPAGATIONS:
        assert Request().but({"propagation": value}, "here").propagation == value
        return
    with pytest.raises(OptionError, match="'join', 'savepoint', 'new', 'require', 'forbid'"):
        Request().but({"propagation": value}, "here")


@given(st.booleans() | st.integers() | st.binary() | st.lists(st.text()))
def test_a_name_is_a_string_or_an_error(value: Any) -> None:
    with pytest.raises(OptionError, match="name="):
        Request().but({"name": value}, "here")


@pytest.mark.parametrize("near", sorted(Options.__annotations__))
def test_a_slip_of_the_pen_is_answered_with_the_name_that_was_meant(near: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"did you mean {near!r}"):
        Request().but({f"{near}s": 1}, "here")
