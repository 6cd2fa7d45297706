"""Retry is pure: attempts, waits and the deadline are arithmetic, with the clock and the dice as arguments."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry
from sessionkit.errors import CommitOutcomeUnknown, HookError, OptionError, Outcome, set_outcome
from sessionkit.retry import Attempts, as_retry

SECONDS = st.just(0.0) | st.floats(1e-9, 1000)
NUMBERS = st.integers(1, 2000)


def failed(error: BaseException | None = None, outcome: Outcome = "rolled back") -> Any:
    """Return an error as it leaves a scope; one that is worth another attempt, if not told otherwise."""
    error = StaleDataError("stale") if error is None else error
    set_outcome(error, outcome)
    return error


def coded(state: str) -> Exception:
    """Return an error that carries a SQLSTATE, as a driver's do."""
    error = RuntimeError(state)
    error.sqlstate = state  # type: ignore[attr-defined]
    return error


# Delays


@given(NUMBERS, SECONDS, SECONDS, st.integers())
def test_no_wait_is_negative_or_longer_than_the_longest(attempt: int, wait: float, wait_max: float, seed: int) -> None:
    retry = Retry(wait=wait, wait_max=wait_max)
    assert 0 <= retry.delay_after(attempt, random.Random(seed)) <= wait_max


@given(NUMBERS, SECONDS, SECONDS)
def test_without_jitter_the_wait_doubles_up_to_the_cap(attempt: int, wait: float, wait_max: float) -> None:
    retry = Retry(wait=wait, wait_max=wait_max, jitter=False)
    first, after = retry.delay_after(attempt), retry.delay_after(attempt + 1)
    assert retry.delay_after(1) == min(wait, wait_max)
    assert after == min(wait_max, first * 2) or after == first == wait_max


@given(NUMBERS, SECONDS, SECONDS, st.integers())
def test_the_jitter_is_full_and_comes_from_the_dice(attempt: int, wait: float, wait_max: float, seed: int) -> None:
    longest = Retry(wait=wait, wait_max=wait_max, jitter=False).delay_after(attempt)
    drawn = Retry(wait=wait, wait_max=wait_max).delay_after(attempt, random.Random(seed))
    assert drawn == random.Random(seed).uniform(0.0, longest)


def test_the_jitter_uses_the_whole_range() -> None:
    retry, dice = Retry(wait=1.0, wait_max=1.0), random.Random(7)
    drawn = [retry.delay_after(1, dice) for _ in range(1000)]
    assert min(drawn) < 0.01
    assert max(drawn) > 0.99


def test_a_wait_of_zero_stays_zero() -> None:
    assert Retry(wait=0).delay_after(50) == 0


def test_without_dice_those_of_the_process_are_thrown() -> None:
    assert 0 <= Retry().delay_after(1) <= 0.02


@given(NUMBERS, SECONDS, SECONDS, SECONDS)
@pytest.mark.parametrize("code", ["08006", "57P01", "57P02", "57P03", "25006"])
def test_after_a_connection_that_is_lost_or_not_to_be_had_the_wait_has_a_cap_of_its_own(
    code: str, attempt: int, wait: float, wait_max: float, reconnect: float
) -> None:
    retry = Retry(wait=wait, wait_max=wait_max, reconnect_wait_max=reconnect, jitter=False)
    assert retry.delay_after(attempt, error=coded(code)) == min(retry.delay_after(attempt), reconnect)


@pytest.mark.parametrize("error", [None, StaleDataError("stale"), ValueError(), "40001", "40P01"])
def test_after_a_conflict_the_wait_does_not_know_that_cap(error: Any) -> None:
    error = coded(error) if isinstance(error, str) else error
    assert Retry(wait=1, wait_max=9, reconnect_wait_max=0, jitter=False).delay_after(5, error=error) == 9


def test_a_unit_that_waits_for_a_primary_waits_for_half_a_second_at_the_most() -> None:
    attempts = Attempts(Retry(50, jitter=False), now=0.0)
    delays: list[float | None] = []
    for _ in range(20):
        attempt = attempts.next()
        assert attempts.failed(attempt, failed(coded("57P03")), now=0.0)
        delays.append(attempt.delay)
    assert delays[:3] == [0.02, 0.04, 0.08]
    assert max(delays, key=float) == delays[-1] == 0.5  # type: ignore[arg-type]


# The attempts and the deadline


@given(st.integers(1, 30))
def test_there_are_as_many_attempts_as_were_asked_for(count: int) -> None:
    attempts = Attempts(Retry(count, wait=0), now=0.0)
    for number in range(1, count + 1):
        attempt = attempts.next()
        assert attempt.number == number
        assert attempts.failed(attempt, failed(), now=0.0) is (number < count)
    assert (attempt.delay is None) is True


@given(st.floats(0, 1e6), st.floats(0.001, 1e5), st.floats(0, 2e5), st.integers())
def test_no_wait_reaches_over_the_deadline(start: float, timeout: float, elapsed: float, seed: int) -> None:
    attempts = Attempts(Retry(10, wait=1, wait_max=100, timeout=timeout), start, random.Random(seed))
    attempt, now = attempts.next(), start + elapsed
    assert attempts.deadline == start + timeout
    goes_on = attempts.failed(attempt, failed(), now)
    if goes_on:
        assert attempt.delay is not None
        assert now + attempt.delay < start + timeout
    else:
        assert now + random.Random(seed).uniform(0, 1) >= start + timeout


def test_the_wait_counts_against_the_deadline() -> None:
    retry = Retry(wait=2, wait_max=2, jitter=False, timeout=3)
    attempts = Attempts(retry, now=10.0)
    assert attempts.failed(attempts.next(), failed(), now=10.9)
    assert not attempts.failed(attempts.next(), failed(), now=11.0)


def test_whoever_locks_after_a_stale_version_does_not_wait_before_it() -> None:
    attempts = Attempts(Retry(wait=5, wait_max=5, jitter=False, lock_on_retry=True, also=("other",)), now=0.0)
    stale, other = attempts.next(), failed(ValueError())
    assert attempts.failed(stale, failed(), now=0.0)
    assert stale.delay == 0
    second = attempts.next()
    assert attempts.failed(second, other, now=0.0)
    assert second.delay == 5


def test_without_a_timeout_there_is_no_deadline() -> None:
    assert Attempts(Retry(), now=5.0).deadline is None


def test_an_attempt_knows_the_errors_so_far() -> None:
    attempts = Attempts(Retry(wait=0), now=0.0)
    errors = [failed(), failed(), failed()]
    for number, error in enumerate(errors, 1):
        attempt = attempts.next()
        assert attempt.errors == errors[: number - 1]
        attempts.failed(attempt, error, now=0.0)
        assert attempt.error is error
    assert attempts.next().errors == errors


# What the last error says


def test_the_last_error_tells_how_many_attempts_there_were_and_what_failed_before() -> None:
    attempts = Attempts(Retry(3, wait=0), now=0.0)
    errors = [failed(), failed(), failed()]
    for error in errors:
        attempts.failed(attempts.next(), error, now=0.0)
    assert errors[2].__notes__ == [
        f"gave up after 3 attempts; the earlier attempts failed with {', '.join(['StaleDataError (stale_version)'] * 2)}"
    ]
    assert not hasattr(errors[0], "__notes__")


def test_an_error_at_the_deadline_tells_of_the_deadline() -> None:
    attempts, error = Attempts(Retry(3, timeout=1), now=0.0), failed()
    assert not attempts.failed(attempts.next(), error, now=1.0)
    assert error.__notes__ == ["gave up after 1 attempt, at the timeout of 1 s; there was no earlier one"]


def test_an_error_that_is_not_retried_tells_of_the_attempts_before() -> None:
    attempts, error = Attempts(Retry(3, wait=0), now=0.0), failed(ValueError("mine"))
    attempts.failed(attempts.next(), failed(), now=0.0)
    assert not attempts.failed(attempts.next(), error, now=0.0)
    assert error.__notes__ == ["this was attempt 2; the earlier attempts failed with StaleDataError (stale_version)"]


def test_an_error_of_the_first_attempt_that_is_not_retried_is_left_as_it_was() -> None:
    attempts, error = Attempts(Retry(3), now=0.0), failed(ValueError("mine"))
    assert not attempts.failed(attempts.next(), error, now=0.0)
    assert not hasattr(error, "__notes__")


@dataclass(frozen=True)
class Frozen(Exception):
    """An exception of somebody's that cannot be changed."""

    value: int


def test_an_exception_that_cannot_be_changed_is_raised_without_a_note() -> None:
    attempts, error = Attempts(Retry(1, on=Frozen), now=0.0), failed(Frozen(1))
    assert not attempts.failed(attempts.next(), error, now=0.0)
    assert not hasattr(error, "__notes__")


# What is retried


@pytest.mark.parametrize("outcome", ["committed", "unknown"])
def test_what_may_have_been_committed_is_never_retried(outcome: Outcome) -> None:
    assert not Retry().retries(failed(outcome=outcome))
    assert not Retry(on=Exception).retries(failed(outcome=outcome))
    assert not Retry(on=lambda _: True).retries(failed(ValueError(), outcome))


def test_what_has_left_no_scope_is_not_retried() -> None:
    assert not Retry(on=Exception).retries(ValueError())


def test_an_unknown_outcome_and_a_failed_hook_are_not_retried() -> None:
    assert not Retry(on=Exception).retries(failed(CommitOutcomeUnknown("lost"), "unknown"))
    assert not Retry(on=Exception).retries(failed(HookError([ValueError()], "committed"), "committed"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_is_never_retried(kind: type[BaseException]) -> None:
    asked: list[BaseException] = []

    def ask(error: BaseException) -> bool:
        asked.append(error)
        return True

    attempts = Attempts(Retry(on=ask), now=0.0)
    attempt = attempts.next()
    assert not attempts.failed(attempt, failed(kind()), now=0.0)
    assert asked == []
    assert attempt.error is None


def test_on_replaces_the_default() -> None:
    assert Retry(on=ValueError).retries(failed(ValueError()))
    assert not Retry(on=ValueError).retries(failed())
    assert Retry(on=(ValueError, KeyError)).retries(failed(KeyError()))
    assert Retry(on=LookupError).retries(failed(KeyError()))
    assert Retry(on=lambda error: "again" in str(error)).retries(failed(ValueError("again")))
    assert not Retry(on=lambda error: "again" in str(error)).retries(failed(ValueError("no")))
    assert not Retry(on=()).retries(failed())


def test_also_adds_to_the_default() -> None:
    retry = Retry(also=("other",))
    assert retry.retries(failed(ValueError()))
    assert retry.retries(failed())
    assert not Retry().retries(failed(ValueError()))


# Bad values


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", None, True, float("inf")])
def test_attempts_must_be_a_whole_number_from_1_on(attempts: Any) -> None:
    with pytest.raises(OptionError, match=r"attempts=.* was asked for; it is a whole number, 1 or more"):
        Retry(attempts)


@pytest.mark.parametrize("name", ["wait", "wait_max", "reconnect_wait_max", "timeout"])
@pytest.mark.parametrize("value", [-0.001, float("nan"), float("inf"), "1", True])
def test_waits_must_be_seconds(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name}=.* was asked for; it is a number of seconds, 0 or more"):
        Retry(**{name: value})


def test_a_timeout_of_zero_is_refused() -> None:
    with pytest.raises(OptionError, match="no attempt at all"):
        Retry(timeout=0)


@pytest.mark.parametrize("on", [BaseException, KeyboardInterrupt, (ValueError, SystemExit), int, "ValueError", 1])
def test_on_must_be_exceptions_or_a_predicate(on: Any) -> None:
    with pytest.raises(OptionError, match="on="):
        Retry(on=on)


@pytest.mark.parametrize("on", [(ValueError, "KeyError"), (ValueError, lambda _: True), [ValueError]])
def test_a_tuple_of_on_holds_classes_only(on: Any) -> None:
    with pytest.raises(OptionError, match="on="):
        Retry(on=on)


def test_on_must_not_be_a_cancellation() -> None:
    import asyncio

    with pytest.raises(OptionError, match="never retried"):
        Retry(on=asyncio.CancelledError)  # type: ignore[arg-type]


@pytest.mark.parametrize("also", ["lock_not_available", (1,), None, 5])
def test_also_must_be_a_tuple_of_kinds(also: Any) -> None:
    with pytest.raises(OptionError, match="also="):
        Retry(also=also)


def test_a_kind_that_nobody_knows_is_told_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="no kind 'lock_not_availible'; did you mean 'lock_not_available'"):
        Retry(also=("lock_not_availible",))


def test_also_together_with_on_would_be_ignored_and_is_refused() -> None:
    with pytest.raises(OptionError, match="adds to the default, which `on` replaces"):
        Retry(on=ValueError, also=("lock_not_available",))


def test_before_retry_must_be_callable() -> None:
    with pytest.raises(OptionError, match="before_retry="):
        Retry(before_retry="log")  # type: ignore[arg-type]


def test_a_number_is_a_number_of_attempts() -> None:
    assert as_retry(7, "a scope") == Retry(7)
    policy = Retry(2)
    assert as_retry(policy, "a scope") is policy


@pytest.mark.parametrize("retry", [0, True, "5", 2.0, object()])
def test_what_is_no_retry_is_refused(retry: Any) -> None:
    with pytest.raises(OptionError):
        as_retry(retry, "a scope")


def test_a_retry_is_a_value() -> None:
    assert Retry(3, also=["lock_not_available"]) == Retry(3, also=("lock_not_available",))  # type: ignore[arg-type]
    assert hash(Retry(3)) == hash(Retry(3))
    with pytest.raises(AttributeError):
        Retry().attempts = 2  # type: ignore[misc]
