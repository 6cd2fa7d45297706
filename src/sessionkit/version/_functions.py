"""The functions for versioned objects and statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper

from ..errors import VersionError
from ._rows import kind_of, stored, versioned
from ._write import bump, expect

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Update

    from ._classes import Base


def version_of(obj: Base) -> Any:
    """Return the version that an object was read with, or that its last flush wrote.

    Returns:
        An int, ``datetime`` (aware, UTC) or ``UUID``, depending on the class. Put ``str(version)`` into a hidden form field
        or a URL; `expect_version` accepts it.

    Raises:
        VersionError: the object is not versioned, or was never flushed.

    Emits nothing, unless the object is expired: then the SELECT that reading any of its attributes emits.
    """
    state, kind = stored(obj, "version_of()")
    return getattr(state.obj(), kind.attribute)


def expect_version(obj: Base, version: int | datetime | UUID | str) -> None:
    """Compare an object's row with the version that a client saw, instead of the one just read.

    Call it in the unit that writes. It applies to all flushes of this transaction, and to the next transaction if this one is
    rolled back. If the row has another version by then, the flush raises `VersionConflict`. It does so even if nothing in the
    object has changed, provided that the client's version differs from the one that was read.

    Args:
        obj: a versioned object that is in the database, in a session or detached.
        version: a value as `version_of` returns it, or its text.

    Raises:
        VersionError: the object is not versioned or was never flushed, or `version` is not a version of its kind.

    SQL, at the flush: ``UPDATE orders SET ... WHERE orders.id = 7 AND orders.version_id = <version>``, and the same condition
    for a DELETE.
    """
    state, kind = stored(obj, "expect_version()")
    expect(state, kind.understood(version))


def bump_version(obj: Base) -> None:
    """Give an object's row a new version at the next flush, whether or not anything else in it changes.

    Use it when something changes that belongs to the row but is not stored in it. (For children, declare
    ``__version_parents__``.) The version that was read is compared as always. A new object needs nothing: its INSERT creates
    the first version.

    Raises:
        VersionError: the object is not versioned.

    SQL, at the flush: ``UPDATE orders SET version_id=4 WHERE orders.id = 7 AND orders.version_id = 3``; for `XminVersioned` a
    column is set to its own value.
    """
    state, _ = versioned(obj)
    if state.has_identity:
        bump(state)


def update_versioned(statement: Update) -> Update:
    """Return a set-based ``update()`` of a versioned class that also gives new versions to the rows it changes.

    It does not compare versions: write a condition for that. A unit that has read one of the rows before gets a conflict, as
    it should.

    ::

        session.execute(update_versioned(update(Order).where(Order.state == "new").values(state="late")))

    Raises:
        VersionError: the statement is not an ``update()`` of a versioned class, or sets the version itself, or the version is
            in a different table than the one it updates (joined inheritance).

    SQL: ``UPDATE orders SET state='late', version_id=(orders.version_id + 1) WHERE orders.state = 'new'``;
    ``gen_random_uuid()`` for UUIDs, ``greatest(clock_timestamp(), updated_at + interval '1 microsecond')`` for timestamps,
    and the equivalent on SQLite. An `XminVersioned` class needs nothing: PostgreSQL does it.
    """
    entity = (
        getattr(statement, "entity_description", {}).get("entity") if getattr(statement, "is_update", False) else None
    )
    mapper: Mapper[Any] | None = inspect(entity, raiseerr=False)
    kind = kind_of(mapper) if isinstance(mapper, Mapper) else None
    if mapper is None or kind is None:
        raise VersionError(
            f"update_versioned() takes an update() of a versioned class, not {statement!s}; let the class inherit "
            "Versioned, or leave update_versioned() out"
        )
    column = mapper.version_id_col
    assert column is not None
    if kind.following_sql is None:
        return statement
    if column not in statement.table.c.values():
        raise VersionError(
            f"the version of {mapper.class_.__name__} is {column}, which an UPDATE of {statement.table} cannot set; "
            "update the class that has the version's table, or change the objects in a session"
        )
    if column in (statement._values or ()):
        raise VersionError(f"the statement sets {column} itself; leave that to update_versioned()")
    return statement.values({getattr(mapper.class_, kind.attribute): kind.following_sql(column)})
