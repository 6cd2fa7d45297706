"""What a VersionConflict knows about each row. The room `version` reads the rows again and resolves conflicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, SupportsIndex, TypeAlias, overload

from sqlalchemy import inspect

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper, Session

Identity: TypeAlias = tuple[Any, ...]

PolicyName = Literal["client_wins", "database_wins", "merge"]
Policy: TypeAlias = "PolicyName | Callable[[Conflict], PolicyName | Mapping[str, Any]]"


def row_name(entity: type[Any], identity: Identity | None) -> str:
    """Name a row by its class and key, for a message: ``Order 7``."""
    if identity is None:
        return f"a new {entity.__name__}"
    return f"{entity.__name__} {identity[0] if len(identity) == 1 else identity}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """One row that somebody else has changed or deleted.

    Attributes:
        entity: the mapped class.
        identity: the row's primary key, a tuple.
        expected: the version that the row should have had.
        current: the version that it had when the conflict was found, or when `VersionConflict.load` looked; None if the
            row is gone or could not be read.
        deleted: whether the row is gone. None: not known before `VersionConflict.load`.
        attempted: the values that the unit wanted to write, by attribute; None if it wanted to delete the row. A
            many-to-one relationship is in it as its foreign key columns; other relationships are not.
        original: the values as the unit had read them, by attribute. A column is missing if it was never read, or if it
            was changed in place, so that its old value is not known.
        database: all columns by attribute, filled by `VersionConflict.load`; None before that, and if the row is gone.
        bumped: the version was forced on, by `bump_version` or for a child in ``__version_parents__``.
    """

    entity: type[Any]
    identity: Identity
    expected: Any
    current: Any = None
    deleted: bool | None = None
    attempted: Mapping[str, Any] | None = field(default_factory=dict[str, Any])
    original: Mapping[str, Any] = field(default_factory=dict[str, Any])
    database: Mapping[str, Any] | None = None
    bumped: bool = False

    @property
    def mapper(self) -> Mapper[Any]:
        """The mapper of the row's class."""
        mapper: Mapper[Any] = inspect(self.entity)
        return mapper

    def __str__(self) -> str:
        row = row_name(self.entity, self.identity)
        if self.deleted:
            return f"{row} was deleted by somebody else (version {self.expected!r} was expected)"
        if self.current is None:
            return f"{row} was changed or deleted by somebody else (version {self.expected!r} was expected)"
        return f"{row} was changed by somebody else: version {self.expected!r} was expected, {self.current!r} found"


class Conflicts(Protocol):
    """The conflicts of one flush or statement: a tuple that can be loaded and resolved.

    Attributes:
        others: what else the failed unit had done, as far as it is known, in words.
    """

    others: tuple[str, ...]

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Conflict]: ...
    @overload
    def __getitem__(self, position: SupportsIndex, /) -> Conflict: ...
    @overload
    def __getitem__(self, positions: slice, /) -> tuple[Conflict, ...]: ...

    def load(self, session: Session) -> Self:
        """See `VersionConflict.load`."""
        ...

    def resolve(self, session: Session, policy: Policy, *, partial: bool) -> list[Any]:
        """See `VersionConflict.resolve`."""
        ...
