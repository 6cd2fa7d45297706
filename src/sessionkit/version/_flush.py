"""Where versions meet a session: listeners on SQLAlchemy's Session, so that each session has them, ours or not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError

from ..errors import VersionConflict, VersionError
from ._attempt import Attempt, Row, Stale, running, watch
from ._conflict import Conflict, Conflicts
from ._kinds import clock
from ._parents import roots
from ._rows import changes, kind_of, name_of, version_read
from ._write import bump, forget_expectations, trust, undo

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection, Result
    from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, SessionTransaction

    from ._kinds import Kind

# How much each open transaction has written before: what resolve() could not carry over.
_written: WeakKeyDictionary[SessionTransaction, int] = WeakKeyDictionary()


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, flush: Any, instances: Any) -> None:
    def execute() -> None:
        del flush.execute
        # Not earlier: a before_flush listener of the user's may still have changed something.
        states = _states(flush)
        for root in roots(session, states):
            bump(instance_state(root))
            flush.register_object(instance_state(root))
        attempt = Attempt()
        with _running(attempt):
            try:
                flush.execute()
                attempt.check()
            except StaleDataError as error:
                _arm_the_rest(attempt, flush)
                stale = attempt.stale()
                if not stale:
                    raise
                raise _conflict(stale, *_others(session, states, stale)) from error
        _count(session, len(states))

    # There is no event around the writing itself, and after it the transaction is rolled back, so that the rows
    # could not be looked at; see test_all_stale_rows_of_a_flush_are_listed. `flush` is a UOWTransaction, which
    # SQLAlchemy hands out but does not describe: test_a_flush_is_what_we_take_it_for holds what is used of it.
    flush.execute = execute


@event.listens_for(Session, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> Result[Any] | None:
    if not (state.is_insert or state.is_update or state.is_delete):
        return None
    mapper = state.bind_mapper
    rows = state.parameters
    if mapper is None or kind_of(mapper) is None or not rows:
        _count(state.session, 1)
        return None
    # A list means by primary key, a mapping the values of one statement.
    by_key = state.is_update and isinstance(rows, list)
    with bulk(state.session, {mapper: rows if isinstance(rows, list) and by_key else ()}):
        result = state.invoke_statement()
    _count(state.session, 1)
    return result


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    # SQLAlchemy says so of a released savepoint as well.
    if not session.in_nested_transaction():
        forget_expectations(session)


@event.listens_for(Session, "after_soft_rollback")
def _after_rollback(session: Session, transaction: SessionTransaction) -> None:
    undo(transaction)


@contextmanager
def bulk(session: Session, groups: Mapping[Mapper[Any], Sequence[Mapping[str, Any]]]) -> Generator[None, None, None]:
    """Surround SQLAlchemy's writing of many rows of versioned classes.

    Args:
        session: that writes.
        groups: for each class the mappings of attribute names to values that are updated by primary key; an empty
            sequence where rows are inserted.

    Raises:
        VersionError: a row holds no version, or the kind of version cannot be written so.
        VersionConflict: rows did not match.
    """
    first = next(iter(groups), None)
    attempt = Attempt(lambda: session.connection(bind_arguments={"mapper": first}))
    for mapper, rows in groups.items():
        kind = kind_of(mapper)
        if kind is not None and rows:
            connection = session.connection(bind_arguments={"mapper": mapper})
            watch(connection)
            for row in _checkable(mapper, kind, rows, connection):
                attempt.add(row)
    with _running(attempt):
        try:
            yield
            attempt.check()
        except StaleDataError as error:
            stale = attempt.stale()
            if not stale:
                raise
            raise _conflict(stale) from error
    for row in attempt.rows.values():
        known = session.identity_map.get(row.mapper.identity_key_from_primary_key(row.identity))
        if known is not None:
            # SQLAlchemy gives it the new values, but leaves it the old version: its next flush would be stale by our
            # own hand; see test_an_object_in_memory_can_be_written_after_a_bulk_update.
            session.expire(known, list(row.unsaid))


def _checkable(
    mapper: Mapper[Any], kind: Kind, rows: Sequence[Mapping[str, Any]], connection: Connection
) -> Iterator[Row]:
    if kind.following is None:
        raise VersionError(
            f"SQLAlchemy's bulk update by primary key would write to {mapper.version_id_col}, which is a system "
            "column; change the objects in a session, or use sessionkit.bulk.update"
        )
    trust(connection, mapper.class_.__name__)
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    for position, row in enumerate(rows):
        if row.get(kind.attribute) is None:
            raise VersionError(
                f"row {position} of a bulk update of {mapper.class_.__name__} has no {kind.attribute!r}, so it was not "
                "checked and nothing was written; give each row the version that was read, or use "
                "sessionkit.bulk.update, which writes rows without one unchecked and tells so in .checked"
            )
        if all(key in row for key in keys):  # SQLAlchemy refuses the others itself
            values = {key: value for key, value in row.items() if key not in keys and key != kind.attribute}
            identity = tuple(row[key] for key in keys)
            yield Row(mapper, identity, row[kind.attribute], connection, values=values, unsaid=(kind.attribute,))


def conflict_of(session: Session, rows: Sequence[tuple[Mapper[Any], tuple[Any, ...], Any]]) -> VersionConflict | None:
    """Return the conflict of rows (mapper, identity, expected version) with what the database has now, if there is."""
    attempt = Attempt()
    for mapper, identity, expected in rows:
        attempt.add(Row(mapper, identity, expected, session.connection(bind_arguments={"mapper": mapper}), values={}))
    stale = attempt.stale()
    return _conflict(stale) if stale else None


@contextmanager
def _running(attempt: Attempt) -> Generator[None, None, None]:
    token, asking = running.set(attempt), clock.set(attempt.now)
    try:
        yield
    finally:
        running.reset(token)
        clock.reset(asking)


def _states(flush: Any) -> dict[InstanceState[Any], tuple[bool, bool]]:
    """Return what a flush is about to write: (is it deleted, is it only listed for what depends on it)."""
    states: dict[InstanceState[Any], tuple[bool, bool]] = flush.states
    return states


def _arm_the_rest(attempt: Attempt, flush: Any) -> None:
    """Add what the flush had not come to when it stopped."""
    for state, (deleted, only_listed) in _states(flush).items():
        kind = kind_of(state.mapper)
        if kind is None or only_listed or not state.has_identity or attempt.has(state):
            continue
        writes = changes(state)
        if deleted or writes:
            version, connection = version_read(state, kind), flush.transaction.connection(state.mapper)
            attempt.arm(connection, state, version, changes=writes, unsaid=(kind.attribute,), deleting=deleted)


def _conflict(stale: Sequence[Stale], *others: str) -> VersionConflict:
    conflicts = [
        Conflict(
            row.mapper.class_,
            row.identity,
            row.expected,
            current=current,
            deleted=gone,
            attempted=row.attempted(),
            original=row.original(),
            bumped=row.forced,
        )
        for row, current, gone in stale
    ]
    return VersionConflict(Conflicts.of(conflicts, others))


def _others(
    session: Session, states: Mapping[InstanceState[Any], tuple[bool, bool]], stale: Sequence[Stale]
) -> Iterator[str]:
    """Say what the unit had done besides writing the stale rows."""
    told = {row.state for row, _, _ in stale}
    for state, (deleted, only_listed) in states.items():
        if state in told:
            for relationship in state.mapper.relationships:
                history = state.attrs[relationship.key].history
                if relationship.uselist and not relationship.viewonly and history.has_changes():
                    yield f"{name_of(state)} (its {relationship.key})"
        elif not state.has_identity:
            yield name_of(state)
        elif deleted or (not only_listed and changes(state)):
            yield f"{name_of(state)} ({'deleted' if deleted else 'changed'})"
    root = session.get_transaction()
    if root is not None and (count := _written.get(root, 0)):
        yield f"{count} objects or statements before, in the same transaction"


def _count(session: Session, more: int) -> None:
    root = session.get_transaction()
    if root is not None:
        _written[root] = _written.get(root, 0) + more
