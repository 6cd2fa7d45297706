"""What `update`, `upsert` and `delete` share: rows that find a row, each key once, in the order of the keys."""

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
    """Rows that each find a row of the table.

    Attributes:
        finds_by: the columns that find it.
        missing: what becomes of a key without a row.
        on_duplicate: what becomes of a second row of the same key.
    """

    verb: str
    wants_keys = False
    on_duplicate: OnDuplicate
    missing: Missing

    def __init__(
        self, plan: MappingPlan, shapes: Shapes, finds_by: Sequence[Slot], missing: Missing, on_duplicate: OnDuplicate
    ) -> None:
        self.plan = plan
        self.shapes = shapes
        self.finds_by = finds_by
        self.missing = missing
        self.on_duplicate = on_duplicate
        self.seen = Seen()
        self._equality: Equality | None = None

    @abstractmethod
    def builder(self, keys: frozenset[str]) -> Builder:
        """Return what builds the pages of rows with these keys."""

    def demanded(self) -> Sequence[tuple[Slot, str]]:
        """Return the columns that each row has to hold, and what they are."""
        return [(slot, "the key") for slot in self.finds_by]

    def finished(self, call: CallContext, page: Page) -> Page:
        """Return the page as it is to be sent, without the rows that need not be."""
        return page

    def pages(self, call: CallContext, chunk: Chunk) -> Iterator[Page]:
        pages = self.read(call, chunk)
        if not pages:
            return
        for page in without_duplicates(call, self, pages):
            if page.values:
                yield self.finished(call, sorted_by_key(page, self.where(page)))

    def read(self, call: CallContext, chunk: Chunk) -> list[Page]:
        """Return the pages of a chunk, as it came."""
        return self.built(call, chunk, self.shapes.read(chunk, call.refuse))

    def built(self, call: CallContext, chunk: Chunk, read: Read) -> list[Page]:
        """Return the pages of what was read, one for each set of keys."""
        return [page for part in group(read) if (page := self._page(call, chunk, part)).values]

    def equality(self, call: CallContext, page: Page) -> Equality:
        """Return what tells which keys are one key in the database."""
        if self._equality is None:
            self._equality = Equality(call, [page.cells[place].slot for place in self.where(page)])
        return self._equality

    def competing(self, call: CallContext, page: Page, places: Sequence[int]) -> list[int]:
        """Return those of the rows that can be one row of the table with another one of their key: all."""
        return list(places)

    def competes_with_table(self, call: CallContext, page: Page, place: int) -> bool:
        """Tell whether an earlier row of this row's key, which is written already, can be one row with it: always."""
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
                    message = f"row {position} holds no value for {slot.label!r}, {what} of {self.plan.name}"
                    call.refuse(BulkError(message, position=position, row=chunk.rows[place], column=slot.label))
                read = type(read)([], [], read.shapes)
                break
        if not read.rows:
            return Page((), [], [], [])
        page = build(call, self.builder(keys), chunk, read)
        return with_keys(page, self.plan, self.finds_by, "the key", call.refuse)

    def compare(self, call: CallContext, page: Page, count: int) -> None:
        """Raise if not all rows were matched; see `_conflicts.compare`."""
        compare(page, count)

    def verify(self, call: CallContext, page: Page) -> None:
        judge(call, page)

    def finish(self, call: CallContext, tally: Tally) -> None:
        tally.close(status=False)
