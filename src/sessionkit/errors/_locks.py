"""The errors of locks that are not available, and who holds them, as far as the server says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """A session of the server that holds the lock you asked for.

    Attributes:
        pid: the server process behind it.
        application: its ``application_name``, which may name the scope (`integrations.application_name`).
        since: when its transaction began: an aware datetime, by the server's clock.

    A field is None if the server does not reveal it: for another user's session, say, without the role pg_monitor.
    """

    pid: int | None = None
    application: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        name = "" if not self.application else f" ({self.application!r})"
        since = "" if self.since is None else f", in a transaction since {self.since:%H:%M:%S %Z}"
        return f"process {self.pid}{name}{since}"


class LockError(SessionKitError):
    """This kind of lock is not available here, no matter who holds it. It is refused before anything is sent."""


class NotLocked(LockError):
    """Another transaction holds what you asked to lock, and did not release it in the time allowed.

    If the server refused the lock, the error is also an instance of the class that SQLAlchemy raised, with its ``orig``,
    ``statement`` and ``params``, and ``__cause__`` is that error. `classify` calls each of them ``lock_not_available``,
    so ``Retry(also=("lock_not_available",))`` runs the unit again.

    Attributes:
        holders: the transactions that hold it, each a `Holder`; empty if they are not known.
    """

    _refines: ClassVar[type[BaseException] | None] = None

    def __init__(self, message: str, holders: Iterable[Holder] = ()) -> None:
        self.args = (message,)  # without calling the constructor of the other class that this may be
        self.holders = tuple(holders)

    def _said(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        if self._refines is None:
            return super().__reduce__()
        return _not_locked_like, (self._refines, self.args), self.__dict__

    @classmethod
    def of(cls, error: BaseException, message: str, holders: Iterable[Holder] = ()) -> NotLocked:
        """Return a NotLocked that is also an instance of the class of `error`, with the attributes of `error`."""
        made = _not_locked_like(type(error), (message,))
        made.__dict__.update(error.__dict__)
        NotLocked.__init__(made, message, holders)
        return made


_classes: dict[type[BaseException], type[NotLocked]] = {}


def _not_locked_like(other: type[BaseException] | None, args: tuple[Any, ...]) -> NotLocked:
    assert other is not None
    kind = _classes.get(other)
    if kind is None:
        about = {"__module__": NotLocked.__module__, "_section": NotLocked._section, "_refines": other}
        kind = _classes[other] = type("NotLocked", (NotLocked, other), about)
    return kind.__new__(kind, *args)
