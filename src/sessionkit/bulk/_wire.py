"""PostgreSQL's binary form of the types in which it is certain, as expressions for generated packers.

https://www.postgresql.org/docs/current/protocol-message-formats.html tells only that it is what the type's receive
function reads; each form here is that of the function in src/backend/utils/adt, and is held to it by the differential
tests. A value of another kind than the expression expects makes it raise, and SQLAlchemy's way then decides.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import types as sqltypes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine


class Wire(NamedTuple):
    """How values of a type are sent.

    Attributes:
        name: the type's name in the catalogue (pg_type.typname).
        oid: its number there, the same on every server; of an array its own name and that of the element differ.
        sql: how the type is called in SQL, without a length, which the assignment to the column checks.
        code: ``struct`` code of what has one length; None for all else, which `value` then makes bytes of.
        value: an expression of ``{}``, never None: what `code` packs, or bytes.
    """

    name: str
    oid: int
    sql: str
    code: str | None
    value: str


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_NAIVE = datetime(2000, 1, 1)  # noqa: DTZ001 - `timestamp` has no zone
_MICROSECONDS = "((d := {{}} - {0}).days * 86400 + d.seconds) * 1000000 + d.microseconds"


WIRES = {
    wire.name: wire
    for wire in (
        # A mapping and not a truth value: what is neither True nor False is an error, as in SQLAlchemy.
        Wire("bool", 16, "BOOLEAN", "B", "BOOLS[{}]"),
        Wire("bytea", 17, "BYTEA", None, "octets({})"),
        Wire("int8", 20, "BIGINT", "q", "{}"),
        Wire("int2", 21, "SMALLINT", "h", "{}"),
        Wire("int4", 23, "INTEGER", "i", "{}"),
        Wire("text", 25, "TEXT", None, "{}.encode()"),
        Wire("json", 114, "JSON", None, "{}.encode()"),
        Wire("float4", 700, "REAL", "f", "{}"),
        Wire("float8", 701, "DOUBLE PRECISION", "d", "{}"),
        Wire("bpchar", 1042, "BPCHAR", None, "{}.encode()"),
        Wire("date", 1082, "DATE", "i", "days({})"),
        Wire("time", 1083, "TIME", "q", "time_of_day({})"),
        Wire("timestamp", 1114, "TIMESTAMP", "q", _MICROSECONDS.format("EPOCH_NAIVE")),
        Wire("timestamptz", 1184, "TIMESTAMP WITH TIME ZONE", "q", _MICROSECONDS.format("EPOCH")),
        Wire("interval", 1186, "INTERVAL", "16s", "interval({})"),
        Wire("numeric", 1700, "NUMERIC", None, "numeric({})"),
        Wire("uuid", 2950, "UUID", "16s", "uuid({})"),
        Wire("jsonb", 3802, "JSONB", None, "b'\\x01' + {}.encode()"),
    )
}

# What else a column can be in the database, so that the packer takes its form in place of the mapping's.
_INTERCHANGEABLE = (
    frozenset({"int2", "int4", "int8"}),
    frozenset({"float4", "float8"}),
    frozenset({"json", "jsonb"}),
)
_LIKE_TEXT = frozenset({"text", "varchar", "bpchar", "name"})


def as_stored(wire: Wire, name: str, kind: str) -> Wire | None:
    """Return how values for `wire` are sent to a column that the catalogue calls `name`; None if that is not certain.

    Args:
        wire: what the mapping says.
        name: pg_type.typname.
        kind: pg_type.typtype: ``b`` base, ``e`` enum.
    """
    if wire.name in {"text", "bpchar"}:
        return wire if name in _LIKE_TEXT or kind == "e" else None
    if wire.name == name:
        return wire
    for group in _INTERCHANGEABLE:
        if wire.name in group and name in group:
            return WIRES[name]
    return None


def with_oid(wire: Wire, name: str) -> Wire:
    """Return the wire of array elements that the catalogue calls `name`: an array says the type of its elements."""
    return wire._replace(oid=_TEXT_OIDS.get(name, wire.oid))


_TEXT_OIDS = {"text": 25, "varchar": 1043, "bpchar": 1042, "name": 19}

_STRINGS = frozenset(
    {"string", "text", "unicode", "unicode_text", "VARCHAR", "TEXT", "NVARCHAR", "CLOB", "enum", "ENUM"}
)


def wire_of(type_: TypeEngine[Any], dialect: Dialect) -> Wire | None:
    """Return how values of a type are sent; None where the binary form is not certain."""
    if getattr(type_, "_has_bind_expression", False):
        return None  # the value is wrapped in SQL
    impl = type_._unwrapped_dialect_impl(dialect)
    name = _name_of(impl)
    return WIRES[name] if name else None


def is_plain_json(impl: Any) -> bool:
    """Tell whether a type makes text of a document as SQLAlchemy's own JSON does."""
    own: Any = sqltypes.JSON
    return isinstance(impl, sqltypes.JSON) and getattr(impl.__class__, "bind_processor", None) is own.bind_processor


def element_of(type_: TypeEngine[Any], dialect: Dialect) -> Wire | None:
    """Return how the elements of an array type are sent; None if it is no array, or that is not certain."""
    impl = type_._unwrapped_dialect_impl(dialect)
    if getattr(type_, "_has_bind_expression", False) or not isinstance(impl, sqltypes.ARRAY):
        return None
    item: TypeEngine[Any] = cast(Any, impl).item_type
    if isinstance(item._unwrapped_dialect_impl(dialect), sqltypes.Enum):
        return None  # the array names the type of its elements, by a number that is this database's own
    return wire_of(item, dialect)


def _name_of(impl: TypeEngine[Any]) -> str | None:
    visit = impl.__visit_name__
    match impl:
        case sqltypes.JSON():
            return {"JSONB": "jsonb", "JSON": "json"}.get(visit)
        case sqltypes.Uuid():
            return "uuid" if impl.native_uuid else None
        case sqltypes.Boolean():
            return "bool"
        case sqltypes.SmallInteger():
            return "int2"
        case sqltypes.BigInteger():
            return "int8"
        case sqltypes.Integer():
            return "int4" if visit in {"integer", "INTEGER"} else None
        case sqltypes.Float():
            single = visit == "REAL" or (impl.precision is not None and impl.precision <= 24)
            return "float4" if single and visit not in {"double", "DOUBLE", "DOUBLE_PRECISION"} else "float8"
        case sqltypes.Numeric():
            return "numeric"
        case sqltypes.DateTime():
            return "timestamptz" if impl.timezone else "timestamp"
        case sqltypes.Date():
            return "date"
        case sqltypes.Time():
            return None if impl.timezone else "time"
        case sqltypes.LargeBinary():
            return "bytea"
        case sqltypes.String():
            return "bpchar" if visit in {"CHAR", "NCHAR"} else "text" if visit in _STRINGS else None
        case _:
            return "interval" if visit == "INTERVAL" else None


# What the expressions call.


def _octets(value: Any) -> bytes:
    # bytes(5) would be five zeros; memoryview(5) is an error.
    return value if type(value) is bytes else bytes(memoryview(value))


def _days(value: Any) -> int:
    if type(value) is not date:
        raise TypeError(f"{value!r} is not a date")  # a datetime is one, but drops its time in its own way
    return value.toordinal() - 730_120


def _time_of_day(value: Any) -> int:
    if type(value) is not time or value.tzinfo is not None:
        raise TypeError(f"{value!r} is not a time without a zone")
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond


_INTERVAL = Struct(">qii")


def _interval(value: timedelta) -> bytes:
    return _INTERVAL.pack(value.seconds * 1_000_000 + value.microseconds, value.days, 0)


def _uuid(value: Any) -> bytes:
    result: bytes = value.bytes if type(value) is UUID else UUID(value).bytes
    return result


def _numeric(value: Any) -> bytes:
    """Digits to the base of 10,000: how many, the weight of the first, the sign, how many decimals, and they."""
    if type(value) is int:
        sign, digits, exponent = int(value < 0), str(abs(value)), 0
    elif type(value) is Decimal:
        sign, figures, exponent_ = value.as_tuple()
        if exponent_ == "n":
            return b"\x00\x00\x00\x00\xc0\x00\x00\x00"  # NaN
        if not isinstance(exponent_, int):
            raise ValueError(f"{value!r} is not a finite number")  # infinite: not on every server
        exponent, digits = exponent_, "".join(map(str, figures))
    else:
        raise TypeError(f"{value!r} is no exact number")  # a float: the server rounds it in its own way
    scale = max(-exponent, 0)
    if exponent > 0:
        digits, exponent = digits + "0" * exponent, 0
    # To whole groups of four on both sides of the point.
    digits += "0" * (-scale % 4)
    digits = "0" * (-len(digits) % 4) + digits
    groups = [int(digits[i : i + 4]) for i in range(0, len(digits), 4)]
    weight = len(groups) - (scale + 3) // 4 - 1
    first = 0
    while first < len(groups) and not groups[first]:
        first += 1
    groups, weight = groups[first:], weight - first
    while groups and not groups[-1]:
        groups.pop()
    if not groups:
        weight, sign = 0, 0
    return Struct(f">hhHH{len(groups)}h").pack(len(groups), weight, 0x4000 if sign else 0, scale, *groups)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    return list(cast("list[Any]", value))


def array_packer(element: Wire) -> Callable[[Any], bytes]:
    """Return what packs a list, or lists in lists, of elements that the array's type has processed."""
    names = dict(HELPERS)
    value = f"({element.value.format('v')})"
    if element.code is None:
        field = f"L(len(b := {value})) + b"
    else:
        one = names["S"] = Struct(">i" + element.code)
        field = f"S.pack({one.size - 4}, {value})"
    pack_all = eval(f"lambda items: [NULL if v is None else {field} for v in items]", names)  # noqa: S307 - from this file

    def pack(value: Any) -> bytes:
        items: list[Any] = _listed(value)
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
_DIMENSION = Struct(">ii")

HELPERS: dict[str, Any] = {
    "BOOLS": {True: 1, False: 0},
    "EPOCH": _EPOCH,
    "EPOCH_NAIVE": _EPOCH_NAIVE,
    "NULL": b"\xff\xff\xff\xff",
    "L": Struct(">i").pack,
    "octets": _octets,
    "days": _days,
    "time_of_day": _time_of_day,
    "interval": _interval,
    "uuid": _uuid,
    "numeric": _numeric,
}
