"""What a scope needs to know about a factory: sync or async, its defaults, how transactions on its engines begin."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from sqlalchemy import orm

from ._plan import Request
from .errors import ScopeError
from .isolation import NOTHING_ASKED

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from ._core.features.readers import Readers
    from ._dialects import Beginning
    from .isolation import Preset
    from .retry import Heat


class FactoryInfo:
    """A factory as its scopes see it. There is one record per factory, and it does not keep the factory alive."""

    __slots__ = (
        "_beginnings",
        "asynchronous",
        "defaults",
        "heats",
        "ignores_settings",
        "plain",
        "readers",
        "warns",
        "with_markers",
    )

    _of_others: ClassVar[WeakKeyDictionary[Any, FactoryInfo]] = WeakKeyDictionary()

    def __init__(self, asynchronous: bool, defaults: Request | None = None, readers: Readers | None = None) -> None:
        self.asynchronous = asynchronous
        self.defaults = defaults or Request()
        self.readers = readers
        self.heats: dict[str, Heat] = {}  # by function: those whose units keep conflicting
        self.ignores_settings = False  # if the database cannot set them, and is one that may ignore them
        self.warns = True  # about locking reads that return an object with the values loaded before
        self.plain: dict[Engine, Beginning] = {}  # for scopes without a preset
        self._beginnings: dict[Preset, dict[Engine, Beginning]] = {NOTHING_ASKED: self.plain}
        self.with_markers: set[Engine] = set()  # those whose databases are known to have the commit marker's table

    def beginnings(self, preset: Preset) -> dict[Engine, Beginning]:
        """Return how transactions with `preset` begin on the engines that have been used with it."""
        return self._beginnings.setdefault(preset, {})

    @classmethod
    def of(cls, factory: Any, asked: str) -> FactoryInfo:
        """Return the record of a factory, which may be one of plain SQLAlchemy.

        Raises:
            ScopeError: it is not a factory.
        """
        own = getattr(factory, "_sessionkit_info", None)
        if isinstance(own, FactoryInfo):
            return own
        asyncio_part = sys.modules.get("sqlalchemy.ext.asyncio")
        if isinstance(factory, orm.sessionmaker):
            asynchronous = False
        elif asyncio_part is not None and isinstance(factory, asyncio_part.async_sessionmaker):
            asynchronous = True
        else:
            raise ScopeError(_not_a_factory(factory, asked, asyncio_part))
        known = cls._of_others.get(factory)
        if known is None:
            known = cls._of_others[factory] = cls(asynchronous)
        return known


def _not_a_factory(given: object, asked: str, asyncio_part: Any) -> str:
    if isinstance(given, orm.Session) or (asyncio_part is not None and isinstance(given, asyncio_part.AsyncSession)):
        return (
            f"{asked} takes a factory, because a scope makes and closes its own session, but got the session {given!r}; "
            "pass the sessionmaker that made it"
        )
    if hasattr(given, "connect") and hasattr(given, "dialect"):
        return f"{asked} takes a factory, but got the engine {given!r}; pass sessionmaker(engine)"
    return f"{asked} takes a sessionmaker, an async_sessionmaker or a scoped session, not {given!r}"
