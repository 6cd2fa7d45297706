"""Kinds of columns: their types, the values that are written to them, their defaults."""

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
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

if TYPE_CHECKING:
    from collections.abc import Callable


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"
    ODD = "o'd%d"

    def __repr__(self) -> str:
        return str(self)


class Lower(TypeDecorator[str]):
    """Text that is stored in small letters."""

    impl = String(60)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


class Wrapped(TypeDecorator[Any]):
    """Anything, as JSON with a dictionary around it."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else {"v": value}

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value["v"]


class Cents(TypeDecorator[Decimal]):
    """A sum of money as an integer."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Paint(TypeDecorator[str]):
    """A member of an enumeration, by its name in small letters."""

    impl = Enum(Colour, name="paint")
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else Colour[value.upper()]

    def process_result_value(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else value.name.lower()


def _values_of(members: Any) -> list[str]:
    return [member.value for member in members]


@dataclass(frozen=True)
class Word:
    """A kind of column.

    Attributes:
        type: makes its type.
        values: what is written to it.
        default: a value for defaults from Python; None where it has none.
        server: an SQL literal for defaults of the server.
        wrong: a value that cannot be written, on some backends at least.
        backends: which of them have it.
    """

    type: Callable[[], Any]
    values: st.SearchStrategy[Any]
    default: Any = None
    server: str | None = None
    wrong: Any = "wrong"
    backends: tuple[str, ...] = ("sqlite", "postgresql")


_texts = st.sampled_from(
    ["", "a", "Straße", "ÄÖ😀", "it's 100%", '"q"', "back\\slash", "tab\tnl\n", "Null", "{}", "x:y"]
)
_letters = st.sampled_from(["", "a", "B c", "Straße", "ÄÖ", "it's", "100%"])
_moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 12, 30))  # noqa: DTZ001 - without a zone it is a case of its own
_zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
_documents = st.sampled_from([{}, [], {"a": [1, None, "ü%"]}, "text", 0, True, [[{"b": 1.5}]]])
_small = st.integers(-999, 999)

WORDS: dict[str, Word] = {
    "integer": Word(Integer, st.integers(-(2**31), 2**31 - 1), 7, "17", "x"),
    "bigint": Word(BigInteger, st.integers(-(2**63), 2**63 - 1), 2**40, "17", 2**70),
    "variant": Word(lambda: Text().with_variant(String(60), "postgresql"), _texts, "by variant", "'served'", 5),
    "text": Word(Text, _texts, "it's 100%", "'served'", b"\xff"),
    "short text": Word(lambda: String(12), _texts, "", "'served'", "much too long for it"),
    "lower": Word(Lower, _letters, "Default", "'Served'", 5),
    "wrapped": Word(Wrapped, _documents, {"d": 1}, None, object),
    "cents": Word(Cents, _small.map(lambda v: Decimal(v) / 100), Decimal("1.25"), "17", "x"),
    "painted": Word(Paint, st.sampled_from(["red", "green", "odd"]), "red", "'GREEN'", 5),
    "enum": Word(lambda: Enum(Colour, name="colour"), st.sampled_from(Colour), Colour.RED, "'GREEN'", 5),
    "enum of text": Word(
        lambda: Enum(Colour, native_enum=False, length=20), st.sampled_from(Colour), Colour.ODD, "'GREEN'", 5
    ),
    "enum by values": Word(
        lambda: Enum(Colour, name="hue", values_callable=_values_of), st.sampled_from(Colour), Colour.ODD, "'g'", 5
    ),
    "json": Word(JSON, _documents, {"d": [1]}, "'[1]'", object),
    "json without null": Word(lambda: JSON(none_as_null=True), _documents, ["d"], "'[1]'", object),
    "jsonb": Word(JSONB, _documents, {"d": [1]}, "'[1]'", object, ("postgresql",)),
    "numeric": Word(
        lambda: Numeric(12, 3),
        st.integers(-99999, 99999).map(lambda v: Decimal(v) / 1000),
        Decimal("1.500"),
        "1.5",
        "x",
    ),
    "float": Word(Float, st.sampled_from([0.0, 1.5, -2.25, 1e300, 1e-300, 0.1]) | st.integers(-9, 9), 0.5, "1.5", "x"),
    "boolean": Word(Boolean, st.booleans(), True, "false", "x"),
    "date": Word(Date, st.dates(date(1, 1, 2)), date(2020, 2, 29), "'2001-02-03'", 5),
    "timestamp": Word(DateTime, _moments, datetime(2020, 2, 29, 1), "'2001-02-03 04:05:06'", 5),  # noqa: DTZ001 - as above
    "timestamptz": Word(
        lambda: DateTime(timezone=True),
        st.builds(lambda m, z: m.replace(tzinfo=z), _moments, _zones),
        datetime(2020, 2, 29, 1, tzinfo=UTC),
        "'2001-02-03 04:05:06'",
        5,
    ),
    "interval": Word(Interval, st.timedeltas(timedelta(days=-900), timedelta(days=900)), timedelta(hours=3), None, "x"),
    "bytes": Word(LargeBinary, st.binary(max_size=6), b"\x00%", None, 5),
    "uuid": Word(Uuid, st.uuids(), UUID(int=7), None, "x"),
    "int array": Word(
        lambda: ARRAY(Integer), st.lists(st.none() | _small, max_size=3), [1, None], "'{4,5}'", 5, ("postgresql",)
    ),
    "text array": Word(lambda: ARRAY(Text), st.lists(_texts, max_size=3), ["it's"], "'{x}'", 5, ("postgresql",)),
}

NAMES = [
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
    "order",
    "n",
]
