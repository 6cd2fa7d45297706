"""Sends a page, and finds the rows in it that cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError, StatementError

from ..errors import BulkError, OptionError, message_of
from ._bad_rows import BadRows, find
from ._conflicts import rows_taken_out
from ._identity import expire
from ._made_keys import with_keys_made
from ._paths import SQLALCHEMY, Path, choose
from ._plan import OMIT
from ._result import Again, Ended, Mismatch, PageResult, RowFault, Unfit, Unpackable
from ._statements import tables_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._context import CallContext
    from ._page import Page


class Delivery:
    """Sends the pages of a call. If a page cannot be written, traces the error to the rows that cause it.

    Attributes:
        conflicts: the stale rows found so far, for the error of the call.
    """

    def __init__(self, call: CallContext) -> None:
        self._call = call
        self.conflicts: list[Any] = []
        self._suspicious = False

    def deliver(self, page: Page) -> None:
        """Write a page; if some of its rows cannot be written, find them."""
        parts = page.by_omission(null_too=False)
        if len(parts) > 1:
            parts = self._in_order(page).by_omission(null_too=False)
        for part in parts:
            if self.conflicts:
                # The call has already failed. It keeps checking, so that its error can name every stale row.
                self._judge(part)
            elif (path := choose(self._call, part)) is SQLALCHEMY:
                self._by_sqlalchemy(part)
            else:
                self._deliver_by(path, part)

    def _deliver_by(self, path: Path, page: Page) -> None:
        # If the page before had bad rows, this one probably has some too, and need not fail first.
        found = find(self._call, page) if self._suspicious and path is not SQLALCHEMY else None
        if found is not None:
            self._take(path, page, found)
            return
        error = self._refused(path, page)
        if error is not None:
            self._find_bad_rows(path, page, error)

    def _refused(self, path: Path, page: Page) -> Exception | None:
        """Write a page, or return the error if the database or a type refused a row."""
        try:
            send = path.prepare(self._call, page)
        except Exception as error:  # noqa: BLE001 - any error of a type or a packer: SQLAlchemy's path decides
            unfit = error
        else:
            return self._send(path, page, send)
        self._divide(path, page, unfit)
        return None

    def _send(self, path: Path, page: Page, send: Callable[[], PageResult]) -> Exception | None:
        problem: Exception | None
        try:
            outcome = self._call.attempt(send)
        except Ended:
            raise
        except Again:
            problem = None
        except (Mismatch, Unfit, Unpackable) as found:
            problem = found
        except Exception as error:
            if not self._blames_the_row(error):
                raise
            problem = error
        else:
            self._call.tally.add(page, outcome, path.method)
            self._refresh(page)
            return None
        # Outside the `except`, so that later errors do not carry this one as their context.
        if problem is None:
            return self._refused(path, page)
        if isinstance(problem, Mismatch):
            if not self._judge(page):
                if page.places("expect"):
                    raise rows_taken_out(self._call, page, problem.count)
                page.uncounted = True
                return self._send(path, page, send)
        elif isinstance(problem, Unfit):
            self._by_sqlalchemy(page)
        elif isinstance(problem, Unpackable):
            self._divide(path, page, problem)
        else:
            return problem
        return None

    def _refresh(self, page: Page) -> None:
        """Expire the session's objects whose rows the page has written, so that they are read again on their next use."""
        work, session = self._call.work, self._call.session
        if work.verb != "insert" and session.identity_map:
            places = [i for i, cell in enumerate(page.cells) if cell.slot in work.match_columns]
            keys = (tuple(row[i] for i in places) for row in page.values)
            expire(session, self._call.plan, [page.cells[i].slot for i in places], keys)

    def _divide(self, path: Path, page: Page, error: Exception) -> None:
        """Send the rows that a fast path cannot express through SQLAlchemy, and the rest of the page by the fast path."""
        if path is SQLALCHEMY:
            raise error
        bad = sorted(place for places in page.by_types() for place in self._unfit(path, page, places))
        if 0 < len(bad) < len(page):
            page = self._in_order(page)
            self._deliver_by(path, page.without(bad))
            page = page.only(bad)
        # Every row works alone but not together with the others: then no single row is at fault.
        self._by_sqlalchemy(page)

    def _in_order(self, page: Page) -> Page:
        """Return a page to be sent in parts, with keys in the order of the input if they can be made in advance."""
        if self._call.work.verb != "insert" or self._call.plan.table is None:
            return page
        return with_keys_made(self._call, page) or page

    def _unfit(self, path: Path, page: Page, places: list[int]) -> list[int]:
        """Return the places whose rows the path cannot express."""
        part = page.only(places)

        def fits(low: int, high: int) -> bool:
            try:
                path.prepare(self._call, part.part(low, high), probe=True)
            except Exception:  # noqa: BLE001 - as above
                return False
            return True

        return [places[place] for place in search(len(part), _PROBED, fits)]

    def _by_sqlalchemy(self, page: Page) -> None:
        for part in page.by_omission(null_too=True):
            self._deliver_by(SQLALCHEMY, part)

    def _find_bad_rows(self, path: Path, page: Page, error: Exception) -> None:
        call = self._call
        if len(page) == 1 and path is SQLALCHEMY:
            call.refuse(error_of(call, page, error))
        elif len(page) == 1:
            # Send it again through SQLAlchemy, to get the error that SQLAlchemy itself raises.
            self._by_sqlalchemy(page)
        elif (found := find(call, page)) is None:
            # No single form fits these rows. Rows whose values have the same types share a form, and fail alike.
            parts = page.by_types() if call.collects else []
            if 1 < len(parts) <= _MOST_KINDS:
                for places in parts:
                    self._deliver_by(path, page.only(places))
            else:
                self._send_blocks(path, page)
        elif call.collects:
            self._take(path, page, found)
        else:
            # The row alone raises the error, given the rows before it, which it may conflict with.
            first = min(found.errors)
            if first:
                self._deliver_by(path, page.part(0, first))
            self._by_sqlalchemy(page.part(first, first + 1))
            self._deliver_by(path, page.part(first + 1, len(page)))

    def _take(self, path: Path, page: Page, found: BadRows) -> None:
        """Leave out the bad rows of a page, and write the others."""
        for place, each in found.errors.items():
            self._call.refuse(error_of(self._call, page.part(place, place + 1), each))
        good = page.without(found.errors)
        self._suspicious = bool(found.errors) and found.outcome is not None
        if found.outcome is None:
            if good.values:
                self._deliver_by(path, good)
        elif good.values:
            self._call.tally.add(good, found.outcome, path.method)
            self._refresh(good)

    def _send_blocks(self, path: Path, page: Page) -> None:
        """Send blocks of rows, each inside a savepoint."""

        def send(low: int, high: int) -> bool:
            part = page.part(low, high)
            error = self._refused(path, part)
            if error is not None and len(part) == 1:
                self._find_bad_rows(path, part, error)
            return error is None

        search(len(page), len(page), send)

    # Rows that the database does not hold as expected

    def _judge(self, page: Page) -> bool:
        """Find the rows of a page that are not as expected, and write the others. Return whether there were any."""
        try:
            self._call.work.verify(self._call, page)
        except RowFault as fault:
            found = fault
        else:
            return False
        self._sort_out(page, found)
        return True

    def _sort_out(self, page: Page, fault: RowFault) -> None:
        for place, error in fault.errors.items():
            conflicts = getattr(error, "conflicts", None)
            if self._call.collects:
                self._call.reject(page.positions[place], page.rows[place], error)
            elif conflicts is not None:
                self.conflicts.extend(conflicts)
            else:
                raise error
        left_out = fault.errors.keys() | fault.ignored
        if not self.conflicts:
            rest = page.only(place for place in range(len(page)) if place not in left_out)
            if rest.values:
                self.deliver(rest)

    def _blames_the_row(self, error: Exception) -> bool:
        if isinstance(error, SQLAlchemyError):
            dialect, connection, plan = self._call.dialect, self._call.connection, self._call.plan
            return dialect.blames_the_row(error) or dialect.is_policys(connection, tables_of(plan)[0], error)
        # Not from SQLAlchemy or the driver: a type or a default raised it because of a value.
        return not isinstance(error, OptionError)


_MOST_KINDS = 8
_PROBED = 256  # rows: COPY packs the first 500 before it sends anything


def search(length: int, most: int, good: Callable[[int, int], bool]) -> list[int]:
    """Test all places below `length` in blocks, and return those that fail alone.

    After a good block the next one is twice as long; a bad block is halved. So the places before a bad one are tested once
    more, and those after it are not.
    """
    bad: list[int] = []
    low, size = 0, min(most, max(1, length // 2))
    while low < length:
        high = min(low + size, length)
        if good(low, high):
            low, size = high, min(most, 2 * size)
        elif high - low > 1:
            size = (high - low) // 2
        else:
            bad.append(low)
            low, size = high, 1
    return bad


def error_of(call: CallContext, page: Page, error: Exception) -> BulkError:
    """Return the error that names the row of the input that the database or a type refused (the page holds one row)."""
    position, row = page.positions[0], page.rows[0]
    column = _column_of(call, page, error)
    about = f", column {column!r}" if column else ""
    cause = getattr(error, "orig", None) or error
    message = (
        f"row {position}{about} of bulk.{call.work.verb}({call.plan.name}) was refused: "
        f"{type(cause).__name__}: {message_of(cause).strip()}"
    )
    bulk_error = BulkError.of(error, message, position=position, row=row, column=column)
    if not isinstance(error, StatementError):
        bulk_error.__cause__ = error
    return bulk_error


def _column_of(call: CallContext, page: Page, error: Exception) -> str | None:
    for table in tables_of(call.plan):
        name = call.dialect.column_of(error, table)
        for slot in call.plan.slots.values() if name else ():
            if slot.column.name == name:
                return slot.label
    for cell, value in zip(page.cells, page.values[0], strict=True):
        process = cell.slot.column.type._cached_bind_processor(call.connection.dialect)
        if process is not None and value is not OMIT:
            try:
                process(value)
            except Exception:  # noqa: BLE001 - this is what the loop looks for
                return cell.slot.label
    return None
