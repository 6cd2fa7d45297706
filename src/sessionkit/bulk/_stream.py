"""`stream`: read a query of any size in chunks, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Select, tuple_

from ..errors import OptionError
from ._options import checked
from ._plan import MappingPlan, plan_for
from ._progress import Bar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

T = TypeVar("T")
_CHUNK = 1_000  # the fastest size; ten times as many rows are slower and need ten times the memory


def stream(
    session: Session,
    statement: Select[Any],
    *,
    chunk: int = _CHUNK,
    keyset: bool = False,
    on_progress: Callable[[int, int | None], object] | None = None,
    progress: bool = False,
    total: int | None = None,
) -> Iterator[list[Any]]:
    """Yield the result of a query in lists of `chunk` rows, holding only one list at a time.

    A query for one mapped class yields objects; any other query yields rows. You may change the objects of the current chunk:
    the changes are flushed before the next chunk is read, so the session need not keep them.

    Args:
        session: the session that reads.
        statement: a ``select()``.
        chunk: the number of rows in a list.
        keyset: read each chunk with its own query, starting after the last key. The loop may then commit or roll back, and
            each chunk sees what is committed by then. The statement must select from one mapped class, without an order,
            limit or grouping. Without `keyset`, a server-side cursor reads one query, and ends with the transaction.
        on_progress: called after each chunk with the number of rows so far, and `total`.
        progress: True shows a bar on standard error.
        total: the number of rows, if known, for the bar.

    Raises:
        OptionError: the statement is not a ``select()``, or cannot be read by its key.

    SQL: the statement, through ``DECLARE ... CURSOR`` or the driver's equivalent; with `keyset` ``SELECT ... WHERE id > ?
    ORDER BY id LIMIT ?`` for each chunk.
    """
    checked({"chunk": chunk}, "bulk.stream()")
    if not isinstance(cast(object, statement), Select):
        raise OptionError(f"bulk.stream() reads a select(), not {type(statement).__name__}")
    parts = _by_key(session, statement, chunk) if keyset else _by_cursor(session, statement, chunk)
    bar = Bar("stream", total) if progress else None
    return _reported(parts, [report for report in (on_progress, bar) if report is not None], bar, total)


def async_stream(
    session: AsyncSession,
    statement: Select[Any],
    *,
    chunk: int = _CHUNK,
    keyset: bool = False,
    on_progress: Callable[[int, int | None], object] | None = None,
    progress: bool = False,
    total: int | None = None,
) -> AsyncIterator[list[Any]]:
    """Yield the result of a query in lists: the async twin of `stream`, with the same arguments."""
    options: dict[str, Any] = {"chunk": chunk, "keyset": keyset, "on_progress": on_progress}
    parts = stream(session.sync_session, statement, progress=progress, total=total, **options)
    return _over_async(session, parts)


async def _over_async(session: AsyncSession, parts: Iterator[T]) -> AsyncIterator[T]:
    try:
        while (part := await session.run_sync(lambda _: next(parts, None))) is not None:
            yield part
    finally:
        await session.run_sync(lambda _: parts.close())  # type: ignore[attr-defined]


def _reported(
    parts: Iterator[list[Any]],
    reports: Sequence[Callable[[int, int | None], object]],
    bar: Bar | None,
    total: int | None,
) -> Iterator[list[Any]]:
    rows = 0
    try:
        for part in parts:
            yield part
            rows += len(part)
            for report in reports:
                report(rows, total)
    finally:
        parts.close()  # type: ignore[attr-defined]
        if bar is not None:
            bar.close()


def _by_cursor(session: Session, statement: Select[Any], chunk: int) -> Iterator[list[Any]]:
    result = session.execute(statement, execution_options={"yield_per": chunk})
    try:
        rows: Any = result.scalars() if _is_one_entity(statement) else result
        for part in rows.partitions(chunk):
            yield list(part)
            _let_go(session)
    finally:
        result.close()


def _by_key(session: Session, statement: Select[Any], chunk: int) -> Iterator[list[Any]]:
    plan = _plan_of(statement)
    columns = [getattr(plan.mapper.entity, str(slot.key)) for slot in plan.key]
    one_entity = _is_one_entity(statement)
    width = len(columns)
    query = statement.add_columns(*columns).order_by(*columns).limit(chunk)
    last: tuple[Any, ...] | None = None
    while True:
        page = query if last is None else query.where(_behind(columns, last))
        rows = session.execute(page).all()
        if not rows:
            return
        last = tuple(rows[-1][-width:])
        yield [row[0] for row in rows] if one_entity else _shortened(rows, width)
        _let_go(session)
        if len(rows) < chunk:
            return
        del rows


def _behind(columns: list[Any], last: tuple[Any, ...]) -> Any:
    return columns[0] > last[0] if len(columns) == 1 else tuple_(*columns) > last


def _shortened(rows: Sequence[Row[Any]], width: int) -> list[Any]:
    """Return the rows without the columns that were added to the statement."""
    from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

    names = list(rows[0]._fields[:-width])
    return [*IteratorResult[Any](SimpleResultMetaData(names), (tuple(row)[:-width] for row in rows))]


def _let_go(session: Session) -> None:
    """Flush the changes: until then the session keeps changed objects alive."""
    if session.autoflush and session._is_clean() is False:
        session.flush()


def _is_one_entity(statement: Select[Any]) -> bool:
    described = statement.column_descriptions
    return (
        len(described) == 1
        and described[0].get("entity") is not None
        and described[0]["expr"] is described[0]["entity"]
    )


def _plan_of(statement: Select[Any]) -> MappingPlan:
    entities = {d.get("entity") for d in statement.column_descriptions}
    entity = next(iter(entities)) if len(entities) == 1 else None
    of_its_own = {
        "order_by()": statement._order_by_clauses,
        "group_by()": statement._group_by_clauses,
        "limit()": statement._limit_clause is not None,
        "offset()": statement._offset_clause is not None,
        "distinct()": statement._distinct,
    }
    named = [name for name, there in of_its_own.items() if there]
    if named:
        raise OptionError(f"keyset=True orders and limits the statement itself; remove {', '.join(named)} from it")
    if entity is None or not hasattr(entity, "__mapper__"):
        raise OptionError("keyset=True reads by primary key, so the statement must select from one mapped class")
    return plan_for(entity)
