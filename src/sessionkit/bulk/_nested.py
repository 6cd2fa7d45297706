"""PostgreSQL's binary form of types that contain another type: arrays, ranges, multiranges."""

from __future__ import annotations

import sys
from datetime import date, datetime
from decimal import Decimal
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

from ._forms import HELPERS, LENGTH, whole_list

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._forms import Wire


def _field(element: Wire, names: dict[str, Any]) -> str:
    """Return an expression for the bytes of ``v``, preceded by their length."""
    value = element.value.format("v")
    if element.code is None:
        return f"L(len(b := {value})) + b"
    one = names["S"] = Struct(">i" + element.code)
    return f"S.pack({one.size - 4}, {value})"


# Arrays


def array_packer(element: Wire) -> Callable[[Any], bytes]:
    """Return a function that packs a list, or nested lists, of elements that the array's type has processed."""
    names = dict(HELPERS)
    field = _field(element, names)
    pack_all = eval(f"lambda items: [NULL if v is None else {field} for v in items]", names)  # noqa: S307 - from this file

    line = _LINE.pack

    def pack(value: Any) -> bytes:
        items: list[Any] = whole_list(value)
        if items and not isinstance(items[0], list | tuple):
            return line(1, None in items, element.oid, len(items), 1) + b"".join(pack_all(items))
        dimensions = [len(items)]
        while items and isinstance(items[0], list | tuple):
            if len({len(item) for item in items}) != 1:
                raise ValueError(f"the lists in {value!r} have different lengths")
            dimensions.append(len(items[0]))
            items = [x for item in items for x in item]
        if not items:
            return _ARRAY.pack(0, 0, element.oid)
        header = _ARRAY.pack(len(dimensions), int(None in items), element.oid)
        return b"".join([header, *(_DIMENSION.pack(n, 1) for n in dimensions), *pack_all(items)])

    return pack


_ARRAY = Struct(">iiI")
_LINE = Struct(">iiIii")
_DIMENSION = Struct(">ii")


# Ranges

_EMPTY = b"\x01"
_FLAGS = {"()": 0, "[)": 2, "(]": 4, "[]": 6}
_NO_LOWER, _NO_UPPER = 8, 16
# A bound of another kind makes the driver send a range of another type.
_BOUNDS: dict[str, set[type]] = {
    "int4": {int},
    "int8": {int},
    "numeric": {int, Decimal},
    "date": {date},
    "timestamp": {datetime},
    "timestamptz": {datetime},
}


# The drivers' range classes that are equivalent to SQLAlchemy's. Each of psycopg2's has a type of its own.
_THEIRS = {
    ("psycopg", "Range"): "psycopg.types.range",
    ("psycopg_async", "Range"): "psycopg.types.range",
    ("asyncpg", "Range"): "asyncpg",
    ("psycopg", "Multirange"): "psycopg.types.multirange",
    ("psycopg_async", "Multirange"): "psycopg.types.multirange",
}


def _class_of(driver: str, name: str) -> type | None:
    # The engine has imported its driver.
    found: type | None = getattr(sys.modules.get(_THEIRS.get((driver, name), "")), name, None)
    return found


def range_packer(element: Wire, driver: str) -> Callable[[Any], bytes]:
    """Return a function that packs SQLAlchemy's Range, or the driver's."""
    names = dict(HELPERS)
    bound = eval(f"lambda v: {_field(element, names)}", names)  # noqa: S307 - from this file
    kinds = _BOUNDS[element.name]
    theirs: Any = _class_of(driver, "Range")
    ours: Any = _range_class()

    def pack(value: Any) -> bytes:
        if type(value) is ours:
            empty, bounds = value.empty, value.bounds
        elif type(value) is theirs:
            empty = value.isempty
            bounds = f"{'[' if value.lower_inc else '('}{']' if value.upper_inc else ')'}"
        else:
            raise TypeError(f"{value!r} is not a Range")
        if empty:
            return _EMPTY
        lower, upper, flags = value.lower, value.upper, _FLAGS[bounds]
        out = b""
        if lower is None:
            flags = flags & 4 | _NO_LOWER
        elif type(lower) in kinds:
            out = bound(lower)
        else:
            raise TypeError(f"{value!r} does not begin with a value of the type")
        if upper is None:
            flags = flags & ~4 | _NO_UPPER
        elif type(upper) in kinds and (lower is None or type(upper) is type(lower)):
            out += bound(upper)
        else:
            raise TypeError(f"{value!r} does not end with a value of the type")
        return bytes((flags,)) + out

    return pack


def multirange_packer(element: Wire, driver: str) -> Callable[[Any], bytes]:
    """Return a function that packs a list of SQLAlchemy's Range, or the driver's Multirange."""
    one = range_packer(element, driver)
    theirs: Any = _class_of(driver, "Multirange")
    ours: Any = _range_class()

    def pack(value: Any) -> bytes:
        if isinstance(value, list | tuple):
            ranges = cast("list[Any]", value)
            if not all(type(item) is ours for item in ranges):
                raise TypeError(f"{value!r} is not a list of Ranges")
        elif type(value) is theirs:
            ranges = list(value)
        else:
            raise TypeError(f"{value!r} is not a list")
        packed = [one(item) for item in ranges]
        return b"".join([LENGTH(len(packed)), *[part for octets in packed for part in (LENGTH(len(octets)), octets)]])

    return pack


def _range_class() -> type:
    # Imported on first use: it imports the whole dialect.
    from sqlalchemy.dialects.postgresql import Range

    return Range
