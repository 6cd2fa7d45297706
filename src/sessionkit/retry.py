"""Retry: when a unit of work is run again, how often, and after which wait. Pure: clock and dice are arguments.

What is run again is always the whole unit, in a new session and a new transaction, COMMIT included: a serialization
failure can arrive at COMMIT, and after any failure what was read before is worth nothing.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from sqlalchemy.orm.exc import StaleDataError

from .errors import KINDS, OptionError, add_note, classify, first_of, outcome_of

__all__ = ["Attempt", "Retry"]

_UNREACHABLE = frozenset(
    {"connection_lost", "cannot_connect", "admin_shutdown", "crash_shutdown", "read_only_sql_transaction"}
)

RetryOn = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]


@dataclass(slots=True)
class Attempt:
    """One run of a unit of work.

    Attributes:
        number: which one, from 1.
        error: what it failed with, if another attempt follows; None while it runs, and where the error is raised.
        errors: what this and the earlier ones failed with, the oldest first; those of earlier ones without tracebacks.
        delay: how long to wait before the next one, in seconds; None if it is the last one.
    """

    number: int
    error: Exception | None = None
    errors: list[Exception] = field(default_factory=list)
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how a unit of work is run again.

    Args:
        attempts: how many runs at the most, the first included.
        wait: the wait after the first failure, in seconds; it doubles after each further one.
        wait_max: the longest wait, in seconds.
        reconnect_wait_max: the longest wait, in seconds, after a connection that could not be made or was lost. Nobody
            is contended with then, and who waits for long goes on long after the server is back.
        jitter: wait a random time between zero and that ("full jitter", https://aws.amazon.com/blogs/architecture/
            exponential-backoff-and-jitter/), so that units that failed together do not meet again.
        timeout: the longest that all runs and waits may take together, in seconds; a statement that hangs is cut then.
        on: run again after these instead of the default: an exception class, a tuple of them, or a predicate.
        also: kinds of `errors.classify` to run again after besides the default, such as ``("lock_not_available",)``;
            not together with `on`.
        before_retry: called with the failed `Attempt` before the wait; in async code it may be async.
        lock_on_retry: from the second run on, the unit's ORM SELECTs of entities lock their rows (``FOR UPDATE``),
            which on a contended row ends the contest instead of repeating it. After a stale version there is no wait
            then: the queue for the lock is one. A function (or a scope with a ``name=``) whose units keep conflicting
            locks from the first run on, until they have cooled down: at the latest after 10 in a row that conflicted,
            and back at the latest after 200 that did not; one in 64 is not locked, to find that out. What is learnt is
            kept per function and factory, in this process. For version columns; a SERIALIZABLE transaction has its
            snapshot before it waits for a lock, and fails all the same.

    By default a unit is run again after a serialization failure, a deadlock, SQLite's BUSY and LOCKED, a stale
    version, a connection that was lost before COMMIT was sent, and a write refused by a server that was chosen because
    it takes writes (``target_session_attrs=read-write`` in the engine's URL). A unit whose outcome is unknown is never
    run again.

    Raises:
        OptionError: a value is not of its kind.
    """

    attempts: int = 5
    _: KW_ONLY
    wait: float = 0.02
    wait_max: float = 2.0
    reconnect_wait_max: float = 0.5
    jitter: bool = True
    timeout: float | None = None
    on: RetryOn | None = None
    also: tuple[str, ...] = ()
    before_retry: Callable[[Attempt], Awaitable[None] | None] | None = None
    lock_on_retry: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        attempts: Any = self.attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise OptionError(f"attempts={self.attempts!r} was asked for; it is a whole number, 1 or more")
        for name in ("wait", "wait_max", "reconnect_wait_max", "timeout"):
            seconds = getattr(self, name)
            if name == "timeout" and seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
                raise OptionError(f"{name}={seconds!r} was asked for; it is a number of seconds, 0 or more")
        if self.timeout == 0:
            raise OptionError("timeout=0 was asked for; it would allow no attempt at all")
        if self.on is not None:
            _check_on(self.on)
        object.__setattr__(self, "also", _check_also(self.also, self.on))
        if self.before_retry is not None and not callable(self.before_retry):
            raise OptionError(f"before_retry={self.before_retry!r} was asked for; it is called with the failed Attempt")

    def delay_after(
        self, attempt: int, rng: random.Random | None = None, *, error: BaseException | None = None
    ) -> float:
        """Return how long to wait after a failed attempt, in seconds.

        Args:
            attempt: its number, from 1.
            rng: the dice for the jitter; default: the process's.
            error: what it failed with.
        """
        # 2.0 ** 1024 overflows, and long before that the cap holds.
        longest = min(self.wait_max, self.wait * 2.0 ** min(attempt - 1, 1000))
        if error is not None and classify(first_of(error)).kind in _UNREACHABLE:
            # A primary that fails over is away for seconds: long enough for the wait to reach any cap. Half a second
            # is a quarter on average: four knocks a second by each unit that waits; see test_failover.
            longest = min(longest, self.reconnect_wait_max)
        return (rng or random).uniform(0.0, longest) if self.jitter else longest

    def retries(self, error: BaseException) -> bool:
        """Tell whether a unit that failed with `error` may be run again at all."""
        # CommitOutcomeUnknown is unknown by its class already; this is for whatever else comes after COMMIT was sent.
        if not isinstance(error, Exception) or outcome_of(error) != "rolled back":
            return False
        if self.on is None:
            meaning = classify(first_of(error))
            return meaning.retryable or meaning.kind in self.also
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        return bool(self.on(error))


def _check_on(on: object) -> None:
    classes = on if isinstance(on, tuple) else (on,)
    for each in classes:
        if isinstance(each, type):
            if not issubclass(each, Exception):
                raise OptionError(
                    f"on={on!r} was asked for, but {each.__qualname__} is no subclass of Exception; "
                    "what is to end the program, or a task, is never retried"
                )
        elif isinstance(on, tuple) or not callable(each):
            raise OptionError(f"on={on!r} was asked for; it is an exception class, a tuple of them, or a predicate")


def _check_also(also: object, on: object) -> tuple[str, ...]:
    if isinstance(also, str) or not isinstance(also, Iterable):
        raise OptionError(f"also={also!r} was asked for; it is a tuple of kinds, such as ('lock_not_available',)")
    kinds = tuple(also)
    for kind in kinds:
        if kind not in KINDS:
            from difflib import get_close_matches

            near = get_close_matches(str(kind), KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the kinds are {', '.join(sorted(KINDS))}"
            raise OptionError(f"also={also!r} was asked for, but errors.classify() knows no kind {kind!r}; {hint}")
    if kinds and on is not None:
        raise OptionError(
            f"also={also!r} was asked for together with on={on!r}; `also` adds to the default, which `on` replaces"
        )
    return kinds


def as_retry(retry: object, where: str) -> Retry:
    """Return what ``retry=`` means: a number is a number of attempts.

    Raises:
        OptionError: it is neither a `Retry` nor a number.
    """
    if isinstance(retry, Retry):
        return retry
    if isinstance(retry, int) and not isinstance(retry, bool):
        return Retry(retry)
    raise OptionError(f"retry={retry!r} was given to {where}; it is a Retry, or a number of attempts")


class Run(NamedTuple):
    """What a unit has to know of the attempt that it is.

    Attributes:
        deadline: when the last attempt must be over, on the monotonic clock.
        lock: whether its SELECTs of entities lock their rows.
        number: which one, from 1.
        memory: what the observers keep from one attempt to the next.
    """

    deadline: float | None
    lock: bool
    number: int
    memory: dict[object, Any]


class Heat:
    """Whether the units of one function keep conflicting, as far as their first attempts tell: a share that forgets.

    Units that lock tell nothing, so while it is hot one in `PROBE` goes without.
    """

    __slots__ = ("_share", "_units", "hot")

    STEP = 0.35
    """How much of the estimate the newest unit is: 5 conflicts in a row make it hot, 3 probes without one calm again.

    A probe that conflicts costs twice a unit that locks, so they are few.
    """

    HOT, CALM, MOST = 0.85, 0.3, 0.95
    PROBE = 64

    def __init__(self) -> None:
        self._share = 0.0
        self._units = 0
        self.hot = False

    @property
    def cold(self) -> bool:
        """Whether there is nothing left to remember."""
        return self._share < 0.01

    def locks(self) -> bool:
        """Decide whether a unit that begins now locks what it selects."""
        self._units += 1
        return self.hot and self._units % self.PROBE != 0

    def conflicted(self) -> None:
        """Take note of a first attempt, without locks, that has conflicted."""
        self._share = min(self.MOST, self._share + (1.0 - self._share) * self.STEP)
        self.hot = self.hot or self._share > self.HOT

    def went_well(self) -> None:
        """Take note of a first attempt, without locks, that has not."""
        self._share -= self._share * self.STEP
        self.hot = self.hot and self._share >= self.CALM


REMEMBERED = 256
"""Of how many functions a factory remembers that they conflict."""

_CONFLICTS = ("stale_version", "serialization_failure", "record_changed")


_NO_HEATS: dict[str, Heat] = {}


class Attempts:
    """The attempts of one call: counts them, and decides after each failure. The clock is an argument."""

    __slots__ = ("_errors", "_locks", "_rng", "deadline", "heats", "learns", "memory", "policy")

    def __init__(self, policy: Retry, now: float, rng: random.Random | None = None) -> None:
        self.policy = policy
        self.deadline = None if policy.timeout is None else now + policy.timeout
        self._errors: list[Exception] = []
        self._rng = rng
        self.memory: dict[object, Any] = {}  # of those who look on
        # What is remembered of functions that conflict, by name; and the name of this one, if anything is learnt of it.
        # A function that never conflicts has no entry, and pays nothing.
        self.heats: dict[str, Heat] = _NO_HEATS
        self.learns: str | None = None
        self._locks = False  # from the first attempt on

    def next(self) -> Attempt:
        """Return the attempt that begins now."""
        for error in self._errors:
            forget_frames(error)
        return Attempt(len(self._errors) + 1, errors=self._errors)

    def run_of(self, attempt: Attempt) -> Run:
        """Return what the unit of an attempt has to know of it."""
        if attempt.number == 1 and self.learns in self.heats:
            heat = self.heats.get(self.learns or "")
            self._locks = heat is not None and heat.locks()
        lock = self._locks or (self.policy.lock_on_retry and attempt.number > 1)
        return Run(self.deadline, lock, attempt.number, self.memory)

    def went_well(self, attempt: Attempt) -> None:
        """Learn from an attempt that has succeeded."""
        heat = self.heats.get(self.learns or "")
        if heat is not None and attempt.number == 1 and not self._locks:
            heat.went_well()
            if heat.cold:
                self.heats.pop(self.learns or "", None)

    def _learn(self, error: BaseException) -> None:
        """Learn from a first attempt without locks that has failed."""
        if self.learns is None or classify(first_of(error)).kind not in _CONFLICTS:
            return
        heat = self.heats.get(self.learns)
        if heat is None:
            while len(self.heats) >= REMEMBERED:
                self.heats.pop(next(iter(self.heats), ""), None)
            heat = self.heats.setdefault(self.learns, Heat())
        heat.conflicted()

    def failed(self, attempt: Attempt, error: BaseException, now: float) -> bool:
        """Decide whether there is another attempt; if so, ``attempt.delay`` says after which wait.

        Otherwise `error` is what the caller sees, with a note of what was tried.
        """
        if isinstance(error, Exception):
            attempt.error = error
            self._errors.append(error)
            if attempt.number == 1 and not self._locks:
                self._learn(error)
        ends = self._ends(attempt, error, now)
        if ends is None:
            return True
        if attempt.number > 1 or not ends.startswith("this was"):
            add_note(error, f"{ends}; {self._before()}")
        self.raised(attempt)
        return False

    def _ends(self, attempt: Attempt, error: BaseException, now: float) -> str | None:
        """Return why there is no other attempt; None if there is one, after ``attempt.delay``."""
        if not self.policy.retries(error):
            return f"this was attempt {attempt.number}"
        if self.policy.lock_on_retry and isinstance(error, StaleDataError):
            delay = 0.0  # the next attempt waits in the queue for the lock
        else:
            delay = self.policy.delay_after(attempt.number, self._rng, error=error)
        if attempt.number >= self.policy.attempts:
            return f"gave up after {_counted(attempt.number)}"
        if self.deadline is not None and now + delay >= self.deadline:
            return f"gave up after {_counted(attempt.number)}, at the timeout of {self.policy.timeout} s"
        attempt.delay = delay
        return None

    def raised(self, attempt: Attempt) -> None:
        """Let go of the error of an attempt, which is raised: the frames of its traceback hold the attempt."""
        if attempt.error is not None and self._errors and self._errors[-1] is attempt.error:
            self._errors.pop()
        attempt.error = attempt.delay = None

    def _before(self) -> str:
        earlier = [f"{type(e).__name__} ({classify(e).code or classify(e).kind})" for e in self._errors[:-1]]
        return f"the attempts before failed with {', '.join(earlier)}" if earlier else "there was none before"


def forget_frames(error: BaseException | None) -> None:
    """Take the tracebacks from an error that was swallowed, and from those behind it.

    Their frames hold the session, the objects and whatever else the unit had in its hands (law 14).
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        forget_frames(error.__cause__)
        error = error.__context__


def _counted(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
