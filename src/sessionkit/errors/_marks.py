"""What is written on an exception that leaves a scope: how the transaction ended, and what failed first."""

from __future__ import annotations

import asyncio
from typing import Literal

from ._base import describe

Outcome = Literal["committed", "rolled back", "unknown"]
"""How a transaction ended, as far as the client can know."""

_OUTCOME = "_sessionkit_outcome"


def set_outcome(error: BaseException, outcome: Outcome) -> None:
    """Make `outcome_of` return `outcome` for an exception that leaves a scope."""
    error.__dict__[_OUTCOME] = outcome  # not setattr: an exception may be a frozen dataclass


def outcome_of(error: BaseException) -> Outcome:
    """Return how the transaction ended whose scope an exception has left.

    Args:
        error: any exception: the body's own, a database error, a cancellation, a hook's. Also the ``TimeoutError`` of
            ``asyncio.timeout`` or the exception group of a ``TaskGroup`` that it turned into, and an exception raised
            ``from`` it. An exception that was raised while handling it, without ``from``, has left no scope.

    Returns:
        ``"committed"``, ``"rolled back"`` or ``"unknown"``; for an exception that left no scope, ``"unknown"``.
    """
    own: Outcome | None = error.__dict__.get(_OUTCOME)
    if own is not None:
        return own
    if isinstance(error, BaseExceptionGroup):
        inside: set[Outcome] = {outcome_of(each) for each in error.exceptions}
        return inside.pop() if len(inside) == 1 else "unknown"
    cause = cause_of(error)
    return "unknown" if cause is None else outcome_of(cause)


def cause_of(error: BaseException) -> BaseException | None:
    """Return the exception behind `error`: what it was raised ``from``, or the cancellation it was made from."""
    if error.__cause__ is not None:
        return error.__cause__
    # `raise X` inside an `except` also sets `X.__context__`. But X may come from another scope or from none: a mail server
    # that fails as well, say. So a context proves nothing, unless asyncio has set it: until Python 3.11.2 its timeout()
    # raised without `from` (https://github.com/python/cpython/issues/102780).
    context = error.__context__
    if type(error) is TimeoutError and isinstance(context, asyncio.CancelledError) and _raised_by_timeout(error):
        return context
    return None


def _raised_by_timeout(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__") == "asyncio.timeouts"


_FIRST = "_sessionkit_first"


def set_first(error: BaseException, first: BaseException) -> None:
    """Make an error that is the aftermath of another say so."""
    error.__dict__[_FIRST] = first
    error.add_note(f"the first error in its transaction was {describe(first)}")


def first_of(error: BaseException) -> BaseException:
    """Return the error that `error` is the aftermath of, or `error` itself."""
    first: BaseException = error.__dict__.get(_FIRST, error)
    return first
