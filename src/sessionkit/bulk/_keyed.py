"""What `update`, `upsert` and `delete` share: they find rows by key, each key once, in key order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..errors import BulkError
from ._conflicts import compare, judge
from ._distinct import without_duplicates
from ._duplicates import Seen
from ._equality import Equality
from ._page import Page
from ._reading import build, group, sorted_by_key, with_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._build import Builder
    from ._context import CallContext
    from ._options import Missing, OnDuplicate
    from ._plan import MappingPlan, Slot
    from ._result import Tally
    from ._rows import Chunk, Read, Shapes


class KeyedWork(ABC):
    """Rows that each find a row of the table by key.

    Attributes:
        match_columns: the columns of that key.
        missing: what to do with a key that has no row.
        on_duplicate: what to do with a second row for the same key.
    """

    verb: str
    wants_keys = False
    on_duplicate: OnDuplicate
    missing: Missing

    def __init__(
        self,
        plan: MappingPlan,
        shapes: Shapes,
        match_columns: Sequence[Slot],
        missing: Missing,
        on_duplicate: OnDuplicate,
    ) -> None:
        self.plan = plan
        self.shapes = shapes
        self.match_columns = match_columns
        self.missing = missing
        self.on_duplicate = on_duplicate
        self.seen = Seen()
        self._equality: Equality | None = None

    @abstractmethod
    def builder(self, keys: frozenset[str]) -> Builder:
        """Return the builder of pages for rows with these keys."""

    def demanded(self) -> Sequence[tuple[Slot, str]]:
        """Return the columns that each row must hold, each with a description for the error."""
        return [(slot, "the key") for slot in self.match_columns]

    def finished(self, call: CallContext, page: Page) -> Page:
        """Return the page ready to send, without the rows that need not be sent."""
        return page

    def pages(self, call: CallContext, chunk: Chunk) -> Iterator[Page]:
        pages = self.read(call, chunk)
        if not pages:
            return
        for page in without_duplicates(call, self, pages):
            if page.values:
                yield self.finished(call, sorted_by_key(page, self.where(page)))

    def read(self, call: CallContext, chunk: Chunk) -> list[Page]:
        """Return the pages of a chunk, before sorting and removing duplicates."""
        return self.built(call, chunk, self.shapes.read(chunk, call.refuse))

    def built(self, call: CallContext, chunk: Chunk, read: Read) -> list[Page]:
        """Return the pages of the rows that were read, one for each set of keys."""
        return [page for part in group(read) if (page := self._page(call, chunk, part)).values]

    def equality(self, call: CallContext, page: Page) -> Equality:
        """Return the `Equality` that decides which keys are the same key in the database."""
        if self._equality is None:
            self._equality = Equality(call, [page.cells[place].slot for place in self.where(page)])
        return self._equality

    def competing(self, call: CallContext, page: Page, places: Sequence[int]) -> list[int]:
        """Return the rows that could be the same row of the table as another one with their key: all of them."""
        return list(places)

    def competes_with_table(self, call: CallContext, page: Page, place: int) -> bool:
        """Return whether an earlier row with this key, already written, could be the same row of the table: always."""
        return True

    def where(self, page: Page) -> Sequence[int]:
        """Return the cells that find a row."""
        return [place for place, cell in enumerate(page.cells) if cell.role == "key"]

    def _page(self, call: CallContext, chunk: Chunk, read: Read) -> Page:
        (keys,) = read.shapes
        held = {slot for key in keys for slot in self.plan.slots_of(key)}
        for slot, what in self.demanded():
            if slot not in held:
                for place in read.places:
                    position = chunk.start + place
                    message = f"row {position} has no value for {slot.label!r}, {what} of {self.plan.name}"
                    call.refuse(BulkError(message, position=position, row=chunk.rows[place], column=slot.label))
                read = type(read)([], [], read.shapes)
                break
        if not read.rows:
            return Page((), [], [], [])
        page = build(call, self.builder(keys), chunk, read)
        return with_keys(page, self.plan, self.match_columns, "the key", call.refuse)

    def compare(self, call: CallContext, page: Page, count: int) -> None:
        """Raise if fewer rows were matched than sent; see `_conflicts.compare`."""
        compare(page, count)

    def verify(self, call: CallContext, page: Page) -> None:
        judge(call, page)

    def finish(self, call: CallContext, tally: Tally) -> None:
        tally.close(status=False)
