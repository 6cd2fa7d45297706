"""The fixture `races`, in a pytest of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations import kit

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.own_database]

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from conftest import Session
from sqlalchemy import text

READ = text("SELECT balance FROM accounts WHERE id = 1")
WRITE = text("UPDATE accounts SET balance = :balance WHERE id = 1")

async def fill():
    async with Session.scope() as session:
        await session.execute(text("INSERT INTO accounts (id, owner, balance) VALUES (1, 'ann', 100)"))

async def withdraw(amount, lock=""):
    async with Session.scope() as session:
        balance = (await session.execute(text(READ.text + lock))).scalar_one()
        if balance < amount:
            return "refused"
        await session.execute(WRITE, {"balance": balance - amount})
        return "paid"

def run(races, lock="", **options):
    return races(lambda: withdraw(70, lock), lambda: withdraw(70, lock), setup=fill, **options)

WRONG = "POSTGRES"

@pytest.mark.plain
def test_on_a_copy_of_its_own(races):
    found = run(races)
    assert bool(found.failures) == (WRONG == "postgresql")
    assert found.names == ("withdraw", "withdraw")

@pytest.mark.sessionkit(mode="template")
def test_on_the_copy_of_the_test(races):
    for _ in range(2):  # and leaves it as it was
        assert bool(run(races).failures) == (WRONG == "postgresql")

@pytest.mark.sessionkit(mode="template")
def test_a_wrong_one_fails(races):
    run(races).assert_serial()

@pytest.mark.plain
def test_the_right_one_passes(races):
    run(races, lock=" FOR UPDATE" if WRONG == "postgresql" else "").assert_serial()

def test_in_rollback_mode(races):
    run(races)
"""


def in_sync(source: str) -> str:
    return source.replace("async def", "def").replace("async with", "with").replace("await ", "")


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
async def test_the_fixture_knows_the_factories_and_refuses_what_it_cannot_do(
    doors: Door, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = kit.Project(pytester, doors, monkeypatch)
    await project.alone()
    source = TESTS.replace("POSTGRES", doors.backend)
    result = project.run(test_races=source if doors.colour == "async" else in_sync(source))
    wrong = doors.backend == "postgresql"
    result.assert_outcomes(passed=4 - wrong, failed=1 + wrong)
    expected = ['*OptionError: races() was called in a test whose units share one connection*mode="template"*']
    if wrong:
        expected = ['*replay with seed="1*', *expected]
    result.stdout.fnmatch_lines(expected)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-sync")
async def test_without_factories_it_says_which_fixture_to_write(
    doors: Door, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = kit.Project(pytester, doors, monkeypatch)
    result = project.run(conftest="", test_races="def test_it(races): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture sessionkit_factories in conftest.py*"])
