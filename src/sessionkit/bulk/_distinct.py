"""Each key once: what to do with a second row for the same key in the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BulkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._context import CallContext
    from ._duplicates import Seen
    from ._equality import Equality
    from ._options import OnDuplicate
    from ._page import Page


class Keyed(Protocol):
    """Rows that each find a row of the table by key: a `KeyedWork`."""

    on_duplicate: OnDuplicate
    seen: Seen

    def where(self, page: Page) -> Sequence[int]:
        """Return the cells that find a row."""
        ...

    def equality(self, call: CallContext, page: Page) -> Equality:
        """Return the `Equality` that decides which keys are the same key in the database."""
        ...

    def competing(self, call: CallContext, page: Page, places: Sequence[int]) -> list[int]:
        """Return the rows that could be the same row of the table as another one with their key."""
        ...

    def competes_with_table(self, call: CallContext, page: Page, place: int) -> bool:
        """Return whether an earlier row with this key, already written, could be the same row of the table."""
        ...


def without_duplicates(call: CallContext, work: Keyed, pages: list[Page]) -> list[Page]:
    """Return the pages of a chunk with each key once.

    A row whose key appeared before is refused, or one of the two is dropped, depending on `work.on_duplicate`.
    """
    keys = [key for page in pages for key in page.at(work.where(page))]
    if not keys:
        return pages
    positions: Sequence[int] = pages[0].positions
    order: Sequence[int] = range(len(keys))
    if len(pages) > 1:  # restore the order of the input
        told = [position for page in pages for position in page.positions]
        order = sorted(order, key=told.__getitem__)
        keys, positions = [keys[i] for i in order], [told[i] for i in order]
    try:
        found = work.seen.duplicates(keys, positions, work.equality(call, pages[0]))
    except TypeError:
        return without_duplicates(call, work, [_comparable(call, work, page) for page in pages])
    if not found:
        return pages
    everywhere = [(number, place) for number, page in enumerate(pages) for place in range(len(page))]
    where = [everywhere[i] for i in order]  # (page, place in it)
    gone = {where[i] for i in _left_out(call, work, pages, found, positions, where)}
    return [
        page.only(place for place in range(len(page)) if (number, place) not in gone)
        for number, page in enumerate(pages)
    ]


def _left_out(
    call: CallContext,
    work: Keyed,
    pages: list[Page],
    found: dict[int, int],
    positions: Sequence[int],
    where: list[tuple[int, int]],
) -> list[int]:
    """Return the rows that must not be written, as places in `positions` and `where`."""
    at = {position: i for i, position in enumerate(positions)}
    by_first: dict[int, list[int]] = {}
    for i, first in found.items():
        by_first.setdefault(first, []).append(i)
    left_out: list[int] = []
    for first, later in by_first.items():
        same = [at[first], *later] if first in at else later
        competing = [i for i in same if work.competing(call, pages[where[i][0]], [where[i][1]])]
        if first in at:
            kept, others = positions[competing[0]] if competing else first, competing[1:]
        elif competing and work.competes_with_table(call, pages[where[competing[0]][0]], where[competing[0]][1]):
            kept, others = first, competing
        else:
            kept, others = first, competing[1:]
        if work.on_duplicate == "last":
            last = positions[competing[-1]] if competing else first
            others = competing[:-1]
            for i in others:
                call.tally.stands_for(last, positions[i])
        for i in others if work.on_duplicate != "last" else ():
            if work.on_duplicate == "first":
                call.tally.stands_for(kept, positions[i])
                continue
            page, place = pages[where[i][0]], where[i][1]
            key = page.at(work.where(page))[place]
            message = (
                f"row {positions[i]} has the same key as row {kept}: {', '.join(map(repr, key))}; "
                "on_duplicate='first' or 'last' would keep one of them"
            )
            call.refuse(BulkError(message, position=positions[i], row=page.rows[place]))
        left_out += others
    return left_out


def _comparable(call: CallContext, work: Keyed, page: Page) -> Page:
    """Return the page without the rows whose key cannot be compared; refuse those."""
    equality, where = work.equality(call, page), work.where(page)
    kept: list[int] = []
    for place, key in enumerate(page.at(where)):
        try:
            hash(equality.folded([key])[0])
        except TypeError:
            column = next((page.cells[i].slot.label for i in where if _has_no_hash(page.values[place][i])), None)
            position = page.positions[place]
            message = f"row {position} has a key that cannot be compared with other keys: {', '.join(map(repr, key))}"
            call.refuse(BulkError(message, position=position, row=page.rows[place], column=column))
        else:
            kept.append(place)
    return page.only(kept)


def _has_no_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False
