"""Decides what entering a scope does, before anything is done.

Pure: it takes the request and the unit that is open, and returns a step or raises. Sync and async scopes obey it alike.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, get_args
from uuid import UUID

from ._arguments import check_callable
from ._mutex import mutex_text, seconds_of
from ._once import KIN, Codec, Once, once_of
from ._schemas import OPTION as SCHEMAS
from ._schemas import Schemas, as_schemas
from ._settings import NO_SETTINGS, NOTHING_IN_FORCE, InForce, Role, Settings, SettingsAsked, refuse_lacking
from .errors import OptionError, ScopeError, UnknownOptionError
from .isolation import NOTHING_ASKED, PRESET_FIELDS, Isolation, IsolationName, Preset, merge
from .retry import Retry, as_retry

__all__ = ["NOTHING_ASKED", "Options", "Propagation", "Request", "Running", "Step", "plan", "plan_passed"]

Propagation = Literal["join", "savepoint", "new", "require", "forbid"]
ManualCommit = Literal["refuse", "savepoint"]


class Options(TypedDict, total=False):
    """The keyword arguments of a scope."""

    propagation: Propagation
    name: str | None
    preset: Preset | None
    isolation: Isolation | IsolationName | None
    read_only: bool | None
    deferrable: bool | None
    statement_timeout: float | None
    lock_timeout: float | None
    idle_timeout: float | None
    retry: Retry | int | None
    verify_commit: VerifyCommit
    commit_timeout: float | None
    schema_translate_map: Mapping[str | None, str | None] | None
    settings: Settings | None
    role: Role
    manual_commit: ManualCommit
    no_rollback_for: type[BaseException] | tuple[type[BaseException], ...]
    mutex: MutexKey | Callable[..., MutexKey] | None
    mutex_wait: bool | float
    once: str | Callable[..., str] | None
    fingerprint: str | Callable[..., str] | None
    codec: Codec | None
    once_ttl: float | None


MutexKey = str | int | bytes | UUID | tuple[Any, ...]

VerifyCommit = bool | Callable[[Any], bool | Awaitable[bool | None] | None]
"""True: with the commit marker. A function: it gets a new session and returns True (committed), False (not) or None."""


class Step(enum.Enum):
    """What entering a scope does to the database."""

    OPEN = "begin a transaction on a new session"
    JOIN = "join the transaction that is open"
    SAVEPOINT = "set a savepoint in the transaction that is open"
    JOIN_READ_ONLY = "join, with the database refusing writes until the scope ends"
    SAVEPOINT_READ_ONLY = "set a savepoint, with the database refusing writes until the scope ends"


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one scope, checked."""

    propagation: Propagation = "join"
    name: str | None = None
    preset: Preset = NOTHING_ASKED
    retry: Retry | None = None
    verify_commit: VerifyCommit = False
    commit_timeout: float | None = None
    schemas: Schemas | None = None
    manual_commit: ManualCommit = "refuse"
    no_rollback_for: tuple[type[BaseException], ...] = ()
    mutex: Any = None  # a key, or a function that returns one
    mutex_wait: float | None = None  # in seconds; None: without limit
    once: Once | None = None
    settings: SettingsAsked = NO_SETTINGS  # and role
    # What was written on the scope itself. When a scope joins, the open transaction may differ from its factory's defaults,
    # but not from these.
    given: frozenset[str] = frozenset()
    given_preset: Preset = NOTHING_ASKED
    given_settings: SettingsAsked = NO_SETTINGS
    # Whether retry was asked for on the scope itself, and whether these options need a feature: computed once, since every
    # entry asks.
    retry_given: bool = field(init=False, default=False, compare=False)
    special: bool = field(init=False, default=False, compare=False)
    compares: bool = field(init=False, default=False, compare=False)  # settings or a role were written on the scope
    asks: bool = field(init=False, default=False, compare=False)  # options are functions of a call's arguments
    needs_call: bool = field(init=False, default=False, compare=False)  # a plain `with` cannot do what was asked

    def __post_init__(self) -> None:
        """Compute what every entry asks."""
        special = self.verify_commit or self.commit_timeout or self.schemas or self.manual_commit != "refuse"
        special = special or self.mutex is not None or self.settings is not NO_SETTINGS or self.once is not None
        per_call = self.once is not None and not self.once.called
        retry_given = "retry" in self.given and self.retry is not None
        object.__setattr__(self, "asks", callable(self.mutex) or per_call)
        object.__setattr__(self, "compares", "settings" in self.given or "role" in self.given)
        object.__setattr__(self, "retry_given", retry_given)
        object.__setattr__(self, "needs_call", retry_given or per_call)
        object.__setattr__(self, "special", bool(special))

    def but(self, options: Options | dict[str, Any], where: str, *, defaults: bool = False) -> Request:
        """Return this request, overridden by `options`.

        Raises:
            UnknownOptionError: there is no such option.
            OptionError: an option has a value that cannot be honoured, or does not fit the others.
        """
        if not options:
            return self
        known = Options.__annotations__
        for option in options:
            if option not in known:
                raise UnknownOptionError(option, known, where)
        propagation = options.get("propagation", self.propagation)
        manual_commit = options.get("manual_commit", self.manual_commit)
        for option, value, allowed in (
            ("propagation", propagation, get_args(Propagation)),
            ("manual_commit", manual_commit, get_args(ManualCommit)),
        ):
            if value not in allowed:
                raise OptionError(
                    f"{option}={value!r} was asked of {where}; it is one of {', '.join(map(repr, allowed))}"
                )
        no_rollback_for = _exceptions(options.get("no_rollback_for", self.no_rollback_for), where)
        name: Any = options.get("name", self.name)
        if name is not None and not isinstance(name, str):
            raise OptionError(f"name={name!r} was given to {where}; it is a string or None")
        verify: Any = options.get("verify_commit", self.verify_commit)
        checked: object = verify
        if not isinstance(checked, bool) and not callable(checked):
            raise OptionError(
                f"verify_commit={verify!r} was given to {where}; it is True, False or a function of a session"
            )
        seconds: Any = options.get("commit_timeout", self.commit_timeout)
        if seconds is not None and not _is_time(seconds):
            raise OptionError(
                f"commit_timeout={seconds!r} was given to {where}; it is a number of seconds above 0, or None"
            )
        retry = self.retry
        if "retry" in options:
            asked = options["retry"]
            retry = None if asked is None else as_retry(asked, where)
        schemas = self.schemas
        if "schema_translate_map" in options:
            schemas = as_schemas(options["schema_translate_map"], where)
        mutex, mutex_wait = self._mutex(options, where)
        once = self._once(options, where, defaults)
        settings = self.settings.but(options, where, defaults=defaults)
        given, given_preset, given_settings = self.given, self.given_preset, self.given_settings
        if not defaults:
            given, given_preset = given | options.keys(), _preset(given_preset, options, where)
            given_settings = given_settings.but(options, where, defaults=False)
        made = Request(
            propagation,
            name,
            _preset(self.preset, options, where),
            retry,
            verify,
            seconds,
            schemas,
            manual_commit,
            no_rollback_for,
            mutex,
            mutex_wait,
            once,
            settings,
            given,
            given_preset,
            given_settings,
        )
        if once is not None:
            check_once(made, where)
        return made

    def _once(self, options: Options | dict[str, Any], where: str, defaults: bool) -> Once | None:
        if defaults:
            for option in ("once", *KIN):
                if option in options:
                    raise OptionError(
                        f"{option}= was given to {where}; a key belongs to one function, so write it there: "
                        "@Session.scope(once=lambda order_id: f'pay:{order_id}')"
                    )
        return once_of(options, where)

    def _mutex(self, options: Options | dict[str, Any], where: str) -> tuple[Any, float | None]:
        mutex: Any = options.get("mutex", self.mutex)
        if callable(mutex):
            check_callable(mutex, "mutex", where)
        elif mutex is not None:
            mutex_text(mutex)
        if "mutex_wait" not in options:
            return mutex, self.mutex_wait
        wait = options["mutex_wait"]
        if mutex is None:
            raise OptionError(
                f"mutex_wait={wait!r} was given to {where} without mutex=, so there is nothing to wait for"
            )
        return mutex, seconds_of(wait, f"mutex_wait={wait!r} was given to {where}")


def check_once(request: Request, where: str) -> None:
    """Refuse what a unit with a key cannot be."""
    if request.preset.read_only:
        raise OptionError(
            f"once= was given to {where}, which is read-only, and a key is written; write read_only=False"
        )
    if callable(request.verify_commit):
        raise OptionError(
            f"once= was given to {where}, whose verify_commit= is a function; the key tells whether the unit was committed, "
            "so write verify_commit=True"
        )
    if request.no_rollback_for:
        raise OptionError(
            f"once= was given to {where}, whose no_rollback_for= lets it commit with an exception, which is no result that "
            "could be stored; write no_rollback_for=(), and return a value if the work must be committed"
        )


def _exceptions(given: object, where: str) -> tuple[type[BaseException], ...]:
    classes: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise OptionError(
                f"no_rollback_for={given!r} was given to {where}; it is an exception class or a tuple of them, such as "
                "(NoResultFound,)"
            )
    return classes


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < float("inf")


def _preset(base: Preset, options: Options | dict[str, Any], where: str) -> Preset:
    given: object = options.get("preset")
    if given is not None:
        if not isinstance(given, Preset):
            raise OptionError(f"preset={given!r} was given to {where}; it is a Preset, such as sessionkit.SERIALIZABLE")
        base = base | given
    return merge(base, {name: value for name, value in options.items() if name in PRESET_FIELDS}, where)


class Running(Protocol):
    """A unit of work that is open; messages call it by its ``str()``."""

    @property
    def preset(self) -> Preset: ...
    @property
    def level(self) -> Isolation: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def retried(self) -> bool: ...
    @property
    def in_force(self) -> InForce: ...
    @property
    def request(self) -> Request: ...


def plan(running: Running | None, request: Request) -> Step:
    """Decide what entering a scope does.

    Args:
        running: the unit of the same factory that is open here, or None.
        request: the options of the scope to enter.

    Raises:
        ScopeError: the propagation does not allow it.
        OptionError: the open unit does not satisfy the options.
    """
    propagation = request.propagation
    if running is None:
        if propagation != "require":
            return Step.OPEN
        raise ScopeError(
            "propagation='require' was asked for, but no scope of this factory is open in this thread and task; "
            "call this inside one, or ask for propagation='join'"
        )
    if propagation == "new":
        return Step.OPEN
    if propagation == "forbid":
        raise ScopeError(
            f"propagation='forbid' was asked for, but {running} is already open and its transaction would decide over "
            "this one; call this outside of it, or ask for propagation='join' or 'new'"
        )
    if request.retry_given and (propagation == "savepoint" or not running.retried):
        raise OptionError(_no_retry(running, propagation))
    if request.settings is not NO_SETTINGS and request.settings.demands:
        # What runs may be a scope of another factory, whose session was passed in.
        refuse_lacking(request.settings, running.in_force, f"a scope was to join {running}, which runs without")
    if request.given:
        _check_commit(running.request, request, running)
        _check_schemas(running.request, request, running)
    if request.once is not None and running.read_only:
        raise OptionError(
            f"once= was asked for, but {running} already runs read-only, and a key is written; {_WAY_OUT}"
        )
    if request.given_preset is not NOTHING_ASKED and request.given_preset != NOTHING_ASKED:
        check_joined(running, request.given_preset)
        if request.given_preset.read_only and not running.read_only:
            return Step.SAVEPOINT_READ_ONLY if propagation == "savepoint" else Step.JOIN_READ_ONLY
    return Step.SAVEPOINT if propagation == "savepoint" else Step.JOIN


def _no_retry(running: Running, propagation: str) -> str:
    if propagation == "savepoint":
        why = "a savepoint cannot be retried: after a serialization failure the whole transaction has to be"
    else:
        why = f"{running} is already open and is not retried itself, so a part of it cannot be"
    return (
        f"retry= was asked for, but {why}; give the outermost scope retry= (as a decorator, or with attempts()), "
        "or ask for propagation='new'"
    )


def _check_commit(runs: Request, asked: Request, running: Running) -> None:
    if "verify_commit" in asked.given and asked.verify_commit and not runs.verify_commit:
        raise OptionError(f"verify_commit= was asked for, but {running} sends COMMIT and runs without it; {_WAY_OUT}")
    wanted = asked.commit_timeout if "commit_timeout" in asked.given else None
    has = runs.commit_timeout
    if wanted is not None and (has is None or has > wanted):
        found = "none of its own" if has is None else f"{has} s"
        raise OptionError(
            f"commit_timeout={wanted} s was asked for, but {running} sends COMMIT and runs with {found}; {_WAY_OUT}"
        )


def _check_schemas(runs: Request, asked: Request, running: Running) -> None:
    if SCHEMAS in asked.given and asked.schemas is not None and asked.schemas != runs.schemas:
        found = "none" if runs.schemas is None else str(dict(runs.schemas))
        raise OptionError(
            f"{SCHEMAS}={dict(asked.schemas)} was asked for, but {running} already runs with {found}; {_WAY_OUT}"
        )


_WAY_OUT = "ask for it on the outermost scope, or for propagation='new'"


def check_joined(running: Running, asked: Preset) -> None:
    """Check that an open transaction satisfies what a scope that joins it asked for.

    Raises:
        OptionError: it does not; the message has both values.
    """
    if asked.isolation is not None and running.level.strength < asked.isolation.strength:
        raise OptionError(
            f"isolation {asked.isolation} was asked for, but {running} already runs {running.level}; {_WAY_OUT}"
        )
    has = running.preset
    if asked.read_only is False and running.read_only:
        raise OptionError(f"read_only=False was asked for, but {running} already runs read-only; {_WAY_OUT}")
    if asked.deferrable and not has.deferrable:
        raise OptionError(f"deferrable=True was asked for, but {running} already runs without it; {_WAY_OUT}")
    for name in ("statement_timeout", "lock_timeout", "idle_timeout"):
        wanted, runs = getattr(asked, name), getattr(has, name)
        if wanted is not None and (runs is None or runs > wanted):
            found = "none of its own" if runs is None else f"{runs} s"
            raise OptionError(f"{name}={wanted} s was asked for, but {running} already runs with {found}; {_WAY_OUT}")


def plan_passed(running: Running | None, request: Request) -> Step:
    """Decide what a decorated function does with a session that its caller passed in.

    Args:
        running: the unit that owns the session, or None if no scope does.
        request: the options of the function's scope.

    Raises:
        ScopeError: the propagation asks for a transaction of its own.
        OptionError: the session's transaction does not satisfy the options.
    """
    if request.propagation in ("new", "forbid"):
        raise ScopeError(
            f"propagation={request.propagation!r} asks for a transaction of its own, but a session was passed in, "
            "and it belongs to the caller; leave the session out, or ask for propagation='join' or 'savepoint'"
        )
    if running is not None:
        return plan(running, request)
    if request.retry_given:
        raise OptionError(
            "retry= was asked for, but a session was passed in: its transaction is the caller's, and a part of it cannot "
            "be retried; leave the session out, or retry the caller's unit"
        )
    if request.given & {"verify_commit", "commit_timeout"} and (request.verify_commit or request.commit_timeout):
        raise OptionError(
            "verify_commit= or commit_timeout= was asked for, but a session was passed in, and its COMMIT is the "
            "caller's; leave the session out"
        )
    if "mutex" in request.given and request.mutex is not None:
        raise OptionError(
            "mutex= was asked for, but a session was passed in that belongs to no scope, so when its transaction ends is not "
            "known; leave the session out, or pass one from a scope"
        )
    if request.once is not None:
        raise OptionError(
            "once= was asked for, but a session was passed in that belongs to no scope, so how its transaction ends is not "
            "known; leave the session out, or pass one from a scope"
        )
    if SCHEMAS in request.given and request.schemas is not None:
        raise OptionError(
            f"{SCHEMAS}= was asked for, but a session was passed in that belongs to no scope, and its transaction may "
            "have begun otherwise; leave the session out, or pass one from a scope with this map"
        )
    given = request.given_settings
    if given.values or given.role is not None or given.system:
        raise OptionError(
            "settings= or role= was asked for, but a session was passed in that belongs to no scope, and its transaction may "
            "have begun otherwise; leave the session out, or pass that of a scope with them"
        )
    if request.settings.demands:
        refuse_lacking(
            request.settings, NOTHING_IN_FORCE, "a session was passed in that belongs to no scope, and runs without"
        )
    if request.given_preset != NOTHING_ASKED:
        raise OptionError(
            f"{request.given_preset} was asked for, but the session that was passed in belongs to no scope, and its "
            "transaction may have begun otherwise; leave the session out, or pass one from a scope with these options"
        )
    return Step.SAVEPOINT if request.propagation == "savepoint" else Step.JOIN
