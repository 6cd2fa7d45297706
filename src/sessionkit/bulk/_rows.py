"""The input: any iterable, read in chunks, with each row as a mapping of attribute names."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, Iterable, Mapping, Sized
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import PassiveFlag
from sqlalchemy.util import await_only

from ..errors import BulkError, OptionError, SyncAsyncMismatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from sqlalchemy.orm import InstanceState

    from ._plan import MappingPlan


class Read(NamedTuple):
    """The rows of a chunk.

    Attributes:
        places: the place of each row in the chunk.
        rows: the rows as mappings of attribute names.
        shapes: the distinct sets of keys among them.
        values: if each row is a dict with the keys `names`, its values in that order; otherwise None.
        names: see `values`.
    """

    places: Sequence[int]
    rows: list[Mapping[str, Any]]
    shapes: set[frozenset[str]]
    values: list[tuple[Any, ...]] | None = None
    names: tuple[str, ...] = ()


Rows = Iterable[Any] | AsyncIterable[Any]


class Chunk(NamedTuple):
    """A part of the input: the rows as they were passed in, and the position of the first one."""

    start: int
    rows: list[Any]


def length_of(rows: object) -> int | None:
    """Return the number of rows if the input knows it without being read."""
    return len(rows) if isinstance(rows, Sized) else None


def chunks(rows: Rows, size: int, *, asynchronous: bool) -> Iterator[Chunk]:
    """Read the input chunk by chunk, so that only one chunk is in memory.

    Raises:
        SyncAsyncMismatch: an async iterable was passed to a sync call.
        OptionError: the input is not iterable, or is a single row.
    """
    asked = cast(object, rows)
    if isinstance(asked, Mapping | str | bytes):
        kind: type[Any] = type(asked)
        raise OptionError(
            f"the rows must be an iterable of rows, but this is a single {kind.__name__}; put it into a list"
        )
    pull: Callable[[], list[Any]]
    if isinstance(asked, Iterable):
        iterator = iter(cast(Any, asked))
        pull = lambda: list(islice(iterator, size))  # noqa: E731
    elif isinstance(asked, AsyncIterable):
        if not asynchronous:
            raise SyncAsyncMismatch(
                "an async iterable was given to a sync session; use the async_ twin with an AsyncSession"
            )
        iterator_ = aiter(cast(Any, asked))
        # One switch to the event loop per chunk, not per row.
        pull = lambda: await_only(_pull(iterator_, size))  # noqa: E731
    else:
        raise OptionError(f"the rows must be an iterable of rows, not {rows!r}")
    start = 0
    while part := pull():
        yield Chunk(start, part)
        start += len(part)


async def _pull(iterator: AsyncIterator[Any], size: int) -> list[Any]:
    part: list[Any] = []
    append = part.append
    while len(part) < size:
        try:
            append(await anext(iterator))
        except StopAsyncIteration:
            break
    return part


_PLAIN = frozenset({int, str, bytes, UUID, Decimal, date, datetime})
"""Types whose values are keys and never rows."""


class Shapes:
    """Reads rows of any kind as mappings, for one plan and one verb.

    Args:
        plan: the mapped class.
        changes_only: from a loaded mapped object, take only the changed attributes, the key and the version.
        keys: a row may also be a bare key, which is a tuple if the key has several columns.
    """

    def __init__(self, plan: MappingPlan, *, changes_only: bool = False, keys: bool = False) -> None:
        self._plan = plan
        self._keys = tuple(slot.label for slot in plan.key) if keys else ()
        self._changes_only = changes_only
        self._readers: dict[type, Callable[[Any], Mapping[str, Any]] | None] = {dict: None}

    def bare(self, rows: list[Any]) -> list[tuple[Any, ...]] | None:
        """Return the rows as keys if they are all values of a single-column key."""
        if len(self._keys) != 1 or not _PLAIN.issuperset(map(type, rows)):
            return None
        return list(zip(rows, strict=True))

    def read(self, chunk: Chunk, refuse: Callable[[BulkError], None]) -> Read:
        """Return the rows that can be read; `refuse` receives the errors of the others."""
        rows = chunk.rows
        readers = self._readers
        kinds = set(map(type, rows))
        for kind in kinds - readers.keys():
            readers[kind] = self._reader(kind)
        places: Sequence[int] = range(len(rows))
        if any(readers[kind] is not None for kind in kinds):
            read: list[Any] = []
            kept: list[int] = []
            for place, row in enumerate(rows):
                reader = readers[type(row)]
                try:
                    read.append(row if reader is None else reader(row))
                    kept.append(place)
                except _WrongRow as wrong:
                    position = chunk.start + place
                    refuse(BulkError(f"row {position} {wrong}", position=position, row=row, column=wrong.column))
            rows, places = read, kept
        return self._known(chunk, places, rows, refuse)

    def _known(self, chunk: Chunk, places: Sequence[int], rows: list[Any], refuse: Callable[[BulkError], None]) -> Read:
        names = self._plan.names
        uniform = self._uniform(places, rows)
        if uniform is not None:
            return uniform
        # Tuples first: making one is five times as fast as making a set, and there are few different ones.
        orders: set[tuple[str, ...]] = set(map(tuple, rows))
        shapes = {frozenset(order) for order in orders}
        wrong = {key for shape in shapes for key in shape if key not in names}
        if not wrong:
            return Read(places, rows, shapes)
        kept: list[int] = []
        good: list[Any] = []
        for place, row in zip(places, rows, strict=True):
            unknown = next((key for key in row if key in wrong), None)
            if unknown is None:
                kept.append(place)
                good.append(row)
                continue
            position = chunk.start + place
            message = f"row {position}: {self._plan.refusal(unknown)}"
            refuse(BulkError(message, position=position, row=chunk.rows[place], column=str(unknown)))
        return Read(kept, good, {frozenset(row) for row in good})

    def _uniform(self, places: Sequence[int], rows: list[Any]) -> Read | None:
        """Return the rows if they are dicts with the same keys. The check is as fast as taking out the values."""
        if set(map(type, rows)) != {dict} or len(set(map(len, rows))) != 1:
            return None
        names = tuple(name for name in self._plan.names if name in rows[0])
        if len(names) < 2 or len(names) != len(rows[0]):
            return None
        try:
            values = list(map(itemgetter(*names), rows))
        except KeyError:
            return None
        return Read(places, rows, {frozenset(names)}, values, names)

    def _reader(self, kind: type[Any]) -> Callable[[Any], Mapping[str, Any]] | None:
        if issubclass(kind, Mapping):
            return None
        mapper = cast(Any, inspect(kind, raiseerr=False))
        if isinstance(mapper, Mapper):
            if mapper is self._plan.mapper:
                return self._read_object
            return partial(_refuse, f"is of class {kind.__name__}, not {self._plan.name}; call bulk for each class")
        if self._keys and (issubclass(kind, tuple) or not dataclasses.is_dataclass(kind)):
            return self._read_key
        if dataclasses.is_dataclass(kind):
            fields = tuple(f.name for f in dataclasses.fields(kind))
            return lambda row: {name: getattr(row, name) for name in fields}
        if issubclass(kind, tuple):
            names: Any = kind
            # A named tuple; SQLAlchemy's Row is one only if its keys are valid names, otherwise see below.
            if hasattr(names, "_fields") and hasattr(names, "_asdict"):
                return lambda row: row._asdict()
            if hasattr(names, "_mapping"):
                return lambda row: row._mapping
        return partial(
            _refuse,
            f"is of type {kind.__name__}; a row is a mapping of attribute names, a {self._plan.name}, a dataclass or a "
            "named tuple",
        )

    def _read_key(self, row: Any) -> Mapping[str, Any]:
        values = cast(Any, row if isinstance(row, tuple) else (row,))
        if len(values) != len(self._keys):
            wanted = f"a key of {self._plan.name} is ({', '.join(self._keys)})"
            raise _WrongRow(f"is {row!r}, which is not a key; {wanted}")
        return dict(zip(self._keys, values, strict=True))

    def _read_object(self, row: Any) -> Mapping[str, Any]:
        state = instance_state(row)
        held = state.dict
        slots = self._plan.slots
        for name in self._plan.mapper.relationships.keys() & held.keys():
            if held[name] and not (state.key or self._changes_only):
                raise _WrongRow(f"holds the relationship {name!r}: {self._plan.refusal(name)}", name)
        if state.key is None:
            return {key: held[key] for key in slots if key in held}
        # The identity of an expired object is known without asking the database; its values are not.
        identity = dict(zip((slot.label for slot in self._plan.key), state.key[1], strict=True))
        values = identity | held
        if not (self._changes_only or self._keys):
            unloaded = next((key for key in slots if key not in values), None)
            if unloaded is not None:
                raise _WrongRow(
                    f"has not loaded {unloaded!r}; refresh the object, or give its values as a mapping", unloaded
                )
        elif self._changes_only:
            always = {*identity, *([self._plan.version.key] if self._plan.version is not None else ())}
            changed = {key for key in values.keys() & state.committed_state.keys() if _has_changes(state, key)}
            # With nothing to write, the version need not change.
            values = {key: values[key] for key in (always | changed if changed - always else identity) if key in values}
        return {key: values[key] for key in slots if key in values}


def _has_changes(state: InstanceState[Any], key: str) -> bool:
    return state.get_history(key, PassiveFlag.PASSIVE_NO_INITIALIZE).has_changes()


class _WrongRow(Exception):
    def __init__(self, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.column = column


def _refuse(message: str, row: object) -> Mapping[str, Any]:
    raise _WrongRow(message)
