"""`returning`: what was written, read again by its primary key, in the order of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Mapper

from ..errors import OptionError
from ._lookup import conditions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._context import CallContext

    Key = tuple[Any, ...]


def read_back(call: CallContext, returning: Sequence[Any], keys: Sequence[Key | None]) -> list[Any]:
    """Return what `returning` asks for, for each key; None where there is none.

    Keys alone are not read again: the database has told them already.
    """
    plan = call.plan
    if isinstance(returning, str) or not hasattr(returning, "__iter__"):
        raise OptionError(f"returning={returning!r}: it is a list of attributes, or of the class, as [{plan.name}.id]")
    asked = list(returning)
    whole = len(asked) == 1 and isinstance(inspect(asked[0], raiseerr=False), Mapper)
    if not whole:
        slots = [None if isinstance(a, type) else plan.slot_for(a, "returning") for a in asked]
        if all(slot in plan.key for slot in slots):
            places = [plan.key.index(slot) for slot in slots if slot is not None]
            names = [slot.label for slot in slots if slot is not None]
            if places == list(range(len(plan.key))):
                return _rows(names, list(keys))
            return _rows(names, [None if key is None else tuple(key[i] for i in places) for key in keys])
    columns = [getattr(plan.mapper.entity, str(slot.key)) for slot in plan.key]
    query = select(*columns, *asked).execution_options(populate_existing=True)
    width = len(columns)
    found: dict[Key, Any] = {}
    for condition in conditions(call.dialect, columns, [key for key in keys if key is not None]):
        result = call.session.execute(query.where(condition), bind_arguments={"mapper": plan.mapper})
        for row in result:
            found[tuple(row[:width])] = row[width] if whole else tuple(row[width:])
    missing = [key for key in keys if key is not None and key not in found]
    for key in missing:  # the key was given in another form than the one in which the database tells it
        row = call.session.execute(
            query.where(*(c == value for c, value in zip(columns, key, strict=True))),
            bind_arguments={"mapper": plan.mapper},
        ).one()
        found[key] = row[width] if whole else tuple(row[width:])
    values = [None if key is None else found[key] for key in keys]
    if whole:
        return values
    return _rows([str(getattr(a, "key", None) or getattr(a, "__name__", "?")) for a in asked], values)


def _rows(names: Sequence[str], values: list[Any]) -> list[Any]:
    told = values if None not in values else [value for value in values if value is not None]
    full: list[Any] = [*IteratorResult[Any](SimpleResultMetaData(list(names)), iter(told))]
    if len(full) == len(values):
        return full
    rows = iter(full)
    return [None if value is None else next(rows) for value in values]
