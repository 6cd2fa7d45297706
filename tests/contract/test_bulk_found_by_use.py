"""What a user found in bulk who tried unusual tables, with the documentation alone: each with its kind."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Date, DateTime, Float, Integer, Numeric, String, Text, Uuid, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, declarative_base, mapped_column

from sessionkit import bulk, errors

if TYPE_CHECKING:
    from tests.support.doors import Door

UTC, EAST = dt.UTC, dt.timezone(dt.timedelta(hours=2))


async def table(doors: Door, type_: Any, *statements: str) -> Any:
    """Make a table with a unique column of a type, and return its class."""
    base: Any = declarative_base()

    class Row(base):  # type: ignore[misc]
        __tablename__ = "found_rows"

        id: Mapped[int] = mapped_column(primary_key=True)
        k = mapped_column(type_, unique=True)
        v = mapped_column(Integer)

    async with doors.connect() as connection:
        await connection.run_sync(base.metadata.create_all)
        for statement in statements:
            await connection.execute(text(statement))
        await connection.commit()
    return Row


def verb(doors: Door, name: str) -> Any:
    return doors.twin(getattr(bulk, name), getattr(bulk, f"async_{name}"))


# Two spellings of one key

NOON = dt.datetime(2020, 1, 1, 12)  # noqa: DTZ001 - without a zone, as much of the data is
MORNING = dt.datetime(2020, 1, 1, 5)  # noqa: DTZ001 - as above
ON_BOTH: list[tuple[Any, Any, Any]] = [
    (Integer, 1, 1),
    (Numeric(10, 2), Decimal("1.00"), Decimal(1)),
    (Float, 1.0, 1),
    (Date, dt.date(2020, 1, 1), dt.date(2020, 1, 1)),
]
ON_SQLITE: list[tuple[Any, Any, Any]] = [
    (Integer, 1, "1"),
    (Date, dt.date(2020, 1, 1), MORNING),
    (DateTime, NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=EAST)),
    (Text, "1", 1),
]
ON_PSYCOPG: list[tuple[Any, Any, Any]] = [
    (postgresql.INET, "::1", "0:0::1"),
    (postgresql.CIDR, "10.0.0.0/8", "10/8"),
    (Numeric(10, 2), Decimal("0.125"), Decimal("0.13")),
    (Uuid, uuid.UUID(int=5), str(uuid.UUID(int=5))),
    (postgresql.INT4RANGE, postgresql.Range(1, 5), postgresql.Range(1, 4, bounds="[]")),
    (postgresql.TIMESTAMP(precision=0), NOON.replace(microsecond=100), NOON),
    (postgresql.REAL, 0.1, 0.10000000001),
    (DateTime(timezone=True), NOON.replace(tzinfo=UTC), (NOON + dt.timedelta(hours=2)).replace(tzinfo=EAST)),
    (Float, float("nan"), float("nan")),
    (String(3), "abc", "abc   "),
]


async def are_duplicates(doors: Door, type_: Any, one: Any, other: Any) -> None:
    Row = await table(doors, type_)
    upsert = verb(doors, "upsert")
    rows = [{"k": one, "v": 1}, {"k": other, "v": 2}]
    async with doors.scope() as session:
        with pytest.raises(errors.BulkError, match="row 1 has the same key as row 0"):
            await upsert(session, Row, rows, match=[Row.k])
        result = await upsert(session, Row, rows, match=[Row.k], on_duplicate="last", status=True)
        assert result.status == ["unchanged", "inserted"]
        assert list(await session.scalars(select(Row.v))) == [2]
        result = await upsert(session, Row, rows, match=[Row.k], on_duplicate="first", status=True)
        assert result.status == ["updated", "unchanged"]
        assert list(await session.scalars(select(Row.v))) == [1]


@pytest.mark.parametrize(("type_", "one", "other"), ON_BOTH)
@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync")
async def test_two_spellings_of_one_key_are_duplicates(doors: Door, type_: Any, one: Any, other: Any) -> None:
    await are_duplicates(doors, type_, one, other)


@pytest.mark.parametrize(("type_", "one", "other"), ON_SQLITE)
@pytest.mark.doors(backend="sqlite")
async def test_two_spellings_that_sqlite_stores_as_one_are_duplicates(
    doors: Door, type_: Any, one: Any, other: Any
) -> None:
    await are_duplicates(doors, type_, one, other)


@pytest.mark.parametrize(("type_", "one", "other"), ON_PSYCOPG)
@pytest.mark.doors("postgresql-sync")
async def test_two_spellings_that_postgresql_stores_as_one_are_duplicates(
    doors: Door, type_: Any, one: Any, other: Any
) -> None:
    await are_duplicates(doors, type_, one, other)


@pytest.mark.doors(backend="sqlite")
async def test_two_times_that_sqlite_keeps_apart_are_two_keys(doors: Door) -> None:
    """It stores the clock time alone: these are one moment, and two texts."""
    Row = await table(doors, DateTime)
    rows = [{"k": NOON.replace(tzinfo=UTC)}, {"k": (NOON + dt.timedelta(hours=2)).replace(tzinfo=EAST)}]
    async with doors.scope() as session:
        assert (await verb(doors, "upsert")(session, Row, rows, match=[Row.k])).inserted == 2


@pytest.mark.doors("postgresql-sync")
async def test_two_times_of_day_in_two_zones_are_two_keys(doors: Door) -> None:
    Row = await table(doors, postgresql.TIME(timezone=True))
    rows = [{"k": dt.time(1, tzinfo=UTC)}, {"k": dt.time(3, tzinfo=EAST)}]
    async with doors.scope() as session:
        assert (await verb(doors, "upsert")(session, Row, rows, match=[Row.k])).inserted == 2


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        (Date, [dt.date(2020, 1, 2), MORNING]),
        (Date, [MORNING, dt.date(2020, 1, 2)]),
        (Numeric(10, 2), [Decimal("1.001"), Decimal("1.00")]),
        (Numeric(10, 2), [0, *map(Decimal, range(1, 9))]),
    ],
)
async def test_keys_of_several_kinds_find_their_rows(doors: Door, type_: Any, keys: list[Any]) -> None:
    Row = await table(doors, type_)
    async with doors.scope() as session:
        rows = [{"k": key, "v": i} for i, key in enumerate(keys)]
        upsert = verb(doors, "upsert")
        result = await upsert(session, Row, rows, match=[Row.k], status=True, returning=[Row.v])
        assert result.status == ["inserted"] * len(keys)
        assert [row and row.v for row in result.returned] == list(range(len(keys)))


@pytest.mark.doors(backend="postgresql")
async def test_a_decimal_that_is_no_number_does_not_keep_the_others_from_being_sorted(doors: Door) -> None:
    Row = await table(doors, Numeric)
    async with doors.scope() as session:
        rows = [{"k": Decimal("NaN")}, {"k": Decimal(1)}]
        assert (await verb(doors, "upsert")(session, Row, rows, match=[Row.k])).inserted == 2


# Rows that are refused


@pytest.mark.own_database
@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("count", [3, 100])
async def test_a_row_that_a_policy_refuses_is_named_and_collected(doors: Door, count: int) -> None:
    Row = await table(
        doors,
        Integer,
        "ALTER TABLE found_rows ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE found_rows FORCE ROW LEVEL SECURITY",
        "CREATE POLICY found ON found_rows USING (true) WITH CHECK (v <> 13)",
        "DO $$ BEGIN CREATE ROLE sessionkit_limited; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT ALL ON found_rows TO sessionkit_limited",
        "GRANT ALL ON SEQUENCE found_rows_id_seq TO sessionkit_limited",
        "GRANT USAGE ON SCHEMA public TO sessionkit_limited",
    )
    rows = [{"v": 13 if i == 1 else 0} for i in range(count)]
    async with doors.scope() as session:
        await session.execute(text("SET LOCAL ROLE sessionkit_limited"))
        with pytest.raises(errors.BulkError, match="row-level security") as told:
            await verb(doors, "insert")(session, Row, rows)
        assert told.value.position == 1
        result = await verb(doors, "insert")(session, Row, rows, on_error="collect")
        assert (result.inserted, [each.position for each in result.rejected]) == (count - 1, [1])


TRIGGER = (
    "CREATE FUNCTION found_13() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 13 THEN"
    " RAISE EXCEPTION 'no 13' USING errcode = 'AB001'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER found_13 BEFORE INSERT ON found_rows FOR EACH ROW EXECUTE FUNCTION found_13()",
)


async def is_named_and_collected(doors: Door, Row: Any, bad: dict[str, Any], count: int) -> None:
    rows = [bad if i == 1 else {"v": 0} for i in range(count)]
    async with doors.scope() as session:
        with pytest.raises(errors.BulkError) as told:
            await verb(doors, "insert")(session, Row, rows)
        assert told.value.position == 1
        result = await verb(doors, "insert")(session, Row, rows, on_error="collect")
        assert (result.inserted, [each.position for each in result.rejected]) == (count - 1, [1])
        assert await session.scalar(select(func.count()).select_from(Row)) == count - 1


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("count", [3, 100])
async def test_a_row_that_a_trigger_refuses_by_a_code_of_its_own_is_named_and_collected(
    doors: Door, count: int
) -> None:
    await is_named_and_collected(doors, await table(doors, Integer, *TRIGGER), {"v": 13}, count)


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("count", [3, 100])
async def test_a_text_that_is_too_long_for_its_index_is_named_and_collected(doors: Door, count: int) -> None:
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=20_000))
    await is_named_and_collected(doors, await table(doors, Text), {"k": letters}, count)


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize(("type_", "value"), [(Integer, 10**30), (Text, "\ud800")])
async def test_a_value_that_only_the_driver_refuses_is_named_and_collected(
    doors: Door, count: int, type_: Any, value: Any
) -> None:
    await is_named_and_collected(doors, await table(doors, type_), {"k": value}, count)


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("chunk", [1, 10])
async def test_an_error_that_ends_the_transaction_is_the_one_that_is_seen(doors: Door, chunk: int) -> None:
    Row = await table(
        doors,
        Integer,
        "CREATE TRIGGER found_end BEFORE INSERT ON found_rows WHEN NEW.v = 13 BEGIN SELECT RAISE(ROLLBACK, 'no 13'); END",
    )
    with pytest.raises(IntegrityError, match="no 13"):
        async with doors.scope() as session:
            await verb(doors, "insert")(session, Row, [{"v": 1}, {"v": 13}], chunk=chunk)
    assert await doors.scalar("SELECT count(*) FROM found_rows") == 0


@pytest.mark.parametrize("chunk", [2.5, "5", 0])
async def test_a_chunk_that_is_no_number_of_rows_is_refused(doors: Door, chunk: Any) -> None:
    Row = await table(doors, Integer)
    async with doors.scope() as session:
        with pytest.raises(errors.OptionError, match="give a number of rows"):
            await verb(doors, "insert")(session, Row, [{"v": 1}], chunk=chunk)
