"""What the scopes of both colours share: how an entry is decided on, opened, remembered and left. No I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sqlalchemy import orm

from ._inner import NO_INNER, Inner
from ._makers import Maker
from ._observers import observers, tell_entered
from ._plan import NOTHING_ASKED, Request, Step, plan, plan_passed
from ._unit.session import make_aware, unit_of
from ._unit.unit import Unit
from .context import Entry, here, innermost, pop, push, sync_session_of, top
from .errors import ColourError, OptionError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._attempts import Run
    from .retry import Retry

H = TypeVar("H")  # what the body is handed


class BaseScope(Generic[H]):
    """What both colours share: which factory, which options, and which entries are open."""

    __slots__ = ("_entries", "_factory", "_fn", "_maker", "_request", "_routes")

    def __init__(self, maker: Maker, factory: Any, request: Request) -> None:
        self._maker = maker
        self._factory = factory
        self._request = request
        self._routes = maker.routes(request.preset)
        self._fn: Callable[..., Any] | None = None  # what it decorates
        self._entries: dict[Entry, None] = {}

    def __repr__(self) -> str:
        name = "" if self._request.name is None else f" {self._request.name!r}"
        return f"<{type(self).__name__}{name} of {self._factory!r}>"

    def _around(self, fn: Callable[..., Any]) -> Self:
        """Return the scope for a decorated function, called as that is if it has no name."""
        request = self._request
        if request.name is None:
            request = replace(request, name=getattr(fn, "__qualname__", None))
        made = type(self)(self._maker, self._factory, request)
        made._fn = fn
        return made

    def _decide(self, owner: object) -> tuple[Step, Entry | None]:
        outer = innermost(self._factory, owner)
        if outer is None:
            return plan(None, self._request), None
        return (plan_passed(None, self._request) if outer.unit is None else plan(outer.unit, self._request)), outer

    def _joins(self) -> bool:
        """Tell whether entering now would take part in what runs; an error if the options do not allow it."""
        return self._decide(here())[0] is not Step.OPEN

    def _policy(self) -> Retry | None:
        return self._request.retry

    def _refuse_retry(self) -> None:
        if self._request.retry_given:
            raise OptionError(
                "retry= was given to a plain `with`, whose body cannot be run again; decorate a function with it, or "
                "write "
                "`for attempt in Session.attempts(retry=...): with attempt as session: ...`"
            )

    def _open(self, owner: object, run: Run | None) -> H:
        """Make a session and begin. No I/O: the transaction reaches the database with the first statement."""
        maker = self._maker
        handed = self._factory()
        session = make_aware(handed.sync_session if maker.asynchronous else handed)
        try:
            unit = Unit(
                session,
                maker.asynchronous,
                self._request,
                self._routes,
                _enclosing(owner),
                self._factory,
                run,
                maker.readers,
            )
            if unit.twophase or self._request.preset != NOTHING_ASKED:
                unit.check_options()
        except BaseException:
            session._sessionkit_unit = None  # it never was in use
            session.close()
            raise
        self._enter(unit, handed, owner, True)
        result: H = handed
        return result

    def _enter(self, unit: Unit | None, handed: Any, owner: object, opened: bool, inner: Inner = NO_INNER) -> None:
        entry = Entry(self, self._factory, unit, handed, top(), owner, opened, inner)
        if observers:
            entry.observations = tell_entered(entry)
        self._entries[entry] = None
        push(entry)

    def _leave(self) -> Entry:
        """Return the entry that ends now, no longer ambient."""
        entry = top()
        if entry is None or entry.scope is not self or not entry.live:
            entry = self._left_elsewhere()
        del self._entries[entry]
        pop(entry)
        return entry

    def _left_elsewhere(self) -> Entry:
        """Find the entry that is left in another context than it was entered in, as some frameworks do."""
        found = list(self._entries)
        if len(found) > 1:
            owner = here()
            found = [entry for entry in found if entry.owner == owner]
        if len(found) == 1:
            return found[0]
        if not self._entries:
            raise ScopeError(f"{self!r} was left without having been entered")
        # To end a stranger's transaction would be worse than to say that it is not known which one is meant.
        raise ScopeError(
            f"{self!r} was left in another context than it was entered in, and more than one entry of it is open; "
            "use a scope of its own for each"
        )

    def _plan_passed(self, session: object) -> tuple[Step, Unit | None, orm.Session]:
        sync_session = sync_session_of(session, "a decorated function")
        if isinstance(session, orm.Session) is self._maker.asynchronous:
            raise ColourError(f"{self!r} was given {session!r}, which is of the other colour")
        unit = unit_of(sync_session)
        return plan_passed(unit, self._request), unit, sync_session


NONE_ENCLOSE: list[Unit] = []


def _enclosing(owner: object) -> list[Unit]:
    """Return the units whose bodies wait until a unit that is opened now has ended."""
    entry = top()
    if entry is None:
        return NONE_ENCLOSE
    units: list[Unit] = []
    while entry is not None:
        if entry.opened and entry.live and entry.unit is not None and entry.belongs_to(owner):
            units.append(entry.unit)
        entry = entry.outer
    return units
