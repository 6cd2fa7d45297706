"""Finds scopes that stay open too long and sessions that are never closed, with the line that opened them.

::

    from sessionkit.integrations.long_scopes import LongScopes

    LongScopes(5.0)

A transaction that stays open holds a connection and its locks, and keeps PostgreSQL from vacuuming. The server shows that
there is one; this module shows which code opened it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self

from sqlalchemy import event, orm

from .._spi import describe, here, observers, tell_made
from ..errors import OptionError
from ._observed import marks_of, name_of
from ._place import place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from sqlalchemy.engine import Connection

    from .._spi import Entry
    from ..retry import Attempt

__all__ = ["Found", "LongScopes"]

logger = logging.getLogger("sessionkit.scope")

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        event: ``"open"``: it has been open too long, and still is. ``"ended"``: it was reported as open, and has ended.
            ``"lost"``: it was garbage collected inside its transaction, so it never ended properly.
        what: ``"scope"``, or ``"session"`` for a session in a transaction that no scope owns.
        name: the name of the scope.
        place: the file and line where the scope was opened, which for a decorated function is its definition; or where the
            session was made; or, if a factory other than sessionkit's made it, where its transaction began.
        owner: the thread or task that opened it.
        seconds: how long it was open.
        locking: whether its SELECTs lock their rows, because of `Retry.lock_on_retry`.
        system: whether it runs without the settings of its factory, by ``settings=SYSTEM``.
        mutex: the text of its mutex, in the form of `locks.mutex_key`; None without one.
        replayed: whether its body did not run, because its key of ``once=`` had a result.
    """

    event: Literal["open", "ended", "lost"]
    what: Literal["scope", "session"]
    name: str | None
    place: str
    owner: str
    seconds: float
    locking: bool = False
    system: bool = False
    mutex: str | None = None
    replayed: bool = False

    def __str__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        opened = f"the {self.what}{name} opened at {self.place} by {self.owner}"
        if self.event == "open":
            return f"{opened} has been in its transaction for {self.seconds:.1f} s and is still open"
        if self.event == "ended":
            return f"{opened} ended after {self.seconds:.1f} s"
        return f"{opened} was garbage collected after {self.seconds:.1f} s in a transaction that never ended"


def _quietly(listener: Callable[P, None]) -> Callable[P, None]:
    """Log the errors of a listener instead of raising them into unrelated code."""

    @functools.wraps(listener)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            listener(*args, **kwargs)
        except Exception:
            logger.exception("following sessions failed")

    return quiet


class LongScopes:
    """Report scopes and sessions that stay in a transaction longer than this many seconds, until `close`.

    Each is reported once while it is open and once more when it has ended, as a warning of the logger ``sessionkit.scope``
    with the attributes of `Found` as fields. Scopes in all threads and tasks are found, except those that were open before
    this started.

    A daemon thread checks from time to time. It starts with the first scope, also in a forked process, and stops with
    `close`, or at the end of a ``with`` block.

    Args:
        longer_than: the limit, in seconds.
        on_found: also called with each `Found`, by the thread that checks or by the one that ends the scope.
        every: how often the thread checks, in seconds. None starts no thread: call `look` yourself.
        clock: returns monotonic time in seconds.

    Raises:
        OptionError: an argument has the wrong type or range.

    Emits no SQL.
    """

    def __init__(
        self,
        longer_than: float,
        *,
        on_found: Callable[[Found], object] | None = None,
        every: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._longer_than = _seconds("longer_than", longer_than)
        self._every = None if every is None else _seconds("every", every)
        for name, value in (("on_found", on_found), ("clock", clock)):
            if value is not None and not callable(value):
                raise OptionError(f"{name}={value!r} was given to LongScopes(); give a function")
        self._on_found = on_found
        self._clock = clock
        # Without a lock: a lock held during a fork would stay locked in the child for ever. The operations of dict and deque
        # used here are atomic.
        self._open: dict[object, _Open] = {}
        self._lost: deque[_Open] = deque()
        self._made: weakref.WeakKeyDictionary[orm.Session, str] = weakref.WeakKeyDictionary()
        self._closed = threading.Event()
        self._looks_in: int | None = None  # the process whose thread checks
        self._observer = _Observer(self)
        observers.append(self._observer)
        tell_made(self._on_made, True)
        event.listen(orm.Session, "after_begin", self._after_begin)
        event.listen(orm.Session, "after_transaction_end", self._after_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop checking. Open scopes go on unobserved."""
        if self._closed.is_set():
            return
        self._closed.set()
        observers[:] = [each for each in observers if each is not self._observer]
        tell_made(self._on_made, False)
        event.remove(orm.Session, "after_begin", self._after_begin)
        event.remove(orm.Session, "after_transaction_end", self._after_end)
        self._open.clear()

    def look(self) -> None:
        """Check now, and report what there is."""
        now = self._clock()
        for opened in list(self._open.values()):
            if not opened.told and now - opened.since > self._longer_than and not self._closed.is_set():
                opened.told = True
                self._report("open", opened, now)
        while self._lost:
            self._report("lost", self._lost.popleft(), now)

    def _report(self, what_happened: Literal["open", "ended", "lost"], opened: _Open, now: float) -> None:
        seconds = now - opened.since
        found = Found(what_happened, opened.what, opened.name, opened.place, opened.owner, seconds, **opened.marks)
        fields = {f"sessionkit_{name}": getattr(found, name) for name in ("event", "what", "place", "owner")}
        fields |= {"sessionkit_scope": found.name, "sessionkit_duration": found.seconds}
        fields |= {f"sessionkit_{mark}": value for mark, value in opened.marks.items()}
        logger.warning("%s", found, extra=fields)
        if self._on_found is not None:
            try:
                self._on_found(found)
            except Exception:
                logger.exception("on_found=%r of LongScopes failed", self._on_found)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._every is not None and self._looks_in != os.getpid():
            self._looks_in = os.getpid()
            threading.Thread(target=self._keep_looking, name="sessionkit-long-scopes", daemon=True).start()

    def _keep_looking(self) -> None:
        while not self._closed.wait(self._every):
            try:
                self.look()
            except Exception:
                logger.exception("looking for long scopes failed")

    # -- what is open -----------------------------------------------------------------------------------------------

    def _on_made(self, session: orm.Session) -> None:
        self._made[session] = place()

    @_quietly
    def _after_begin(self, session: orm.Session, transaction: orm.SessionTransaction, _: Connection) -> None:
        if session.__dict__.get("_sessionkit_unit") is None and id(session) not in self._open:
            self._note(id(session), session, "session", None, self._made.get(session) or place(), here())

    @_quietly
    def _after_end(self, session: orm.Session, transaction: orm.SessionTransaction) -> None:
        if transaction.parent is None:
            self._ended(id(session))

    def _note(
        self,
        key: object,
        held: object,
        what: Literal["scope", "session"],
        name: str | None,
        where: str,
        owner: object,
        marks: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        def lost(_: object) -> None:
            # Garbage collection may run in the middle of any code, so nothing here may wait for a lock.
            ended = self._open.pop(key, None)
            if ended is not None:
                self._lost.append(ended)

        gone = weakref.ref(held, lost)
        self._open[key] = _Open(what, name, where, _described(owner), self._clock(), gone, marks)
        self._start()

    def _ended(self, key: object) -> None:
        opened = self._open.pop(key, None)
        if opened is not None and opened.told:
            self._report("ended", opened, self._clock())


@dataclass(slots=True)
class _Open:
    """A scope or a session that is in a transaction."""

    what: Literal["scope", "session"]
    name: str | None
    place: str
    owner: str
    since: float
    held: weakref.ref[Any]
    marks: Mapping[str, Any]
    told: bool = False


class _Observer:
    """Receives the events of scopes."""

    def __init__(self, finder: LongScopes) -> None:
        self._finder = finder

    def entered(self, entry: Entry) -> _Scope | None:
        if not entry.opened or entry.unit is None:
            return None
        key = object()
        where = _written(entry) or place()
        self._finder._note(key, entry.unit, "scope", name_of(entry), where, entry.owner, marks_of(entry))
        return _Scope(self._finder, key)

    def retried(self, name: str | None, attempt: Attempt) -> None:
        """Do nothing: each attempt is its own scope."""


class _Scope:
    """The observation of one entry."""

    def __init__(self, finder: LongScopes, key: object) -> None:
        self._finder = finder
        self._key = key

    def left(self, error: BaseException | None) -> None:
        self._finder._ended(self._key)


def _described(owner: object) -> str:
    # For a thread only its number is known, and searching all threads for it would take longer.
    return describe(owner) if isinstance(owner, asyncio.Task) else f"thread {threading.current_thread().name!r}"


def _written(entry: Entry) -> str | None:
    """Return where a decorated function is defined; None if the scope is not a decorator."""
    scope: Any = entry.scope
    code = getattr(inspect.unwrap(scope._fn), "__code__", None) if scope._fn is not None else None
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise OptionError(f"{name}={value!r} was given to LongScopes(); give a number of seconds above 0")
    return float(value)
