"""What is written on an exception that leaves a scope: what became of the transaction, and what had failed first."""

from __future__ import annotations

import asyncio
from typing import Literal

from ._base import describe

Outcome = Literal["committed", "rolled back", "unknown"]
"""How a transaction ended, as far as the client can know."""

_OUTCOME = "_sessionkit_outcome"


def set_outcome(error: BaseException, outcome: Outcome) -> None:
    """Have `outcome_of` say `outcome` of an exception that leaves a scope."""
    error.__dict__[_OUTCOME] = outcome  # not setattr: an exception may be a frozen dataclass


def outcome_of(error: BaseException) -> Outcome:
    """Tell what became of the transaction of the scope that an exception has left.

    Args:
        error: the exception, whatever it is: the body's own, a database error, a cancellation, a hook's; also a
            ``TimeoutError`` of ``asyncio.timeout`` or an exception group of a ``TaskGroup`` that it has become, and what
            was raised ``from`` it. An exception that was raised while it was handled, without ``from``, has left no scope.

    Returns:
        ``"committed"``, ``"rolled back"`` or ``"unknown"``; of an exception that left no scope, ``"unknown"``.
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
    """Return the exception that `error` stands for: what it was raised ``from``, or the cancellation it was made of."""
    if error.__cause__ is not None:
        return error.__cause__
    # `raise X` inside an `except` sets `X.__context__` as well. But X may come from another scope, or from none: a call of
    # a mail server, say, that also fails. So a context alone proves nothing, except where asyncio has set it: until
    # Python 3.11.2 its timeout() raised without `from` (https://github.com/python/cpython/issues/102780).
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
    """Have an error that is the aftermath of another tell so."""
    error.__dict__[_FIRST] = first
    error.add_note(f"the first error in its transaction was {describe(first)}")


def first_of(error: BaseException) -> BaseException:
    """Return the error of which `error` is the aftermath, or itself."""
    first: BaseException = error.__dict__.get(_FIRST, error)
    return first
