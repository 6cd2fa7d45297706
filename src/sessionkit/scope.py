"""Scopes: begin, hand over a session, commit or roll back, close.

`Scope` and `AsyncScope` are side by side and differ only in what they await: ``_plan`` decides what to do, and ``_core``
does it.
"""

from __future__ import annotations

from dataclasses import replace
from os import getpid
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NoReturn, ParamSpec, Self, TypeVar, Unpack, overload

from sqlalchemy import orm
from sqlalchemy.util import greenlet_spawn

from ._arguments import Arguments, ask
from ._bridge import to_completion
from ._core import hooks
from ._core.joined import Joined
from ._core.session import ScopeAware, make_aware, unit_of
from ._core.unit import Unit
from ._decorate import INJECTED, async_run, form_of, run, wrap, wrap_async
from ._factory_info import FactoryInfo
from ._mutex import mutex_text
from ._observers import observers, tell_entered, tell_left
from ._once import BeginAgain
from ._plan import Options, Request, Step, plan, plan_passed
from ._settings import REQUIRED, SYSTEM
from .context import (
    Entry,
    State,
    current_of,
    factory_key,
    forked,
    get_ident,
    get_running_loop,
    here,
    innermost,
    pop,
    process,
    push,
    sync_session_of,
    top,
)
from .errors import OptionError, ScopeError, SyncAsyncMismatch, set_outcome
from .isolation import NOTHING_ASKED
from .retry import Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from sqlalchemy.ext import asyncio as sa_asyncio

    from .retry import Run

    AS = TypeVar("AS", bound=sa_asyncio.AsyncSession)
else:
    AS = TypeVar("AS")

__all__ = ["INJECTED", "REQUIRED", "SYSTEM", "AsyncScope", "Scope", "session_scope"]

H = TypeVar("H")  # what the body gets
S = TypeVar("S", bound=orm.Session)
P = ParamSpec("P")
R = TypeVar("R")


class BaseScope(Generic[H]):
    """What sync and async scopes have in common: factory, options and open entries. No I/O."""

    __slots__ = ("_beginnings", "_entries", "_factory", "_fn", "_info", "_learns", "_request")

    def __init__(self, info: FactoryInfo, factory: Any, request: Request) -> None:
        self._info = info
        self._factory = factory
        self._request = request
        self._beginnings = info.plain if request.preset is NOTHING_ASKED else info.beginnings(request.preset)
        self._fn: Callable[..., Any] | None = None  # the function it decorates
        self._learns = request.name  # the name under which the factory remembers whether its units conflict
        self._entries: dict[Entry, None] = {}

    def __repr__(self) -> str:
        name = "" if self._request.name is None else f" {self._request.name!r}"
        return f"<{type(self).__name__}{name} of {self._factory!r}>"

    def _around(self, fn: Callable[..., Any]) -> Self:
        """Return the scope for a decorated function, named after the function if it has no name."""
        request = self._request
        if request.name is None:
            request = replace(request, name=getattr(fn, "__qualname__", None))
        made = type(self)(self._info, self._factory, request)
        made._fn = fn
        if self._request.name is None:
            name = getattr(fn, "__qualname__", "<lambda>")
            made._learns = None if name.endswith("<lambda>") else f"{getattr(fn, '__module__', '')}.{name}"
        return made

    def _called_with(self, arguments: Arguments) -> Self:
        """Return the scope for one call, with the options that are functions of the call's arguments evaluated."""
        mutex, once = self._request.mutex, self._request.once
        if callable(mutex):
            mutex = ask(mutex, arguments.named, "mutex")
            mutex_text(
                mutex
            )  # refuses None: a function that forgets to return a key would make a scope without a mutex
        if once is not None:
            once = once.called_with(arguments)
        asked = replace(self._request, mutex=mutex, once=once)
        made = type(self)(self._info, self._factory, asked)
        made._fn, made._learns = self._fn, self._learns
        return made

    def _decide(self, owner: object) -> tuple[Step, Entry | None]:
        outer = innermost(self._factory, owner)
        if outer is None:
            return plan(None, self._request), None
        unit = outer.unit
        return (plan_passed(None, self._request) if unit is None else plan(unit, self._request)), outer

    def _joins(self) -> bool:
        """Return whether entering now would join an open scope; raise if the options do not allow it."""
        return self._decide(here())[0] is not Step.OPEN

    def _policy(self) -> Retry | None:
        return self._request.retry

    def _refuse_with(self) -> NoReturn:
        self._refuse_once("a plain `with`")
        raise OptionError(
            "retry= was given to a plain `with`, whose body cannot run again; decorate a function with it, or write "
            "`for attempt in Session.attempts(retry=...): with attempt as session: ...`"
        )

    def _refuse_once(self, where: str) -> None:
        """Refuse a key where the body cannot be skipped."""
        once = self._request.once
        if once is not None and not once.called:
            raise OptionError(
                f"once= was given to {where}, whose body cannot be skipped; decorate a function with it, or write "
                "`Session.scope(once=...).run(fn, ...)`, where fn is a function of a session"
            )

    def _repeating(self) -> Retry:
        """Return how attempts() runs its body again."""
        self._refuse_once("attempts()")
        return self._policy() or Retry()

    def _open(self, handed: Any, owner: object, run: Run | None) -> Unit:
        """Begin on a new session. This does no I/O: the transaction reaches the database with the first statement."""
        session = handed.sync_session if self._info.asynchronous else handed
        if not isinstance(session, ScopeAware):
            make_aware(session)
        try:
            return Unit(self, handed, session, owner, run)
        except BaseException:
            session._sessionkit_unit = None  # the unit was never in use
            session.close()
            raise

    def _entered(self, entry: Entry) -> H:
        """Make an entry the ambient one, and return what its body gets."""
        if observers:
            entry.observations = tell_entered(entry)
        self._entries[entry] = None
        push(entry)
        handed: H = entry.handed
        return handed

    def _leave(self) -> Entry:
        """Return the entry that is ending now."""
        entry = top()
        if entry is None or entry.scope is not self or entry.handed is None:
            entry = self._left_elsewhere()
        del self._entries[entry]
        return entry

    def _left_elsewhere(self) -> Entry:
        """Find the entry when a scope is left in another context than it was entered in, as some frameworks do."""
        found = list(self._entries)
        if len(found) > 1:
            owner = here()
            found = [entry for entry in found if entry.owner == owner]
        if len(found) == 1:
            return found[0]
        if not self._entries:
            raise ScopeError(f"{self!r} was left without having been entered")
        # Ending the wrong transaction would be worse than saying that we do not know which one is meant.
        raise ScopeError(
            f"{self!r} was left in another context than it was entered in, and more than one entry of it is open; "
            "make a scope for each entry"
        )

    def _plan_passed(self, session: object) -> tuple[Step, Unit | None, orm.Session]:
        sync_session = sync_session_of(session, "a decorated function")
        if isinstance(session, orm.Session) is self._info.asynchronous:
            raise SyncAsyncMismatch(f"{self!r} was given {session!r}, but one of them is sync and the other async")
        unit = unit_of(sync_session)
        return plan_passed(unit, self._request), unit, sync_session


def _settled(entry: Entry, *errors: BaseException | None) -> list[hooks.Hook]:
    """Notify the observers of an entry whose transaction has ended, and return the hooks to run now."""
    unit: Unit = entry.unit
    for error in errors:
        if error is not None:
            set_outcome(error, unit.outcome)
    if entry.observations:
        tell_left(entry, next((error for error in errors if error is not None), None))
    registered, unit.hooks, savepoints, unit.savepoints = unit.hooks, [], unit.savepoints, None
    return hooks.due(registered, unit.outcome, savepoints) if registered else []


class Scope(BaseScope[S]):
    """A unit of work in sync code: a context manager and a decorator. See `session_scope`."""

    __slots__ = ()

    def __enter__(self) -> S:
        if self._request.needs_call:
            self._refuse_with()
        return self._begin(None)

    def _begin(self, run: Run | None) -> S:
        if getpid() != process[0]:
            forked()
        owner = get_ident() if get_running_loop() is None else here()
        step, outer = Step.OPEN, None
        if top() is not None or self._request.propagation == "require":
            step, outer = self._decide(owner)
        if outer is None or step is Step.OPEN:
            unit = self._open(self._factory(), owner, run)
            for feature in unit.features:
                if feature.asks and not _enter_feature(unit, feature.entering):
                    return self._begin(run)
            return self._entered(unit)
        entry = Joined(self, outer.handed, owner, outer.unit)
        if step is not Step.JOIN or entry.begins:
            entry.begin(sync_session_of(outer.handed, "a scope"), step)
        return self._entered(entry)

    async def _begin_through(self, work: Callable[..., Awaitable[Any]], run: Run | None) -> S:
        """Enter it in this task, and have `work` call what waits for the database: a sync unit in async code."""
        while True:
            unit = self._open(self._factory(), here(), run)
            for feature in unit.features:
                if feature.asks and not await work(_enter_feature, unit, feature.entering):
                    break
            else:
                return self._entered(unit)

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._leave()
        if not isinstance(entry, Unit):
            _finish_joined(entry, error)
            return
        if entry.state is State.FORKED:
            return
        try:
            try:
                entry.finish(error)
            finally:
                pop(entry)
                for feature in entry.features:
                    feature.publish()
        except BaseException as failure:
            hooks.run(_settled(entry, failure), entry.outcome, failure)
            raise
        if error is not None or entry.observations or entry.hooks:
            hooks.run(_settled(entry, error), entry.outcome, error)

    @overload
    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `fn` wrapped in a scope: each call enters a fresh one and gets its session."""
        decorated: Callable[..., Any] = wrap(self._around(fn), fn, form_of(fn, False, "a scope"))
        return decorated

    def run(self, fn: Callable[Concatenate[S, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn(session, *args, **kwargs)`` in a scope of its own, retried as a decorated function is."""
        result: R = run(self, fn, args, kwargs)
        return result

    def _passed(self, session: object) -> CallerOwned:
        return CallerOwned(self, current_of(session))

    if not TYPE_CHECKING:  # type checkers already refuse it

        async def __aenter__(self) -> NoReturn:
            raise SyncAsyncMismatch(
                "a sync factory's scope was entered with `async with`; write `with`, or use an async_sessionmaker"
            )

        async def __aexit__(self, *exc_info: object) -> None: ...


def _enter_feature(unit: Unit, entering: Callable[[], None]) -> bool:
    """Do what is done before the body; return False if the scope must begin another unit instead."""
    try:
        entering()
    except BeginAgain as again:
        unit.finish(again)
        return False
    except BaseException as failure:
        unit.finish(failure)
        set_outcome(failure, unit.outcome)
        raise
    return True


def _finish_joined(entry: Any, error: BaseException | None) -> None:
    """End an entry that joined."""
    if entry.state is State.FORKED:
        return
    session = None if entry.only_joins else sync_session_of(entry.handed, "a scope")
    try:
        try:
            entry.finish(session, error)
        finally:
            pop(entry)
            entry.left()
    except BaseException as failure:
        if entry.observations:
            tell_left(entry, failure)
        raise
    if entry.observations:
        tell_left(entry, error)


class AsyncScope(BaseScope[AS]):
    """A unit of work in async code: an async context manager and a decorator. See `session_scope`."""

    __slots__ = ()

    async def __aenter__(self) -> AS:
        if self._request.needs_call:
            self._refuse_with()
        return await self._begin(None)

    async def _begin(self, run: Run | None) -> AS:
        if getpid() != process[0]:
            forked()
        owner = here()
        step, outer = Step.OPEN, None
        if top() is not None or self._request.propagation == "require":
            step, outer = self._decide(owner)
        if outer is None or step is Step.OPEN:
            made: Any = self._factory()
            if made.sync_session.dispatch.after_transaction_create:  # the listeners may send SQL
                unit = await greenlet_spawn(self._open, made, owner, run)
            else:
                unit = self._open(made, owner, run)
            for feature in unit.features:
                if feature.asks and not await greenlet_spawn(_enter_feature, unit, feature.entering):
                    return await self._begin(run)
            return self._entered(unit)
        entry = Joined(self, outer.handed, owner, outer.unit)
        if step is not Step.JOIN or entry.begins:
            await outer.handed.run_sync(entry.begin, step)
        return self._entered(entry)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._leave()
        if not isinstance(entry, Unit):
            await _async_finish_joined(entry, error)
            return
        if entry.state is State.FORKED:
            return
        try:
            try:
                _, cancelled = await to_completion(_async_finish(entry, error, here()))
            finally:
                pop(entry)
                for feature in entry.features:
                    feature.publish()
        except BaseException as failure:
            await hooks.async_run(_settled(entry, failure), entry.outcome, failure)
            raise
        try:
            if error is not None or cancelled is not None or entry.observations or entry.hooks:
                leaving = error if error is not None else cancelled
                await hooks.async_run(_settled(entry, error, cancelled), entry.outcome, leaving)
            if cancelled is not None:
                raise cancelled
        finally:
            leaving = cancelled = None  # its traceback holds this frame

    @overload
    def __call__(
        self, fn: Callable[Concatenate[AS, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `fn` wrapped in a scope: each call enters a fresh one and gets its session."""
        decorated: Callable[..., Any] = wrap_async(self._around(fn), fn, form_of(fn, True, "a scope"))
        return decorated

    async def run(self, fn: Callable[Concatenate[AS, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``fn(session, *args, **kwargs)`` in a scope of its own, retried as a decorated function is."""
        result: R = await async_run(self, fn, args, kwargs)
        return result

    def _passed(self, session: object) -> CallerOwned:
        return CallerOwned(self, current_of(session))

    if not TYPE_CHECKING:  # type checkers already refuse it

        def __enter__(self) -> NoReturn:
            raise SyncAsyncMismatch(
                "an async factory's scope was entered with `with`; write `async with`, or use a sessionmaker"
            )

        def __exit__(self, *exc_info: object) -> None: ...


async def _async_finish(unit: Unit, error: BaseException | None, owner: object) -> None:
    await unit.wait_until_free(owner)
    # This task works for the owner, which waits for it: let the unit's listeners see the enclosing entries too.
    enclosing, entry = [], unit.outer
    while entry is not None:
        if entry.owner == owner:
            enclosing.append(entry)
            entry.owner = here()
        entry = entry.outer
    try:
        await greenlet_spawn(unit.finish, error)
    finally:
        for entry in enclosing:
            entry.owner = owner


async def _async_finish_joined(entry: Any, error: BaseException | None) -> None:
    """End an entry that joined."""
    if entry.only_joins or entry.state is State.FORKED:
        _finish_joined(entry, error)
        return
    cancelled = None
    try:
        try:
            _, cancelled = await to_completion(_async_end_joined(entry, error))
        finally:
            pop(entry)
            entry.left()
    except BaseException as failure:
        if entry.observations:
            tell_left(entry, failure)
        raise
    try:
        if entry.observations:
            tell_left(entry, error or cancelled)
        if cancelled is not None:
            raise cancelled
    finally:
        cancelled = None  # its traceback holds this frame


async def _async_end_joined(entry: Any, error: BaseException | None) -> None:
    entry.owner = here()  # this task ends it: listeners of its flush run inside it
    await entry.handed.run_sync(entry.finish, error)


class CallerOwned:
    """The body of a function whose caller passed in a session, which stays the caller's."""

    __slots__ = ("scope", "session")

    def __init__(self, scope: Any, session: Any) -> None:
        self.scope = scope
        self.session = session

    def __enter__(self) -> None:
        step, unit, session = self.scope._plan_passed(self.session)
        self.scope._entered(Joined(self.scope, self.session, here(), unit).begin(session, step))

    def __exit__(self, exc_type: object, error: BaseException | None, traceback: object) -> None:
        _finish_joined(self.scope._leave(), error)

    async def __aenter__(self) -> None:
        step, unit, _ = self.scope._plan_passed(self.session)
        entry = Joined(self.scope, self.session, here(), unit)
        await self.session.run_sync(entry.begin, step)
        self.scope._entered(entry)

    async def __aexit__(self, exc_type: object, error: BaseException | None, traceback: object) -> None:
        await _async_finish_joined(self.scope._leave(), error)


@overload
def session_scope(
    factory: sa_asyncio.async_sessionmaker[AS] | sa_asyncio.async_scoped_session[AS], **options: Unpack[Options]
) -> AsyncScope[AS]: ...
@overload
def session_scope(factory: orm.sessionmaker[S] | orm.scoped_session[S], **options: Unpack[Options]) -> Scope[S]: ...
def session_scope(factory: Any, **options: Unpack[Options]) -> Scope[Any] | AsyncScope[Any]:
    """Begin, hand over a session, commit. A context manager and a decorator, sync or async like the factory.

    On entering, `factory` makes a session and the scope begins a transaction; the body gets the session. If the body raises
    nothing the scope commits; otherwise it rolls back and lets the exception pass. Either way it closes the session and
    gives the connection back. What the body loaded stays readable.

    If the body and the scope raise nothing, everything done in the scope is committed, except what was rolled back on
    purpose. If that was not possible, the scope raises ``UnexpectedRollback``, even if the error was swallowed inside.

    Args:
        factory: any ``sessionmaker`` or ``async_sessionmaker``, or a scoped session made from one.
        propagation: what to do if a scope of the same factory is open in this thread and task. ``"join"`` (default): take
            part in its transaction, which alone decides. ``"savepoint"``: set a savepoint, so that a failure undoes only
            this scope. ``"new"``: begin a transaction of its own on another connection. ``"require"``: join, and raise if
            none is open. ``"forbid"``: raise if one is open.
        preset, isolation, read_only, deferrable, statement_timeout, lock_timeout, idle_timeout: what you ask of the
            transaction. The others are the fields of `Preset` and override those of `preset`. Timeouts are in seconds. What
            the database cannot keep is refused before the first statement.
        retry: run the unit again after errors for which that can help: a `Retry`, or a number of attempts. For decorated
            functions, ``run`` and ``attempts()``; a plain ``with`` cannot run its body again.
        verify_commit: what to do if the answer to COMMIT is lost. False: raise ``CommitOutcomeUnknown``. True: find out
            with a marker row (`commits`). A function: call it; it gets a new session and returns True if the unit was
            committed, False if not, None if it cannot tell. It must allow for a COMMIT that is still on its way.
        commit_timeout: the longest that COMMIT may take, in seconds; then the connection is cut.
        schema_translate_map: the schema names that the unit's tables have in the database, such as
            ``{None: "tenant_1"}``. It works like SQLAlchemy's execution option, also for flushes and bulk calls, and
            replaces the engine's own. A scope that joins must ask for the same map, or for none.
        settings: PostgreSQL's settings for this transaction, such as ``{"app.tenant": 7}`` for row-level security. A mapping
            from names to a ``str``, ``int``, ``bool`` (``true``, ``false``) or ``UUID``, or to a function without arguments
            that returns one; None means no value. They are put over the factory's by name. A function is called at each
            entry and each attempt. A scope that joins must ask for the same values, or for none. With
            ``propagation="savepoint"`` it may ask for others, which last until its end. `SYSTEM` means no settings, even if
            the factory requires some; the scope needs a name then, and traces and logs show ``sessionkit.system``.
        role: the role of PostgreSQL for this transaction, or a function without arguments that returns its name; None: the
            role that has connected.
        manual_commit: what ``commit()``, ``rollback()`` and ``close()`` do when called inside the scope. ``"refuse"``
            (default): they raise ``ScopeError``. ``"savepoint"``, for applications that commit by hand: ``commit()``
            flushes and keeps the work since the last one in a savepoint, ``rollback()`` undoes it, and the transaction
            commits once, at the end of the scope. Each call site gets a ``ManualCommit`` warning once.
        mutex: let one unit at a time run in the whole system: a ``str``, ``int``, ``bytes`` or ``UUID``, a tuple of these,
            or a function of the call's arguments that returns one. On entering, before the body, the transaction takes an
            advisory lock of the database (see `locks.mutex_key`), which ends with it; on SQLite its ``BEGIN IMMEDIATE`` is
            the mutex. A scope that joins takes it in the outer transaction, which keeps it. Refused at REPEATABLE READ,
            because the snapshot would be older than the wait.
        mutex_wait: True (default): wait as long as it takes, or until ``lock_timeout`` or the timeout of `retry`. False:
            do not wait. A number: wait at most that many seconds.
        once: the key of a unit that happens once: 1 to 200 characters, or a function of the call's arguments that
            returns them. For decorated functions and ``run``; a plain ``with`` cannot skip its body. The key is claimed in
            the unit's transaction before the body. A second call waits for the first, gets its stored result, and its body
            does not run. A unit that fails leaves no key. A lost answer to COMMIT is settled by the key.
        fingerprint: what tells calls apart that must not share a key: a string, or a function of the call's arguments that
            returns one. Default: SHA-256 of the JSON of the arguments.
        codec: ``(dumps, loads)``: a function that makes ``str`` or ``bytes`` of a result, and one that reads them. Default:
            JSON.
        once_ttl: how long the key is kept, in seconds; default: 7 days.
        no_rollback_for: an exception class or a tuple of them. Such an exception passes on, but neither the scope nor one
            that it has joined rolls back because of it, unless a statement or a flush has failed.
        name: what messages call this scope; default: the name of the decorated function.

    Returns:
        A ``Scope`` or, for an async factory, an ``AsyncScope``. You can enter it again, nested, and in many threads and
        tasks at once; each entry has a state of its own.

    Raises:
        ScopeError: `factory` is not a factory, or (when entered) the propagation does not allow it.
        UnknownOptionError, OptionError: there is no such option, or it cannot have this value.
        UnexpectedRollback: (when left) the body raised nothing, but nothing could be committed.
        SettingRequired: (when entered) the factory requires a setting or a role that the scope does not have.
        NotLocked: (when entered) another transaction holds the mutex or works on the key, and did not end in time.
        OnceMismatch: (when called) the key of ``once`` was used with other arguments.
        OnceResult: (when called) the result cannot be stored.
        CommitOutcomeUnknown: (when left) the connection was lost during COMMIT.
        HookError: (when left) a hook failed after the transaction had ended; it says how that ended.

    For any exception that leaves the scope, `errors.outcome_of` says how the transaction ended.

    SQL: ``BEGIN`` with the first statement (``BEGIN IMMEDIATE`` on SQLite), ``COMMIT`` or ``ROLLBACK``. Inside another
    scope: nothing, or ``SAVEPOINT`` with the first statement, ``RELEASE SAVEPOINT`` or ``ROLLBACK TO SAVEPOINT``. With
    settings or a role ``SELECT set_config(..., true)`` follows BEGIN, one statement for them and the timeouts. With a
    mutex ``SELECT pg_advisory_xact_lock(...)`` comes first, on entering.
    """
    info = getattr(factory, "_sessionkit_info", None)
    if info is None:
        factory = factory_key(factory)
        info = FactoryInfo.of(factory, "session_scope()")
    request = info.defaults.but(options, "a scope") if options else info.defaults
    return (AsyncScope if info.asynchronous else Scope)(info, factory, request)
