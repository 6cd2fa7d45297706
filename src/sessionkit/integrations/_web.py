"""What the web frameworks share: when a request's session commits, when a request runs again, how errors are answered.

A request is one unit of work: a scope of each factory, opened around it and ended before its response may leave. A *turn* is
one run of a request; the sync one is here, the async one in ``_async_turn``.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .._spi import (
    Attempts,
    Options,
    Run,
    as_retry,
    check_once,
    connections,
    observers,
    pause,
    sync_session_of,
    takes_one,
    tell_retried,
    top,
    unit_of,
)
from .._spi import Request as ScopeOptions
from ..errors import (
    HookError,
    MalformedETag,
    NotLocked,
    OnceMismatch,
    OptionError,
    ScopeError,
    SyncAsyncMismatch,
    classify,
    first_of,
    outcome_of,
)
from ..hooks import set_rollback_only
from ..retry import Attempt, Retry
from ..scope import AsyncScope, session_scope
from ._idempotency import IN_FLIGHT, OTHER_REQUEST, Answer, Idempotency, KeyRefused
from ._observed import RequestName

if TYPE_CHECKING:
    from sqlalchemy import orm
    from sqlalchemy.ext import asyncio as sa_asyncio

    from .._spi import ManualCommit, Once, Role, Settings
    from ..scope import Scope
    from ._idempotency import Stored

    SyncFactory = orm.sessionmaker[Any] | orm.scoped_session[Any]
    AsyncFactory = sa_asyncio.async_sessionmaker[Any] | sa_asyncio.async_scoped_session[Any]

logger = logging.getLogger("sessionkit")

RollbackOn = Callable[[int], bool]
"""Returns whether a response with this status rolls back the work of its request."""

NoRollbackFor = type[BaseException] | tuple[type[BaseException], ...]
"""Exceptions that do not prevent the commit of a request."""

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""The methods that a client may send again, RFC 9110, section 9.2.2."""

LONGEST_BODY = 2**20
"""The longest request body, in bytes, that is kept for another run; a request with a longer one does not run again."""

RETRY_AFTER = 1
"""The Retry-After of a 503, in seconds: the problem is a temporary one."""


def on_error_status(status: int) -> bool:
    """Roll back on every error status: the default of ``rollback_on``."""
    return status >= 400


# -- answers to clients ------------------------------------------------------------------------------------------


_CHANGED = "Somebody else has changed this in the meantime. Read it again, then repeat your change."
CONFLICT = Answer(409, "Conflict", _CHANGED)
PRECONDITION_FAILED = Answer(412, "Precondition Failed", _CHANGED)
MALFORMED = Answer(400, "Bad Request", 'If-Match must hold * or entity tags in double quotes, such as "3".')
TRY_AGAIN = Answer(
    503, "Service Unavailable", "This cannot be done at the moment, and nothing was saved. Try again.", RETRY_AFTER
)


def answer_to(error: BaseException, if_match: bool) -> Answer | None:
    """Return the answer to an error, if HTTP has a status for it.

    Args:
        error: the error that the request failed with.
        if_match: whether the request had a precondition, so that a conflict is its failure.
    """
    if isinstance(error, MalformedETag):
        return MALFORMED
    if isinstance(error, KeyRefused):
        return error.answer
    if _is_stale(error):
        return PRECONDITION_FAILED if if_match else CONFLICT
    if not classify(first_of(error)).retryable:
        return None
    # The operators of the service should see that clients are turned away.
    logger.warning("answered a request with 503: %s", error, exc_info=error)
    return TRY_AGAIN


def _is_stale(error: BaseException) -> bool:
    return classify(first_of(error)).kind == "stale_version"


# -- the options of the application -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The checked options of an integration."""

    factories: tuple[Any, ...]
    rollback_on: RollbackOn
    retry: Retry | None
    retry_methods: frozenset[str]
    options: Options = field(default_factory=Options)  # scope options that differ from the factory's
    idempotency: Idempotency | None = None


def rules(
    where: str,
    factories: Sequence[Any],
    rollback_on: RollbackOn,
    retry: Retry | int | None,
    retry_methods: Iterable[str],
    manual_commit: ManualCommit | None,
    no_rollback_for: NoRollbackFor | None,
    settings: Settings | None = None,
    role: Role = None,
    *,
    asynchronous: bool,
    idempotency: Idempotency | None = None,
) -> Rules:
    """Check the options of an integration.

    Args:
        where: the name of what the user called, for messages.
        factories: the factories whose scopes surround each request.
        rollback_on, retry, retry_methods, manual_commit, no_rollback_for, settings, role: as the user passed them.
        asynchronous: whether the framework supports async factories.
        idempotency: how requests with a key are served.

    Raises:
        ScopeError: a factory is not a session factory.
        SyncAsyncMismatch: a factory is async, but the framework is sync.
        OptionError: another option has a value that cannot be honoured.
    """
    options: Options = {}
    if manual_commit is not None:
        options["manual_commit"] = manual_commit
    if no_rollback_for is not None:
        options["no_rollback_for"] = no_rollback_for
    if settings is not None:
        options["settings"] = settings
    if role is not None:
        options["role"] = role
    ScopeOptions().but(of_request(options, lambda: None), where)
    for factory in factories:
        if isinstance(session_scope(factory), AsyncScope) and not asynchronous:
            raise SyncAsyncMismatch(f"{where} got the async factory {factory!r}, but WSGI is sync; pass a sessionmaker")
    given: object = rollback_on
    if not callable(given):
        raise OptionError(
            f"rollback_on={rollback_on!r} was given to {where}; give a function of the status, such as `lambda "
            "status: status >= 500`"
        )
    if isinstance(retry_methods, str):
        raise OptionError(f"retry_methods={retry_methods!r} was given to {where}; give a set, such as {{'GET', 'PUT'}}")
    methods = frozenset(method.upper() for method in retry_methods)
    if retry is None and methods != IDEMPOTENT:
        raise OptionError(
            f"retry_methods= was given to {where} without retry=, so no request would run again; give retry= too"
        )
    policy = None if retry is None else as_retry(retry, where)
    if policy is not None and len(factories) > 1:
        raise OptionError(
            f"retry= was given to {where} with {len(factories)} factories, which commit one after the other, and a "
            "commit cannot be run again; use one factory with binds=, or retry inside the request"
        )
    if idempotency is not None:
        if len(factories) > 1:
            raise OptionError(
                f"idempotency_header= was given to {where} with {len(factories)} factories; they commit one after the other, and "
                "the response is stored in one of them: have one factory with binds= and twophase=True"
            )
        for factory in factories:
            check_once(session_scope(factory, **options)._request, f"the scopes of {where}")
    return Rules(tuple(factories), rollback_on, policy, methods, options, idempotency)


def of_request(options: Options, seen: Callable[[], object]) -> Options:
    """Return options of a scope, with its request bound to the functions that take it.

    Args:
        options: the options of a scope.
        seen: returns the request as the framework shows it; called only if a function takes it.
    """
    given: dict[str, Any] = dict(options)
    if isinstance(settings := given.get("settings"), Mapping):
        given["settings"] = {name: _with_request(value, seen) for name, value in settings.items()}
    if "role" in given:
        given["role"] = _with_request(given["role"], seen)
    made: Any = given
    return made  # type: ignore[no-any-return]


def _with_request(value: Any, seen: Callable[[], object]) -> Any:
    if not callable(value) or inspect.iscoroutinefunction(value) or not takes_one(value):
        return value  # an async function is refused later
    return lambda: value(seen())


# -- one request, which may take several turns ----------------------------------------------------------------------


class RequestUnit:
    """One request: the name of its scopes, and whether it runs again after a failure."""

    def __init__(self, given: Rules, method: str, path: str, if_match: bool) -> None:
        self.rules = given
        self.name = RequestName(method, path)
        self.if_match = if_match  # a conflict then means that the client's precondition failed
        self.replayable = True
        self.method = method
        self.key: Once | None = None  # under which its response is stored
        self._attempts: Attempts | None = None
        self._attempt: Attempt | None = None
        self._asked = False  # whether an endpoint asked for retries, which overrides the application's setting
        if given.retry is not None and method in given.retry_methods:
            self._begin(given.retry)

    @property
    def retried(self) -> bool:
        """Whether the request may run again."""
        return self._attempts is not None and self.replayable

    def ask(self, policy: Retry) -> None:
        """Let the request run again as `policy` says. Every turn asks.

        Raises:
            OptionError: another part of the same request has asked for a different policy.
        """
        if self._asked and self._attempts is not None:
            if policy != self._attempts.policy:
                raise OptionError(
                    f"{self.name} asks for sessions with retry={policy} and retry={self._attempts.policy}; a request "
                    "runs again as a whole, so give all of them the same policy"
                )
            return
        self._asked = True
        self._begin(policy)

    def _begin(self, policy: Retry) -> None:
        self._attempts = Attempts(policy, time.monotonic())
        self._attempt = self._attempts.next()

    def run(self) -> Run | None:
        """Return what the scopes of this turn need to know about the attempt; None if there is only one."""
        attempts, attempt = self._attempts, self._attempt
        if attempts is None or attempt is None or not self.replayable:
            return None
        return attempts.run_of(attempt)

    def again(self, error: BaseException) -> bool:
        """Decide whether another turn follows one that failed with `error` and was rolled back."""
        attempts, attempt = self._attempts, self._attempt
        if attempts is None or attempt is None or not self.replayable:
            return False
        if self.if_match and _is_stale(error):
            return False  # the next turn would not meet the client's precondition either
        if not attempts.failed(attempt, error, time.monotonic()):
            return False
        if observers:
            tell_retried(self.name, attempt)
        return True

    def next(self) -> tuple[object, float]:
        """Begin the next turn: return the result of ``before_retry``, and the seconds to wait."""
        assert self._attempts is not None
        assert self._attempt is not None
        failed, policy = self._attempt, self._attempts.policy
        self._attempt = self._attempts.next()
        return None if policy.before_retry is None else policy.before_retry(failed), failed.delay or 0.0


class Turn:
    """One run of a request: its scopes, which end in reverse order, and the error that keeps them from committing."""

    def __init__(self, request: RequestUnit, seen: Callable[[], object] = lambda: None) -> None:
        self.request = request
        self.not_entered: Exception | None = (
            None  # it kept a scope from opening, and waits for the framework to handle it
        )
        self._seen = seen  # returns the request as the framework shows it
        self.over = False  # its scopes have ended
        self.error: BaseException | None = None  # an exception raised in it, even if it was handled
        self.failure: BaseException | None = None  # the error that kept it from committing
        self._open: list[tuple[Any, Any]] = []
        self._lasting: list[Any] = []  # if there are several scopes: those whose COMMIT has an effect
        self._committed: list[Any] = []  # those of them that have committed
        self.claim: Any = None  # of the request's key

    @property
    def replayed(self) -> bool:
        """Whether the response is stored already."""
        return self.claim is not None and self.claim.replayed

    def holds_back(self, status: int) -> bool:
        """Tell whether a response with this status will be stored when the scopes end."""
        if self.claim is None or self.replayed or self.over or self.error is not None:
            return False
        return not self.request.rules.rollback_on(status)

    def keep(self, response: Stored) -> None:
        """Have the response stored with the request's work."""
        self.claim.keep(response)

    def scope_of(self, factory: Any, options: Options) -> Scope[Any] | AsyncScope[Any]:
        """Return a new scope: each turn has its own, which can be left in any thread."""
        given: Options = {"name": self.request.name, **of_request(options, self._seen)}
        given |= {"propagation": "new", "retry": None}
        made: Scope[Any] | AsyncScope[Any] = session_scope(factory, **given)
        key = self.request.key
        if key is not None and not made._request.preset.read_only:
            if self.claim is not None:
                raise ScopeError(
                    f"{self.request.name} has an idempotency key, and asked for a second session that writes: the two would "
                    "not be committed as one with its response; use one session, or one factory with binds= and twophase=True"
                )
            check_once(made._request, f"the scope of {self.request.name}")
            made._request = replace(made._request, once=key)
        return made

    def opened(self, scope: Any, session: Any) -> None:
        """Note a scope that this turn must end."""
        self._open.append((scope, session))
        if scope._request.once is not None:
            entry: Any = top()
            self.claim = entry.claim

    def failed(self, error: BaseException) -> None:
        """Note an exception. Even if it is handled, the work before it must not be committed."""
        if self.error is None and not self.over:
            self.error = error

    def again(self, error: BaseException) -> bool:
        """Decide whether another turn follows, after this one failed with `error` and was rolled back."""
        return not self._committed and self.request.again(error)

    def answer(self, error: BaseException) -> Answer | None:
        """Return the answer to the error that the turn failed with, if HTTP has a status for it."""
        # These answers ask the client to repeat the request, which would repeat what has been committed.
        return None if self._committed else answer_to(error, self.request.if_match)

    def _ending(self, status: int | None) -> list[Any]:
        """Return the scopes to leave, in order. They do not commit without a status or with an error status."""
        # rollback_on is called before anything ends, so if it raises, everything can still be rolled back.
        bad = self.error is None and (status is None or self.request.rules.rollback_on(status))
        self.over = True
        scopes, self._open = self._open[::-1], []
        if len(scopes) > 1:
            self._lasting = [scope for scope, session in scopes if _may_change(session)]
        if bad:
            for _, session in scopes:
                set_rollback_only(session)
        return [scope for scope, _ in scopes]

    def _ended(self, scope: Any, failure: BaseException | None, error: BaseException | None) -> BaseException | None:
        """Return the error to leave the next scope with, after one was left with `error` and raised `failure`."""
        if failure is not None and not isinstance(failure, Exception):
            return failure  # a cancellation or an interrupt takes precedence
        if error is not None:
            if scope in self._lasting and outcome_of(error) != "rolled back":  # although it raised
                self._committed.append(scope)
            return error  # the user must see the first error; the other one is in the log of its own unit
        if isinstance(failure, HookError):
            # The response reports the outcome of the data, and that is settled.
            logger.error(
                "a hook of %s failed after the data was %s", self.request.name, failure.outcome, exc_info=failure
            )
        elif failure is not None:
            return self._noting_what_lasts(failure)
        if scope in self._lasting and (failure is None or failure.outcome == "committed"):
            self._committed.append(scope)
        return None

    def _noting_what_lasts(self, failure: Exception) -> Exception:
        for other in self._committed:
            failure.add_note(f"{other!r} of the same request had already committed")
        return failure

    def _settle(self, error: BaseException | None) -> None:
        """Raise the error that kept the turn from committing, each time the turn is asked to end."""
        if error is not None and error is not self.error:
            self.failure = error
        if self.failure is not None:
            raise self.failure


def _may_change(session: Any) -> bool:
    """Return whether a session's COMMIT may have an effect: not if it is read-only or was never used."""
    inner = sync_session_of(session, "a request")
    unit = unit_of(inner)
    assert unit is not None
    used = connections(unit.transaction) or inner.new or inner.dirty or inner.deleted
    return bool(used) and not unit.read_only


@contextmanager
def claiming(scope: Any) -> Generator[None]:
    """Turn the errors of entering a scope with a key into answers to its client."""
    try:
        yield
    except OnceMismatch as error:
        raise KeyRefused(OTHER_REQUEST) from error
    except NotLocked as error:
        if scope._request.once is None:
            raise
        raise KeyRefused(IN_FLIGHT) from error


def triple(error: BaseException | None) -> tuple[Any, Any, Any]:
    """Return the arguments of ``__exit__``."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


class SyncTurn(Turn):
    """A turn of a request that one thread serves."""

    def enter(self) -> None:
        """Open a scope of each factory, the first one innermost. Does no I/O."""
        for factory in self.request.rules.factories[::-1]:
            scope: Any = self.scope_of(factory, self.request.rules.options)
            with claiming(scope):
                session = scope._begin(self.request.run())
            self.opened(scope, session)

    def end(self, status: int | None) -> None:
        """End the scopes before a response with `status` leaves. None means that there will be no response.

        Raises:
            BaseException: the error that kept one of them from committing, unless it is the turn's own `error`.
        """
        error = self.error
        for scope in self._ending(status):
            failure: BaseException | None = None
            try:
                scope.__exit__(*triple(error))
            except BaseException as raised:  # noqa: BLE001 - the other scopes must end too
                failure = raised
            error = self._ended(scope, failure, error)
        self._settle(error)

    def give_up(self, error: BaseException | None) -> None:
        """Roll back what is still open."""
        if self.over:
            return
        if error is not None:
            self.error = error
        self.end(None)

    def pause(self) -> None:
        """Wait before the next turn."""
        result, seconds = self.request.next()
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise SyncAsyncMismatch("before_retry is async, but WSGI is sync and cannot await it; use a plain function")
        time.sleep(pause(seconds))
