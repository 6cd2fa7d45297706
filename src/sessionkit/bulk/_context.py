"""What the parts of a bulk call see of each other: the verb's work, and the call that it goes through."""

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
    """A call of a verb, as the verb and the ways to the database see it: a `Call`."""

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
        """Send a page. If it fails, the database is as it was before."""
        ...

    def remembered(self, name: str, find: Callable[[], Any]) -> Any:
        """Return what was found out in this call, or find it out."""
        ...

    def refuse(self, error: BulkError) -> None:
        """A row is wrong: note it, or raise."""
        ...

    def reject(self, position: int, row: Any, error: Exception) -> None:
        """Leave a row out. Raise if it is one too many."""
        ...


class Work(Protocol):
    """What a verb wants done; a path knows how."""

    verb: str
    plan: MappingPlan
    shapes: Shapes
    wants_keys: bool

    @property
    def finds_by(self) -> Sequence[Slot]:
        """Return the columns that find a row."""
        ...

    def pages(self, call: CallContext, chunk: Chunk) -> Iterator[Page]:
        """Turn a chunk into pages. What is wrong with a row goes to `call.refuse`."""
        ...

    def verify(self, call: CallContext, page: Page) -> None:
        """Raise a `RowFault` for the rows of a page that would not be found as expected. Writes nothing."""

    def finish(self, call: CallContext, tally: Tally) -> None:
        """Do what is left when all rows are written, still inside of what can be undone."""
