"""The interfaces between the parts of a bulk call: the work of a verb, and the call that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

    from .._dialects import Bulk
    from ..errors import BulkError
    from ._defaults import DefaultContext
    from ._options import BulkOptions
    from ._page import Page
    from ._plan import MappingPlan, Slot
    from ._result import PageResult, Tally
    from ._rows import Chunk, Shapes


class CallContext(Protocol):
    """A `Call`, as the verbs and the paths to the database see it."""

    session: Session
    work: Work
    options: BulkOptions
    plan: MappingPlan
    connection: Connection
    dialect: Bulk
    tally: Tally
    temporary_name: str
    at_end: list[Callable[[], object]]
    collects: bool
    context: DefaultContext

    def attempt(self, send: Callable[[], PageResult]) -> PageResult:
        """Send a page. If this fails, everything that it wrote is undone."""
        ...

    def cached(self, name: str, find: Callable[[], Any]) -> Any:
        """Return a fact that this call has already looked up, or look it up now."""
        ...

    def refuse(self, error: BulkError) -> None:
        """Note the error of a bad row, or raise it."""
        ...

    def reject(self, position: int, row: Any, error: Exception) -> None:
        """Leave a row out. Raise if that is one row too many."""
        ...


class Work(Protocol):
    """What a verb wants done. A path knows how to do it."""

    verb: str
    plan: MappingPlan
    shapes: Shapes
    wants_keys: bool

    @property
    def match_columns(self) -> Sequence[Slot]:
        """Return the columns that find a row."""
        ...

    def pages(self, call: CallContext, chunk: Chunk) -> Iterator[Page]:
        """Turn a chunk into pages. Errors of single rows go to `call.refuse`."""
        ...

    def verify(self, call: CallContext, page: Page) -> None:
        """Raise a `RowFault` for rows of a page that the database does not hold as expected. Writes nothing."""

    def finish(self, call: CallContext, tally: Tally) -> None:
        """Do what is left once all rows are written, while the call can still be undone."""
