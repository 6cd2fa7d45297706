"""The functions on versioned objects and statements."""

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
    """Return the version with which an object was read, or which its last flush wrote.

    Returns:
        An int, ``datetime`` (aware, UTC) or ``UUID``, as the class has it; ``str(version)`` is what a hidden field of
        a form or a URL can carry, and `expect_version` takes it back.

    Raises:
        VersionError: the object is not versioned, or was never flushed.

    Emits nothing, unless the object is expired: then the SELECT that any attribute of it would.
    """
    state, kind = stored(obj, "version_of()")
    return getattr(state.obj(), kind.attribute)


def expect_version(obj: Base, version: int | datetime | UUID | str) -> None:
    """Have the database compare an object's row with the version that a client saw, in place of the one just read.

    It holds for all the flushes of this transaction, and for the next one if this is rolled back: call it in the unit
    that writes. A row that has another version by then is a `VersionConflict`; so it is if nothing of the object was
    changed, provided that the client's version is not the one that was read.

    Args:
        obj: a versioned object that is in the database, of a session or detached.
        version: a value as `version_of` returns it, or its text.

    Raises:
        VersionError: the object is not versioned or was never flushed, or `version` is no version of its kind.

    SQL, at the flush: ``UPDATE orders SET ... WHERE orders.id = 7 AND orders.version_id = <version>``, and so for a
    DELETE.
    """
    state, kind = stored(obj, "expect_version()")
    expect(state, kind.understood(version))


def bump_version(obj: Base) -> None:
    """Have the next flush give an object's row a new version, whether or not it changes otherwise.

    For what belongs to the row but is not stored in it. (For children, say ``__version_parents__``.) What was read is
    compared as always. On a new object nothing is to be done: its INSERT makes a version.

    Raises:
        VersionError: the object is not versioned.

    SQL, at the flush: ``UPDATE orders SET version_id=4 WHERE orders.id = 7 AND orders.version_id = 3``; for
    `XminVersioned` a column is set to the value that it has.
    """
    state, _ = versioned(obj)
    if state.has_identity:
        bump(state)


def update_versioned(statement: Update) -> Update:
    """Return a set-based ``update()`` of a versioned class that gives new versions to the rows which it changes.

    It does not compare: write a condition for that. Whoever has read one of the rows before gets a conflict, as they
    should.

    ::

        session.execute(update_versioned(update(Order).where(Order.state == "new").values(state="late")))

    Raises:
        VersionError: it is no ``update()`` of a versioned class, sets the version itself, or the version is in
            another table than the one that it updates (joined inheritance).

    SQL: ``UPDATE orders SET state='late', version_id=(orders.version_id + 1) WHERE orders.state = 'new'``;
    ``gen_random_uuid()`` for UUIDs, ``greatest(clock_timestamp(), updated_at + interval '1 microsecond')`` for
    timestamps, and what says the same on SQLite. An `XminVersioned` class needs nothing: PostgreSQL does it.
    """
    entity = (
        getattr(statement, "entity_description", {}).get("entity") if getattr(statement, "is_update", False) else None
    )
    mapper: Mapper[Any] | None = inspect(entity, raiseerr=False)
    kind = kind_of(mapper) if isinstance(mapper, Mapper) else None
    if mapper is None or kind is None:
        raise VersionError(
            f"update_versioned() takes an update() of a versioned class, not {statement!s}; "
            "have the class inherit Versioned, or leave update_versioned() out"
        )
    column = mapper.version_id_col
    assert column is not None
    if kind.following_sql is None:
        return statement
    if column not in statement.table.c.values():
        raise VersionError(
            f"the version of {mapper.class_.__name__} is {column}, which an UPDATE of {statement.table} cannot set; "
            f"update the class that has that table, or change the objects in a session"
        )
    if column in (statement._values or ()):
        raise VersionError(f"the statement sets {column} itself; leave that to update_versioned()")
    return statement.values({getattr(mapper.class_, kind.attribute): kind.following_sql(column)})
