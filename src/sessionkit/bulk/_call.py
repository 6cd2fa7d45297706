"""One call of a bulk verb: what it can be undone to, the chunks through it, the bad rows out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError, StatementError

from .. import _dialects
from ..errors import BulkError, OptionError, VersionConflict, message_of
from ..version import Conflicts, server_now, telling_time
from ._conflicts import swallowed
from ._identity import expire
from ._paths import SQLALCHEMY, Path, choose
from ._plan import OMIT
from ._progress import Bar
from ._result import BulkResult, Fault, Mismatch, Outcome, Tally, Unfit, Unpackable
from ._rows import Chunk, Rows, chunks, length_of
from ._statements import tables_of
from ._undo import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from ._context import Work
    from ._options import Options
    from ._page import Page

CHUNK = 30_000  # of what is in memory anyway; each COPY costs as much as some hundred rows
CHUNK_OF_UNKNOWN = 4_000  # of a generator: with everything that is made of them, a few MB


# A generator that is read by one call may make another one.
_depths: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()


class Call:
    """A verb on its way through the input.

    Everything happens on one connection, and can be undone for itself (see `_undo`): the caller's transaction goes on
    whatever happens here.
    """

    def __init__(self, session: Session, work: Work, options: Options) -> None:
        self.session = session
        self.work = work
        self.options = options
        self.plan = work.plan
        self.connection: Connection = session.connection(bind_arguments={"mapper": self.plan.mapper})
        self.dialect = _dialects.of(self.connection).bulk
        self.collects = options.on_error == "collect"
        self.tally = Tally()
        self.conflicts: list[Any] = []
        self._memory: dict[str, Any] = {}
        self._fresh = True
        self._alone = False
        self.temporary_name = ""
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
                if self.conflicts:
                    raise self._conflict()
                self.work.finish(self, self.tally)
        finally:
            if bar is not None:
                bar.close()
        return self.tally.result

    def _conflict(self) -> VersionConflict:
        """Return the error that names every stale row of the input."""
        others = self.tally.length - len(self.conflicts)
        did = f"{others} more rows of bulk.{self.work.verb}({self.plan.name})"
        return VersionConflict(Conflicts.of(self.conflicts, (did,) if others else ()))

    def _write(self, chunk: Chunk, total: int | None, bar: Bar | None) -> None:
        self.tally.length += len(chunk.rows)
        self._memory.pop("now", None)
        for page in self.work.pages(self, chunk):
            if page.values:
                self.deliver(page)
        for report in (self.options.on_progress, bar):
            if report is not None:
                report(self.tally.length, total)

    # Where it can be undone to

    def __enter__(self) -> Self:
        self._start = start(self.connection, self.dialect, alone=self._alone)
        depth = _depths[self.connection] = _depths.get(self.connection, 0) + 1
        self.temporary_name = f"sessionkit_bulk_{depth}"
        # A version that is a time is the server's, asked once for each chunk.
        self._clock = telling_time(lambda: self.remembered("now", lambda: server_now(self.connection)))
        self._clock.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        _depths[self.connection] -= 1
        self._clock.__exit__(None, None, None)
        if error is None:
            self._start.keep()
        else:
            self._start.leave()

    def attempt(self, send: Callable[[], Outcome]) -> Outcome:
        """Send a page. If it fails, the database is as it was before.

        The first page needs no savepoint of its own: before it there is nothing to lose.
        """
        if not self._fresh:
            with self.connection.begin_nested():
                return send()
        try:
            outcome = send()
        except Exception:
            self._start = self._start.undo()
            raise
        self._fresh = False
        return outcome

    def remembered(self, name: str, find: Callable[[], Any]) -> Any:
        """Return what was found out in this call, or find it out."""
        if name not in self._memory:
            self._memory[name] = find()
        return self._memory[name]

    # Pages, and what is wrong with them

    def deliver(self, page: Page) -> None:
        """Write a page; if rows of it cannot be written, find them."""
        for part in page.by_omission(null_too=False):
            if self.conflicts:
                # The call has failed already. It goes on looking, so that its error can name every stale row.
                self._judge(part)
            elif (path := choose(self, part)) is SQLALCHEMY:
                self._by_sqlalchemy(part)
            else:
                self._deliver_by(path, part)

    def _deliver_by(self, path: Path, page: Page) -> None:
        try:
            send = path.prepare(self, page)
        except Exception as error:  # noqa: BLE001 - whatever a type or a packer says: SQLAlchemy's way is the truth
            unfit = error
        else:
            self._send(path, page, send)
            return
        self._divide(path, page, unfit)

    def _send(self, path: Path, page: Page, send: Callable[[], Outcome]) -> None:
        problem: Exception
        try:
            outcome = self.attempt(send)
        except (Mismatch, Unfit, Unpackable) as found:
            problem = found
        except Exception as error:
            if not self._blames_the_row(error):
                raise
            problem = error
        else:
            self.tally.add(page, outcome, path.method)
            self._refresh(page)
            return
        # Outside of the `except`, so that what comes now does not drag this error along.
        if isinstance(problem, Mismatch):
            if not self._judge(page):
                if page.places("expect"):
                    raise swallowed(self, page, problem.count)
                page.uncounted = True
                self._send(path, page, send)
        elif isinstance(problem, Unfit):
            self._by_sqlalchemy(page)
        elif isinstance(problem, Unpackable):
            self._divide(path, page, problem)
        else:
            self._bisect(path, page, problem)

    def _refresh(self, page: Page) -> None:
        """Have objects of the session that the page has touched read again when they are used next."""
        if self.work.verb != "insert" and self.session.identity_map:
            places = [i for i, cell in enumerate(page.cells) if cell.slot in self.work.finds_by]
            keys = (tuple(row[i] for i in places) for row in page.values)
            expire(self.session, self.plan, [page.cells[i].slot for i in places], keys)

    def _divide(self, path: Path, page: Page, error: Exception) -> None:
        """Send what a fast path cannot express by SQLAlchemy, and the rest of the page by the path."""
        if path is SQLALCHEMY:
            raise error
        places: dict[bool, list[int]] = {True: [], False: []}
        for place in range(len(page)):
            try:
                path.prepare(self, page.part(place, place + 1), probe=True)
            except Exception:  # noqa: BLE001 - as above
                places[False].append(place)
            else:
                places[True].append(place)
        good, bad = places[True], places[False]
        if good and bad:
            self._deliver_by(path, page.only(good))
            page = page.only(bad)
        # All of them one by one, and yet not together: then it is no row's fault.
        self._by_sqlalchemy(page)

    def _by_sqlalchemy(self, page: Page) -> None:
        for part in page.by_omission(null_too=True):
            self._deliver_by(SQLALCHEMY, part)

    def _bisect(self, path: Path, page: Page, error: Exception) -> None:
        if len(page) > 1:
            middle = len(page) // 2
            self._deliver_by(path, page.part(0, middle))
            self._deliver_by(path, page.part(middle, len(page)))
        elif path is SQLALCHEMY:
            self.refuse(self._error_of(page, error))
        else:
            # Once more, the way that gives the error which SQLAlchemy would have raised.
            self._by_sqlalchemy(page)

    def _judge(self, page: Page) -> bool:
        """Find the rows of a page that are not there as expected; see to the others. Tell whether there were any."""
        try:
            self.work.verify(self, page)
        except Fault as fault:
            found = fault
        else:
            return False
        self._sort_out(page, found)
        return True

    def _sort_out(self, page: Page, fault: Fault) -> None:
        for place, error in fault.errors.items():
            conflicts = getattr(error, "conflicts", None)
            if self.collects:
                self.tally.reject(page.positions[place], page.rows[place], error)
            elif conflicts is not None:
                self.conflicts.extend(conflicts)
            else:
                raise error
        left_out = fault.errors.keys() | fault.ignored
        if not self.conflicts:
            rest = page.only(place for place in range(len(page)) if place not in left_out)
            if rest.values:
                self.deliver(rest)

    def refuse(self, error: BulkError) -> None:
        """A row is wrong: note it, or raise."""
        if not self.collects:
            cause = getattr(error, "orig", None)
            raise error from cause
        error.__cause__ = getattr(error, "orig", None)
        self.tally.reject(error.position, error.row, error)

    def _blames_the_row(self, error: Exception) -> bool:
        if isinstance(error, SQLAlchemyError):
            return self.dialect.blames_the_row(error)
        # Neither SQLAlchemy's nor the driver's: a type's or a default's own exception, about a value.
        return not isinstance(error, OptionError)

    def _error_of(self, page: Page, error: Exception) -> BulkError:
        position, row = page.positions[0], page.rows[0]
        column = self._column_of(page, error)
        about = f", column {column!r}" if column else ""
        cause = getattr(error, "orig", None) or error
        message = (
            f"row {position}{about} of bulk.{self.work.verb}({self.plan.name}) was refused: "
            f"{type(cause).__name__}: {message_of(cause).strip()}"
        )
        bulk_error = BulkError.of(error, message, position=position, row=row, column=column)
        if not isinstance(error, StatementError):
            bulk_error.__cause__ = error
        return bulk_error

    def _column_of(self, page: Page, error: Exception) -> str | None:
        for table in tables_of(self.plan):
            name = self.dialect.column_of(error, table)
            for slot in self.plan.slots.values() if name else ():
                if slot.column.name == name:
                    return slot.label
        for cell, value in zip(page.cells, page.values[0], strict=True):
            process = cell.slot.column.type._cached_bind_processor(self.connection.dialect)
            if process is not None and value is not OMIT:
                try:
                    process(value)
                except Exception:  # noqa: BLE001 - this is what is looked for
                    return cell.slot.label
        return None


def _refuse_autocommit(connection: Connection) -> None:
    options = connection.get_execution_options()
    level = options.get("isolation_level") or getattr(connection.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise OptionError(
            "a bulk call writes all of its rows or none, which needs a transaction; this connection runs in AUTOCOMMIT"
        )
