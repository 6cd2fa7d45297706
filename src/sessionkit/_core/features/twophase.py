"""Two-phase commit: the databases of a unit commit as one, even if a process or a server dies in the middle.

All transactions are prepared, the coordinator's (on the first database that was used) last. Then the coordinator's is
committed, and that is the decision: the others follow. The coordinator's transaction holds the unit's commit marker, so
the decision can be found out later. Participants that stay prepared are ended by ``binding.recover_prepared``.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from ... import _dialects, _markers
from ...context import State
from ...errors import OptionError, ScopeError, is_lost
from .. import seams
from ..savepoints import core_transactions, settle
from .base import Feature
from .marker import claim

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine, Transaction
    from sqlalchemy.orm import SessionTransaction

    from ..._dialects import TwoPhase
    from ...errors import Outcome

logger = logging.getLogger("sessionkit")

CLAIM_TIMEOUT = 2.0
"""How long to wait for the answer of a commit marker if no time was given, in seconds."""

_able: WeakSet[Engine] = WeakSet()
_identities: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()

_GID = re.compile(r"sessionkit\.([0-9a-f]{32})\.([0-9]+)\.([0-9a-f]{16})")


class Gid(NamedTuple):
    """The name of a transaction that sessionkit has prepared.

    Attributes:
        key: the key of the unit, and so of its commit marker.
        number: 0 is the coordinator.
        coordinator: the identity of the coordinator's database, which holds the marker.
    """

    key: str
    number: int
    coordinator: str

    def __str__(self) -> str:
        return f"sessionkit.{self.key}.{self.number}.{self.coordinator}"

    @classmethod
    def parse(cls, text: str) -> Gid | None:
        """Return the parts of the name, or None if sessionkit did not give it."""
        match = _GID.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]), match[3])


def two_phase_of(bind: Engine | Connection) -> TwoPhase:
    """Return how to do a two-phase commit on an engine.

    Raises:
        OptionError: it has no two-phase commit.
    """
    found = _dialects.of(bind).two_phase
    if found is None:
        raise OptionError(
            f"a two-phase commit was asked for, but sessionkit has none on {bind.dialect.name}, only on PostgreSQL; "
            "leave that engine out of binds=, or twophase=True out of the factory"
        )
    return found


def refuse_unable(connection: Connection) -> None:
    """Refuse a server or driver that cannot prepare transactions. Asks once for each engine.

    Raises:
        OptionError: it cannot.
    """
    engine = _dialects.root_of(connection.engine)
    if engine in _able:
        return
    why = two_phase_of(connection).refusal(connection)
    if why is not None:
        raise OptionError(f"a two-phase commit was asked for on {engine!r}, but {why}")
    _able.add(engine)


def identity_of(connection: Connection) -> str:
    """Return a name for the database of a connection. Asks once for each engine."""
    engine = _dialects.root_of(connection.engine)
    known = _identities.get(engine)
    if known is None:
        known = _identities[engine] = two_phase_of(connection).identity(connection)
    return known


def refuse_inside_two_phases(unit: Any) -> None:
    """Refuse a unit inside one whose databases commit as one, unless it commits on its own.

    Raises:
        ScopeError: it would take no part in that commit.
    """
    for outer in unit.enclosing:
        if unit.request.propagation != "new" and any(feature.two_phases for feature in outer.features):
            raise ScopeError(
                f"a scope of another factory was opened inside {outer}, whose databases commit as one: this one "
                "would not take part; use one factory with binds= for all of them, or let it commit on its own with "
                "propagation='new'"
            )


class TwoPhaseCommit(Feature):
    """Makes the unit's work in several databases commit as one."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        # The transactions begin like any others: whether they get prepared depends on how many there are at the end.
        unit.session.twophase = False
        self.two_phases = True
        self._decision: TwoPhaseDecision | None = None

    @property
    def state(self) -> State | None:  # type: ignore[override]
        """How the two-phase commit ended, if there was one."""
        return None if self._decision is None else _STATES[self._decision.outcome]

    def check(self, engine: Engine) -> None:
        two_phase_of(engine)

    def route(self, bind: Any) -> Any:
        if seams.overrides and (seams.override_of(bind) is not None or getattr(bind, "shared", False)):
            self.two_phases = False  # a savepoint cannot be prepared
            return bind
        two_phase_of(bind)
        if isinstance(bind, Connection):
            raise OptionError(
                f"twophase=True was asked for, but the session is bound to {bind!r}, whose transaction the scope must not "
                "prepare; bind the factory to an engine"
            )
        return bind

    def connected(self, connection: Any) -> None:
        if self.two_phases:
            refuse_unable(connection)
            connection.prepares = True

    def commit(self, held: list[Connection]) -> bool:
        # A single database needs no two-phase commit, and a unit that only reads has nothing to commit.
        unit = self.unit
        if not self.two_phases or len(held) < 2 or unit.preset.read_only:
            return False
        if unit.in_force.role is not None:
            from .settings import drop_roles

            drop_roles(unit, held)
        self.key = _markers.new_key()
        decision = self._decision = TwoPhaseDecision(unit.transaction, self.key, unit.asynchronous)
        if unit.request.verify_commit:
            unit.question = decision.find_out
        decision.commit()
        return True


_STATES = {"committed": State.COMMITTED, "rolled back": State.ROLLED_BACK, "unknown": State.UNKNOWN}


class _Participant(NamedTuple):
    connection: Connection
    core: Transaction
    gid: Gid


class TwoPhaseDecision:
    """The two-phase commit of one unit.

    Args:
        transaction: the unit's transaction, flushed.
        key: the key of the unit's commit marker.
        asynchronous: whether the unit is async.

    Attributes:
        outcome: how the unit ended.
    """

    def __init__(self, transaction: SessionTransaction, key: str, asynchronous: bool) -> None:
        self.outcome: Outcome = "rolled back"
        self._transaction = transaction
        self._asynchronous = asynchronous
        held = core_transactions(transaction)
        coordinator = identity_of(held[0][0])
        self._participants = [_Participant(*each, Gid(key, i, coordinator)) for i, each in enumerate(held)]
        self._engines = [participant.connection.engine for participant in self._participants]

    def commit(self) -> None:
        """Prepare all, commit the coordinator, then commit the others; if one of these fails, recovery ends it.

        Raises:
            Exception: nothing was committed, or ``outcome`` is "unknown" and everything is still prepared.
        """
        self._prepare()
        self._decide()
        for participant in self._participants[1:]:
            self._end(participant, True)
        for connection, core, _ in self._participants:
            try:
                if not connection.invalidated:
                    core.commit()  # of the empty transaction that SQLAlchemy believes is open
            except DBAPIError:
                logger.debug("a connection was lost after a two-phase commit", exc_info=True)
        settle(self._transaction)

    def _prepare(self) -> None:
        coordinator = self._participants[0]
        tried: list[_Participant] = []
        try:
            _markers.mark(coordinator.connection, coordinator.gid.key)
            for participant in reversed(self._participants):
                tried.append(participant)
                connection = participant.connection
                connection.execute(two_phase_of(connection).prepare(str(participant.gid)))
        except BaseException as error:
            if tried and isinstance(error, DBAPIError) and not is_lost(error):
                del tried[-1]  # the server has answered, so this one is rolled back
            for participant in tried:
                if participant.connection.invalidated and not isinstance(error, Exception):
                    # SQLAlchemy drops a connection on which a statement was interrupted, but its server is fine.
                    self._end_on_new_connection(participant, False)
                else:
                    self._end(participant, False)
            raise

    def _decide(self) -> None:
        first = self._participants[0]
        two_phase = two_phase_of(first.connection)
        self.outcome = "unknown"
        try:
            with two_phase.outside(first.connection):
                first.connection.execute(two_phase.end(str(first.gid), True))
        except DBAPIError as error:
            if is_lost(error):
                raise  # it may have been committed, so roll nothing back
            self.outcome = self._take_back()
            if self.outcome == "rolled back":
                for participant in self._participants[1:]:
                    self._end(participant, False)
            if self.outcome != "committed":
                raise
        self.outcome = "committed"

    def _take_back(self) -> Outcome:
        """Roll the coordinator back after its server refused to commit it."""
        try:
            return end_coordinator(
                self._engines[0], self._participants[0].gid, False, CLAIM_TIMEOUT, self._asynchronous
            )
        except (DBAPIError, OSError):
            logger.warning("a two-phase commit was refused, and could not be rolled back", exc_info=True)
            return "unknown"

    def _end(self, participant: _Participant, commit: bool) -> None:
        connection = participant.connection
        if connection.invalidated:
            logger.warning("%s is left prepared; recover_prepared() ends it", participant.gid)
            return
        two_phase = two_phase_of(connection)
        try:
            with two_phase.outside(connection):
                connection.execute(two_phase.end(str(participant.gid), commit))
        except Exception as error:
            if not two_phase.gone(error):  # if it is gone, recovery was faster, and it follows the same decision
                logger.warning("%s is left prepared; recover_prepared() ends it", participant.gid, exc_info=True)

    def find_out(self, seconds: float) -> _markers.Verdict:
        """Commit the coordinator again after its answer was lost, end the others in the same way, and return how."""
        outcome = end_coordinator(self._engines[0], self._participants[0].gid, True, seconds, self._asynchronous)
        self.outcome = outcome
        for participant in self._participants[1:]:
            self._end_on_new_connection(participant, outcome == "committed")
        return outcome

    def _end_on_new_connection(self, participant: _Participant, commit: bool) -> None:
        try:
            end_prepared(self._engines[participant.gid.number], participant.gid, commit)
        except (DBAPIError, OSError):
            logger.warning("%s is left prepared; recover_prepared() ends it", participant.gid, exc_info=True)


def end_prepared(engine: Engine, gid: Gid, commit: bool) -> bool:
    """Commit or roll back a prepared transaction on a new connection; return whether it was still there."""
    two_phase = two_phase_of(engine)
    with engine.connect() as connection:
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(two_phase.end(str(gid), commit))
        except DBAPIError as error:
            if not two_phase.gone(error):
                raise
            return False
        return True


def end_coordinator(engine: Engine, gid: Gid, commit: bool, seconds: float, asynchronous: bool) -> _markers.Verdict:
    """Commit or roll back a coordinator's prepared transaction, unless it has already ended; return how it ended.

    Raises:
        DBAPIError: there was no answer.
    """
    if end_prepared(engine, gid, commit):
        return "committed" if commit else "rolled back"
    return claim(engine, gid.key, seconds, asynchronous)
