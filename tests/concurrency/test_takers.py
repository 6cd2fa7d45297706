"""Takers of one table of jobs, as processes that are killed: none is done twice, none is lost.

`SESSIONKIT_LONG=1` gives 8 takers 10,000 jobs and kills some of them; otherwise there are 2,000 jobs.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, insert, select, text

from sessionkit import locks, sessionmaker, sqlite
from tests.support.models import Account
from tests.support.postgres import ROOT

if TYPE_CHECKING:
    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
JOBS = 10_000 if LONG else 2_000
TAKERS = 8
AT_ONCE = 20

pytestmark = [pytest.mark.timeout(900 if LONG else 180), pytest.mark.doors("sqlite-sync", "postgresql-sync")]


def work(url: str, name: str) -> None:
    """Take jobs until there are none, and write down who has done each: twice would be two marks."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine, busy_timeout=60)
    session_of = sessionmaker(engine)
    query = select(Account).where(Account.balance == 0).order_by(Account.id)
    while True:
        with session_of.scope() as session:
            jobs = locks.take(session, query, limit=AT_ONCE)
            for job in jobs:
                job.balance += 1
                job.owner = name
        if not jobs:
            return


async def test_each_job_is_done_once_though_takers_are_killed(doors: Door) -> None:
    await doors.write(insert(Account).values([{"id": number, "owner": "", "balance": 0} for number in range(JOBS)]))
    dice = random.Random(7)
    url = doors.engine.url.render_as_string(hide_password=False)

    def started(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.concurrency.test_takers", url, str(number)], cwd=ROOT)

    takers = {number: started(number) for number in range(TAKERS)}
    killed = 0
    try:
        while killed < 4 and await doors.rows("SELECT 1 FROM accounts WHERE balance = 0 LIMIT 1"):
            if (await doors.scalar("SELECT count(*) FROM accounts WHERE balance = 1")) < (killed + 1) * JOBS // 6:
                continue
            number = dice.choice(sorted(takers))
            takers[number].send_signal(signal.SIGKILL)
            takers[number].wait()
            takers[number] = started(number)
            killed += 1
        for taker in takers.values():
            assert taker.wait() == 0
    finally:
        for taker in takers.values():
            taker.kill()
    assert await doors.rows(text("SELECT balance, count(*) FROM accounts GROUP BY balance")) == [(1, JOBS)]


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])
