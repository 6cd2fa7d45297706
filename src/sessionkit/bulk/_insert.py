"""`insert`: insert rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ._build import insert_builder
from ._call import Call
from ._options import WriteOptions, checked
from ._plan import MappingPlan, plan_for
from ._read_back import read_back
from ._reading import build, with_keys
from ._rows import Shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from ._context import CallContext
    from ._page import Page
    from ._result import BulkResult, Tally
    from ._rows import Chunk, Rows


class InsertWork:
    """Rows of a plan to insert."""

    verb = "insert"

    def __init__(self, plan: MappingPlan, returning: Sequence[Any] | None, *, render_nulls: bool) -> None:
        self.plan = plan
        self.match_columns = plan.key
        self.shapes = Shapes(plan)
        self.returning = returning
        self.wants_keys = bool(returning)
        self._render_nulls = render_nulls
        self._made_by_us = [slot for slot in plan.key if slot.supply.kind == "null"]

    def pages(self, call: CallContext, chunk: Chunk) -> Iterator[Page]:
        read = self.shapes.read(chunk, call.refuse)
        keys = frozenset[str]().union(*read.shapes)
        builder = insert_builder(self.plan, keys, uniform=len(read.shapes) == 1, render_nulls=self._render_nulls)
        page = build(call, builder, chunk, read)
        yield with_keys(page, self.plan, self._made_by_us, "the key", call.refuse)

    def verify(self, call: CallContext, page: Page) -> None:
        """New rows have nothing to verify."""

    def finish(self, call: CallContext, tally: Tally) -> None:
        tally.close(status=False)
        if self.returning:
            tally.result.returned = read_back(call, self.returning)


def insert(
    session: Session,
    entity: type[Any],
    rows: Rows,
    *,
    returning: Sequence[Any] | None = None,
    render_nulls: bool = False,
    **options: Unpack[WriteOptions],
) -> BulkResult:
    """Insert rows, with all the defaults that the mapping promises, and leave the transaction open.

    The rows end up as after ``session.add_all`` and a flush: with defaults from Python, SQL and the server, types, the first
    version, the polymorphic identity. What depends on objects does not happen: no cascades, no mapper events, no validators,
    and the session does not hold the rows.

    Args:
        session: the session whose transaction inserts the rows. Its pending changes are flushed first, if `autoflush` is on.
        entity: the mapped class.
        rows: any iterable, generators included, and in the async twin also an async iterable; read in chunks. A row is a
            mapping of attribute names, an object of the class (its columns are read; it does not join the session), a
            dataclass or a named tuple. Rows may have different keys: a column that a row leaves out gets its default.
        returning: attributes of the class (``[User.id]``), or the class itself, to return in ``result.returned``, in the
            order of the input.
        render_nulls: an explicit None means NULL even for a column with a default; otherwise such a column gets its default.
        **options: ``chunk``, ``on_progress``, ``progress``, ``method``, ``on_error``,
            ``max_rejected``; see `WriteOptions`.

    Returns:
        A `BulkResult` with ``inserted``, ``returned``, ``rejected``, ``method``.

    Raises:
        BulkError: a row cannot be written, and nothing was. It is also an instance of the class that SQLAlchemy would raise.
        OptionError: an option cannot be honoured. Nothing was sent.
        SyncAsyncMismatch: an async iterable was given to a sync session.

    SQL: ``SAVEPOINT``; per chunk ``COPY ... FROM STDIN (FORMAT BINARY)`` on PostgreSQL (``INSERT ... SELECT FROM
    unnest(...)`` below 200 rows), one prepared ``INSERT`` for all rows on SQLite; ``RELEASE SAVEPOINT``. There is no
    savepoint if the call comes first in its transaction and its input is not an iterator: if it fails, the transaction simply
    starts again.
    """
    known = checked(options, "bulk.insert()")
    work = InsertWork(plan_for(entity), returning, render_nulls=render_nulls)
    if session.autoflush:
        session.flush()
    return Call(session, work, known).run(rows)
