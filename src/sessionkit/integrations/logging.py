"""Logs a record for each unit of work, with fields that a formatter can print.

::

    from sessionkit.integrations.logging import log_scopes

    log_scopes(slow=1.0)

The logger is ``sessionkit.scope``; the reference lists the fields.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._spi import observers
from ..errors import OptionError, UnexpectedRollback
from ._observed import conflicts_in, error_type, marks_of, name_of, outcome_of, run_of

if TYPE_CHECKING:
    from .._spi import Entry
    from ..retry import Attempt

__all__ = ["log_scopes", "stop_logging"]

logger = logging.getLogger("sessionkit.scope")


def log_scopes(level: int = logging.DEBUG, *, slow: float | None = None) -> None:
    """Log a record when a unit of work ends. Applies to the whole process.

    A unit that committed, or rolled back because it was asked to, is logged at `level`, and a slow one at WARNING. A unit
    that an exception rolled back is logged at INFO, and so is an attempt that another one follows: the code that handles the
    exception reports it. Surprises are logged at WARNING (`UnexpectedRollback`) or ERROR (the outcome is unknown). Scopes
    that join a unit log nothing.

    A second call replaces the first.

    Args:
        level: the level for units that went well, such as ``logging.INFO``.
        slow: in seconds; a unit that was open for longer is logged at WARNING or above.

    Raises:
        OptionError: `level` is not a number, or `slow` is not a number of seconds.

    Emits no SQL.
    """
    given: Any = level
    if isinstance(given, bool) or not isinstance(given, int):
        raise OptionError(f"level={level!r} was given to log_scopes(); give a number, such as logging.INFO")
    seconds: Any = slow
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0):
        raise OptionError(f"slow={slow!r} was given to log_scopes(); give a number of seconds, or None")
    stop_logging()
    observers.append(_Writer(level, slow))


def stop_logging() -> None:
    """Stop logging scopes."""
    observers[:] = [each for each in observers if not isinstance(each, _Writer)]


class _Writer:
    """The observer."""

    def __init__(self, level: int, slow: float | None) -> None:
        self.level = level
        self.slow = slow

    def entered(self, entry: Entry) -> _Record | None:
        return _Record(self, entry) if entry.opened else None

    def retried(self, name: str | None, attempt: Attempt) -> None:
        assert attempt.error is not None
        kind, delay = error_type(attempt.error), attempt.delay or 0.0
        fields = {
            "sessionkit_event": "retry",
            "sessionkit_scope": name,
            "sessionkit_attempt": attempt.number,
            "sessionkit_error": kind,
            "sessionkit_delay": delay,
        }
        logger.info(
            "%s failed with %s in attempt %d; it runs again in %.3f s",
            _called(name),
            kind,
            attempt.number,
            delay,
            extra=fields,
        )


class _Record:
    """What is known about a unit while it runs."""

    def __init__(self, writer: _Writer, entry: Entry) -> None:
        self._writer = writer
        self._entry = entry
        self._begun = perf_counter()

    def left(self, error: BaseException | None) -> None:
        seconds = perf_counter() - self._begun
        outcome = str(outcome_of(self._entry))
        slow = self._writer.slow is not None and seconds > self._writer.slow
        level = max(self._level(outcome, error), logging.WARNING if slow else logging.NOTSET)
        if not logger.isEnabledFor(level):
            return
        name, run = name_of(self._entry), run_of(self._entry)
        kind = None if error is None else error_type(error)
        fields = {
            "sessionkit_event": "end",
            "sessionkit_scope": name,
            "sessionkit_outcome": outcome.replace(" ", "_"),
            "sessionkit_duration": seconds,
            "sessionkit_slow": slow,
            "sessionkit_attempt": 1 if run is None else run.number,
            "sessionkit_error": kind,
            "sessionkit_conflicts": conflicts_in(error),
        }
        fields |= {f"sessionkit_{what}": value for what, value in marks_of(self._entry).items()}
        told = outcome if outcome != "unknown" else "ended with an unknown outcome"
        if fields.get("sessionkit_replayed"):
            told = "was replayed"
        why = "" if kind is None else f" because of {kind}"
        logger.log(level, "%s %s after %.3f s%s", _called(name), told, seconds, why, extra=fields)

    def _level(self, outcome: str, error: BaseException | None) -> int:
        if outcome == "unknown":
            return logging.ERROR
        if isinstance(error, UnexpectedRollback):
            return logging.WARNING
        return self._writer.level if outcome == "committed" or error is None else logging.INFO


def _called(name: str | None) -> str:
    return "a scope" if name is None else f"the scope {name!r}"
