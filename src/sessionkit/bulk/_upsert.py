"""`upsert`: insert rows, or update those that exist already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from sqlalchemy import ARRAY, JSON, Text, cast, null, or_
from sqlalchemy.exc import DBAPIError

from ..errors import OptionError
from ._build import Builder, insert_builder, replaces_none
from ._call import Call
from ._defaults import DefaultContext
from ._keyed import KeyedWork
from ._lookup import find, holding
from ._options import OnDuplicate, WriteOptions, checked, one_of
from ._page import Cell
from ._plan import MappingPlan, plan_for
from ._read_back import read_back
from ._reading import group
from ._result import Again, PageResult
from ._rows import Read, Shapes
from ._statements import insert_of
from ._unique import chosen, inferred

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Column, ColumnElement, Table
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.orm import Session

    from ._context import CallContext
    from ._page import Page, Role
    from ._plan import Slot
    from ._result import BulkResult, Status, Tally
    from ._rows import Chunk, Rows

Where = Any  # a condition, or a function of the new row that returns one


class Excluded:
    """The row that could not be inserted, by attribute; PostgreSQL and SQLite call it EXCLUDED."""

    def __init__(self, plan: MappingPlan, columns: Any) -> None:
        self._plan = plan
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        reason = self._plan.refusal(name)
        if reason is not None:
            raise AttributeError(reason)
        return self._columns[self._plan.slot_for(name, "where").column.key]


class UpsertWork(KeyedWork):
    """Rows of a plan that may exist already."""

    verb = "upsert"

    def __init__(
        self,
        plan: MappingPlan,
        *,
        match: Sequence[Any] | str | None,
        update: Sequence[Any] | None,
        when_changed: bool,
        where: Where,
        status: bool,
        returning: Sequence[Any] | None,
        render_nulls: bool,
        on_duplicate: OnDuplicate,
    ) -> None:
        super().__init__(plan, Shapes(plan), (), "error", on_duplicate)
        if plan.table is None:
            raise OptionError(
                f"bulk.upsert() works on one table, and {plan.name} has several (joined inheritance); find out "
                "which rows exist with bulk.get(), then bulk.insert() and bulk.update()"
            )
        self.table: Table = plan.table
        self.match = match
        self.update = None if update is None else [plan.slot_for(a, "update") for a in update]
        self.when_changed = when_changed
        self.where_ = where
        self.status = status
        self.returning = returning
        self.render_nulls = render_nulls
        self.index_where: Any = None
        self.tells_new = True  # until a table turns out not to support it
        for slot in self.update or ():
            if slot is plan.version:
                raise OptionError(
                    f"update names {slot.label!r}, the version of {plan.name}, which is incremented "
                    "automatically; remove it from update"
                )

    def prepare(self, dialect: Dialect) -> None:
        """Resolve `match` before anything is sent."""
        if self.match is not None:
            self.match_columns, self.index_where = chosen(self.plan, self.table, self.match, dialect)

    def read(self, call: CallContext, chunk: Chunk) -> list[Page]:
        read = self.shapes.read(chunk, call.refuse)
        if not self.match_columns and read.shapes:
            first, *others = read.shapes
            every = first.intersection(*others)
            held = {slot for key in every for slot in self.plan.slots_of(key)}
            self.match_columns, self.index_where = inferred(self.plan, self.table, held, call.connection.dialect)
        return self.built(call, chunk, read)

    def built(self, call: CallContext, chunk: Chunk, read: Read) -> list[Page]:
        """Return the pages of the rows that were read: one for each set of keys, and of columns with a default that are None.

        An existing row gets the None; a new row gets the default.
        """
        pages: list[Page] = []
        for part in group(read):
            for nulls, rows in self._by_nulls(part):
                page = self._page(call, chunk, rows)
                if page.values:
                    cells = tuple(Cell("new", slot) if slot in nulls else Cell(role, slot) for role, slot in page.cells)
                    pages.append(replace(page, cells=cells, nulls=nulls))
        return pages

    def _by_nulls(self, read: Read) -> Iterator[tuple[tuple[Slot, ...], Read]]:
        (keys,) = read.shapes
        replaced = {
            key: [
                slot for slot in self.plan.slots_of(key) if self._role(slot, held=True) == "set" and replaces_none(slot)
            ]
            for key in sorted(keys)
        }
        names = [key for key, slots in replaced.items() if slots]
        if self.render_nulls or not any(row[name] is None for row in read.rows for name in names):
            yield (), read
            return
        groups: dict[tuple[str, ...], tuple[list[int], list[Any]]] = {}
        for place, row in zip(read.places, read.rows, strict=True):
            places, rows = groups.setdefault(tuple(name for name in names if row[name] is None), ([], []))
            places.append(place)
            rows.append(row)
        for nulls, (places, rows) in groups.items():
            yield tuple(slot for name in nulls for slot in replaced[name]), Read(places, rows, read.shapes)

    def _role(self, slot: Slot, *, held: bool) -> Role:
        if slot in self.match_columns:
            return "key"
        if not held or slot is self.plan.version:
            return "new"
        if self.update is None:
            return "new" if slot in self.plan.key else "set"
        return "set" if slot in self.update else "new"

    def competing(self, call: CallContext, page: Page, places: Sequence[int]) -> list[int]:
        return list(places) if self.index_where is None else holding(call, page, places, self.index_where)

    def competes_with_table(self, call: CallContext, page: Page, place: int) -> bool:
        return self.index_where is None or self.existing(call, page.only([place]))[0]

    def updates(self, page: Page) -> bool:
        """Return whether the call writes anything to an existing row."""
        return bool(page.places("set") or page.nulls)

    def is_new(self, call: CallContext) -> ColumnElement[bool] | None:
        """Return the RETURNING expression for whether a row is new; None if the database or this table cannot tell."""
        return call.dialect.is_new if self.tells_new else None

    def executed(self, call: CallContext, statement: Any, parameters: Any) -> Any:
        """Execute a statement that asks for `is_new`."""
        try:
            return call.connection.execute(statement, parameters)
        except DBAPIError as error:
            if not self.tells_new or not call.dialect.lacks_is_new(error):
                raise
        self.tells_new = False
        raise Again

    def builder(self, keys: frozenset[str]) -> Builder:
        plan = self.plan
        made = insert_builder(plan, keys, uniform=True, render_nulls=self.render_nulls)
        held = {slot for key in keys for slot in plan.slots_of(key)}

        return made._replace(
            cells=tuple(Cell(self._role(cell.slot, held=cell.slot in held), cell.slot) for cell in made.cells)
        )

    def statement(
        self,
        call: CallContext,
        page: Page,
        values: Sequence[ColumnElement[Any]] | None = None,
        every: ColumnElement[bool] | None = None,
    ) -> Any:
        """Return the INSERT ... ON CONFLICT for pages like this one; `insert_of` explains where the rows come from."""
        assert call.dialect.upsert is not None
        insert = call.dialect.upsert(self.table)
        index = {"index_elements": [slot.column for slot in self.match_columns], "index_where": self.index_where}
        statement = insert_of(page, self.table, values, into=insert, where=every)
        columns = [page.cells[place].slot.column for place in page.places("set")]
        if not self.updates(page):
            return statement.on_conflict_do_nothing(**index)
        plan, excluded = self.plan, insert.excluded
        assignments: dict[Any, Any] = {column: excluded[column.key] for column in columns}
        assignments |= {slot.column: null() for slot in page.nulls}
        if plan.version is not None and plan.generator is not None:
            assignments[plan.version.column] = self._next_version(plan)
        for slot in (*plan.slots.values(), *plan.unmapped):
            if slot.onupdate is not None and slot.column not in assignments:
                assignments[slot.column] = _onupdate_value(call, slot)
        conditions: list[ColumnElement[bool]] = []
        if self.when_changed:
            compared = [
                _comparable(column, call).is_distinct_from(_comparable(excluded[column.key], call))
                for column in columns
            ]
            compared += [slot.column.is_not(None) for slot in page.nulls]
            conditions.append(or_(*compared))
        if self.where_ is not None:
            chosen_rows: Any = self.where_(Excluded(plan, excluded)) if callable(self.where_) else self.where_
            conditions.append(chosen_rows)
        where: ColumnElement[bool] | None = None
        for condition in conditions:
            where = condition if where is None else where & condition
        return statement.on_conflict_do_update(**index, set_=assignments, where=where)

    @staticmethod
    def _next_version(plan: MappingPlan) -> Any:
        assert plan.version is not None
        if plan.bump is None:
            raise OptionError(
                f"a Python function makes the version of {plan.name}, and the database cannot call it when an upsert "
                "finds the row; inherit Versioned or UUIDVersioned, or use bulk.get(), insert() and update()"
            )
        return plan.bump(plan.version.column)

    @property
    def is_conditional(self) -> bool:
        """Whether only the database can tell if an existing row was written."""
        return self.when_changed or self.where_ is not None

    def keys_of(
        self, call: CallContext, page: Page, known: dict[Any, Any] | None = None
    ) -> list[tuple[Any, ...] | None] | None:
        """Return the primary key of each row of a page that was sent, if the caller wants it.

        Args:
            call: the call whose connection is asked for unknown keys.
            page: the rows.
            known: the primary keys that the database has returned already, by match columns.
        """
        return self._keys(call, page, known or {}) if self.returning else None

    def _keys(self, call: CallContext, page: Page, found: dict[Any, Any]) -> list[tuple[Any, ...] | None]:
        places = self.where(page)
        wanted = page.at(places)
        asked = [key for key in wanted if key not in found]
        if asked:
            columns = [page.cells[place].slot.column for place in places]
            keys = [slot.column for slot in self.plan.key]
            found |= find(call, columns, asked, also=keys, where=self.index_where)
        return [found.get(key) for key in wanted]

    def found(self, call: CallContext, page: Page, place: int) -> tuple[Any, ...] | None:
        """Return the primary key of the existing row for a row of a page."""
        return (self._keys(call, page.only([place]), {}) or [None])[0]

    def existing(self, call: CallContext, page: Page) -> list[bool]:
        """Return for each row whether it exists before the page is sent."""
        places = self.where(page)
        wanted = page.at(places)
        columns = [page.cells[place].slot.column for place in places]
        # Locked, so that the rows still exist when the page is sent.
        found = find(call, columns, wanted, where=self.index_where, lock=True)
        return [key in found for key in wanted]

    def outcome(
        self, call: CallContext, page: Page, status: Sequence[Status], known: dict[Any, Any] | None = None
    ) -> PageResult:
        """Return the result of a page whose rows are all known; for `known` see `keys_of`."""
        return PageResult.of(status, self.keys_of(call, page, known), wanted=self.status)

    def verify(self, call: CallContext, page: Page) -> None:
        """Do nothing: an upsert compares no version."""

    def finish(self, call: CallContext, tally: Tally) -> None:
        tally.close(status=self.status)
        if self.returning:
            tally.result.returned = read_back(call, self.returning)


class _NoRow(DefaultContext):
    """The context of an `onupdate` that has no single row."""

    def __init__(self, connection: Connection, column: Column[Any]) -> None:
        super().__init__(connection)
        self.isupdate, self.current_column = True, column
        del self.current_parameters

    def __getattr__(self, name: str) -> Any:
        if name == "current_parameters":
            self.get_current_parameters()
        raise AttributeError(name)

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> NoReturn:
        raise OptionError(
            "an onupdate of this class looks at the row, which an upsert does not have when it updates; put the "
            "column into the rows and name it in update"
        )


def _onupdate_value(call: CallContext, slot: Slot) -> Any:
    assert slot.onupdate is not None
    if slot.onupdate.kind in {"call", "context"}:
        return slot.onupdate.value(_NoRow(call.connection, slot.column))
    return slot.onupdate.value if slot.onupdate.kind == "constant" else slot.column.onupdate.arg  # type: ignore[union-attr]


def _comparable(column: Any, call: CallContext) -> Any:
    # PostgreSQL's json, unlike jsonb, has no equality operator; its text has.
    impl = column.type._unwrapped_dialect_impl(call.connection.dialect)
    is_array = isinstance(impl, ARRAY)
    if is_array:
        impl = impl.item_type._unwrapped_dialect_impl(call.connection.dialect)
    if not isinstance(impl, JSON) or impl.__visit_name__ != "JSON":
        return column
    as_text: Any = ARRAY(Text) if is_array else Text
    return cast(column, as_text)


def upsert(
    session: Session,
    entity: type[Any],
    rows: Rows,
    *,
    match: Sequence[Any] | str | None = None,
    update: Sequence[Any] | None = None,
    when_changed: bool = False,
    where: Where = None,
    status: bool = False,
    returning: Sequence[Any] | None = None,
    render_nulls: bool = False,
    on_duplicate: OnDuplicate = "error",
    **options: Unpack[WriteOptions],
) -> BulkResult:
    """Insert rows, or update those that exist, and leave the transaction open.

    A new row gets all its defaults, as with `insert`. An existing row gets the columns of `update`, its `onupdate` columns
    (called once per statement), and its next version; no version is compared.

    Args:
        session: the session whose transaction writes the rows. Its objects for these rows are refreshed on their next use.
        entity: the mapped class, with a single table (no joined inheritance).
        rows: as in `insert`. Each must hold the columns of `match`.
        match: the attributes of a unique key, which identify a row, or the name of a unique constraint or index. You may
            leave it out if the rows hold exactly one unique key. With a partial index, rows outside its predicate never
            conflict.
        update: the attributes to write to an existing row; by default all that the new row holds, without the primary key. An
            empty list leaves existing rows as they are. An attribute that a row leaves out is not written; an explicit None
            is, even if the column has a default.
        when_changed: leave a row alone if nothing in it would change: no new version, no `onupdate`, no trigger.
        where: leave an existing row alone unless this is true: a condition on the class (the existing row), or a function
            that builds one from the new row: ``lambda new: new.seen_at > User.seen_at``.
        status: report for each row whether it was inserted, updated, or left unchanged.
        returning: as in `insert`; includes rows that were left unchanged.
        render_nulls: as in `insert`.
        on_duplicate: what to do with a second row for the same key in the input: "error", or keep the "first" or the "last"
            one. Across chunks of an input without a length, "last" writes both, the last one last.
        **options: ``chunk``, ``on_progress``, ``progress``, ``method``, ``on_error``,
            ``max_rejected``; see `WriteOptions`.

    Returns:
        A `BulkResult` with ``inserted``, ``updated``, ``unchanged``, ``status``, ``returned``, ``rejected``,
        ``method``.

    Raises:
        BulkError: a row cannot be written, and nothing was.
        OptionError: `match` is not a unique key, or one that ON CONFLICT cannot use (a deferrable or an exclusion constraint,
            an index over expressions), or fits several partial indexes; or an option cannot be honoured. Nothing was sent.

    SQL: ``SAVEPOINT``; for each set of keys of a chunk ``INSERT ... SELECT FROM unnest(...) ON CONFLICT (...) DO UPDATE`` on
    PostgreSQL (from 2,000 rows on, from a temporary table filled by ``COPY``), one prepared ``INSERT ... ON CONFLICT`` for
    all rows on SQLite; ``RELEASE SAVEPOINT``. There is no savepoint if the call comes first in its transaction and its input
    is not an iterator: if it fails, the transaction simply starts again.
    """
    known = checked(options, "bulk.upsert()")
    one_of("on_duplicate", on_duplicate, ("error", "first", "last"))
    work = UpsertWork(
        plan_for(entity),
        match=match,
        update=update,
        when_changed=when_changed,
        where=where,
        status=status,
        returning=returning,
        render_nulls=render_nulls,
        on_duplicate=on_duplicate,
    )
    if session.autoflush:
        session.flush()
    call = Call(session, work, known)
    if call.dialect.upsert is None:
        raise OptionError(
            f"sessionkit has no upsert for {call.connection.dialect.name}; use bulk.get(), then "
            "bulk.insert() and bulk.update()"
        )
    work.prepare(call.connection.dialect)
    return call.run(rows)
