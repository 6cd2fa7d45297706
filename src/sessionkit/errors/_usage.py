"""What was written wrongly: these errors come before any work is done, and running the same code again raises them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScopeError(SessionKitError):
    """A scope, or a session inside one, was asked for something it must not do."""


class NoCurrentSession(ScopeError, LookupError):
    """There is no ambient session in this thread and task."""


class ConcurrentUse(ScopeError):
    """Two threads or two tasks were inside one session at the same moment."""


class SyncAsyncMismatch(ScopeError, TypeError):
    """An async factory was used in sync code, or a sync one in async code."""


class OptionError(SessionKitError):
    """An option has a value that cannot be honoured.

    It is no ``ValueError``: many a view answers that with its message, as bad input of the client's.
    """


class UnknownOptionError(OptionError):
    """There is no option of that name.

    Args:
        asked: the name that was given.
        known: the names that exist; the nearest one is put into the message.
        where: what was called.
    """

    def __init__(self, asked: str, known: Iterable[str], where: str) -> None:
        from difflib import get_close_matches

        names = sorted(known)
        near = get_close_matches(asked, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
        super().__init__(f"{where} has no option {asked!r}; {hint}")
        self.asked = asked


class VersionError(SessionKitError):
    """A version was asked for what it cannot do: of a class that has none, on a backend that cannot check it, ..."""


class ManualCommit(UserWarning):
    """Code inside a scope with ``manual_commit="savepoint"`` has called ``commit()``: it is durable at the scope's end.

    Each call site is told once. When the calls are gone, the option can go as well.
    """


class StaleRead(UserWarning):
    """A locking read inside a scope has handed back an object that had been loaded before, with the values of then.

    SQLAlchemy does not overwrite what a session has loaded: the row is locked, and the object tells what it was before
    the wait. Each call site is told once.
    """
