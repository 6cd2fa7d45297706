"""Finds duplicates among the keys of the input, in as little memory as its order allows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._equality import Equality

    Key = tuple[Any, ...]


class _Run(NamedTuple):
    keys: array[int]
    positions: Sequence[int]


class Seen:
    """The keys seen so far.

    Integers in ascending order take 8 bytes each; all other keys take about 100.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._last: int | None = None
        self._others: dict[Key, int] = {}
        # For keys that may equal others: the original keys, and their positions.
        self._spelled: dict[Key, list[tuple[Key, int]]] = {}

    def duplicates(self, keys: Sequence[Key], positions: Sequence[int], equality: Equality) -> dict[int, int]:
        """Return, for the place of each key seen before, the position of its first appearance.

        Raises:
            TypeError: a key holds a value that cannot be compared.
        """
        run = self._ascending(keys)
        if run is not None and not self._others and isinstance(positions, range):
            self._runs.append(_Run(run, positions))
            self._last = run[-1]
            return {}
        folded = equality.folded(keys)
        fresh = dict(zip(folded, positions, strict=True))
        if not self._runs and len(fresh) == len(keys) and fresh.keys().isdisjoint(self._others):
            self._others |= fresh
            self._spell(keys, folded, positions)
            return {}
        found: dict[int, int] = {}
        for place, (key, fold, position) in enumerate(zip(keys, folded, positions, strict=True)):
            first = self._in_runs(fold)
            if first is None:
                first = self._first(key, fold, position, equality)
            if first != position:
                found[place] = first
        return found

    def _spell(self, keys: Sequence[Key], folded: Sequence[Key], positions: Sequence[int]) -> None:
        if folded is not keys:
            self._spelled.update(
                (fold, [(key, position)])
                for key, fold, position in zip(keys, folded, positions, strict=True)
                if key != fold
            )

    def _first(self, key: Key, fold: Key, position: int, equality: Equality) -> int:
        """Return the position where a key first appeared: this one if it is new."""
        known = self._others.setdefault(fold, position)
        if known == position:
            if key != fold:
                self._spelled[fold] = [(key, position)]
            return position
        spellings = self._spelled.setdefault(fold, [(fold, known)])
        for other, first in spellings:
            if equality.one_key(other, key):
                return first
        spellings.append((key, position))
        return position

    def _ascending(self, keys: Sequence[Key]) -> array[int] | None:
        if len(keys[0]) != 1:
            return None
        plain = [key for (key,) in keys]
        if set(map(type, plain)) != {int} or (self._last is not None and plain[0] <= self._last):
            return None
        if not all(map(lt, plain, islice(plain, 1, None))):
            return None
        try:
            return array("q", plain)
        except OverflowError:
            return None

    def _in_runs(self, key: Key) -> int | None:
        if not self._runs or len(key) != 1 or not isinstance(key[0], int):
            return None
        number = key[0]
        which = bisect_left(self._runs, number, key=lambda run: run.keys[-1])
        if which == len(self._runs):
            return None
        keys, positions = self._runs[which]
        place = bisect_left(keys, number)
        return positions[place] if place < len(keys) and keys[place] == number else None
