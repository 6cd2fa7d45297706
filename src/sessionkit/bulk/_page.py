"""A part of the input in the form that every path to the database accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ._plan import OMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from ._plan import Slot

Role = Literal["key", "expect", "set", "onupdate", "new"]


class Cell(NamedTuple):
    """A place in the tuples of a page.

    Roles: "key" finds the row; "expect" is the version it must have; "set" is written; "onupdate" is written too, by the
    column's onupdate; "new" is written by an INSERT but not by the update branch of an upsert.
    """

    role: Role
    slot: Slot


@dataclass(slots=True)
class Page:
    """Rows of one shape.

    Attributes:
        cells: what each place of the tuples means.
        values: one tuple of Python values per row, before processing by their types.
        positions: the position of each row in the input.
        rows: the rows as they were passed in.
        bumps: the statement itself increments the version, because the rows do not hold the old one.
        may_omit: the cells in which a row can hold OMIT.
        uncounted: the number of rows written means nothing, because a trigger suppresses some of them.
        nulls: columns of an upsert that become NULL in an existing row: the rows hold None, and a new row gets the default.
    """

    cells: tuple[Cell, ...]
    values: list[tuple[Any, ...]]
    positions: Sequence[int]
    rows: Sequence[Any]
    bumps: bool = False
    may_omit: tuple[int, ...] = ()
    uncounted: bool = False
    nulls: tuple[Slot, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def part(self, low: int, high: int) -> Page:
        return replace(self, values=self.values[low:high], positions=self.positions[low:high], rows=self.rows[low:high])

    def only(self, chosen: Iterable[int]) -> Page:
        """Return the rows at these places of the page, in this order."""
        places = list(chosen)
        return replace(
            self,
            values=list(map(self.values.__getitem__, places)),
            positions=list(map(self.positions.__getitem__, places)),
            rows=list(map(self.rows.__getitem__, places)),
        )

    def without(self, left_out: Collection[int]) -> Page:
        """Return the page without the rows at these places."""
        gone = set(left_out)
        return self.only(place for place in range(len(self)) if place not in gone)

    def by_types(self) -> list[list[int]]:
        """Return the places of the rows, grouped by the types of their values."""
        groups: dict[tuple[type, ...], list[int]] = {}
        for place, row in enumerate(self.values):
            groups.setdefault(tuple(map(type, row)), []).append(place)
        return list(groups.values())

    def places(self, *roles: Role) -> list[int]:
        return [i for i, cell in enumerate(self.cells) if cell.role in roles]

    def keys(self) -> list[tuple[Any, ...]]:
        """Return the key of each row."""
        return self.at(self.places("key"))

    def at(self, places: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return the values of the rows in these cells."""
        if len(places) == 1:
            (only,) = places
            return self.values if len(self.cells) == 1 else [(row[only],) for row in self.values]
        return list(map(itemgetter(*places), self.values)) if places else [()] * len(self)

    def of_slots(self, slots: Sequence[Slot]) -> list[tuple[Any, ...]]:
        """Return the values that each row has for these columns."""
        where = {cell.slot: place for place, cell in enumerate(self.cells)}
        return self.at([where[slot] for slot in slots])

    def with_versions(self, versions: Sequence[Any], slot: Slot, following: Callable[[Any], Any]) -> Page:
        """Return the page with the version that each row must have, and the one that it then gets."""
        more = [(version, following(version)) for version in versions]
        return replace(self.with_cells([Cell("expect", slot), Cell("set", slot)], more), bumps=False)

    def with_cells(self, cells: Sequence[Cell], rows: Sequence[tuple[Any, ...]]) -> Page:
        """Return the page with more cells, at the end."""
        values = [(*row, *more) for row, more in zip(self.values, rows, strict=True)]
        return replace(self, cells=(*self.cells, *cells), values=values)

    def by_omission(self, *, null_too: bool) -> list[Page]:
        """Return pages in which each cell is left out either in all rows or in none.

        Args:
            null_too: split also by columns where leaving out means NULL.
        """
        suspects = [
            i
            for i in self.may_omit
            if (null_too or not self.cells[i].slot.omitted_is_null) and any(row[i] is OMIT for row in self.values)
        ]
        if not suspects:
            return [self]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(self.values):
            groups.setdefault(tuple(i for i in suspects if row[i] is OMIT), []).append(place)
        return [self.only(places)._without(omitted) for omitted, places in groups.items()]

    def _without(self, omitted: tuple[int, ...]) -> Page:
        kept = [i for i in range(len(self.cells)) if i not in omitted]
        return replace(
            self,
            cells=tuple(self.cells[i] for i in kept),
            values=[tuple(row[i] for i in kept) for row in self.values],
            may_omit=tuple(place for place, i in enumerate(kept) if i in self.may_omit),
        )
