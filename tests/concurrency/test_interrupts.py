"""An interrupt may arrive at any line: it passes, nothing is committed by half, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

import sessionkit
from sessionkit import on_commit, on_rollback
from tests.support.models import User

if TYPE_CHECKING:
    from types import FrameType

    from tests.support.doors import Door

HOME = str(Path(sessionkit.__file__).parent)


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, raised where the test wants it."""


class AtLine:
    """Raises an interrupt at the n-th line of sessionkit's own that this thread comes to."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.raised_at: str | None = None

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(HOME) else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.raised_at = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise Interrupt
        return self._line


class Attempt:
    """One unit of work, interrupted at one line of its body, in a thread that can be given up."""

    def __init__(self, doors: Door, number: int) -> None:
        self.name = f"user {number}"
        self.at = AtLine(number)
        self.hooks: list[str] = []
        self.error: BaseException | None = None
        self._doors = doors
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(20)
        self.hangs = thread.is_alive()

    def _run(self) -> None:
        try:
            with self._doors.Session.scope() as session:
                on_commit(lambda: self.hooks.append("commit"))
                on_rollback(lambda: self.hooks.append("rollback"))
                with self.at:
                    session.add(User(name=self.name))
                    session.flush()
                    with self._doors.Session.scope(propagation="savepoint") as inner:
                        inner.add(User(name=f"{self.name} inside"))
                    session.execute(update(User).values(email="here"))
        except BaseException as error:  # noqa: BLE001 - which one is what the test asks
            self.error = error


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_an_interrupt_at_any_line_of_the_body_passes_and_rolls_back(doors: Door) -> None:
    async with doors.scope() as session:
        await session.execute(select(User.name))  # what is done once is done
    number = 0
    while True:
        number += 1
        attempt = Attempt(doors, number)
        place = f"interrupted at {attempt.at.raised_at}"
        assert not attempt.hangs, f"{place}, the scope waits for ever"
        assert doors.checked_out() == 0, place
        there = {name for (name,) in await doors.rows(select(User.name))}
        if attempt.at.raised_at is None:
            break
        assert isinstance(attempt.error, Interrupt), place
        assert there == set(), place
        assert attempt.hooks == ["rollback"], place
    assert attempt.error is None
    assert there == {attempt.name, f"{attempt.name} inside"}
    assert attempt.hooks == ["commit"]
    assert number > 50, "it was not interrupted where it matters"
