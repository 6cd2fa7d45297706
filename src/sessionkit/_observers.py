"""Observers of scopes. Until an integration adds one, the list is empty.

An observer learns of each entry into a scope. What it returns learns of the end of that entry: so an observer that saw the
beginning sees the end, whatever is switched on or off in between. It only watches: its errors are logged.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .context import Entry
    from .retry import Attempt

logger = logging.getLogger("sessionkit")


class Observation(Protocol):
    """What an observer has begun for one entry."""

    def left(self, error: BaseException | None, /) -> None:
        """Note the end. If the entry began the transaction, that has ended; its hooks have not run yet.

        Args:
            error: the exception that leaves the scope, or None.
        """


class Observer(Protocol):
    """Watches scopes. Called in the context of the code that enters and leaves the scope, sync or async."""

    def entered(self, entry: Entry, /) -> Observation | None:
        """Note an entry, which is not ambient yet."""

    def retried(self, name: str | None, attempt: Attempt, /) -> None:
        """Note an attempt that has failed and is followed by another one, after ``attempt.delay``."""


observers: list[Observer] = []
"""The observers. Changed in place: the modules that notify them import this list, and only ask whether it is empty."""


def tell_entered(entry: Entry) -> tuple[Observation, ...]:
    """Notify the observers of an entry; return the observations to notify of its end."""
    watching: list[Observation] = []
    for observer in tuple(observers):
        try:
            observation = observer.entered(entry)
        except Exception:
            logger.exception("%r failed as a scope was entered", observer)
        else:
            if observation is not None:
                watching.append(observation)
    return tuple(watching)


def tell_left(entry: Entry, error: BaseException | None) -> None:
    """Notify the observations of the end of an entry, the last one first."""
    watching, entry.observations = entry.observations, ()
    for observation in reversed(watching):
        try:
            observation.left(error)
        except Exception:
            logger.exception("%r failed as a scope was left", observation)


def tell_retried(name: str | None, attempt: Attempt) -> None:
    """Notify the observers of an attempt that is followed by another one."""
    for observer in tuple(observers):
        try:
            observer.retried(name, attempt)
        except Exception:
            logger.exception("%r failed as a unit was run again", observer)
