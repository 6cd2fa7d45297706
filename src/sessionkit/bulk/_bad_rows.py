"""Which rows of a page cannot be written: one more sending, of a kind that goes on behind each of them.

Where the database knows such a kind, bad rows cost little more than good ones. Where it does not, `_faults` sends blocks
with savepoints around them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _counted, _sifted
from ._result import PageResult

if TYPE_CHECKING:
    from ._context import CallContext
    from ._page import Page

LEAST = 4
"""Below so many rows, savepoints around each of them cost no more."""


class BadRows(NamedTuple):
    """The bad rows of a page.

    Attributes:
        errors: what was raised for each, by place in the page; of a call that raises, the first one alone.
        outcome: of the others, which are written; None where they are still to be sent.
    """

    errors: dict[int, Exception]
    outcome: PageResult | None


class _Undone(Exception):
    """The rows were only tried; what was written of them is to be undone."""


def find(call: CallContext, page: Page) -> BadRows | None:
    """Find the bad rows of a page; None where the database has no way to tell them, or finds none."""
    way: Any = {"counted": _counted, "sifted": _sifted}.get(call.dialect.tells_bad_rows)
    if way is None or len(page) < LEAST or call.plan.table is None or not page.cells:
        return None
    search = way.prepare(call, page)
    if search is None:
        return None
    errors: dict[int, Exception] = {}
    outcome: PageResult | None = None

    def send() -> PageResult:
        kept = search(errors)
        if kept is None or not call.collects:
            raise _Undone
        return kept  # type: ignore[no-any-return]

    with suppress(_Undone):
        try:
            outcome = call.attempt(send)
        except way.Unable:
            return None
    return BadRows(errors, outcome) if errors or outcome is not None else None
