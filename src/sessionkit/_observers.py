"""Who is told of scopes: nobody, until an integration asks for it.

An observer is told of each entry into a scope, and what it then returns of the end of that entry; so whoever was told of
the beginning is told of the end, whatever is switched on or off in between. It looks on: its errors are logged.
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
        """Take note of the end: the transaction, if the entry had begun it, is settled, its hooks have not run yet.

        Args:
            error: what leaves the scope; None if nothing does.
        """


class Observer(Protocol):
    """What looks on. Called in the context of the code that enters and leaves the scope, sync or async."""

    def entered(self, entry: Entry, /) -> Observation | None:
        """Take note of an entry, which is not ambient yet."""

    def retried(self, name: str | None, attempt: Attempt, /) -> None:
        """Take note of an attempt that has failed and is followed by another one, after ``attempt.delay``."""


observers: list[Observer] = []
"""Those that are told. Changed in its place: the rooms that tell have it by this name, and ask only whether it is empty."""


def tell_entered(entry: Entry) -> tuple[Observation, ...]:
    """Tell of an entry; return whom to tell of its end."""
    told: list[Observation] = []
    for observer in tuple(observers):
        try:
            observation = observer.entered(entry)
        except Exception:
            logger.exception("%r failed as a scope was entered", observer)
        else:
            if observation is not None:
                told.append(observation)
    return tuple(told)


def tell_left(entry: Entry, error: BaseException | None) -> None:
    """Tell of the end of an entry, the last that was told of its beginning first."""
    told, entry.observations = entry.observations, ()
    for observation in reversed(told):
        try:
            observation.left(error)
        except Exception:
            logger.exception("%r failed as a scope was left", observation)


def tell_retried(name: str | None, attempt: Attempt) -> None:
    """Tell of an attempt that is followed by another one."""
    for observer in tuple(observers):
        try:
            observer.retried(name, attempt)
        except Exception:
            logger.exception("%r failed as a unit was run again", observer)
