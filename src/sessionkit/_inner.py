"""An entry that does not begin the transaction: it joins, sets a savepoint, or has writes refused.

Synchronous; the async shell runs it through the session's greenlet bridge where it does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ._plan import Step
from ._restriction import Restriction

if TYPE_CHECKING:
    from sqlalchemy import orm

    from ._unit import Unit
    from .context import Entry


class Inner(NamedTuple):
    """What the end of such an entry has to end."""

    savepoint: orm.SessionTransaction | None
    restriction: Restriction | None


NO_INNER = Inner(None, None)


def begin_inner(session: orm.Session, step: Step, unit: Unit | None) -> Inner:
    """Begin an entry. I/O, except where the step is to join."""
    savepoint = restriction = None
    if step in (Step.SAVEPOINT, Step.SAVEPOINT_READ_ONLY):
        savepoint = session.begin_nested()
    if step in (Step.JOIN_READ_ONLY, Step.SAVEPOINT_READ_ONLY):
        assert unit is not None
        try:
            restriction = Restriction(unit)
        except BaseException:
            if savepoint is not None:
                savepoint.rollback()
            raise
    return Inner(savepoint, restriction)


def finish_inner(_: orm.Session | None, entry: Entry, error: BaseException | None) -> None:
    """End an entry. I/O, except where it has joined."""
    try:
        if entry.restriction is not None:
            entry.restriction.finish(error)
    except BaseException as failure:
        _finish(entry, failure)
        raise
    _finish(entry, error)


def _finish(entry: Entry, error: BaseException | None) -> None:
    unit, savepoint = entry.unit, entry.savepoint
    if savepoint is None:
        if unit is not None:
            unit.left(error, entry.rollback_only)
    elif unit is not None:
        unit.finish_savepoint(savepoint, error, entry.rollback_only)
    elif error is None and savepoint.is_active:
        savepoint.commit()
    else:
        savepoint.rollback()
