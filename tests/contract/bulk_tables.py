"""Tables and rows of every kind, made by Hypothesis, for the tests that hold bulk to the unit of work."""

from __future__ import annotations

import enum
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
from sqlalchemy.dialects.postgresql import INET, JSONB
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
    """

    name: str
    type: Callable[[], Any]
    values: st.SearchStrategy[Any]
    backends: tuple[str, ...] = ("sqlite", "postgresql")
    plain: bool = True
    defaults: tuple[Any, ...] = ()


# ruff: noqa: DTZ001 - times without a zone are a case of their own

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
    # What the fast paths leave to SQLAlchemy.
    Sort("inet", INET, st.sampled_from(["10.0.0.1", "::1", "192.168.0.0/24"]), backends=("postgresql",), plain=False),
    Sort("wrapped in SQL", Upper, st.text("abcß", max_size=4), backends=("postgresql",), plain=False),
]

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
def cases(draw: st.DrawFn, backend: str) -> Case:
    """Make a class and rows. Every row has its own ``label``, in ascending order."""
    sorts = [sort for sort in SORTS if backend in sort.backends]
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
