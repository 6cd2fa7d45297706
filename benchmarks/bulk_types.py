"""bulk.insert by type of column on PostgreSQL, compared with psycopg's own `copy.write_row`, text and binary.

    python -m benchmarks bulk-types [--url postgresql+psycopg://...] [--rounds 15] [--only TEXT] [--strict]

Each table has a key and one column of a type; the last one has nine columns. The time of 30,000 rows includes the commit.
`bulk.insert` gets dictionaries, `write_row` gets ready tuples of the objects that psycopg knows best. 1.00 is text or binary,
whichever is faster. Without `--url` a PostgreSQL is started. With --strict the exit status is 1 if a target is missed. With
--write the figures go to benchmarks/results/bulk-types.json, and from there into docs/explanation/bulk-speed-by-type.md; the
targets go into benchmarks/README.md.
"""

from __future__ import annotations

import enum
import sys
from contextlib import ExitStack
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from psycopg.types.hstore import register_hstore
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks import _command
from benchmarks._measure import Case, Report, measure
from benchmarks._results import README, ROOT, filled, table
from benchmarks.compare.stage import on_postgresql
from sessionkit import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL

ROWS = 30_000
OURS, TEXT, BINARY = "bulk.insert", "write_row, text", "write_row, binary"
TARGET, TARGET_OF_NINE = 1.25, 1.10
PAGE = ROOT / "docs" / "explanation" / "bulk-speed-by-type.md"
NINE = "nine columns"


class Letter(enum.Enum):
    A = "a"
    B = "b"
    C = "c"


START = datetime(2026, 1, 1, tzinfo=UTC)
NAIVE = START.replace(tzinfo=None)


def document(i: int) -> dict[str, Any]:
    return {"a": i, "b": ["x", "y"], "c": None}


def letter(i: int) -> Letter:
    return (Letter.A, Letter.B, Letter.C)[i % 3]


def same(value: Any) -> Any:
    return value


def a_range(value: Any) -> Any:
    return Range(value.lower, value.upper, value.bounds)


class Kind(NamedTuple):
    """A type of column.

    Attributes:
        type: of the mapping.
        value: the value in a row.
        binary: the type that psycopg sends in binary; None if it has no binary form.
        ready: turns the value into what psycopg gets.
    """

    type: Any
    value: Callable[[int], Any]
    binary: str | None
    ready: Callable[[Any], Any] = same


KINDS = {
    "int": Kind(sa.Integer, lambda i: i, "int4"),
    "bigint": Kind(sa.BigInteger, lambda i: i * 10**9, "int8"),
    "float": Kind(sa.Float, lambda i: i * 1.5, "float8"),
    "bool": Kind(sa.Boolean, lambda i: i % 2 == 0, "bool"),
    "text": Kind(sa.Text, lambda i: f"user {i} of the shop", "text"),
    "varchar": Kind(sa.String(50), lambda i: f"name{i}", "text"),
    "half-null text": Kind(sa.Text, lambda i: None if i % 2 else "x", "text"),
    "numeric": Kind(sa.Numeric(12, 2), lambda i: Decimal(i) / 100, "numeric"),
    "date": Kind(sa.Date, lambda i: date(2000, 1, 1) + timedelta(days=i % 9000), "date"),
    "time": Kind(sa.Time, lambda i: time(i % 24, i % 60), "time"),
    "timestamp": Kind(sa.DateTime, lambda i: NAIVE + timedelta(seconds=i), "timestamp"),
    "timestamptz": Kind(sa.DateTime(timezone=True), lambda i: START + timedelta(seconds=i), "timestamptz"),
    "interval": Kind(sa.Interval, lambda i: timedelta(seconds=i), "interval"),
    "uuid": Kind(sa.Uuid, lambda i: UUID(int=i * 2_654_435_761 % 2**64 << 64 | i), "uuid"),
    "jsonb": Kind(pg.JSONB, document, "jsonb", Jsonb),
    "json": Kind(sa.JSON, document, "json", Json),
    "bytea": Kind(sa.LargeBinary, lambda i: i.to_bytes(16, "big"), "bytea"),
    "int[]": Kind(pg.ARRAY(sa.Integer), lambda i: [i, i + 1, i + 2], "int4[]"),
    "text[]": Kind(pg.ARRAY(sa.Text), lambda i: [f"a{i}", "b"], "text[]"),
    "enum": Kind(sa.Enum(Letter, name="letter"), letter, None, lambda value: value.name),
    "enum as varchar": Kind(sa.Enum(Letter, native_enum=False), letter, "text", lambda value: value.name),
    "inet": Kind(pg.INET, lambda i: ip_address(0x0A000000 + i), "inet"),
    "inet from text": Kind(pg.INET, lambda i: str(ip_address(0x0A000000 + i)), None),
    "macaddr": Kind(pg.MACADDR, lambda i: (0x080000000000 + i).to_bytes(6, "big").hex(":"), None),
    "citext": Kind(pg.CITEXT, lambda i: f"User {i}", None),
    "hstore": Kind(pg.HSTORE, lambda i: {"a": str(i), "b": None}, None),
    "bit": Kind(pg.BIT(16), lambda i: f"{i:016b}", None),
    "int4range": Kind(pg.INT4RANGE, lambda i: pg.Range(i, i + 9), "int4range", a_range),
    "tstzrange": Kind(
        pg.TSTZRANGE, lambda i: pg.Range(START + timedelta(hours=i), START + timedelta(hours=i + 1)), None, a_range
    ),
    "numrange": Kind(pg.NUMRANGE, lambda i: pg.Range(Decimal(i) / 100, Decimal(i)), "numrange", a_range),
    "datemultirange": Kind(
        pg.DATEMULTIRANGE,
        lambda i: [pg.Range(date(2026, 1, 1), date(2026, 1, 1) + timedelta(i % 900 + 1))],
        "datemultirange",
        lambda value: Multirange([a_range(one) for one in value]),
    ),
}


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sales"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    quantity: Mapped[int]
    price: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    active: Mapped[bool]
    token: Mapped[UUID]
    data: Mapped[dict[str, Any]] = mapped_column(pg.JSONB)
    note: Mapped[str | None]


def sale(i: int) -> dict[str, Any]:
    return {
        "id": i,
        "name": f"item {i}",
        "quantity": i,
        "price": Decimal(i) / 100,
        "at": START + timedelta(seconds=i),
        "active": i % 3 == 0,
        "token": UUID(int=(i * 2_654_435_761) % 2**64 << 64 | i),
        "data": {"a": i, "b": "x"},
        "note": f"note {i}" if i % 2 else None,
    }


class Bench:
    """Inserts into one table, which is empty before each of them."""

    def __init__(self, engine: sa.Engine, entity: type[Any], rows: list[dict[str, Any]]) -> None:
        self.engine = engine
        self.entity = entity
        self.rows = rows
        self.table = entity.__table__

    def empty(self) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE {self.table.name}")

    def ours(self, _: int) -> None:
        with Session(self.engine) as session, session.begin():
            assert bulk.insert(session, self.entity, self.rows).method == "copy"

    def write_row(self, ready: list[tuple[Any, ...]], types: list[str] | None) -> Callable[[int], None]:
        columns = ", ".join(column.name for column in self.table.columns)
        form = "" if types is None else " (FORMAT BINARY)"
        statement = f"COPY {self.table.name} ({columns}) FROM STDIN{form}"

        def run(_: int) -> None:
            with self.engine.begin() as connection:
                driver: Any = connection.connection.driver_connection
                with driver.cursor() as cursor, cursor.copy(statement) as copy:
                    if types is not None:
                        copy.set_types(types)
                    for row in ready:
                        copy.write_row(row)

        return run

    def report(self, title: str, ready: list[tuple[Any, ...]], binary: list[str] | None, rounds: int) -> Report:
        cases = [
            Case(OURS, self.ours, self.empty, number=1),
            Case(TEXT, self.write_row(ready, None), self.empty, number=1),
        ]
        if binary is not None:
            cases.append(Case(BINARY, self.write_row(ready, binary), self.empty, number=1))
        timings = measure(cases, rounds=rounds)
        self.empty()
        reference = min((name for name in timings if name != OURS), key=lambda name: timings[name].wall)
        target = TARGET_OF_NINE if title == NINE else TARGET
        return Report(title, timings, reference, {OURS: target}, by="wall")


def of_kind(engine: sa.Engine, title: str, kind: Kind, rounds: int) -> Report:
    base: Any = type("KindBase", (DeclarativeBase,), {})
    key = sa.Column(sa.BigInteger, primary_key=True, autoincrement=False)
    entity = type("OneOfAKind", (base,), {"__tablename__": "kind", "id": key, "value": sa.Column(kind.type)})
    rows = [{"id": i, "value": kind.value(i)} for i in range(ROWS)]
    ready = [(row["id"], None if row["value"] is None else kind.ready(row["value"])) for row in rows]
    base.metadata.create_all(engine)
    try:
        binary = None if kind.binary is None else ["int8", kind.binary]
        return Bench(engine, entity, rows).report(title, ready, binary, rounds)
    finally:
        base.metadata.drop_all(engine)


def of_nine(engine: sa.Engine, rounds: int) -> Report:
    rows = [sale(i) for i in range(ROWS)]
    ready = [(*list(row.values())[:7], Jsonb(row["data"]), row["note"]) for row in rows]
    types = ["int8", "text", "int4", "numeric", "timestamptz", "bool", "uuid", "jsonb", "text"]
    Base.metadata.create_all(engine)
    try:
        return Bench(engine, Sale, rows).report(NINE, ready, types, rounds)
    finally:
        Base.metadata.drop_all(engine)


def measured(url: URL | None, only: str, rounds: int) -> Iterator[Report]:
    """Measure the types whose name contains `only`."""
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(on_postgresql(None)).url.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url)
        stack.callback(engine.dispose)
        with engine.begin() as connection:
            for extension in ("hstore", "citext"):
                connection.exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        # New connections find the extensions.
        engine.dispose()
        engine = sa.create_engine(url)
        stack.callback(engine.dispose)
        _teach_hstore(engine)
        for title, kind in KINDS.items():
            if only.lower() in title.lower():
                yield of_kind(engine, title, kind, rounds)
        if only.lower() in NINE:
            yield of_nine(engine, rounds)


def _teach_hstore(engine: sa.Engine) -> None:
    from psycopg.types import TypeInfo

    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        info = TypeInfo.fetch(driver, "hstore")
        assert info is not None
        register_hstore(info, driver)


def pages(results: dict[str, Any]) -> dict[Path, str]:
    """Return the page of `python -m benchmarks bulk-types`, and the README with its targets."""
    rows = [["", "`bulk.insert`", "`write_row`, text", "binary", "ratio, time", "ratio, CPU"]]
    targets = [["", "target", "measured"]]
    for title, figures in results["tables"].items():
        target = results["targets"][title][OURS]
        theirs = min((figures[name] for name in figures if name != OURS), key=lambda figure: figure["wall"])
        ratio, cpu = (figures[OURS][by] / theirs[by] for by in ("wall", "cpu"))
        times = [
            f"{figures[name]['wall'] / ROWS * 1e6:.1f}" if name in figures else "" for name in (OURS, TEXT, BINARY)
        ]
        rows.append([title, *times, f"**{ratio:.2f}**", f"{cpu:.2f}"])
        verdict = "missed" if round(ratio, 2) > target else "met"
        targets.append([title, f"{target:.2f}", f"{ratio:.2f}, {verdict}"])
    conditions = f"{results['date']}: {results['conditions']}."
    return {
        PAGE: filled(PAGE.read_text(encoding="utf-8"), {"conditions": conditions, "types": table(rows, right=True)}),
        README: filled(README.read_text(encoding="utf-8"), {"types: targets": table(targets, right=True)}),
    }


def main() -> int:
    return _command.run("bulk-types", __doc__ or "", measured, pages, ["psycopg"], rounds=15)


if __name__ == "__main__":
    sys.exit(main())
