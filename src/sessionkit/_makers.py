"""What a scope has to know of a factory: its colour, its defaults, and the engines its sessions talk to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from sqlalchemy import orm

from ._plan import Request
from ._unit.routes import Routes
from .errors import ScopeError

if TYPE_CHECKING:
    from ._unit.readers import Readers
    from .isolation import Preset


class Maker:
    """A factory as its scopes see it, one record per factory. It does not keep the factory alive."""

    __slots__ = ("_routes", "asynchronous", "defaults", "readers")

    _of_others: ClassVar[WeakKeyDictionary[Any, Maker]] = WeakKeyDictionary()

    def __init__(self, asynchronous: bool, defaults: Request | None = None, readers: Readers | None = None) -> None:
        self.asynchronous = asynchronous
        self.defaults = defaults or Request()
        self.readers = readers
        self._routes: dict[Preset, Routes] = {}

    def routes(self, preset: Preset) -> Routes:
        """Return the engines that scopes with `preset` talk to."""
        routes = self._routes.get(preset)
        if routes is None:
            routes = self._routes[preset] = Routes(preset)
        return routes

    @classmethod
    def of(cls, factory: Any, asked: str) -> Maker:
        """Return the record of a factory, also of a plain SQLAlchemy one.

        Raises:
            ScopeError: it is no factory.
        """
        own = getattr(factory, "_sessionkit_maker", None)
        if isinstance(own, Maker):
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
            f"{asked} takes a factory, because a scope makes the session that it closes, but got the session "
            f"{given!r}; "
            "pass the sessionmaker that made it"
        )
    if hasattr(given, "connect") and hasattr(given, "dialect"):
        return f"{asked} takes a factory, but got the engine {given!r}; pass sessionmaker(engine)"
    return f"{asked} takes a sessionmaker, an async_sessionmaker or a scoped session, not {given!r}"
