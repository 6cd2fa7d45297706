"""SQLAlchemy's own factories: their sessions ignore overrides, so during a test they make sessions that do not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import orm

from ..._spi import ScopeAware, aware_class

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["is_plain", "led"]

_SYNC_CLASS = "sync_session_class"


def is_plain(factory: Any) -> bool:
    """Return whether a factory makes sessions that are not sessionkit's."""
    made = _made_by(factory)
    return made is not None and not issubclass(made, ScopeAware)


def _made_by(factory: Any) -> type[orm.Session] | None:
    kind = getattr(factory, "class_", None)
    if isinstance(kind, type) and not issubclass(kind, orm.Session):
        kind = factory.kw.get(_SYNC_CLASS) or getattr(kind, _SYNC_CLASS, None)  # the sync class of an AsyncSession
    return kind if isinstance(kind, type) and issubclass(kind, orm.Session) else None


@contextmanager
def led(factory: Any) -> Generator[None, None, None]:
    """Make the factory use classes derived from its own, which otherwise behave the same."""
    kind, made = factory.class_, _made_by(factory)
    assert made is not None
    aware = aware_class(made)
    given = factory.kw.get(_SYNC_CLASS)
    # Each factory has its own class: SQLAlchemy derives one for listeners.
    factory.class_ = aware if kind is made else type(kind.__name__, (kind,), {_SYNC_CLASS: aware})
    if given is not None:
        factory.kw[_SYNC_CLASS] = aware
    try:
        yield
    finally:
        factory.class_ = kind
        if given is not None:
            factory.kw[_SYNC_CLASS] = given
