"""Which savepoints of a session were rolled back, against a model, with SQLAlchemy's own session doing the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session, SessionTransaction

from sessionkit._core.savepoints import Savepoints, within

What = Literal["begin", "commit", "rollback", "note"]


@dataclass
class Level:
    """A savepoint of the model."""

    transaction: SessionTransaction
    parent: Level | None
    rolled_back: bool = False

    def survives(self) -> bool:
        return not self.rolled_back and (self.parent is None or self.parent.survives())


def run(happened: list[What], *, followed_from: int = 0) -> tuple[Savepoints, list[Level]]:
    """Let it happen on a session (no database is needed to nest); follow it from some point on."""
    session = Session()
    session.begin()
    savepoints = Savepoints(session) if followed_from == 0 else None
    current: Level | None = None
    levels: list[Level] = []
    for number, what in enumerate(happened):
        if savepoints is None and number >= followed_from:
            savepoints = Savepoints(session)
        if what == "begin":
            current = Level(session.begin_nested(), current)
            levels.append(current)
        elif what == "note" and savepoints is not None:
            assert session.get_nested_transaction() is (None if current is None else current.transaction)
        elif current is not None and what in {"commit", "rollback"}:
            if what == "commit":
                current.transaction.commit()
            else:
                current.transaction.rollback()
                current.rolled_back = savepoints is not None
            current = current.parent
    return savepoints or Savepoints(session), levels


happenings = st.lists(st.sampled_from(["begin", "begin", "commit", "rollback", "note"]), max_size=30)


@given(happenings)
def test_what_was_noted_survives_unless_a_savepoint_around_it_was_rolled_back(happened: list[What]) -> None:
    savepoints, levels = run(happened)
    for level in levels:
        assert savepoints.survives(level.transaction) is level.survives()
    assert savepoints.survives(None)


@given(happenings, st.integers(0, 30))
def test_a_savepoint_that_was_open_already_is_followed_from_then_on(happened: list[What], start: int) -> None:
    savepoints, levels = run(happened, followed_from=start)
    for level in levels:
        assert savepoints.survives(level.transaction) is level.survives()


@given(happenings)
def test_a_level_is_within_itself_and_all_around_it(happened: list[What]) -> None:
    _, levels = run(happened)
    for level in levels:
        around = set()
        enclosing: Level | None = level
        while enclosing is not None:
            around.add(id(enclosing))
            enclosing = enclosing.parent
        for other in levels:
            assert within(level.transaction, other.transaction) is (id(other) in around)
        assert not within(None, level.transaction)


def test_rolling_back_to_an_outer_savepoint_undoes_those_inside_it() -> None:
    session = Session()
    savepoints = Savepoints(session)
    outer = session.begin_nested()
    inner = session.begin_nested()
    outer.rollback()
    assert not savepoints.survives(outer)
    assert not savepoints.survives(inner)


def test_a_rollback_of_the_whole_transaction_is_no_rollback_of_a_savepoint() -> None:
    """It is the outcome that tells of it."""
    session = Session()
    savepoints = Savepoints(session)
    released = session.begin_nested()
    released.commit()
    session.rollback()
    assert savepoints.survives(released)
    assert savepoints.survives(None)
