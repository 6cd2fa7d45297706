"""A primary dies under its writers and its standby is promoted: what was acknowledged is there, once, and units go on.

`SESSIONKIT_LONG=1` has more writers, a longer time without a primary, and several rounds.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import Retry, async_sessionmaker, commits, errors, on_commit, sessionmaker
from tests.support.clusters import Cluster, Node
from tests.support.models import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from sessionkit.retry import Attempt
    from tests.support.doors import Door

LONG = bool(os.environ.get("SESSIONKIT_LONG"))
ROUNDS, WRITERS, UNITS = (4, 6, 150) if LONG else (1, 3, 15)
"""How often; how many writers each driver has; how many units each does before the primary dies, and after."""
WITHOUT = 15.0 if LONG else 2.5
"""How long nobody is promoted, in seconds: what it takes to notice, and to decide. No outcome depends on it."""
PATIENT = Retry(10_000, timeout=60 + WITHOUT)

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(900 if LONG else 180)]


def read_write(url: URL) -> URL:
    """Have an engine connect only to a server that takes writes."""
    return url.update_query_dict({"target_session_attrs": "read-write"})


def make_markers(node: Node) -> None:
    engine = create_engine(node.url("psycopg"))
    commits.create_table(engine)
    engine.dispose()


class Site:
    """A primary, its synchronous standby, and a replica that follows the standby."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.primary = cluster.primary
        make_markers(self.primary)
        self.standby = cluster.replica("standby")
        self.replica = cluster.replica("replica", follows=self.standby)
        # After the standby was cloned: promoted with this setting, it would wait for a standby that it does not have.
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.sql("SELECT pg_reload_conf()")
        until(lambda: self.primary.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))

    def readers(self) -> list[Engine]:
        """Return engines of the two that are readers before the promotion."""
        return [create_engine(node.url("psycopg")) for node in (self.standby, self.replica)]

    def url(self, driver: str) -> URL:
        """Return the address of whichever of the two takes writes."""
        hosts = tuple(f"127.0.0.1:{node.port}" for node in (self.primary, self.standby))
        url = URL.create(f"postgresql+{driver}", username="postgres", database="postgres", query={"host": hosts})
        return read_write(url)


@pytest.fixture
def site() -> Iterator[Site]:
    cluster = Cluster(replicas=0)
    try:
        yield Site(cluster)
    finally:
        if cluster.primary.pid is None:
            cluster.primary.start()  # only its next start removes what a killed server leaves in shared memory
        cluster.close()


def until(found: Callable[[], Any]) -> Any:
    """Wait until something is so."""
    ends = time.monotonic() + (300 if LONG else 60)
    while not (result := found()):
        assert time.monotonic() < ends, "it did not become so"
        time.sleep(0.005)
    return result


class Place(enum.IntEnum):
    """Where the primary's death finds a writer, by its number."""

    ARRIVES = 0  # its COMMIT waits for the standby, which has it in its mail
    IS_LOST = 1  # its COMMIT waits for the standby, to which nothing was sent
    IN_BODY = 2  # it is about to send its next statement

    @classmethod
    def of(cls, number: int) -> Place:
        return cls(number % len(cls))


class Gates:
    """Where the writers are halted, each before it goes on to its place."""

    def __init__(self) -> None:
        self.shut = threading.Event()
        self.open = {place: threading.Event() for place in Place}

    def release(self) -> None:
        for gate in self.open.values():
            gate.set()


@dataclass
class Told:
    """What the writers of one driver were told, and when.

    Attributes:
        acknowledged: when, for each of them.
        halted: the units that the primary's death found in a `Place`.
        bodies: how often the body of each unit was run.
        hooks: how often the hook of each was run.
        own: when they looked for what they had just written, on which port, and how often it was there.
        connects: when a connection was tried to be made.
        failed: what was raised to them.
    """

    acknowledged: list[list[float]] = field(default_factory=lambda: [[] for _ in range(WRITERS)])
    halted: set[str] = field(default_factory=set)
    bodies: Counter[str] = field(default_factory=Counter)
    hooks: Counter[str] = field(default_factory=Counter)
    own: list[tuple[float, int, int]] = field(default_factory=list)
    connects: list[float] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)


class Reader:
    """A thread that has written nothing, and reads all the time. It reads whether there is a primary or not."""

    def __init__(self, site: Site) -> None:
        self.seen: list[float] = []
        self.failed: list[BaseException] = []
        self._ends = threading.Event()
        self._primary = create_engine(site.url("psycopg"))
        self._readers = site.readers()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        session_of = sessionmaker(self._primary, readers=self._readers)
        try:
            while not self._ends.wait(0.005):
                with session_of.scope(read_only=True) as session:
                    where(session)
                self.seen.append(time.monotonic())
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.failed.append(error)

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()
        for engine in (self._primary, *self._readers):
            engine.dispose()

    def between(self, begin: float, end: float) -> int:
        """Return how often it has read."""
        return sum(begin < when < end for when in self.seen)

    def longest_pause(self) -> float:
        return max(after - before for before, after in pairwise(self.seen))


def where(session: Any) -> int:
    """Return the port of the server that a session talks to."""
    port: int = session.execute(text("SELECT inet_server_port()")).scalar_one()
    return port


def reads(session_of: Any, name: str) -> tuple[int, int]:
    """Look for what was written under a name; return on which port, and how often it is there."""
    found = select(func.count()).select_from(Account).where(Account.owner == name)
    with session_of.scope(read_only=True) as session:
        return where(session), session.execute(found).scalar_one()


class Writers:
    """The writers of one driver, in a thread each or in tasks."""

    def __init__(self, site: Site, driver: str, gates: Gates) -> None:
        self.driver = driver
        self.told = Told()
        self._gates = gates
        self._ends = threading.Event()
        self._asynchronous = driver in {"asyncpg", "psycopg_async"}
        self._engine: Any = (create_async_engine if self._asynchronous else create_engine)(site.url(driver))
        self._readers = [] if self._asynchronous else site.readers()
        if not self._asynchronous:
            self.session_of = sessionmaker(self._engine, readers=self._readers, retry=PATIENT)
        event.listen(getattr(self._engine, "sync_engine", self._engine), "do_connect", self._connects)
        bodies = [self._in_tasks] if self._asynchronous else [self._in_thread(number) for number in range(WRITERS)]
        self._threads = [threading.Thread(target=self._watched, args=(body,)) for body in bodies]

    def _connects(self, *_: Any) -> None:
        self.told.connects.append(time.monotonic())

    def _watched(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.told.failed.append(error)

    def _name(self, number: int) -> str:
        return f"{self.driver} {number} {len(self.told.acknowledged[number])}"

    def _begins(self, session: Any, name: str) -> None:
        self.told.bodies[name] += 1
        session.add(Account(owner=name))
        on_commit(lambda: self.told.hooks.update([name]))

    def _gate(self, name: str, number: int) -> threading.Event | None:
        if not self._gates.shut.is_set():
            return None
        self.told.halted.add(name)
        return self._gates.open[Place.of(number)]

    def _in_thread(self, number: int) -> Callable[[], None]:
        @self.session_of.scope(verify_commit=True)
        def write(session: Any, name: str) -> None:
            self._begins(session, name)
            session.flush()
            if (gate := self._gate(name, number)) is not None:
                gate.wait()
            session.execute(select(1))

        def body() -> None:
            while not self._ends.is_set():
                name = self._name(number)
                write(name)
                self.told.acknowledged[number].append(time.monotonic())
                self.told.own.append((time.monotonic(), *reads(self.session_of, name)))

        return body

    def _in_tasks(self) -> None:
        @async_sessionmaker(self._engine).scope(verify_commit=True, retry=PATIENT)
        async def write(session: Any, name: str, number: int) -> None:
            self._begins(session, name)
            await session.flush()
            if (gate := self._gate(name, number)) is not None:
                await asyncio.to_thread(gate.wait)
            await session.execute(select(1))

        async def body(number: int) -> None:
            while not self._ends.is_set():
                await write(self._name(number), number)
                self.told.acknowledged[number].append(time.monotonic())

        async def bodies() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(WRITERS):
                    group.create_task(body(number))
            await self._engine.dispose()

        asyncio.run(bodies())

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def done(self, since: float = 0.0) -> bool:
        """Tell whether each writer has done its units since then, or one has failed."""
        acknowledged = self.told.acknowledged
        return bool(self.told.failed) or all(sum(when > since for when in each) >= UNITS for each in acknowledged)

    def stop(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(PATIENT.timeout)
        for engine in [] if self._asynchronous else [self._engine, *self._readers]:
            engine.dispose()


@contextmanager
def working(site: Site) -> Iterator[tuple[list[Writers], Gates, Reader]]:
    gates, reader = Gates(), Reader(site)
    writers = [Writers(site, driver, gates) for driver in ("psycopg", "psycopg_async", "asyncpg")]
    for each in writers:
        each.start()
    try:
        yield writers, gates, reader
    finally:
        gates.release()
        for each in writers:
            each.stop()
        reader.stop()


def kill_in_the_middle(site: Site, writers: list[Writers], gates: Gates) -> float:
    """Kill the primary while a third of the writers is in each `Place`; return when that was."""
    primary, standby = site.primary, site.standby
    third = len(writers) * WRITERS // len(Place)

    def waiting(count: int) -> bool:
        return primary.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == [(count,)]

    gates.shut.set()
    until(lambda: sum(len(each.told.halted) for each in writers) == len(Place) * third)
    gates.shut.clear()
    [(sender,)] = primary.sql("SELECT pid FROM pg_stat_replication")
    [(receiver,)] = standby.sql("SELECT pid FROM pg_stat_wal_receiver")
    os.kill(receiver, signal.SIGSTOP)
    gates.open[Place.ARRIVES].set()
    until(lambda: waiting(third))
    until(lambda: primary.sql("SELECT sent_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication") == [(True,)])
    os.kill(sender, signal.SIGSTOP)
    gates.open[Place.IS_LOST].set()
    until(lambda: waiting(2 * third))
    primary.stop(signal.SIGKILL)
    died = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(sender, signal.SIGKILL)  # it would go on when it is woken
    os.kill(receiver, signal.SIGCONT)
    gates.release()
    return died


def promote(node: Node) -> float:
    """Promote a standby; return when it began to take writes."""
    with psycopg.connect(node.url("psycopg").set(drivername="postgresql").render_as_string(), autocommit=True) as c:
        c.execute("SELECT pg_promote(wait => false)")
        until(lambda: c.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,))
        return time.monotonic()


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_the_primary_dies_under_its_writers_and_what_was_acknowledged_is_there_once(site: Site, turn: int) -> None:
    with working(site) as (writers, gates, reader):
        until(lambda: all(each.done() for each in writers))
        session_of = writers[0].session_of
        with session_of.scope() as session:
            session.add(Account(owner="bystander"))
        died = kill_in_the_middle(site, writers, gates)
        threading.Event().wait(WITHOUT)
        promoted = promote(site.standby)
        until(lambda: all(each.done(promoted) for each in writers))
        until(lambda: reads(session_of, "bystander") == (site.replica.port, 1))  # it has not written since
    told = {each.driver: each.told for each in writers}
    assert [failure for each in told.values() for failure in each.failed] == []
    acknowledged = Counter(
        f"{driver} {number} {unit}"
        for driver, each in told.items()
        for number, units in enumerate(each.acknowledged)
        for unit in range(len(units))
    )
    found = Counter(dict(site.standby.sql("SELECT owner, count(*) FROM accounts GROUP BY owner")))
    assert found.pop("bystander") == 1
    lost, twice = acknowledged - found, found - acknowledged
    late = {
        driver: [min(when for when in units if when > promoted) - promoted for units in each.acknowledged]
        for driver, each in told.items()
    }
    connects = sum(died < when < promoted for each in told.values() for when in each.connects)
    sys.stdout.write(
        f"\n{acknowledged.total()} units of {len(told) * WRITERS} writers; without a primary {promoted - died:.2f} s; "
        f"lost {lost.total()}, twice {twice.total()}; the first unit after the promotion "
        + ", ".join(f"{driver} {' '.join(f'{s:.2f}' for s in seconds)} s" for driver, seconds in late.items())
        + f"; {connects / len(told) / WRITERS / (promoted - died):.1f} connects per writer and second in between; "
        f"{reader.between(died, promoted)} reads in between, the longest pause {reader.longest_pause():.2f} s\n"
    )
    assert (lost, twice) == (Counter(), Counter())
    assert sum((each.hooks for each in told.values()), Counter()) == acknowledged
    for each in told.values():
        for name in each.halted:
            once = Place.of(int(name.split()[1])) is Place.ARRIVES
            assert (each.bodies[name] == 1) is once, f"{name} was run {each.bodies[name]} times"
    # Half a second of waiting at the most, as test_asking and test_retry_policy show; the rest is a machine with much to do.
    every = sorted(seconds for each in late.values() for seconds in each)
    assert every[len(every) // 2] < 1
    assert every[-1] < 3
    assert reader.failed == []
    assert reader.between(died, promoted) > 0
    own = told["psycopg"].own
    assert {count for _, _, count in own} == {1}, "a writer has not seen what it had written"
    assert site.replica.port in {port for when, port, _ in own if when > promoted}


@pytest.fixture(scope="module")
def alone() -> Iterator[Node]:
    """A server without a standby, for the tests that do not kill it."""
    cluster = Cluster(replicas=0)
    try:
        make_markers(cluster.primary)
        yield cluster.primary
    finally:
        cluster.close()


@pytest.mark.above_drivers
@pytest.mark.parametrize("reads_only", [False, True], ids=["a unit that writes", "a unit that writes its marker only"])
@pytest.mark.doors(backend="postgresql")
async def test_a_primary_that_takes_no_writes_any_more_is_left_for_the_one_that_does(
    doors: Door, alone: Node, reads_only: bool
) -> None:
    """As in a switchover by the book: first the old primary is made read-only, and its connections stay."""
    alone.sql("TRUNCATE accounts, pledges, sessionkit_commit")
    engine = doors._adopted(doors._create_engine(read_write(alone.url(doors.driver))), False)
    kinds: list[str] = []

    def take_writes(answer: str) -> None:
        alone.sql(f"ALTER SYSTEM SET default_transaction_read_only = {answer}")
        alone.sql("SELECT pg_reload_conf()")

    def before(attempt: Attempt) -> None:
        assert attempt.error is not None
        kinds.append(errors.classify(attempt.error).kind)
        if kinds[-1] == "cannot_connect":
            take_writes("off")

    async def write(session: Any) -> None:
        await session.execute(select(1) if reads_only else insert(Account).values(owner="ann"))

    factory = doors.factory(engine, verify_commit=True, retry=Retry(1000, timeout=30, before_retry=before))
    unit = doors.decorate(write, factory)
    await unit()
    take_writes("on")
    done = 1
    while not kinds:  # until the signal has reached the backend of the pool's connection
        await unit()
        done += 1
    assert kinds[0] == "read_only_sql_transaction"
    assert set(kinds[1:]) == {"cannot_connect"}
    assert alone.sql("SELECT count(*) FROM accounts") == [(0 if reads_only else done,)]
    assert alone.sql("SELECT count(*), min(state) FROM sessionkit_commit") == [(done, "C")]


@pytest.mark.above_drivers
@pytest.mark.doors(backend="postgresql")
async def test_a_write_that_the_unit_itself_has_forbidden_keeps_its_connection_and_is_not_retried(doors: Door) -> None:
    url = read_write(doors.database.url(doors.driver))
    factory = doors.factory(doors._adopted(doors._create_engine(url), False))
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(factory, read_only=True) as session:
            await session.execute(insert(Account).values(owner="ann"))
    assert not caught.value.connection_invalidated
    assert not errors.classify(caught.value).retryable


@pytest.mark.above_drivers
@pytest.mark.doors(backend="postgresql")
async def test_a_write_in_a_read_only_scope_inside_a_unit_takes_nothing_from_that_unit(doors: Door) -> None:
    url = read_write(doors.database.url(doors.driver))
    factory = doors.factory(doors._adopted(doors._create_engine(url), False))
    async with doors.scope(factory) as session:
        await session.execute(insert(Account).values(owner="ann"))
        with pytest.raises(DBAPIError):
            async with doors.scope(factory, propagation="savepoint", read_only=True) as inner:
                await inner.execute(insert(Account).values(owner="bob"))
    assert await doors.rows("SELECT owner FROM accounts") == [("ann",)]
