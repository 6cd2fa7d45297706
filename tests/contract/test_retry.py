"""Law 4: retry replays the whole unit: a new session, a new transaction, the body from its first line, COMMIT included."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, current_session, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import (
    backend_pid,
    kill_backend,
    names,
    swallow_failed_flush,
    swallow_failed_statement,
    take,
)
from tests.contract.lost import link
from tests.support.models import Account, Pledge, Shift, User

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession

    from sessionkit.retry import Attempt
    from tests.support.doors import Door

AT_ONCE = Retry(5, wait=0)


class Failing:
    """A body that fails with the errors it was given, one for each run, and then succeeds."""

    def __init__(self, doors: Door, *failures: BaseException) -> None:
        self._doors = doors
        self._failures = failures
        self.sessions: list[Any] = []
        self.hooks: list[str] = []

    @property
    def runs(self) -> int:
        return len(self.sessions)

    async def body(self, session: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        # Kept, so that the next one does not get its place in memory.
        self.sessions.append(self._doors.raw(session))
        run = self.runs
        assert current_session() is self._doors.raw(session)
        session.add(User(name=f"run {run}"))
        on_commit(lambda: self.hooks.append(f"commit {run}"))
        on_rollback(lambda: self.hooks.append(f"rollback {run}"))
        await session.flush()
        if run <= len(self._failures):
            raise self._failures[run - 1]
        return args, kwargs


def stale() -> StaleDataError:
    return StaleDataError("somebody was faster")


async def test_the_body_is_run_until_it_succeeds_each_time_in_a_session_of_its_own(doors: Door) -> None:
    unit = Failing(doors, stale(), stale())
    run = doors.decorate(unit.body, retry=AT_ONCE)
    assert await run(1, two=2) == ((1,), {"two": 2})
    assert unit.runs == 3
    assert len({id(session) for session in unit.sessions}) == 3
    assert await names(doors) == ["run 3"]


async def test_each_run_is_a_transaction_of_its_own_that_is_ended_before_the_next(doors: Door) -> None:
    unit = Failing(doors, stale())
    with doors.statements() as sql:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert [line.split(" ")[0] for line in sql] == ["BEGIN", "INSERT", "ROLLBACK", "BEGIN", "INSERT", "COMMIT"]


async def test_the_keyword_form_is_retried_as_well(doors: Door) -> None:
    unit = Failing(doors, stale())
    assert await doors.decorate(unit.body, form="keyword", retry=AT_ONCE)(1) == ((1,), {})
    assert unit.runs == 2


async def test_a_factorys_default_is_for_its_decorators_and_none_takes_it_away(doors: Door) -> None:
    factory = doors.factory(retry=AT_ONCE)
    for options in ({}, {"retry": 3}, {"propagation": "new"}):
        unit = Failing(doors, stale())
        await doors.decorate(unit.body, factory, **options)()
        assert unit.runs == 2
        await doors.write("DELETE FROM users")
    unit = Failing(doors, stale())
    with pytest.raises(StaleDataError):
        await doors.decorate(unit.body, factory, retry=None)()
    assert unit.runs == 1


async def test_the_bare_decorator_takes_the_factorys_default(doors: Door) -> None:
    unit = Failing(doors, stale())
    await doors.decorate(unit.body, doors.factory(retry=AT_ONCE), bare=True)()
    assert unit.runs == 2


async def test_a_number_is_a_number_of_attempts(doors: Door) -> None:
    unit = Failing(doors, stale(), stale(), stale())
    with pytest.raises(StaleDataError):
        await doors.decorate(unit.body, retry=2)()
    assert unit.runs == 2


async def test_when_the_attempts_are_used_up_the_last_error_is_raised_as_it_was_with_a_note(doors: Door) -> None:
    failures = [stale(), stale(), stale()]
    unit = Failing(doors, *failures)
    with pytest.raises(StaleDataError) as caught:
        await doors.decorate(unit.body, retry=Retry(3, wait=0))()
    assert caught.value is failures[2]
    assert caught.value.__notes__ == [
        f"gave up after 3 attempts; the attempts before failed with {', '.join(['StaleDataError (stale_version)'] * 2)}"
    ]
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []


async def test_what_cannot_be_helped_is_raised_at_once(doors: Door) -> None:
    mine = LookupError("mine")
    unit = Failing(doors, mine)
    with pytest.raises(LookupError) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert caught.value is mine
    assert not hasattr(mine, "__notes__")
    assert unit.runs == 1


async def test_an_integrity_error_is_not_retried(doors: Door) -> None:
    await take(doors)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="taken"))

    with pytest.raises(IntegrityError):
        await doors.decorate(body, retry=AT_ONCE)()
    assert runs == [1]


@pytest.mark.parametrize(
    "on",
    [LookupError, (ValueError, KeyError), lambda error: "again" in str(error)],
    ids=["class", "tuple", "predicate"],
)
async def test_on_says_what_is_retried_instead(doors: Door, on: Any) -> None:
    unit = Failing(doors, KeyError("again"))
    await doors.decorate(unit.body, retry=Retry(3, wait=0, on=on))()
    assert unit.runs == 2
    await doors.write("DELETE FROM users")
    unit = Failing(doors, stale())
    with pytest.raises(StaleDataError):
        await doors.decorate(unit.body, retry=Retry(3, wait=0, on=on))()
    assert unit.runs == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_the_program_is_never_retried(doors: Door, kind: type[BaseException]) -> None:
    unit = Failing(doors, kind())
    with pytest.raises(kind) as caught:
        await doors.decorate(unit.body, retry=AT_ONCE)()
    assert unit.runs == 1
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_set_rollback_only_is_no_failure_and_is_not_retried(doors: Door) -> None:
    runs: list[int] = []

    async def body(session: AsyncSession) -> str:
        runs.append(1)
        session.add(User(name="ann"))
        set_rollback_only()
        return "asked"

    assert await doors.decorate(body, retry=AT_ONCE)() == "asked"
    assert runs == [1]
    assert await names(doors) == []


# COMMIT is inside


async def test_a_failure_at_commit_replays_the_body(doors: Door) -> None:
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(Pledge(account_id=7))  # checked at COMMIT
        if len(runs) > 1:
            session.add(Account(id=7))

    await doors.decorate(body, retry=Retry(3, wait=0, on=IntegrityError))()
    assert len(runs) == 2
    assert await doors.scalar("SELECT count(*) FROM pledges") == 1


async def test_a_failure_that_was_swallowed_inside_is_retried_if_it_is_worth_it(doors: Door) -> None:
    await take(doors)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        if len(runs) == 1:
            await swallow_failed_statement(session)
        session.add(User(name="ann"))

    await doors.decorate(body, retry=Retry(3, wait=0, also=("unique_violation",)))()
    assert len(runs) == 2
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("how", ["statement", "flush"])
async def test_what_the_database_refuses_after_a_swallowed_failure_is_retried_if_that_is_worth_it(
    doors: Door, how: str
) -> None:
    """PostgreSQL says 25P02, SQLAlchemy PendingRollbackError: neither is what went wrong."""
    await take(doors)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        if len(runs) == 1:
            await (swallow_failed_statement if how == "statement" else swallow_failed_flush)(session)
        await session.execute(select(User))
        session.add(User(name="ann"))
        await session.flush()

    await doors.decorate(body, retry=Retry(3, wait=0, also=("unique_violation",)))()
    assert len(runs) == 2
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="postgresql")
async def test_what_the_server_refuses_after_a_swallowed_failure_tells_what_came_first(doors: Door) -> None:
    await take(doors)
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope() as session:
            await swallow_failed_statement(session)
            await session.execute(text("SELECT 1"))
    assert "the first error in its transaction was IntegrityError" in caught.value.__notes__[0]


async def test_an_error_in_a_listener_of_the_commit_is_replayed_too(doors: Door) -> None:
    runs: list[int] = []

    def fail(_session: Any) -> None:
        raise stale()

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="ann"))
        if len(runs) == 1:
            event.listen(doors.sync(session), "before_commit", fail)

    await doors.decorate(body, retry=AT_ONCE)()
    assert len(runs) == 2
    assert await names(doors) == ["ann"]


# Hooks


async def test_hooks_of_a_failed_attempt_never_run_and_those_of_the_last_run_once(doors: Door) -> None:
    unit = Failing(doors, stale(), stale())
    await doors.decorate(unit.body, retry=AT_ONCE)()
    assert [hook for hook in unit.hooks if hook.startswith("commit")] == ["commit 3"]


async def test_what_a_failed_attempt_has_to_undo_is_undone_after_each(doors: Door) -> None:
    unit = Failing(doors, stale(), stale())
    await doors.decorate(unit.body, retry=AT_ONCE)()
    assert unit.hooks == ["rollback 1", "rollback 2", "commit 3"]


async def test_a_failing_hook_after_the_commit_is_not_retried(doors: Door) -> None:
    runs: list[int] = []

    def fail() -> None:
        raise stale()

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="ann"))
        on_commit(fail)

    with pytest.raises(errors.HookError) as caught:
        await doors.decorate(body, retry=Retry(3, wait=0, on=Exception))()
    assert runs == [1]
    assert errors.outcome_of(caught.value) == "committed"
    assert await names(doors) == ["ann"]


# before_retry


async def test_before_retry_sees_the_failed_attempt_and_no_connection_is_held_while_it_waits(
    doors: Door, retry_without_waiting: list[float]
) -> None:
    seen: list[tuple[int, Any, list[Any], float | None, int]] = []

    def before(attempt: Attempt) -> None:
        seen.append((attempt.number, attempt.error, list(attempt.errors), attempt.delay, doors.checked_out()))
        with pytest.raises(errors.NoCurrentSession):
            current_session()

    one, two = stale(), stale()
    unit = Failing(doors, one, two)
    await doors.decorate(unit.body, retry=Retry(wait=0.5, jitter=False, before_retry=before))()
    assert seen == [(1, one, [one], 0.5, 0), (2, two, [one, two], 1.0, 0)]
    assert retry_without_waiting == [0.5, 1.0]


async def test_before_retry_is_not_called_where_there_is_no_retry(doors: Door) -> None:
    seen: list[Attempt] = []
    retry = Retry(2, wait=0, before_retry=seen.append)
    await doors.decorate(Failing(doors).body, retry=retry)()
    assert seen == []
    await doors.write("DELETE FROM users")
    with pytest.raises(StaleDataError):
        await doors.decorate(Failing(doors, stale(), stale(), stale()).body, retry=retry)()
    assert len(seen) == 1


@pytest.mark.doors(colour="async")
async def test_before_retry_may_be_async_in_async_code(doors: Door) -> None:
    seen: list[int] = []

    async def before(attempt: Attempt) -> None:
        await asyncio.sleep(0)
        seen.append(attempt.number)

    await doors.decorate(Failing(doors, stale()).body, retry=Retry(wait=0, before_retry=before))()
    assert seen == [1]


@pytest.mark.doors(colour="sync")
async def test_before_retry_that_is_async_is_refused_in_sync_code(doors: Door) -> None:
    async def before(_attempt: Attempt) -> None:
        raise AssertionError

    failure = stale()
    with pytest.raises(errors.ScopeError, match="before_retry is async") as caught:
        await doors.decorate(Failing(doors, failure).body, retry=Retry(wait=0, before_retry=before))()
    assert caught.value.__context__ is failure


async def test_a_failing_before_retry_ends_it_and_the_failed_attempt_is_in_its_chain(doors: Door) -> None:
    def before(_attempt: Attempt) -> None:
        raise LookupError("the log is full")

    failure = stale()
    unit = Failing(doors, failure)
    with pytest.raises(LookupError) as caught:
        await doors.decorate(unit.body, retry=Retry(wait=0, before_retry=before))()
    assert caught.value.__context__ is failure
    assert errors.outcome_of(caught.value) == "rolled back"
    assert unit.runs == 1


# What a database says


@pytest.mark.doors(backend="postgresql")
async def test_a_serialization_failure_is_replayed_from_its_reads(doors: Door) -> None:
    await doors.write(insert(Account).values(id=1, balance=0))
    barrier = doors.barrier(2)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        first = len(runs) < 2
        runs.append(1)
        account = await session.get_one(Account, 1)
        if first:
            await barrier.wait()
        account.balance += 1

    increment = doors.decorate(body, isolation="SERIALIZABLE", retry=AT_ONCE)
    await doors.together(increment, increment)
    assert len(runs) == 3
    assert await doors.scalar("SELECT balance FROM accounts") == 2


@pytest.mark.doors(backend="postgresql")
async def test_a_write_skew_that_is_found_at_commit_is_replayed(doors: Door) -> None:
    """Two doctors go off duty, each because the other stays. The second COMMIT fails, not a statement."""
    await doors.write(insert(Shift).values([{"doctor": "ann", "on_call": True}, {"doctor": "bob", "on_call": True}]))
    barrier = doors.barrier(2)
    failed_at: list[str] = []
    runs: list[str] = []

    async def go_off_duty(session: AsyncSession, doctor: str) -> bool:
        first = len(runs) < 2
        runs.append(doctor)
        on_call = (await session.scalars(select(Shift.doctor).where(Shift.on_call))).all()
        if first:
            await barrier.wait()
        if len(on_call) < 2:
            return False
        await session.execute(update(Shift).where(Shift.doctor == doctor).values(on_call=False))
        if first:
            await barrier.wait()
        return True

    def before(attempt: Attempt) -> None:
        assert isinstance(attempt.error, DBAPIError)
        failed_at.append("COMMIT" if attempt.error.statement is None else attempt.error.statement)

    retry = Retry(5, wait=0, before_retry=before)
    leave = doors.decorate(go_off_duty, isolation="SERIALIZABLE", retry=retry)
    left = await doors.together(lambda: _awaited(leave("ann")), lambda: _awaited(leave("bob")))
    assert sorted(left) == [False, True]
    assert failed_at == ["COMMIT"]
    assert await doors.scalar(select(text("count(*)")).select_from(Shift).where(Shift.on_call)) == 1


async def _awaited(value: Any) -> Any:
    return await value


@pytest.mark.doors(backend="postgresql")
async def test_of_two_transfers_that_deadlock_the_victim_is_replayed(doors: Door) -> None:
    await doors.write(insert(Account).values([{"id": 1, "balance": 100}, {"id": 2, "balance": 100}]))
    barrier = doors.barrier(2)
    runs: list[int] = []
    kinds: list[str] = []

    async def transfer(session: AsyncSession, source: int, target: int) -> None:
        first = len(runs) < 2
        runs.append(source)
        for account, amount in ((source, -10), (target, 10)):
            await session.execute(update(Account).where(Account.id == account).values(balance=Account.balance + amount))
            if first and account == source:
                await barrier.wait()

    def before(attempt: Attempt) -> None:
        assert attempt.error is not None
        kinds.append(errors.classify(attempt.error).kind)

    run = doors.decorate(transfer, retry=Retry(5, wait=0, before_retry=before))
    await doors.together(lambda: _awaited(run(1, 2)), lambda: _awaited(run(2, 1)))
    assert set(kinds) == {"deadlock_detected"}
    assert await doors.rows("SELECT balance FROM accounts ORDER BY id") == [(100,), (100,)]


@pytest.mark.doors(backend="postgresql")
async def test_when_all_connections_of_the_pool_are_dead_one_retry_is_enough(doors: Door) -> None:
    """What is lost on one connection is lost on all, so the first loss refreshes the pool."""
    engine = doors.make_engine(pool_size=4)
    factory = doors.factory(engine)
    barrier = doors.barrier(4)

    async def connected() -> int:
        async with doors.scope(factory) as session:
            pid = await backend_pid(session)
            await barrier.wait()
            return pid

    for pid in await doors.together(*[connected] * 4):
        await kill_backend(doors, pid)
    unit = Failing(doors)
    runs: list[int] = []

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        await unit.body(session)

    await doors.decorate(body, factory, retry=Retry(2, wait=0))()
    assert len(runs) == 2
    assert unit.hooks == ["rollback 1", "commit 2"]


@pytest.mark.doors(backend="postgresql")
async def test_a_server_that_refuses_connections_for_a_while_is_waited_for(doors: Door) -> None:
    unit = Failing(doors)
    refused: list[str] = []
    with link(doors) as way:

        def before(attempt: Attempt) -> None:
            assert attempt.error is not None
            refused.append(errors.classify(attempt.error).kind)
            if len(refused) == 2:
                way.proxy.heal()

        way.proxy.refuse()
        await doors.decorate(unit.body, way.factory, retry=Retry(5, wait=0, before_retry=before))()
    assert refused == ["cannot_connect", "cannot_connect"]


@pytest.mark.doors(backend="sqlite")
async def test_a_file_that_is_locked_is_waited_for_without_a_retry(doors: Door) -> None:
    """BEGIN IMMEDIATE queues: with a busy timeout nobody sees SQLITE_BUSY."""
    await doors.write(insert(Account).values(id=1, balance=0))
    retries: list[Attempt] = []
    engine = doors.make_engine(connect_args={"timeout": 30})

    async def body(session: AsyncSession) -> None:
        account = await session.get_one(Account, 1)
        account.balance += 1

    run = doors.decorate(body, doors.factory(engine), retry=Retry(wait=0, before_retry=retries.append))
    await doors.together(*[run] * 8)
    assert await doors.scalar("SELECT balance FROM accounts") == 8
    assert retries == []


@pytest.mark.doors(backend="sqlite")
async def test_a_file_that_stays_locked_is_retried_as_often_as_was_asked(doors: Door) -> None:
    engine = doors.make_engine(connect_args={"timeout": 0})
    kinds: list[str] = []

    def before(attempt: Attempt) -> None:
        assert attempt.error is not None
        kinds.append(errors.classify(attempt.error).kind)

    unit = Failing(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        run = doors.decorate(unit.body, doors.factory(engine), retry=Retry(3, wait=0, before_retry=before))
        with pytest.raises(DBAPIError) as caught:
            await doors.in_other_thread(run) if doors.colour == "sync" else await asyncio.create_task(_awaited(run()))
    assert kinds == ["busy", "busy"]
    assert "gave up after 3 attempts" in caught.value.__notes__[0]


# Asynchronous code


@pytest.mark.doors(colour="async")
async def test_a_cancellation_is_never_retried_and_never_swallowed(doors: Door) -> None:
    runs: list[int] = []
    inside = asyncio.Event()

    async def body(session: AsyncSession) -> None:
        runs.append(1)
        session.add(User(name="ann"))
        await session.flush()
        inside.set()
        await asyncio.Event().wait()

    # `on` cannot name it, and a predicate is not asked.
    task = asyncio.create_task(_awaited(doors.decorate(body, retry=Retry(wait=0, on=lambda _: True))()))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert runs == [1]
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []


@pytest.mark.doors(colour="async")
async def test_the_wait_between_attempts_can_be_cancelled_and_holds_no_connection(doors: Door) -> None:
    waiting = asyncio.Event()

    def before(_attempt: Attempt) -> None:
        waiting.set()

    failure = stale()
    unit = Failing(doors, failure)
    retry = Retry(wait=3600, wait_max=3600, jitter=False, before_retry=before)
    task = asyncio.create_task(_awaited(doors.decorate(unit.body, retry=retry)()))
    await waiting.wait()
    await asyncio.sleep(0)
    assert doors.checked_out() == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert unit.runs == 1
    assert errors.outcome_of(caught.value) == "rolled back"
    assert caught.value.__context__ is failure


@pytest.mark.doors(colour="async")
async def test_a_timeout_around_the_retries_ends_them(doors: Door) -> None:
    unit = Failing(doors, *[stale() for _ in range(10)])
    limit: asyncio.Timeout

    def before(attempt: Attempt) -> None:
        if attempt.number == 2:
            limit.reschedule(asyncio.get_running_loop().time())

    retry = Retry(10, wait=3600, wait_max=3600, before_retry=before)
    retry = Retry(10, wait=0.0, wait_max=3600, before_retry=before)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(None) as limit:
            await doors.decorate(unit.body, retry=retry)()
            raise AssertionError
    assert unit.runs >= 2
    assert errors.outcome_of(caught.value) == "rolled back"


# At the same time


async def test_a_decorated_function_may_run_many_times_at_once_each_with_attempts_of_its_own(doors: Door) -> None:
    runs: dict[str, int] = {}

    async def body(session: AsyncSession, name: str) -> str:
        runs[name] = runs.get(name, 0) + 1
        session.add(User(name=name))
        if runs[name] < 3:
            raise stale()
        return name

    timeout = {"connect_args": {"timeout": 30}} if doors.backend == "sqlite" else {}
    run = doors.decorate(body, doors.factory(doors.make_engine(**timeout)), retry=Retry(3, wait=0))

    def call(name: str) -> Callable[[], Coroutine[Any, Any, Any]]:
        return lambda: _awaited(run(name))

    wanted = [f"user {number}" for number in range(8)]
    assert await doors.together(*map(call, wanted)) == wanted
    assert set(runs.values()) == {3}
    assert sorted(await names(doors)) == wanted


# Refused


@pytest.mark.parametrize("retry", [0, -1, True, "3", 1.5])
async def test_a_retry_that_is_none_is_refused_where_it_is_written(doors: Door, retry: Any) -> None:
    with pytest.raises(errors.OptionError):
        doors.Session.scope(retry=retry)
    with pytest.raises(errors.OptionError):
        doors.factory(retry=retry)
    with pytest.raises(errors.OptionError):
        doors.Session.attempts(retry=retry)


async def test_a_generator_function_cannot_be_retried(doors: Door) -> None:
    async def rows(session: AsyncSession) -> Any:
        yield session

    def sync_rows(session: Any) -> Any:
        yield session

    for body in (rows, sync_rows):
        with pytest.raises(errors.ScopeError, match="generator"):
            doors.Session.scope(retry=3)(body)


async def test_a_generator_that_a_body_returns_is_not_of_the_unit(doors: Door) -> None:
    """Only what the call itself does is replayed."""

    async def body(session: AsyncSession) -> Any:
        return iter((await session.scalars(select(User.name))).all())

    await take(doors)
    with suppress(StopIteration):
        assert next(await doors.decorate(body, retry=AT_ONCE)()) == "taken"
