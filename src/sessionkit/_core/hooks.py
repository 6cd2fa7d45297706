"""Work that waits for the outcome of a unit: the mechanism behind `sessionkit.on_commit` and `on_rollback`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from ..errors import HookError, Outcome, ScopeError, describe, set_outcome

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

    from .connection import FailureLog
    from .savepoints import Savepoints

logger = logging.getLogger("sessionkit")

HookFunction = Callable[[], object]


class Hook:
    """A callable that waits for the outcome of the transaction."""

    __slots__ = ("after", "fn", "level", "marked", "robust")

    def __init__(self, fn: HookFunction, after: Outcome, level: SessionTransaction | None, robust: bool) -> None:
        self.fn = fn
        self.after = after
        self.level = level
        self.robust = robust
        self.marked: list[FailureLog] = []

    def survives(self, savepoints: Savepoints | None) -> bool:
        """Return whether no savepoint in which it was registered was rolled back."""
        return (savepoints is None or savepoints.survives(self.level)) and all(log.holds(self) for log in self.marked)

    def __repr__(self) -> str:
        name = getattr(self.fn, "__qualname__", None) or repr(self.fn)
        return f"{'on_commit' if self.after == 'committed' else 'on_rollback'} hook {name}"


captures: list[Callable[[list[Hook]], list[Hook]]] = []
"""While a test watches hooks: each gets the hooks that are due and returns those to run; the last one is called first."""


def due(hooks: Iterable[Hook], outcome: Outcome, savepoints: Savepoints | None) -> list[Hook]:
    """Return the hooks that run after `outcome`, in order. After an unknown outcome no hook runs."""
    if outcome == "unknown":
        return []
    undone: Outcome = "rolled back"
    found = [hook for hook in hooks if hook.after == (outcome if hook.survives(savepoints) else undone)]
    for capture in reversed(captures):
        found = capture(found)
    return found


class HookRun:
    """Collects the errors of one run: the sync and the async shell call the hooks, this decides what the errors mean."""

    __slots__ = ("errors", "logged", "outcome")

    def __init__(self, outcome: Outcome, logged: bool = False) -> None:
        self.outcome: Outcome = outcome
        self.logged = logged  # every error, as if all hooks were robust
        self.errors: list[BaseException] = []

    def failed(self, hook: Hook, error: BaseException) -> None:
        """Note a hook's error; the other hooks run anyway."""
        if (hook.robust or self.logged) and isinstance(error, Exception):
            logger.error("%r failed; the data is %s", hook, self.outcome, exc_info=error)
        else:
            self.errors.append(error)

    def report(self, first: BaseException | None) -> None:
        """Raise the errors of the hooks, unless `first`, the error that the user must see, is already on its way."""
        errors, self.errors = self.errors, []
        if not errors:
            return
        if first is not None:
            for error in errors:
                logger.error("a hook failed; the data is %s", self.outcome, exc_info=error)
                first.add_note(f"also, a hook failed: {describe(error)}")
            return
        # KeyboardInterrupt, CancelledError: these take precedence.
        urgent = next((error for error in errors if not isinstance(error, Exception)), None)
        if urgent is not None:
            set_outcome(urgent, self.outcome)
        try:
            raise _hook_error(errors, self.outcome) if urgent is None else urgent
        finally:
            del errors, urgent  # an error whose traceback leads back to it would live until the next garbage collection


def _hook_error(errors: list[BaseException], outcome: Outcome) -> HookError:
    error = HookError(errors, outcome)
    set_outcome(error, outcome)
    return error


def run(hooks: Iterable[Hook], outcome: Outcome, first: BaseException | None = None, *, logged: bool = False) -> None:
    """Call the hooks of a sync unit, all of them even if some fail."""
    state = HookRun(outcome, logged)
    for hook in hooks:
        try:
            refuse_awaitable(hook.fn(), f"{hook!r} returned an awaitable, but its scope is sync and cannot await it")
        except BaseException as error:  # noqa: BLE001 - HookRun decides what it means
            state.failed(hook, error)
    state.report(first)


async def async_run(hooks: Iterable[Hook], outcome: Outcome, first: BaseException | None = None) -> None:
    """Call the hooks of an async unit, all of them even if some fail; await the async ones."""
    state = HookRun(outcome)
    for hook in hooks:
        try:
            result = hook.fn()
            if inspect.isawaitable(result):
                await cast("Awaitable[object]", result)
        except BaseException as error:  # noqa: BLE001 - HookRun decides what it means
            state.failed(hook, error)
    state.report(first)


def refuse_awaitable(result: Any, message: str, kind: type[ScopeError] = ScopeError) -> None:
    """Refuse an awaitable that a function returned to sync code, which cannot await it."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise kind(message)
