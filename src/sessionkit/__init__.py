"""sessionkit: the session layer for SQLAlchemy: scopes that tell the truth about their commit.

The async names are resolved at their first use, since SQLAlchemy's asyncio part needs greenlet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import bulk, commits, errors, sqlite
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
from .scope import INJECTED, session_scope
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

if TYPE_CHECKING:
    from .async_factory import AsyncSession, async_scoped_session, async_sessionmaker

__all__ = [
    "INJECTED",
    "READ_COMMITTED",
    "READ_ONLY",
    "REPEATABLE_READ",
    "REPORT",
    "SERIALIZABLE",
    "SNAPSHOT",
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
    "on_commit",
    "on_rollback",
    "scoped_session",
    "session_scope",
    "sessionmaker",
    "set_rollback_only",
    "sqlite",
    "update_versioned",
    "version_of",
]

__version__ = "0.1.0"

_ASYNC_NAMES = frozenset({"AsyncSession", "async_scoped_session", "async_sessionmaker"})


def __getattr__(name: str) -> Any:
    if name not in _ASYNC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import async_factory
    except ImportError as error:
        raise ImportError(
            f"sessionkit.{name} needs greenlet, on which SQLAlchemy's asyncio part stands; install sessionkit[asyncio]"
        ) from error
    value = globals()[name] = getattr(async_factory, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ASYNC_NAMES})
