"""The doctor as a user runs it, read by its JSON."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from sessionkit.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.doors import Door


@dataclass(frozen=True)
class Seen:
    """What it has said."""

    exit_status: int
    document: dict[str, Any]

    def all(self, status: str) -> set[str]:
        """Return the checks that have ended so."""
        return {each["check"] for each in self.document["findings"] if each["status"] == status}

    def of(self, check: str) -> list[dict[str, Any]]:
        return [each for each in self.document["findings"] if each["check"] == check]

    def one(self, check: str, status: str) -> str:
        """Return the words of a finding, of which there must be one with that status."""
        (found,) = self.of(check)
        assert found["status"] == status, found
        assert bool(found["advice"]) == (status != "ok"), "advice is given where there is something to do"
        return f"{found['found']} -> {found['advice']}" if found["advice"] else str(found["found"])


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., Seen]:
    """Run `sessionkit doctor --json` with arguments."""

    def run(*arguments: object) -> Seen:
        capsys.readouterr()
        status = main(["doctor", "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert not err
        return Seen(status, json.loads(out))

    return run


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module into the working directory, and return its name: the application of whom the doctor is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made: list[str] = []

    def write(source: str) -> str:
        name = f"shop_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(HEAD + dedent(source))
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


HEAD = """
from sqlalchemy import *
from sqlalchemy.ext.asyncio import *
from sqlalchemy.orm import *
from sqlalchemy.pool import *
from sessionkit import *
from sessionkit import sqlite
"""


def url_of(doors: Door) -> str:
    """Return the address that a user of the door would give."""
    driver = "psycopg_async" if (doors.driver, doors.colour) == ("psycopg", "async") else doors.driver
    return doors.database.url(driver).render_as_string(hide_password=False)


def wait_for_the_doctor() -> None:
    """Wait for the thread of a doctor who has gone without it: what it waited for is there now."""
    for thread in threading.enumerate():
        if thread.name == "sessionkit-doctor":
            thread.join(30)
