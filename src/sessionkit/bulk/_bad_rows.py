"""Finds the bad rows of a page by sending it once more, in a way that continues after each bad row.

If the database has such a way, bad rows cost little more than good ones. If it has none, `_faults` sends blocks of rows
inside savepoints.
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
"""Below this number of rows, a savepoint around each row costs no more."""


class BadRows(NamedTuple):
    """The bad rows of a page.

    Attributes:
        errors: the error of each, by place in the page; only the first one if the call raises.
        outcome: the result of the other rows, which are written; None if they have not been sent yet.
    """

    errors: dict[int, Exception]
    outcome: PageResult | None


class _Undone(Exception):
    """The rows were only tried; what they wrote must be undone."""


def find(call: CallContext, page: Page) -> BadRows | None:
    """Find the bad rows of a page; None if the database cannot tell which they are, or finds none."""
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
