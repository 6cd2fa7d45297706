"""Sync context managers and loops, written as `async with` and `async for`.

What runs is the sync object's own `__enter__`, `__exit__` and `__next__`, in the order and with the exceptions that
`with` and `for` would give them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from sessionkit import _loops
from tests.support.neutral import neutral

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator


class Entered:
    """A sync context manager, entered by `async with`."""

    def __init__(self, value: Any) -> None:
        self._value = value

    async def __aenter__(self) -> Any:
        return neutral(self._value.__enter__())

    async def __aexit__(self, *error: object) -> bool | None:
        return cast("bool | None", self._value.__exit__(*error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)


class Attempts:
    """A sync loop over attempts, written as `async for`."""

    def __init__(self, attempts: Iterable[Any]) -> None:
        self._attempts: Iterator[Any] = iter(attempts)

    def __aiter__(self) -> Attempts:
        return self

    async def __anext__(self) -> Any:
        try:
            return EnteredAttempt(next(self._attempts))
        except StopIteration:
            raise StopAsyncIteration from None


class EnteredAttempt:
    """An attempt, entered by `async with`.

    A sync attempt looks at the code of its caller: it swallows a failure only where nothing but the next attempt can
    follow. Its caller is this class, but the code that matters is the body of the test. So the body is looked at here,
    in the way of an async attempt, and the attempt is told, as sessionkit's own loops tell it.
    """

    def __init__(self, attempt: Any) -> None:
        self._attempt = attempt

    async def __aenter__(self) -> Any:
        return neutral(self._attempt.__enter__())

    def __aexit__(self, *error: object) -> Awaitable[bool]:
        # Not async itself: so its caller is the body, and not the driver of a coroutine.
        body = sys._getframe(1)
        return self._leave(_loops.goes_back(_loops.Place(body, body.f_lasti), self), error)

    async def _leave(self, goes_back: bool, error: tuple[object, ...]) -> bool:
        self._attempt._loops = goes_back
        return bool(self._attempt.__exit__(*error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attempt, name)
