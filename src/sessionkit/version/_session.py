"""The methods of a session around which SQLAlchemy has no event: for sessionkit's own Session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError

from ..errors import VersionError
from ._flush import bulk, conflict_of
from ._rows import kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..errors import VersionConflict

    _Session = Session
else:
    _Session = object


class VersionAware(_Session):
    """Has `get`, `merge` and the legacy bulk methods raise VersionConflict where SQLAlchemy raises StaleDataError.

    A mixin in front of SQLAlchemy's Session in the MRO. (A flush and ``execute()`` do so in every session.)
    """

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        try:
            return super().get(entity, ident, **options)
        except StaleDataError as error:
            if (conflict := self._conflict_of_get(entity, ident)) is None:
                raise
            raise conflict from error

    def merge(self, instance: Any, **options: Any) -> Any:
        try:
            return super().merge(instance, **options)
        except (StaleDataError, VersionError) as error:
            # VersionError: the object here was expired, so SQLAlchemy compared nothing and assigned the old version.
            if (conflict := self._conflict_of_merge(instance)) is None:
                raise
            raise conflict from error

    def bulk_save_objects(self, objects: Iterable[object], *args: Any, **options: Any) -> None:
        objects = list(objects)
        groups: dict[Mapper[Any], list[Mapping[str, Any]]] = {}
        for obj in objects:
            state = instance_state(obj)
            group = groups.setdefault(state.mapper, [])
            if state.has_identity:
                group.append(state.dict)
        with bulk(self, groups):
            super().bulk_save_objects(objects, *args, **options)

    def bulk_insert_mappings(self, mapper: Any, mappings: Any, *args: Any, **options: Any) -> None:
        with bulk(self, {inspect(mapper): ()}):
            super().bulk_insert_mappings(mapper, mappings, *args, **options)

    def bulk_update_mappings(self, mapper: Any, mappings: Iterable[dict[str, Any]]) -> None:
        mappings = list(mappings)
        with bulk(self, {inspect(mapper): mappings}):
            super().bulk_update_mappings(mapper, mappings)

    def _conflict_of_get(self, entity: Any, ident: Any) -> VersionConflict | None:
        mapper: Mapper[Any] = inspect(entity)
        kind = kind_of(mapper)
        identity = _identity(mapper, ident)
        known = self.identity_map.get(mapper.identity_key_from_primary_key(identity))
        if kind is None or known is None:
            return None
        state = instance_state(known)
        return conflict_of(self, [(state.mapper, identity, state.dict.get(kind.attribute))])

    def _conflict_of_merge(self, instance: Any) -> VersionConflict | None:
        top = instance_state(instance)
        states = [top, *(state for _, _, state, _ in top.mapper.cascade_iterator("merge", top))]
        rows = [
            (state.mapper, state.identity, version)
            for state in states
            if (kind := kind_of(state.mapper)) is not None
            and state.identity is not None
            and (version := state.dict.get(kind.attribute)) is not None
        ]
        return conflict_of(self, rows)


def _identity(mapper: Mapper[Any], ident: Any) -> tuple[Any, ...]:
    """Return a key in any of the forms that `get` takes as a tuple."""
    if isinstance(ident, dict):
        named = cast("dict[str, Any]", ident)
        return tuple(named[mapper.get_property_by_column(column).key] for column in mapper.primary_key)
    return tuple(cast("list[Any]", ident)) if isinstance(ident, (tuple, list)) else (ident,)
