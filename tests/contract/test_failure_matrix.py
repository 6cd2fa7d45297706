"""The failure matrix: what happens, and then what the caller sees, what the database and the pool hold, which hooks ran.

One test for each row that concerns scopes, retry and commit; the harness asserts after each of them that the pool has all
of its connections back and that nothing is open in the database. What a row is about in detail has tests of its own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from sessionkit import Retry, errors, on_commit, on_rollback
from tests.contract.breaking import backend_pid, failing_driver_call, kill_backend, names, take
from tests.contract.lost import create_markers, link
from tests.support.faults import Fault
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

POSTGRESQL = pytest.mark.doors(backend="postgresql")
AT_ONCE = Retry(3, wait=0)


class Unit:
    """Adds a user and two hooks, and then does what a row is about."""

    def __init__(self, then: Callable[[AsyncSession, int], Awaitable[None]] | None = None) -> None:
        self._then = then
        self.runs = 0
        self.hooks: list[str] = []

    async def body(self, session: AsyncSession) -> None:
        self.runs += 1
        run = self.runs
        on_commit(lambda: self.hooks.append(f"commit {run}"))
        on_rollback(lambda: self.hooks.append(f"rollback {run}"))
        session.add(User(name=f"run {run}"))
        if self._then is not None:
            await self._then(session, run)


async def usable(doors: Door, factory: Any = None) -> None:
    """The pool gives working connections, and nothing of the failed unit is on them."""
    async with doors.scope(factory) as session:
        await session.execute(text("SELECT 1"))


async def test_an_error_in_the_body(doors: Door) -> None:
    mine = LookupError()

    async def fail(session: AsyncSession, _run: int) -> None:
        await session.flush()
        raise mine

    unit = Unit(fail)
    with pytest.raises(LookupError) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert caught.value is mine
    assert errors.outcome_of(mine) == "rolled back"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])
    await usable(doors)


async def test_a_database_error_that_the_body_swallows(doors: Door) -> None:
    await take(doors)

    async def swallow(session: AsyncSession, _run: int) -> None:
        with suppress(IntegrityError):
            await session.execute(insert(User).values(name="taken"))

    unit = Unit(swallow)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])
    await usable(doors)


@pytest.mark.parametrize("retried", [False, True])
async def test_an_error_in_the_flush(doors: Door, retried: bool) -> None:
    """The original; not retried unless that can help."""
    await take(doors)

    async def add(session: AsyncSession, run: int) -> None:
        session.add(User(name="taken" if run == 1 else "free"))

    unit = Unit(add)
    run = doors.decorate(unit.body, retry=Retry(3, wait=0, also=("unique_violation",) if retried else ()))
    if retried:
        await run()
        assert (unit.hooks, await names(doors)) == (["rollback 1", "commit 2"], ["run 2", "free"])
    else:
        with pytest.raises(IntegrityError):
            await run()
        assert (unit.hooks, await names(doors)) == (["rollback 1"], [])
    await usable(doors)


@pytest.mark.parametrize("retried", [False, True])
async def test_an_error_in_the_commit_from_the_server(doors: Door, retried: bool) -> None:
    """The original, outcome rolled back; retried if that can help."""

    async def pledge(session: AsyncSession, run: int) -> None:
        if run == 1:
            session.add(Pledge(account_id=7))

    unit = Unit(pledge)
    run = doors.decorate(unit.body, retry=Retry(3, wait=0, also=("foreign_key_violation",) if retried else ()))
    if retried:
        await run()
        assert (unit.hooks, await names(doors)) == (["rollback 1", "commit 2"], ["run 2"])
    else:
        with pytest.raises(IntegrityError) as caught:
            await run()
        assert errors.outcome_of(caught.value) == "rolled back"
        assert (unit.hooks, await names(doors)) == (["rollback 1"], [])
    await usable(doors)


@POSTGRESQL
@pytest.mark.parametrize("retry", [None, AT_ONCE], ids=["not retried", "retried"])
async def test_a_link_that_is_lost_in_the_body(doors: Door, retry: Retry | None) -> None:
    """Nothing, because it is run again; else the original. The pool's other connections are replaced as well."""

    async def cut(session: AsyncSession, run: int) -> None:
        await session.flush()
        if run == 1:
            await doors._outside(way.proxy.reset)
            await session.execute(text("SELECT 1"))

    unit = Unit(cut)
    with link(doors) as way:
        run = doors.decorate(unit.body, way.factory, retry=retry)
        if retry is None:
            with pytest.raises(DBAPIError) as caught:
                await run()
            assert errors.classify(caught.value).kind == "connection_lost"
            assert (unit.hooks, await names(doors)) == (["rollback 1"], [])
        else:
            await run()
            assert (unit.hooks, await names(doors)) == (["rollback 1", "commit 2"], ["run 2"])
        await usable(doors, way.factory)


@POSTGRESQL
@pytest.mark.parametrize("verify", [False, True], ids=["nobody asks", "verify_commit"])
@pytest.mark.parametrize("fault", [Fault.LOSE, Fault.LOSE_REPLY], ids=lambda fault: fault.name)
async def test_a_link_that_is_lost_during_the_commit(doors: Door, fault: Fault, verify: bool) -> None:
    """Success after the outcome was found out, or CommitOutcomeUnknown; done once at the most."""
    await create_markers(doors)
    unit = Unit()
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", fault)
        run = doors.decorate(unit.body, way.factory, retry=AT_ONCE, verify_commit=verify)
        if verify:
            await run()
        else:
            with pytest.raises(errors.CommitOutcomeUnknown):
                await run()
        assert struck.struck
        await usable(doors, way.factory)
    arrived = fault is Fault.LOSE_REPLY
    if verify:
        assert unit.hooks == (["commit 1"] if arrived else ["rollback 1", "commit 2"])
        assert await names(doors) == (["run 1"] if arrived else ["run 2"])
    else:
        assert unit.hooks == []
        assert await names(doors) == (["run 1"] if arrived else [])


@POSTGRESQL
async def test_a_link_that_is_lost_after_the_answer_to_commit(doors: Door) -> None:
    """Success; and the connection is not given to anybody."""

    async def cut_later(session: AsyncSession, _run: int) -> None:
        event.listen(doors.sync(session), "after_commit", lambda _: way.proxy.reset())

    unit = Unit(cut_later)
    with link(doors, pool_pre_ping=True) as way:
        await doors.decorate(unit.body, way.factory, retry=AT_ONCE)()
        assert (unit.runs, unit.hooks, await names(doors)) == (1, ["commit 1"], ["run 1"])
        await usable(doors, way.factory)


@POSTGRESQL
async def test_a_link_that_is_lost_in_the_rollback(doors: Door) -> None:
    """The body's exception, never the rollback's."""
    mine = LookupError()

    async def fail(session: AsyncSession, _run: int) -> None:
        await session.flush()
        raise mine

    unit = Unit(fail)
    with link(doors) as way:
        await usable(doors, way.factory)  # the first connection of an engine says ROLLBACK, too
        struck = way.proxy.at("ROLLBACK", Fault.LOSE)
        with pytest.raises(LookupError) as caught:
            await doors.decorate(unit.body, way.factory, retry=AT_ONCE)()
        assert struck.struck
        assert caught.value is mine
        assert errors.outcome_of(mine) == "rolled back"
        assert (unit.hooks, await names(doors)) == (["rollback 1"], [])
        await usable(doors, way.factory)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_a_task_or_the_program_in_the_body(doors: Door, kind: type[BaseException]) -> None:
    mine = kind()

    async def fail(session: AsyncSession, _run: int) -> None:
        await session.flush()
        raise mine

    unit = Unit(fail)
    with pytest.raises(kind) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert caught.value is mine
    assert errors.outcome_of(mine) == "rolled back"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])
    await usable(doors)


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("after", [False, True], ids=["not sent", "carried out"])
async def test_what_ends_the_program_during_the_commit(doors: Door, after: bool) -> None:
    unit = Unit()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with failing_driver_call(doors, "do_commit", KeyboardInterrupt(), after=after):
            await doors.decorate(unit.body, retry=AT_ONCE)()
    assert errors.outcome_of(caught.value) == "unknown"
    assert (unit.runs, unit.hooks) == (1, [])
    assert await names(doors) == (["run 1"] if after else [])
    await usable(doors)


@pytest.mark.doors(colour="async")
async def test_a_task_that_is_cancelled_during_the_commit(doors: Door) -> None:
    """The COMMIT ends; the cancellation is raised after it and says how."""

    async def cancel_later(session: AsyncSession, _run: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        event.listen(doors.sync(session), "before_commit", lambda _: task.cancel())

    unit = Unit(cancel_later)

    async def work() -> None:
        await doors.decorate(unit.body, retry=AT_ONCE)()

    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.create_task(work())
    assert errors.outcome_of(caught.value) == "committed"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["commit 1"], ["run 1"])
    await usable(doors)


@pytest.mark.doors(colour="async")
async def test_a_timeout_around_a_unit(doors: Door) -> None:
    """TimeoutError, whose cause carries the outcome."""
    limit: asyncio.Timeout

    async def wait(session: AsyncSession, _run: int) -> None:
        await session.flush()
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    unit = Unit(wait)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(None) as limit:
            await doors.decorate(unit.body, retry=AT_ONCE)()
    assert errors.outcome_of(caught.value) == "rolled back"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])
    await usable(doors)


async def test_a_savepoint_that_fails_inside(doors: Door) -> None:
    """The inner exception; the outer unit may go on, the inner's work and hooks are gone."""
    inner = Unit()

    async def nest(session: AsyncSession, _run: int) -> None:
        with pytest.raises(LookupError):
            async with doors.scope(propagation="savepoint") as nested:
                nested.add(User(name="inner"))
                on_commit(lambda: inner.hooks.append("commit"))
                await nested.flush()
                raise LookupError

    unit = Unit(nest)
    await doors.decorate(unit.body, retry=AT_ONCE)()
    assert inner.hooks == []
    assert (unit.hooks, await names(doors)) == (["commit 1"], ["run 1"])


async def test_an_inner_scope_that_dooms_the_outer_one_which_swallows_it(doors: Door) -> None:
    async def nest(_session: AsyncSession, _run: int) -> None:
        with suppress(LookupError):
            async with doors.scope():
                raise LookupError

    unit = Unit(nest)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert isinstance(caught.value.__cause__, LookupError)
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])
    await usable(doors)


async def test_a_hook_that_raises(doors: Door) -> None:
    """The commit stays; the others run; the error says that the data is committed."""

    async def register(_session: AsyncSession, _run: int) -> None:
        def fail() -> None:
            assert doors.checked_out() == 0  # no connection is held
            raise LookupError

        on_commit(fail)
        on_commit(lambda: unit.hooks.append("after it"))

    unit = Unit(register)
    with pytest.raises(errors.HookError) as caught:
        await doors.decorate(unit.body, retry=Retry(3, wait=0, on=Exception))()
    assert errors.outcome_of(caught.value) == "committed"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["commit 1", "after it"], ["run 1"])


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
def test_a_process_that_dies_between_the_commit_and_a_hook(doors: Door) -> None:
    """The data is committed, the hook is lost: what must happen at all costs is a row of the same transaction."""
    program = f"""
        import os
        from sqlalchemy import create_engine, text
        from sessionkit import on_commit, sessionmaker

        Session = sessionmaker(create_engine({doors.database.url(doors.driver).render_as_string(False)!r}))
        with Session.scope() as session:
            session.execute(text("INSERT INTO users (name) VALUES ('ann')"))
            on_commit(lambda: os._exit(3))
            on_commit(lambda: print("never"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    with doors.database.observer.connect() as connection:
        assert connection.scalar(text("SELECT name FROM users")) == "ann"


async def test_a_pool_that_is_exhausted(doors: Door) -> None:
    """SQLAlchemy's TimeoutError within pool_timeout, and it recovers; asking again at once would only queue again."""
    pool = QueuePool if doors.colour == "sync" else AsyncAdaptedQueuePool
    engine = doors.make_engine(poolclass=pool, pool_size=1, max_overflow=0, pool_timeout=0.05)
    factory = doors.factory(engine)
    unit = Unit()
    async with doors.enter(engine.connect()):
        with pytest.raises(exc.TimeoutError) as caught:
            await doors.decorate(unit.body, factory, retry=AT_ONCE)()
        assert errors.outcome_of(caught.value) == "rolled back"
        assert unit.runs == 1
    await doors.decorate(unit.body, factory)()
    assert await names(doors) == ["run 2"]


@POSTGRESQL
async def test_all_backends_that_end_at_once(doors: Door) -> None:
    """What a restart does to a pool: the stale connections are replaced, and nobody sees it."""

    async def be_killed(session: AsyncSession, run: int) -> None:
        await session.flush()
        if run == 1:
            await kill_backend(doors, await backend_pid(session))
            await session.execute(text("SELECT 1"))

    unit = Unit(be_killed)
    await doors.decorate(unit.body, retry=AT_ONCE)()
    assert (unit.hooks, await names(doors)) == (["rollback 1", "commit 2"], ["run 2"])


@pytest.mark.doors(backend="sqlite")
async def test_a_disk_that_is_full(doors: Door) -> None:
    """The original, one attempt."""

    async def fill(session: AsyncSession, _run: int) -> None:
        await session.flush()
        await session.execute(text("PRAGMA max_page_count = 1"))
        for _ in range(100):
            await session.execute(text("INSERT INTO addresses (user_id, email) VALUES (1, randomblob(4000))"))

    unit = Unit(fill)
    with pytest.raises(DBAPIError) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert errors.classify(caught.value).kind == "disk_full"
    assert errors.outcome_of(caught.value) == "rolled back"
    assert (unit.runs, unit.hooks, await names(doors)) == (1, ["rollback 1"], [])


async def test_retries_that_are_exhausted(doors: Door) -> None:
    """The last original error, with how many attempts there were."""
    failures = [StaleDataError(str(number)) for number in range(3)]

    async def fail(_session: AsyncSession, run: int) -> None:
        raise failures[run - 1]

    unit = Unit(fail)
    with pytest.raises(StaleDataError) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert caught.value is failures[2]
    assert "gave up after 3 attempts" in caught.value.__notes__[0]
    assert (unit.hooks, await names(doors)) == (["rollback 1", "rollback 2", "rollback 3"], [])
    await usable(doors)


async def test_a_session_that_is_used_in_two_places_at_once(doors: Door) -> None:
    """An error or correct rows, never crossed rows; and whoever was refused has broken nothing."""
    barrier = doors.barrier(2)
    told: list[BaseException] = []

    async def share(session: AsyncSession, _run: int) -> None:
        await session.flush()

        async def use() -> None:
            await barrier.wait()
            try:
                assert (await session.execute(text("SELECT name FROM users"))).scalars().all() == ["run 1"]
            except errors.ConcurrentUse as error:
                told.append(error)

        await doors.together(use, use)

    unit = Unit(share)
    await doors.decorate(unit.body)()
    assert len(told) <= 1
    assert (unit.hooks, await names(doors)) == (["commit 1"], ["run 1"])


async def test_a_session_that_is_used_after_its_unit(doors: Door) -> None:
    """An error, and no transaction begun in silence."""
    kept: list[Any] = []

    async def keep(session: AsyncSession, _run: int) -> None:
        kept.append(session)

    unit = Unit(keep)
    await doors.decorate(unit.body, retry=AT_ONCE)()
    with pytest.raises(errors.ScopeError, match="has ended"):
        await kept[0].execute(text("SELECT 1"))
    assert await names(doors) == ["run 1"]
