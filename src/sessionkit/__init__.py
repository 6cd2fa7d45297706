"""sessionkit: the session layer for SQLAlchemy. Its scopes tell the truth about their commit.

Each name is imported when you first use it, so a program loads only the parts it needs. The async names need greenlet,
which SQLAlchemy's asyncio extension is built on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "INJECTED",
    "READ_COMMITTED",
    "READ_ONLY",
    "REPEATABLE_READ",
    "REPORT",
    "REQUIRED",
    "SERIALIZABLE",
    "SNAPSHOT",
    "SYSTEM",
    "AsyncSession",
    "EffectiveIsolation",
    "Isolation",
    "Preset",
    "Retry",
    "Session",
    "SessionKitError",
    "TimestampVersioned",
    "UUIDVersioned",
    "VersionConflict",
    "Versioned",
    "XminVersioned",
    "async_scoped_session",
    "async_sessionmaker",
    "bulk",
    "bump_version",
    "commits",
    "current_session",
    "effective_isolation",
    "errors",
    "etag",
    "expect_etag",
    "expect_version",
    "locks",
    "on_commit",
    "on_rollback",
    "scoped_session",
    "session_scope",
    "sessionmaker",
    "set_rollback_only",
    "sqlite",
    "testing",
    "update_versioned",
    "version_of",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import bulk, commits, errors, locks, sqlite, testing
    from .async_factory import AsyncSession, async_scoped_session, async_sessionmaker
    from .context import current_session
    from .errors import SessionKitError, VersionConflict
    from .factory import Session, scoped_session, sessionmaker
    from .hooks import on_commit, on_rollback, set_rollback_only
    from .isolation import (
        READ_COMMITTED,
        READ_ONLY,
        REPEATABLE_READ,
        REPORT,
        SERIALIZABLE,
        SNAPSHOT,
        EffectiveIsolation,
        Isolation,
        Preset,
        effective_isolation,
    )
    from .retry import Retry
    from .scope import INJECTED, REQUIRED, SYSTEM, session_scope
    from .version import (
        TimestampVersioned,
        UUIDVersioned,
        Versioned,
        XminVersioned,
        bump_version,
        etag,
        expect_etag,
        expect_version,
        update_versioned,
        version_of,
    )
else:
    # The same names for the run time; tests/test_house.py compares the two.
    _NAMES = {
        "async_factory": ("AsyncSession", "async_scoped_session", "async_sessionmaker"),
        "context": ("current_session",),
        "errors": ("SessionKitError", "VersionConflict"),
        "factory": ("Session", "scoped_session", "sessionmaker"),
        "hooks": ("on_commit", "on_rollback", "set_rollback_only"),
        "isolation": (
            "READ_COMMITTED",
            "READ_ONLY",
            "REPEATABLE_READ",
            "REPORT",
            "SERIALIZABLE",
            "SNAPSHOT",
            "EffectiveIsolation",
            "Isolation",
            "Preset",
            "effective_isolation",
        ),
        "retry": ("Retry",),
        "scope": ("INJECTED", "REQUIRED", "SYSTEM", "session_scope"),
        "version": (
            "TimestampVersioned",
            "UUIDVersioned",
            "Versioned",
            "XminVersioned",
            "bump_version",
            "etag",
            "expect_etag",
            "expect_version",
            "update_versioned",
            "version_of",
        ),
    }
    _MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
    # `import sessionkit` is enough to reach these.
    _MODULES = {"binding", "bulk", "commits", "locks", "sqlite", "testing", *_NAMES} - {"async_factory"}

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = import_module(f"{__name__}.{_MODULE_OF[name]}")
        except ImportError as error:
            if _MODULE_OF[name] != "async_factory":
                raise
            raise ImportError(
                f"sessionkit.{name} needs greenlet, which SQLAlchemy's asyncio extension is built on; "
                "install sessionkit[asyncio]"
            ) from error
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__():
        return sorted({*globals(), *_MODULE_OF, *_MODULES})
