"""Finds bad rows where the driver sends one row after the other and keeps those before the one that fails: SQLite.

Its executemany takes the rows from the list one by one. The number of rows taken tells which one failed. The failed row has
written nothing, and the rows after it are sent next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError, StatementError

from .._core.connection import failures_of
from ..errors import without_frames
from . import _executemany
from ._result import PageResult
from ._sqlalchemy import upsert_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._context import CallContext
    from ._page import Page

    Search = Callable[[dict[int, Exception]], PageResult | None]


class Unable(Exception):
    """Other code took the rows before the driver did: a listener that replaces the parameters, for example."""


class _Drawn(list[tuple[Any, ...]]):
    """A list that counts how many rows were taken from it."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        super().__init__(rows)
        self._readers = 0
        self._last: int | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        self._readers += 1
        for self._last, row in enumerate(super().__iter__()):
            yield row
        self._last = None

    @property
    def last(self) -> int | None:
        """The place of the row that was taken last; None if that is not known."""
        if len(self) == 1:
            return 0  # SQLAlchemy takes a single row out of the list, and sends it by execute()
        return self._last if self._readers == 1 else None


def prepare(call: CallContext, page: Page) -> Search | None:
    """Return a function that sends the rows and notes the errors of those that fail; None if that is not possible."""
    table = call.plan.table
    assert table is not None
    work: Any = call.work
    if _executemany.refusal(call, page, "executemany") is not None:
        return None
    if not call.cached("steady", lambda: call.dialect.keeps_earlier(call.connection, table)):
        return None
    try:
        sql, rows = _executemany.statement_and_rows(call, page)
    except Exception:  # noqa: BLE001 - a value that the driver cannot take, as in `_faults`
        return None

    def search(errors: dict[int, Exception]) -> PageResult | None:
        there: list[bool] = []
        counted = work.verb == "insert" or (work.verb == "upsert" and not work.is_conditional)
        if counted and work.verb == "upsert":
            there = work.existing(call, page)
        _send_all(call, sql, rows, errors)
        if not counted or work.wants_keys or not call.collects:
            return None
        good = page.without(errors)
        if work.verb == "insert":
            return PageResult(inserted=len(good))
        return upsert_outcome(work, call, good, [old for i, old in enumerate(there) if i not in errors], len(good))

    return search


_AT_ONCE = 5_000  # rows: after each bad row the rest is copied into a new list


def _send_all(call: CallContext, sql: str, rows: list[tuple[Any, ...]], errors: dict[int, Exception]) -> None:
    low = 0
    while low < len(rows):
        drawn = _Drawn(rows[low : low + _AT_ONCE])
        try:
            call.connection.exec_driver_sql(sql, drawn)
        except Exception as error:
            # Errors of the driver itself too: a number that is too large, a str that is not valid text.
            if isinstance(error, SQLAlchemyError) and not call.dialect.blames_the_row(error):
                raise
            last = drawn.last
            if last is None:
                raise Unable from None
            if (failures := failures_of(call.connection)) is not None:
                failures.undone(error)
            if isinstance(error, StatementError):
                error.params = drawn[last]
            errors[low + last] = without_frames(error)
            if not call.collects:
                return
            low += last + 1
        else:
            low += len(drawn)
