"""Law 4: retry replays the whole unit: a new session, a new transaction, the body from its first line, COMMIT included."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, current_session, errors, on_commit, set_rollback_only
from tests.contract.breaking import (
    names,
    swallow_failed_flush,
    swallow_failed_statement,
    take,
)
from tests.contract.failing import AT_ONCE, Failing, awaited, stale
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession

    from sessionkit.retry import Attempt
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


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
        f"gave up after 3 attempts; the earlier attempts failed with {', '.join(['StaleDataError (stale_version)'] * 2)}"
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
        return lambda: awaited(run(name))

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
