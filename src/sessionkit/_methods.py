"""`scope`, `run` and `attempts`, which every factory and every scoped session of sessionkit has. Sync and async side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from ._attempts import AsyncAttempts, SyncAttempts, async_attempts, attempts
from .retry import Retry
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

        The same as ``session_scope(Session, ...)``; see `session_scope` for the promise, the options and the SQL.
        """
        made = session_scope(self, **options)  # type: ignore[call-overload]
        return made if fn is None else made(fn)

    def run(self, fn: Callable[Concatenate[S, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn(session, *args, **kwargs)`` in a scope and return what it returns.

        ``Session.run(fn, 7)`` does what ``fn`` decorated with ``@Session.scope`` does when it is called with 7, retried as
        that is; for lambdas, and for functions that you cannot decorate. ``Session.scope(retry=5).run(fn, 7)`` takes
        options.

        Raises:
            SyncAsyncMismatch: `fn` is async.
            ScopeError: `fn` is no function, or a generator function.
        """
        scope: Any = session_scope(self)  # type: ignore[call-overload]
        result: R = scope.run(fn, *args, **kwargs)
        return result

    def attempts(self, **options: Unpack[Options]) -> Iterator[SyncAttempt[S]]:
        """Run a ``with`` body again until it has succeeded.

        ``for attempt in Session.attempts(): with attempt as session: ...``. Each attempt is a new session and a new
        transaction, and COMMIT is a part of it. Let the ``with`` be the last statement in the body of the ``for``:
        where anything else could follow, an attempt that fails raises its error instead of being run again. A loop that
        is left while a failed attempt waits for the next one (``itertools.islice``, ``zip``, ``break``) says so: an
        error in the log ``"sessionkit"`` and a ``RuntimeWarning``.

        Args:
            options: those of `session_scope`; `retry` defaults to the factory's, else to ``Retry()``.

        Yields:
            Attempts, with ``number``, ``error``, ``errors`` and ``delay`` (see `retry.Attempt`).

        Raises:
            OptionError: a scope of this factory is open here, and is not itself retried.
        """
        scope: Any = session_scope(self, **options)  # type: ignore[call-overload]
        return SyncAttempts(attempts(scope, scope._policy() or Retry()))


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

        The same as ``session_scope(Session, ...)``; see `session_scope` for the promise, the options and the SQL.
        """
        made = session_scope(self, **options)  # type: ignore[call-overload]
        return made if fn is None else made(fn)

    async def run(self, fn: Callable[Concatenate[S, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``fn(session, *args, **kwargs)`` in a scope and return its result.

        The same as the sync factory's `run`, with an async function, or with a lambda that returns what can be awaited.

        Raises:
            SyncAsyncMismatch: `fn` is not async.
            ScopeError: `fn` is no function, or a generator function.
        """
        scope: Any = session_scope(self)  # type: ignore[call-overload]
        result: R = await scope.run(fn, *args, **kwargs)
        return result

    def attempts(self, **options: Unpack[Options]) -> AsyncIterator[AsyncAttempt[S]]:
        """Run an ``async with`` body again until it has succeeded.

        ``async for attempt in Session.attempts(): async with attempt as session: ...``; the rest is as for the sync
        factory's `attempts`.
        """
        scope: Any = session_scope(self, **options)  # type: ignore[call-overload]
        return AsyncAttempts(async_attempts(scope, scope._policy() or Retry()))
