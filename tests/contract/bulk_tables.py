"""Tables and rows of every kind, made by Hypothesis, for the tests that hold bulk to the unit of work."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Identity,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import INET, JSONB, Range
from sqlalchemy.orm import composite, registry

if TYPE_CHECKING:
    from collections.abc import Callable


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"
    ODD = "o'd%d"


class Cents(TypeDecorator[Decimal]):
    """A sum of money as an integer."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Named(TypeDecorator[Any]):
    """An enumeration of the database's, by a name of it."""

    impl = Enum
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> Colour | None:
        return None if value is None else Colour[value]


class Tags(TypeDecorator[Any]):
    """Words, as the keys of an HSTORE."""

    impl = postgresql.HSTORE
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Any) -> dict[str, None] | None:
        return None if value is None else dict.fromkeys(value)


class Upper(TypeDecorator[str]):
    """Text in capitals, made by the database: its values are wrapped in SQL."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.upper(bindparam)


@dataclass
class Point:
    x: int
    y: int


@dataclass(frozen=True)
class Sort:
    """A type of column, and what can be in it.

    Attributes:
        plain: PostgreSQL's binary form of it is certain, so that the fast paths must not refuse it.
        not_by: the drivers that cannot write such values.
    """

    name: str
    type: Callable[[], Any]
    values: st.SearchStrategy[Any]
    backends: tuple[str, ...] = ("sqlite", "postgresql")
    plain: bool = True
    defaults: tuple[Any, ...] = ()
    not_by: tuple[str, ...] = ()


# ruff: noqa: DTZ001, DTZ901 - times without a zone are a case of their own

ZONES = [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]
_moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))
_texts = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]) | st.sampled_from("'\"%\\\t\n:{}$€😀"),
    max_size=20,
)


# Without -0.0: psycopg2, and psycopg for a Decimal, lose its sign on the way.
def _floats(**options: Any) -> st.SearchStrategy[float]:
    return st.floats(**options).map(lambda value: value + 0.0)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc%"), inner, max_size=2),
    max_leaves=4,
)
_decimals = (
    st.decimals(Decimal(-999_999), Decimal(999_999), places=4)
    | st.integers(-9999, 9999).map(Decimal)
    | st.sampled_from(
        [
            Decimal(0),
            Decimal("-0.0"),
            Decimal("1E+3"),
            Decimal("0.0001"),
            Decimal(10000),
            Decimal("99999.9999"),
            Decimal("0.00005"),
        ]
    )
)

_addresses = st.ip_addresses().filter(lambda a: getattr(a, "scope_id", None) is None)
_networks = st.builds(
    lambda address, bits: ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False),
    _addresses,
    st.integers(0, 128),
)
_interfaces = st.builds(
    lambda address, bits: ipaddress.ip_interface((address, min(bits, address.max_prefixlen))),
    _addresses,
    st.integers(0, 128),
)
_macs = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
_long_macs = st.binary(min_size=8, max_size=8).map(lambda octets: octets.hex("-").upper())
_words = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["", "NULL", '"', "\\", "=>", "a, b", "'", "%"]
)


def _ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Range[Any]]:
    """Make ranges of every form: empty, without an end, with or without their ends."""

    def made(ends: list[Any], without: str, form: Any) -> Range[Any]:
        low, high = sorted(ends)
        return Range(None if "l" in without else low, None if "h" in without else high, bounds=form)

    forms = st.sampled_from(["()", "[)", "(]", "[]"])
    full = st.builds(made, st.lists(bounds, min_size=2, max_size=2), st.sampled_from(["", "", "l", "h", "lh"]), forms)
    return full | st.just(Range(empty=True))


_RANGES: list[tuple[str, Any, st.SearchStrategy[Any]]] = [
    ("int4", postgresql.INT4RANGE, st.integers(-9, 9) | st.integers(-(2**31), 2**31 - 2)),
    ("int8", postgresql.INT8RANGE, st.integers(-9, 9) | st.integers(-(2**63), 2**63 - 2)),
    ("numeric", postgresql.NUMRANGE, st.decimals(Decimal(-99), Decimal(99), places=2)),
    ("date", postgresql.DATERANGE, st.dates(date(1, 1, 2), date(9999, 12, 30))),
    ("timestamp", postgresql.TSRANGE, _moments),
    ("timestamptz", postgresql.TSTZRANGE, _moments.map(lambda m: m.replace(tzinfo=UTC))),
]
BIT_STRING: Any = getattr(postgresql, "BitString", None)
"""SQLAlchemy 2.0 has none, and leaves BIT to the driver."""

_MULTIRANGES = {
    "int4": postgresql.INT4MULTIRANGE,
    "int8": postgresql.INT8MULTIRANGE,
    "numeric": postgresql.NUMMULTIRANGE,
    "date": postgresql.DATEMULTIRANGE,
    "timestamp": postgresql.TSMULTIRANGE,
    "timestamptz": postgresql.TSTZMULTIRANGE,
}

SORTS = [
    Sort("integer", Integer, st.integers(-(2**31), 2**31 - 1), defaults=(7,)),
    Sort("bigint", BigInteger, st.integers(-(2**63), 2**63 - 1), defaults=(2**40,)),
    Sort("smallint", SmallInteger, st.integers(-(2**15), 2**15 - 1)),
    Sort("float", Float, _floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5)),
    Sort("real", lambda: Float(20), _floats(width=32, allow_nan=False, allow_infinity=False)),
    Sort("double", Double, _floats(allow_nan=False)),
    Sort(
        "float as decimal",
        lambda: Float(asdecimal=True),
        _floats(min_value=-1e6, max_value=1e6).map(lambda v: Decimal(str(round(v, 3) + 0.0))),
    ),
    Sort("numeric", lambda: Numeric(12, 3), _decimals, backends=("postgresql",)),
    Sort(
        "any numeric",
        Numeric,
        _decimals | st.just(Decimal("NaN")) | st.decimals(allow_nan=False, allow_infinity=False, places=9),
        backends=("postgresql",),
    ),
    Sort("text", Text, _texts, defaults=("it's 100%",)),
    Sort("varchar", lambda: String(20), _texts, defaults=("",)),
    Sort("char", lambda: CHAR(20), _texts, defaults=("x",)),
    Sort("boolean", Boolean, st.booleans(), defaults=(True,)),
    Sort(
        "timestamptz",
        lambda: DateTime(timezone=True),
        st.builds(lambda m, z: m.replace(tzinfo=z), _moments, st.sampled_from(ZONES)),
    ),
    Sort("timestamp", DateTime, _moments),
    Sort("date", Date, st.dates(date(1, 1, 2), date(9999, 12, 30)), defaults=(date(2020, 2, 29),)),
    Sort("time", Time, st.times()),
    Sort("interval", Interval, st.timedeltas(timedelta(days=-9000), timedelta(days=9000))),
    Sort("bytes", LargeBinary, st.binary(max_size=12)),
    Sort("uuid", Uuid, st.uuids()),
    Sort("uuid as text", lambda: Uuid(as_uuid=False), st.uuids().map(str)),
    Sort("json", JSON, _json | st.just(JSON.NULL)),
    Sort("json, None is NULL", lambda: JSON(none_as_null=True), _json | st.just(JSON.NULL)),
    Sort("jsonb", JSONB, _json | st.just(JSON.NULL), backends=("postgresql",)),
    Sort("enum", lambda: Enum(Colour, name="colour"), st.sampled_from(Colour)),
    Sort("enum of text", lambda: Enum(Colour, native_enum=False), st.sampled_from(Colour)),
    Sort("decorated", Cents, st.integers(-9999, 9999).map(lambda v: Decimal(v) / 100)),
    Sort("pickle", lambda: PickleType(protocol=4), st.integers() | st.lists(st.integers(0, 9), max_size=3)),
    Sort(
        "int array",
        lambda: ARRAY(Integer),
        st.lists(st.none() | st.integers(-9, 9), max_size=4),
        backends=("postgresql",),
    ),
    Sort("text array", lambda: ARRAY(String), st.lists(_texts, max_size=3), backends=("postgresql",)),
    Sort(
        "matrix",
        lambda: ARRAY(Float, dimensions=2),
        st.lists(
            st.tuples(_floats(min_value=-9, max_value=9), _floats(min_value=-9, max_value=9)).map(list),
            min_size=1,
            max_size=3,
        ),
        backends=("postgresql",),
    ),
    Sort(
        "enum, decorated",
        lambda: Named(Colour, name="named_colour"),
        st.sampled_from([colour.name for colour in Colour]),
    ),
    *(
        Sort(name, type_, values, backends=("postgresql",), not_by=not_by)
        for name, type_, values, not_by in (
            ("inet", INET, st.sampled_from(["10.0.0.1", "::1", "192.168.0.0/24", "10.0.0.1/8", "::ffff:1.2.3.4"]), ()),
            # Of many rows at once with a key of the database's making, SQLAlchemy tells asyncpg that these are text.
            ("addresses", INET, _addresses | _interfaces | _networks, ("psycopg2", "asyncpg")),
            ("inets", lambda: ARRAY(INET), st.lists(_addresses.map(str), max_size=3), ()),
            ("cidr", postgresql.CIDR, _networks.map(str) | _addresses.map(str), ()),
            ("networks", postgresql.CIDR, _networks | _addresses, ("psycopg2", "asyncpg")),
            ("macaddr", postgresql.MACADDR, _macs, ()),
            ("macaddr8", postgresql.MACADDR8, _long_macs, ()),
            *(
                (name, type_, texts.map(BIT_STRING), ())
                for name, type_, texts in (
                    ("bit", lambda: postgresql.BIT(11), st.text("01", min_size=11, max_size=11)),
                    ("bits", lambda: postgresql.BIT(varying=True), st.text("01", max_size=20)),
                )
                if BIT_STRING is not None
            ),
            ("citext", postgresql.CITEXT, _texts, ()),
            ("hstore", postgresql.HSTORE, st.dictionaries(_words, st.none() | _words, max_size=3), ()),
            ("hstore, decorated", Tags, st.lists(_words, max_size=3), ()),
            *((f"{name} range", type_, _ranges(bounds), ()) for name, type_, bounds in _RANGES),
            *(
                (f"{name} ranges", _MULTIRANGES[name], st.lists(_ranges(bounds), max_size=3), ("psycopg2",))
                for name, _, bounds in _RANGES
            ),
        )
    ),
    # What the fast paths leave to SQLAlchemy.
    Sort("money", postgresql.MONEY, st.sampled_from(["1.50", "-3"]), backends=("postgresql",), plain=False),
    Sort("wrapped in SQL", Upper, st.text("abcß", max_size=4), backends=("postgresql",), plain=False),
]

_BEYOND = datetime.max.replace(tzinfo=timezone(timedelta(hours=-8)))

PECULIAR: list[tuple[Callable[[], Any], Any]] = [
    # asyncpg takes the ends of Python's time for infinity.
    *((Date, value) for value in (date.max, date.min, date.max - timedelta(1), datetime(2020, 1, 2, 3))),
    *((DateTime, value) for value in (datetime.max, datetime.min, datetime(2020, 1, 2, tzinfo=UTC), date(2020, 1, 2))),
    *(
        (lambda: DateTime(timezone=True), value)
        for value in (
            datetime.max.replace(tzinfo=UTC),
            datetime.min.replace(tzinfo=UTC),
            _BEYOND,
            datetime(2020, 1, 2),
            datetime.max,
            date(2020, 1, 2),
        )
    ),
    (postgresql.DATERANGE, Range(date(2020, 1, 1), date.max)),
    (postgresql.TSRANGE, Range(datetime.min, datetime.max, bounds="[]")),
    (postgresql.TSTZRANGE, Range(datetime(2020, 1, 1), None)),
    (lambda: ARRAY(Date), [date.max, date.min]),
    (Time, datetime(2020, 1, 1, tzinfo=UTC).timetz()),
    # Signs of zero, and numbers at and beyond the ends.
    *((Float, value) for value in (-0.0, Decimal("-0.0"), 0, True, float("inf"), float("nan"), "1.5", 10**400)),
    *((lambda: Float(20), value) for value in (-0.0, 1e-50, 1e-45, 1e39)),
    (lambda: ARRAY(Float), [-0.0, 1.5]),
    *((Integer, value) for value in (2**31, True, 1.0, 1.5, Decimal(1), "5", Colour.RED)),
    *((BigInteger, value) for value in (2**63, -(2**63), 10**40)),
    *((Numeric, Decimal(value)) for value in ("-0", "1E+40", "1E-40", "1e-20000", "1e+140000", "Infinity", "sNaN")),
    *((Numeric, value) for value in (10**40, -(10**40), 0.1, True, "1.5")),
    (lambda: Numeric(4, 2), Decimal("1.005")),
    (lambda: Numeric(4, 2), Decimal(1000)),
    (postgresql.NUMRANGE, Range(1, 2)),
    (postgresql.NUMRANGE, Range(1, Decimal("2.5"))),
    (postgresql.NUMRANGE, Range(1.5, 2.5)),
    (postgresql.INT4RANGE, Range(True, 5)),
    (postgresql.INT4RANGE, Range(5, 1)),
    (postgresql.INT4RANGE, Range(2**31, None)),
    (postgresql.INT4RANGE, "[1,5)"),
    # Text and what stands for something.
    *((Text, value) for value in ("a\x00b", "\ud800", 5, b"bytes", Colour.RED)),
    *((lambda: String(3), value) for value in ("abcd", "abc   ")),
    *(
        (lambda: Uuid(as_uuid=False), value)
        for value in (
            "{12345678-1234-5678-1234-567812345678}",
            "urn:uuid:12345678-1234-5678-1234-567812345678",
            "12345678-1234-5678-1234-567812345678",
            "12345678123456781234567812345678",
        )
    ),
    *((LargeBinary, value) for value in (bytearray(b"a"), memoryview(b"a"), "text", 5)),
    *((Boolean, value) for value in (1, 0, 2)),
    *((INET, value) for value in ("10.1", "010.0.0.1", "10.0.0.1/255.0.0.0", "10.0.0.1/08", "::1%eth0", "x", 5)),
    *((INET, ipaddress.ip_interface(value)) for value in ("10.0.0.1/8", "fe80::1/64", "fe80::1%eth0/64")),
    *((INET, ipaddress.ip_address(value)) for value in ("10.0.0.1", "::1", "fe80::1%eth0")),
    *(
        (type_, ipaddress.ip_network(value))
        for type_ in (INET, postgresql.CIDR)
        for value in ("10.0.0.0/8", "fe80::/64")
    ),
    (postgresql.CIDR, ipaddress.ip_address("10.0.0.1")),
    *((postgresql.CIDR, value) for value in ("10.0.0.1/8", "10.0.0.0", ipaddress.ip_interface("10.0.0.1/8"))),
    *((postgresql.MACADDR, value) for value in ("0800.2b01.0203", "08002b010203", "08:00:2b-01:02:03", " x ")),
    (postgresql.MACADDR8, "08:00:2b:01:02:03"),
    *((lambda: postgresql.BIT(3), value) for value in ([BIT_STRING("10101"), "1", "102", 5] if BIT_STRING else [])),
    *((lambda: postgresql.BIT(3, varying=True), value) for value in ([BIT_STRING("10101"), ""] if BIT_STRING else [])),
    *((postgresql.HSTORE, value) for value in ({"a": 1}, {1: "a"}, "a=>1", {"a\x00": "b"})),
    (postgresql.INT4MULTIRANGE, "{[1,2)}"),
    (postgresql.INT4MULTIRANGE, [(1, 2)]),
]
"""What some driver reads in its own way, or refuses, though Python's type or its value is close to what is asked for."""

SCHEMA = 'sch%e"m a'
"""The tests make it: a schema on PostgreSQL, an attached database on SQLite."""

COLUMN_NAMES = [
    "plain",
    "a b",
    "per%cent",
    "%s",
    "%(x)s",
    'quo"te',
    "select",
    "Mixed",
    "Ünïcode",
    "semi;",
    "par(en)",
    "col:on",
    "back\\slash",
    "c0",
    "n",
]


@dataclass
class Case:
    """A mapped class, and rows for it.

    Attributes:
        key: the attributes of the primary key.
        rows: mappings of attributes; they may differ in their keys.
        changes: for some rows by their place, what is to be changed.
        plain: every column has a binary form that is certain.
        literal: no value is an SQL expression.
    """

    entity: Any
    key: tuple[str, ...]
    rows: list[dict[str, Any]]
    changes: dict[int, dict[str, Any]]
    plain: bool
    literal: bool
    versioned: bool
    counts_by_twos: bool = False

    def has_default(self, attribute: str) -> bool:
        """Tell whether an INSERT without the attribute writes something."""
        prop = self.entity.__mapper__.attrs[attribute]
        columns = getattr(prop, "columns", ())
        return any(c.default is not None or c.server_default is not None for c in columns)

    def entity_from(self, row: dict[str, Any]) -> Any:
        """Make an object, as the unit of work wants it."""
        obj = self.entity()
        for name, value in row.items():
            setattr(obj, name, value)
        return obj

    def __repr__(self) -> str:
        table = self.entity.__table__
        columns = ", ".join(
            f"{c.name!r} {c.type!r} default={c.default} server={c.server_default} onupdate={c.onupdate}"
            for c in table.c
        )
        return f"Case({table.schema!r}.{table.name!r}: {columns}; rows={self.rows}; changes={self.changes})"

    @property
    def table(self) -> Table:
        table: Table = self.entity.__table__
        return table


def _default(draw: st.DrawFn, sort: Sort) -> dict[str, Any]:
    """Return options of Column."""
    value = draw(sort.values | st.sampled_from(sort.defaults)) if sort.defaults else draw(sort.values)
    kind = draw(st.sampled_from(["none", "none", "scalar", "callable", "context", "sql", "server"]))
    if kind == "scalar" and not callable(value) and value is not None and sort.plain:
        return {"default": value}
    if kind == "callable":
        return {"default": lambda: value}
    if kind == "context":
        # As an execution context gives them: by column.
        return {"default": lambda context: value if context.get_current_parameters() is not None else None}
    if kind == "sql" and sort.name in {"integer", "bigint"}:
        return {"default": literal_column("40 + 2")}
    if kind == "sql" and sort.name == "text":
        return {"default": func.upper("by sql")}
    if kind == "server" and sort.name in {"integer", "bigint", "smallint"}:
        return {"server_default": text("17")}
    if kind == "server" and sort.name in {"text", "varchar"}:
        return {"server_default": "served"}
    return {}


def _onupdate(draw: st.DrawFn, sort: Sort) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "none", "none", "scalar", "callable", "sql"]))
    if sort.name not in {"integer", "text", "boolean"} or kind == "none":
        return {}
    value: Any = {"integer": 99, "text": "renewed", "boolean": False}[sort.name]
    if kind == "callable":
        return {"onupdate": lambda: value}
    if kind == "sql" and sort.name == "integer":
        return {"onupdate": literal_column("90 + 9")}
    return {"onupdate": value}


@st.composite
def cases(draw: st.DrawFn, backend: str, driver: str) -> Case:
    """Make a class and rows. Every row has its own ``label``, in ascending order."""
    sorts = [sort for sort in SORTS if backend in sort.backends and driver not in sort.not_by]
    chosen = draw(st.lists(st.sampled_from(sorts), min_size=1, max_size=6))
    names = draw(st.lists(st.sampled_from(COLUMN_NAMES), min_size=len(chosen), max_size=len(chosen), unique=True))
    mapper = registry()
    columns: list[Any] = []
    key_kind = draw(st.sampled_from(["auto", "identity", "text", "uuid", "composite"]))
    key: tuple[str, ...] = ("key",)
    if key_kind == "auto":
        columns.append(Column("key", Integer, primary_key=True))
    elif key_kind == "identity":
        columns.append(Column("key", Integer, Identity(start=5), primary_key=True))
    elif key_kind == "text":
        columns.append(Column("the key", String(40), primary_key=True, key="key"))
    elif key_kind == "uuid":
        columns.append(Column("key", Uuid, primary_key=True))
    else:
        columns += [
            Column("key", Integer, primary_key=True, autoincrement=False),
            Column("key 2", String(9), primary_key=True),
        ]
        key = ("key", "key2")
    columns.append(Column("label", Integer, nullable=False, unique=True))
    attributes: dict[str, Sort] = {}
    properties: dict[str, Any] = {"key2": columns[1]} if key_kind == "composite" else {}
    onupdates = set()
    for number, (sort, name) in enumerate(zip(chosen, names, strict=True)):
        options = _default(draw, sort) | _onupdate(draw, sort)
        attribute = f"attr{number}"
        column = Column(name, sort.type(), key=f"k{number}" if draw(st.booleans()) else None, **options)
        columns.append(column)
        properties[attribute] = column
        attributes[attribute] = sort
        if "onupdate" in options:
            onupdates.add(attribute)
    plain = all(sort.plain for sort in chosen)
    with_point = draw(st.booleans())
    if with_point:
        x, y = Column("point_x", Integer), Column("point_y", Integer)
        columns += [x, y]
        properties |= {"_x": x, "_y": y, "point": composite(Point, x, y)}
    if draw(st.integers(0, 4)) == 0:
        columns.append(Column("doubled", Integer, Computed("label * 2")))
    unmapped = draw(st.booleans())
    if unmapped:
        columns.append(Column("unmapped", Integer, default=3, onupdate=4))
    versioned = draw(st.booleans())
    counts_by_twos = False
    mapping: dict[str, Any] = {}
    if versioned:
        version = Column("version", Integer, nullable=False)
        columns.append(version)
        mapping["version_id_col"] = version
        counts_by_twos = draw(st.booleans())
        if counts_by_twos:
            mapping["version_id_generator"] = lambda current: (current or 40) + 2
    name = draw(st.sampled_from(["differential", "dif%f", 'd"q', "Dif Fer"]))
    table = Table(name, mapper.metadata, *columns, schema=draw(st.sampled_from([None, None, SCHEMA])))
    entity = type("Differential", (), {})
    exclude = {"exclude_properties": ["unmapped"]} if unmapped else {}
    mapper.map_imperatively(entity, table, properties=properties, **exclude, **mapping)

    literal = True
    rows: list[dict[str, Any]] = []
    for label in range(draw(st.integers(1, 9))):
        row: dict[str, Any] = {"label": label}
        if key_kind == "text":
            row["key"] = f"k'{label}%"
        elif key_kind == "uuid":
            row["key"] = UUID(int=1000 - label)
        elif key_kind == "composite":
            row |= {"key": label // 2, "key2": f"z{label}"}
        for attribute, sort in attributes.items():
            what = draw(st.integers(0, 9))
            if what < 6:
                row[attribute] = draw(sort.values)
            elif what < 8:
                row[attribute] = None
            elif what == 8 and sort.name == "text" and draw(st.booleans()):
                row[attribute] = func.lower("SHOUTED")
                literal = False
        if with_point and draw(st.booleans()):
            row["point"] = draw(st.none() | st.builds(Point, st.integers(-9, 9), st.integers(-9, 9)))
        rows.append(row)
    changes: dict[int, dict[str, Any]] = {}
    changeable = [a for a in attributes if a not in onupdates]
    for place in draw(st.sets(st.integers(0, len(rows) - 1))):
        change: dict[str, Any] = {"label": rows[place]["label"] + 100}
        for attribute in changeable:
            if draw(st.booleans()):
                change[attribute] = draw(st.none() | attributes[attribute].values)
        changes[place] = change
    return Case(entity, key, rows, changes, plain, literal, versioned, counts_by_twos)
