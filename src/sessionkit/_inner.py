"""An entry that does not begin the transaction: it joins, sets a savepoint, or has writes refused.

Synchronous; the async shell runs it through the session's greenlet bridge where it does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ._plan import Step
from ._unit.restriction import Restriction
from ._unit.verdict import begin_savepoint, finish_savepoint
from .errors import ScopeError

if TYPE_CHECKING:
    from sqlalchemy import orm

    from ._unit.unit import Unit
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
        savepoint = begin_savepoint(session)
    if step in (Step.JOIN_READ_ONLY, Step.SAVEPOINT_READ_ONLY):
        assert unit is not None
        try:
            restriction = Restriction(unit)
        except BaseException:
            if savepoint is not None:
                savepoint.rollback()
            raise
    return Inner(savepoint, restriction)


def finish_inner(session: orm.Session | None, entry: Entry, error: BaseException | None) -> None:
    """End an entry. I/O, except where it has joined: then the session is not needed."""
    if entry.unit is not None and entry.unit.over:
        if error is None:
            raise ScopeError(
                f"a scope that had joined {entry.unit} was left after that had ended: what it did since then is in no "
                f"transaction; "
                "leave the inner scope first"
            )
        return
    try:
        if entry.inner.restriction is not None:
            entry.inner.restriction.finish(error)
    except BaseException as failure:
        _finish(session, entry, failure)
        raise
    _finish(session, entry, error)


def _finish(session: orm.Session | None, entry: Entry, error: BaseException | None) -> None:
    unit, savepoint = entry.unit, entry.inner.savepoint
    if savepoint is not None:
        assert session is not None
        finish_savepoint(session, savepoint, error, entry.rollback_only, unit)
    elif unit is not None:
        unit.left(error, entry.rollback_only)
