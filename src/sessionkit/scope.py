"""Scopes: begin, hand over a session, commit or roll back, close.

`Scope` and `AsyncScope` stand side by side and differ in their colour words only: what to do is decided in ``_plan``,
done in ``_unit``, remembered in ``context``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy import orm

from . import hooks
from ._base_scope import BaseScope
from ._decorate import INJECTED, form_of, wrap, wrap_async
from ._inner import NO_INNER, begin_inner, finish_inner
from ._makers import Maker
from ._observers import tell_left
from ._plan import Options, Step
from ._twins import to_completion
from ._unit.unit import Unit
from .context import Entry, current_of, factory_key, here, sync_session_of
from .errors import ColourError, set_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from sqlalchemy.ext import asyncio as sa_asyncio

    from ._attempts import Run

    AS = TypeVar("AS", bound=sa_asyncio.AsyncSession)
else:
    AS = TypeVar("AS")

__all__ = ["INJECTED", "AsyncScope", "Scope", "session_scope"]

S = TypeVar("S", bound=orm.Session)
P = ParamSpec("P")
R = TypeVar("R")


class Scope(BaseScope[S]):
    """A unit of work in sync code: a context manager and a decorator. See `session_scope`."""

    __slots__ = ()

    def __enter__(self) -> S:
        self._refuse_retry()
        return self._begin(None)

    def _begin(self, run: Run | None) -> S:
        owner = here()
        step, outer = self._decide(owner)
        if step is Step.OPEN:
            return self._open(owner, run)
        assert outer is not None
        inner = NO_INNER
        if step is not Step.JOIN:
            inner = begin_inner(sync_session_of(outer.handed, "a scope"), step, outer.unit)
        self._enter(outer.unit, outer.handed, owner, False, inner)
        handed: S = outer.handed
        return handed

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._leave()
        unit = entry.unit
        if unit is None or not entry.opened:
            session = None if entry.inner is NO_INNER else sync_session_of(entry.handed, "a scope")
            (_finish_and_tell if entry.observations else finish_inner)(session, entry, error)
            return
        try:
            try:
                unit.finish(error)
            finally:
                unit.remember()
        except BaseException as failure:
            set_outcome(failure, unit.outcome)
            if entry.observations:
                tell_left(entry, failure)
            hooks.run(hooks.due(unit.hooks, unit.outcome, unit.savepoints), unit.outcome, failure)
            raise
        if error is not None:
            set_outcome(error, unit.outcome)
        if entry.observations:
            tell_left(entry, error)
        if unit.hooks:
            hooks.run(hooks.due(unit.hooks, unit.outcome, unit.savepoints), unit.outcome, error)

    @overload
    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `fn` inside a scope that each call enters afresh, with the session supplied."""
        decorated: Callable[..., Any] = wrap(self._around(fn), fn, form_of(fn, False, "a scope"))
        return decorated

    def _passed(self, session: object) -> Passed:
        return Passed(self, current_of(session))

    if not TYPE_CHECKING:  # the type checkers refuse it by themselves

        async def __aenter__(self) -> NoReturn:
            raise ColourError(
                "a sync factory's scope was entered with `async with`; write `with`, or use an async_sessionmaker"
            )

        async def __aexit__(self, *exc_info: object) -> None: ...


class Passed:
    """The body of a sync function whose caller passed a session in: the caller owns it."""

    __slots__ = ("scope", "session")

    def __init__(self, scope: Scope[Any], session: object) -> None:
        self.scope = scope
        self.session = session

    def __enter__(self) -> None:
        step, unit, session = self.scope._plan_passed(self.session)
        self.scope._enter(unit, self.session, here(), False, begin_inner(session, step, unit))

    def __exit__(self, exc_type: object, error: BaseException | None, traceback: object) -> None:
        entry = self.scope._leave()
        finish = _finish_and_tell if entry.observations else finish_inner
        finish(sync_session_of(self.session, "a scope"), entry, error)


def _finish_and_tell(session: orm.Session | None, entry: Entry, error: BaseException | None) -> None:
    try:
        finish_inner(session, entry, error)
    except BaseException as failure:
        tell_left(entry, failure)
        raise
    tell_left(entry, error)


class AsyncScope(BaseScope[AS]):
    """A unit of work in async code: an async context manager and a decorator. See `session_scope`."""

    __slots__ = ()

    async def __aenter__(self) -> AS:
        self._refuse_retry()
        return await self._begin(None)

    async def _begin(self, run: Run | None) -> AS:
        owner = here()
        step, outer = self._decide(owner)
        if step is Step.OPEN:
            return self._open(owner, run)
        assert outer is not None
        inner = NO_INNER
        if step is not Step.JOIN:
            inner = await outer.handed.run_sync(begin_inner, step, outer.unit)
        self._enter(outer.unit, outer.handed, owner, False, inner)
        handed: AS = outer.handed
        return handed

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._leave()
        unit = entry.unit
        if unit is None or not entry.opened:
            await _async_finish_inner(entry, error)
            return
        try:
            try:
                _, cancelled = await to_completion(_async_finish(entry.handed, unit, error, here()))
            finally:
                unit.remember()
        except BaseException as failure:
            set_outcome(failure, unit.outcome)
            if entry.observations:
                tell_left(entry, failure)
            await hooks.async_run(hooks.due(unit.hooks, unit.outcome, unit.savepoints), unit.outcome, failure)
            raise
        for leaving in (error, cancelled):
            if leaving is not None:
                set_outcome(leaving, unit.outcome)
        if entry.observations:
            tell_left(entry, error or cancelled)
        if unit.hooks:
            due = hooks.due(unit.hooks, unit.outcome, unit.savepoints)
            await hooks.async_run(due, unit.outcome, error or cancelled)
        if cancelled is not None:
            raise cancelled

    @overload
    def __call__(
        self, fn: Callable[Concatenate[AS, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `fn` inside a scope that each call enters afresh, with the session supplied."""
        decorated: Callable[..., Any] = wrap_async(self._around(fn), fn, form_of(fn, True, "a scope"))
        return decorated

    def _passed(self, session: object) -> AsyncPassed:
        return AsyncPassed(self, current_of(session))

    if not TYPE_CHECKING:  # the type checkers refuse it by themselves

        def __enter__(self) -> NoReturn:
            raise ColourError(
                "an async factory's scope was entered with `with`; write `async with`, or use a sessionmaker"
            )

        def __exit__(self, *exc_info: object) -> None: ...


class AsyncPassed:
    """The body of an async function whose caller passed a session in: the caller owns it."""

    __slots__ = ("scope", "session")

    def __init__(self, scope: AsyncScope[Any], session: Any) -> None:
        self.scope = scope
        self.session = session

    async def __aenter__(self) -> None:
        step, unit, _ = self.scope._plan_passed(self.session)
        self.scope._enter(unit, self.session, here(), False, await self.session.run_sync(begin_inner, step, unit))

    async def __aexit__(self, exc_type: object, error: BaseException | None, traceback: object) -> None:
        await _async_finish_inner(self.scope._leave(), error)


async def _async_finish(
    session: sa_asyncio.AsyncSession, unit: Unit, error: BaseException | None, owner: object
) -> None:
    await unit.quiet(owner)
    await session.run_sync(lambda _: unit.finish(error))


async def _async_finish_inner(entry: Entry, error: BaseException | None) -> None:
    cancelled = None
    try:
        if entry.inner is NO_INNER:
            finish_inner(None, entry, error)
        else:
            _, cancelled = await to_completion(entry.handed.run_sync(finish_inner, entry, error))
    except BaseException as failure:
        if entry.observations:
            tell_left(entry, failure)
        raise
    if entry.observations:
        tell_left(entry, error or cancelled)
    if cancelled is not None:
        raise cancelled


@overload
def session_scope(
    factory: sa_asyncio.async_sessionmaker[AS] | sa_asyncio.async_scoped_session[AS], **options: Unpack[Options]
) -> AsyncScope[AS]: ...
@overload
def session_scope(factory: orm.sessionmaker[S] | orm.scoped_session[S], **options: Unpack[Options]) -> Scope[S]: ...
def session_scope(factory: Any, **options: Unpack[Options]) -> Scope[Any] | AsyncScope[Any]:
    """Begin, hand over a session, commit. A context manager and a decorator, in the colour of the factory.

    On entering, a session is made by `factory` and a transaction begun; the body gets the session. Without an exception
    the scope commits, with one it rolls back and lets the exception pass; in any case the session is closed
    and its connection given back. What the body loaded stays readable after it.

    A scope that is entered without an exception and left without one has committed everything that was done in it, or
    it raises ``UnexpectedRollback``: also where an error was swallowed inside.

    Args:
        factory: any ``sessionmaker`` or ``async_sessionmaker``, or a scoped session made from one.
        propagation: what to do where a scope of the same factory is open in this thread and task.
            ``"join"`` (default): take part in its transaction, which alone decides. ``"savepoint"``: set a savepoint,
            so that a failure undoes this scope only. ``"new"``: a transaction of its own on another connection.
            ``"require"``: join, and it is an error if none is open. ``"forbid"``: it is an error if one is open.
        preset, isolation, read_only, deferrable, statement_timeout, lock_timeout, idle_timeout: what the
            transaction is asked to be; see `Preset`, whose fields they are, and which they change. Timeouts are in
            seconds. What the database cannot keep is refused before the first statement.
        retry: run the unit again after errors for which that can help: a `Retry`, or a number of attempts. For
            decorated functions and for ``attempts()``; a plain ``with`` cannot run its body again.
        verify_commit: what to do where the answer to COMMIT is lost. False: raise ``CommitOutcomeUnknown``. True:
            find out through a marker row (`commits`). A function: ask it; it gets a new session and answers whether
            the unit was committed: True, False, or None if it cannot tell; a COMMIT that is still on its way is its
            risk.
        commit_timeout: the longest that COMMIT may take, in seconds; then the connection is cut.
        schema_translate_map: the schema names that the unit's tables have in the database, such as
            ``{None: "tenant_1"}``; as SQLAlchemy's execution option, flushes and bulk calls included. It takes the
            place of the engine's own. A scope that joins must ask for the same, or for none.
        name: what messages call this scope; default: the name of the decorated function.

    Returns:
        A ``Scope`` or, for an async factory, an ``AsyncScope``. It is a value: it can be entered again, nested, and by
        many threads and tasks at once; each entry has a state of its own.

    Raises:
        ScopeError: `factory` is none, or the propagation does not allow what is asked (when entered).
        UnknownOptionError, OptionError: there is no such option, or it cannot have this value.
        UnexpectedRollback: (when left) the body raised nothing, but nothing could be committed.
        CommitOutcomeUnknown: (when left) the connection was lost during COMMIT.
        HookError: (when left) a hook failed after the transaction had ended; it says how it ended.

    What became of the transaction is told of any exception that leaves the scope by `errors.outcome_of`.

    SQL: ``BEGIN`` with the first statement (``BEGIN IMMEDIATE`` on SQLite), ``COMMIT`` or ``ROLLBACK``. Inside another
    scope: nothing, or ``SAVEPOINT`` with the first statement, ``RELEASE SAVEPOINT`` or ``ROLLBACK TO SAVEPOINT``.
    """
    inner = factory_key(factory)
    return make_scope(Maker.of(inner, "session_scope()"), inner, options)


def make_scope(maker: Maker, factory: Any, options: Options) -> Scope[Any] | AsyncScope[Any]:
    """Make the scope of a known factory."""
    request = maker.defaults.but(options, "a scope") if options else maker.defaults
    return AsyncScope(maker, factory, request) if maker.asynchronous else Scope(maker, factory, request)
