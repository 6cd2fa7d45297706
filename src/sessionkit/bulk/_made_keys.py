"""Keys that the server makes, taken from it before the rows are sent, so that each belongs to its row.

In which order RETURNING tells of the rows of one statement is not promised
(https://github.com/sqlalchemy/sqlalchemy/issues/9603), and keys need not ascend: a UUID, a text, a descending sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._page import Cell

if TYPE_CHECKING:
    from ._context import CallContext
    from ._page import Page
    from ._plan import MappingPlan, Slot


def missing_keys(plan: MappingPlan, page: Page) -> list[Slot]:
    """Return the columns of the key that the rows leave to the server."""
    held = {cell.slot for cell in page.cells}
    return [slot for slot in plan.key if slot not in held]


def with_keys_made(call: CallContext, page: Page, *, always: bool = False) -> Page | None:
    """Return the page with its whole key; None where the table may give its rows another key than it would tell now.

    Args:
        call: where to ask.
        page: the rows.
        always: what is sent may hold the value of an identity that is GENERATED ALWAYS.
    """
    missing = missing_keys(call.plan, page)
    if not missing:
        return page
    if call.dialect.reserve is None:
        return None
    assert call.plan.table is not None
    columns = [slot.column for slot in missing]
    made = call.dialect.reserve(call.connection, call.plan.table, columns, len(page), always)
    return None if made is None else page.with_cells([Cell("set", slot) for slot in missing], made)
