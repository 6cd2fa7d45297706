"""The async twins of ``factory``: `async_sessionmaker`, `async_scoped_session`, `AsyncSession`.

They are in a file of their own because SQLAlchemy 2.1 cannot import its asyncio extension without greenlet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from sqlalchemy.ext import asyncio as sa_asyncio

from ._binds import check_binds
from ._core.features import split_readers
from ._core.session import demanding
from ._factory_info import FactoryInfo
from ._methods import AsyncScopeMethods
from .errors import ScopeError
from .factory import ContextRegistry, Session, split_ignoring, split_options, split_warning

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


__all__ = ["AsyncSession", "async_scoped_session", "async_sessionmaker"]

AS = TypeVar("AS", bound=sa_asyncio.AsyncSession)
P = ParamSpec("P")
R = TypeVar("R")


class AsyncSession(sa_asyncio.AsyncSession):
    """SQLAlchemy's ``AsyncSession`` around a `sessionkit.Session`: inside a scope it refuses what that refuses."""

    sync_session_class = Session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = getattr(self.sync_session, "_sessionkit_unit", None)
        try:
            await super().__aexit__(kind, error, traceback)
        except ScopeError:  # close() by hand; show the first error instead
            if unit is None or not unit.left_by(error):
                raise


class async_sessionmaker(AsyncScopeMethods[AS], sa_asyncio.async_sessionmaker[AS]):
    """SQLAlchemy's ``async_sessionmaker`` with `scope` added. Its sessions are `sessionkit.AsyncSession` objects.

    Args:
        bind, class_, autoflush, expire_on_commit, info: as in SQLAlchemy; every other argument is passed on to its
            ``Session``.
        options: every option of `session_scope`, as the default for this factory's scopes. A default `retry` applies to
            decorated functions and `attempts`, not to a plain ``async with``.
        twophase: True: what a scope has written to several PostgreSQL databases commits as one; see `binding`.
        readers: replicas of `bind`, each an ``AsyncEngine``. A read-only scope runs on one of them for its whole transaction.
        read_your_writes: True (default): only on a reader that has replayed everything this context has committed.
        reader_wait: how long a scope waits for such a reader before it turns to the primary, in seconds; default 0.5.
        max_lag: how far a reader may be behind, in seconds; default None: any lag.
        no_reader: what to do if no reader can serve: ``"primary"`` (default) or ``"error"``, which raises
            ``NoReader``.
        allow_writable_readers: False (default): a reader that is not a replica is an error.
        settings, role: as for a scope, and also `REQUIRED`, as the value of a setting or as the role. Then no transaction
            begins without it, and a session of this factory sends nothing outside of a scope (``SettingRequired``).
        settings_on_sqlite: ``"refuse"`` (default): settings and a role are refused on SQLite, which has neither.
            ``"ignore"``: scopes must still give, and agree on, the values, but SQLite ignores them; for tests.
        warn_stale_locks: True (default): a locking read in a scope that returns an object with its old values warns with
            ``StaleRead`` at its call site, once for each line. False: no warning.

    Raises:
        OptionError: an option has a value that cannot be honoured; `bind`, or a value of `binds`, is not an engine;
            ``autocommit=True`` was given.
        SyncAsyncMismatch: an engine is sync.
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
        check_binds({"bind": bind, **kw}, True, "async_sessionmaker()")
        readers = split_readers(kw, bind, None, "async_sessionmaker()")
        warns = split_warning(kw, "async_sessionmaker()", True)
        ignores = split_ignoring(kw, "async_sessionmaker()", False)
        super().__init__(bind, class_=class_, **kw)
        info = self._sessionkit_info = FactoryInfo(True, defaults, readers)
        info.warns, info.ignores_settings = warns, ignores
        if defaults.settings.demands:
            self._demand()

    def configure(self, **new_kw: Any) -> None:
        """Change the arguments of future sessions and the defaults of future scopes."""
        info = self._sessionkit_info
        where = "async_sessionmaker.configure()"
        defaults = split_options(new_kw, where, info.defaults)
        warns = split_warning(new_kw, where, info.warns)
        ignores = split_ignoring(new_kw, where, info.ignores_settings)
        check_binds(new_kw, True, where)
        info.readers = split_readers(new_kw, new_kw.get("bind", self.kw.get("bind")), info.readers, where)
        info.defaults, info.warns, info.ignores_settings = defaults, warns, ignores
        super().configure(**new_kw)
        if defaults.settings.demands:
            self._demand()

    def _demand(self) -> None:
        """Have the sessions that no scope owns send nothing."""
        kind: Any = self.kw.get("sync_session_class") or self.class_.sync_session_class
        self.kw["sync_session_class"] = demanding(kind, self._sessionkit_info)


class async_scoped_session(AsyncScopeMethods[AS], sa_asyncio.async_scoped_session[AS]):
    """SQLAlchemy's ``async_scoped_session``: one session per task; inside a scope of its factory, the scope's session.

    Args:
        session_factory: makes the sessions.
        scopefunc: as in SQLAlchemy, a function whose result decides which session is meant. The default differs from
            SQLAlchemy's: it is the context, so that nothing outlives its task.
    """

    def __init__(
        self, session_factory: sa_asyncio.async_sessionmaker[AS], scopefunc: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(session_factory, scopefunc or _context)
        self.registry = ContextRegistry(session_factory, scopefunc)


def _context() -> None:
    """Fill in for the scopefunc that SQLAlchemy requires: `ContextRegistry` uses the context."""
