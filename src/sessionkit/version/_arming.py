"""Adds the session events when the first versioned class is mapped. Until then no session pays for versions."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Mapper, Session

from .. import _stale
from . import _flush, _reach, _session, _write
from ._classes import Base

if TYPE_CHECKING:
    from collections.abc import Callable

_arming = Lock()

# If the last listener is there, they all are.
_LISTENERS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (Mapper, "after_configured", _reach.forget),
    (Session, "do_orm_execute", _flush.do_orm_execute),
    (Session, "after_commit", _write.forget_expectations),
    (Session, "after_soft_rollback", _write.undo),
    (Session, "after_flush", _flush.after_flush),
    (Session, "before_flush", _flush.before_flush),
)


@event.listens_for(Base, "after_mapper_constructed", propagate=True)
def _arm(mapper: Mapper[Any], cls: type[Base]) -> None:
    with _arming:
        if event.contains(*_LISTENERS[-1]):
            return
        _stale.versions = _session
        for listener in _LISTENERS:
            event.listen(*listener)
