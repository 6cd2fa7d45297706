"""`returning`: reads the written rows again by primary key, and returns them in the order of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Mapper

from ..errors import OptionError
from ._lookup import conditions, equal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

    from ._context import CallContext
    from ._plan import Slot

    Key = tuple[Any, ...]


def read_back(call: CallContext, returning: Sequence[Any]) -> list[Any]:
    """Return what `returning` asks for, for each row of the input; None where there is no row.

    If only keys are wanted, nothing is read: the database has returned them already.
    """
    plan = call.plan
    if isinstance(returning, str) or not hasattr(returning, "__iter__"):
        raise OptionError(
            f"returning={returning!r} is not allowed; give a list of attributes, or of the class, such "
            f"as [{plan.name}.id]"
        )
    asked = list(returning)
    keys = call.tally.keys()
    if len(asked) == 1 and isinstance(inspect(asked[0], raiseerr=False), Mapper):
        found = _found(call, _Entities(call), keys)
        return [None if key is None else found.get(key) for key in keys]
    slots = [plan.slot_for(a, "returning") for a in asked]
    names = [str(getattr(a, "key", None) or slot.label) for a, slot in zip(asked, slots, strict=True)]
    if all(slot in plan.key for slot in slots) and not call.tally.doubtful:
        places = [plan.key.index(slot) for slot in slots]
        if places == list(range(len(plan.key))):
            return _rows(names, list(keys))
        return _rows(names, [None if key is None else tuple(key[i] for i in places) for key in keys])
    found = _found(call, _Columns(call, slots), keys)
    return _rows(names, [None if key is None else found.get(key) for key in keys])


class _Columns:
    """Columns, read past the session: rows that its queries hide were written all the same."""

    def __init__(self, call: CallContext, slots: Sequence[Slot]) -> None:
        self._connection = call.connection
        self.key = [slot.column for slot in call.plan.key]
        self._width = len(self.key)
        self._query = select(*self.key, *(slot.column for slot in slots)).select_from(
            call.plan.mapper.persist_selectable
        )

    def read(self, *conditions: ColumnElement[bool]) -> list[tuple[Key, Any]]:
        rows = map(tuple, self._connection.execute(self._query.where(*conditions)))
        return [(row[: self._width], row[self._width :]) for row in rows]


class _Entities:
    """Objects of the session, refreshed. Skips its listeners, which may hide rows from its queries."""

    def __init__(self, call: CallContext) -> None:
        mapper = call.plan.mapper
        self._session: Any = call.session
        self._bind_arguments = {"mapper": mapper}
        self.key = [getattr(mapper.entity, str(slot.key)) for slot in call.plan.key]
        self._query = select(*self.key, mapper.entity).execution_options(populate_existing=True)

    def read(self, *conditions: ColumnElement[bool]) -> list[tuple[Key, Any]]:
        # Session.execute() without its events. The rows are unique already, except with joined eager loading in the mapping.
        result = self._session._execute_internal(
            self._query.where(*conditions), bind_arguments=self._bind_arguments, _parent_execute_state=_Unheard
        )
        return [(tuple(row[:-1]), row[-1]) for row in result.unique()]


class _Unheard:
    """Stands in for a statement state whose listeners have all been called."""

    @staticmethod
    def _remaining_events() -> list[Any]:
        return []


def _found(call: CallContext, source: _Columns | _Entities, keys: Sequence[Key | None]) -> dict[Key, Any]:
    """Return what the source holds, by key."""
    wanted = dict.fromkeys(key for key in keys if key is not None)
    found: dict[Key, Any] = {}
    for condition in conditions(call.dialect, source.key, list(wanted)):
        found.update(source.read(condition))
    for key in wanted:
        if key not in found:  # the input spelled the key differently from the database
            told = source.read(*equal(source.key, key))
            found.update((key, what) for _, what in told)
    return found


def _rows(names: Sequence[str], values: list[Any]) -> list[Any]:
    told = values if None not in values else [value for value in values if value is not None]
    full: list[Any] = [*IteratorResult[Any](SimpleResultMetaData(list(names)), iter(told))]
    if len(full) == len(values):
        return full
    rows = iter(full)
    return [None if value is None else next(rows) for value in values]
