"""Listeners for flushes, bulk statements and the end of a transaction. `_arming` adds them to SQLAlchemy's Session.

Every session gets them, ours or not. In a flush, things run in this order::

    session.flush()
    │
    ├─ before_flush            _before_flush: may this flush write a versioned row (`_reach`)? If not, only after_flush
    │                          follows
    ├─ UOWTransaction.execute  _Flush.execute
    │   ├─ roots()             adds the parents of changed children (`_parents`) to the flush, to give them a new version
    │   ├─ FlushWatch          serves the mapper events and the clock until execute ends
    │   ├─ SQLAlchemy's execute; for each class
    │   │   ├─ before_insert, before_update, before_delete    `_write`: sets the version in the WHERE and the next one;
    │   │   │                                                 adds the row to the watch
    │   │   ├─ INSERT, UPDATE, DELETE     after_execute on the connection reports to the watch how many rows matched
    │   │   └─ after_insert, after_update, after_delete       `_write`: the row has matched
    │   ├─ attempt.check()     finds rows that did not match and that SQLAlchemy did not notice
    │   └─ StaleDataError      finds the stale rows: adds the rows not written yet, reads the versions again, and raises
    │                          a VersionConflict instead
    ├─ after_flush             _after_flush: counts what was written
    └─ COMMIT or ROLLBACK      `_write`: forget_expectations after a commit, undo after a rollback

A bulk UPDATE by primary key (do_orm_execute) goes through `bulk()`, which adds all its rows before they are written.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.unitofwork import UOWTransaction

from ..errors import Conflict, VersionConflict, VersionError
from ._attempt import FlushWatch, Row, Stale, running, watch_flushes
from ._conflict import Conflicts
from ._kinds import clock
from ._notes import add_writes, known_notes
from ._parents import roots
from ._reach import may_write_versions
from ._rows import changes, kind_of, name_of, version_read
from ._write import bump, require_rowcount

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection, Result
    from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session

    from ._kinds import VersionKind


class _Flush(UOWTransaction):
    """A flush that may write versioned rows.

    SQLAlchemy has no event around the writing itself. When the writing fails it rolls the transaction back, and then nothing
    can read the rows any more; see test_all_stale_rows_of_a_flush_are_listed. SQLAlchemy passes a UOWTransaction to listeners
    but does not document it: test_a_flush_is_what_we_take_it_for checks all that we use.
    """

    def execute(self) -> None:
        session, states = self.session, _states(self)
        # Not earlier: the user's before_flush listeners may still change something.
        if not may_write_versions(states):
            return super().execute()
        for root in roots(session, states):
            bump(instance_state(root))
            self.register_object(instance_state(root))
        attempt = FlushWatch()
        with _running(attempt):
            try:
                super().execute()
                attempt.check()
            except StaleDataError as error:
                _expect_remaining(attempt, self)
                stale = attempt.stale()
                if not stale:
                    raise
                raise _conflict(stale, *_others(session, states, stale)) from error


def before_flush(session: Session, flush: Any, instances: Any) -> None:
    """Watch a flush that may write versioned rows."""
    # A later listener may still add objects. Then the flush itself has to look, once it runs.
    if len(session.dispatch.before_flush) > 1 or may_write_versions(
        chain(session._new, session._deleted, session.identity_map._modified)
    ):
        flush.__class__ = _Flush


def after_flush(session: Session, flush: Any) -> None:
    """Count what a flush has written."""
    add_writes(session, len(flush.states))


def do_orm_execute(state: ORMExecuteState) -> Result[Any] | None:
    """Count an INSERT, UPDATE or DELETE, and watch one that writes many rows of a versioned class."""
    if not getattr(state.statement, "is_dml", False):
        return None
    mapper = state.bind_mapper
    rows = state.parameters
    if mapper is None or kind_of(mapper) is None or not rows:
        add_writes(state.session, 1)
        return None
    # A list of mappings means an update by primary key; one mapping holds the values of a single statement.
    by_key = state.is_update and isinstance(rows, list)
    with bulk(state.session, {mapper: rows if isinstance(rows, list) and by_key else ()}):
        result = state.invoke_statement()
    add_writes(state.session, 1)
    return result


@contextmanager
def bulk(session: Session, groups: Mapping[Mapper[Any], Sequence[Mapping[str, Any]]]) -> Generator[None, None, None]:
    """Watch SQLAlchemy while it writes many rows of versioned classes.

    Args:
        session: the session that writes.
        groups: for each class, the mappings of attribute names to values for an update by primary key; an empty sequence for
            an insert.

    Raises:
        VersionError: a row has no version, or this kind of version cannot be written this way.
        VersionConflict: rows did not match.
    """
    first = next(iter(groups), None)
    attempt = FlushWatch(lambda: session.connection(bind_arguments={"mapper": first}))
    for mapper, rows in groups.items():
        kind = kind_of(mapper)
        if kind is not None and rows:
            connection = session.connection(bind_arguments={"mapper": mapper})
            watch_flushes(connection)
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
            # SQLAlchemy gives the object its new values but leaves the old version, so our own write would make its next
            # flush stale; see test_an_object_in_memory_can_be_written_after_a_bulk_update.
            session.expire(known, list(row.hidden))


def _checkable(
    mapper: Mapper[Any], kind: VersionKind, rows: Sequence[Mapping[str, Any]], connection: Connection
) -> Iterator[Row]:
    if kind.following is None:
        raise VersionError(
            f"SQLAlchemy's bulk update by primary key would write to {mapper.version_id_col}, which is a system "
            "column; change the objects in a session, or use sessionkit.bulk.update"
        )
    require_rowcount(connection, mapper.class_.__name__)
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    for position, row in enumerate(rows):
        if row.get(kind.attribute) is None:
            raise VersionError(
                f"row {position} of a bulk update of {mapper.class_.__name__} has no {kind.attribute!r}, so nothing "
                "was checked or written; give each row the version that was read, or use sessionkit.bulk.update, "
                "which writes such rows unchecked and says so in .checked"
            )
        if all(key in row for key in keys):  # SQLAlchemy itself refuses the others
            values = {key: value for key, value in row.items() if key not in keys and key != kind.attribute}
            identity = tuple(row[key] for key in keys)
            yield Row(mapper, identity, row[kind.attribute], connection, values=values, hidden=(kind.attribute,))


def conflict_of(session: Session, rows: Sequence[tuple[Mapper[Any], tuple[Any, ...], Any]]) -> VersionConflict | None:
    """Return the conflict between rows (mapper, identity, expected version) and the database, if there is one."""
    attempt = FlushWatch()
    for mapper, identity, expected in rows:
        attempt.add(Row(mapper, identity, expected, session.connection(bind_arguments={"mapper": mapper}), values={}))
    stale = attempt.stale()
    return _conflict(stale) if stale else None


@contextmanager
def _running(attempt: FlushWatch) -> Generator[None, None, None]:
    token, asking = running.set(attempt), clock.set(attempt.now)
    try:
        yield
    finally:
        running.reset(token)
        clock.reset(asking)


def _states(flush: Any) -> dict[InstanceState[Any], tuple[bool, bool]]:
    """Return the states that a flush is about to write: (is it deleted, is it only listed for what depends on it)."""
    states: dict[InstanceState[Any], tuple[bool, bool]] = flush.states
    return states


def _expect_remaining(attempt: FlushWatch, flush: Any) -> None:
    """Add the rows that the flush had not reached when it stopped."""
    for state, (deleted, only_listed) in _states(flush).items():
        kind = kind_of(state.mapper)
        if kind is None or only_listed or not state.has_identity or attempt.has(state):
            continue
        writes = changes(state)
        if deleted or writes:
            version, connection = version_read(state, kind), flush.transaction.connection(state.mapper)
            attempt.expect_row(connection, state, version, changes=writes, hidden=(kind.attribute,), deleting=deleted)


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
    """Yield what else the unit had done, apart from writing the stale rows, in words."""
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
    notes = known_notes(session)
    if notes is not None and (count := notes.writes(session.get_transaction())):
        yield f"{count} objects or statements before, in the same transaction"
