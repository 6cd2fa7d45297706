"""Versions for the session methods that have no event in SQLAlchemy; see ``sessionkit._stale``.

This module implements the Protocol `Versions` defined there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect
from sqlalchemy.orm.attributes import instance_state

from ._flush import bulk, conflict_of
from ._rows import kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Mapper, Session

    from ..errors import VersionConflict


def conflict_of_get(session: Session, entity: Any, ident: Any) -> VersionConflict | None:
    """Return the conflict that made ``session.get()`` fail, or None if the class has none of our versions."""
    mapper: Mapper[Any] = inspect(entity)
    kind = kind_of(mapper)
    identity = _identity(mapper, ident)
    known = session.identity_map.get(mapper.identity_key_from_primary_key(identity))
    if kind is None or known is None:
        return None
    state = instance_state(known)
    return conflict_of(session, [(state.mapper, identity, state.dict.get(kind.attribute))])


def conflict_of_merge(session: Session, instance: object) -> VersionConflict | None:
    """Return the conflict that made ``session.merge()`` fail, or None if no versioned row is stale."""
    top = instance_state(instance)
    states = [top, *(state for _, _, state, _ in top.mapper.cascade_iterator("merge", top))]
    rows = [
        (state.mapper, state.identity, version)
        for state in states
        if (kind := kind_of(state.mapper)) is not None
        and state.identity is not None
        and (version := state.dict.get(kind.attribute)) is not None
    ]
    return conflict_of(session, rows)


def around_objects(session: Session, objects: list[object]) -> AbstractContextManager[None]:
    """Surround ``session.bulk_save_objects()``."""
    groups: dict[Mapper[Any], list[Mapping[str, Any]]] = {}
    for obj in objects:
        state = instance_state(obj)
        group = groups.setdefault(state.mapper, [])
        if state.has_identity:
            group.append(state.dict)
    return bulk(session, groups)


def around_mappings(session: Session, mapper: Any, mappings: list[dict[str, Any]]) -> AbstractContextManager[None]:
    """Watch ``session.bulk_update_mappings()``, or ``session.bulk_insert_mappings()`` (then `mappings` is empty)."""
    return bulk(session, {inspect(mapper): mappings})


def _identity(mapper: Mapper[Any], ident: Any) -> tuple[Any, ...]:
    """Return a key, in any form that `get` accepts, as a tuple."""
    if isinstance(ident, dict):
        named = cast("dict[str, Any]", ident)
        return tuple(named[mapper.get_property_by_column(column).key] for column in mapper.primary_key)
    return tuple(cast("list[Any]", ident)) if isinstance(ident, (tuple, list)) else (ident,)
