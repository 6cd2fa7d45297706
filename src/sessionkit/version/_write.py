"""Mapper events that set a row's version just before a flush writes it. They work in any session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import object_session
from sqlalchemy.orm.attributes import flag_dirty, flag_modified, instance_state, set_attribute, set_committed_value

from ..errors import VersionError
from ._attempt import FlushWatch, Row, running
from ._classes import Base
from ._notes import known_notes, notes_of
from ._rows import OURS, changes, name_of, version_read

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction

    from ._kinds import VersionKind

_BUMP = "sessionkit_version_bump"
_EXPECTED = "sessionkit_version_expected"


def bump(state: InstanceState[Any]) -> None:
    """Make the next flush write a new version, whatever else has changed."""
    state.info[_BUMP] = True
    flag_dirty(state.obj())


def expect(state: InstanceState[Any], version: Any) -> None:
    """Make the next flushes compare with `version` instead of the version that was read."""
    state.info[_EXPECTED] = version
    # Dirty even if nothing changes: the flush must check the version that the client saw in any case.
    flag_dirty(state.obj())


def _running(connection: Connection) -> FlushWatch | None:
    """Return the flush that is running, after giving it the connection whose clock it should ask."""
    attempt = running.get()
    if attempt is not None:
        attempt.connection = lambda: connection
    return attempt


def _matches_expectation(state: InstanceState[Any], version: Any) -> bool:
    """Return whether a version is the one that the client saw, or one that this transaction made from it."""
    if version == state.info.get(_EXPECTED, version):
        return True
    session = state.session
    assert session is not None
    # Equality with one of our versions is not enough, since a rival counts in the same steps. So versions that were rolled
    # back no longer count; see test_an_expectation_outlives_the_savepoint_that_was_rolled_back.
    notes = known_notes(session)
    return notes is not None and notes.is_ours(session, state, version)


def undo(session: Session, transaction: SessionTransaction) -> None:
    """Forget what a transaction or savepoint made that was rolled back."""
    notes = known_notes(session)
    if notes is None or notes.versions is None:
        return
    # A failing flush rolls back the transaction around it too, but the event names only the flush's own; see
    # test_a_savepoint_that_a_failed_flush_undid_made_no_version.
    undone = transaction
    while not undone.nested and undone.parent is not None:
        undone = undone.parent
    notes.undo(undone)


def forget_expectations(session: Session) -> None:
    """Drop the expected versions that the flushes of the committed transaction have checked."""
    notes = known_notes(session)
    # SQLAlchemy also reports the release of a savepoint as a commit.
    if notes is None or notes.versions is None or session.in_nested_transaction():
        return
    for state in notes.versions:
        state.info.pop(_EXPECTED, None)
    notes.versions = None


@event.listens_for(Base, "before_update", propagate=True)
def _before_update(mapper: Mapper[Any], connection: Connection, target: Base) -> None:
    state = instance_state(target)
    kind = target.__version_kind__
    forced = state.info.pop(_BUMP, False)
    writes = changes(state)
    attempt = _running(connection)
    if not (writes or forced or _EXPECTED in state.info):
        return
    version = _version(state, kind, connection)
    if not _matches_expectation(state, version):
        # This discards what was assigned by hand, so the UPDATE must be forced.
        version, forced = state.info[_EXPECTED], True
        set_committed_value(target, kind.attribute, version)
    if not (writes or forced):
        return
    touched: list[str] = []
    if kind.following is not None:
        if forced:
            set_attribute(target, kind.attribute, kind.following(version), OURS)
    elif not any(_is_beside_version(mapper, key) for key in writes):
        touched = [_touch(state)]
    if attempt is not None:
        attempt.expect_row(connection, state, version, changes=writes, hidden=(kind.attribute, *touched), forced=forced)


@event.listens_for(Base, "before_insert", propagate=True)
def _before_insert(mapper: Mapper[Any], connection: Connection, target: Base) -> None:
    """Handle a new object that replaces a deleted one: SQLAlchemy turns the two into one UPDATE."""
    attempt = _running(connection)
    session = object_session(target)
    if session is None or not session.deleted:
        return
    replaced = session.identity_map.get(mapper.identity_key_from_instance(target))
    if replaced is None or replaced not in session.deleted:
        return
    state, kind = instance_state(replaced), target.__version_kind__
    version = _expected_in_where(state, kind, connection)
    if kind.following is not None:
        set_attribute(target, kind.attribute, kind.following(version), OURS)
    if attempt is not None:
        given = instance_state(target).dict
        values = {prop.key: given[prop.key] for prop in mapper.column_attrs if prop.key in given}
        values.pop(kind.attribute, None)
        attempt.add(Row(state.mapper, state.identity or (), version, connection, values=values))


@event.listens_for(Base, "after_insert", propagate=True)
def _after_insert(mapper: Mapper[Any], connection: Connection, target: Base) -> None:
    if (attempt := running.get()) is not None and attempt.rows:
        attempt.wrote(mapper, tuple(mapper.primary_key_from_instance(target)))


@event.listens_for(Base, "before_delete", propagate=True)
def _before_delete(mapper: Mapper[Any], connection: Connection, target: Base) -> None:
    state = instance_state(target)
    kind = target.__version_kind__
    version = _expected_in_where(state, kind, connection)
    if (attempt := running.get()) is not None:
        attempt.expect_row(connection, state, version, hidden=(kind.attribute,), deleting=True)


@event.listens_for(Base, "after_delete", propagate=True)
@event.listens_for(Base, "after_update", propagate=True)
def _after_write(mapper: Mapper[Any], connection: Connection, target: Base) -> None:
    state = instance_state(target)
    if (attempt := running.get()) is not None:
        attempt.wrote(state.mapper, state.identity)
    if _EXPECTED in state.info and state.session is not None:
        version = state.dict.get(target.__version_kind__.attribute)
        notes_of(state.session).add_version(state.session, state, version)


def _expected_in_where(state: InstanceState[Any], kind: VersionKind, connection: Connection) -> Any:
    """Return the version that a DELETE must compare, and set it for the statement."""
    version = _version(state, kind, connection)
    if not _matches_expectation(state, version):
        version = state.info[_EXPECTED]
        set_committed_value(state.obj(), kind.attribute, version)
    return version


def require_rowcount(connection: Connection, what: str) -> None:
    """Refuse a driver that does not count matched rows.

    Raises:
        VersionError: SQLAlchemy says that the driver does not count them. It would only warn, and the update would be lost.
    """
    if not connection.dialect.supports_sane_rowcount:
        raise VersionError(
            f"{what} is versioned, but the driver {connection.dialect.driver!r} of {connection.dialect.name} does not "
            "report how many rows an UPDATE matched, so a lost update would go unnoticed; use another driver"
        )


def _version(state: InstanceState[Any], kind: VersionKind, connection: Connection) -> Any:
    """Return the version that the row was read with, after checking that it can be compared.

    Raises:
        VersionError: it cannot: the row has none, the query left it out, or the driver does not count rows.
    """
    require_rowcount(connection, name_of(state))
    if kind.attribute not in state.dict and kind.attribute not in state.expired_attributes:
        # SQLAlchemy would read the version now, after the rival's commit, and it would match; see
        # test_an_object_that_was_read_without_its_version_is_not_written.
        raise VersionError(
            f"{name_of(state)} was read without {kind.attribute!r} (load_only(), defer()), so nothing can tell "
            "whether it has changed since; load the version together with the values you decide on"
        )
    version = version_read(state, kind)
    if version is None:
        column: Any = state.mapper.version_id_col
        migration = f"UPDATE {column.table} SET {column.name} = {kind.backfill} WHERE {column.name} IS NULL"  # noqa: S608
        raise VersionError(
            f"{name_of(state)} has NULL in its version column {column}, like a row from before the column was added; "
            f"migrate with {migration}, and then make the column NOT NULL"
        )
    return version


def _touch(state: InstanceState[Any]) -> str:
    """Force an UPDATE where the database makes the version: set one column to its own value; return its name."""
    mapper = state.mapper
    key = next((prop.key for prop in mapper.column_attrs if _is_beside_version(mapper, prop.key)), None)
    if key is None:
        raise VersionError(
            f"{name_of(state)} cannot be given a new version: {mapper.local_table} has no column apart from its key "
            "that an UPDATE could set"
        )
    getattr(state.obj(), key)  # it must have been loaded to be flagged
    flag_modified(state.obj(), key)
    return key


def _is_beside_version(mapper: Mapper[Any], key: str) -> bool:
    """Return whether an attribute is a column of the version's table that an UPDATE can set."""
    column, version = mapper.column_attrs[key].columns[0], mapper.version_id_col
    assert version is not None
    table = getattr(column, "table", None)
    return (
        table is getattr(version, "table", None) and column is not version and not getattr(column, "primary_key", True)
    )
