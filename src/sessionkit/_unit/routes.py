"""The engines that a scope's session talks to, in the place of those that it is bound to.

A preset is put into force through an engine derived from the user's, which shares its pool: that reaches every engine
that takes part in a unit, on SQLAlchemy 2.0 as on 2.1, and nothing of it is left when the connection goes back.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Engine

from .. import _dialects
from ..errors import OptionError, ScopeError
from ..isolation import Preset
from .savepoints import connections
from .watch import for_scopes, watch
from .watchdog import bound_connecting

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from .unit import Unit

_NOTHING_ASKED = Preset()
_making = threading.Lock()


class Routes:
    """From the engine that a session is bound to, to the one that scopes with a preset talk to. Kept per factory."""

    __slots__ = ("_known", "_preset")

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        # Not made anew for each unit: SQLAlchemy gives each engine object a connection of its own.
        self._known: dict[Engine, Engine] = {}

    def __call__(self, bind: Engine | Connection) -> Engine | Connection:
        """Return what to talk to, and follow what happens there from now on.

        Raises:
            OptionError: the engine cannot keep what the preset asks.
        """
        if isinstance(bind, Connection):
            watch(bind.engine)
            if self._preset != _NOTHING_ASKED:
                raise OptionError(
                    f"{self._preset} was asked for, but the session is bound to {bind!r}, whose transaction is not the "
                    "scope's to begin; bind the factory to an engine, or leave the options out"
                )
            return bind
        return self._known.get(bind) or self._make(bind)

    def _make(self, bind: Engine) -> Engine:
        # One thread at a time: a unit whose statements went to two engines would be two transactions.
        with _making:
            engine = self._known.get(bind)
            if engine is None:
                _refuse_autocommit(bind)
                dialect = _dialects.of(bind)
                bound_connecting(bind)
                watch(bind)  # first: it refuses a COMMIT by hand before the dialect takes it for the end
                engine = for_scopes(dialect.engine_for(bind, self._preset), dialect.follow)
                self._known[bind] = self._known[engine] = engine
            return engine

    def given(self, engine: Engine) -> Engine:
        """Return the user's engine for the one that was derived from it."""
        return next((bind for bind, derived in list(self._known.items()) if derived is engine is not bind), engine)


def _refuse_autocommit(engine: Engine) -> None:
    level: object = engine.get_execution_options().get("isolation_level")
    level = level or getattr(engine.dialect, "_on_connect_isolation_level", None)
    if str(level).upper() == "AUTOCOMMIT":
        raise OptionError(
            f"a scope was opened on {engine!r}, whose isolation_level is AUTOCOMMIT: each statement commits by "
            f"itself, and the scope "
            "could not take one back; use an engine without it, such as "
            "engine.execution_options(isolation_level='READ COMMITTED')"
        )


def bound_engines(session: Session) -> list[Engine]:
    """Return the engines that a session is known to be bound to, without asking for a connection."""
    # The mapping of binds= is public from SQLAlchemy 2.1 on.
    binds: dict[Any, Any] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return list({bind for bind in (session.bind, *binds.values()) if isinstance(bind, Engine)})


def check_route(unit: Unit, engine: Engine | Connection) -> None:
    """Refuse to begin on an engine where the unit could only wait for itself, or would escape a restriction."""
    if isinstance(engine, Connection) or any(c.engine is engine for c in connections(unit.transaction)):
        return
    if unit.restrictions:
        raise ScopeError(
            f"{engine!r} is used for the first time inside a read-only scope that has joined a read-write one; use it "
            f"before, or "
            "ask for propagation='new'"
        )
    for enclosing in unit.enclosing:
        for held in connections(enclosing.transaction):
            if held.dialect.name == engine.dialect.name:
                why = _dialects.of(engine).conflict(held, engine, unit.preset)
                if why is not None:
                    asked = (
                        "propagation='new' was asked for"
                        if unit.request.propagation == "new"
                        else "a scope of another factory was opened"
                    )
                    raise ScopeError(f"{asked} inside {enclosing}, but {why}; join it, or end it first")
