"""Processes that increment one row while the server under them is killed: what was acknowledged is there, and no more.

`SESSIONKIT_LONG=1` runs 8 processes with 5,008 increments in all; otherwise there are 4 with 320.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine, insert, select, text, update

from sessionkit import Retry, commits, errors
from tests.concurrency.incrementer import Task
from tests.support.clusters import Cluster
from tests.support.faults import Fault, FaultProxy, Struck
from tests.support.models import Account, Shift
from tests.support.postgres import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.databases import SqliteDatabases
    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
PROCESSES, COUNT = (8, 626) if LONG else (4, 80)

pytestmark = pytest.mark.timeout(1800 if LONG else 300)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server of this file's own. It flushes its WAL at COMMIT: what it acknowledged outlives an immediate restart."""
    cluster = Cluster(replicas=0)
    engine = create_engine(cluster.primary.url("psycopg"))
    commits.create_table(engine)
    engine.dispose()
    yield cluster
    cluster.close()


@contextmanager
def processes(task: Task, number: int = PROCESSES) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.concurrency.incrementer", json.dumps(asdict(task))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def told_by(started: list[subprocess.Popen[str]]) -> Counter[str]:
    told: Counter[str] = Counter()
    for process in started:
        out, err = process.communicate(timeout=1500 if LONG else 240)
        assert process.returncode == 0, err
        told.update(json.loads(out))
    return told


class Fire:
    """Faults, in turn and at random, with the server and with the links to it."""

    def __init__(self, cluster: Cluster, proxy: FaultProxy, seed: int) -> None:
        self._cluster = cluster
        self._proxy = proxy
        self._dice = random.Random(seed)
        self.struck: Counter[str] = Counter()
        self._waiting: Struck | None = None
        self._running = lambda: True
        self._pace = threading.Event()  # never set
        self._faults: list[tuple[int, Callable[[], None]]] = [
            (8, self._terminate),
            (2, self._kill),
            (6, lambda: self._at_commit("COMMIT lost", Fault.LOSE)),
            (6, lambda: self._at_commit("answer lost", Fault.LOSE_REPLY)),
            (2, lambda: self._at_commit("killed in COMMIT", Fault.PASS, self._kill_9)),
            (3, self._reset),
        ]

    def run(self, started: list[subprocess.Popen[str]]) -> None:
        """Go on until a process is done; now and then restart the server in the middle of a COMMIT.

        Not longer: the last one would have every COMMIT of its own struck, and every question that follows it too.
        """
        self._running = lambda: all(process.poll() is None for process in started)
        weights = [weight for weight, _ in self._faults]
        restart_at = 5
        while self._running():
            self._pace.wait(0.05)
            (fault,) = self._dice.choices([fault for _, fault in self._faults], weights)
            if sum(self.struck.values()) >= restart_at:
                fault = self._restart_in_commit
                restart_at += 150
            with suppress(psycopg.OperationalError):  # the server recovers from the last one
                fault()

    def _pid(self) -> int | None:
        found = self._cluster.primary.sql(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return self._dice.choice(found)[0] if found else None

    def _terminate(self) -> None:
        if (pid := self._pid()) is not None:
            self._cluster.primary.sql(f"SELECT pg_terminate_backend({pid})")
            self.struck["terminated"] += 1

    def _kill(self) -> None:
        if (pid := self._pid()) is not None:
            self._kill_9(pid)
            self.struck["killed"] += 1

    @staticmethod
    def _kill_9(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _at_commit(self, name: str, fault: Fault, then: Callable[[int], object] = lambda _: None) -> None:
        # One at a time: a fault that waits for its COMMIT must not be followed by a queue of others.
        if self._waiting is None or self._waiting.struck:
            self._waiting = self._proxy.at("COMMIT", fault, then)
            self.struck[name] += 1

    def _reset(self) -> None:
        self._proxy.reset()
        self.struck["links reset"] += 1

    def _restart_in_commit(self) -> None:
        fault = self._proxy.at("COMMIT", Fault.PASS, lambda _: self._cluster.primary.stop(signal.SIGQUIT))
        while not fault.struck and self._running():
            self._pace.wait(0.01)
        fault.call_off()
        if fault.struck:
            self._cluster.primary.start()
            self.struck["restarted"] += 1


def prepare(cluster: Cluster) -> None:
    cluster.heal()
    cluster.primary.sql("TRUNCATE sessionkit_commit")
    cluster.primary.sql("INSERT INTO accounts (id, owner, balance) VALUES (1, 'all', 0)")


@pytest.mark.postgresql
@pytest.mark.parametrize("verify", [False, True], ids=["without verify_commit", "with verify_commit"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_what_was_acknowledged_under_fire_is_there_and_no_more(cluster: Cluster, driver: str, verify: bool) -> None:
    prepare(cluster)
    with FaultProxy("127.0.0.1", cluster.primary.port) as proxy:
        url = cluster.primary.url(driver).set(port=proxy.port).render_as_string(hide_password=False)
        fire = Fire(cluster, proxy, seed=PROCESSES + verify)
        with processes(Task(url, COUNT, verify)) as started:
            fire.run(started)
            told = told_by(started)
    [(final,)] = cluster.primary.sql("SELECT balance FROM accounts WHERE id = 1")
    acknowledged, unknown, hooks = (told.pop(name, 0) for name in ("acknowledged", "unknown", "hooks"))
    told.pop("retries", None)
    assert not told, f"told besides, under {dict(fire.struck)}: {dict(told)}"
    assert acknowledged + unknown == PROCESSES * COUNT
    assert hooks == acknowledged
    assert acknowledged <= final <= acknowledged + unknown, f"{final} with {unknown} unknown, {dict(fire.struck)}"
    if verify:
        assert (unknown, final) == (0, acknowledged)
        [(committed,)] = cluster.primary.sql("SELECT count(*) FROM sessionkit_commit WHERE state = 'C'")
        assert committed == acknowledged
    else:
        assert unknown, f"nothing was ever unknown, under {dict(fire.struck)}"


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_contended_increments_lose_nothing_and_nobody_gives_up(cluster: Cluster, driver: str) -> None:
    prepare(cluster)
    url = cluster.primary.url(driver).render_as_string(hide_password=False)
    with processes(Task(url, COUNT)) as started:
        told = told_by(started)
    retries = told.pop("retries", 0)
    assert retries > 0, "they never met"
    assert told == {"acknowledged": PROCESSES * COUNT, "hooks": PROCESSES * COUNT}
    assert cluster.primary.sql("SELECT balance FROM accounts WHERE id = 1") == [(PROCESSES * COUNT,)]


@pytest.mark.sqlite
def test_writers_of_one_sqlite_file_lose_nothing_need_no_retry_and_never_hear_of_a_lock(
    sqlite_databases: SqliteDatabases, tmp_path: Any
) -> None:
    database = sqlite_databases.new(tmp_path / "writers.db")
    with database.observer.begin() as connection:
        connection.execute(text("INSERT INTO accounts (id, owner, balance) VALUES (1, 'all', 0)"))
    url = database.url("pysqlite").render_as_string(hide_password=False)
    with processes(Task(url, COUNT, attempts=1), number=4) as started:
        told = told_by(started)
    assert told == {"acknowledged": 4 * COUNT, "hooks": 4 * COUNT}
    with database.observer.connect() as connection:
        assert connection.scalar(text("SELECT balance FROM accounts")) == 4 * COUNT
    database.close()


# In one process: what needs a second look at COMMIT, and who locks in two orders


@pytest.mark.doors("postgresql-sync", "postgresql-async")
async def test_doctors_who_go_off_duty_at_random_never_leave_nobody_on_call(doors: Door) -> None:
    """Write skew: each sees that the other stays. Only at SERIALIZABLE one of the two COMMITs fails, and is replayed."""
    doctors = [f"doctor {number}" for number in range(4)]
    await doors.write(insert(Shift).values([{"doctor": name, "on_call": True} for name in doctors]))
    failures: list[str] = []
    empty: list[int] = []

    async def toggle(session: Any, doctor: str) -> None:
        on_call = (await session.scalars(select(Shift.doctor).where(Shift.on_call))).all()
        if not on_call:
            empty.append(1)
        leaves = doctor in on_call and len(on_call) > 1
        await session.execute(update(Shift).where(Shift.doctor == doctor).values(on_call=not leaves))

    retry = Retry(100, wait=0.002, before_retry=lambda attempt: failures.append(str(attempt.error)))
    run = doors.decorate(toggle, isolation="SERIALIZABLE", retry=retry)

    def body(doctor: str) -> Callable[[], Any]:
        async def work() -> None:
            for _ in range(15):
                await run(doctor)

        return work

    await doors.together(*map(body, doctors))
    assert empty == []
    assert failures, "they never met"


@pytest.mark.doors("postgresql-sync", "postgresql-async")
async def test_transfers_in_all_directions_deadlock_and_no_money_is_made_or_lost(doors: Door) -> None:
    accounts = 3
    await doors.write(insert(Account).values([{"id": number, "balance": 1000} for number in range(1, accounts + 1)]))
    kinds: Counter[str] = Counter()

    async def transfer(session: Any, source: int, target: int) -> None:
        for account, amount in ((source, -1), (target, 1)):
            await session.execute(update(Account).where(Account.id == account).values(balance=Account.balance + amount))

    def before(attempt: Any) -> None:
        kinds[errors.classify(attempt.error).kind] += 1

    run = doors.decorate(transfer, retry=Retry(100, wait=0.002, before_retry=before))

    def body(seed: int) -> Callable[[], Any]:
        dice = random.Random(seed)

        async def work() -> None:
            for _ in range(10):
                await run(*dice.sample(range(1, accounts + 1), 2))

        return work

    await doors.together(*map(body, range(4)))
    assert await doors.scalar("SELECT sum(balance) FROM accounts") == 1000 * accounts
    assert set(kinds) <= {"deadlock_detected"}
