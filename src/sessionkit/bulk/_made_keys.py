"""Takes keys from the server before sending the rows, so that each key belongs to a known row.

The order in which RETURNING returns the rows of one statement is not guaranteed
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
    """Return the key columns that the rows leave to the server."""
    held = {cell.slot for cell in page.cells}
    return [slot for slot in plan.key if slot not in held]


def with_keys_made(call: CallContext, page: Page, *, always: bool = False) -> Page | None:
    """Return the page with its whole key; None if the table may give its rows other keys than the ones it returns now.

    Args:
        call: the call whose connection is asked.
        page: the rows.
        always: the path can send the value of an identity that is GENERATED ALWAYS.
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
