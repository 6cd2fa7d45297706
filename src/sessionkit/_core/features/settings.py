"""``settings=`` and ``role=``: what a unit's transactions are set to, from BEGIN to their end, on each of its databases.

They are set where the timeouts are, in the same statement, and are local to the transaction. A savepoint scope with others
sets them inside its savepoint, whose rollback takes them back; its release does not, so they are put back after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection

from ... import _dialects
from ..._settings import InForce, narrowed, refuse_other
from ...errors import OptionError
from ..savepoints import connections
from .base import Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import Session, SessionTransaction


class TransactionSettings(Feature):
    """What a unit's transactions run with.

    Args:
        unit: the unit.
        in_force: None: what it was asked for; its functions are asked now.
    """

    def __init__(self, unit: Any, in_force: InForce | None = None) -> None:
        super().__init__(unit)
        asked: InForce = unit.request.settings.in_force(unit, unit.request.name) if in_force is None else in_force
        self.in_force = asked
        self.values = values_of(asked)  # from the beginning of each transaction on

    def check(self, engine: Engine) -> None:
        if self.values:
            refuse_unable(engine, self.unit.info.ignores_settings)

    def route(self, bind: Any) -> Any:
        if not self.values:
            return bind
        self.check(bind.engine)  # which the session may have found in a way of its own
        if isinstance(bind, Connection) and not getattr(bind, "shared", False):
            raise OptionError(
                f"settings= or role= was asked for by {self.unit}, but the session is bound to {bind!r}, whose transaction is "
                "not the scope's to begin; bind the factory to an engine, or leave the options out"
            )
        return bind

    def begins(self, beginning: Any) -> Any:
        settings = beginning.dialect.settings
        return beginning if settings is None or not self.values else settings.begin(beginning, self.values)


class Narrowing:
    """Other settings, or another role, for as long as the savepoint of a scope lasts.

    Args:
        unit: whose savepoint it is.
        in_force: what the scope runs with.
        changes: what the database has to change for that.
    """

    def __init__(self, unit: Any, in_force: InForce, changes: Mapping[str, str | None]) -> None:
        feature = unit.feature(TransactionSettings)
        if feature is None:
            feature = TransactionSettings(unit, InForce())
            unit.features = (*unit.features, feature)
        self._feature: TransactionSettings = feature
        self._outer = feature.in_force
        self._in_force = in_force
        self._changes = changes
        self._session: Session = unit.session
        self._savepoint: SessionTransaction | None = None
        self._before: list[tuple[Connection, Mapping[str, str | None]]] = []

    def begin(self, savepoint: SessionTransaction) -> None:
        """Set them on each connection of the unit, and on those that it gets meanwhile. I/O."""
        self._savepoint = savepoint
        self._feature.in_force = self._in_force
        if not self._changes:
            return
        unit, session = self._feature.unit, self._session
        event.listen(session, "after_begin", self._set)
        # Not with the first statement: the body may have a connection by another name, and send one there.
        for connection in connections(unit.transaction):
            ours = getattr(connection, "unit", None) is not None
            session.connection(bind_arguments={"bind": connection.engine if ours else connection})

    def _set(self, _: Session, transaction: SessionTransaction, connection: Connection) -> None:
        if transaction is not self._savepoint:
            return
        settings = _dialects.of(connection).settings
        if settings is None:  # where the factory has them ignored
            return
        self._before.append((connection, settings.change(connection, self._changes)))

    def end(self) -> None:
        """Have what was in force before be so again, now that the savepoint has been rolled back."""
        if self._savepoint is not None:
            self._savepoint = None
            self._feature.in_force = self._outer
            if self._changes:
                event.remove(self._session, "after_begin", self._set)

    def put_back(self) -> None:
        """Set what was in force before, after the savepoint was released. I/O."""
        self.end()
        for connection, before in reversed(self._before):
            settings = _dialects.of(connection).settings
            assert settings is not None
            settings.put_back(connection, before)


def settle(unit: Any, request: Any, savepoint: bool) -> Narrowing | None:
    """Compare what was written on a scope that takes part in a unit with what that runs with; return what to change.

    Raises:
        OptionError: it runs with something else, and the scope sets no savepoint that could change it; or the database
            cannot.
        SettingRequired: a savepoint scope would run without something that a factory demands.
    """
    asked, given, running = request.given_settings, request.given, unit.in_force
    if asked.values or asked.role is not None:
        for engine in _engines(unit):
            refuse_unable(engine, unit.info.ignores_settings)
    if not savepoint:
        refuse_other(asked, given, running, unit, request.name)
        return None
    # Not those of the unit's own request: a SYSTEM unit has dropped them.
    demanded = (unit.info.defaults.settings, request.settings)
    in_force, changes = narrowed(asked, given, running, request.name, demanded)
    return Narrowing(unit, in_force, changes) if changes or in_force != running else None


def _engines(unit: Any) -> list[Engine]:
    session = unit.session
    binds: dict[Any, Any] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return [bind.engine for bind in (session.bind, *binds.values()) if bind is not None]


def refuse_unable(engine: Engine, ignored: bool) -> None:
    """Refuse a database whose transactions cannot be set to anything.

    Raises:
        OptionError: it is one, and the factory has not said that settings are ignored there.
    """
    entry = _dialects.of(engine)
    if entry.settings is None and not (ignored and entry.settings_ignorable):
        hint = (
            'for tests the factory can say settings_on_sqlite="ignore"'
            if entry.settings_ignorable
            else "leave them out there"
        )
        raise OptionError(
            f"settings= or role= was asked for, but {entry.name} has none that end with the transaction; {hint}"
        )


def values_of(in_force: InForce) -> dict[str, str | None]:
    """Return what the database has to set, the role last."""
    return {**in_force.values} if in_force.role is None else {**in_force.values, "role": in_force.role}


def set_at_begin(unit: Any) -> dict[str, str | None]:
    """Return what the transactions of a unit are set to when they begin."""
    feature = unit.feature(TransactionSettings)
    return {} if feature is None else dict(feature.values)


def set_on(session: Session, in_force: InForce) -> None:
    """Have the transactions of a session that no scope owns run with the settings of a unit for which it works."""
    session.__dict__["_sessionkit_in_force"] = in_force
    values = values_of(in_force)

    def on_begin(_: Session, transaction: SessionTransaction, connection: Connection) -> None:
        settings = _dialects.of(connection).settings
        if transaction.parent is None and settings is not None:
            settings.change(connection, values)

    if values:
        event.listen(session, "after_begin", on_begin)


def drop_roles(unit: Any, held: list[Connection]) -> None:
    """Have what is sent from here on not be the role's doing: what it prepares, only it could commit. I/O."""
    for connection in held if unit.in_force.role is not None else ():
        settings = _dialects.of(connection).settings
        if settings is not None:
            settings.drop_role(connection)


__all__ = ["Narrowing", "TransactionSettings", "drop_roles", "set_at_begin", "set_on", "settle"]
