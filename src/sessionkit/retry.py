"""Retry: when a unit of work runs again, how often, and after which wait. Pure: clock and dice are arguments.

What runs again is always the whole unit, in a new session and a new transaction, COMMIT included: a serialization failure
can arrive at COMMIT, and after any failure everything read before is worthless.
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
        number: its number, from 1.
        error: the error it failed with, if another attempt follows; None while it runs, and if the error is raised.
        errors: the errors of the attempts so far, the oldest first; those of earlier attempts without tracebacks.
        delay: how long to wait before the next attempt, in seconds; None if it is the last one.
    """

    number: int
    error: Exception | None = None
    errors: list[Exception] = field(default_factory=list)
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how a unit of work runs again.

    Args:
        attempts: how many runs at most, including the first.
        wait: the wait after the first failure, in seconds; it doubles after each further one.
        wait_max: the longest wait, in seconds.
        reconnect_wait_max: the longest wait, in seconds, after a connection was lost or could not be made. There is no
            contention then, and a long wait would go on long after the server is back.
        jitter: wait a random time between zero and that ("full jitter", https://aws.amazon.com/blogs/architecture/
            exponential-backoff-and-jitter/), so that units that failed together do not collide again.
        timeout: the longest that all runs and waits may take together, in seconds; a statement that hangs is cut then.
        on: run again after these errors instead of the default ones: an exception class, a tuple of them, or a predicate.
        also: kinds of `errors.classify` to run again after, in addition to the default, such as
            ``("lock_not_available",)``; not together with `on`.
        before_retry: called with the failed `Attempt` before the wait; in async code it may be async.
        lock_on_retry: from the second run on, the unit's ORM SELECTs of entities lock their rows (``FOR UPDATE``). On a
            contended row this ends the contest instead of repeating it. After a stale version there is no wait, because
            the queue for the lock is wait enough. If the units of a function (or of a scope with a ``name=``) keep conflicting,
            they lock from the first run on, until they have cooled down: they start at the latest after 10 conflicts in
            a row, and stop at the latest after 200 units without one. One unit in 64 runs without locks, to find that
            out. What is learned is kept per function and factory, in this process. Made for version columns: a
            SERIALIZABLE transaction takes its snapshot before it waits for a lock, and fails all the same.

    By default a unit runs again after a serialization failure, a deadlock, SQLite's BUSY and LOCKED, a stale version, and
    a connection that was lost before COMMIT was sent. It also does so after a refused write, if the server was chosen
    because it takes writes (``target_session_attrs=read-write`` in the engine's URL). A unit whose outcome is unknown
    never runs again.

    Raises:
        OptionError: a value has the wrong type or range.
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
            raise OptionError("timeout=0 was asked for, but it would allow no attempt at all; use None for no limit")
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
            rng: the dice for the jitter; default: those of the process.
            error: the error it failed with.
        """
        # 2.0 ** 1024 overflows, but the cap applies long before that.
        longest = min(self.wait_max, self.wait * 2.0 ** min(attempt - 1, 1000))
        if error is not None and classify(first_of(error)).kind in _UNREACHABLE:
            # A primary that fails over is away for seconds: long enough for the wait to reach any cap. With half a second
            # the average wait is a quarter: each waiting unit knocks four times a second; see test_failover.
            longest = min(longest, self.reconnect_wait_max)
        return (rng or random).uniform(0.0, longest) if self.jitter else longest

    def retries(self, error: BaseException) -> bool:
        """Return whether a unit that failed with `error` may run again at all."""
        # The class CommitOutcomeUnknown already means unknown; this covers any other error after COMMIT was sent.
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
                    f"on={on!r} was asked for, but {each.__qualname__} is not a subclass of Exception; exceptions that end "
                    "the program or a task are never retried"
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
    """Return the policy that ``retry=`` means: a number is a number of attempts.

    Raises:
        OptionError: it is neither a `Retry` nor a number.
    """
    if isinstance(retry, Retry):
        return retry
    if isinstance(retry, int) and not isinstance(retry, bool):
        return Retry(retry)
    raise OptionError(f"retry={retry!r} was given to {where}; it is a Retry, or a number of attempts")


class Run(NamedTuple):
    """What a unit needs to know about its attempt.

    Attributes:
        deadline: when the last attempt must be over, on the monotonic clock.
        lock: whether its SELECTs of entities lock their rows.
        number: its number, from 1.
        memory: what the observers keep from one attempt to the next.
    """

    deadline: float | None
    lock: bool
    number: int
    memory: dict[object, Any]


class Heat:
    """Whether the units of one function keep conflicting: a moving average over their first attempts.

    Units that lock give no evidence, so while it is hot one unit in `PROBE` runs without locks.
    """

    __slots__ = ("_share", "_units", "hot")

    STEP = 0.35
    """The weight of the newest unit: 5 conflicts in a row make it hot, 3 probes without a conflict cool it down.

    A probe that conflicts costs twice as much as a unit that locks, so probes are rare.
    """

    HOT, CALM, MOST = 0.85, 0.3, 0.95
    PROBE = 64

    def __init__(self) -> None:
        self._share = 0.0
        self._units = 0
        self.hot = False

    @property
    def cold(self) -> bool:
        """Whether nothing is left to remember."""
        return self._share < 0.01

    def locks(self) -> bool:
        """Decide whether a unit that begins now locks the rows it selects."""
        self._units += 1
        return self.hot and self._units % self.PROBE != 0

    def conflicted(self) -> None:
        """Note a first attempt without locks that conflicted."""
        self._share = min(self.MOST, self._share + (1.0 - self._share) * self.STEP)
        self.hot = self.hot or self._share > self.HOT

    def went_well(self) -> None:
        """Note a first attempt without locks that did not conflict."""
        self._share -= self._share * self.STEP
        self.hot = self.hot and self._share >= self.CALM


REMEMBERED = 256
"""For how many functions a factory remembers that they conflict."""

_CONFLICTS = ("stale_version", "serialization_failure", "record_changed")


_NO_HEATS: dict[str, Heat] = {}


class Attempts:
    """The attempts of one call: it counts them, and decides after each failure. The clock is an argument."""

    __slots__ = ("_errors", "_locks", "_rng", "deadline", "heats", "learns", "memory", "policy")

    def __init__(self, policy: Retry, now: float, rng: random.Random | None = None) -> None:
        self.policy = policy
        self.deadline = None if policy.timeout is None else now + policy.timeout
        self._errors: list[Exception] = []
        self._rng = rng
        self.memory: dict[object, Any] = {}  # for the observers
        # The functions known to conflict, by name, and the name of this one if anything is learned about it. A function
        # that never conflicts has no entry and pays nothing.
        self.heats: dict[str, Heat] = _NO_HEATS
        self.learns: str | None = None
        self._locks = False  # from the first attempt on

    def next(self) -> Attempt:
        """Return the attempt that begins now."""
        for error in self._errors:
            forget_frames(error)
        return Attempt(len(self._errors) + 1, errors=self._errors)

    def run_of(self, attempt: Attempt) -> Run:
        """Return what the unit of an attempt needs to know about it."""
        if attempt.number == 1 and self.learns in self.heats:
            heat = self.heats.get(self.learns or "")
            self._locks = heat is not None and heat.locks()
        lock = self._locks or (self.policy.lock_on_retry and attempt.number > 1)
        return Run(self.deadline, lock, attempt.number, self.memory)

    def went_well(self, attempt: Attempt) -> None:
        """Learn from an attempt that succeeded."""
        heat = self.heats.get(self.learns or "")
        if heat is not None and attempt.number == 1 and not self._locks:
            heat.went_well()
            if heat.cold:
                self.heats.pop(self.learns or "", None)

    def _learn(self, error: BaseException) -> None:
        """Learn from a first attempt without locks that failed."""
        if self.learns is None or classify(first_of(error)).kind not in _CONFLICTS:
            return
        heat = self.heats.get(self.learns)
        if heat is None:
            while len(self.heats) >= REMEMBERED:
                self.heats.pop(next(iter(self.heats), ""), None)
            heat = self.heats.setdefault(self.learns, Heat())
        heat.conflicted()

    def failed(self, attempt: Attempt, error: BaseException, now: float) -> bool:
        """Decide whether there is another attempt; if so, set ``attempt.delay``.

        If not, the caller sees `error`, with a note about what was tried.
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
        """Return why there is no other attempt; None if there is one, after setting ``attempt.delay``."""
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
        """Let go of an attempt's error, because it is raised: the frames of its traceback hold the attempt."""
        if attempt.error is not None and self._errors and self._errors[-1] is attempt.error:
            self._errors.pop()
        attempt.error = attempt.delay = None

    def _before(self) -> str:
        earlier = [f"{type(e).__name__} ({classify(e).code or classify(e).kind})" for e in self._errors[:-1]]
        return f"the earlier attempts failed with {', '.join(earlier)}" if earlier else "there was no earlier one"


def forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that was swallowed, and of the errors behind it.

    Their frames hold the session, the objects and everything else that the unit was using (law 14).
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        forget_frames(error.__cause__)
        error = error.__context__


def _counted(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
