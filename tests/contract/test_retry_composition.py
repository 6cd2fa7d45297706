"""Law 4, composition: a unit that asks for retry may join one that is retried itself, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, errors, session_scope
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

AT_ONCE = Retry(5, wait=0)
WAY_OUT = r"give the outermost scope retry= \(as a decorator, or with attempts\(\)\), or ask for propagation='new'"


class Inner:
    """A unit that fails once, and counts its runs."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.runs = 0

    async def body(self, session: AsyncSession) -> None:
        self.runs += 1
        session.add(User(name=f"inner {self.runs}"))
        await session.flush()
        if self.runs <= self.failures:
            raise StaleDataError("somebody was faster")


async def test_a_retried_unit_joins_a_retried_one_and_the_outermost_replays_all_of_it(doors: Door) -> None:
    inner = Inner()
    joined = doors.decorate(inner.body, retry=2)
    outer_runs: list[int] = []

    async def outer(session: AsyncSession) -> None:
        outer_runs.append(1)
        session.add(User(name=f"outer {len(outer_runs)}"))
        await joined()

    await doors.decorate(outer, retry=AT_ONCE)()
    assert (len(outer_runs), inner.runs) == (2, 2)
    assert await names(doors) == ["outer 2", "inner 2"]


async def test_the_number_of_runs_is_the_outermosts_and_does_not_multiply(doors: Door) -> None:
    inner = Inner(failures=100)
    joined = doors.decorate(inner.body, retry=7)

    async def outer(_session: AsyncSession) -> None:
        await joined()

    with pytest.raises(StaleDataError):
        await doors.decorate(outer, retry=Retry(3, wait=0))()
    assert inner.runs == 3


async def test_attempts_join_a_retried_unit_as_one_attempt(doors: Door) -> None:
    numbers: list[int] = []
    runs: list[int] = []

    async def outer(session: AsyncSession) -> None:
        runs.append(1)
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt as joined:
                assert doors.same(joined, session)
                numbers.append(attempt.number)
                joined.add(User(name=f"run {len(runs)}"))
                await joined.flush()
                if len(runs) < 3:
                    raise StaleDataError("somebody was faster")

    await doors.decorate(outer, retry=AT_ONCE)()
    assert len(runs) == 3
    assert numbers == [1, 1, 1]
    assert await names(doors) == ["run 3"]


async def test_a_decorator_joins_attempts(doors: Door) -> None:
    inner = Inner()
    joined = doors.decorate(inner.body, retry=AT_ONCE)
    async for attempt in doors.attempts(retry=AT_ONCE):
        async with attempt:
            await joined()
    assert (attempt.number, inner.runs) == (2, 2)


async def test_an_inner_failure_that_is_swallowed_by_a_retried_unit_is_retried_with_it(doors: Door) -> None:
    inner = Inner()
    joined = doors.decorate(inner.body, retry=2)
    runs: list[int] = []

    async def outer(_session: AsyncSession) -> None:
        runs.append(1)
        with suppress(StaleDataError):
            await joined()

    await doors.decorate(outer, retry=AT_ONCE)()
    assert len(runs) == 2
    assert await names(doors) == ["inner 2"]


@pytest.mark.parametrize("propagation", ["join", "require"])
async def test_an_explicit_retry_does_not_join_a_scope_that_is_not_retried(doors: Door, propagation: str) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, retry=3, propagation=propagation, name="inner")
    async with doors.scope(name="order"):
        with pytest.raises(
            errors.OptionError,
            match=f"the scope 'order' is already open and is not retried itself, so a part of it cannot be; {WAY_OUT}",
        ):
            await run()
    assert inner.runs == 0


async def test_explicit_attempts_do_not_join_a_scope_that_is_not_retried(doors: Door) -> None:
    async with doors.scope():
        with pytest.raises(errors.OptionError, match=WAY_OUT):
            async for _attempt in doors.attempts(retry=3):
                raise AssertionError


async def test_a_refused_retry_dooms_nothing(doors: Door) -> None:
    run = doors.decorate(Inner().body, retry=3)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.OptionError):
            await run()
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("outer", [None, AT_ONCE], ids=["in a plain unit", "in a retried unit"])
async def test_a_savepoint_cannot_be_retried(doors: Door, outer: Retry | None) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, retry=3, propagation="savepoint")

    async def body(_session: AsyncSession) -> None:
        with pytest.raises(
            errors.OptionError, match="a savepoint cannot be retried: .*the whole transaction has to be"
        ):
            await run()

    await doors.decorate(body, retry=outer)()
    assert inner.runs == 0


async def test_a_savepoint_without_retry_is_replayed_with_the_retried_unit_around_it(doors: Door) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, propagation="savepoint")

    async def outer(_session: AsyncSession) -> None:
        await run()

    await doors.decorate(outer, retry=AT_ONCE)()
    assert inner.runs == 2
    assert await names(doors) == ["inner 2"]


async def test_where_no_scope_is_open_a_savepoint_is_a_unit_of_its_own_and_is_retried(doors: Door) -> None:
    inner = Inner()
    await doors.decorate(inner.body, retry=AT_ONCE, propagation="savepoint")()
    assert inner.runs == 2


@pytest.mark.doors(backend="postgresql")
async def test_a_unit_of_its_own_is_retried_wherever_it_is(doors: Door) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, retry=AT_ONCE, propagation="new")
    async with doors.scope() as session:
        session.add(User(name="outer"))
        await session.flush()
        await run()
    assert inner.runs == 2
    assert await names(doors) == ["outer", "inner 2"]


def ours(doors: Door) -> Any:
    return doors.Session


def plain(doors: Door) -> Any:
    return doors.plain_factory()


@pytest.mark.parametrize("factory", [ours, plain])
async def test_a_session_that_was_passed_in_is_the_callers_and_cannot_be_retried(
    doors: Door, factory: Callable[[Door], Any]
) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, form="keyword", retry=3)
    made = factory(doors)
    async with doors.session(made) as session:
        with pytest.raises(
            errors.OptionError,
            match="its transaction is the caller's.*leave the session out, or retry the caller's unit",
        ):
            await run(session=session)
    assert inner.runs == 0


async def test_the_session_of_a_scope_that_is_not_retried_cannot_be_retried_when_it_is_passed_in(doors: Door) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, form="keyword", retry=3)
    async with doors.scope() as session:
        with pytest.raises(errors.OptionError, match=WAY_OUT):
            await run(session=session)
    assert inner.runs == 0


async def test_the_session_of_a_retried_unit_may_be_passed_on(doors: Door) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, form="keyword", retry=3)

    async def outer(session: AsyncSession) -> None:
        await run(session=session)

    await doors.decorate(outer, retry=AT_ONCE)()
    assert inner.runs == 2


async def test_a_plain_with_refuses_retry_and_shows_the_loop(doors: Door) -> None:
    with pytest.raises(
        errors.OptionError, match=r"for attempt in Session.attempts\(retry=\.\.\.\): with attempt as session"
    ):
        async with doors.scope(retry=3):
            raise AssertionError
    with pytest.raises(errors.OptionError, match="whose body cannot run again"):
        async with doors.enter(session_scope(doors.raw(doors.plain_factory()), retry=AT_ONCE)):
            raise AssertionError


async def test_a_factorys_default_is_not_for_a_plain_with(doors: Door) -> None:
    factory = doors.factory(retry=AT_ONCE)
    runs: list[int] = []
    with pytest.raises(StaleDataError):
        async with doors.scope(factory):
            runs.append(1)
            raise StaleDataError("somebody was faster")
    assert runs == [1]


async def test_a_factorys_default_joins_anything_because_nobody_asked(doors: Door) -> None:
    factory = doors.factory(retry=AT_ONCE)
    inner = Inner(failures=0)
    run = doors.decorate(inner.body, factory, form="keyword")
    savepoint = doors.decorate(Inner(failures=0).body, factory, propagation="savepoint")
    async with doors.scope(factory) as session:
        await run()
        await session.flush()
        await session.run_sync(lambda s: s.query(User).delete())
        await run(session=session)
        await session.run_sync(lambda s: s.query(User).delete())
        await savepoint()
        async for attempt in doors.attempts(factory):
            async with attempt as joined:
                assert doors.same(joined, session)
    async with doors.session(doors.plain_factory()) as passed:
        await run(session=passed)
    assert inner.runs == 3


async def test_a_unit_of_a_factory_with_a_default_that_joined_a_plain_with_is_not_retried(doors: Door) -> None:
    factory = doors.factory(retry=AT_ONCE)
    inner = Inner()
    run = doors.decorate(inner.body, factory)
    with pytest.raises(StaleDataError):
        async with doors.scope(factory):
            await run()
    assert inner.runs == 1


async def test_another_factorys_unit_is_not_joined_and_is_retried_for_itself(doors: Door) -> None:
    inner = Inner()
    run = doors.decorate(inner.body, doors.factory(doors.other_engine()), retry=AT_ONCE)
    async with doors.scope() as session:
        session.add(User(name="outer"))
        await session.flush()
        await run()
    assert inner.runs == 2
