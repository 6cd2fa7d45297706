"""`update`: change columns of existing rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..errors import OptionError
from ._build import update_builder
from ._call import Call
from ._keyed import KeyedWork
from ._lookup import find
from ._options import Missing, OnDuplicate, WriteOptions, checked, one_of
from ._plan import MappingPlan, plan_for
from ._result import PageResult
from ._rows import Shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from ._build import Builder
    from ._context import CallContext
    from ._page import Page
    from ._plan import Slot
    from ._result import BulkResult
    from ._rows import Rows


class UpdateWork(KeyedWork):
    """Changes of rows of a plan."""

    verb = "update"

    def __init__(self, plan: MappingPlan, missing: Missing, on_duplicate: OnDuplicate, check: bool | None) -> None:
        super().__init__(plan, Shapes(plan, changes_only=True), plan.key, missing, on_duplicate)
        if check and plan.version is None:
            raise OptionError(
                f"check=True was asked for, but {plan.name} has no version column; let the class inherit "
                "sessionkit.Versioned"
            )
        self._check = check

    def demanded(self) -> Sequence[tuple[Slot, str]]:
        version = self.plan.version
        return [*super().demanded(), *([(version, "the version")] if self._check and version else [])]

    def builder(self, keys: frozenset[str]) -> Builder:
        return update_builder(self.plan, keys, check=self._check is not False)

    def finished(self, call: CallContext, page: Page) -> Page:
        plan = self.plan
        if not page.places("expect", "set"):
            call.tally.add(page, PageResult(unchanged=len(page)), "")
            return page.only(())
        if page.places("expect"):
            call.tally.result.checked = True
        elif plan.generator is not None:
            if plan.bump is None:
                return self._with_current_versions(call, page)
            page.bumps = True
        return page

    def _with_current_versions(self, call: CallContext, page: Page) -> Page:
        """Read the current versions under a lock: only Python can make the next version, and it needs the current one."""
        plan = self.plan
        assert plan.version is not None
        assert plan.generator is not None
        columns, keys = [slot.column for slot in plan.key], page.keys()
        found = find(call, columns, keys, also=[plan.version.column], lock=True)
        return page.with_versions([found.get(key, (None,))[0] for key in keys], plan.version, plan.generator)


def update(
    session: Session,
    entity: type[Any],
    rows: Rows,
    *,
    missing: Missing = "error",
    on_duplicate: OnDuplicate = "error",
    check: bool | None = None,
    **options: Unpack[WriteOptions],
) -> BulkResult:
    """Update rows by their primary key, and leave the transaction open.

    Each row holds the key and the attributes to change. A column that it leaves out stays as it is, or gets its `onupdate`. A
    row that holds its version is checked, as in a flush: the database must still have that version. The version is
    incremented in any case.

    Args:
        session: the session whose transaction updates the rows. Its objects for these rows are refreshed on their next use.
        entity: the mapped class.
        rows: as in `insert`. From a loaded object of the class, `update` takes the changed columns and the version.
        missing: "error" raises for a key without a row, "ignore" leaves it out. A row with nothing to change is not looked
            up.
        on_duplicate: what to do with a second row for the same key: "error", or keep the "first" or the "last" one. Across
            chunks, "last" writes both, the last one last.
        check: None compares the versions of the rows that hold one; True requires all rows to hold one; False compares none.
        **options: ``chunk``, ``on_progress``, ``progress``, ``method``, ``on_error``,
            ``max_rejected``; see `WriteOptions`.

    Returns:
        A `BulkResult` with ``updated``, ``unchanged`` (rows with nothing to change), ``checked``, ``rejected``,
        ``method``.

    Raises:
        VersionConflict: rows have another version, or are gone; `conflicts` lists every one of them. Nothing was written.
        BulkError: a row cannot be written, or a key has no row (then it is also a ``StaleDataError``). Nothing was written.
        OptionError: an option cannot be honoured. Nothing was sent.

    SQL: ``SAVEPOINT``; for each set of keys of a chunk ``UPDATE ... FROM unnest(...)`` on PostgreSQL (from 2,000 rows on
    ``COPY`` into a temporary table and ``UPDATE ... FROM`` it), one prepared ``UPDATE`` for all rows on SQLite; ``RELEASE
    SAVEPOINT``. There is no savepoint if the call comes first in its transaction and its input is not an iterator: if it
    fails, the transaction simply starts again.
    """
    known = checked(options, "bulk.update()")
    one_of("missing", missing, ("error", "ignore"))
    one_of("on_duplicate", on_duplicate, ("error", "first", "last"))
    work = UpdateWork(plan_for(entity), missing, on_duplicate, check)
    if session.autoflush:
        session.flush()
    return Call(session, work, known).run(rows)
