"""Whether what was done can be kept: what is asked before a COMMIT, and before a savepoint is released."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .. import _dialects
from ..errors import ScopeError, UnexpectedRollback, message_of, told
from .savepoints import connections, core_transactions, within
from .watch import Failure, failure_log, watch

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

    from .unit import Unit

logger = logging.getLogger("sessionkit")


class RollbackAsked(ScopeError):
    """Not raised: it stands for the wish of a joined scope among the reasons of an UnexpectedRollback."""

    _section = UnexpectedRollback._section


def first_failure(where: SessionTransaction, unit: Unit | None) -> BaseException | None:
    """Return the first failure inside `where`, a unit's transaction or a savepoint, that nothing has undone."""
    failures: list[Failure] = []
    if unit is not None and unit.doomed:
        survives = unit.levels().survives
        failures = [f for level, f in unit.doomed if survives(level) and (not where.nested or within(level, where))]
    for connection in connections(where):
        log = failure_log(connection)
        failure = None if log is None else log.first(depth=log.depth if where.nested else 0)
        if failure is not None:
            failures.append(failure)
    if failures:
        return min(failures).error
    return flush_error(where)


def flush_error(transaction: SessionTransaction) -> BaseException | None:
    """Return the error of the flush that has ended a transaction or savepoint.

    A flush that failed before it reached the database, such as one that found a stale version, has left it only here.
    """
    error: BaseException | None = getattr(transaction, "_rollback_exception", None)
    return error


def obstacle(unit: Unit) -> tuple[str, BaseException | None] | None:
    """Return why nothing can be committed though the body raised nothing, or None if all is well."""
    session, transaction = unit.session, unit.transaction
    error = first_failure(transaction, unit)
    if session.get_transaction() is not transaction:
        return "its transaction was ended by hand inside it", error
    nested = session.get_nested_transaction()
    while error is None and nested is not None:  # a savepoint that was left open
        error = flush_error(nested)
        nested = nested.parent
    if error is not None:
        return swallowed(error), error
    if not transaction.is_active:
        return "its transaction was rolled back inside it", None
    return _lost_on(transaction)


def obstacle_on(transaction: SessionTransaction, unit: Unit) -> tuple[str, BaseException | None] | None:
    """Do as `obstacle`, for a transaction whose session is about to commit: look at its connections once more."""
    error = first_failure(transaction, unit)
    return _lost_on(transaction) if error is None else (swallowed(error), error)


def _lost_on(transaction: SessionTransaction) -> tuple[str, BaseException | None] | None:
    for connection, core in core_transactions(transaction):
        if connection.invalidated:
            return "its connection was invalidated inside it", None
        if not core.is_active:
            return "its transaction was ended by hand on its connection", None
        why = _dialects.of(connection).lost(connection, connection.connection.driver_connection)
        if why is not None:
            return why, None
    return None


def swallowed(error: BaseException) -> str:
    """Say that something had failed, and what."""
    if isinstance(error, RollbackAsked):
        return message_of(error)
    return f"something failed inside and was swallowed; the first error was {told(error)}"


def begin_savepoint(session: Session) -> SessionTransaction:
    """SAVEPOINT, when the first statement needs it; flushes what is pending, which belongs to what is outside."""
    savepoint = session.begin_nested()
    if getattr(session, "_sessionkit_unit", None) is None:
        # Its engine may have been used by no scope yet; the savepoint is set with the first statement, so it is seen.
        session.connection()
        for connection in connections(savepoint):
            watch(connection.engine)
    return savepoint


def finish_savepoint(
    session: Session,
    savepoint: SessionTransaction,
    error: BaseException | None,
    rollback_only: bool,
    unit: Unit | None,
) -> None:
    """RELEASE SAVEPOINT if all is well inside it, else ROLLBACK TO SAVEPOINT.

    Args:
        session: on which the savepoint was set.
        savepoint: which one.
        error: what the body raised.
        rollback_only: whether it asked for a rollback.
        unit: the session's, or None if no scope owns it.

    Raises:
        UnexpectedRollback: the body raised nothing, but what it did could not be kept.
    """
    try:
        if error is None and not rollback_only:
            _release(session, savepoint, unit)
            return
    except BaseException as failure:
        _undo(session, savepoint, unit, failure)
        raise
    _undo(session, savepoint, unit, error)


def _release(session: Session, savepoint: SessionTransaction, unit: Unit | None) -> None:
    label = "a session that was passed in" if unit is None else str(unit)
    while (inner := session.get_nested_transaction()) not in (savepoint, None):
        assert inner is not None
        if not inner.is_active:
            failure = flush_error(inner)
            why = "one inside it was rolled back" if failure is None else swallowed(failure)
            raise UnexpectedRollback(f"a savepoint of {label} was rolled back: {why}") from failure
        inner.commit()
    if session.get_nested_transaction() is not savepoint:
        raise UnexpectedRollback(f"a savepoint of {label} was ended by hand inside its scope")
    if savepoint.is_active:
        session.flush()
    failure = first_failure(savepoint, unit)
    if failure is not None or not savepoint.is_active:
        why = "it was rolled back inside" if failure is None else swallowed(failure)
        raise UnexpectedRollback(f"a savepoint of {label} was rolled back: {why}") from failure
    savepoint.commit()


def _undo(session: Session, savepoint: SessionTransaction, unit: Unit | None, error: BaseException | None) -> None:
    try:
        if _is_open(savepoint, session):
            savepoint.rollback()
            return
        error = error or UnexpectedRollback("a savepoint was ended by hand inside its scope")
    except Exception as failure:
        logger.warning("ROLLBACK TO SAVEPOINT failed in %s", unit or "a session that was passed in", exc_info=True)
        error = failure
    # What was done in the scope cannot be taken back alone any more: the whole unit has to be.
    if unit is not None:
        unit.doom(error, savepoint.parent if savepoint.parent is not None and savepoint.parent.nested else None)


def _is_open(savepoint: SessionTransaction, session: Session) -> bool:
    current = session.get_nested_transaction()
    while current is not None and current is not savepoint:
        current = current.parent
    return current is savepoint
