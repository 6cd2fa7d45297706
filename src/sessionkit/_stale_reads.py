"""The guard of locking reads: SQLAlchemy locks the row of a loaded object, but returns the object with its old values.

Loaded by the first SELECT ... FOR UPDATE of a scope; other statements are not checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._call_site import call_site
from .errors import StaleRead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from ._call_site import CallSite

_MESSAGE = (
    "a locking read returned an object that the session had loaded before, with its old values: decide on what "
    "sessionkit.locks.lock() returns, or read with execution_options(populate_existing=True); to switch this warning off, "
    "set warn_stale_locks=False on the factory"
)

LOCKING = "sessionkit_locking"
"""The execution option of our own locking statements, which never return a stale object."""


def watch(
    session: Session, read: Callable[..., Any], statement: Select[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Execute a locking read, and warn at its call site if it returns an object with the values loaded before."""
    stale = set() if _refreshes(session, statement, args, kwargs) else _loaded(session, statement)
    site = call_site() if stale else None
    result = read(*args, **kwargs)
    if site is not None:
        source = getattr(result, "_real_result", None) or result
        if hasattr(source, "iterator"):
            source.iterator = _watched(source.iterator, stale, site)
            if (chunks := getattr(source, "chunks", None)) is not None:
                source.chunks = lambda size: (list(_watched(part, stale, site)) for part in chunks(size))
        else:
            _look(result, stale, site)  # the one value of scalar()
    return result


def _refreshes(session: Session, statement: Select[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("execution_options") or {}
    for options in (getattr(session, "execution_options", {}), statement._execution_options, given):
        load = options.get("_sa_orm_load_options")
        if options.get("populate_existing") or options.get(LOCKING):
            return True
        if load is not None and (load._populate_existing or load._refresh_state is not None):
            return True
    return False


def _loaded(session: Session, statement: Select[Any]) -> set[Any]:
    """Return the states of those objects of the statement's classes whose loaded values it would not overwrite."""
    states = session.identity_map.all_states()
    if not states:
        return set()
    classes = tuple(kind for each in statement.column_descriptions if isinstance(kind := each["type"], type))
    return {state for state in states if issubclass(state.class_, classes) and _has_values(state)}


def _has_values(state: Any) -> bool:
    keys = {column.key for column in state.mapper.primary_key}
    return any(each.key in state.dict and each.columns[0].key not in keys for each in state.mapper.column_attrs)


def _watched(rows: Iterable[Any], stale: set[Any], site: CallSite) -> Iterator[Any]:
    for row in rows:
        if stale:
            _look(row, stale, site)
        yield row


def _look(row: Any, stale: set[Any], site: CallSite) -> None:
    for each in row if isinstance(row, tuple) else (row,):
        if getattr(each, "_sa_instance_state", None) in stale:
            stale.clear()  # once is enough
            site.warn(_MESSAGE, StaleRead)
            return
