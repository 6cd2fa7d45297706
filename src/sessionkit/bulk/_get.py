"""`get`: load objects by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import inspect, select
from sqlalchemy.orm.attributes import instance_state

from .. import _dialects
from ..errors import BulkError
from ._lookup import conditions
from ._options import checked
from ._plan import plan_for
from ._progress import Bar
from ._rows import Chunk, Rows, Shapes, chunks, length_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import Session

    from ._plan import MappingPlan

T = TypeVar("T")
_CHUNK = 10_000


def get(
    session: Session,
    entity: type[T],
    keys: Rows,
    *,
    options: Sequence[Any] = (),
    chunk: int | None = None,
    on_progress: Callable[[int, int | None], object] | None = None,
    progress: bool = False,
) -> list[T | None]:
    """Return the objects with these primary keys, in the order of the keys; None where there is no row.

    This is ``session.get`` for many keys: an object that the session already holds is returned as it is, without asking the
    database, unless it is expired.

    Args:
        session: the session that the objects belong to.
        entity: the mapped class.
        keys: any iterable of keys: bare values, tuples for a key of several columns, or mappings. A key may appear twice.
        options: loader options, as for ``select().options()``.
        chunk: the number of keys in one query; by default 10,000.
        on_progress: called after each chunk with the number of keys so far, and the length of the input or None.
        progress: True shows a bar on standard error.

    Raises:
        BulkError: an item is not a key of the class.

    SQL: per chunk ``SELECT ... WHERE id = ANY(ARRAY[...])`` with one parameter on PostgreSQL, ``IN`` on SQLite and for
    keys of several columns.
    """
    checked({"chunk": chunk}, "bulk.get()")
    plan = plan_for(entity)
    total = length_of(keys)
    bar = Bar(f"get {plan.name}", total) if progress else None
    shapes = Shapes(plan, keys=True)
    connection = session.connection(bind_arguments={"mapper": plan.mapper})
    result: list[T | None] = []
    try:
        for part in chunks(keys, chunk or _CHUNK, asynchronous=connection.dialect.is_async):
            wanted = _identities(plan, shapes, part)
            result += _objects(session, plan, wanted, options)
            for report in (on_progress, bar):
                if report is not None:
                    report(len(result), total)
    finally:
        if bar is not None:
            bar.close()
    return result


def _identities(plan: MappingPlan, shapes: Shapes, part: Chunk) -> list[tuple[Any, ...]]:
    def refuse(error: BulkError) -> None:
        raise error

    bare = shapes.bare(part.rows)
    if bare is not None:
        return bare
    names = [slot.label for slot in plan.key]
    identities: list[tuple[Any, ...]] = []
    for place, row in enumerate(shapes.read(part, refuse).rows):
        lacking = next((name for name in names if row.get(name) is None), None)
        if lacking is not None:
            position = part.start + place
            message = f"row {position} has no value for {lacking!r}, the key of {plan.name}"
            raise BulkError(message, position=position, row=part.rows[place], column=lacking)
        identities.append(tuple(row[name] for name in names))
    return identities


def _identity(obj: Any) -> tuple[Any, ...]:
    return instance_state(obj).key[1]  # type: ignore[index]  # it has been loaded


def _objects(session: Session, plan: MappingPlan, wanted: list[tuple[Any, ...]], options: Sequence[Any]) -> list[Any]:
    mapper = plan.mapper
    known: dict[tuple[Any, ...], Any] = {}
    held = session.identity_map
    if held and not options:
        for key in wanted:
            obj = held.get(mapper.identity_key_from_primary_key(key))
            if obj is not None and isinstance(obj, mapper.class_) and not inspect(obj).expired:
                known[key] = obj
    asked = list(dict.fromkeys(key for key in wanted if key not in known))
    if asked:
        dialect = _dialects.of(session.connection(bind_arguments={"mapper": mapper})).bulk
        columns = [getattr(mapper.entity, str(slot.key)) for slot in plan.key]
        query = select(mapper.entity).options(*options)
        found: dict[tuple[Any, ...], Any] = {}
        for condition in conditions(dialect, columns, asked):
            objects = session.scalars(query.where(condition)).unique().all()
            found |= zip(map(_identity, objects), objects, strict=True)
        before = len(known)
        known |= {key: found[key] for key in asked if key in found}
        if len(known) - before < len(found):
            # Values may be equal to the database but not to Python (5 and "5"): ask for these one by one.
            for key in asked:
                if key not in known:
                    known[key] = session.get(mapper.entity, key, options=options)
    return [known.get(key) for key in wanted]
