"""`bulk.sync`: the slice is equal to the rows afterwards, nothing outside of it is touched, and two syncs do not mix."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, Numeric, String, UniqueConstraint, func, select, true
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from sessionkit import Retry, Versioned, bulk, errors
from sessionkit.bulk import Change

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.doors import Door


class Base(DeclarativeBase):
    pass


class Upper(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.upper()


class Price(Versioned, Base):
    __tablename__ = "synced_prices"

    id: Mapped[int] = mapped_column(primary_key=True)
    supplier_id: Mapped[int]
    code: Mapped[str] = mapped_column("article", Upper)
    cents: Mapped[int] = mapped_column(default=0)
    slot: Mapped[int | None] = mapped_column(unique=True)
    touched: Mapped[int] = mapped_column(default=0, onupdate=7)

    __table_args__: Any = (UniqueConstraint("supplier_id", "article"),)


class Sale(Base):
    __tablename__ = "synced_sales"

    id: Mapped[int] = mapped_column(primary_key=True)
    price_id: Mapped[int] = mapped_column(ForeignKey("synced_prices.id"))


class Rate(Base):
    __tablename__ = "synced_rates"

    rate: Mapped[Decimal] = mapped_column(Numeric(6, 2), primary_key=True, autoincrement=False)
    name: Mapped[str]


class Pet(Base):
    __tablename__ = "synced_pets"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(unique=True)

    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "pet"}  # noqa: RUF012


class Cat(Pet):
    __mapper_args__: Any = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Dog(Pet):
    __mapper_args__: Any = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Lynx(Pet):
    __tablename__ = "synced_lynxes"

    id: Mapped[int] = mapped_column(ForeignKey("synced_pets.id"), primary_key=True)

    __mapper_args__: Any = {"polymorphic_identity": "lynx"}  # noqa: RUF012


MATCH = ["supplier_id", "code"]
SEVEN = Price.supplier_id == 7


@pytest.fixture(autouse=True)
def made(doors: Door) -> None:
    async def body() -> None:
        async with doors.connect() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.commit()

    doors.run(body())


def syncing(doors: Door) -> Any:
    twin = doors.twin(bulk.sync, bulk.async_sync)

    async def sync(session: Any, rows: Any, **options: Any) -> Any:
        return await twin(session, Price, rows, **{"where": SEVEN, "match": MATCH, **options})

    return sync


def price(code: str, cents: int = 1, supplier_id: int = 7, **more: Any) -> dict[str, Any]:
    return {"supplier_id": supplier_id, "code": code, "cents": cents, **more}


async def given(doors: Door, *rows: dict[str, Any]) -> None:
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(session, Price, list(rows))


async def stored(doors: Door) -> list[Any]:
    found = await doors.rows(
        "SELECT supplier_id, article, cents, version_id FROM synced_prices ORDER BY supplier_id, article"
    )
    return [tuple(row) for row in found]


async def test_the_slice_is_equal_to_the_rows_and_the_rest_is_untouched(doors: Door) -> None:
    await given(doors, price("a"), price("b"), price("c"), price("a", supplier_id=8))
    async with doors.scope() as session:
        kept = (await session.scalars(select(Price).where(SEVEN, Price.code == "b"))).one()
        result = await syncing(doors)(session, [price("a"), price("b", 5), price("d", 4)], status=True)
        assert (result.inserted, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 1)
        assert result.status == ["unchanged", "updated", "inserted"]
        await session.refresh(kept)
        assert (kept.cents, kept.version_id, kept.touched) == (5, 2, 7)
    assert await stored(doors) == [(7, "A", 1, 1), (7, "B", 5, 2), (7, "D", 4, 1), (8, "A", 1, 1)]
    async with doors.scope() as session:
        result = await syncing(doors)(session, [price("a"), price("b", 5), price("d", 4)])
    assert (result.inserted, result.updated, result.unchanged, result.deleted) == (0, 0, 3, 0)


async def test_changes_say_what_was_done_to_each_row_and_a_dry_run_says_it_beforehand(doors: Door) -> None:
    await given(doors, price("a"), price("b"), price("c"))
    rows = [price("d", 4), price("b", 5), price("a")]
    answers = []
    for dry_run in (True, False):
        async with doors.scope() as session:
            answers.append(await syncing(doors)(session, rows, changes=True, dry_run=dry_run, max_deleted=None))
        if dry_run:
            assert await stored(doors) == [(7, code, 1, 1) for code in "ABC"]
    for result in answers:
        told = [
            (
                each.action,
                each.key,
                each.old and each.old["cents"],
                each.new and (each.new["cents"], each.new["version_id"]),
            )
            for each in result.changes
        ]
        assert told == [
            ("deleted", {"supplier_id": 7, "code": "C"}, 1, None),
            ("inserted", {"supplier_id": 7, "code": "d"}, None, (4, 1)),
            ("updated", {"supplier_id": 7, "code": "b"}, 1, (5, 2)),
        ]
        assert isinstance(result.changes[0], Change)
        assert (result.inserted, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 1)


async def test_a_unique_value_moves_from_a_row_that_goes_to_one_that_comes(doors: Door) -> None:
    await given(doors, price("a", slot=1), price("b", slot=2))
    async with doors.scope() as session:
        await syncing(doors)(session, [price("c", slot=1), price("b", slot=2)])
    assert await doors.rows("SELECT article, slot FROM synced_prices ORDER BY slot") == [("C", 1), ("B", 2)]


async def test_a_row_outside_of_the_slice_is_refused_with_its_position_and_nothing_is_written(doors: Door) -> None:
    await given(doors, price("a"), price("b", 9, supplier_id=8))
    before = await stored(doors)
    identity = await doors.scalar("SELECT id FROM synced_prices WHERE supplier_id = 8")
    for rows, options, says in (
        ([price("c"), price("x", supplier_id=8)], {}, "lies outside of it"),
        (
            [price("c"), {"id": identity, **price("x")}],
            {"match": ["id"]},
            "has the key of a row that lies outside of it",
        ),
    ):
        async with doors.scope() as session:
            session.add(Rate(rate=Decimal(len(says)), name="kept"))
            if "match" in options:
                rows = [{"id": 900, **rows[0]}, rows[1]]
            with pytest.raises(errors.BulkError, match=says) as caught:
                await syncing(doors)(session, rows, **options)
        assert caught.value.position == 1
        assert await stored(doors) == before
    assert await doors.scalar("SELECT count(*) FROM synced_rates") == 2


@pytest.mark.parametrize(
    ("left", "limit", "allowed"), [(93, 0.07, True), (92, 0.07, False), (93, 7, True), (92, 7, False), (0, None, True)]
)
async def test_no_more_is_deleted_than_was_allowed(doors: Door, left: int, limit: Any, allowed: bool) -> None:
    rows = [price(f"p{number}") for number in range(100)]
    await given(doors, *rows)
    async with doors.scope() as session:
        if allowed:
            kept = rows[:left] or [price("other")]
            result = await syncing(doors)(session, kept, max_deleted=limit)
            assert result.deleted == 100 - left
            return
        with pytest.raises(
            errors.BulkError, match=r"would delete 8 of 100 rows, and max_deleted=.* allows 7"
        ) as caught:
            await syncing(doors)(session, rows[:left], max_deleted=limit)
        assert caught.value.position is None
    assert len(await stored(doors)) == 100


async def test_an_empty_input_needs_to_be_meant(doors: Door) -> None:
    await given(doors, price("a"))
    for limit in (None, 0.99, 1, 100):
        async with doors.scope() as session:
            with pytest.raises(errors.BulkError, match=r"max_deleted=1\.0"):
                await syncing(doors)(session, [], max_deleted=limit)
    async with doors.scope() as session:
        assert (await syncing(doors)(session, [], dry_run=True)).deleted == 1
    async with doors.scope() as session:
        assert (await syncing(doors)(session, [], max_deleted=1.0)).deleted == 1
    assert await stored(doors) == []


async def test_the_input_may_be_a_generator_and_in_async_code_an_async_one(doors: Door) -> None:
    async def asynchronous() -> AsyncIterator[dict[str, Any]]:
        for code in "xyz":
            yield price(code)

    async with doors.scope() as session:
        assert (await syncing(doors)(session, (price(code) for code in "ab"))).inserted == 2
    async with doors.scope() as session:
        if doors.colour == "async":
            result = await syncing(doors)(session, asynchronous())
            assert (result.inserted, result.deleted) == (3, 2)
        else:
            with pytest.raises(errors.SyncAsyncMismatch):
                await syncing(doors)(session, asynchronous())


async def test_a_key_that_only_the_database_sees_as_equal_is_found(doors: Door) -> None:
    sync = doors.twin(bulk.sync, bulk.async_sync)
    async with doors.scope() as session:
        await sync(
            session, Rate, [{"rate": Decimal("1.5"), "name": "one"}, {"rate": Decimal(2), "name": "two"}], where=true()
        )
    async with doors.scope() as session:
        rows = [{"rate": Decimal("1.50"), "name": "one"}, {"rate": Decimal("2.0"), "name": "II"}]
        result = await sync(session, Rate, rows, where=true())
    assert (result.inserted, result.updated, result.unchanged, result.deleted) == (0, 1, 1, 0)


async def test_the_slice_of_a_class_holds_no_row_of_its_sisters(doors: Door) -> None:
    sync = doors.twin(bulk.sync, bulk.async_sync)
    async with doors.scope() as session:
        session.add_all([Cat(name="tom"), Dog(name="rex")])
    async with doors.scope() as session:
        result = await sync(session, Cat, [{"name": "kit"}], where=true(), match=["name"])
        assert (result.inserted, result.deleted) == (1, 1)
        with pytest.raises(errors.BulkError, match="has the key of a row that lies outside"):
            await sync(session, Cat, [{"name": "rex"}], where=true(), match=["name"])
    assert await doors.rows("SELECT kind, name FROM synced_pets ORDER BY kind") == [("cat", "kit"), ("dog", "rex")]


async def test_a_row_that_others_refer_to_stops_the_whole_call(doors: Door) -> None:
    await given(doors, price("a"), price("b"))
    async with doors.scope() as session:
        session.add(Sale(price_id=(await session.scalars(select(Price.id).where(Price.code == "a"))).one()))
    async with doors.scope() as session:
        with pytest.raises(IntegrityError) as caught:
            await syncing(doors)(session, [price("b", 2), price("c")])
        found = errors.violation(caught.value)
        assert found is not None
        assert found.kind == "foreign_key"
        assert (await session.scalar(select(func.count()).select_from(Price))) == 2
    assert await stored(doors) == [(7, "A", 1, 1), (7, "B", 1, 1)]


async def test_bad_rows_are_left_out_where_they_are_collected_and_their_rows_stay(doors: Door) -> None:
    await given(doors, price("a"), price("b"))
    async with doors.scope() as session:
        bad = {**price("a"), "cents": None}
        result = await syncing(doors)(session, [bad, price("b", 3)], on_error="collect", render_nulls=True)
    assert [each.position for each in result.rejected] == [0]
    assert (result.updated, result.deleted) == (1, 0)
    assert await stored(doors) == [(7, "A", 1, 1), (7, "B", 3, 2)]


@pytest.mark.doors(backend="postgresql")
async def test_the_second_of_two_syncs_waits_and_sees_what_the_first_has_done(doors: Door) -> None:
    await given(doors, price("a"))
    factory = doors.factory()
    written = doors.event()
    results = []

    async def first() -> None:
        async with doors.scope(factory) as session:
            await syncing(doors)(session, [price("a"), price("b"), price("c")])
            written.set()
            waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory'"
            while await doors.scalar(f"{waiting} AND NOT granted AND datname = current_database()") == 0:
                pass

    async def second() -> None:
        await written.wait()
        async with doors.scope(factory) as session:
            results.append(await syncing(doors)(session, [price("a"), price("z")]))

    await doors.together(first, second)
    assert [(each.inserted, each.deleted) for each in results] == [(1, 2)]
    assert [row[1] for row in await stored(doors)] == ["A", "Z"]


@pytest.mark.doors(backend="postgresql")
async def test_at_repeatable_read_it_is_refused_and_at_serializable_the_loser_is_retried(doors: Door) -> None:
    await given(doors, price("a"))
    async with doors.scope(isolation="REPEATABLE READ") as session:
        with pytest.raises(errors.OptionError, match="REPEATABLE READ"):
            await syncing(doors)(session, [price("b")])
    factory = doors.factory()
    runs = []

    async def body(session: Any) -> None:
        runs.append(1)
        await session.scalar(select(func.count()).select_from(Price))  # the snapshot is taken
        if len(runs) == 1:
            await doors.in_other_thread(other) if doors.colour == "sync" else await other()
        await syncing(doors)(session, [price("a"), price("z")])

    async def other() -> None:
        async with doors.scope(factory, isolation="SERIALIZABLE", propagation="new") as session:
            await syncing(doors)(session, [price("a"), price("b")])

    await doors.decorate(body, factory, isolation="SERIALIZABLE", retry=Retry(3, wait=0))()
    assert len(runs) == 2
    assert [row[1] for row in await stored(doors)] == ["A", "Z"]


@pytest.mark.doors(backend="postgresql")
async def test_a_row_that_leaves_the_slice_meanwhile_is_not_deleted(doors: Door) -> None:
    await given(doors, price("a"), price("b"))
    factory = doors.factory()
    moved = doors.event()

    async def mover() -> None:
        async with doors.scope(factory) as session:
            row = (await session.scalars(select(Price).where(Price.code == "b"))).one()
            row.supplier_id = 8
            await session.flush()
            moved.set()
            blocked = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while await doors.scalar(blocked) == 0:
                pass

    async def syncer() -> None:
        await moved.wait()
        async with doors.scope(factory) as session:
            result = await syncing(doors)(session, [price("a")])
            assert result.deleted == 0

    await doors.together(mover, syncer)
    assert [row[:2] for row in await stored(doors)] == [(7, "A"), (8, "B")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "supplier_id = 7"}, "give it the condition of the slice"),
        ({"where": None}, "give it the condition of the slice"),
        ({"max_deleted": 1.5}, "max_deleted=1.5"),
        ({"max_deleted": -1}, "max_deleted=-1"),
        ({"max_deleted": True}, "max_deleted=True"),
        ({"match": ["cents"]}, "unique key"),
        ({"entity": Lynx}, "joined inheritance"),
        ({"chunk": 0}, "chunk=0"),
        ({"speed": "high"}, "speed"),
        ({"on_duplicate": "maybe"}, "on_duplicate"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_anything_is_written(doors: Door, options: Any, says: str) -> None:
    options = {"where": SEVEN, "match": MATCH, **options}
    entity = options.pop("entity", Price)
    async with doors.scope() as session:
        with pytest.raises((errors.OptionError, TypeError), match=says):
            await doors.twin(bulk.sync, bulk.async_sync)(session, entity, [price("a")], **options)
    assert await stored(doors) == []


async def test_a_none_in_the_key_is_refused_with_its_position(doors: Door) -> None:
    async with doors.scope() as session:
        with pytest.raises(errors.BulkError, match="NULL is never equal to NULL") as caught:
            await syncing(doors)(session, [price("a"), {**price("b"), "code": None}])
    assert (caught.value.position, caught.value.column) == (1, "code")


async def test_a_duplicate_in_the_input_is_refused_and_nothing_is_deleted(doors: Door) -> None:
    await given(doors, price("a"), price("b"))
    async with doors.scope() as session:
        with pytest.raises(errors.BulkError) as caught:
            await syncing(doors)(session, [price("a", 2), price("A", 3)])
    assert caught.value.position == 1
    assert [row[1:3] for row in await stored(doors)] == [("A", 1), ("B", 1)]
    async with doors.scope() as session:
        await syncing(doors)(session, [price("a", 2), price("A", 3)], on_duplicate="last")
    assert [row[1:3] for row in await stored(doors)] == [("A", 3)]


async def test_at_autocommit_it_is_refused(doors: Door) -> None:
    engine = doors.make_engine()
    connection = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with doors.session(doors.plain_factory(connection)) as session:
        with pytest.raises((errors.OptionError, DBAPIError)):
            await syncing(doors)(session, [price("a")])


async def test_a_key_that_the_database_stores_in_another_form_is_refused_and_deletes_nothing(doors: Door) -> None:
    """Its row would be inserted and deleted by every sync, and with it whatever refers to it."""
    sync = doors.twin(bulk.sync, bulk.async_sync)
    # asyncpg has the server round the value before it looks: SQLAlchemy casts each parameter there.
    if doors.backend == "postgresql" and doors.driver != "asyncpg":
        rows = [{"rate": Decimal("2.50"), "name": "two"}, {"rate": Decimal("1.005"), "name": "one"}]
        async with doors.scope() as session:
            with pytest.raises(errors.BulkError, match="stores it in another form") as caught:
                await sync(session, Rate, rows, where=true())
        assert caught.value.position == 1
        assert await doors.scalar("SELECT count(*) FROM synced_rates") == 0
    await doors.write(TRIGGER_UPPER[doors.backend])
    async with doors.scope() as session:
        session.add(Cat(name="kept"))
    async with doors.scope() as session:
        with pytest.raises(errors.BulkError, match="a trigger changes") as caught:
            await sync(session, Cat, [{"name": "kept"}, {"name": "tom"}], where=true(), match=["name"])
    assert caught.value.position == 1
    assert await doors.rows("SELECT name FROM synced_pets") == [("kept",)]


TRIGGER_UPPER = {
    "postgresql": """
        CREATE FUNCTION upper_tom() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.name = 'tom' THEN NEW.name := 'TOM'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER upper_tom BEFORE INSERT OR UPDATE ON synced_pets FOR EACH ROW EXECUTE FUNCTION upper_tom()""",
    "sqlite": """
        CREATE TRIGGER upper_tom AFTER INSERT ON synced_pets WHEN NEW.name = 'tom'
        BEGIN UPDATE synced_pets SET name = 'TOM' WHERE id = NEW.id; END""",
}


async def test_a_slice_of_another_class_is_refused(doors: Door) -> None:
    await given(doors, price("a"), price("b"))
    for where in (Sale.id == 7, (Price.supplier_id == 7) & (Sale.id == 1)):
        async with doors.scope() as session:
            with pytest.raises(errors.OptionError, match="synced_sales and not about synced_prices"):
                await syncing(doors)(session, [price("a")], where=where)
    async with doors.scope() as session:
        unsold = ~select(Sale.id).where(Sale.price_id == Price.id).exists()
        result = await syncing(doors)(session, [price("a")], where=SEVEN & unsold)
    assert result.deleted == 1


@pytest.mark.doors(backend="postgresql")
async def test_a_transaction_of_its_own_inside_one_that_has_synced_the_table_is_refused_at_once(doors: Door) -> None:
    factory = doors.factory()
    async with doors.scope(factory) as session:
        await syncing(doors)(session, [price("a")])
        async with doors.scope(factory, propagation="new") as inner:
            with pytest.raises(errors.ScopeError, match="has synced the same table"):
                await syncing(doors)(inner, [price("b")])
        async with doors.scope(factory) as joined:
            await syncing(doors)(joined, [price("c")])
    assert [row[1] for row in await stored(doors)] == ["C"]


@pytest.mark.doors(backend="postgresql")
async def test_a_wait_that_is_bounded_says_who_has_the_table(doors: Door) -> None:
    factory = doors.factory()

    async def other() -> None:
        with pytest.raises(errors.NotLocked, match="synced_prices") as caught:
            async with doors.scope(factory, lock_timeout=0.2) as session:
                await syncing(doors)(session, [price("b")])
        assert caught.value.holders

    async with doors.scope(factory) as session:
        await syncing(doors)(session, [price("a")])
        await doors.together(other)
