"""A loop over `attempts()` that is left while a failed attempt waits for the next one says so, and no other loop does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, _loops
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

AT_ONCE = Retry(5, wait=0)
SAID = pytest.warns(RuntimeWarning, match="was left although its last attempt had failed.*StaleDataError: too late")


def stale() -> StaleDataError:
    return StaleDataError("too late")


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("sessionkit").addHandler(handler)
    yield records
    logging.getLogger("sessionkit").removeHandler(handler)


def assert_logged(records: list[logging.LogRecord]) -> None:
    (record,) = records
    assert record.levelno == logging.ERROR
    assert "StaleDataError: too late" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], StaleDataError)


async def at_most(count: int, attempts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Do as itertools.islice(), in both colours."""
    async for attempt in attempts:
        yield attempt
        count -= 1
        if count == 0:
            return


# Said


async def test_an_iterator_that_ends_before_the_attempts_is_said(doors: Door, logged: list[logging.LogRecord]) -> None:
    with SAID:
        async for attempt in at_most(2, doors.attempts(retry=AT_ONCE)):
            async with attempt as session:
                session.add(User(name="ann"))
                await session.flush()
                raise stale()
    assert_logged(logged)
    assert await names(doors) == []


async def test_a_break_before_the_next_attempt_is_entered_is_said(doors: Door, logged: list[logging.LogRecord]) -> None:
    with SAID:
        async for attempt in doors.attempts(retry=AT_ONCE):
            if attempt.number == 3:
                break
            async with attempt:
                raise stale()
    assert_logged(logged)


async def test_a_return_before_the_next_attempt_is_entered_is_said(
    doors: Door, logged: list[logging.LogRecord]
) -> None:
    async def work(result: str) -> str:
        async for attempt in doors.attempts(retry=AT_ONCE):
            if attempt.number == 2:
                return result.upper()
            async with attempt:
                raise stale()
        raise AssertionError

    with SAID:
        assert await work("done") == "DONE"
    assert_logged(logged)


async def test_an_iterator_with_a_name_says_it_when_the_name_goes(doors: Door, logged: list[logging.LogRecord]) -> None:
    async def work() -> None:
        loop = doors.attempts(retry=AT_ONCE)
        async for attempt in at_most(2, loop):
            async with attempt:
                raise stale()
        assert logged == []

    with SAID:
        await work()
        gc.collect()  # the variable `attempt` holds the error, whose traceback holds the frame
    assert_logged(logged)


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.parametrize(
    "limit",
    [
        lambda attempts: itertools.islice(attempts, 2),
        lambda attempts: (attempt for _, attempt in zip(range(2), attempts, strict=False)),
        lambda attempts: (attempt for attempt, _ in zip(attempts, range(2), strict=False)),
        lambda attempts: itertools.takewhile(lambda attempt: attempt.number < 3, attempts),
    ],
    ids=["islice", "zip behind", "zip before", "takewhile"],
)
def test_what_ends_a_sync_loop_in_practice_is_said(doors: Door, logged: list[logging.LogRecord], limit: Any) -> None:
    """Not through the harness: what users write."""
    with SAID as said:
        for attempt in limit(doors.Session.attempts(retry=AT_ONCE)):
            with attempt as session:
                session.add(User(name="ann"))
                raise stale()
    assert_logged(logged)
    assert said[0].filename == __file__


async def test_a_loop_that_is_closed_by_hand_says_it_too(doors: Door, logged: list[logging.LogRecord]) -> None:
    for number in (1, 2):  # before the attempt that follows the failed one is taken, and after
        attempts = doors.Session.attempts(retry=AT_ONCE)
        async for attempt in at_most(number, neutral_attempts(doors, attempts)):
            if attempt.number == 2:
                break
            async with attempt:
                raise stale()
        with SAID:
            await doors.twin(lambda it: it.close(), lambda it: it.aclose())(attempts)
        assert_logged(logged)
        logged.clear()


def neutral_attempts(doors: Door, attempts: Any) -> AsyncIterator[Any]:
    from tests.support.entering import Attempts

    return Attempts(attempts) if doors.colour == "sync" else attempts


# Not said


@pytest.fixture
def quiet(logged: list[logging.LogRecord]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(each.message) for each in caught] == []
    assert logged == []


QUIET = pytest.mark.usefixtures("quiet")


@QUIET
async def test_a_loop_that_has_succeeded_says_nothing(doors: Door) -> None:
    async for attempt in at_most(2, doors.attempts(retry=AT_ONCE)):
        async with attempt as session:
            session.add(User(name="ann"))
            await session.flush()
            if attempt.number == 1:
                raise stale()
    assert await names(doors) == ["ann"]
    async for attempt in doors.attempts(retry=AT_ONCE):
        async with attempt as session:
            session.add(User(name="bob"))
            await session.flush()
            if attempt.number == 1:
                raise stale()
            break
    assert await names(doors) == ["ann", "bob"]


@QUIET
async def test_a_loop_that_raises_its_last_error_says_nothing(doors: Door) -> None:
    with pytest.raises(StaleDataError):
        async for attempt in at_most(2, doors.attempts(retry=Retry(2, wait=0))):
            async with attempt:
                raise stale()
    with pytest.raises(StaleDataError):
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                raise stale()
            break


@QUIET
async def test_a_loop_that_is_left_before_anything_has_failed_says_nothing(doors: Door) -> None:
    async for _attempt in doors.attempts(retry=AT_ONCE):
        break


@QUIET
@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt, asyncio.CancelledError])
async def test_an_exception_between_two_attempts_says_enough(doors: Door, kind: type[BaseException]) -> None:
    def interrupt() -> None:
        raise kind

    with pytest.raises(kind):
        async for attempt in doors.attempts(retry=AT_ONCE):
            if attempt.number == 2:
                interrupt()
            async with attempt:
                raise stale()
    with pytest.raises(kind):
        async for attempt in doors.attempts(retry=AT_ONCE):
            if attempt.number == 2:
                with contextlib.nullcontext():
                    raise kind
            async with attempt:
                raise stale()


@QUIET
@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt])
async def test_an_exception_while_the_loop_waits_says_enough(doors: Door, kind: type[BaseException]) -> None:
    def interrupt(attempt: object) -> None:
        raise kind

    with pytest.raises(kind):
        async for attempt in doors.attempts(retry=Retry(5, wait=0, before_retry=interrupt)):
            async with attempt:
                raise stale()


@QUIET
@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt])
async def test_an_exception_in_the_next_attempt_says_enough(doors: Door, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                raise stale() if attempt.number == 1 else kind


@QUIET
@pytest.mark.doors(colour="async")
async def test_a_cancellation_between_two_attempts_says_enough(doors: Door) -> None:
    between = asyncio.Event()

    async def work() -> None:
        async for attempt in doors.attempts(retry=AT_ONCE):
            if attempt.number == 2:
                between.set()
                await asyncio.Event().wait()
            async with attempt:
                raise stale()

    task = asyncio.create_task(work())
    await between.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Where the byte code is not known


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_on_an_unknown_interpreter_errors_are_raised(doors: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loops, "KNOWN", False)
    with pytest.raises(StaleDataError, match="too late"):
        async for attempt in doors.attempts(retry=AT_ONCE):
            async with attempt:
                raise stale()


def test_an_unknown_interpreter_is_told_of_at_the_import_and_once() -> None:
    program = (
        "import sys, sqlalchemy.orm; sys.implementation.name = 'other'\n"
        "from sessionkit import bulk\n"  # which needs no attempts
        "print('imported', file=sys.stderr)\n"
        "from sessionkit import session_scope, sessionmaker\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, _, after = done.stderr.partition("imported")
    assert "attempts()" not in before
    assert after.count("RuntimeWarning: attempts() raises each failure") == 1
