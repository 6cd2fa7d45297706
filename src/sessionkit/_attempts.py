"""Attempts: running a unit again, for decorated functions and for ``with`` bodies. One loop, sync and async.

The module ``retry`` makes the decisions; this one waits and enters the scopes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ._loops import Place, drops_quietly, goes_back, warn_if_unknown
from ._observers import observers, tell_retried
from ._waiting import pause
from .errors import ScopeError, add_note, describe, set_outcome
from .retry import Attempt, Attempts, Retry, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

logger = logging.getLogger("sessionkit")

warn_if_unknown()  # when the program starts, not when a retry fails to happen

__all__ = [
    "AsyncAttempt",
    "AsyncAttempts",
    "SyncAttempt",
    "SyncAttempts",
    "async_attempts",
    "async_call",
    "attempts",
    "call",
]

S = TypeVar("S")
R = TypeVar("R")


class Repeatable(Protocol):
    """What attempts need of a scope, sync or async.

    Attributes:
        _info: the FactoryInfo.
        _learns: the name under which the factory remembers whether its units conflict; None: it does not.
    """

    _info: Any
    _learns: str | None

    def _joins(self) -> bool:
        """Return whether entering now would join an open scope; raise if the options do not allow it."""
        ...


class RepeatableSync(Repeatable, Protocol):
    """A sync scope."""

    def _begin(self, run: Run | None) -> Any:
        """Enter it, and return the session."""
        ...

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class RepeatableAsync(Repeatable, Protocol):
    """An async scope."""

    async def _begin(self, run: Run | None) -> Any:
        """Enter it, and return the session."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Bound(Attempt, Generic[S]):
    """An attempt that is entered with ``with``."""

    __slots__ = ("_attempts", "_entered", "_loops", "_scope")

    def __init__(self, scope: Any, attempts: Attempts | None, loops: bool = False) -> None:
        begun = Attempt(1) if attempts is None else attempts.next()
        super().__init__(begun.number, errors=begun.errors)
        self._scope = scope
        self._attempts = attempts  # None: the scope has joined one that is retried as a whole
        self._loops = loops  # our own loop, which always goes on
        self._entered = False

    def _run(self) -> Run | None:
        if self._entered:
            raise ScopeError("an attempt was entered twice; the `for` makes a new one for each run of its body")
        self._entered = True
        return None if self._attempts is None else self._attempts.run_of(self)

    def _enters_again(self, error: Exception) -> bool:
        """Decide whether to enter again after `error`, which says that the scope did not get its mutex or its key.

        The body has not begun, so no loop has to run it again.
        """
        asked = self._scope._request
        if (asked.mutex is None and asked.once is None) or self._attempts is None:
            return False
        if not self._attempts.failed(self, error, time.monotonic()):
            return False
        if observers:
            tell_retried(self._scope._request.name, self)
        return True

    def _next_run(self) -> Run:
        assert self._attempts is not None
        begun = self._attempts.next()
        self.number, self.error, self.delay = begun.number, None, None
        return self._attempts.run_of(self)

    def _goes_on(self, error: BaseException, place: Place) -> bool:
        """Decide whether to swallow `error`, because the loop goes on with its next attempt."""
        if self._attempts is None or not self._attempts.failed(self, error, time.monotonic()):
            return False
        if self._loops or goes_back(place, self):
            if observers:
                tell_retried(self._scope._request.name, self)
            return True
        assert self._attempts is not None
        self._attempts.raised(self)
        add_note(
            error,
            "it was not retried, because the code does not go straight on with the next attempt: make `with attempt` the "
            "last statement in the body of the `for`, and put `return` after the loop",
        )
        return False

    def _check_entered(self) -> None:
        if not self._entered:
            raise ScopeError("an attempt was not entered; write `with attempt as session:` in the body of the `for`")

    def _swallowed(self) -> Exception | None:
        """Return the failure that was swallowed and that no later attempt has made up for."""
        if self._entered:
            return None if self.delay is None else self.error
        return self.errors[-1] if self.errors else None


class SyncAttempt(_Bound[S]):
    """One attempt of ``for attempt in Session.attempts(): with attempt as session: ...``."""

    __slots__ = ()

    def __enter__(self) -> S:
        run = self._run()
        while True:
            try:
                session: S = self._scope._begin(run)
            except Exception as error:
                if not self._enters_again(error):
                    raise
            else:
                return session
            assert self._attempts is not None
            _wait(self._attempts.policy, self)
            run = self._next_run()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        place = _place()
        try:
            self._scope.__exit__(kind, error, traceback)
        except BaseException as failure:
            if self._goes_on(failure, place):
                return True
            raise
        if error is not None:
            return self._goes_on(error, place)
        attempts = self._attempts
        if attempts is not None and attempts.learns in attempts.heats:
            attempts.went_well(self)
        return False


class AsyncAttempt(_Bound[S]):
    """One attempt of ``async for attempt in Session.attempts(): async with attempt as session: ...``."""

    __slots__ = ()

    async def __aenter__(self) -> S:
        run = self._run()
        while True:
            try:
                session: S = await self._scope._begin(run)
            except Exception as error:
                if not self._enters_again(error):
                    raise
            else:
                return session
            assert self._attempts is not None
            await _async_wait(self._attempts.policy, self)
            run = self._next_run()

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> Awaitable[bool]:
        # Not async itself: we must look at the caller's place in its code before anything is awaited.
        return self._exit(kind, error, traceback, _place())

    async def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object, place: Place
    ) -> bool:
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except BaseException as failure:
            if self._goes_on(failure, place):
                return True
            raise
        if error is not None:
            return self._goes_on(error, place)
        attempts = self._attempts
        if attempts is not None and attempts.learns in attempts.heats:
            attempts.went_well(self)
        return False


def _place() -> Place:
    frame = sys._getframe(2)  # the function that leaves the attempt
    return Place(frame, frame.f_lasti)


@contextmanager
def _between(attempt: Attempt) -> Generator[None, None, None]:
    """Note the failed attempt on an exception that ends the wait for the next one, such as a cancellation."""
    try:
        yield
    except BaseException as error:
        set_outcome(error, "rolled back")
        if error.__context__ is None and error is not attempt.error:
            error.__context__ = attempt.error
        raise


def _wait(policy: Retry, attempt: Attempt) -> None:
    """Wait for the next attempt."""
    assert attempt.delay is not None
    with _between(attempt):
        if policy.before_retry is not None:
            result = policy.before_retry(attempt)
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise ScopeError("before_retry is async, but its scope is sync and cannot await it")
        time.sleep(pause(attempt.delay))


async def _async_wait(policy: Retry, attempt: Attempt) -> None:
    """Wait for the next attempt."""
    assert attempt.delay is not None
    with _between(attempt):
        if policy.before_retry is not None:
            result = policy.before_retry(attempt)
            if inspect.isawaitable(result):
                await result
        await asyncio.sleep(pause(attempt.delay))


class _Loop:
    """The loop over attempts that a user writes. It reports when it is dropped before the attempts are over.

    An attempt swallows its failure because the next iteration follows. But the `for` may iterate over something else:
    ``itertools.islice`` and ``zip`` can end without asking for the next attempt. Then the code goes on as if the attempt
    had succeeded, and no exception can stop it any more.
    """

    __slots__ = ("_attempt", "_attempts")

    def __init__(self, attempts: Any) -> None:
        self._attempts = attempts
        self._attempt: _Bound[Any] | None = None  # the last one handed out

    def __del__(self) -> None:
        frame = sys._getframe().f_back
        self._end(lambda: frame is not None and drops_quietly(frame))

    def _end(self, quietly: Callable[[], bool]) -> None:
        attempt, self._attempt = self._attempt, None
        error = None if attempt is None else attempt._swallowed()
        if attempt is None or error is None:
            return
        # An exception between the `for` and the `with` already says that the work is not done.
        if not attempt._entered and not quietly():
            return
        message = (
            "a loop over attempts() was left although its last attempt had failed and no other has succeeded: none of its "
            f"work is committed, yet the code goes on; the error was {describe(error)}; limit the attempts with "
            "attempts(retry=Retry(...)), not with islice(), zip() or break"
        )
        logger.error(message, exc_info=error)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


class SyncAttempts(_Loop, Iterator[SyncAttempt[S]]):
    """What ``Session.attempts()`` of a sync factory returns."""

    __slots__ = ()

    def __next__(self) -> SyncAttempt[S]:
        self._attempt = None  # from here on an exception says that the work is not done
        attempt: SyncAttempt[S] = next(self._attempts)
        self._attempt = attempt
        return attempt

    def close(self) -> None:
        """End the loop before its attempts are over, like a generator's ``close()``."""
        self._end(lambda: sys.exception() is None)
        self._attempts.close()


class AsyncAttempts(_Loop, AsyncIterator[AsyncAttempt[S]]):
    """What ``Session.attempts()`` of an async factory returns."""

    __slots__ = ()

    async def __anext__(self) -> AsyncAttempt[S]:
        self._attempt = None
        attempt: AsyncAttempt[S] = await anext(self._attempts)
        self._attempt = attempt
        return attempt

    async def aclose(self) -> None:
        """End the loop before its attempts are over, like an async generator's ``aclose()``."""
        self._end(lambda: sys.exception() is None)
        await self._attempts.aclose()


def attempts(scope: RepeatableSync, policy: Retry, loops: bool = False) -> Generator[SyncAttempt[Any]]:
    """Yield attempts until one has succeeded. Between them it waits and holds no connection."""
    if scope._joins():
        joined = SyncAttempt[Any](scope, None, loops)
        yield joined
        joined._check_entered()
        return
    state = Attempts(policy, time.monotonic())
    if policy.lock_on_retry:
        state.heats, state.learns = scope._info.heats, scope._learns
    while True:
        attempt = SyncAttempt[Any](scope, state, loops)
        yield attempt
        attempt._check_entered()
        if attempt.delay is None:
            return
        _wait(policy, attempt)


async def async_attempts(
    scope: RepeatableAsync, policy: Retry, loops: bool = False
) -> AsyncGenerator[AsyncAttempt[Any]]:
    """Yield attempts until one has succeeded. Between them it waits and holds no connection."""
    if scope._joins():
        joined = AsyncAttempt[Any](scope, None, loops)
        yield joined
        joined._check_entered()
        return
    state = Attempts(policy, time.monotonic())
    if policy.lock_on_retry:
        state.heats, state.learns = scope._info.heats, scope._learns
    while True:
        attempt = AsyncAttempt[Any](scope, state, loops)
        yield attempt
        attempt._check_entered()
        if attempt.delay is None:
            return
        await _async_wait(policy, attempt)


def call(scope: RepeatableSync, policy: Retry, body: Callable[[Any], R]) -> R:
    """Call `body` with a session until it has succeeded."""
    result: Any = None
    for attempt in attempts(scope, policy, loops=True):
        with attempt as session:
            result = body(session)
        if attempt.error is None:
            returned: R = result
            return returned
    raise AssertionError("attempts() ends after a success, or raises")  # pragma: no cover


async def async_call(scope: RepeatableAsync, policy: Retry, body: Callable[[Any], Awaitable[R]]) -> R:
    """Call `body` with a session until it has succeeded."""
    result: Any = None
    async for attempt in async_attempts(scope, policy, loops=True):
        async with attempt as session:
            result = await body(session)
        if attempt.error is None:
            returned: R = result
            return returned
    raise AssertionError("attempts() ends after a success, or raises")  # pragma: no cover
