"""One last check, then COMMIT, then how it ended.

There are three outcomes: committed, rolled back, and unknown, if the connection was lost before the answer came. With
``verify_commit`` the third becomes one of the others. See `commits` for the facts about commit markers.

The session commits through its own ``commit()``, so that overrides of it see the end. On the way SQLAlchemy asks the
unit's transaction to prepare itself: the last check is there, after the listeners and the last flush, before any COMMIT.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, PendingRollbackError, UnboundExecutionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.session import SessionTransactionState

from .. import _dialects
from .._binds import refuse_unbound
from .._waiting import sleep
from ..context import State
from ..errors import (
    CommitOutcomeUnknown,
    Outcome,
    PartialCommit,
    ScopeError,
    UnexpectedRollback,
    add_note,
    classify,
    describe,
    is_aftermath,
    is_lost,
    message_of,
)
from .connection import Failure, ScopeConnection, failures_of
from .savepoints import commit_in_order, connections, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import SessionTransaction

_ACTIVE = SessionTransactionState.ACTIVE

Unit = Any  # unit.Unit, which builds on this file

logger = logging.getLogger("sessionkit")

VERIFY_TIMEOUT = 30.0
"""How long to keep asking for the outcome of a COMMIT if the unit has no deadline of its own, in seconds."""

ASK_AGAIN = 0.5
"""The longest wait between two questions, in seconds. The same as `Retry.reconnect_wait_max`, for the same reasons."""


class RollbackAsked(ScopeError):
    """A scope asked to be rolled back: one that has joined, or, in a listener of the last flush, the unit's own."""

    _section = UnexpectedRollback._section


# -- the check ------------------------------------------------------------------------------------------------------


def first_failure(where: SessionTransaction, unit: Unit | None) -> BaseException | None:
    """Return the first failure inside `where`, a unit's transaction or a savepoint, that nothing has undone."""
    failures: list[Failure] = []
    if unit is not None and unit.causes:
        survives = unit.levels().survives
        failures = [f for level, f in unit.causes if survives(level) and (not where.nested or within(level, where))]
    for connection in connections(where):
        log = failures_of(connection)
        failure = None if log is None else log.first(depth=log.depth if where.nested else 0)
        if failure is not None:
            failures.append(failure)
    if failures:
        return min(failures).error
    return flush_error(where)


def flush_error(transaction: SessionTransaction) -> BaseException | None:
    """Return the error of the flush that ended a transaction or savepoint.

    If a flush fails before it reaches the database, because it found a stale version, say, this is its only trace.
    """
    error: BaseException | None = getattr(transaction, "_rollback_exception", None)
    return error


def swallowed(error: BaseException) -> str:
    """Say that something failed, what it was, and what to do about it."""
    if isinstance(error, RollbackAsked):
        return message_of(error)
    first = describe(error)
    separator = "\n" if "\n" in first else "; "  # SQLAlchemy's errors have several lines
    return f"something failed inside and was swallowed; the first error was {first}{separator}{_cure(error)}"


def _cure(error: BaseException) -> str:
    if isinstance(error, DBAPIError | PendingRollbackError | StaleDataError):
        return "re-raise it, or run the part that may fail in a scope with propagation='savepoint'"
    return (
        "re-raise it, run the part that may fail in a scope with propagation='savepoint', or list it in that scope's "
        "no_rollback_for if no statement has failed"
    )


def _refuse(unit: Unit, why: str, error: BaseException | None) -> UnexpectedRollback:
    refused = UnexpectedRollback(f"nothing of {unit} was committed: {why}")
    refused.__cause__ = error
    return refused


def _looks_bad(unit: Unit) -> bool:
    """Return whether to look for a reason not to commit. If all is well it makes no call."""
    transaction = unit.transaction
    if unit.causes or transaction._rollback_exception is not None or unit.session._transaction is not transaction:
        return True
    for held in transaction._connections.values():  # noqa: SIM110 - a generator would cost a call each
        if getattr(held[0], "failures", None) is not None:
            return True
    return False


def _refuse_dead(unit: Unit) -> None:
    """Refuse a transaction that has ended, or in which something failed, before the listeners and the last flush."""
    session, transaction = unit.session, unit.transaction
    error = first_failure(transaction, unit)
    if session.get_transaction() is not transaction:
        raise _refuse(unit, "its transaction was ended by hand inside it; let the scope end it", error)
    nested = session.get_nested_transaction()
    while error is None and nested is not None:  # a savepoint that is still open
        error = flush_error(nested)
        nested = nested.parent
    if error is not None:
        raise _refuse(unit, swallowed(error), error)
    if not transaction.is_active:
        raise _refuse(unit, "its transaction was rolled back inside it; let the scope end it", None)


def _refuse_lost(unit: Unit) -> list[Any]:
    """Refuse if something has failed since, or if the connection or the server has ended the transaction.

    Returns the connections of the unit, in the order of their first use.
    """
    transaction = unit.transaction
    held: list[Any] = []
    suspicious = unit.causes or transaction._rollback_exception is not None
    for key, (connection, core, _, _) in transaction._connections.items():
        if key is not connection:
            continue
        held.append(connection)
        if (suspicious or getattr(connection, "failures", None) is not None) and (
            error := first_failure(transaction, unit)
        ) is not None:
            raise _refuse(unit, swallowed(error), error)
        if connection._dbapi_connection is None:
            raise _refuse(unit, "its connection was invalidated inside it", None)
        if not core.is_active:
            raise _refuse(unit, "its transaction was ended by hand on its connection; let the scope end it", None)
        beginning = getattr(connection, "beginning", None)
        why = (_dialects.of(connection) if beginning is None else beginning.dialect).lost(connection)
        if why is not None:
            raise _refuse(unit, why, None)
    if suspicious and not held and (error := first_failure(transaction, unit)) is not None:
        raise _refuse(unit, swallowed(error), error)
    return held


# -- commit ---------------------------------------------------------------------------------------------------------


def commit(unit: Unit, leaving: BaseException | None = None) -> None:
    """Commit a unit, and set its state.

    Args:
        unit: a unit whose body has ended.
        leaving: an exception that leaves the scope without stopping the commit.

    Raises:
        UnexpectedRollback: nothing could be committed.
        CommitOutcomeUnknown: the answer was lost, and the outcome could not be found out.
        PartialCommit: some databases have committed, or may have, and others have not.
        Exception: the error of the flush or of COMMIT, if it is certain that nothing was committed.
    """
    unit.session.expire_on_commit = False  # it is closed right after: what the body returns stays readable
    transaction = unit.transaction
    try:
        for feature in unit.features:
            feature.finishing()
        if transaction._state is not _ACTIVE or _looks_bad(unit):
            _refuse_dead(unit)
        if unit.asynchronous:
            unit.end_by("commit")
        else:
            unit.session.commit()
        if unit.state is State.ENDING:
            if unit.rollback_only:
                raise RollbackAsked
            raise _refuse(unit, "its session's commit() returned without having committed", None)
        if transaction._state is _ACTIVE:
            raise _refuse(unit, "its session's commit() returned before COMMIT", None)
        unit.state = State.COMMITTED
    except RollbackAsked:  # by a listener of the last flush, for its own scope: not an error
        unit.state = State.ROLLED_BACK
        unit.give_up_connection()
    except BaseException as error:
        state = unit.state = _state_after(unit, error)
        if state is not State.COMMITTED:
            unit.give_up_connection()
        if state is State.UNKNOWN and isinstance(error, Exception):
            _resolve(unit, error)
            if unit.state is State.COMMITTED:
                return
        if leaving is not None and isinstance(error, Exception):
            # The caller must see the first error, and `outcome_of` says for it how the unit ended.
            add_note(leaving, f"also, the scope could not be committed: {describe(error)}")
            logger.warning("%s was left by an exception that does not roll back, but it could not commit", unit)
            return
        raise


def prepare(unit: Unit, inherited: Callable[[], None]) -> None:
    """Run the listeners of before_commit and the last flush, check once more, and let COMMIT go. See `session`."""
    try:
        inherited()
    except (DBAPIError, PendingRollbackError) as error:
        # If the server refuses only because something failed earlier, report the earlier failure.
        first = first_failure(unit.transaction, unit) if is_aftermath(error) else None
        if first is None or first is error:
            raise
        raise _refuse(unit, swallowed(first), first) from first
    except UnboundExecutionError:
        refuse_unbound(unit.session)
        raise
    unit.held = held = _refuse_lost(unit)
    if unit.rollback_only:
        raise RollbackAsked
    for feature in unit.features:
        feature.permitted(held)
    unit.state = State.COMMITTING
    if len(held) > 1 or unit.features:
        for feature in unit.features:
            if feature.commit(held):
                return
        if len(held) > 1:
            commit_in_order(unit.transaction)


# -- how it ended ---------------------------------------------------------------------------------------------------


def _state_after(unit: Unit, error: BaseException) -> State:
    """Return the state of a unit whose commit raised `error`."""
    if unit.state is not State.COMMITTING:
        return State.ROLLED_BACK
    for feature in unit.features:
        known: State | None = feature.state
        if known is not None:
            return known
    held: list[Any] = unit.held
    if unit.transaction._state.name == "COMMITTED" or (held and all(each.committed for each in held)):
        return State.COMMITTED  # something failed after it: a listener of after_commit, or an override of commit()
    outcomes = _outcomes(unit, held, error)
    ends = set(outcomes.values())
    if len(ends) <= 1:
        end = ends.pop() if ends else "rolled back"
        return State.UNKNOWN if end == "unknown" else State.COMMITTED if end == "committed" else State.ROLLED_BACK
    _refuse_partial(unit, error, outcomes)
    return State.UNKNOWN


def _outcomes(unit: Unit, held: list[Any], error: BaseException) -> dict[Any, Outcome]:
    """Return how the transaction on each connection ended, those to which COMMIT was sent first."""
    sent = [each for each in held if isinstance(each, ScopeConnection) and each.sent]
    if not sent or unit.preset.read_only:
        return dict.fromkeys(held, "rolled back")
    answered = isinstance(error, DBAPIError) and not is_lost(error)
    outcomes: dict[Any, Outcome] = {
        each: "committed" if each.committed else "rolled back" if answered else "unknown" for each in sent
    }
    for each in held:
        outcomes.setdefault(each, "rolled back")
    return outcomes


def _refuse_partial(unit: Unit, error: BaseException, outcomes: dict[Any, Outcome]) -> None:
    ends: dict[Engine, Outcome] = {connection.engine: outcome for connection, outcome in outcomes.items()}
    unit.outcomes = ends
    text = ", ".join(f"{engine.url!r} is {outcome}" for engine, outcome in ends.items())
    message = (
        f"the databases of {unit} ended differently: {text}; it is not retried. With twophase=True they commit as one"
    )
    if isinstance(error, Exception):
        unit.state = State.UNKNOWN
        unit.give_up_connection()
        raise PartialCommit(message, ends) from error
    error.add_note(message)


def _resolve(unit: Unit, error: Exception) -> None:
    """Find out how a COMMIT without an answer ended; set the unit's state."""
    question = unit.question
    key = next((feature.key for feature in unit.features if feature.key is not None), None)
    if question is None:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, so it may or may not have been committed; it is not retried. "
            "With verify_commit=True the scope finds out",
            key,
        ) from error
    verdict = None
    try:
        verdict = _ask(unit, question)
    except Exception as failure:
        # The caller must learn that the outcome is unknown; why the question failed comes second.
        error.add_note(f"also, asking how it ended failed: {describe(failure)}")
        logger.exception("asking how a COMMIT of %s ended failed", unit)
    if verdict is None:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, and asking how it ended got no answer; it is not retried",
            key,
        ) from error
    unit.state = State.COMMITTED if verdict == "committed" else State.ROLLED_BACK


def _ask(unit: Unit, question: Callable[[float], Any]) -> Any:
    """Ask until there is an answer or the time is over."""
    now = time.monotonic()
    deadline = _dialects.deadline.get()
    ends = now + VERIFY_TIMEOUT if deadline is None else max(deadline, now + 0.5)
    before = _dialects.deadline.set(ends)
    longest = 0.02
    try:
        while True:
            try:
                return question(max(ends - time.monotonic(), 0.05))
            except Exception as error:
                if not isinstance(error, DBAPIError | PoolTimeout | OSError) and not classify(error).retryable:
                    raise
                logger.info("asking how a COMMIT ended failed, trying again", exc_info=error)
            left = ends - time.monotonic()
            if left <= 0:
                return None
            # With jitter: when a server dies, many units begin to ask at the same moment.
            sleep(min(random.uniform(0.0, longest), left), unit.asynchronous)  # noqa: S311 - dice
            longest = min(longest * 2, ASK_AGAIN)
    finally:
        _dialects.deadline.reset(before)
