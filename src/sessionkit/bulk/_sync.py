"""`sync`: make a slice of a table equal to the rows that are given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack, cast

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import coercions, roles

from .. import _dialects
from .._core.savepoints import connections
from .._mutex import mutex_key
from ..errors import BulkError, NotLocked, OptionError, ScopeError, classify
from ._call import Call
from ._delete import delete
from ._lookup import find
from ._options import OnDuplicate, WriteOptions, checked, one_of
from ._plan import plan_for
from ._result import Change
from ._rows import Chunk, Rows, Shapes, chunks
from ._upsert import UpsertWork, upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from ._plan import MappingPlan, Slot
    from ._result import BulkResult

    Key = tuple[Any, ...]
    Held = tuple[Any, ...]


def sync(
    session: Session,
    entity: type[Any],
    rows: Rows,
    *,
    where: ColumnElement[bool],
    match: Sequence[Any] | str | None = None,
    max_deleted: float | None = None,
    changes: bool = False,
    dry_run: bool = False,
    update: Sequence[Any] | None = None,
    status: bool = False,
    render_nulls: bool = False,
    on_duplicate: OnDuplicate = "error",
    **options: Unpack[WriteOptions],
) -> BulkResult:
    """Make a slice of a table equal to rows: insert what is missing, update what differs, delete the rest.

    A row that is equal already is left alone: no new version, no `onupdate`, no trigger. Rows outside the slice are never
    touched. Deletes go first, so a unique value may move from a row that goes to one that comes. Two syncs of one table run
    one after the other, on PostgreSQL by a mutex that the transaction holds to its end, on SQLite by its one writer.

    Args:
        session: the session in whose transaction this happens. Objects of it that are touched are refreshed on their next use.
        entity: the mapped class; one table, no joined inheritance.
        rows: as in `upsert`. All of them are held in memory, and each belongs into the slice.
        where: the slice, as a condition on the class: ``Price.supplier_id == 7``; ``sqlalchemy.true()`` for the whole table.
        match: attributes of a unique key by which a row is found, or the name of a constraint or index; by default the primary
            key. None of their values may be None.
        max_deleted: refuse to delete more than this: a float is a share of what the slice held (exactly that share is allowed),
            an int a number of rows, None no limit. An empty input deletes the whole slice, and needs ``max_deleted=1.0``.
        changes: also return what was done to each row, in `BulkResult.changes`: the deleted ones first, then in the order of
            the input. For this the rows of the slice are read first.
        dry_run: return the same result, and write nothing; `max_deleted` does not apply. Sequences move on, and triggers run
            and are undone.
        update: attributes that are written where a row differs; by default all that it holds, without the primary key.
        status: return for each row of the input whether it was inserted, updated or left unchanged.
        render_nulls: as in `insert`.
        on_duplicate: as in `upsert`.
        **options: as in `upsert`; see `WriteOptions`.

    Returns:
        A `BulkResult` with ``inserted``, ``updated``, ``unchanged``, ``deleted``, ``status``, ``changes``, ``rejected``,
        ``method``.

    Raises:
        BulkError: a row lies outside the slice, or its key belongs to a row that does, or it cannot be written, or it is not
            stored under its key; more rows would be deleted than `max_deleted` allows. Nothing was written.
        NotLocked: another sync of this table held the mutex longer than the scope's ``lock_timeout``.
        ScopeError: an enclosing scope has synced this table, and this one is of its own transaction.
        OptionError: an option that cannot be honoured. At REPEATABLE READ every sync is refused: its snapshot may be older than
            the last sync, whose rows it would not see. Use READ COMMITTED, which the mutex makes safe, or SERIALIZABLE, which
            fails with 40001 where it would matter.

    SQL, all in one ``SAVEPOINT``: the mutex, ``SELECT pg_advisory_xact_lock(...)``, on PostgreSQL; a ``SELECT`` of the rows
    with these keys and one of the keys of the slice; ``SELECT ... FOR UPDATE`` of the rows to delete; the statements of
    `delete` and of `upsert`; ``SELECT count(*)`` of the slice. Not ``MERGE``, which fails with a unique violation where
    another transaction inserts a row at the same time.
    """
    known = checked(options, "bulk.sync()")
    one_of("on_duplicate", on_duplicate, ("error", "first", "last"))
    plan = plan_for(entity)
    if plan.table is None:
        raise OptionError(
            f"bulk.sync() works on one table, and {plan.name} has several (joined inheritance); sync the class of each table"
        )
    within = _condition(where, plan, plan.table)
    limit = _limit(max_deleted)
    asynchronous = session.get_bind(plan.mapper).dialect.is_async
    given = [row for chunk in chunks(rows, 30_000, asynchronous=asynchronous) for row in chunk.rows]
    if not given and not dry_run and not (type(limit) is float and limit == 1.0):
        raise BulkError(
            "bulk.sync() was given no rows, which would delete the whole slice; if that is meant, say max_deleted=1.0",
            position=None,
            row=None,
        )
    if match is None:
        match = [slot.label for slot in plan.key]
    work = UpsertWork(
        plan,
        match=match,
        update=update,
        when_changed=True,
        where=None,
        status=False,
        returning=None,
        render_nulls=render_nulls,
        on_duplicate=on_duplicate,
    )
    session.flush()
    call = Call(session, work, known)
    work.prepare(call.connection.dialect)
    if work.index_where is not None:
        raise OptionError("bulk.sync() cannot match by a partial index: rows outside of its predicate have no key")
    keys = _keys(plan, work.match_columns, given)
    nested = call.connection.begin_nested()
    try:
        _one_at_a_time(call)
        slice_ = _Slice(call, within, keys, work.match_columns, whole=changes)
        slice_.refuse_keys_outside(given)
        doomed = slice_.doomed()
        if not dry_run:
            _brake(limit, len(doomed), slice_.count)
        gone = [key[0] for key in doomed] if len(plan.key) == 1 else doomed
        deleted = delete(session, entity, gone, chunk=known.chunk).deleted
        result = upsert(
            session,
            entity,
            given,
            match=match,
            update=update,
            when_changed=True,
            status=status or changes,
            render_nulls=render_nulls,
            on_duplicate=on_duplicate,
            **options,
        )
        result.deleted = deleted
        left_out = {each.position for each in result.rejected}
        slice_.refuse_what_is_not_there(given, left_out, inserted=result.inserted)
        if changes:
            result.changes = [*slice_.deletions(doomed), *slice_.others(result)]
        if not status:
            result.status = []
    except BaseException:
        if nested.is_active:
            nested.rollback()
        raise
    if dry_run:
        nested.rollback()
    else:
        nested.commit()
    return result


# -- what is asked for --------------------------------------------------------------------------------------------------------


def _condition(where: object, plan: MappingPlan, table: Table) -> ColumnElement[bool]:
    try:
        if where is None:  # SQLAlchemy would make it NULL, which holds for no row
            raise TypeError
        condition = cast("ColumnElement[bool]", coercions.expect(roles.WhereHavingRole, where))
    except Exception:  # noqa: BLE001 - whatever SQLAlchemy says of it
        raise OptionError(
            f"bulk.sync() was given where={where!r}; give it the condition of the slice, such as {plan.name}.supplier_id == 7, "
            "or sqlalchemy.true() for the whole table"
        ) from None
    others = [each for each in condition._from_objects if each != table]
    if others:
        raise OptionError(
            f"bulk.sync() was given where={str(condition)!r}, which is about {', '.join(map(str, others))} and not about "
            f"{table.name}: it would hold for every row or for none. Use attributes of {plan.name}; other tables belong in a "
            "subquery, such as exists() or in_()"
        )
    return condition


def _limit(limit: Any) -> float | None:
    if limit is None or (type(limit) is int and limit >= 0) or (type(limit) is float and 0.0 <= limit <= 1.0):
        return limit
    raise OptionError(
        f"max_deleted={limit!r}; it is a number of rows (an int, 0 or more), a share of the slice (a float, 0.0 to 1.0), or None"
    )


def _brake(limit: float | None, doomed: int, count: int) -> None:
    if limit is None:
        return
    # A share like 0.07 of 100 rows is 7.000000000000001 in floating point, and 7 rows are allowed.
    most = limit if type(limit) is int else math.floor(limit * count + 1e-9)
    if doomed > most:
        raise BulkError(
            f"bulk.sync() would delete {doomed} of {count} rows, and max_deleted={limit!r} allows {most}; look at what is "
            "missing in the input (dry_run=True with changes=True lists it), or allow more",
            position=None,
            row=None,
        )


def _labels(slots: Iterable[Slot]) -> list[str]:
    return [slot.label for slot in slots]


def _keys(plan: MappingPlan, finds_by: Sequence[Slot], given: list[Any]) -> list[Key | None]:
    """Return the key of each row; None where the row cannot be read or has none, which `upsert` says with its position."""
    labels = _labels(finds_by)
    read = Shapes(plan).read(Chunk(0, given), lambda _error: None)
    keys: list[Key | None] = [None] * len(given)
    for place, row in zip(read.places, read.rows, strict=True):
        values = [row.get(label) for label in labels]
        if None in values and all(label in row for label in labels):
            raise BulkError(
                f"row {place} of bulk.sync({plan.name}) holds None in its key ({', '.join(labels)}); NULL is never equal to "
                "NULL, so no sync would find its row again",
                position=place,
                row=given[place],
                column=labels[values.index(None)],
            )
        keys[place] = None if None in values else tuple(values)
    return keys


def _one_at_a_time(call: Call) -> None:
    """Let other syncs of this table wait until this transaction ends.

    Raises:
        OptionError: the snapshot of the transaction may be older than what the sync before has committed.
        ScopeError: an enclosing scope holds the mutex, so the wait would be for itself.
        NotLocked: another transaction held it longer than ``lock_timeout`` allows.
    """
    entry = _dialects.of(call.connection)
    locks = entry.locks
    if locks is None:
        raise OptionError(f"bulk.sync() cannot keep two syncs apart on {entry.name}")
    name = _full_name(call)
    _refuse_waiting_for_oneself(call, name)
    key = mutex_key(("sessionkit.sync", name))
    nested = call.connection.begin_nested()
    try:
        level, _ = locks.mutex(call.connection, key, None)
    except DBAPIError as error:
        if classify(error).kind not in ("lock_not_available", "query_canceled") or call.connection.invalidated:
            raise
        nested.rollback()
        holders = locks.mutex_holders(call.connection, key)
        held = f"it is held by {', '.join(map(str, holders))}" if holders else "another transaction holds it"
        message = f"bulk.sync({call.plan.name}) could not have its mutex on the table {name} in time: {held}"
        raise NotLocked.of(error, message, holders) from error
    nested.commit()
    if level == "REPEATABLE READ":
        raise OptionError(
            f"bulk.sync({call.plan.name}) was asked for at REPEATABLE READ, whose snapshot may be older than the last sync, so "
            "that it would leave rows which that one has inserted; use READ COMMITTED, which is safe here, or SERIALIZABLE"
        )
    synced: frozenset[str] = getattr(call.connection, _SYNCED, frozenset())
    setattr(call.connection, _SYNCED, synced | {name})


_SYNCED = "_sessionkit_synced"
"""Where a connection keeps the tables that its transaction has synced: it lives as long as that."""


def _full_name(call: Call) -> str:
    """Return the table's name in the schema that this connection means."""
    table: Any = call.plan.table
    schemas = call.connection.get_execution_options().get("schema_translate_map") or {}
    schema = schemas.get(table.schema, table.schema)
    return table.name if schema is None else f"{schema}.{table.name}"


def _refuse_waiting_for_oneself(call: Call, name: str) -> None:
    unit: Any = getattr(call.connection, "unit", None)
    for enclosing in () if unit is None else unit.enclosing:
        if any(name in getattr(held, _SYNCED, ()) for held in connections(enclosing.transaction)):
            raise ScopeError(
                f"bulk.sync({call.plan.name}) was called in {unit}, inside {enclosing}, which has synced the same table: it "
                "would wait for itself; join the outer scope, or call it after that has ended"
            )


# -- what is there ------------------------------------------------------------------------------------------------------------


class _Slice:
    """The slice before anything is written.

    Attributes:
        count: how many rows it holds.
    """

    def __init__(
        self, call: Call, within: Any, keys: list[Key | None], finds_by: Sequence[Slot], *, whole: bool
    ) -> None:
        self._call = call
        self._plan = call.plan
        self._within = within
        self._keys = keys
        self._finds_by = finds_by
        self._columns = [slot.column for slot in finds_by]
        self._primary = [slot.column for slot in self._plan.key]
        self._width = len(self._primary)
        self._read = list(self._plan.slots.values()) if whole else []
        self._rows: dict[Key, Held] = {}
        self._there = self._looked_up(self._of_slice(self._rows))
        self._kept = {held[: self._width] for held in self._there.values()}
        self.count = len(self._rows)

    def _of_slice(self, rows: dict[Key, Held] | None = None) -> dict[Key, Held]:
        """Return each row of the slice by the key that it is matched by, as `_found` does; put them into `rows` by their own."""
        also = [slot.column for slot in self._read]
        query = select(*self._columns, *self._primary, *also).select_from(self._plan.mapper.persist_selectable)
        query = query.where(self._within, *self._plan.of_class.values())
        by_key: dict[Key, Held] = {}
        count = 0
        low, high = len(self._columns), len(self._columns) + self._width
        for row in self._call.connection.execute(query):
            primary, rest = tuple(row[low:high]), tuple(row[high:])
            count += 1
            by_key[tuple(row[:low])] = (*primary, True, *rest)
            if rows is not None:
                rows[primary] = rest
        # Two rows whose keys Python reads as one, such as a Numeric that is rounded as it is read: the database must say.
        return by_key if len(by_key) == count else {}

    def _looked_up(self, by_key: dict[Key, Held]) -> dict[Key, Held]:
        """Return what there is for each key of the input. The database is asked for those that the slice does not show."""
        wanted = [key for key in self._keys if key is not None]
        there = {key: by_key[key] for key in wanted if key in by_key}
        return there | self._found([slot.column for slot in self._read], [key for key in wanted if key not in there])

    def _found(self, also: Sequence[Any], keys: Iterable[Key]) -> dict[Key, Held]:
        """Return of each key that has a row: its primary key, whether it is in the slice, and more columns."""
        inside = func.coalesce(and_(self._within, *self._plan.of_class.values()), False).label("sessionkit_inside")
        return find(self._call, self._columns, keys, also=[*self._primary, inside, *also])

    def refuse_keys_outside(self, given: list[Any]) -> None:
        """Refuse a row whose key belongs to a row outside of the slice."""
        for position, key in enumerate(self._keys):
            held = None if key is None else self._there.get(key)
            if held is not None and not held[self._width]:
                raise self._outside(position, given, "has the key of a row that lies outside of it")

    def refuse_what_is_not_there(self, given: list[Any], left_out: set[int], *, inserted: int) -> None:
        """Refuse rows that were written and lie outside of the slice, or that are not stored under their keys."""
        places = {key: place for place, key in enumerate(self._keys) if key is not None and place not in left_out}
        query = select(func.count()).select_from(self._plan.mapper.persist_selectable)
        query = query.where(self._within, *self._plan.of_class.values())
        if not inserted and self._call.connection.scalar(query) == len(places):
            return
        shown = self._of_slice()
        doubtful = [key for key in places if key not in shown]
        now = self._found([], doubtful)
        for key in doubtful:
            held = now.get(key)
            if held is None:
                raise BulkError(
                    f"row {places[key]} of bulk.sync({self._plan.name}) was written, and is not found by its key "
                    f"({', '.join(map(repr, key))}): the database stores it in another form (it rounds it, or a trigger changes "
                    "it), or a trigger has left the row out. The next sync would delete it; give the key as it is stored",
                    position=places[key],
                    row=given[places[key]],
                )
            if not held[self._width]:
                raise self._outside(places[key], given, "lies outside of it")

    def _outside(self, position: int, given: list[Any], what: str) -> BulkError:
        return BulkError(
            f"row {position} of bulk.sync({self._plan.name}) is not of the slice ({self._within}): it {what}. Leave it out, or "
            "give the slice that it belongs to",
            position=position,
            row=given[position],
        )

    def doomed(self) -> list[Key]:
        """Return the primary keys of the rows of the slice that the input does not hold, and lock them.

        A row that another transaction takes out of the slice meanwhile is left alone: the lock looks at it again.
        """
        gone = [key for key in self._rows if key not in self._kept]
        return list(find(self._call, self._primary, gone, where=self._within, of_class=True, lock=True)) if gone else []

    # What was done

    def deletions(self, doomed: list[Key]) -> Iterator[Change]:
        for key in doomed:
            old = self._as_dict(self._rows[key])
            yield Change("deleted", {label: old[label] for label in _labels(self._finds_by)}, old, None)

    def others(self, result: BulkResult) -> Iterator[Change]:
        places = [place for place, status in enumerate(result.status) if status in ("inserted", "updated")]
        now = self._found([slot.column for slot in self._read], [cast("Key", self._keys[place]) for place in places])
        for place in places:
            key = cast("Key", self._keys[place])
            before, after = self._there.get(key), now.get(key)
            old = None if before is None else self._as_dict(before[self._width + 1 :])
            new = None if after is None else self._as_dict(after[self._width + 1 :])
            named = dict(zip(_labels(self._finds_by), key, strict=True))
            yield Change("inserted" if old is None else "updated", named, old, new)

    def _as_dict(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(_labels(self._read), values, strict=True))
