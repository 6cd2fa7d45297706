"""Bulk, compared with the raw driver and with SQLAlchemy's own ways, on the same table in the same run.

    python -m benchmarks.bulk --url postgresql+psycopg://postgres@127.0.0.1/postgres [--rows 10000] [--only insert]

`--url` may be given several times; `--svg FILE` draws the inserts.

It compares the CPU time of the client and the server's backends together (the server must be on this machine), and the wall
time: the shortest round of each, with the commit. Every case ends with the same rows in the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sqlite3
import struct
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import JSON, CheckConstraint, DateTime, create_engine, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks._measure import conditions, cpu_seconds
from benchmarks._plot import Bar, bars
from sessionkit import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "bulk_benchmark"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    quantity: Mapped[int]
    price: Mapped[float]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    active: Mapped[bool]
    token: Mapped[uuid.UUID]
    data: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    )
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012
    __table_args__ = (CheckConstraint("quantity >= 0"),)


class Unversioned(Base):
    """The same table, mapped so that SQLAlchemy's bulk update can use one executemany."""

    __table__ = Item.__table__


START = datetime(2024, 1, 1, tzinfo=UTC)


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "name": f"item {i}",
            "quantity": i,
            "price": i / 7,
            "at": START + timedelta(seconds=i),
            "active": i % 3 == 0,
            "token": uuid.UUID(int=(i * 2_654_435_761) % 2**64 << 64 | i),
            "data": {"a": i, "b": "x"} if i % 2 else None,
            "version": 1,
        }
        for i in range(first, first + count)
    ]


def mixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is None, in every other row, and the version in every third one."""
    return [{k: v for k, v in row.items() if v is not None and (i % 3 or k != "version")} for i, row in enumerate(rows)]


# The floor: what you would write by hand for this table.

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COLUMNS = "name, quantity, price, at, active, token, data, version"


def packed_by_hand(rows: list[dict[str, Any]]) -> bytes:
    head = struct.Struct(">hiiidiqiBi16sii").pack
    length = struct.Struct(">i").pack
    out = [_HEADER]
    for r in rows:
        d = r["at"] - _EPOCH
        name, data = r["name"].encode(), r["data"]
        moment = (d.days * 86400 + d.seconds) * 1_000_000 + d.microseconds
        fixed = head(
            8, 4, r["quantity"], 8, r["price"], 8, moment, 1, r["active"], 16, r["token"].bytes, 4, r["version"]
        )
        if data is None:
            out.append(fixed + length(len(name)) + name + b"\xff\xff\xff\xff")
        else:
            document = json.dumps(data).encode()
            out.append(fixed + length(len(name)) + name + length(len(document) + 1) + b"\x01" + document)
    out.append(b"\xff\xff")
    return b"".join(out)


def copy_by_hand(session: Session, rows: list[dict[str, Any]]) -> None:
    driver: Any = session.connection().connection.driver_connection
    iterator = iter(rows)
    columns = "quantity, price, at, active, token, version, name, data"
    while part := list(islice(iterator, 10_000)):
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY bulk_benchmark ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.write(packed_by_hand(part))


def copy_write_row(session: Session, rows: list[dict[str, Any]]) -> None:
    from psycopg.types.json import Jsonb

    driver: Any = session.connection().connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY bulk_benchmark ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "int4", "float8", "timestamptz", "bool", "uuid", "jsonb", "int4"])
        for r in rows:
            data = r["data"]
            copy.write_row(
                (
                    r["name"],
                    r["quantity"],
                    r["price"],
                    r["at"],
                    r["active"],
                    r["token"],
                    None if data is None else Jsonb(data),
                    r["version"],
                )
            )


def sqlite_by_hand(session: Session, rows: list[dict[str, Any]]) -> None:
    driver: Any = session.connection().connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.executemany(
        f"INSERT INTO bulk_benchmark ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                r["name"],
                r["quantity"],
                r["price"],
                r["at"].replace(tzinfo=None).isoformat(" ", "microseconds"),
                int(r["active"]),
                r["token"].hex,
                None if r["data"] is None else json.dumps(r["data"]),
                r["version"],
            )
            for r in rows
        ),
    )


# SQLAlchemy's own ways.


def sa_insert(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Item).execution_options(render_nulls=True), rows)


def sa_insert_ids(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = insert(Item).returning(Item.id, sort_by_parameter_order=True).execution_options(render_nulls=True)
    session.execute(statement, rows).all()


def sa_update(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(update(Unversioned), rows)


def unit_of_work(session: Session, rows: list[dict[str, Any]]) -> None:
    items = {item.id: item for item in session.scalars(select(Item).execution_options(yield_per=1000))}
    for r in rows:
        item = items[r["id"]]
        item.name, item.quantity, item.active = r["name"], r["quantity"], r["active"]
    session.flush()


def sa_upsert(session: Session, rows: list[dict[str, Any]], *, returning: bool = False) -> None:
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as upsert
    else:
        from sqlalchemy.dialects.postgresql import insert as upsert  # type: ignore[assignment]
    statement: Any = upsert(Item)
    names = ("name", "quantity", "price", "at", "active", "token", "data")
    changes = {name: statement.excluded[name] for name in names}
    statement = statement.on_conflict_do_update(index_elements=["id"], set_=changes)
    if returning:
        session.execute(statement.returning(Item.id), rows, execution_options={"render_nulls": True}).all()
    else:
        session.execute(statement, rows, execution_options={"render_nulls": True})


def sa_delete(session: Session, keys: list[int]) -> None:
    for low in range(0, len(keys), 500):
        session.execute(Item.__table__.delete().where(Item.__table__.c.id.in_(keys[low : low + 500])))


def sa_get(session: Session, keys: list[int]) -> None:
    kept = [
        item
        for low in range(0, len(keys), 500)
        for item in session.scalars(select(Item).where(Item.id.in_(keys[low : low + 500])))
    ]
    assert len(kept) == len(keys)


def sa_stream(session: Session, statement: Any) -> None:
    for part in session.execute(statement, execution_options={"yield_per": 1000}).partitions(1000):
        len(part)


def our_stream(session: Session, statement: Any) -> None:
    for part in bulk.stream(session, statement, chunk=1000):
        len(part)


# Measuring


@dataclass
class Case:
    name: str
    work: Callable[[Session], Any]
    cpu: float = float("inf")
    wall: float = float("inf")
    rows: int = 0


class Bench:
    def __init__(self, url: str, rounds: int) -> None:
        self.engine = create_engine(url, pool_size=1)
        self.rounds = rounds
        self.lite = self.engine.dialect.name == "sqlite"
        self.factor = 1
        self.order = random.Random(0)
        self.tables: dict[str, list[Case]] = {}
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        if self.lite:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("PRAGMA synchronous=NORMAL")

    def fill(self, rows: list[dict[str, Any]]) -> None:
        with Session(self.engine) as session:
            if self.lite:
                session.execute(text("DELETE FROM bulk_benchmark"))
            else:
                session.execute(text("TRUNCATE bulk_benchmark RESTART IDENTITY"))
            if rows:
                bulk.insert(session, Item, [{**row, "id": i + 1} for i, row in enumerate(rows)])
            session.commit()
        if rows and not self.lite:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE bulk_benchmark")

    def compare(self, title: str, cases: list[Case], *, there: list[dict[str, Any]] | None, repeat: int = 1) -> None:
        print(f"\n### {title}\n")
        for _ in range(self.rounds):
            self.order.shuffle(cases_in_turn := list(cases))
            for case in cases_in_turn:
                if there is not None:
                    self.fill(there)
                cpu, wall = self._turn(case, repeat)
                case.cpu, case.wall = min(case.cpu, cpu), min(case.wall, wall)
        self.tables[title] = cases
        first = cases[0]
        width = max(len(case.name) for case in cases)
        print(f"| {'':{width}} | CPU | wall | ms CPU | ms wall |\n|{'-' * (width + 2)}|---:|---:|---:|---:|")
        for case in cases:
            print(
                f"| {case.name:{width}} | {case.cpu / first.cpu:.2f} | {case.wall / first.wall:.2f} "
                f"| {case.cpu * 1e3:.2f} | {case.wall * 1e3:.2f} |"
            )

    def _turn(self, case: Case, repeat: int) -> tuple[float, float]:
        with Session(self.engine, expire_on_commit=False) as session:
            backend = self._backend(session)
            session.commit()
        gc.collect()
        gc.disable()
        try:
            before, client, wall = self._spent(backend), time.process_time(), time.perf_counter()
            for _ in range(repeat):
                with Session(self.engine, expire_on_commit=False) as session:
                    case.work(session)
                    session.commit()
            wall, client = time.perf_counter() - wall, time.process_time() - client
            server = self._spent(backend) - before
        finally:
            gc.enable()
        return (client + server) / repeat, wall / repeat

    @staticmethod
    def _spent(backend: psutil.Process | None) -> float:
        return 0.0 if backend is None else cpu_seconds(backend.pid)

    def _backend(self, session: Session) -> psutil.Process | None:
        if self.lite:
            return None
        return psutil.Process(session.execute(text("SELECT pg_backend_pid()")).scalar_one())


def once(rows: list[dict[str, Any]], work: Callable[[Session, list[dict[str, Any]]], Any]) -> Callable[[Session], Any]:
    return lambda session: work(session, rows)


def inserts(bench: Bench, count: int) -> None:
    rows = rows_of(count)
    alternating = mixed(rows)
    by_hand = (
        [Case("sqlite3 executemany, adapter by hand", once(rows, sqlite_by_hand))]
        if bench.lite
        else [
            Case("binary COPY, packer by hand", once(rows, copy_by_hand)),
            Case("psycopg COPY write_row(tuple)", once(rows, copy_write_row)),
        ]
    )
    cases = [
        *by_hand,
        Case("bulk.insert", lambda s: bulk.insert(s, Item, rows)),
        Case("bulk.insert, mixed keys", lambda s: bulk.insert(s, Item, alternating)),
        Case("bulk.insert, ids returned", lambda s: bulk.insert(s, Item, rows, returning=[Item.id])),
        Case("execute(insert(Item), rows), render_nulls", once(rows, sa_insert)),
        *([Case("  the same, ids returned in order", once(rows, sa_insert_ids))] if count <= 10_000 else []),
    ]
    for case in cases:
        case.rows = count
    bench.compare(f"Insert {count:,} rows", cases, there=[])


def small_inserts(bench: Bench) -> None:
    for count in (1, 20, 100, 1000):
        first = iter(range(0, 10**9, count))

        def fresh(first: Iterator[int] = first, count: int = count) -> list[dict[str, Any]]:
            return rows_of(count, next(first))

        cases = [
            Case("execute(insert(Item), rows), render_nulls", lambda s, f=fresh: sa_insert(s, f())),
            Case("bulk.insert", lambda s, f=fresh: bulk.insert(s, Item, f())),
            Case("bulk.insert, ids returned", lambda s, f=fresh: bulk.insert(s, Item, f(), returning=[Item.id])),
            Case("making the rows", lambda _, f=fresh: f()),
        ]
        bench.compare(f"Insert {count} rows", cases, there=[], repeat=max(2, 2000 // count))


def updates(bench: Bench, count: int) -> None:
    there = rows_of(count * 10)
    keys = random.Random(1).sample(range(1, count * 10 + 1), count)
    rows = [{"id": key, "name": f"new {key}", "quantity": key, "active": True} for key in keys]
    versioned = [{**row, "version": 1} for row in rows]
    cases = [
        Case("bulk.update", lambda s: bulk.update(s, Item, rows)),
        Case("bulk.update, versions checked", lambda s: bulk.update(s, Item, versioned)),
        Case("execute(update(Unversioned), rows)", once(versioned, sa_update)),
        Case("the unit of work", once(rows, unit_of_work)),
    ]
    bench.compare(f"Update {count:,} of {count * 10:,} rows", cases, there=there)


def upserts(bench: Bench, count: int) -> None:
    there = rows_of(count // 2)
    rows = [{"id": i + 1, **row} for i, row in enumerate(rows_of(count))]
    cases = [
        Case("bulk.upsert", lambda s: bulk.upsert(s, Item, rows, match=[Item.id])),
        Case(
            "bulk.upsert, status and ids",
            lambda s: bulk.upsert(s, Item, rows, match=[Item.id], status=True, returning=[Item.id]),
        ),
        Case("execute(insert().on_conflict_do_update(), rows)", once(rows, sa_upsert)),
        Case("  the same, ids returned", lambda s: sa_upsert(s, rows, returning=True)),
    ]
    bench.compare(f"Upsert {count:,} rows, half of them there", cases, there=there)


def bad_rows(bench: Bench, count: int) -> None:
    """The cost of rows that a CHECK refuses. The first case is the clean load."""
    clean = [{"id": i + 1, **row} for i, row in enumerate(rows_of(count))]

    def with_bad(every: int) -> list[dict[str, Any]]:
        return [{**row, "quantity": -1} if i % every == every // 2 else row for i, row in enumerate(clean)]

    loads = {"none bad": clean, "0.1 % bad": with_bad(1000), "1 % bad": with_bad(100), "5 % bad": with_bad(20)}
    for verb in ("insert", "upsert"):
        more: dict[str, Any] = {"match": [Item.id]} if verb == "upsert" else {}

        def load(session: Session, rows: list[dict[str, Any]], verb: str = verb, more: dict[str, Any] = more) -> None:
            getattr(bulk, verb)(session, Item, rows, on_error="collect", **more)

        cases = [Case(name, once(rows, load)) for name, rows in loads.items()]
        bench.compare(f"{verb.capitalize()} {count:,} rows, some of them bad", cases, there=[])


def deletes(bench: Bench, count: int) -> None:
    keys = random.Random(2).sample(range(1, count * 10 + 1), count)
    cases = [
        Case("bulk.delete", lambda s: bulk.delete(s, Item, keys)),
        Case("delete() with in_() of 500", lambda s: sa_delete(s, keys)),
    ]
    bench.compare(f"Delete {count:,} of {count * 10:,} rows", cases, there=rows_of(count * 10))


def reads(bench: Bench, count: int) -> None:
    bench.fill(rows_of(count * 10))
    keys = random.Random(3).sample(range(1, count * 10 + 1), count)
    bench.compare(
        f"Get {count:,} of {count * 10:,} objects",
        [
            Case("bulk.get", lambda s: bulk.get(s, Item, keys)),
            Case("select() with in_() of 500", lambda s: sa_get(s, keys)),
        ],
        there=None,
    )
    columns = select(Item.id, Item.name, Item.quantity, Item.at)
    bench.compare(
        f"Read {count * 10:,} rows",
        [
            Case("yield_per, objects", lambda s: sa_stream(s, select(Item))),
            Case("bulk.stream, objects", lambda s: our_stream(s, select(Item))),
            Case("yield_per, rows", lambda s: sa_stream(s, columns)),
            Case("bulk.stream, rows", lambda s: our_stream(s, columns)),
        ],
        there=None,
    )


def memory(bench: Bench, count: int) -> None:
    """How much the process grows when a generator of rows goes in, and when all of them come out."""
    bench.fill([])
    process = psutil.Process()
    with Session(bench.engine) as session:
        bulk.insert(session, Item, (row for low in range(0, 20_000, 100) for row in rows_of(100, low)))
        session.rollback()
        for part in bulk.stream(session, select(Item)):
            len(part)
        before = process.memory_info().rss
        peak = before

        def look(*_: Any) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        bulk.insert(session, Item, (row for low in range(0, count, 100) for row in rows_of(100, low)), on_progress=look)
        print(f"\n### Memory\n\n{count:,} rows from a generator: the process grew by {(peak - before) / 2**20:.1f} MB")
        before = peak = process.memory_info().rss
        for _ in bulk.stream(session, select(Item), on_progress=look):
            pass
        print(f"{count:,} objects streamed: it grew by {(peak - before) / 2**20:.1f} MB")
        session.rollback()


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark sessionkit.bulk")
    parser.add_argument("--url", action="append", default=[], help="where; several times for several databases")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--svg", type=Path, help="draw the inserts into this file")
    parser.add_argument("--only", default="", help="small, insert, update, upsert, bad, delete, read or memory")
    given, _ = parser.parse_known_args()
    drawn: list[tuple[str, list[Bar]]] = []
    for url in given.url or ["sqlite:///bulk_benchmark.db"]:
        bench = Bench(url, given.rounds)
        print(f"\n## {bench.engine.dialect.name}, {bench.engine.dialect.driver}\n\n{conditions()}")
        for name, work in (
            ("small", small_inserts),
            ("insert", lambda bench: inserts(bench, given.rows)),
            ("update", lambda bench: updates(bench, given.rows)),
            ("upsert", lambda bench: upserts(bench, given.rows)),
            ("bad", lambda bench: bad_rows(bench, given.rows)),
            ("delete", lambda bench: deletes(bench, given.rows)),
            ("read", lambda bench: reads(bench, given.rows)),
            ("memory", lambda bench: memory(bench, given.rows * 10)),
        ):
            if given.only in name:
                work(bench)
        drawn += [(f"{bench.engine.dialect.name}: {title}", drawn_of(cases)) for title, cases in bench.tables.items()]
        Base.metadata.drop_all(bench.engine)
        bench.engine.dispose()
    if given.svg is not None:
        wanted = f"Insert {given.rows:,} rows"
        groups = [
            (head.replace("postgresql", "PostgreSQL").replace("sqlite", "SQLite"), group) for head, group in drawn
        ]
        given.svg.write_text(
            bars(
                f"{wanted}: CPU time of client and server for each row, less is better",
                [(f"{head}, microseconds of CPU for each", group) for head, group in groups if head.endswith(wanted)],
            ),
            encoding="utf-8",
        )
    return 0


def drawn_of(cases: list[Case]) -> list[Bar]:
    return [
        Bar(case.name.strip(), case.cpu, f"{case.cpu / case.rows * 1e6:.1f}", case.name.startswith("bulk."))
        for case in cases
        if case.rows
    ]


if __name__ == "__main__":
    sys.exit(main())
