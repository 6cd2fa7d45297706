"""Rows that an UPDATE or DELETE did not match: they are gone, or have another version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.exc import StaleDataError

from ..errors import BulkError, VersionConflict
from ..version import Conflict, Conflicts
from ._lookup import find
from ._result import Mismatch, RowFault

if TYPE_CHECKING:
    from ._context import CallContext
    from ._page import Page


def compare(page: Page, count: int) -> None:
    """Compare the number of rows written with the number sent.

    Raises:
        Mismatch: fewer rows were matched than sent. The call undoes the statement first, and then asks which ones.
    """
    if count != len(page) and not page.uncounted:
        raise Mismatch(count)


def rows_taken_out(call: CallContext, page: Page, count: int) -> StaleDataError:
    """Return the error for rows that did not match although they all exist with the expected version."""
    return StaleDataError(
        f"of {len(page)} rows of {call.plan.name}, {count} were matched by bulk.{call.work.verb}(), although all of "
        "them exist with the expected version; look for a trigger or a rule that suppresses the write"
    )


def judge(call: CallContext, page: Page) -> None:
    """Compare the rows of a page with those in the database, and lock them.

    Raises:
        RowFault: some rows are gone, or have another version.
    """
    plan = call.plan
    expects = page.places("expect")
    keys = page.keys()
    versions = [] if plan.version is None or not expects else [plan.version.column]
    found = find(call, [slot.column for slot in plan.key], keys, also=versions, of_class=True, lock=True)
    errors: dict[int, Exception] = {}
    ignored: list[int] = []
    for place, key in enumerate(keys):
        row = found.get(key)
        if row is None:
            if call.work.missing == "ignore":  # type: ignore[attr-defined]
                ignored.append(place)
            else:
                errors[place] = _conflict(call, page, place, key, None) if expects else _missing(call, page, place)
        elif expects and row[0] != page.values[place][expects[0]]:
            errors[place] = _conflict(call, page, place, key, row[0])
    if errors or ignored:
        raise RowFault(errors, ignored)


def _missing(call: CallContext, page: Page, place: int) -> BulkError:
    position, key = page.positions[place], page.keys()[place]
    message = (
        f"row {position}: there is no {call.plan.name} with the key {', '.join(map(repr, key))} to {call.work.verb}; "
        "missing='ignore' leaves such rows out"
    )
    column = call.plan.key[0].label if len(key) == 1 else None
    return BulkError.of(StaleDataError(message), message, position=position, row=page.rows[place], column=column)


def _conflict(call: CallContext, page: Page, place: int, key: tuple[Any, ...], current: Any) -> VersionConflict:
    attempted: dict[str, Any] | None = None
    if call.work.verb != "delete":
        attempted = {
            page.cells[i].slot.label: page.values[place][i]
            for i in page.places("set")
            if page.cells[i].slot is not call.plan.version
        }
    conflict = Conflict(
        entity=call.plan.mapper.class_,
        identity=key,
        expected=page.values[place][page.places("expect")[0]],
        current=current,
        deleted=current is None,
        attempted=attempted,
    )
    return VersionConflict(Conflicts.of([conflict]))
