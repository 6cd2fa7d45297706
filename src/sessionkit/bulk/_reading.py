"""What the verbs share when they turn chunks into pages: errors per row, required keys, grouping and sorting."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..errors import BulkError, describe
from ._page import Page
from ._plan import OMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._build import Builder
    from ._context import CallContext
    from ._plan import MappingPlan, Slot
    from ._rows import Chunk, Read

    Refuse = Callable[[BulkError], None]


def build(call: CallContext, builder: Builder, chunk: Chunk, read: Read) -> Page:
    """Return a page of the rows that were read. Refuse a row whose default or composite raises."""
    rows, places, context = read.rows, read.places, call.context
    try:
        if read.values is not None and builder.plain == read.names:
            values = read.values
        elif read.values is not None and len(builder.plain) > 1:
            order = [read.names.index(name) for name in builder.plain]
            values = list(map(itemgetter(*order), read.values))
        else:
            values = builder.build(rows, context)
    except Exception:  # noqa: BLE001 - raised by the user's default; found again below, with its row
        values, kept = list[tuple[Any, ...]](), list[int]()
        for place, row in zip(places, rows, strict=True):
            try:
                values.append(builder.build([row], context)[0])
                kept.append(place)
            except Exception as error:  # noqa: BLE001 - as above
                call.refuse(_of(chunk, place, f"row {chunk.start + place}: {describe(error)}", cause=error))
        places = kept
    positions: Sequence[int]
    given: list[Any]
    if isinstance(places, range):
        positions, given = range(chunk.start, chunk.start + len(places)), chunk.rows
    else:
        positions, given = [chunk.start + place for place in places], [chunk.rows[place] for place in places]
    return Page(builder.cells, values, positions, given, may_omit=builder.may_omit)


def _of(chunk: Chunk, place: int, message: str, column: str | None = None, cause: Exception | None = None) -> BulkError:
    position, row = chunk.start + place, chunk.rows[place]
    if cause is None:
        return BulkError(message, position=position, row=row, column=column)
    error = BulkError.of(cause, message, position=position, row=row, column=column)
    error.__cause__ = cause
    return error


_LACKING = {type(None), type(OMIT)}


def with_keys(page: Page, plan: MappingPlan, slots: Iterable[Slot], what: str, refuse: Refuse) -> Page:
    """Return the page without the rows that have no value in one of the `slots`; those go to `refuse`.

    Args:
        page: the rows.
        plan: the plan of the mapped class.
        slots: the columns that must have a value.
        what: what the columns are for, for the error.
        refuse: receives the errors.
    """
    where = {cell.slot: place for place, cell in enumerate(page.cells)}
    lacking: dict[int, Slot] = {}
    for slot in slots:
        place = where.get(slot)
        if place is None:
            lacking.update(dict.fromkeys(range(len(page)), slot))
            continue
        take = itemgetter(place)
        if not _LACKING.isdisjoint(map(type, map(take, page.values))):
            values = enumerate(map(take, page.values))
            lacking.update({i: slot for i, value in values if value is None or value is OMIT})
    if not lacking:
        return page
    for place, slot in sorted(lacking.items(), key=itemgetter(0)):
        position = page.positions[place]
        message = f"row {position} has no value for {slot.label!r}, {what} of {plan.name}"
        refuse(BulkError(message, position=position, row=page.rows[place], column=slot.label))
    return page.only(i for i in range(len(page)) if i not in lacking)


def group(read: Read) -> list[Read]:
    """Return the rows grouped by their sets of keys."""
    if len(read.shapes) == 1:
        return [read]
    by_shape: dict[frozenset[str], tuple[list[int], list[Any]]] = {}
    shapes: dict[tuple[str, ...], frozenset[str]] = {}  # sets are expensive, and there are few different orders
    for place, row in zip(read.places, read.rows, strict=True):
        order = tuple(row)
        shape = shapes.get(order)
        if shape is None:
            shape = shapes[order] = frozenset(order)
        places, rows = by_shape.setdefault(shape, ([], []))
        places.append(place)
        rows.append(row)
    return [type(read)(places, rows, {shape}) for shape, (places, rows) in by_shape.items()]


def sorted_by_key(page: Page, places: Sequence[int]) -> Page:
    """Return the page in the order of its key, if its keys can be compared.

    All transactions then lock rows in the same order, and each page of the index is read once.
    """
    values = page.values
    keys: Sequence[Any] = page.at(places)
    if len(places) == 1:
        keys = [key for (key,) in keys]  # bare values compare three times as fast
    try:
        order = sorted(range(len(values)), key=keys.__getitem__)
    except (TypeError, ArithmeticError):  # values of different kinds, or a NaN among decimals
        return page
    return page if order == list(range(len(values))) else page.only(order)
