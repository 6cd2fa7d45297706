"""What a bulk call hands back, and how it is added up page by page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import classify, without_frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._page import Page

Status = Literal["inserted", "updated", "unchanged", "rejected"]
Method = Literal["auto", "copy", "unnest", "temp", "executemany", "sqlalchemy"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out under ``on_error="collect"``.

    Attributes:
        position: where it stood in the input, counted from 0.
        row: the row as it was given.
        error: what a call without ``on_error="collect"`` would have raised: a `BulkError` or a `VersionConflict`; without
            traceback, cause and context, so that it holds its row and no more.
    """

    position: int
    row: Any
    error: Exception

    @property
    def code(self) -> str | None:
        """The SQLSTATE, or SQLite's name of the error (``SQLITE_CONSTRAINT_CHECK``); None where no database refused it."""
        return classify(self.error).code


@dataclass(slots=True)
class BulkResult:
    """What a bulk call did.

    Attributes:
        inserted, updated, unchanged, deleted: how many rows.
        returned: what `returning` asked for, one item for each row in the order of the input; None for a row that
            was rejected. Empty where nothing was asked for.
        status: for each row of the input ``"inserted"``, ``"updated"``, ``"unchanged"`` or ``"rejected"``, where
            ``status=True`` asked for it.
        rejected: the rows that ``on_error="collect"`` left out, in the order of the input.
        checked: versions were compared.
        method: which way was taken; several, joined by ``+``, where parts of the input took different ones; empty
            for an empty input.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    returned: list[Any] = field(default_factory=list[Any])
    status: list[Status] = field(default_factory=list[Status])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    checked: bool = False
    method: str = ""


@dataclass(slots=True)
class PageResult:
    """What became of a page.

    Attributes:
        keys: the primary key of each row, where it was asked for; None where a trigger has taken the row out.
        status: of each row, where it was asked for.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    keys: Sequence[tuple[Any, ...] | None] | None = None
    status: Sequence[Status] | None = None

    @classmethod
    def of(cls, status: Sequence[Status], keys: Sequence[tuple[Any, ...] | None] | None, *, told: bool) -> PageResult:
        """Return the outcome of a page of which every row is known; `told`: it is asked for."""
        return cls(
            inserted=status.count("inserted"),
            updated=status.count("updated"),
            unchanged=status.count("unchanged"),
            keys=keys,
            status=status if told else None,
        )

    @classmethod
    def merged(cls, parts: Sequence[tuple[Sequence[int], PageResult]]) -> PageResult:
        """Return the outcome of a page of which parts were sent apart: (places in the page, outcome)."""
        whole = cls()
        keys: dict[int, tuple[Any, ...] | None] = {}
        status: dict[int, Status] = {}
        for places, part in parts:
            whole.inserted += part.inserted
            whole.updated += part.updated
            whole.unchanged += part.unchanged
            whole.deleted += part.deleted
            keys.update(zip(places, part.keys or (), strict=False))
            status.update(zip(places, part.status or (), strict=False))
        if keys:
            whole.keys = [keys[place] for place in sorted(keys)]
        if status:
            whole.status = [status[place] for place in sorted(status)]
        return whole


class Tally:
    """Adds up the outcomes of a call.

    Attributes:
        doubtful: fewer rows were written than were sent, so that a key of the input may have no row.
    """

    def __init__(self) -> None:
        self.result = BulkResult()
        self.length = 0
        self.doubtful = False
        self._keys: dict[int, tuple[Any, ...] | None] = {}
        self._keys_in_order: list[tuple[Any, ...] | None] | None = []  # None: some came out of order
        self._status: dict[int, Status] = {}
        self._methods: dict[str, None] = {}
        self._instead: dict[int, int] = {}

    def add(self, page: Page, outcome: PageResult, method: str) -> None:
        result = self.result
        result.inserted += outcome.inserted
        result.updated += outcome.updated
        result.unchanged += outcome.unchanged
        result.deleted += outcome.deleted
        if outcome.inserted + outcome.updated + outcome.unchanged + outcome.deleted < len(page):
            self.doubtful = True
        if method:
            self._methods[method] = None
        if outcome.keys is not None:
            self._add_keys(page.positions, outcome.keys)
        if outcome.status is not None:
            self._status.update(zip(page.positions, outcome.status, strict=True))

    def reject(self, position: int, row: Any, error: Exception) -> None:
        self.result.rejected.append(Rejected(position, row, without_frames(error)))

    def _add_keys(self, positions: Sequence[int], keys: Sequence[tuple[Any, ...] | None]) -> None:
        ordered = self._keys_in_order
        if ordered is not None:
            if isinstance(positions, range) and positions.start == len(ordered):
                ordered += keys
                return
            self._keys = dict(enumerate(ordered))
            self._keys_in_order = None
        self._keys.update(zip(positions, keys, strict=True))

    def stands_for(self, kept: int, left_out: int) -> None:
        """Note that a row was left out, because another one has the same key."""
        self._instead[left_out] = kept

    def _kept(self, position: int) -> int:
        while position in self._instead:
            position = self._instead[position]
        return position

    def keys(self) -> list[tuple[Any, ...] | None]:
        """Return the primary key of each row of the input, None for a rejected one."""
        ordered = self._keys_in_order
        if ordered is not None:
            if len(ordered) == self.length and not self._instead:
                return list(ordered)
            self._add_keys((), ())
        positions: Iterable[int] = range(self.length)
        if self._instead:
            positions = map(self._kept, positions)
        return list(map(self._keys.get, positions))

    def close(self, *, status: bool) -> BulkResult:
        result = self.result
        result.method = "+".join(self._methods)
        result.rejected.sort(key=lambda rejected: rejected.position)
        if status:
            for left_out in self._instead:
                self._status[left_out] = "unchanged" if self._kept(left_out) in self._status else "rejected"
            result.status = [self._status.get(position, "rejected") for position in range(self.length)]
        return result


class RowFault(Exception):
    """Some rows of a page cannot be written, and these are they; what the page had written is to be undone.

    Args:
        errors: what is wrong, by place in the page.
        ignored: the places of rows that are to be left out without a word.
    """

    def __init__(self, errors: dict[int, Exception], ignored: Iterable[int] = ()) -> None:
        super().__init__()
        self.errors = errors
        self.ignored = frozenset(ignored)


class Again(Exception):
    """A path has learnt something about the table, and can do the page now; what it has written is to be undone."""


class Ended(Exception):
    """What a page had written could not be undone for itself: the transaction is gone. `error` is what it failed with."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Unfit(Exception):
    """A fast path finds only now that it cannot do this page; what it has written is to be undone."""


class Unpackable(Exception):
    """A fast path cannot express a value, and finds it while it sends; the cause tells. What it has sent is to be undone."""


class Mismatch(Exception):
    """A statement matched another number of rows than it was sent for; what it has written is to be undone.

    Args:
        count: how many it matched.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count
