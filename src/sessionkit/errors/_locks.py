"""What a lock that could not be had is told with: who holds it, as far as the server tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """A session of the server that holds what was asked for.

    Attributes:
        pid: the process that serves it.
        application: its ``application_name``, where the scope may stand (`integrations.application_name`).
        since: when its transaction began, aware, by the server's clock.

    A field is None where the server does not tell it: of another user's session, say, without the role pg_monitor.
    """

    pid: int | None = None
    application: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        name = "" if not self.application else f" ({self.application!r})"
        since = "" if self.since is None else f", in a transaction since {self.since:%H:%M:%S %Z}"
        return f"process {self.pid}{name}{since}"


class LockError(SessionKitError):
    """This lock is not available here, no matter who holds it. It is refused before anything is sent."""


class NotLocked(LockError):
    """Somebody else holds what was to be locked, and has not let go of it in the time that was given.

    Where the server refused, the error is also of the class that SQLAlchemy raised, with its ``orig``, ``statement`` and
    ``params``, and ``__cause__`` is that error. `classify` calls each of them ``lock_not_available``, so that
    ``Retry(also=("lock_not_available",))`` runs the unit again.

    Attributes:
        holders: who holds it, each a `Holder`; empty where nobody could be told.
    """

    _refines: ClassVar[type[BaseException] | None] = None

    def __init__(self, message: str, holders: Iterable[Holder] = ()) -> None:
        self.args = (message,)  # whatever other class this is of, its own constructor is not asked
        self.holders = tuple(holders)

    def _said(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        if self._refines is None:
            return super().__reduce__()
        return _not_locked_like, (self._refines, self.args), self.__dict__

    @classmethod
    def of(cls, error: BaseException, message: str, holders: Iterable[Holder] = ()) -> NotLocked:
        """Return a NotLocked that is also of the class of `error`, and has what that one has."""
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
