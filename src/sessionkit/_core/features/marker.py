"""``verify_commit``: how to find out the outcome of a COMMIT whose answer was lost. See `commits` for the facts.

Either with a marker, a row that is there if and only if the unit was committed, or with a function of the application.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only

from ... import _dialects, _markers
from ..._schemas import translate
from ..._settings import NO_SETTINGS
from ...errors import OptionError, ScopeError, SessionKitError, describe
from ...isolation import Preset
from .. import seams
from ..connection import ONE, WITH_COMMIT, ScopeConnection, connect
from ..savepoints import connections, is_committed
from .base import Feature
from .deadline import Watchdog

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session


class _Verified(Feature):
    """What both ways have in common."""

    def _concerns(self, held: list[Connection]) -> bool:
        if self.unit.preset.read_only or not held or any(feature.two_phases for feature in self.unit.features):
            return False  # if several databases commit as one, the coordinator's marker answers
        if len(held) > 1:
            raise ScopeError(
                f"verify_commit= was asked for, but {self.unit} has written to {len(held)} databases, which do not "
                "commit as one; use twophase=True, or a unit for each database"
            )
        return True


class VerifiedByMarker(_Verified):
    """Writes the unit's marker in the unit's own transaction, in one message with COMMIT if the driver can do that."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        engine = unit.session.bind
        # Once for each engine of a factory. Not if the pool has only one connection: giving it back would end a transaction
        # that may be open on it.
        self.asks = (
            not unit.preset.read_only
            and isinstance(engine, Engine)
            and engine not in unit.info.with_markers
            and not isinstance(engine.pool, ONE)
            and not seams.overrides
        )

    def entering(self) -> None:
        engine = self.unit.session.bind
        try:
            with engine.connect() as connection:
                found = _markers.is_there(connection)
        except Exception:  # noqa: BLE001 - of any class: asyncpg's are not wrapped while it connects
            return  # the body's first statement fails in the same way, and can be retried
        if not found:
            raise OptionError(
                f"verify_commit=True was asked for, but {engine!r} has no table {_markers.TABLE_NAME} for the commit "
                "markers; create it with sessionkit.commits.create_table(engine), or in a migration"
            )
        self.unit.info.with_markers.add(engine)

    def permitted(self, held: list[Connection]) -> None:
        if not self._concerns(held):
            return
        connection: Any = held[0]
        unit, key = self.unit, _markers.new_key()
        self.key = key
        engine, asynchronous = connection.engine, unit.asynchronous

        def ask(seconds: float) -> Any:
            try:
                return claim(engine, key, seconds, asynchronous)
            except (SQLAlchemyError, SessionKitError, OSError):
                raise
            except Exception as error:
                # asyncpg's own errors are not wrapped while it connects; at the next try the server may be back.
                raise ConnectionError(f"the connection for asking could not be used: {describe(error)}") from error

        unit.question = ask
        if (
            isinstance(connection, ScopeConnection)
            and connection.unit is unit
            and is_committed(unit.transaction, connection)
        ):
            connection.marker = _dialects.of(connection).with_commit(connection)
        _markers.mark(connection, key, {} if connection.marker is None else {WITH_COMMIT: True})


class VerifiedByApplication(_Verified):
    """Asks a function of the application."""

    def permitted(self, held: list[Connection]) -> None:
        if self._concerns(held):
            self.unit.question = self._ask

    def _ask(self, seconds: float) -> _markers.Verdict | None:
        unit = self.unit
        session = unit.factory()
        sync_session: Session = session.sync_session if unit.asynchronous else session
        if unit.request.schemas is not None:
            translate(sync_session, unit.request.schemas)
        if unit.request.settings is not NO_SETTINGS:
            from .settings import set_on

            set_on(sync_session, unit.in_force)

        def held() -> list[Connection]:
            transaction = sync_session.get_transaction()
            return [] if transaction is None else connections(transaction)

        try:
            with Watchdog(seconds, held, unit.asynchronous):
                answer = unit.request.verify_commit(session)
                if inspect.isawaitable(answer):
                    answer = await_only(answer)
        finally:
            sync_session.close()
        if answer is not None and not isinstance(answer, bool):
            raise OptionError(
                f"the function of verify_commit= returned {answer!r}; it returns True (committed), False, or None"
            )
        return None if answer is None else "committed" if answer else "rolled back"


def claim(engine: Engine, key: str, seconds: float, asynchronous: bool) -> _markers.Verdict:
    """Find out on a new connection how the unit with the marker `key` ended, and make sure that this stays so.

    Raises:
        DBAPIError: there was no answer within `seconds`; a unit that is still open blocks it.
    """
    override = seams.override_of(engine)
    if override is not None:
        # The test undoes this claim with the rest; on a connection of its own it would wait for the test, and stay.
        return _markers.claim(override.side_connection(), key)
    beginning = _dialects.of(engine).beginning(engine, Preset(lock_timeout=seconds))
    with (
        connect(engine, beginning) as connection,
        Watchdog(seconds + 0.5, lambda: [connection], asynchronous),  # in case the server does not keep its time limit
    ):
        transaction = connection.begin()
        outcome = _markers.claim(connection, key)
        if outcome == "rolled back":  # "committed" was only read: another COMMIT is not needed, and could be lost too
            transaction.commit()
        return outcome


__all__ = ["VerifiedByApplication", "VerifiedByMarker", "claim"]
