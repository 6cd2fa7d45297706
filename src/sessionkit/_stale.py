"""`StaleAware`: the session methods that SQLAlchemy surrounds with no event.

While no versioned class is mapped, each of them only calls SQLAlchemy's method. The first versioned class sets `versions`,
so a session loads nothing of the version machinery before it can need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import orm
from sqlalchemy.orm.exc import StaleDataError

from .errors import VersionError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from .errors import VersionConflict

    _Session = orm.Session
else:
    _Session = object


class Versions(Protocol):
    """What the room `version` does for a session's methods."""

    def conflict_of_get(self, session: orm.Session, entity: Any, ident: Any) -> VersionConflict | None:
        """Return the conflict that made ``session.get()`` fail, or None if the class does not use our versions."""
        ...

    def conflict_of_merge(self, session: orm.Session, instance: object) -> VersionConflict | None:
        """Return the conflict that made ``session.merge()`` fail, or None if no versioned row is stale."""
        ...

    def around_objects(self, session: orm.Session, objects: list[object]) -> AbstractContextManager[None]:
        """Surround ``session.bulk_save_objects()``."""
        ...

    def around_mappings(
        self, session: orm.Session, mapper: Any, mappings: list[dict[str, Any]]
    ) -> AbstractContextManager[None]:
        """Surround ``session.bulk_update_mappings()``, or ``session.bulk_insert_mappings()``: then `mappings` is empty."""
        ...


versions: Versions | None = None
"""Set by the first versioned class that is mapped."""


class StaleAware(_Session):
    """Makes `get`, `merge` and the legacy bulk methods raise VersionConflict where SQLAlchemy raises StaleDataError.

    A mixin before SQLAlchemy's Session in the MRO. (A flush and ``execute()`` do so in every session.)
    """

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        try:
            return super().get(entity, ident, **options)
        except StaleDataError as error:
            if versions is None or (conflict := versions.conflict_of_get(self, entity, ident)) is None:
                raise
            raise conflict from error

    def merge(self, instance: Any, **options: Any) -> Any:
        try:
            return super().merge(instance, **options)
        except (StaleDataError, VersionError) as error:
            # VersionError: the object had expired, so SQLAlchemy compared nothing and assigned the old version.
            if versions is None or (conflict := versions.conflict_of_merge(self, instance)) is None:
                raise
            raise conflict from error

    def bulk_save_objects(self, objects: Iterable[object], *args: Any, **options: Any) -> None:
        if versions is None:
            return super().bulk_save_objects(objects, *args, **options)
        objects = list(objects)
        with versions.around_objects(self, objects):
            return super().bulk_save_objects(objects, *args, **options)

    def bulk_insert_mappings(self, mapper: Any, mappings: Any, *args: Any, **options: Any) -> None:
        if versions is None:
            return super().bulk_insert_mappings(mapper, mappings, *args, **options)
        with versions.around_mappings(self, mapper, []):
            return super().bulk_insert_mappings(mapper, mappings, *args, **options)

    def bulk_update_mappings(self, mapper: Any, mappings: Iterable[dict[str, Any]]) -> None:
        if versions is None:
            return super().bulk_update_mappings(mapper, mappings)
        mappings = list(mappings)
        with versions.around_mappings(self, mapper, mappings):
            return super().bulk_update_mappings(mapper, mappings)
