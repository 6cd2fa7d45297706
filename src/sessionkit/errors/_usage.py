"""Programming errors: they are raised before any work is done, and running the same code again raises them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScopeError(SessionKitError):
    """A scope, or a session inside one, was used in a way that is not allowed."""


class NoCurrentSession(ScopeError, LookupError):
    """No scope is open in this thread or task."""


class ConcurrentUse(ScopeError):
    """Two threads or two tasks used one session at the same moment."""


class SyncAsyncMismatch(ScopeError, TypeError):
    """An async factory was used in sync code, or a sync one in async code."""


class OptionError(SessionKitError):
    """An option has a value that cannot be honoured.

    It is not a ``ValueError``: many views answer that with its message, as if the client had sent bad input.
    """


class UnknownOptionError(OptionError):
    """There is no option of that name.

    Args:
        asked: the name that was given.
        known: the names that exist; the message suggests the nearest one.
        where: what was called.
    """

    def __init__(self, asked: str, known: Iterable[str], where: str) -> None:
        from difflib import get_close_matches

        names = sorted(known)
        near = get_close_matches(asked, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
        super().__init__(f"{where} has no option {asked!r}; {hint}")
        self.asked = asked


class SettingRequired(OptionError):
    """A transaction was to begin without a setting, or a role, that its factory requires.

    Attributes:
        setting: the name of the first one that is missing; ``"role"`` for a role.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class VersionError(SessionKitError):
    """A versioning function was used in a way that is not allowed: on a class without versions, say."""


class ManualCommit(UserWarning):
    """Code inside a scope with ``manual_commit="savepoint"`` called ``commit()``: its work is durable at the scope's end.

    Each call site is reported once. Once no call is left, drop the option too.
    """


class StaleRead(UserWarning):
    """A locking read inside a scope returned an object that was loaded before, with its old values.

    SQLAlchemy does not overwrite what a session has loaded: the row is locked, but the object shows what it was before
    the wait. Each call site is reported once.
    """
