"""`scope`, `run` and `attempts` of every factory and scoped session of sessionkit, sync and async side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from ._attempts import AsyncAttempts, SyncAttempts, async_attempts, attempts
from .scope import session_scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from ._attempts import AsyncAttempt, SyncAttempt
    from ._plan import Options
    from .scope import AsyncScope, Scope

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class ScopeMethods(Generic[S]):
    """The methods of a sync factory or scoped session."""

    @overload
    def scope(self, fn: Callable[Concatenate[S, P], R], /) -> Callable[P, R]: ...
    @overload
    def scope(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def scope(self, /, **options: Unpack[Options]) -> Scope[S]: ...  # type: ignore[type-var]
    def scope(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Open a scope: ``with Session.scope() as session``, or as a decorator, bare or with options.

        Does the same as ``session_scope(Session, ...)``; see `session_scope` for the promise, the options and the SQL.
        """
        made = session_scope(self, **options)  # type: ignore[call-overload]
        return made if fn is None else made(fn)

    def run(self, fn: Callable[Concatenate[S, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn(session, *args, **kwargs)`` in a scope and return what it returns.

        ``Session.run(fn, 7)`` is what calling ``fn(7)`` would be if ``fn`` were decorated with ``@Session.scope``, retries
        included. Use it for lambdas, and for functions that you cannot decorate. To pass options, write
        ``Session.scope(retry=5).run(fn, 7)``.

        Raises:
            SyncAsyncMismatch: `fn` is async.
            ScopeError: `fn` is not a function, or is a generator function.
        """
        scope: Any = session_scope(self)  # type: ignore[call-overload]
        result: R = scope.run(fn, *args, **kwargs)
        return result

    def attempts(self, **options: Unpack[Options]) -> Iterator[SyncAttempt[S]]:
        """Run a ``with`` body again until it has succeeded.

        ``for attempt in Session.attempts(): with attempt as session: ...``. Each attempt is a new session and a new
        transaction, and its COMMIT is part of it. Make the ``with`` the last statement in the body of the ``for``:
        if anything else could follow, a failed attempt raises its error instead of running again. If you leave the loop
        while a failed attempt waits for the next one (``itertools.islice``, ``zip``, ``break``), it logs an error to
        ``"sessionkit"`` and warns with a ``RuntimeWarning``.

        Args:
            options: those of `session_scope`; `retry` defaults to the factory's, else to ``Retry()``.

        Yields:
            Attempts, with ``number``, ``error``, ``errors`` and ``delay`` (see `retry.Attempt`).

        Raises:
            OptionError: a scope of this factory is open here, and it is not retried.
        """
        scope: Any = session_scope(self, **options)  # type: ignore[call-overload]
        return SyncAttempts(attempts(scope, scope._repeating()))


class AsyncScopeMethods(Generic[S]):
    """The methods of an async factory or scoped session."""

    @overload
    def scope(
        self, fn: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, /, **options: Unpack[Options]) -> AsyncScope[S]: ...  # type: ignore[type-var]
    def scope(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Open a scope: ``async with Session.scope() as session``, or as a decorator, bare or with options.

        Does the same as ``session_scope(Session, ...)``; see `session_scope` for the promise, the options and the SQL.
        """
        made = session_scope(self, **options)  # type: ignore[call-overload]
        return made if fn is None else made(fn)

    async def run(self, fn: Callable[Concatenate[S, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``fn(session, *args, **kwargs)`` in a scope and return its result.

        Like the sync factory's `run`, with an async function, or with a lambda that returns an awaitable.

        Raises:
            SyncAsyncMismatch: `fn` is not async.
            ScopeError: `fn` is not a function, or is a generator function.
        """
        scope: Any = session_scope(self)  # type: ignore[call-overload]
        result: R = await scope.run(fn, *args, **kwargs)
        return result

    def attempts(self, **options: Unpack[Options]) -> AsyncIterator[AsyncAttempt[S]]:
        """Run an ``async with`` body again until it has succeeded.

        ``async for attempt in Session.attempts(): async with attempt as session: ...``; otherwise like the sync
        factory's `attempts`.
        """
        scope: Any = session_scope(self, **options)  # type: ignore[call-overload]
        return AsyncAttempts(async_attempts(scope, scope._repeating()))
