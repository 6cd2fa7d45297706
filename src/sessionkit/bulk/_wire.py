"""PostgreSQL's binary form, for the types where it is certain, as expressions for generated packers.

https://www.postgresql.org/docs/current/protocol-message-formats.html says only that the type's receive function reads it.
Each form here follows that function in src/backend/utils/adt, and the differential tests check it. An expression raises for a
value of an unexpected kind, and then SQLAlchemy's path decides.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import types as sqltypes

from ._forms import Wire
from ._nested import multirange_packer, range_packer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine


_MICROSECONDS = "((d := {{0}} - {0}).days * 86400 + d.seconds) * 1000000 + d.microseconds"


_WIRES = {
    wire.name: wire
    for wire in (
        # A mapping instead of a truth test: any value but True and False is an error, as in SQLAlchemy.
        Wire("bool", 16, "BOOLEAN", "B", "BOOLS[{0}]"),
        Wire("bytea", 17, "BYTEA", None, "octets({0})"),
        Wire("int8", 20, "BIGINT", "q", "{0}"),
        Wire("int2", 21, "SMALLINT", "h", "{0}"),
        Wire("int4", 23, "INTEGER", "i", "{0}"),
        Wire("text", 25, "TEXT", None, "{0}.encode()"),
        Wire("json", 114, "JSON", None, "{0}.encode()"),
        Wire("float4", 700, "REAL", "f", "single({0})"),
        Wire("float8", 701, "DOUBLE PRECISION", "d", "{0}"),
        Wire("bpchar", 1042, "BPCHAR", None, "{0}.encode()"),
        Wire("date", 1082, "DATE", "i", "({0}.toordinal() - 730120 if {0}.__class__ is date else days({0}))"),
        Wire(
            "time",
            1083,
            "TIME",
            "q",
            "(({0}.hour * 60 + {0}.minute) * 60 + {0}.second) * 1000000 + {0}.microsecond"
            " if {0}.__class__ is time and {0}.tzinfo is None else no_time({0})",
        ),
        Wire("timestamp", 1114, "TIMESTAMP", "q", _MICROSECONDS.format("EPOCH_NAIVE")),
        Wire("timestamptz", 1184, "TIMESTAMP WITH TIME ZONE", "q", _MICROSECONDS.format("EPOCH")),
        Wire("interval", 1186, "INTERVAL", "qii", "{0}.seconds * 1000000 + {0}.microseconds, {0}.days, 0"),
        Wire("numeric", 1700, "NUMERIC", None, "numeric({0})"),
        Wire("uuid", 2950, "UUID", "16s", "uuid({0})"),
        Wire("jsonb", 3802, "JSONB", None, "b'\\x01' + {0}.encode()"),
        Wire("cidr", 650, "CIDR", None, "cidr({0})"),
        Wire("inet", 869, "INET", None, "inet({0})"),
        Wire("macaddr8", 774, "MACADDR8", None, "mac({0}, 8)"),
        Wire("macaddr", 829, "MACADDR", None, "mac({0}, 6)"),
        # Sent as VARBIT, because BIT without a length is one bit.
        Wire("bit", 1562, "VARBIT", None, "bits({0}, {length}, {varying})"),
        Wire("varbit", 1562, "VARBIT", None, "bits({0}, {length}, {varying})"),
        # Of extensions.
        Wire("citext", 25, "TEXT", None, "{0}.encode()", cast=True),
        Wire("hstore", 0, "HSTORE", None, "hstore({0})", listed=False),
    )
}

# The element, and the oids of its range and multirange. https://github.com/postgres/postgres, pg_type.dat
_RANGES = {
    "int4range": ("int4", 3904, "int4multirange", 4451),
    "numrange": ("numeric", 3906, "nummultirange", 4532),
    "tsrange": ("timestamp", 3908, "tsmultirange", 4533),
    "tstzrange": ("timestamptz", 3910, "tstzmultirange", 4534),
    "daterange": ("date", 3912, "datemultirange", 4535),
    "int8range": ("int8", 3926, "int8multirange", 4536),
}

# Where a flush through a driver differs. asyncpg treats the first and last moment of Python's datetime as infinity, and
# refuses values beyond them. psycopg sends a Decimal as NUMERIC, and True as a boolean, which no numeric column accepts.
# psycopg2 also sends a float as NUMERIC, whose zero has no sign, and does not know the objects of ipaddress.
_MOMENT = "(m if FIRST < (m := {0}) < LAST else ENDS[m])"
_INTEGER = "({0} if {0}.__class__ is int else whole({0}))"
_FLOAT = "({0} if {0}.__class__ is float else number({0}))"
_UNSIGNED_ZERO = "({0} + 0.0 if {0}.__class__ is float else number({0}))"
_PSYCOPG = {"float4": f"single{_FLOAT}", "float8": _FLOAT}
_CONVENTIONS: dict[str, dict[str, str]] = {
    "asyncpg": {
        "date": "days_or_infinity({0})",
        "timestamp": _MOMENT.format(_MICROSECONDS.format("EPOCH_NAIVE")),
        "timestamptz": _MOMENT.format(_MICROSECONDS.format("EPOCH")),
    },
    "psycopg": _PSYCOPG,
    "psycopg_async": _PSYCOPG,
    "psycopg2": {
        **dict.fromkeys(("int2", "int4", "int8"), _INTEGER),
        "float4": f"single{_UNSIGNED_ZERO}",
        "float8": _UNSIGNED_ZERO,
        "inet": "inet_text({0})",
        "cidr": "cidr_text({0})",
    },
}


@cache
def wires(driver: str) -> Mapping[str, Wire]:
    """Return how to send values the way a driver does, by type name."""
    conventions = _CONVENTIONS.get(driver, {})
    found = {name: wire._replace(value=conventions.get(name, wire.value)) for name, wire in _WIRES.items()}
    for name, (element, oid, many, oid_of_many) in _RANGES.items():
        one, several = (make(found[element], driver) for make in (range_packer, multirange_packer))
        found[name] = Wire(name, oid, name.upper(), None, "", one)
        if driver != "psycopg2":  # where SQLAlchemy leaves them to the user
            # asyncpg treats a list of lists as a two-dimensional array.
            found[many] = Wire(many, oid_of_many, many.upper(), None, "", several, listed=driver != "asyncpg")
    return found


# Other types that a column may have in the database. The packer then uses that type's form instead of the mapping's.
_INTERCHANGEABLE = (
    frozenset({"int2", "int4", "int8"}),
    frozenset({"float4", "float8"}),
    frozenset({"json", "jsonb"}),
)
_LIKE_TEXT = frozenset({"text", "varchar", "bpchar", "name", "citext"})


def as_stored(wire: Wire, name: str, kind: str, driver: str) -> Wire | None:
    """Return how to send values for `wire` to a column whose type in the catalogue is `name`; None if not certain.

    Args:
        wire: the form according to the mapping.
        name: pg_type.typname.
        kind: pg_type.typtype: ``b`` base, ``e`` enum.
        driver: the driver whose behaviour to follow.
    """
    if wire.name in {"text", "bpchar", "citext"}:
        return wire if name in _LIKE_TEXT or kind == "e" else None
    if wire.name == name:
        return wire
    for group in _INTERCHANGEABLE:
        if wire.name in group and name in group:
            return wires(driver)[name]
    return None


def with_oid(wire: Wire, name: str) -> Wire:
    """Return the wire of array elements whose type in the catalogue is `name`: an array states the type of its elements."""
    return wire._replace(oid=_TEXT_OIDS.get(name, wire.oid))


_TEXT_OIDS = {"text": 25, "varchar": 1043, "bpchar": 1042, "name": 19}

_TEXTS = {"CHAR": "bpchar", "NCHAR": "bpchar", "CITEXT": "citext"}
_STRINGS = frozenset(
    {"string", "text", "unicode", "unicode_text", "VARCHAR", "TEXT", "NVARCHAR", "CLOB", "enum", "ENUM"}
)


def wire_of(type_: TypeEngine[Any], dialect: Dialect) -> Wire | None:
    """Return how to send values of a type; None if the binary form is not certain."""
    if getattr(type_, "_has_bind_expression", False):
        return None  # the value is wrapped in SQL
    impl = type_._unwrapped_dialect_impl(dialect)
    wire = wires(dialect.driver).get(_name_of(impl) or "")
    if wire is None:
        return None
    if isinstance(impl, sqltypes.Enum) and impl.native_enum:
        return wire._replace(cast=True)
    if wire.name in {"bit", "varbit"}:
        bits: Any = impl
        value = wire.value.replace("{length}", repr(bits.length)).replace("{varying}", repr(bits.varying))
        return wire._replace(value=value)
    return wire


def is_plain_json(impl: Any) -> bool:
    """Return whether a type serializes a document the way SQLAlchemy's own JSON does."""
    own: Any = sqltypes.JSON
    return isinstance(impl, sqltypes.JSON) and getattr(impl.__class__, "bind_processor", None) is own.bind_processor


def element_of(type_: TypeEngine[Any], dialect: Dialect) -> Wire | None:
    """Return how to send the elements of an array type; None if it is not an array, or the form is not certain."""
    impl = type_._unwrapped_dialect_impl(dialect)
    if getattr(type_, "_has_bind_expression", False) or not isinstance(impl, sqltypes.ARRAY):
        return None
    item: TypeEngine[Any] = cast(Any, impl).item_type
    if isinstance(item._unwrapped_dialect_impl(dialect), sqltypes.Enum):
        return None  # an array states the oid of its element type, and that oid differs between databases
    wire = wire_of(item, dialect)
    return wire if wire is not None and wire.name in _ELEMENTS else None


_ELEMENTS = _WIRES.keys() - {"bit", "varbit", "citext", "hstore"}
_BY_VISIT_NAME = {
    **{name.upper(): name for name in ("interval", "inet", "cidr", "macaddr", "macaddr8", "hstore")},
    **{name.upper(): name for one, (_, _, many, _) in _RANGES.items() for name in (one, many)},
}


_BY_CLASS = (
    (sqltypes.SmallInteger, "int2"),
    (sqltypes.BigInteger, "int8"),
    (sqltypes.Boolean, "bool"),
    (sqltypes.Date, "date"),
    (sqltypes.LargeBinary, "bytea"),
)


def _name_of(impl: TypeEngine[Any]) -> str | None:
    visit = impl.__visit_name__
    for kind, name in _BY_CLASS:
        if isinstance(impl, kind):
            return name
    match impl:
        case sqltypes.JSON():
            return {"JSONB": "jsonb", "JSON": "json"}.get(visit)
        case sqltypes.Uuid():
            return "uuid" if impl.native_uuid else None
        case sqltypes.Integer():
            return "int4" if visit in {"integer", "INTEGER"} else None
        case sqltypes.Float():
            return _floating(impl)
        case sqltypes.Numeric():
            return "numeric"
        case sqltypes.DateTime():
            return "timestamptz" if impl.timezone else "timestamp"
        case sqltypes.Time():
            return None if impl.timezone else "time"
        case sqltypes.String():
            return _TEXTS.get(visit, "text" if visit in _STRINGS else None)
        case _ if visit == "BIT":
            # SQLAlchemy 2.0 leaves these to the driver.
            own = type(impl).bind_processor is not sqltypes.TypeEngine.bind_processor
            return ("varbit" if getattr(impl, "varying", False) else "bit") if own else None
        case _:
            return _BY_VISIT_NAME.get(visit)


def _floating(impl: sqltypes.Float[Any]) -> str:
    single = impl.__visit_name__ == "REAL" or (impl.precision is not None and impl.precision <= 24)
    return "float4" if single and impl.__visit_name__ not in {"double", "DOUBLE", "DOUBLE_PRECISION"} else "float8"
