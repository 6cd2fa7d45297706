"""Law 13: nothing is paid for what is not used. Python calls, counted as a difference to plain SQLAlchemy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.sqlite

PROGRAM = Path(__file__).with_name("counting.py")

# What DESIGN.md, section 5, allows beside `sessionmaker.begin()` in a process that never imports sessionkit.
EMPTY = -4
ONE_SELECT = 45
FURTHER_SELECT = 4.5
JOINED = 25


@cache
def counts(*kind: str) -> dict[str, Any]:
    """Return what the units of a process of its own cost, each SELECT after the first one included."""
    # Without what a measuring run puts into its children: it would be counted too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *kind], capture_output=True, text=True, check=False, timeout=100, env=environment
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["further"] = (seen["eleven"] - seen["one"]) / 10
    return seen


def beside_plain(what: str, *kind: str) -> float:
    seen: float = counts(*kind)[what] - counts("plain")[what]
    return seen


def test_an_empty_scope_makes_fewer_calls_than_a_plain_begin() -> None:
    assert beside_plain("empty", "scope") <= EMPTY


def test_a_scope_with_one_select_makes_few_calls_more_than_plain_which_sends_no_begin_and_no_commit() -> None:
    assert beside_plain("one", "scope") <= ONE_SELECT


def test_each_further_select_of_a_scope_costs_what_it_costs_in_a_plain_session() -> None:
    assert beside_plain("further", "scope") <= FURTHER_SELECT


def test_joining_a_scope_costs_a_few_calls() -> None:
    assert counts("scope")["joined"] <= JOINED


@pytest.mark.parametrize("what", ["empty", "one", "eleven", "ten of a plain session"])
@pytest.mark.parametrize("kind", ["imported", "used"])
def test_a_session_that_is_not_ours_makes_not_one_call_more(kind: str, what: str) -> None:
    """Neither because sessionkit was imported, nor because scopes have used its engine before."""
    assert counts(kind)[what] == counts("plain")[what]


def test_a_plain_session_on_an_engine_whose_scopes_are_warm_makes_not_one_call_more() -> None:
    assert beside_plain("ten of a plain session", "scope") == 0


@pytest.mark.parametrize("planted", ["engine", "session", "begin"])
def test_a_listener_on_the_engine_or_on_the_session_class_would_be_seen(planted: str) -> None:
    """The tests above are worth something: whoever puts a listener where all sessions pay for it turns them red."""
    risen = counts("scope", planted)["ten of a plain session"] - counts("scope")["ten of a plain session"]
    assert risen > 0
    assert counts("used", planted)["ten of a plain session"] > counts("plain")["ten of a plain session"]


@pytest.mark.parametrize("planted", ["engine", "session"])
def test_the_first_listener_that_statements_pay_for_breaks_the_limit_of_a_further_select(planted: str) -> None:
    """The limit is less than what the first listener costs: SQLAlchemy takes another way where there is one."""
    assert counts("plain", planted)["further"] - counts("plain")["further"] > FURTHER_SELECT
