"""The rows of a conflict: reading them again, carrying changes over to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, inspect, select
from sqlalchemy.orm import undefer
from sqlalchemy.orm.attributes import instance_state

from ..errors import Conflict, Identity, Policy, VersionConflict, VersionError, row_name
from ._kinds import VersionKind
from ._rows import is_any_of, kind_of
from ._write import bump

if TYPE_CHECKING:
    from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper, Session

_POLICIES = ("client_wins", "database_wins", "merge")


class Conflicts(tuple[Conflict, ...]):  # noqa: SLOT001 - a subclass of tuple cannot have slots
    """The conflicts of one flush or statement.

    Attributes:
        others: what else the failed unit had done, as far as it is known, in words.
    """

    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, conflicts: list[Conflict], others: tuple[str, ...] = ()) -> Conflicts:
        """Return the conflicts together with what else the unit had done."""
        self = cls(conflicts)
        self.others = others
        return self

    def __str__(self) -> str:
        more = f" (and {len(self) - 1} more: see .conflicts)" if len(self) > 1 else ""
        return (
            f"{self[0]}{more}; run the whole unit again, reads included, or apply its changes in a new one with "
            "error.resolve(session, policy)"
        )

    def load(self, session: Session) -> Conflicts:
        """See `VersionConflict.load`."""
        found: dict[tuple[type[Any], Identity], dict[str, Any]] = {}
        for entity, conflicts in self._by_entity():
            props = plain_columns(inspect(entity))
            keys = _key(entity)
            statement = select(*keys, *(getattr(entity, prop.key) for prop in props)).where(
                is_any_of(keys, [conflict.identity for conflict in conflicts])
            )
            for row in session.execute(statement, execution_options={"autoflush": False}):
                values = dict(zip((prop.key for prop in props), row[len(keys) :], strict=True))
                found[entity, tuple(row[: len(keys)])] = values
        return self._with({key: (values[_kind(key[0]).attribute], values) for key, values in found.items()})

    def resolve(self, session: Session, policy: Policy, *, partial: bool) -> list[Any]:
        """See `VersionConflict.resolve`."""
        if not callable(policy) and policy not in _POLICIES:
            raise VersionError(f"the policy must be one of {_POLICIES} or a function of the conflict, not {policy!r}")
        if self.others and not partial:
            raise VersionError(
                f"the failed unit had more to do than the rows in conflict: {', '.join(self.others)}. resolve() "
                "cannot carry those over, so run the whole unit again; or pass partial=True and redo them yourself"
            )
        objects = self._fresh(session)
        loaded = self._with(
            {key: (getattr(obj, _kind(key[0]).attribute), _values(obj)) for key, obj in objects.items()}
        )
        decided = [_decide(conflict, policy) for conflict in loaded]
        unresolved = [conflict for conflict, values in zip(loaded, decided, strict=True) if values is _UNRESOLVED]
        if unresolved:
            raise VersionConflict(Conflicts.of(unresolved, self.others))
        fresh = [objects.get((conflict.entity, conflict.identity)) for conflict in self]
        for conflict, obj, values in zip(loaded, fresh, decided, strict=True):
            if obj is not None:
                _carry_over(session, obj, conflict, values)
        return fresh

    def _fresh(self, session: Session) -> dict[tuple[type[Any], Identity], Any]:
        """Read the objects again. Every decision is based on this one read, and the flush checks that it still holds."""
        fresh: dict[tuple[type[Any], Identity], Any] = {}
        for entity, conflicts in self._by_entity():
            for conflict in conflicts:
                known = session.identity_map.get(conflict.mapper.identity_key_from_primary_key(conflict.identity))
                if known is not None and (known in session.deleted or session.is_modified(known)):
                    raise VersionError(
                        f"{row_name(conflict.entity, conflict.identity)} has changes in this session, which would mix "
                        "with those of the failed unit; resolve a conflict in its own unit, or after "
                        "session.rollback()"
                    )
            statement = (
                select(entity)
                .where(is_any_of(_key(entity), [conflict.identity for conflict in conflicts]))
                .options(*(undefer(getattr(entity, prop.key)) for prop in plain_columns(inspect(entity))))
                .execution_options(populate_existing=True, autoflush=False)
            )
            for obj in session.scalars(statement).unique():
                fresh[entity, instance_state(obj).identity or ()] = obj
        return fresh

    def _by_entity(self) -> list[tuple[type[Any], list[Conflict]]]:
        # In the order of first appearance, even if classes alternate.
        order = {conflict.entity: None for conflict in self}
        return [(entity, [conflict for conflict in self if conflict.entity is entity]) for entity in order]

    def _with(self, found: Mapping[tuple[type[Any], Identity], tuple[Any, Mapping[str, Any]]]) -> Conflicts:
        new: list[Conflict] = []
        for conflict in self:
            current, values = found.get((conflict.entity, conflict.identity), (None, None))
            new.append(replace(conflict, current=current, database=values, deleted=values is None))
        return Conflicts.of(new, self.others)


_UNRESOLVED: Any = object()
_DELETE: Any = object()


def _decide(conflict: Conflict, policy: Policy) -> Any:
    """Return what to write: values by attribute, _DELETE, or _UNRESOLVED."""
    answer = policy(conflict) if callable(policy) else policy
    if answer == "database_wins":
        return None
    if not isinstance(answer, Mapping) and answer not in _POLICIES:
        raise VersionError(
            f"the policy returned {answer!r} for {row_name(conflict.entity, conflict.identity)}; it must return one "
            f"of {_POLICIES} or a mapping of attribute names to values"
        )
    if conflict.database is None:
        # We wanted to delete the row, and it is gone.
        return None if conflict.attempted is None and not isinstance(answer, Mapping) else _UNRESOLVED
    if isinstance(answer, Mapping):
        return answer
    if conflict.attempted is None:
        return _DELETE if answer == "client_wins" else _UNRESOLVED
    return conflict.attempted if answer == "client_wins" else merged(conflict)


def merged(conflict: Conflict) -> Any:
    """Return the values that a three-way merge writes, or _UNRESOLVED."""
    assert conflict.attempted is not None
    assert conflict.database is not None
    values: dict[str, Any] = {}
    for key, ours in conflict.attempted.items():
        theirs = conflict.database[key]
        same = conflict.mapper.column_attrs[key].columns[0].type.compare_values
        if key in conflict.original and same(conflict.original[key], theirs):
            values[key] = ours
        elif _is_sql(ours) or not same(ours, theirs):
            return _UNRESOLVED
    return values


def _is_sql(value: Any) -> bool:
    return hasattr(value, "__clause_element__") or (hasattr(value, "compile") and hasattr(value, "self_group"))


def _carry_over(session: Session, obj: Any, conflict: Conflict, values: Any) -> None:
    if values is _DELETE:
        session.delete(obj)
        return
    if values is None:
        return
    mapper = conflict.mapper
    unknown = set(values) - set(mapper.attrs.keys())
    if unknown:
        raise VersionError(f"{type(obj).__name__} has no attribute {', '.join(sorted(unknown))}")
    for key, value in values.items():
        setattr(obj, key, value)
    if conflict.bumped:
        bump(instance_state(obj))
    # A loaded relationship would keep showing the row that the foreign key used to point to.
    changed = {column for key in values if key in mapper.column_attrs for column in mapper.column_attrs[key].columns}
    stale = [rel.key for rel in mapper.relationships if not rel.uselist and rel.local_columns & changed]
    if stale:
        session.expire(obj, stale)


def plain_columns(mapper: Mapper[Any]) -> list[ColumnProperty[Any]]:
    """Return the attributes of a class that are columns of its tables, without SQL expressions."""
    return [prop for prop in mapper.column_attrs if isinstance(prop.columns[0], Column)]


def _values(obj: Any) -> dict[str, Any]:
    return {prop.key: getattr(obj, prop.key) for prop in plain_columns(instance_state(obj).mapper)}


def _key(entity: type[Any]) -> list[InstrumentedAttribute[Any]]:
    mapper: Mapper[Any] = inspect(entity)
    return [getattr(entity, mapper.get_property_by_column(column).key) for column in mapper.primary_key]


def _kind(entity: type[Any]) -> VersionKind:
    kind = kind_of(inspect(entity))
    if kind is None:
        # A bulk call also finds conflicts of such a class.
        raise VersionError(
            f"the rows of {entity.__name__} cannot be loaded or resolved: the class has its own version_id_col; let "
            "it inherit Versioned, or read its rows with a SELECT"
        )
    return kind
