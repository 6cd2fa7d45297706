"""``once=``: a unit whose key is claimed before its body, in its own transaction, and whose answer is stored with it.

The second caller waits for the first at the claim. At READ COMMITTED the next statement sees what the first has committed.
Above it the claim fails with 40001, because its snapshot is older than the wait, and the unit begins again before its body
has run. The claim is answered before COMMIT is sent, so it also shows how a lost COMMIT has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ... import _claims, _dialects
from ..._binds import primary_of
from ..._mutex import shown
from ..._once import BeginAgain, dumped, loaded
from ...context import State
from ...errors import NotLocked, OnceMismatch, ScopeError, SessionKitError, classify, describe
from ...isolation import Preset
from .. import seams
from ..connection import WITH_COMMIT, ScopeConnection, connect
from ..savepoints import is_committed
from .base import Feature
from .deadline import Watchdog
from .mutex import begin_with_it, bounded, refuse_waiting_for_oneself

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import SessionTransaction

    from ... import _markers
    from ..._once import Once as Asked

_NOTHING: Mapping[str, Any] = {}


class Claim:
    """A key that was claimed for a unit or a joined scope, or found with the result of the one before.

    Args:
        asked: the key, the fingerprint, and how results are stored.
        connection: which has it.
        found: its row.
    """

    __slots__ = ("_asked", "_kept", "_stored", "connection", "mine", "replayed")

    def __init__(self, asked: Asked, connection: Connection, found: _claims.Found) -> None:
        self._asked = asked
        self.connection: Connection | None = connection
        self.mine = found.claim
        self.replayed = not found.mine
        self._stored = found
        self._kept: tuple[str, bytes] | None = None

    @property
    def name(self) -> _claims.Name:
        """The key, and of which kind it is."""
        return _claims.Name(self._asked.key, self._asked.kind)

    def answer(self) -> Any:
        """Return the result of the unit that has used the key before."""
        stored = self._stored
        assert stored.result is not None
        return loaded(stored.state, stored.result, self._asked.codec)

    def keep(self, result: Any) -> None:
        """Take the result of the body, to be stored with its transaction.

        Raises:
            OnceResult: it cannot be stored.
        """
        self._kept = dumped(result, self._asked.codec, self._asked.key)

    @property
    def has_result(self) -> bool:
        """Whether `keep` was called."""
        return self._kept is not None

    def store(self, options: Mapping[str, Any] = _NOTHING) -> None:
        """Write the result into the row of the key. I/O.

        Raises:
            ScopeError: the row is gone.
        """
        if self._kept is None or self.connection is None:
            return
        state, result = self._kept
        if not _claims.keep(self.connection, self.name, self.mine, state, result, options):
            raise ScopeError(
                f"the key {self.name.key!r} of once= was claimed before the body, and is not there any more: the body has "
                "rolled back behind it or deleted it; open savepoints inside the function instead"
            )

    def left(self) -> None:
        """Let go of the connection."""
        self.connection = None


class Once(Feature):
    """The keys that a unit has claimed: its own, and those of scopes that have joined it.

    Args:
        unit: whose transaction has them.
        own: claim the one that the unit itself was asked for, as it is entered.
    """

    claim: Claim | None

    def __init__(self, unit: Any, *, own: bool = True) -> None:
        super().__init__(unit)
        self.asks = own
        self.claim = None
        self._held: list[tuple[_claims.Name, SessionTransaction | None]] = []
        if own:
            asked: Asked = unit.request.once
            self.key = asked.key
            refuse_waiting_for_oneself(unit, Once, _claims.Name(asked.key, asked.kind), f"once={asked.key!r}")

    def holds(self, name: _claims.Name) -> bool:
        """Return whether the unit's transaction has claimed a key."""
        return any(held == name and (level is None or self.unit.levels().survives(level)) for held, level in self._held)

    # -- the claim --------------------------------------------------------------------------------------------------

    def entering(self) -> None:
        claim = self.claim = self._claim(self.unit.request.once, joined=False)
        if claim.replayed:
            self.state = State.ROLLED_BACK  # however its COMMIT ends: there is nothing to commit
            connection: Any = claim.connection
            # The rollback of a session on the user's own connection would end what that is in.
            own = getattr(connection, "unit", None) is self.unit
            self.unit.rollback_only = own and _claims.keys_of(connection).writes
            return
        for feature in self.unit.features:
            feature.claimed()

    def join(self, asked: Asked) -> Claim:
        """Claim the key of a scope that has joined the unit. In a savepoint, for the unit may go on.

        Raises:
            NotLocked: another unit has it, and has not ended in time.
            OnceMismatch: it was used with other arguments.
            ScopeError: an enclosing scope has claimed it in another transaction, so the wait would be for itself.
        """
        name = _claims.Name(asked.key, asked.kind)
        if not self.holds(name):
            refuse_waiting_for_oneself(self.unit, Once, name, f"once={asked.key!r}")
        return self._claim(asked, joined=True)

    def _claim(self, asked: Asked, *, joined: bool) -> Claim:
        unit, name = self.unit, _claims.Name(asked.key, asked.kind)
        bind = primary_of(unit.session) or unit.session.get_bind()
        locks = _dialects.of(bind).locks
        begins = locks is not None and locks.begins
        wait = bounded(asked.wait, None)
        if begins and asked.wait is not None and not joined:
            begin_with_it(unit, bind, locks, wait)
        try:
            connection: Connection = unit.session.connection(bind_arguments={"bind": bind})
        except DBAPIError as error:
            if begins and asked.wait is not None and classify(error).kind in ("busy", "locked"):
                raise _not_had(error, unit, name, wait) from error
            raise
        _claims.keys_of(connection)
        own = getattr(connection, "unit", None) is unit and not joined
        savepoint = None if own else connection.begin_nested()
        try:
            before = None if begins or wait is None or locks is None else locks.bound(connection, max(wait, 0.001))
            found = _claims.claim(connection, name, asked.fingerprint, asked.ttl)
            if before is not None and locks is not None:
                locks.unbound(connection, before)
        except DBAPIError as error:
            self._refused(error, connection, savepoint, name, wait)
            raise
        if savepoint is not None:
            savepoint.commit()
        self._check(found, asked)
        if found.mine:
            at = unit.session.get_nested_transaction()
            if at is not None:
                unit.levels()  # it goes with its savepoint
            self._held.append((name, at))
        return Claim(asked, connection, found)

    def _refused(
        self, error: DBAPIError, connection: Connection, savepoint: Any, name: _claims.Name, wait: float | None
    ) -> None:
        """Say what the error of a claim means, where it is not the driver's to say; undo what it has left."""
        if connection.invalidated:
            return
        meaning = classify(error)
        if meaning.code == "40001" and savepoint is None:
            raise BeginAgain from error
        # Where it is the unit's first statement there is nothing to lose but the transaction, which ends with it.
        pooled: Any = connection.connection.dbapi_connection
        (pooled if savepoint is None else savepoint).rollback()
        if meaning.kind == "lock_not_available":
            raise _not_had(error, self.unit, name, wait) from error
        if meaning.retryable or meaning.kind in ("busy", "locked"):
            return
        _claims.refuse_missing(connection, error, "once= was asked for")

    def _check(self, found: _claims.Found, asked: Asked) -> None:
        if found.fingerprint != asked.fingerprint:
            raise OnceMismatch(
                f"the key {asked.key!r} of once= was used before with other arguments: their fingerprint is "
                f"{found.fingerprint!r}, that of this call is {asked.fingerprint!r}; a key stands for one call and its "
                "repetitions, so take another key",
                asked.key,
            )
        if not found.mine and found.state == _claims.PENDING:
            raise ScopeError(
                f"once={asked.key!r} was asked for inside the unit that works on this key, which has no result yet: a unit "
                "cannot answer itself; take another key"
            )

    # -- the end ----------------------------------------------------------------------------------------------------

    def permitted(self, held: list[Connection]) -> None:
        claim = self.claim
        if claim is None or claim.replayed:
            return
        unit, connection = self.unit, claim.connection
        assert connection is not None
        if not claim.has_result:
            raise ScopeError(f"{unit} has no result to store under the key {claim.name.key!r} of once=")
        as_one = any(feature.two_phases for feature in unit.features)
        if len(held) > 1 and not as_one:
            raise ScopeError(
                f"once= was asked for, but {unit} has written to {len(held)} databases, which do not commit as one; use "
                "twophase=True, or a unit for each"
            )
        options: Mapping[str, Any] = _NOTHING
        if not as_one:
            unit.question = self._ask
            if (
                isinstance(connection, ScopeConnection)
                and connection.unit is unit
                and is_committed(unit.transaction, connection)
            ):
                connection.marker = _dialects.of(connection).with_commit(connection)
                options = _NOTHING if connection.marker is None else {WITH_COMMIT: True}
        claim.store(options)

    def _ask(self, seconds: float) -> _markers.Verdict:
        claim, engine = self.claim, self._engine
        assert claim is not None
        try:
            return "committed" if _has_committed(engine, claim, seconds, self.unit.asynchronous) else "rolled back"
        except (SQLAlchemyError, SessionKitError, OSError):
            raise
        except Exception as error:
            # asyncpg's own errors come unwrapped while it connects; the next try may find the server back.
            raise ConnectionError(f"the connection for asking could not be used: {describe(error)}") from error

    @property
    def _engine(self) -> Engine:
        bind = primary_of(self.unit.session) or self.unit.session.get_bind()
        engine: Engine = bind.engine
        return engine

    def ended(self) -> None:
        self._held.clear()
        if self.claim is not None:
            self.claim.left()


def _not_had(error: DBAPIError, unit: Any, name: _claims.Name, wait: float | None) -> NotLocked:
    within = "in time" if wait is None else f"within {shown(wait)}"
    message = f"{unit} waited for another unit with the key {name.key!r} of once=, which has not ended {within}"
    return NotLocked.of(error, message)


def _has_committed(engine: Engine, claim: Claim, seconds: float, asynchronous: bool) -> bool:
    """Find out on a new connection whether the unit with a claim was committed; leave nothing behind."""
    override = seams.override_of(engine)
    if override is not None:
        side = override.side_connection()
        with side.begin_nested() as savepoint:
            committed = _claims.has_committed(side, claim.name, claim.mine)
            savepoint.rollback()
            return committed
    beginning = _dialects.of(engine).beginning(engine, Preset(lock_timeout=seconds))
    with (
        connect(engine, beginning) as connection,
        Watchdog(seconds + 0.5, lambda: [connection], asynchronous),  # should the server not keep its own time
        connection.begin() as transaction,
    ):
        committed = _claims.has_committed(connection, claim.name, claim.mine)
        transaction.rollback()
        return committed


def join_once(unit: Any, request: Any) -> Claim:
    """Claim the key of a joining scope. I/O."""
    feature: Once | None = unit.feature(Once)
    if feature is None:
        feature = Once(unit, own=False)
        unit.features = (*unit.features, feature)
    return feature.join(request.once)
