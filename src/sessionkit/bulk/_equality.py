"""When two keys of the input are one key in the database: by the column's type, by its collation, by their spelling.

Python folds so much together that whatever may be equal is; the database judges the few that are then left over.
"""

from __future__ import annotations

import unicodedata
from decimal import Decimal
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
        call: asks the database, where Python cannot tell.
        slots: the columns.
    """

    def __init__(self, call: CallContext, slots: Sequence[Slot]) -> None:
        self._call = call
        self._slots = slots
        dialect = call.dialect.neutral(call.connection.dialect)
        self._folds = [_fold_of(slot.column.type, dialect) for slot in slots]
        self._same: dict[Slot, Callable[[Any, Any], bool]] = {}
        self._keeps_plain = all(fold is None or fold is int for fold in self._folds)

    def folded(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Return the keys in a form in which all that may be one key are equal.

        Raises:
            TypeError: a value cannot be the value of a key.
        """
        if self._keeps_plain and _EXACT.issuperset({type(value) for key in keys for value in key}):
            return keys
        return [tuple(_folded(value, fold) for value, fold in zip(key, self._folds, strict=True)) for key in keys]

    def one_key(self, a: Key, b: Key) -> bool:
        """Tell whether two keys that fold to the same one are one key in the database."""
        return a == b or all(
            x == y or self._one_value(slot, x, y) for slot, x, y in zip(self._slots, a, b, strict=True)
        )

    def _one_value(self, slot: Slot, a: Any, b: Any) -> bool:
        same = self._same.get(slot)
        if same is None:
            same = self._same[slot] = self._call.dialect.same(self._call.connection, slot.column)
        return same(a, b)


_EXACT = frozenset({int, UUID, bool})


def _fold_of(type_: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return what makes one value of all that a type stores as the same; None where values stand for themselves."""
    impl: Any = type_._unwrapped_dialect_impl(dialect)
    if isinstance(impl, sqltypes.Uuid):
        return _uuid if not impl.as_uuid else None
    if isinstance(impl, sqltypes.Numeric) and impl.scale is not None and impl.asdecimal:
        return lambda value: round(Decimal(value), impl.scale)
    if isinstance(type_, sqltypes.TypeDecorator) or isinstance(impl, sqltypes.Enum):
        return cast("Callable[[Any], Any] | None", type_._cached_bind_processor(dialect))
    return int if isinstance(impl, sqltypes.Integer) else None


def _uuid(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def _folded(value: Any, fold: Callable[[Any], Any] | None) -> Any:
    if fold is not None and value is not None:
        try:
            value = fold(value)
        except Exception:  # noqa: BLE001 - such a row is refused when it is written, with an error of its own
            return value
    return fold_value(value)


def fold_value(value: Any) -> Any:
    """Return a value in a form in which whatever a collation or a type of a database may take for one value is equal."""
    match value:
        case str():
            plain = value.casefold()
            if not plain.isascii():
                plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
            return "".join(filter(str.isalnum, plain)) or plain.strip()
        case bytearray() | memoryview():
            return bytes(value)
        case _:
            hash(value)  # what has none is no value of a key
            return value
