"""Which flushes may write a versioned row: all the others run as if there were no versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import RelationshipDirection

from ._rows import kind_of, parents_declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import InstanceState, Mapper

_KEY = "sessionkit_version_reach"


class _Mappings:
    """The mappings as they are now. What is known of a class holds until mappers are configured again."""

    now = object()


def forget() -> None:
    """Hear that mappers were configured: a class may have got relationships that it did not have."""
    _Mappings.now = object()


def may_write_versions(states: Iterable[InstanceState[Any]]) -> bool:
    """Tell whether a flush of these objects may write a versioned row, or has parents whose versions it must bump."""
    # By manager, since a state's own `mapper` costs an entry in each state.
    for manager in {state.manager for state in states}:
        known = manager.info.get(_KEY)
        # Taken before the look: if mappers are configured meanwhile, what it finds does not last.
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
    """Return the classes of which SQLAlchemy may write rows because it writes one of `mapper`."""
    for relationship in mapper.relationships:
        # A collection sets the foreign keys of what it holds; a cascade deletes; neither needs them to be dirty.
        if not relationship.viewonly and (
            relationship.direction is RelationshipDirection.ONETOMANY
            or relationship.cascade.delete
            or relationship.cascade.delete_orphan
        ):
            yield relationship.mapper
    for other in mapper.registry.mappers:
        for relationship in other.relationships:
            # A primary key that changes is carried to the rows that point to it.
            if (
                relationship.direction is RelationshipDirection.MANYTOONE
                and not relationship.passive_updates
                and mapper.isa(relationship.mapper)
            ):
                yield other
