"""Which flushes may write a versioned row. All other flushes run as if there were no versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import RelationshipDirection

from ._rows import kind_of, parents_declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import InstanceState, Mapper

_KEY = "sessionkit_version_reach"


class _Mappings:
    """The current mappings. What we know about a class holds until mappers are configured again."""

    now = object()


def forget() -> None:
    """Discard what is known after mappers were configured: a class may have new relationships."""
    _Mappings.now = object()


def may_write_versions(states: Iterable[InstanceState[Any]]) -> bool:
    """Return whether a flush of these objects may write a versioned row, or must bump the versions of parents."""
    # By manager: reading `state.mapper` would add an entry to each state.
    for manager in {state.manager for state in states}:
        known = manager.info.get(_KEY)
        # Taken before the search: if mappers are configured meanwhile, the result is discarded.
        now = _Mappings.now
        if known is None or known[0] is not now:
            known = manager.info[_KEY] = (now, _reaches_versions(manager.mapper))
        if known[1]:
            return True
    return False


def _reaches_versions(mapper: Mapper[Any]) -> bool:
    seen = {mapper}
    ahead = [mapper]
    while ahead:
        here = ahead.pop()
        if kind_of(here) is not None or parents_declared(here):
            return True
        for reached in _written_along(here):
            for other in reached.self_and_descendants:
                if other not in seen:
                    seen.add(other)
                    ahead.append(other)
    return False


def _written_along(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    """Return the classes whose rows SQLAlchemy may write because it writes a row of `mapper`."""
    for relationship in mapper.relationships:
        # A collection sets the foreign keys of its members, and a cascade deletes rows, even if those objects are not dirty.
        if not relationship.viewonly and (
            relationship.direction is RelationshipDirection.ONETOMANY
            or relationship.cascade.delete
            or relationship.cascade.delete_orphan
        ):
            yield relationship.mapper
    for other in mapper.registry.mappers:
        for relationship in other.relationships:
            # A change of a primary key is propagated to the rows that refer to it.
            if (
                relationship.direction is RelationshipDirection.MANYTOONE
                and not relationship.passive_updates
                and mapper.isa(relationship.mapper)
            ):
                yield other
