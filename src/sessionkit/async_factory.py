"""The async twins of ``factory``: `async_sessionmaker`, `async_scoped_session`, `AsyncSession`.

They stand apart because SQLAlchemy 2.1 cannot import its asyncio part without greenlet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy.ext import asyncio as sa_asyncio

from ._makers import Maker
from .factory import ContextRegistry, Session, split_options
from .scope import AsyncScope, async_attempts_of, make_scope, session_scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from ._attempts import AsyncAttempt
    from ._plan import Options

__all__ = ["AsyncSession", "async_scoped_session", "async_sessionmaker"]

AS = TypeVar("AS", bound=sa_asyncio.AsyncSession)
P = ParamSpec("P")
R = TypeVar("R")


class AsyncSession(sa_asyncio.AsyncSession):
    """SQLAlchemy's ``AsyncSession`` around a `sessionkit.Session`: what that refuses inside a scope, this refuses "
    "too."""

    sync_session_class = Session


class async_sessionmaker(sa_asyncio.async_sessionmaker[AS]):
    """SQLAlchemy's ``async_sessionmaker``, with `scope`; what it makes are `sessionkit.AsyncSession` objects.

    Args:
        bind, class_, autoflush, expire_on_commit, info: as in SQLAlchemy; every other argument of its ``Session`` goes
        through. propagation, name: defaults for the scopes of this factory, see `session_scope`.

    Raises:
        OptionError: an option has a value that cannot be honoured; ``autocommit=True`` was given.
    """

    @overload
    def __init__(
        self,
        bind: Any = ...,
        *,
        class_: type[AS],
        autoflush: bool = ...,
        expire_on_commit: bool = ...,
        info: dict[Any, Any] | None = ...,
        **kw: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: async_sessionmaker[AsyncSession],
        bind: Any = ...,
        *,
        autoflush: bool = ...,
        expire_on_commit: bool = ...,
        info: dict[Any, Any] | None = ...,
        **kw: Any,
    ) -> None: ...
    def __init__(self, bind: Any = None, *, class_: type[Any] = AsyncSession, **kw: Any) -> None:
        defaults = split_options(kw, "async_sessionmaker()")
        super().__init__(bind, class_=class_, **kw)
        self._sessionkit_maker = Maker(True, defaults)

    def configure(self, **new_kw: Any) -> None:
        """Change the arguments of sessions and the defaults of scopes that are made from now on."""
        maker = self._sessionkit_maker
        maker.defaults = split_options(new_kw, "async_sessionmaker.configure()", maker.defaults)
        super().configure(**new_kw)

    @overload
    def scope(
        self, fn: Callable[Concatenate[AS, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, /, **options: Unpack[Options]) -> AsyncScope[AS]: ...
    def scope(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Open a scope of this factory: ``async with Session.scope() as session``, or as a decorator.

        The same as ``session_scope(Session, ...)``; see `session_scope` for the promise, the options and the SQL.
        """
        made = make_scope(self._sessionkit_maker, self, options)  # type: ignore[arg-type]
        return made if fn is None else made(fn)

    def attempts(self, **options: Unpack[Options]) -> AsyncIterator[AsyncAttempt[AS]]:
        """Run a ``with`` body again until it has succeeded: ``async for attempt in Session.attempts(): async with attempt as session: ...``.

        Each attempt is a new session and a new transaction, and COMMIT is a part of it. Let the ``with`` be the last
        statement in the body of the ``for``: where anything else could follow, an attempt that fails raises its error
        instead of being run again.

        Args:
            options: those of `session_scope`; `retry` defaults to the factory's, else to ``Retry()``.

        Yields:
            Attempts, with ``number``, ``error``, ``errors`` and ``delay`` (see `retry.Attempt`).

        Raises:
            OptionError: a scope of this factory is open here, and is not itself retried.
        """
        return async_attempts_of(make_scope(self._sessionkit_maker, self, options))


class async_scoped_session(sa_asyncio.async_scoped_session[AS]):
    """SQLAlchemy's ``async_scoped_session``, one session per task; inside a scope of its factory, the scope's session.

    Args:
        session_factory: makes the sessions.
        scopefunc: as in SQLAlchemy: a function whose result decides whose session is meant; default, other than
            SQLAlchemy's: the context, so that nothing outlives its task.
    """

    def __init__(
        self, session_factory: sa_asyncio.async_sessionmaker[AS], scopefunc: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(session_factory, scopefunc or _context)
        self.registry = ContextRegistry(session_factory, scopefunc)

    @overload
    def scope(
        self, fn: Callable[Concatenate[AS, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def scope(self, /, **options: Unpack[Options]) -> AsyncScope[AS]: ...
    def scope(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Open a scope of the factory inside; within it this object stands for the scope's session. See "
        "`session_scope`."""
        made = session_scope(self, **options)
        return made if fn is None else made(fn)


def _context() -> None:
    """Stand in for the scopefunc that SQLAlchemy wants to be given: `ContextRegistry` goes by context."""
