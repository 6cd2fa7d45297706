"""When two keys of the input are the same key in the database: by the column's type, its collation, their spelling.

Python folds keys so broadly that all that may be equal become equal. The database then decides about the few that are left.
"""

from __future__ import annotations

import unicodedata
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from sqlalchemy import types as sqltypes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Dialect

    from ._context import CallContext
    from ._plan import Slot

    Key = tuple[Any, ...]


class Equality:
    """The equality of keys that are made of these columns.

    Args:
        call: the call that asks the database when Python cannot tell.
        slots: the columns.
    """

    def __init__(self, call: CallContext, slots: Sequence[Slot]) -> None:
        self._call = call
        self._slots = slots
        dialect, connection = call.dialect, call.connection
        neutral = dialect.driverless(connection.dialect)
        self._kinds = [_plain_kinds(slot.column.type, neutral) for slot in slots]
        stored = dialect.stored_key or _fold_of
        self._folds = [stored(slot.column.type, neutral) for slot in slots]
        self._same: dict[Slot, Callable[[Any, Any], bool]] = {}

    def folded(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Return the keys in a form in which all keys that may be the same compare equal.

        Raises:
            TypeError: a value cannot be part of a key.
        """
        columns = list(zip(*keys, strict=True))
        changed = [self._column(place, values) for place, values in enumerate(columns)]
        if all(new is old for new, old in zip(changed, columns, strict=True)):
            return keys
        return list(zip(*changed, strict=True))

    def _column(self, place: int, values: tuple[Any, ...]) -> Sequence[Any]:
        kinds = set(map(type, values))
        if kinds <= _EXACT and kinds <= self._kinds[place]:
            return values
        for value in values:
            hash(value)  # a value without a hash cannot be part of a key
        fold = self._folds[place]
        # SQLite stores what the type passes on; on a server, only the server knows how it converts a value of another kind.
        if self._call.dialect.stored_key is None and not (
            fold is not None or _is_plain(kinds, values, self._kinds[place])
        ):
            told = self._call.dialect.canonical(self._call.connection, self._slots[place].column, values)
            if told is not None:
                return [fold_value(value) for value in told]
        return [_folded(value, fold) for value in values]

    def one_key(self, a: Key, b: Key) -> bool:
        """Return whether two keys that fold to the same value are the same key in the database."""
        return a == b or all(
            _equal(x, y) or self._one_value(place, x, y) for place, (x, y) in enumerate(zip(a, b, strict=True))
        )

    def _one_value(self, place: int, a: Any, b: Any) -> bool:
        slot, fold = self._slots[place], self._folds[place]
        if fold is not None and _equal(_made(a, fold), _made(b, fold)):
            return True
        same = self._same.get(slot)
        if same is None:
            same = self._same[slot] = self._call.dialect.same(self._call.connection, slot.column)
        return same(a, b)


_EXACT: frozenset[Any] = frozenset({int, UUID, bool})


def _plain_kinds(type_: Any, dialect: Dialect) -> frozenset[Any]:
    """Return the classes of values that are equal in the database exactly if they are equal in Python."""
    impl: Any = type_._unwrapped_dialect_impl(dialect)
    rounds = getattr(impl, "precision", None) is not None
    if rounds or isinstance(type_, sqltypes.TypeDecorator) or isinstance(impl, sqltypes.Enum):
        return frozenset()
    return next((kinds for kind, kinds in _KINDS if isinstance(impl, kind)), frozenset())


_KINDS: tuple[tuple[Any, frozenset[Any]], ...] = (
    (sqltypes.Boolean, frozenset({bool})),
    (sqltypes.Integer, frozenset({int})),
    (sqltypes.Uuid, frozenset({UUID})),
    (sqltypes.String, frozenset({str})),
    (sqltypes.Date, frozenset({date})),
    (sqltypes.DateTime, frozenset({datetime})),
    (sqltypes.LargeBinary, frozenset({bytes})),
)


def _is_plain(kinds: set[type], values: Sequence[Any], plain: frozenset[Any]) -> bool:
    if not kinds - {type(None)} <= plain:
        return False
    return datetime not in kinds or len({value.tzinfo is None for value in values if value is not None}) == 1


def _fold_of(type_: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return a function that maps values which the type stores alike to one value; None if the type converts nothing."""
    impl: Any = type_._unwrapped_dialect_impl(dialect)
    if isinstance(impl, sqltypes.Uuid):
        return _uuid
    if isinstance(type_, sqltypes.TypeDecorator) or isinstance(impl, sqltypes.Enum):
        return cast("Callable[[Any], Any] | None", type_._cached_bind_processor(dialect))
    return None


def _uuid(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def _made(value: Any, fold: Callable[[Any], Any]) -> Any:
    try:
        return value if value is None else fold(value)
    except Exception:  # noqa: BLE001 - writing such a row raises an error of its own
        return value


def _folded(value: Any, fold: Callable[[Any], Any] | None) -> Any:
    return fold_value(value if fold is None else _made(value, fold))


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001 - values of different kinds that cannot be compared
        return False


def fold_value(value: Any) -> Any:
    """Return a value in a form in which all values that a collation or type may treat as one compare equal."""
    match value:
        case str():
            plain = value.casefold()
            if not plain.isascii():
                plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
            return "".join(filter(str.isalnum, plain)) or plain.strip()
        case memoryview():
            return bytes(value)
        case _:
            return value
