"""One call of a bulk verb: it reads the input in chunks, and can undo all that it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection

from .. import _dialects
from ..errors import BulkError, OptionError, VersionConflict, describe
from ..version import Conflicts, server_now, telling_time
from ._defaults import DefaultContext
from ._faults import Delivery
from ._progress import Bar
from ._result import BulkResult, Ended, PageResult, Tally
from ._rows import Chunk, Rows, chunks, length_of
from ._undo import start

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Session

    from ._context import Work
    from ._options import BulkOptions

CHUNK = 30_000  # for input that is in memory anyway; each COPY costs as much as a few hundred rows
SHARES_FROM = 1_000  # rows: with fewer, a share means nothing
CHUNK_OF_UNKNOWN = 4_000  # for a generator: a few MB, including everything that is built from the rows


# A generator that one call reads may itself make another call.
_depths: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()


class Call:
    """A verb working through its input.

    Everything runs on one connection and can be undone on its own (see `_undo`), so the caller's transaction survives
    whatever happens here.
    """

    def __init__(self, session: Session, work: Work, options: BulkOptions) -> None:
        self.session = session
        self.work = work
        self.options = options
        self.plan = work.plan
        self.connection: Connection = session.connection(bind_arguments={"mapper": self.plan.mapper})
        self.dialect = _dialects.of(self.connection).bulk
        self.collects = options.on_error == "collect"
        self.tally = Tally()
        self._delivery = Delivery(self)
        self.context = DefaultContext(self.connection)
        self._memory: dict[str, Any] = {}
        self._clock: AbstractContextManager[None] | None = None
        self._fresh = True
        self._alone = False
        self.temporary_name = ""
        self.at_end: list[Callable[[], object]] = []  # clean-up once all rows are written
        _refuse_autocommit(self.connection)

    def run(self, rows: Rows) -> BulkResult:
        total = length_of(rows)
        self._alone = total is not None
        size = self.options.chunk or (CHUNK if total is not None else CHUNK_OF_UNKNOWN)
        parts = chunks(rows, size, asynchronous=self.connection.dialect.is_async)
        first = next(parts, None)
        if first is None:
            return self.tally.close(status=False)
        bar = Bar(f"{self.work.verb} {self.plan.name}", total) if self.options.progress else None
        try:
            with self:
                self._write(first, total, bar)
                for chunk in parts:
                    self._write(chunk, total, bar)
                if self._delivery.conflicts:
                    raise self._conflict(self._delivery.conflicts)
                for act in self.at_end:
                    act()
                self.work.finish(self, self.tally)
        except Ended as ended:
            raise ended.error from None
        finally:
            if bar is not None:
                bar.close()
        return self.tally.result

    def _conflict(self, conflicts: list[Any]) -> VersionConflict:
        """Return the error that names every stale row of the input."""
        others = self.tally.length - len(conflicts)
        did = f"{others} more rows of bulk.{self.work.verb}({self.plan.name})"
        return VersionConflict(Conflicts.of(conflicts, (did,) if others else ()))

    def _write(self, chunk: Chunk, total: int | None, bar: Bar | None) -> None:
        self.tally.length += len(chunk.rows)
        self._memory.pop("now", None)
        for page in self.work.pages(self, chunk):
            if page.values:
                self._delivery.deliver(page)
        for report in (self.options.on_progress, bar):
            if report is not None:
                report(self.tally.length, total)

    # The start of the call, to which it can be undone

    def __enter__(self) -> Self:
        self._start = start(self.connection, self.dialect, alone=self._alone)
        depth = _depths[self.connection] = _depths.get(self.connection, 0) + 1
        self.temporary_name = f"sessionkit_bulk_{depth}"
        version = self.plan.version
        if version is not None and version.supply.kind == "call":
            # A timestamp version is the server's time, asked once per chunk.
            self._clock = telling_time(lambda: self.cached("now", lambda: server_now(self.connection)))
            self._clock.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        _depths[self.connection] -= 1
        if self._clock is not None:
            self._clock.__exit__(None, None, None)
        if error is None:
            self._start.keep()
        else:
            self._start.leave()

    def attempt(self, send: Callable[[], PageResult]) -> PageResult:
        """Send a page. If this fails, everything that it wrote is undone.

        The first page needs no savepoint of its own: there is nothing before it to lose.
        """
        nested = None if self._fresh else self.connection.begin_nested()
        try:
            outcome = send()
        except BaseException as error:
            try:
                if nested is not None:
                    nested.rollback()
                elif isinstance(error, Exception):
                    self._start = self._start.undo()
            except Exception:  # noqa: BLE001 - the caller must see the first error
                # The transaction is gone, with everything in it: SQLite's RAISE(ROLLBACK), or a lost connection.
                raise Ended(error) from None
            raise
        if nested is not None:
            nested.commit()
        self._fresh = False
        return outcome

    def cached(self, name: str, find: Callable[[], Any]) -> Any:
        """Return a fact that this call has already looked up, or look it up now."""
        if name not in self._memory:
            self._memory[name] = find()
        return self._memory[name]

    def refuse(self, error: BulkError) -> None:
        """Note the error of a bad row, or raise it."""
        if not self.collects:
            cause = getattr(error, "orig", None)
            raise error from cause
        assert error.position is not None  # it is about a row
        self.reject(error.position, error.row, error)

    def reject(self, position: int, row: Any, error: Exception) -> None:
        """Leave a row out. Raise if that is one row too many."""
        self.tally.reject(position, row, error)
        limit, count = self.options.max_rejected, len(self.tally.result.rejected)
        if limit is None:
            return
        if not isinstance(limit, float):
            too_many = count > limit
        else:
            too_many = self.tally.length >= SHARES_FROM and count > limit * self.tally.length
        if too_many:
            raise self._too_many(position, row, error)

    def _too_many(self, position: int, row: Any, error: Exception) -> BulkError:
        rejected = sorted(self.tally.result.rejected, key=lambda each: each.position)
        message = (
            f"{len(rejected)} of {self.tally.length} rows of bulk.{self.work.verb}({self.plan.name}) were rejected, and "
            f"max_rejected={self.options.max_rejected!r} allows no more; the last one was row {position}: {describe(error)}"
        )
        too_many = BulkError(message, position=position, row=row, column=getattr(error, "column", None))
        too_many.rejected = rejected
        return too_many


def _refuse_autocommit(connection: Connection) -> None:
    options = connection.get_execution_options()
    level = options.get("isolation_level") or getattr(connection.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise OptionError(
            "a bulk call writes all of its rows or none, which needs a transaction, but this connection runs in "
            "AUTOCOMMIT; use a connection without it"
        )
