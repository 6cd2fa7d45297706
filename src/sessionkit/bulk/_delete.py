"""`delete`: delete rows by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ._build import key_builder
from ._call import Call
from ._keyed import KeyedWork
from ._options import Missing, OnDuplicate, WriteOptions, checked, one_of
from ._page import Cell, Page
from ._plan import MappingPlan, plan_for
from ._rows import Shapes

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._build import Builder
    from ._context import CallContext
    from ._page import Page
    from ._result import BulkResult
    from ._rows import Chunk, Rows


class DeleteWork(KeyedWork):
    """Rows of a plan to delete."""

    verb = "delete"

    def __init__(self, plan: MappingPlan, missing: Missing, on_duplicate: OnDuplicate) -> None:
        # Whichever of two equal keys is kept, the row is deleted once.
        once: OnDuplicate = "error" if on_duplicate == "error" else "first"
        super().__init__(plan, Shapes(plan, keys=True), plan.key, missing, once)

    def read(self, call: CallContext, chunk: Chunk) -> list[Page]:
        bare = self.shapes.bare(chunk.rows)
        if bare is None:
            return super().read(call, chunk)
        positions = range(chunk.start, chunk.start + len(bare))
        return [Page((Cell("key", self.plan.key[0]),), bare, positions, chunk.rows)]

    def builder(self, keys: frozenset[str]) -> Builder:
        return key_builder(self.plan, keys)

    def finished(self, call: CallContext, page: Page) -> Page:
        call.tally.result.checked = call.tally.result.checked or bool(page.places("expect"))
        return page


def delete(
    session: Session,
    entity: type[Any],
    keys: Rows,
    *,
    missing: Missing = "error",
    on_duplicate: OnDuplicate = "error",
    **options: Unpack[WriteOptions],
) -> BulkResult:
    """Delete rows by their primary key, and leave the transaction open.

    The database's own ``ON DELETE`` applies; cascades of relationships, which need the objects, do not.

    Args:
        session: the session whose transaction deletes the rows. Its objects for these rows are refreshed on their next use,
            and are then found to be gone.
        entity: the mapped class.
        keys: any iterable of keys: bare values, tuples for a key of several columns, mappings, or objects of the
            class. A mapping or object that holds its version is checked, as in a flush.
        missing: "error" raises for a key without a row, "ignore" leaves it out.
        on_duplicate: "error" raises for a key that appears twice; "first" and "last" delete the row once.
        **options: ``chunk``, ``on_progress``, ``progress``, ``method``, ``on_error``,
            ``max_rejected``; see `WriteOptions`.

    Returns:
        A `BulkResult` with ``deleted``, ``checked``, ``rejected``, ``method``.

    Raises:
        VersionConflict: rows have another version, or are gone; `conflicts` lists every one of them.
        BulkError: a row cannot be deleted, or does not exist (then it is also a ``StaleDataError``). Nothing was deleted.
        OptionError: an option cannot be honoured. Nothing was sent.

    SQL: ``SAVEPOINT``; per chunk ``DELETE ... WHERE id = ANY (array)`` on PostgreSQL, ``DELETE ... WHERE id IN (list)`` with
    the list as one JSON parameter on SQLite; ``RELEASE SAVEPOINT``. There is no savepoint if the call comes first in its
    transaction and its input is not an iterator: if it fails, the transaction simply starts again.
    """
    known = checked(options, "bulk.delete()")
    one_of("missing", missing, ("error", "ignore"))
    one_of("on_duplicate", on_duplicate, ("error", "first", "last"))
    work = DeleteWork(plan_for(entity), missing, on_duplicate)
    if session.autoflush:
        session.flush()
    return Call(session, work, known).run(keys)
