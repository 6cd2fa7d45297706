"""Read-only scopes on real replicas: what they see, where they run, and what happens when servers go and come back."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import READ_ONLY, REPORT, REQUIRED, SNAPSHOT, binding, errors
from sessionkit._core.features import readers as _readers
from tests.contract.many import at_commit, at_statement, cut
from tests.contract.settings import READ_ONLY_VIOLATION, error_code
from tests.support.clusters import Cluster, Node
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors(backend="postgresql")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(replicas=2)
    try:
        yield cluster
    finally:
        cluster.close()


@dataclass
class Site:
    """The cluster as one door sees it."""

    doors: Door
    cluster: Cluster

    def __post_init__(self) -> None:
        self.primary, *self.readers = [self.engine(node) for node in (self.cluster.primary, *self.cluster.replicas)]

    def engine(self, node: Node) -> Any:
        return self.doors._adopted(self.doors._create_engine(node.url(self.doors.driver)), False)

    def factory(self, *, readers: Any = None, **kw: Any) -> Any:
        return self.doors.factory(self.primary, readers=self.readers if readers is None else readers, **kw)

    async def where(self, session: AsyncSession) -> Node:
        port = (await session.execute(text("SELECT inet_server_port()"))).scalar_one()
        return next(node for node in (self.cluster.primary, *self.cluster.replicas) if node.port == port)

    async def reads_on(self, factory: Any, **options: Any) -> Node:
        options = {name: value for name, value in {"read_only": True, **options}.items() if value is not None}
        async with self.doors.scope(factory, **options) as session:
            return await self.where(session)

    @staticmethod
    @contextmanager
    def forgetting() -> Iterator[None]:
        """Have the readers be asked each time how they stand."""
        fresh, _readers.FRESH = _readers.FRESH, 0.0
        try:
            yield
        finally:
            _readers.FRESH = fresh

    async def write(self, factory: Any, name: str) -> None:
        async with self.doors.scope(factory) as session:
            session.add(User(name=name))

    async def count(self, factory: Any) -> tuple[int, Node]:
        async with self.doors.scope(factory, read_only=True) as session:
            found = (await session.execute(select(func.count()).select_from(User))).scalar_one()
            return found, await self.where(session)

    def pause(self, *nodes: Node) -> None:
        for node in nodes or self.cluster.replicas:
            node.sql("SELECT pg_wal_replay_pause()")
            while node.sql("SELECT pg_get_wal_replay_pause_state(), pg_sleep(0.01)")[0][0] != "paused":
                pass


@pytest.fixture
def site(doors: Door, cluster: Cluster) -> Site:
    cluster.heal()
    return Site(doors, cluster)


async def in_another_context(doors: Door, body: Any) -> Any:
    """Call `body` where nothing of this context is known."""
    if doors.colour == "sync":
        return await doors.in_other_thread(body)
    return await asyncio.get_running_loop().create_task(body(), context=Context())


# Where a scope runs


async def test_read_only_scopes_take_turns_on_the_readers_and_all_else_is_on_the_primary(site: Site) -> None:
    factory, cluster = site.factory(reader_wait=30), site.cluster
    seen = [await site.reads_on(factory) for _ in range(6)]
    assert {node.port for node in seen} == {node.port for node in cluster.replicas}
    assert all(one is not other for one, other in zip(seen, seen[1:], strict=False))
    for options in ({}, {"read_only": False}, {"isolation": "SERIALIZABLE"}):
        assert await site.reads_on(factory, **{"read_only": None, **options}) is cluster.primary
    for preset in (READ_ONLY, SNAPSHOT):
        assert await site.reads_on(factory, read_only=None, preset=preset) in cluster.replicas


async def test_a_scope_stays_on_its_reader_to_its_end(site: Site) -> None:
    factory = site.factory()
    async with site.doors.scope(factory, read_only=True) as session:
        first = await site.where(session)
        for _ in range(4):
            assert await site.where(session) is first
            async with site.doors.scope(factory, propagation="savepoint") as inner:
                assert await site.where(inner) is first
        async with site.doors.scope(factory, propagation="new") as other:
            assert await site.where(other) is site.cluster.primary


async def test_a_write_in_a_reader_scope_is_refused_by_the_database(site: Site) -> None:
    factory = site.factory()
    for paused in (False, True):
        if paused:  # then it is the primary that serves
            site.pause()
            await site.write(factory, "ann")
        with pytest.raises(DBAPIError) as caught:
            async with site.doors.scope(factory, read_only=True) as session:
                assert (await site.where(session) is site.cluster.primary) == paused
                await session.execute(insert(User).values(name="bob"))
        assert error_code(caught.value) == READ_ONLY_VIOLATION["postgresql"]


async def test_a_level_that_a_replica_cannot_give_is_given_by_the_primary(site: Site) -> None:
    assert await site.reads_on(site.factory(), read_only=None, preset=REPORT) is site.cluster.primary
    assert await site.reads_on(site.factory(), isolation="REPEATABLE READ") in site.cluster.replicas


async def test_settings_and_role_are_in_force_on_a_reader_and_left_on_none(site: Site) -> None:
    factory = site.factory(settings={"app.tenant": REQUIRED}, role="pg_monitor", reader_wait=30)
    shown = text("SELECT current_setting('app.tenant', true), current_user")
    for tenant in ("a", "b", "c", "d"):
        async with site.doors.scope(factory, read_only=True, settings={"app.tenant": tenant}) as session:
            assert tuple((await session.execute(shown)).one()) == (tenant, "pg_monitor")
            assert await site.where(session) in site.cluster.replicas
    for _ in range(4):
        async with site.doors.scope(site.factory(), read_only=True) as session:
            tenant, user = (await session.execute(shown)).one()
            assert not tenant
            assert user != "pg_monitor"


async def test_a_read_only_scope_with_a_mutex_holds_it_on_the_primary(site: Site) -> None:
    factory = site.factory()
    assert await site.reads_on(factory, mutex="report") is site.cluster.primary
    async with site.doors.scope(factory, read_only=True, mutex="report"):
        with pytest.raises(errors.NotLocked):
            await in_another_context(site.doors, lambda: site.reads_on(factory, mutex="report", mutex_wait=False))
    assert await site.reads_on(factory) in site.cluster.replicas


async def test_a_scope_that_joins_reads_where_the_outer_one_writes(site: Site) -> None:
    factory = site.factory()
    async with site.doors.scope(factory) as session:
        session.add(User(name="ann"))
        async with site.doors.scope(factory, read_only=True) as inner:
            assert await site.where(inner) is site.cluster.primary
            assert (await inner.execute(select(func.count()).select_from(User))).scalar_one() == 1


async def test_asking_a_session_for_its_engine_chooses_no_reader(site: Site) -> None:
    with site.doors.statements(site.readers[0]) as first, site.doors.statements(site.readers[1]) as second:
        async with site.doors.scope(site.factory(), read_only=True) as session:
            assert site.doors.sync(session).get_bind().engine.url == site.doors.sync_engine_of(site.primary).url
    assert first == second == []


# Read your writes


async def test_a_scope_sees_what_its_context_has_written_while_replay_is_paused_on_every_replica(site: Site) -> None:
    factory = site.factory(reader_wait=0.05)
    site.pause()
    for number in range(1, 4):
        await site.write(factory, f"user {number}")
        assert await site.count(factory) == (number, site.cluster.primary)


async def test_a_scope_sees_its_writes_on_the_replica_that_has_replayed_them(site: Site) -> None:
    factory = site.factory(reader_wait=10)
    paused, other = site.cluster.replicas
    site.pause(paused)
    for number in range(1, 6):
        await site.write(factory, f"user {number}")
        assert await site.count(factory) == (number, other)


async def test_a_scope_waits_for_a_replica_that_is_about_to_replay(site: Site) -> None:
    factory = site.factory(reader_wait=30)
    site.pause()
    await site.write(factory, "ann")
    started = site.doors.event()

    async def read() -> Any:
        started.set()
        return await site.count(factory)

    async def resume() -> None:
        await started.wait()
        for node in site.cluster.replicas:
            node.sql("SELECT pg_sleep(0.1), pg_wal_replay_resume()")

    token = binding.commit_token(site.doors.raw(factory))
    assert token is not None

    async def reader() -> Any:
        binding.use_commit_token(site.doors.raw(factory), token)
        return await read()

    (found, node), _ = await site.doors.together(reader, resume)
    assert found == 1
    assert node in site.cluster.replicas


async def test_without_read_your_writes_a_paused_replica_shows_what_it_has(site: Site) -> None:
    factory = site.factory(read_your_writes=False)
    site.pause()
    await site.write(factory, "ann")
    found, node = await site.count(factory)
    assert (found, node in site.cluster.replicas) == (0, True)
    with pytest.raises(errors.OptionError, match="read_your_writes=False"):
        binding.commit_token(factory)


async def test_another_context_is_bound_by_a_token_and_by_nothing_else(site: Site) -> None:
    factory = site.factory(reader_wait=0.05)
    site.pause()
    await site.write(factory, "ann")
    token = binding.commit_token(factory)
    assert token is not None
    assert token == token.strip()

    async def without() -> Any:
        return await site.count(factory)

    async def with_token() -> Any:
        binding.use_commit_token(factory, token)
        return await site.count(factory)

    async def nothing() -> Any:
        return binding.commit_token(factory)

    assert await in_another_context(site.doors, nothing) is None
    assert await in_another_context(site.doors, with_token) == (1, site.cluster.primary)
    assert (await in_another_context(site.doors, without))[0] == 0


async def test_a_token_is_taken_up_by_a_factory_of_another_process(site: Site) -> None:
    factory, elsewhere = site.factory(reader_wait=0.05), site.factory(reader_wait=0.05)
    site.pause()
    await site.write(factory, "ann")
    assert binding.commit_token(elsewhere) is None
    token = binding.commit_token(factory)
    assert token is not None
    binding.use_commit_token(elsewhere, token)
    assert binding.commit_token(elsewhere) == token
    assert await site.count(elsewhere) == (1, site.cluster.primary)
    await site.write(elsewhere, "bob")
    later = binding.commit_token(elsewhere)
    binding.use_commit_token(elsewhere, token)
    assert binding.commit_token(elsewhere) == later != token


async def test_a_rollback_and_a_read_leave_no_token(site: Site) -> None:
    factory = site.factory()
    await site.count(factory)
    with pytest.raises(LookupError):
        async with site.doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError
    assert binding.commit_token(factory) is None


async def test_a_hook_of_a_commit_sees_what_was_committed(site: Site) -> None:
    from sessionkit import on_commit

    factory = site.factory(reader_wait=0.05)
    site.pause()
    seen: list[Any] = []
    async with site.doors.scope(factory) as session:
        session.add(User(name="ann"))
        site.doors.call(on_commit, lambda: seen.append(binding.commit_token(factory)))
    assert seen == [binding.commit_token(factory)]
    assert seen != [None]


async def test_a_commit_without_an_answer_keeps_its_context_on_the_primary(site: Site) -> None:
    factory = site.factory()
    primary = site.doors.sync_engine_of(site.primary)
    with pytest.raises(errors.CommitOutcomeUnknown), at_commit(primary, cut):
        await site.write(factory, "ann")
    assert (await site.count(factory))[1] is site.cluster.primary
    token = binding.commit_token(factory)
    assert token is not None
    other = site.factory()
    binding.use_commit_token(other, token)
    assert (await site.count(other))[1] is site.cluster.primary
    await site.write(factory, "bob")
    site.cluster.catch_up()
    assert (await site.count(factory))[1] in site.cluster.replicas


async def test_a_commit_whose_place_cannot_be_had_is_a_success_and_keeps_its_context_on_the_primary(
    site: Site,
) -> None:
    factory = site.factory()
    primary = site.doors.sync_engine_of(site.primary)
    with at_statement(primary, "SELECT CAST(system_identifier", cut):
        await site.write(factory, "ann")
    assert await site.count(factory) == (1, site.cluster.primary)
    await site.write(factory, "bob")
    site.cluster.catch_up()
    assert (await site.count(factory))[1] in site.cluster.replicas


async def test_a_reader_that_is_known_to_be_past_the_token_is_not_asked_again(site: Site) -> None:
    factory = site.factory(readers=[site.readers[0]], reader_wait=10)
    await site.write(factory, "ann")
    await site.count(factory)
    with site.doors.statements(site.readers[0]) as sql, site.doors.statements(site.primary) as on_primary:
        async with site.doors.scope(factory, read_only=True) as session:
            await session.execute(select(User.name))
    assert [line.split()[0] for line in sql] == ["BEGIN", "SELECT", "COMMIT"]
    assert on_primary == []


async def test_only_factories_with_readers_pay_for_the_place_of_a_commit(site: Site) -> None:
    for factory in (site.doors.factory(site.primary), site.factory(read_your_writes=False)):
        with site.doors.statements(site.primary) as sql:
            await site.write(factory, f"user {id(factory)}")
        assert [line.split()[0] for line in sql] == ["BEGIN", "INSERT", "COMMIT"]
    factory = site.factory()
    with site.doors.statements(site.primary) as sql:
        await site.write(factory, "ann")
    assert len([line for line in sql if "pg_current_wal_insert_lsn" in line]) == 1


# Servers that go and come back


async def test_a_replica_that_is_killed_is_never_seen_by_anybody_and_is_used_again_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory, dead = site.factory(), site.cluster.replicas[0]
    for _ in range(4):
        await site.reads_on(factory)  # both pools hold a connection
    dead.stop(signal.SIGQUIT)
    monkeypatch.setattr(_readers, "FRESH", 0.0)
    monkeypatch.setattr(_readers, "PENALTY", 3600.0)
    for _ in range(6):
        assert await site.reads_on(factory) is site.cluster.replicas[1]
    monkeypatch.setattr(_readers, "PENALTY", 0.0)
    dead.start()
    again = site.factory()  # the one above leaves it alone for an hour
    assert {(await site.reads_on(again)).port for _ in range(4)} == {node.port for node in site.cluster.replicas}


async def test_a_pool_full_of_connections_that_a_restart_has_cut_does_not_surface(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_readers, "FRESH", 0.0)
    factory = site.factory(readers=[site.readers[0]])
    node = site.cluster.replicas[0]
    for _ in range(3):
        assert await site.reads_on(factory) is node
        node.stop(signal.SIGQUIT)
        node.start()
    assert await site.reads_on(factory) is node


async def test_a_read_only_unit_that_is_retried_moves_to_another_reader(site: Site) -> None:
    factory = site.factory()
    for _ in range(4):
        await site.reads_on(factory)
    dead, other = site.cluster.replicas
    dead.stop(signal.SIGQUIT)  # a moment after it was asked how it stands
    seen: list[Node] = []
    for _ in range(2):
        async for attempt in site.doors.attempts(factory, read_only=True, retry=3):
            async with attempt as session:
                seen.append(await site.where(session))
    assert seen == [other, other]


async def test_a_replica_that_was_promoted_is_left_alone_and_tokens_of_before_are_refused(doors: Door) -> None:
    cluster = Cluster(replicas=1)
    try:
        site = Site(doors, cluster)
        factory = site.factory()
        await site.write(factory, "ann")
        before = binding.commit_token(factory)
        assert before is not None
        cluster.catch_up()
        assert (await site.count(factory))[1] is cluster.replicas[0]
        cluster.replicas[0].sql("SELECT pg_promote()")
        with site.forgetting():
            assert await site.reads_on(factory) is cluster.primary
        after = doors.factory(site.readers[0], readers=[site.primary], allow_writable_readers=True)
        await site.write(after, "bob")
        with pytest.raises(errors.CommitTokenError, match="timeline 1, but the primary has reached timeline 2"):
            binding.use_commit_token(after, before)
        assert await site.count(after) == (2, cluster.replicas[0]), "the old primary is on another timeline"
    finally:
        cluster.close()


async def test_with_all_replicas_down_the_primary_serves_or_the_scope_says_so(site: Site) -> None:
    lenient, strict = site.factory(), site.factory(no_reader="error", reader_wait=0.05)
    for node in site.cluster.replicas:
        node.stop(signal.SIGQUIT)
    assert await site.reads_on(lenient) is site.cluster.primary
    with pytest.raises(errors.NoReader, match="none of 2 readers"):
        await site.reads_on(strict)


async def test_a_restart_of_the_primary_does_not_disturb_the_readers(site: Site) -> None:
    factory = site.factory(readers=[site.readers[0]], reader_wait=30)
    await site.write(factory, "ann")
    site.cluster.catch_up()
    site.cluster.primary.stop(signal.SIGQUIT)
    assert await site.count(factory) == (1, site.cluster.replicas[0])
    site.cluster.primary.start()
    with pytest.raises(DBAPIError):  # the pool's connection, in a scope that is not retried
        await site.write(factory, "bob")
    await site.write(factory, "bob")
    assert await site.count(factory) == (2, site.cluster.replicas[0])


async def test_a_replica_that_lags_too_far_is_left_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readers, "FRESH", 0.0)
    monkeypatch.setattr(_readers, "PENALTY", 0.0)
    factory = site.factory(max_lag=0.2, read_your_writes=False)
    slow, fast = site.cluster.replicas
    assert {(await site.reads_on(factory)).port for _ in range(4)} == {slow.port, fast.port}
    site.pause(slow)
    site.cluster.primary.sql("INSERT INTO users (name) VALUES ('ann')")
    site.cluster.catch_up(fast)
    site.cluster.primary.sql("SELECT pg_sleep(0.3)")
    for _ in range(4):
        assert await site.reads_on(factory) is fast
    slow.sql("SELECT pg_wal_replay_resume()")
    site.cluster.catch_up()
    assert {(await site.reads_on(factory)).port for _ in range(4)} == {slow.port, fast.port}


async def test_a_wait_for_a_replica_ends_at_its_bound(site: Site) -> None:
    import time

    site.pause()
    factory = site.factory(reader_wait=0.3)
    await site.write(factory, "ann")
    begun = time.monotonic()
    assert (await site.count(factory))[1] is site.cluster.primary
    assert 0.3 <= time.monotonic() - begun < 5


async def test_many_writers_never_read_less_than_they_wrote(site: Site) -> None:
    factory = site.factory(reader_wait=0.05)
    site.pause(site.cluster.replicas[1])

    async def work(worker: int) -> set[int]:
        ports = set()
        for number in range(10):
            await site.write(factory, f"{worker} {number}")
            async with site.doors.scope(factory, read_only=True) as session:
                mine = select(func.count()).select_from(User).where(User.name.startswith(f"{worker} "))
                assert (await session.execute(mine)).scalar_one() == number + 1
                ports.add((await site.where(session)).port)
        return ports

    def worker(number: int) -> Any:
        async def run() -> set[int]:
            return await work(number)

        return run

    ports = await site.doors.together(*[worker(number) for number in range(4)])
    assert site.cluster.replicas[1].port not in set().union(*ports)


# What is refused


async def test_a_reader_that_would_take_writes_is_refused_unless_it_is_allowed(site: Site) -> None:
    factory = site.factory(readers=[site.engine(site.cluster.primary)])
    with pytest.raises(errors.OptionError, match="not in recovery.*allow_writable_readers=True"):
        await site.reads_on(factory)
    allowed = site.factory(readers=[site.engine(site.cluster.primary)], allow_writable_readers=True)
    await site.write(allowed, "ann")
    assert await site.count(allowed) == (1, site.cluster.primary)
    with pytest.raises(DBAPIError):
        async with site.doors.scope(allowed, read_only=True) as session:
            await session.execute(insert(User).values(name="bob"))


@pytest.mark.parametrize(
    "token",
    ["", "x", "1-1", "1-1-1-1", "1-1-1 ", " 1-1-1", "1-1-g", "-1-1-1", "1-1-1\n", "١-1-1", "f" * 99, None, 7, b"1-1-1"],
)
async def test_a_token_that_is_none_is_refused(site: Site, token: Any) -> None:
    with pytest.raises(errors.CommitTokenError, match="is not a commit token"):
        binding.use_commit_token(site.factory(), token)


async def test_a_token_of_another_cluster_or_an_ended_timeline_is_refused(site: Site) -> None:
    factory = site.factory()
    await site.write(factory, "ann")
    token = binding.commit_token(factory)
    assert token is not None
    cluster, timeline, lsn = token.split("-")
    foreign = f"{int(cluster, 16) ^ 1:x}-{timeline}-{lsn}"
    with pytest.raises(errors.CommitTokenError, match="belongs to the cluster"):
        binding.use_commit_token(factory, foreign)
    with pytest.raises(errors.CommitTokenError, match="belongs to timeline 0"):
        binding.use_commit_token(factory, f"{cluster}-0-{lsn}")
    unaware = site.factory()  # it has not talked to a server: the first scope tells
    binding.use_commit_token(unaware, foreign)
    with pytest.raises(errors.CommitTokenError, match="from another application"):
        await site.reads_on(unaware)


async def test_a_token_of_a_later_timeline_is_seen_on_the_primary(site: Site) -> None:
    factory = site.factory(reader_wait=0.05)
    await site.write(factory, "ann")
    token = binding.commit_token(factory)
    assert token is not None
    cluster, timeline, _ = token.split("-")
    binding.use_commit_token(factory, f"{cluster}-{int(timeline, 16) + 1:x}-1")
    assert await site.reads_on(factory) is site.cluster.primary


async def test_tokens_are_of_factories_with_readers(site: Site) -> None:
    with pytest.raises(errors.OptionError, match="has no readers"):
        binding.commit_token(site.doors.factory(site.primary))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reader_wait": -1}, "reader_wait"),
        ({"reader_wait": None}, "reader_wait"),
        ({"max_lag": float("nan")}, "max_lag"),
        ({"no_reader": "fail"}, "'primary' or 'error'"),
        ({"read_your_writes": 1}, "read_your_writes"),
        ({"allow_writable_readers": "no"}, "allow_writable_readers"),
        ({"readers": ["postgresql:///"]}, "engines that are all sync or all async"),
    ],
)
async def test_arguments_that_cannot_be_honoured_are_refused(site: Site, options: Any, told: str) -> None:
    with pytest.raises(errors.OptionError, match=told):
        site.factory(**options)
    factory = site.factory()
    with pytest.raises(errors.OptionError, match=told):
        factory.configure(**options)
    assert await site.reads_on(factory) in site.cluster.replicas


async def test_readers_can_be_given_and_taken_away_later(site: Site) -> None:
    factory = site.doors.factory(site.primary)
    assert await site.reads_on(factory) is site.cluster.primary
    factory.configure(readers=site.readers)
    assert await site.reads_on(factory) in site.cluster.replicas
    factory.configure(readers=[])
    assert await site.reads_on(factory) is site.cluster.primary
