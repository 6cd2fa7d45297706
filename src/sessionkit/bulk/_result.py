"""What a bulk call returns, and how it is added up page by page."""

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
    """A row that ``on_error="collect"`` left out.

    Attributes:
        position: its position in the input, counted from 0.
        row: the row as it was passed in.
        error: the error that the call would raise without ``on_error="collect"``: a `BulkError` or a `VersionConflict`. It
            has no traceback, cause or context, so it keeps nothing but its row alive.
    """

    position: int
    row: Any
    error: Exception

    @property
    def code(self) -> str | None:
        """The SQLSTATE, or SQLite's error name (``SQLITE_CONSTRAINT_CHECK``); None if the database did not refuse the row."""
        return classify(self.error).code


@dataclass(frozen=True, slots=True)
class Change:
    """What `sync` did to one row.

    Attributes:
        action: ``"inserted"``, ``"updated"`` or ``"deleted"``.
        key: the values of the attributes that `match` names, by attribute.
        old: the row before, by attribute; None if it was inserted.
        new: the row after, by attribute; None if it was deleted.
    """

    action: Literal["inserted", "updated", "deleted"]
    key: dict[str, Any]
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@dataclass(slots=True)
class BulkResult:
    """What a bulk call did.

    Attributes:
        inserted, updated, unchanged, deleted: numbers of rows.
        returned: what `returning` asked for, one item per row in the order of the input; None for a rejected row. Empty
            without `returning`.
        status: with ``status=True``, one of ``"inserted"``, ``"updated"``, ``"unchanged"`` or ``"rejected"`` per row of the
            input.
        rejected: the rows that ``on_error="collect"`` left out, in the order of the input.
        checked: whether versions were compared.
        changes: with ``changes=True``, what `sync` did to each row.
        method: the method used; several, joined by ``+``, if parts of the input used different ones; empty for an empty
            input.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    returned: list[Any] = field(default_factory=list[Any])
    status: list[Status] = field(default_factory=list[Status])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    changes: list[Change] = field(default_factory=list[Change])
    checked: bool = False
    method: str = ""


@dataclass(slots=True)
class PageResult:
    """The result of a page.

    Attributes:
        keys: the primary key of each row, if the call needs them; None for a row that a trigger suppressed.
        status: the status of each row, if the call needs them.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    keys: Sequence[tuple[Any, ...] | None] | None = None
    status: Sequence[Status] | None = None

    @classmethod
    def of(cls, status: Sequence[Status], keys: Sequence[tuple[Any, ...] | None] | None, *, wanted: bool) -> PageResult:
        """Return the result of a page whose rows are all known; `wanted` says whether the call needs the status."""
        return cls(
            inserted=status.count("inserted"),
            updated=status.count("updated"),
            unchanged=status.count("unchanged"),
            keys=keys,
            status=status if wanted else None,
        )

    @classmethod
    def merged(cls, parts: Sequence[tuple[Sequence[int], PageResult]]) -> PageResult:
        """Return the result of a page that was sent in parts: (places in the page, result)."""
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
    """Adds up the results of a call.

    Attributes:
        doubtful: fewer rows were written than sent, so a key of the input may have no row.
    """

    def __init__(self) -> None:
        self.result = BulkResult()
        self.length = 0
        self.doubtful = False
        self._keys: dict[int, tuple[Any, ...] | None] = {}
        self._keys_in_order: list[tuple[Any, ...] | None] | None = []  # None: some arrived out of order
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
        """Note that a row was left out because another one has the same key."""
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
    """Some rows of a page cannot be written: these. What the page has written must be undone.

    Args:
        errors: the errors, by place in the page.
        ignored: the places of rows to leave out silently.
    """

    def __init__(self, errors: dict[int, Exception], ignored: Iterable[int] = ()) -> None:
        super().__init__()
        self.errors = errors
        self.ignored = frozenset(ignored)


class Again(Exception):
    """A path has learned something about the table: undo what it has written, and let it send the page again."""


class Ended(Exception):
    """What a page has written could not be undone on its own: the transaction is gone. `error` is the page's error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Unfit(Exception):
    """A fast path discovers, while sending, that it cannot send this page. What it has written must be undone."""


class Unpackable(Exception):
    """A fast path meets a value that it cannot express while sending; see the cause. What it has sent must be undone."""


class Mismatch(Exception):
    """A statement matched a different number of rows than were sent. What it has written must be undone.

    Args:
        count: the number of rows it matched.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count
