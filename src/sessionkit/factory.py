"""Factories: `sessionmaker` and `scoped_session`, SQLAlchemy's own with scopes added.

Each class here is a subclass of the SQLAlchemy class with the same name, and behaves like it except for what it adds.
The async twins are in ``async_factory``, which cannot be imported without greenlet.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from sqlalchemy import orm
from sqlalchemy.util import ScopedRegistry

from ._binds import check_binds
from ._core.features import split_readers
from ._core.session import AwareSession, demanding
from ._factory_info import FactoryInfo
from ._methods import ScopeMethods
from ._plan import Options, Request
from .context import factory_key, here, innermost
from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["Session", "scoped_session", "sessionmaker"]

S = TypeVar("S", bound=orm.Session)
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Session(AwareSession):
    """SQLAlchemy's ``Session``. Inside a scope it refuses calls that would break the scope's promise.

    Inside a scope ``commit()``, ``rollback()``, ``close()`` and ``reset()`` raise ``ScopeError``. A second thread or
    task that calls into the session while one is inside gets ``ConcurrentUse``. Outside of scopes it is SQLAlchemy's.
    """


def split_options(kw: dict[str, Any], where: str, defaults: Request | None = None) -> Request:
    """Take the scope options out of a factory's arguments and return them, checked."""
    if kw.get("autocommit"):
        raise OptionError(
            f"autocommit=True was given to {where}, but SQLAlchemy 2 has no such mode; open a scope for each unit of work, "
            "or give the engine isolation_level='AUTOCOMMIT' if each statement should commit on its own"
        )
    known = Options.__annotations__
    options = {name: kw.pop(name) for name in list(kw) if name in known}
    return (defaults or Request()).but(options, where, defaults=True)


def split_warning(kw: dict[str, Any], where: str, before: bool) -> bool:
    """Take ``warn_stale_locks`` out of a factory's arguments and return it, checked."""
    given: object = kw.pop("warn_stale_locks", before)
    if not isinstance(given, bool):
        raise OptionError(f"warn_stale_locks={given!r} was given to {where}; it is True or False")
    return given


def split_ignoring(kw: dict[str, Any], where: str, before: bool) -> bool:
    """Take ``settings_on_sqlite`` out of a factory's arguments and return whether they are ignored there."""
    given: object = kw.pop("settings_on_sqlite", "ignore" if before else "refuse")
    if given not in ("refuse", "ignore"):
        raise OptionError(f"settings_on_sqlite={given!r} was given to {where}; it is 'refuse' or 'ignore'")
    return given == "ignore"


class sessionmaker(ScopeMethods[S], orm.sessionmaker[S]):
    """SQLAlchemy's ``sessionmaker`` with `scope` added. Its sessions are `sessionkit.Session` objects.

    Args:
        bind, class_, autoflush, expire_on_commit, info: as in SQLAlchemy; every other argument is passed on to its
            ``Session``.
        options: every option of `session_scope`, as the default for this factory's scopes. A default `retry` applies to
            decorated functions, `run` and `attempts`, not to a plain ``with``.
        twophase: True: what a scope has written to several PostgreSQL databases commits as one; see `binding`.
        readers: replicas of `bind`, each an ``Engine``. A read-only scope runs on one of them for its whole transaction.
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
        SyncAsyncMismatch: an engine is async.
    """

    @overload
    def __init__(
        self,
        bind: Any = ...,
        *,
        class_: type[S],
        autoflush: bool = ...,
        expire_on_commit: bool = ...,
        info: dict[Any, Any] | None = ...,
        **kw: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: sessionmaker[Session],
        bind: Any = ...,
        *,
        autoflush: bool = ...,
        expire_on_commit: bool = ...,
        info: dict[Any, Any] | None = ...,
        **kw: Any,
    ) -> None: ...
    def __init__(self, bind: Any = None, *, class_: type[Any] = Session, **kw: Any) -> None:
        defaults = split_options(kw, "sessionmaker()")
        check_binds({"bind": bind, **kw}, False, "sessionmaker()")
        readers = split_readers(kw, bind, None, "sessionmaker()")
        warns = split_warning(kw, "sessionmaker()", True)
        ignores = split_ignoring(kw, "sessionmaker()", False)
        super().__init__(bind, class_=class_, **kw)
        info = self._sessionkit_info = FactoryInfo(False, defaults, readers)
        info.warns, info.ignores_settings = warns, ignores
        if defaults.settings.demands:
            self.class_ = demanding(self.class_, info)

    def configure(self, **new_kw: Any) -> None:
        """Change the arguments of future sessions and the defaults of future scopes."""
        info = self._sessionkit_info
        where = "sessionmaker.configure()"
        defaults = split_options(new_kw, where, info.defaults)
        warns = split_warning(new_kw, where, info.warns)
        ignores = split_ignoring(new_kw, where, info.ignores_settings)
        check_binds(new_kw, False, where)
        info.readers = split_readers(new_kw, new_kw.get("bind", self.kw.get("bind")), info.readers, where)
        info.defaults, info.warns, info.ignores_settings = defaults, warns, ignores
        super().configure(**new_kw)
        if defaults.settings.demands:
            self.class_ = demanding(self.class_, info)


class ContextRegistry(ScopedRegistry[T]):
    """The session of a scoped session: inside a scope, the scope's; otherwise one per thread and task.

    Args:
        create: makes a session.
        scopefunc: as in SQLAlchemy: outside of scopes, its result decides which session is meant.
    """

    def __init__(self, create: Callable[[], T], scopefunc: Callable[[], Any] | None) -> None:
        self.createfunc = create
        self._key = factory_key(create)
        self._keyed = None if scopefunc is None else ScopedRegistry(create, scopefunc)
        self._own: ContextVar[tuple[object, T] | None] = ContextVar("sessionkit_scoped_session", default=None)

    def _ambient(self) -> T | None:
        entry = innermost(self._key, here())
        return None if entry is None else cast("T", entry.handed)

    def _find(self) -> T | None:
        if self._keyed is not None:
            return self._keyed() if self._keyed.has() else None
        own = self._own.get()
        # A child task inherits a copy of the context, but must not use its parent's session.
        return own[1] if own is not None and own[0] == _reference(here()) else None

    def __call__(self) -> T:
        found = self._ambient() or self._find()
        if found is None:
            found = self.createfunc()
            self.set(found)
        return found

    def has(self) -> bool:
        return self._ambient() is not None or self._find() is not None

    def set(self, obj: T) -> None:
        if self._keyed is not None:
            self._keyed.set(obj)
        else:
            self._own.set((_reference(here()), obj))

    def clear(self) -> None:
        if self._keyed is not None:
            self._keyed.clear()
        elif self._find() is not None:
            self._own.set(None)


def _reference(owner: object) -> object:
    # A task holds its context: if a value in the context held the task, both would live until the next garbage collection.
    return owner if isinstance(owner, int) else weakref.ref(owner)


class scoped_session(ScopeMethods[S], orm.scoped_session[S]):
    """SQLAlchemy's ``scoped_session``: one session per thread and task; inside a scope, the scope's session.

    SQLAlchemy's own keeps one per thread, which under asyncio gives all tasks the same session. This one uses the context.

    Args:
        session_factory: makes the sessions.
        scopefunc: as in SQLAlchemy, a function whose result decides which session is meant; default: the context.

    ``remove()`` closes the session and forgets it, like SQLAlchemy's. Inside a scope it raises ``ScopeError``, because
    the scope closes its own session.
    """

    def __init__(self, session_factory: orm.sessionmaker[S], scopefunc: Callable[[], Any] | None = None) -> None:
        super().__init__(session_factory, scopefunc)
        self.registry = ContextRegistry(session_factory, scopefunc)
