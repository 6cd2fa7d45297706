"""`__version_parents__`: changing a child also changes the version of the aggregate it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.orm import PassiveFlag, RelationshipProperty, attributes

from ..errors import VersionError
from ._rows import PARENTS, kind_of, parents_declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy.orm import InstanceState, Mapper, Session


@dataclass(frozen=True, slots=True)
class _Aggregate:
    """How the objects of a class relate to aggregates."""

    is_child: bool
    collections: tuple[str, ...]  # of children that do not report their own changes


_aggregates: WeakKeyDictionary[Mapper[Any], _Aggregate] = WeakKeyDictionary()


def roots(session: Session, states: Mapping[InstanceState[Any], tuple[bool, bool]]) -> list[object]:
    """Return the versioned parents, at any depth, of everything that a flush is about to change.

    A parent that is itself new or deleted is left out: its own statement takes care of its version.

    Emits a SELECT for a parent that is not in the session.
    """
    climb = _Climb(session, states)
    # By manager: reading `state.mapper` would add an entry to each state.
    managers = {state.manager for state in states}
    concerned = {manager: _aggregate(manager.mapper) for manager in managers}
    concerned = {manager: found for manager, found in concerned.items() if found.is_child or found.collections}
    for state, (deleted, _) in list(states.items()) if concerned else ():
        if state.manager not in concerned:
            continue
        aggregate = concerned[state.manager]
        if aggregate.is_child and (deleted or not state.has_identity or _is_changed(session, state)):
            climb.from_child(state)
        if aggregate.collections and state.has_identity and _have_changed(state, aggregate.collections):
            climb.add(state)
    return list(climb.found.values())


class _Climb:
    """The walk from children up to their parents, visiting each object once."""

    def __init__(self, session: Session, states: Mapping[InstanceState[Any], tuple[bool, bool]]) -> None:
        self._session = session
        self._states = states
        self._seen: set[InstanceState[Any]] = set()
        self.found: dict[InstanceState[Any], object] = {}

    def from_child(self, state: InstanceState[Any]) -> None:
        if state in self._seen:
            return
        self._seen.add(state)
        for relationship in _relationships(state.mapper):
            for parent in _parents(self._session, state, relationship):
                self.add(attributes.instance_state(parent))

    def add(self, parent: InstanceState[Any]) -> None:
        deleted, _ = self._states.get(parent, (False, False))
        if (
            kind_of(parent.mapper) is not None
            and parent.has_identity
            and parent.session is self._session
            and not deleted
        ):
            # The object and not only its state: a session does not keep an unchanged object alive that nothing else refers
            # to.
            self.found[parent] = parent.obj()
        self.from_child(parent)


def _is_changed(session: Session, state: InstanceState[Any]) -> bool:
    """Return whether an object itself changes. Collections concern other tables, except many-to-many ones."""
    many = tuple(rel.key for rel in state.mapper.relationships if rel.secondary is not None and not rel.viewonly)
    obj = state.obj()
    return obj is not None and (session.is_modified(obj, include_collections=False) or _have_changed(state, many))


def _have_changed(state: InstanceState[Any], relationships: Iterable[str]) -> bool:
    return any(state.attrs[name].history.has_changes() for name in relationships)


def _aggregate(mapper: Mapper[Any]) -> _Aggregate:
    aggregate = _aggregates.get(mapper)
    if aggregate is None:
        collections = tuple(_collections_of(mapper))
        aggregate = _aggregates[mapper] = _Aggregate(bool(_declared(mapper)), collections)
    return aggregate


def _declared(mapper: Mapper[Any]) -> tuple[str, ...]:
    declared = parents_declared(mapper)
    if isinstance(declared, str):
        raise VersionError(
            f"{mapper.class_.__name__}.{PARENTS} is the string {declared!r}; it must be a tuple of relationship "
            f"names: ({declared!r},)"
        )
    return tuple(declared)


def _relationships(mapper: Mapper[Any]) -> Iterator[RelationshipProperty[Any]]:
    """Return the relationships to the parents.

    Raises:
        VersionError: a name is not a relationship, or its target has no version.
    """
    for name in _declared(mapper):
        relationship = mapper.relationships.get(name)
        if relationship is None:
            raise VersionError(
                f"{mapper.class_.__name__}.{PARENTS} names {name!r}, which is not a relationship of the class; it has "
                f"{', '.join(sorted(mapper.relationships.keys())) or 'none'}"
            )
        target = relationship.mapper
        if kind_of(target) is None and not _declared(target):
            raise VersionError(
                f"{mapper.class_.__name__}.{PARENTS} names {name!r}, but {target.class_.__name__} is not versioned "
                f"and has no {PARENTS} of its own; let it inherit Versioned"
            )
        yield relationship


def _parents(session: Session, state: InstanceState[Any], relationship: RelationshipProperty[Any]) -> Iterator[object]:
    """Return the parents before and after the change: a child that moves changes both its old and its new parent.

    Objects and not their states: a session does not keep an object alive that it has only read.
    """
    child = state.obj()
    passive = PassiveFlag.PASSIVE_OFF if state.has_identity else PassiveFlag.PASSIVE_NO_INITIALIZE
    for parent in chain(*attributes.get_history(child, relationship.key, passive)):
        if parent is not None:
            yield parent
    # The foreign key may have been set without the relationship.
    mapper, target = state.mapper, relationship.mapper
    pairs = {remote: local for local, remote in relationship.local_remote_pairs or ()}
    if relationship.uselist or not all(column in pairs for column in target.primary_key):
        return
    histories = [
        attributes.get_history(
            child, mapper.get_property_by_column(pairs[column]).key, PassiveFlag.PASSIVE_NO_INITIALIZE
        )
        for column in target.primary_key
    ]
    if not any(history.added or history.deleted for history in histories):
        return
    for values in (
        [next(iter(history.deleted or history.unchanged), None) for history in histories],
        [next(iter(history.added or history.unchanged), None) for history in histories],
    ):
        if None not in values and (parent := session.get(target.class_, tuple(values))) is not None:
            yield parent


def _collections_of(mapper: Mapper[Any]) -> Iterator[str]:
    """Return the collections whose children name this class as their parent.

    With a two-way relationship (back_populates) a child reports its own change. With a one-way relationship only the
    collection knows.
    """
    for relationship in mapper.relationships:
        if relationship.viewonly:
            continue
        for up in _relationships(relationship.mapper):
            pairs = {(remote, local) for local, remote in up.local_remote_pairs or ()}
            if mapper.isa(up.mapper) and pairs == set(relationship.local_remote_pairs or ()):
                yield relationship.key
