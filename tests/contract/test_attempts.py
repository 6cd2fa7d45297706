"""`attempts()`: the retry of a `with` body. Swallowed is only what the next attempt makes good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, current_session, errors, on_commit
from tests.contract.breaking import names
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

AT_ONCE = Retry(5, wait=0)


def stale() -> StaleDataError:
    return StaleDataError("somebody was faster")


async def test_the_body_is_run_until_it_succeeds_and_then_the_loop_ends(doors: Door) -> None:
    numbers: list[int] = []
    sessions: list[Any] = []
    hooks: list[int] = []
    async for attempt in doors.attempts(retry=AT_ONCE):
        async with attempt as session:
            numbers.append(attempt.number)
            sessions.append(doors.raw(session))
            number = attempt.number
            assert current_session() is doors.raw(session)
            on_commit(lambda number=number: hooks.append(number))  # type: ignore[misc]
            session.add(User(name=f"run {attempt.number}"))
            await session.flush()
            if attempt.number < 3:
                raise stale()
    assert numbers == [1, 2, 3]
    assert len({id(session) for session in sessions}) == 3
    assert hooks == [3]
    assert await names(doors) == ["run 3"]


async def test_without_options_the_policy_is_the_factorys_or_the_default(doors: Door) -> None:
    for factory, most in ((doors.Session, 5), (doors.factory(retry=Retry(2, wait=0)), 2)):
        numbers: list[int] = []
        with pytest.raises(StaleDataError):
            async for attempt in doors.attempts(factory):
                async with attempt:
                    numbers.append(attempt.number)
                    raise stale()
        assert len(numbers) == most


async def test_the_options_of_a_scope_are_those_of_the_attempts(doors: Door) -> None:
    with pytest.raises(errors.UnknownOptionError):
        doors.Session.attempts(retries=3)
    async for attempt in doors.attempts(retry=AT_ONCE, read_only=True):
        async with attempt as session:
            await session.connection()


async def test_a_failure_at_the_exit_is_made_good_by_the_next_attempt(doors: Door) -> None:
    async for attempt in doors.attempts(retry=Retry(3, wait=0, on=IntegrityError)):
        async with attempt as session:
            session.add(Pledge(account_id=7))  # checked at COMMIT
            if attempt.number > 1:
                session.add(Account(id=7))
    assert attempt.number == 2
    assert await doors.scalar("SELECT count(*) FROM pledges") == 1


async def test_the_last_failure_leaves_the_loop_as_it_was(doors: Door) -> None:
    failures = [stale(), stale()]
    seen: list[Any] = []
    with pytest.raises(StaleDataError) as caught:
        async for attempt in doors.attempts(retry=Retry(2, wait=0)):
            seen.append(attempt)
            async with attempt:
                raise failures[attempt.number - 1]
    assert caught.value is failures[1]
    assert "gave up after 2 attempts" in caught.value.__notes__[0]
    # The last one is raised, and its traceback leads to the attempt: one that held it would live until a collection.
    assert [attempt.error for attempt in seen] == [*failures[:-1], None]
    assert seen[0].delay == 0
    assert seen[1].delay is None
    assert seen[1].errors == failures[:-1]


async def test_what_cannot_be_helped_leaves_the_loop_at_once(doors: Door) -> None:
    numbers: list[int] = []
    mine = LookupError()
    with pytest.raises(LookupError) as caught:
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                numbers.append(attempt.number)
                raise mine
    assert caught.value is mine
    assert numbers == [1]


# Nothing is swallowed that is not made good


NOT_RETRIED = "it was not retried, because the code does not go straight on with the next attempt"


async def test_code_after_the_block_does_not_run_as_if_the_work_were_done(doors: Door) -> None:
    after: list[int] = []
    with pytest.raises(StaleDataError) as caught:
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                raise stale()
            after.append(attempt.number)
    assert after == []
    assert NOT_RETRIED in caught.value.__notes__[-1]


async def test_a_return_inside_is_retried_if_the_body_fails(doors: Door) -> None:
    async def work() -> int:
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt as session:
                session.add(User(name=f"run {attempt.number}"))
                await session.flush()
                if attempt.number < 2:
                    raise stale()
                return int(attempt.number)
        raise AssertionError

    assert await work() == 2
    assert await names(doors) == ["run 2"]


async def test_a_return_inside_is_no_success_if_the_commit_fails(doors: Door) -> None:
    async def work() -> int:
        async for attempt in doors.attempts(retry=Retry(5, wait=0, on=IntegrityError)):
            async with attempt as session:
                session.add(Pledge(account_id=7))
                return int(attempt.number)
        raise AssertionError

    with pytest.raises(IntegrityError) as caught:
        await work()
    assert NOT_RETRIED in caught.value.__notes__[-1]
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_a_break_inside_is_no_success_if_the_commit_fails(doors: Door) -> None:
    with pytest.raises(IntegrityError):
        for _ in range(1):  # where the break leads to looks like a loop, too
            async for attempt in doors.attempts(retry=Retry(5, wait=0, on=IntegrityError)):
                async with attempt as session:
                    session.add(Pledge(account_id=7))
                    break


async def test_a_break_inside_after_a_success_ends_the_loop(doors: Door) -> None:
    async for attempt in doors.attempts(retry=AT_ONCE):
        async with attempt as session:
            session.add(User(name="ann"))
            break
    assert await names(doors) == ["ann"]


async def test_another_loop_in_between_is_not_taken_for_that_of_the_attempts(doors: Door) -> None:
    with pytest.raises(StaleDataError) as caught:
        async for attempt in doors.attempts(retry=AT_ONCE):
            for _ in range(1):
                async with attempt:
                    raise stale()
    assert NOT_RETRIED in caught.value.__notes__[-1]


async def test_an_attempt_is_entered_once(doors: Door) -> None:
    with pytest.raises(errors.ScopeError, match="entered twice"):
        async for attempt in doors.attempts(retry=AT_ONCE):
            for _ in range(2):
                async with attempt as session:
                    session.add(User(name="ann"))


async def test_an_attempt_that_is_not_entered_is_no_endless_loop(doors: Door) -> None:
    with pytest.raises(errors.ScopeError, match="was not entered; write `with attempt as session:`"):
        async for _attempt in doors.attempts(retry=AT_ONCE):
            pass


async def test_a_loop_that_is_left_before_it_has_begun_leaves_nothing_behind(doors: Door) -> None:
    async for _attempt in doors.attempts(retry=AT_ONCE):
        break
    assert doors.checked_out() == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_the_program_leaves_the_loop(doors: Door, kind: type[BaseException]) -> None:
    numbers: list[int] = []
    with pytest.raises(kind) as caught:
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                numbers.append(attempt.number)
                raise kind
    assert numbers == [1]
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_attempts_can_be_iterated_several_times_at_once_each_counts_for_itself(doors: Door) -> None:
    numbers: list[tuple[str, int]] = []
    async for outer in doors.attempts(retry=AT_ONCE):
        async with outer:
            async for inner in doors.attempts(retry=AT_ONCE, propagation="new", read_only=True):
                async with inner:
                    numbers.append(("inner", inner.number))
                    if (outer.number, inner.number) == (1, 1):
                        raise stale()
            numbers.append(("outer", outer.number))
            if outer.number == 1:
                raise stale()
    assert numbers == [("inner", 1), ("inner", 2), ("outer", 1), ("inner", 1), ("outer", 2)]


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
def test_a_plain_function_that_is_sync_is_looked_at_by_its_own_code(doors: Door) -> None:
    """Not through the harness: what users write."""
    numbers: list[int] = []
    for attempt in doors.Session.attempts(retry=AT_ONCE):
        with attempt as session:
            numbers.append(attempt.number)
            session.add(User(name="ann"))
            session.flush()
            if attempt.number == 1:
                raise stale()
    assert numbers == [1, 2]
    with pytest.raises(StaleDataError):
        for attempt in doors.Session.attempts(retry=AT_ONCE):
            with attempt:
                raise stale()
            numbers.append(0)
    assert numbers == [1, 2]


async def test_a_sync_attempt_is_not_for_async_code_nor_the_reverse(doors: Door) -> None:
    attempts = doors.Session.attempts()
    if doors.colour == "sync":
        attempt = next(iter(attempts))
        assert not hasattr(attempt, "__aenter__")
    else:
        attempt = await anext(aiter(attempts))
        assert not hasattr(attempt, "__enter__")
