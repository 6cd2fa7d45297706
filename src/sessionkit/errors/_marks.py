"""What is written on an exception that leaves a scope: what became of the transaction, and what had failed first."""

from __future__ import annotations

from typing import Literal

from ._base import told

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
            ``TimeoutError`` of ``asyncio.timeout`` or an exception group of a ``TaskGroup`` that it has become.

    Returns:
        ``"committed"``, ``"rolled back"`` or ``"unknown"``; of an exception that left no scope, ``"unknown"``.
    """
    own: Outcome | None = error.__dict__.get(_OUTCOME)
    if own is not None:
        return own
    if isinstance(error, BaseExceptionGroup):
        inside: set[Outcome] = {outcome_of(each) for each in error.exceptions}
        return inside.pop() if len(inside) == 1 else "unknown"
    return "unknown" if error.__cause__ is None else outcome_of(error.__cause__)


_FIRST = "_sessionkit_first"


def set_first(error: BaseException, first: BaseException) -> None:
    """Have an error that is the aftermath of another tell so."""
    error.__dict__[_FIRST] = first
    error.add_note(f"the first error in its transaction was {told(first)}")


def first_of(error: BaseException) -> BaseException:
    """Return the error of which `error` is the aftermath, or itself."""
    first: BaseException = error.__dict__.get(_FIRST, error)
    return first
