"""Every exception of sessionkit.

::

    SessionKitError
    ├── ScopeError                  a scope was asked for something it must not do
    │   ├── NoCurrentSession        there is no scope here (LookupError)
    │   ├── ConcurrentUse           two threads or tasks inside one session at once
    │   ├── ColourError             an async factory in `with`, a sync one in `async with` (TypeError)
    │   └── OptionError             an option has a value that cannot be honoured here (ValueError)
    │       └── UnknownOptionError  an option of that name does not exist (TypeError)
    ├── UnexpectedRollback          the scope ended without an exception, yet nothing could be committed
    └── HookError                   on_commit or on_rollback callables failed; the transaction is settled

A driver's error is never wrapped: it reaches the caller as SQLAlchemy raised it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ColourError",
    "ConcurrentUse",
    "HookError",
    "NoCurrentSession",
    "OptionError",
    "Outcome",
    "ScopeError",
    "SessionKitError",
    "UnexpectedRollback",
    "UnknownOptionError",
]

Outcome = Literal["committed", "rolled back", "unknown"]
"""How a transaction ended, as far as the client can know."""


class SessionKitError(Exception):
    """The base of everything that sessionkit raises by itself."""


class ScopeError(SessionKitError):
    """A scope, or a session inside one, was asked for something it must not do."""


class NoCurrentSession(ScopeError, LookupError):
    """There is no ambient session in this thread and task."""


class ConcurrentUse(ScopeError):
    """Two threads or two tasks were inside one session at the same moment."""


class ColourError(ScopeError, TypeError):
    """An async factory was used in sync code, or a sync one in async code."""


class OptionError(ScopeError, ValueError):
    """An option has a value that cannot be honoured."""


class UnknownOptionError(OptionError, TypeError):
    """There is no option of that name.

    Args:
        asked: the name that was given.
        known: the names that exist; the nearest one is put into the message.
        where: what was called.
    """

    def __init__(self, asked: str, known: Iterable[str], where: str) -> None:
        names = sorted(known)
        near = get_close_matches(asked, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
        super().__init__(f"{where} has no option {asked!r}; {hint}")
        self.asked = asked


class UnexpectedRollback(SessionKitError):
    """A scope was left without an exception, but its work could not be committed.

    Something had failed inside and was swallowed, so that the database had already
    given the transaction up or would have committed half of it. Nothing was committed.
    ``__cause__`` is the first error, where there is one.
    """


class HookError(SessionKitError):
    """One or more hooks failed after the transaction was settled.

    Attributes:
        errors: what the hooks raised, in the order in which they ran; the first is also ``__cause__``.
        outcome: ``"committed"`` or ``"rolled back"``: what had happened to the data before any hook ran.
    """

    def __init__(self, errors: Sequence[BaseException], outcome: Outcome) -> None:
        self.errors = tuple(errors)
        self.outcome = outcome
        count = "a hook" if len(self.errors) == 1 else f"{len(self.errors)} hooks"
        first = self.errors[0]
        super().__init__(
            f"the data is {outcome}, but {count} failed afterwards; the first error was {type(first).__name__}: {first}"
        )
        self.__cause__ = first
