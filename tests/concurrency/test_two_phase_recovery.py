"""Whoever dies in the middle of a two-phase commit, no unit is torn, and recovery leaves nothing prepared."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import binding, errors
from tests.concurrency.transfers import STEPS, arm, async_transfer, sync_transfer
from tests.contract.many import Two, two_databases
from tests.support.models import Account
from tests.support.postgres import ROOT

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.doors("postgresql-sync", "postgresql-async")

# Where a unit is decided: from the moment that the first database has committed.
DECIDED = {"1 COMMIT after", "2 COMMIT before", "2 COMMIT after"}


async def two_accounts(doors: Door) -> Two:
    two = two_databases(doors, pool_pre_ping=True)
    await two.make_markers()
    for engine in (two.users, two.pledges):
        async with doors.scope(doors.factory(engine)) as session:
            session.add(Account(id=1, balance=1000))
    return two


async def balances(two: Two) -> tuple[int, int]:
    found = []
    for engine in (two.users, two.pledges):
        async with two.doors.enter(engine.connect()) as connection:
            found.append((await connection.execute(text("SELECT balance FROM accounts WHERE id = 1"))).scalar_one())
    return found[0], found[1]


async def recover(two: Two) -> list[str | None]:
    ask = two.doors.twin(binding.recover_prepared, binding.async_recover_prepared)
    found: list[binding.PreparedTransaction] = await ask(two.users, two.pledges, older_than=0)
    return [each.decision for each in found]


def transfer_in_a_process(two: Two, amount: int, step: str | None = None) -> subprocess.Popen[bytes]:
    urls = [engine.url.render_as_string(hide_password=False) for engine in (two.users, two.pledges)]
    command = [sys.executable, "-m", "tests.concurrency.transfers", two.doors.driver, *urls, str(amount)]
    return subprocess.Popen([*command, *([step] if step else [])], cwd=ROOT)


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_that_is_killed_at_any_step_leaves_all_or_nothing(doors: Door, step: str) -> None:
    two = await two_accounts(doors)
    process = transfer_in_a_process(two, 100, step)
    assert process.wait(60) == -signal.SIGKILL
    decisions = await recover(two)
    assert await balances(two) == ((900, 1100) if step in DECIDED else (1000, 1000))
    assert set(decisions) <= {"committed" if step in DECIDED else "rolled back"}
    assert await two.prepared() == []
    assert await recover(two) == []


@pytest.mark.parametrize("step", STEPS)
async def test_a_backend_that_is_killed_at_any_step_leaves_all_or_nothing(doors: Door, step: str) -> None:
    two = await two_accounts(doors)
    engines = [two.users_sync, two.pledges_sync]
    victim = engines[int(step[0]) - 1]
    killed: list[int] = []

    def kill() -> None:
        if killed:
            return
        with victim.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
            others = text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            killed.append(len(other.execute(others).all()))

    arm(engines, step, kill)
    told = "committed"
    try:
        await doors.twin(sync_transfer, async_transfer)([two.users, two.pledges], 100)
    except (DBAPIError, errors.CommitOutcomeUnknown) as error:
        told = errors.outcome_of(error)
    assert killed
    await recover(two)
    became = {(900, 1100): "committed", (1000, 1000): "rolled back"}[await balances(two)]
    assert told in (became, "unknown")
    assert (told == "unknown") == (step in {"1 PREPARE after", "1 COMMIT before"}), "only the decision has no answer"
    assert await two.prepared() == []


async def test_transfers_that_are_killed_while_others_recover_lose_and_make_no_money(doors: Door) -> None:
    two = await two_accounts(doors)
    rng = random.Random(7)
    committed = 0
    for _ in range(4):
        steps = [rng.choice(STEPS), None, rng.choice(STEPS)]
        processes = [transfer_in_a_process(two, 10, step) for step in steps]
        try:
            while any(process.poll() is None for process in processes):
                # At any moment, also in the middle of a commit that nobody kills.
                await recover(two)
        finally:
            for process in processes:
                process.kill()
                process.wait(30)
        assert {process.returncode for process in processes} <= {0, 1, -signal.SIGKILL}
        committed += sum(process.returncode == 0 for process in processes)
    await recover(two)
    first, second = await balances(two)
    assert first + second == 2000
    assert 1000 - first >= 10 * committed, "a unit that was told to be committed is gone"
    assert await two.prepared() == []
