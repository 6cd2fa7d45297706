"""What each writing verb of bulk does, says and leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import bulk
from sessionkit.errors import BulkError, OptionError, SessionKitError, SyncAsyncMismatch, VersionConflict
from tests.contract.bulk_models import Dog, Draft, Line, Note, Order, Token, create
from tests.support.models import Account, Item, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.doors import Door


@dataclass
class Named:
    name: str


class NamedTuple_(NamedTuple):
    name: str


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


# What goes in


@pytest.mark.parametrize("count", [1, 7, 300])
async def test_rows_of_every_kind_are_inserted(doors: Door, count: int) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    rows: list[Any] = [
        [{"name": f"n{i:03}"}, User(name=f"n{i:03}"), Named(f"n{i:03}"), NamedTuple_(f"n{i:03}")][i % 4]
        for i in range(count)
    ]
    async with doors.scope() as session:
        result = await insert(session, User, rows)
    assert result.inserted == count
    assert await names(doors) == [f"n{i:03}" for i in range(count)]


async def test_a_generator_is_read_in_chunks_and_its_keys_come_in_its_order(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    ahead: list[int] = []
    done: list[tuple[int, int | None]] = []

    def rows() -> Any:
        for i in range(650):
            ahead.append(i - (done[-1][0] if done else 0))
            yield {"name": f"n{i:03}"}

    async with doors.scope() as session:
        result = await insert(
            session,
            User,
            rows(),
            chunk=300,
            returning=[User.id, User.name],
            on_progress=lambda *report: done.append(report),
        )
    assert done == [(300, None), (600, None), (650, None)]
    assert max(ahead) < 300
    assert [row.name for row in result.returned] == [f"n{i:03}" for i in range(650)]
    assert dict(await doors.rows("SELECT id, name FROM users")) == dict(map(tuple, result.returned))


@pytest.mark.parametrize("verb", ["insert", "update", "upsert"])
@pytest.mark.parametrize("others", [{}, {"email": "e"}], ids=["rows alike", "rows of two kinds"])
async def test_a_name_that_all_rows_misspell_is_refused_and_not_left_out(
    doors: Door, verb: str, others: dict[str, str]
) -> None:
    write = doors.twin(getattr(bulk, verb), getattr(bulk, f"async_{verb}"))
    rows = [{"id": 1, "name": "a", "emial": "x"}, {"id": 2, "name": "b", "emial": "x", **others}]
    async with doors.scope() as session:
        with pytest.raises(BulkError, match="row 0: User has no attribute 'emial'; did you mean 'email'") as told:
            await write(session, User, rows)
        assert (told.value.position, told.value.column) == (0, "emial")
    assert await doors.rows("SELECT id FROM users") == []


@pytest.mark.doors(colour="async")
async def test_an_async_generator_is_read_in_chunks(doors: Door) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for i in range(25):
            yield {"name": f"n{i}"}

    async with doors.scope() as session:
        result = await bulk.async_insert(session, User, rows(), chunk=10)
    assert result.inserted == 25
    assert await doors.scalar("SELECT count(*) FROM users") == 25


@pytest.mark.doors(colour="sync")
async def test_an_async_generator_in_a_sync_call_is_refused(doors: Door) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        yield {"name": "n"}

    async with doors.scope() as session:
        with pytest.raises(SyncAsyncMismatch, match="async_ twin"):
            await doors.twin(bulk.insert, bulk.async_insert)(session, User, rows())


async def test_an_empty_input_sends_nothing(doors: Door) -> None:
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sql:
            for fn in (
                doors.twin(bulk.insert, bulk.async_insert),
                doors.twin(bulk.update, bulk.async_update),
                doors.twin(bulk.upsert, bulk.async_upsert),
                doors.twin(bulk.delete, bulk.async_delete),
            ):
                result = await fn(session, User, [])
                assert (result.inserted, result.updated, result.deleted, result.method) == (0, 0, 0, "")
    assert [line for line in sql if line.split()[0] not in {"BEGIN", "COMMIT"}] == []


async def test_rows_with_different_keys_get_their_defaults(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    rows = [
        {"sku": f"s{i}", **({"quantity": i} if i % 2 else {}), **({"state": "old"} if i % 3 else {})}
        for i in range(600)
    ]
    async with doors.scope() as session:
        await insert(session, Item, rows)
    stored = {sku: (q, s) for sku, q, s in await doors.rows("SELECT sku, quantity, state FROM items")}
    assert stored == {f"s{i}": (i if i % 2 else 1, "old" if i % 3 else "new") for i in range(600)}


async def test_an_explicit_none_takes_the_default_unless_nulls_are_asked_for(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    async with doors.scope() as session:
        await insert(session, Item, [{"sku": "a", "quantity": None}])
        with pytest.raises(IntegrityError):
            await insert(session, Item, [{"sku": "b", "quantity": None}], render_nulls=True)
    assert await doors.rows("SELECT sku, quantity FROM items") == [("a", 1)]


async def test_classes_of_several_tables_are_written_by_sqlalchemy(doors: Door) -> None:
    await create(doors)
    insert, update, delete = (
        doors.twin(bulk.insert, bulk.async_insert),
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.delete, bulk.async_delete),
    )
    async with doors.scope() as session:
        result = await insert(
            session, Dog, [{"name": "a"}, {"name": "b", "tricks": 2}, Dog(name="c")], returning=[Dog.id]
        )
        ids = [row.id for row in result.returned]
        assert result.method == "sqlalchemy"
        changed = await update(session, Dog, [{"id": ids[0], "tricks": 9}, {"id": ids[1], "name": "bb"}])
        assert changed.updated == 2
        assert (await delete(session, Dog, [ids[2]])).deleted == 1
    rows = await doors.rows(
        "SELECT a.kind, a.name, d.tricks FROM bulk_animals a JOIN bulk_dogs d ON d.id = a.id ORDER BY a.id"
    )
    assert rows == [("dog", "a", 9), ("dog", "bb", 2)]
    assert await doors.scalar("SELECT count(*) FROM bulk_animals") == 2


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("rows", "position", "said"),
    [
        ([{"name": "a"}, {"nane": "b"}], 1, "did you mean 'name'"),
        ([{"name": "a"}, 5], 1, "of type int"),
        ([{"name": "a"}, ("b",)], 1, "of type tuple"),
        ([{"name": "a", "addresses": []}], 0, "relationship"),
        ([Account(id=1)], 0, "not User"),
    ],
)
async def test_a_row_that_cannot_be_read_names_itself(doors: Door, rows: Any, position: int, said: str) -> None:
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sql, pytest.raises(BulkError, match=said) as caught:
            await doors.twin(bulk.insert, bulk.async_insert)(session, User, rows)
        assert (caught.value.position, caught.value.row) == (position, rows[position])
        assert not [line for line in sql if "INSERT" in line]


async def test_a_row_without_its_key_names_itself(doors: Door) -> None:
    async with doors.scope() as session:
        with pytest.raises(BulkError, match="row 1 has no value for 'sku'") as caught:
            await doors.twin(bulk.insert, bulk.async_insert)(session, Item, [{"sku": "a"}, {"name": "b"}])
        assert caught.value.column == "sku"
        with pytest.raises(BulkError, match="row 0 has no value for 'id'"):
            await doors.twin(bulk.update, bulk.async_update)(session, User, [{"name": "b"}])
        with pytest.raises(BulkError, match="is not a key"):
            await doors.twin(bulk.delete, bulk.async_delete)(session, User, [(1, 2)])


async def test_options_that_cannot_be_honoured_are_refused(doors: Door) -> None:
    upsert, update, insert = (
        doors.twin(bulk.upsert, bulk.async_upsert),
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.insert, bulk.async_insert),
    )
    async with doors.scope() as session:
        with pytest.raises(OptionError, match="not a unique key of users"):
            await upsert(session, User, [{"name": "a", "email": "b"}], match=[User.email])
        with pytest.raises(OptionError, match="did you mean 'email'"):
            await upsert(session, User, [{"name": "a"}], match=["emial"])
        with pytest.raises(OptionError, match="id; name"):
            await upsert(session, User, [{"id": 1, "name": "a"}])
        with pytest.raises(OptionError, match="no version column"):
            await update(session, User, [{"id": 1, "name": "a"}], check=True)
        with pytest.raises(OptionError, match="method='fastest'"):
            await insert(session, User, [{"name": "a"}], method="fastest")
        with pytest.raises(OptionError, match="has no such method"):
            await insert(
                session, User, [{"name": "a"}], method="executemany" if doors.backend == "postgresql" else "copy"
            )
        with pytest.raises(OptionError, match="has no option 'chunks'"):
            await insert(session, User, [{"name": "a"}], chunks=5)
        with pytest.raises(OptionError, match="single dict"):
            await insert(session, User, {"name": "a"})
    assert await names(doors) == []


# What fails in the database


@pytest.mark.parametrize("count", [3, 40, 700])
@pytest.mark.parametrize("configured", [True, False])
async def test_a_failed_call_leaves_nothing_and_loses_nothing(doors: Door, count: int, configured: bool) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    bad = count - 2
    rows = [{"name": f"n{i if i != bad else 0}"} for i in range(count)]
    async with doors.enter((doors.Session if configured else doors.plain_factory())()) as session:
        session.add(User(name="before"))
        with pytest.raises(BulkError) as caught:
            await insert(session, User, iter(rows), chunk=max(2, count // 3))
        assert isinstance(caught.value, IntegrityError)
        assert isinstance(caught.value, SessionKitError)
        assert (caught.value.position, caught.value.row, caught.value.column) == (bad, rows[bad], "name")
        assert caught.value.__cause__ is caught.value.orig
        session.add(User(name="after"))
        await session.commit()
    assert await names(doors) == ["after", "before"]


async def test_a_call_is_undone_with_its_transaction(doors: Door) -> None:
    # On an engine that nobody configured SQLite's SAVEPOINT would be a transaction, and its RELEASE a commit.
    async with doors.session(doors.plain_factory()) as session:
        await doors.twin(bulk.insert, bulk.async_insert)(session, User, [{"name": "a"}])
        await session.rollback()
    assert await names(doors) == []


async def test_collect_loads_the_good_rows_and_returns_the_bad_ones(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    rows: list[Any] = [{"name": f"n{i}"} for i in range(400)]
    rows[17] = {"name": "n3"}
    rows[300] = {"name": None}
    rows[301] = {"nam": 1}
    async with doors.scope() as session:
        result = await insert(session, User, rows, on_error="collect", returning=[User.name])
    assert [rejected.position for rejected in result.rejected] == [17, 300, 301]
    assert [type(rejected.error).__mro__[1] for rejected in result.rejected][:2] == [BulkError, BulkError]
    assert isinstance(result.rejected[1].error, IntegrityError)
    assert result.inserted == 397
    assert [row and row.name for row in result.returned] == [
        None if i in {17, 300, 301} else f"n{i}" for i in range(400)
    ]
    assert len(await names(doors)) == 397


async def test_a_bad_row_costs_round_trips_by_the_logarithm_of_the_chunk(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    rows: list[Any] = [{"name": f"n{i}"} for i in range(1024)]
    rows[700] = {"name": None}
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sql:
            await insert(session, User, rows, on_error="collect", chunk=1024)
    # For each level: the half before, the half that fails, the savepoints around both.
    assert len(sql) < 8 * 12


async def test_an_error_that_is_no_rows_fault_is_not_blamed_on_one(doors: Door) -> None:
    async with doors.scope() as session:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the driver's business
            await doors.twin(bulk.insert, bulk.async_insert)(session, Order, [{"number": "a"}, {"number": "b"}])
        assert not isinstance(caught.value, BulkError)
        assert "bulk_orders" in str(caught.value)


# Versions


@pytest.mark.parametrize("count", [4, 60])
async def test_every_stale_row_is_named_and_nothing_is_written(doors: Door, count: int) -> None:
    await create(doors)
    insert, update = doors.twin(bulk.insert, bulk.async_insert), doors.twin(bulk.update, bulk.async_update)
    async with doors.scope() as session:
        result = await insert(session, Order, [{"number": f"{i}"} for i in range(count)], returning=[Order.id])
        ids = [row.id for row in result.returned]
    await doors.write("UPDATE bulk_orders SET version = 5 WHERE number = '1'")
    await doors.write("DELETE FROM bulk_orders WHERE number = '3'")
    rows = [{"id": key, "version": 1, "state": "paid"} for key in ids]
    async with doors.scope() as session:
        with pytest.raises(VersionConflict) as caught:
            await update(session, Order, iter(rows), chunk=3)
        conflicts = {c.identity: (c.expected, c.current, c.deleted) for c in caught.value.conflicts}
        assert conflicts == {(ids[1],): (1, 5, False), (ids[3],): (1, None, True)}
        assert caught.value.conflicts[0].attempted == {"state": "paid"}
    assert await doors.scalar("SELECT count(*) FROM bulk_orders WHERE state = 'paid'") == 0
    async with doors.scope() as session:
        collected = await update(session, Order, rows, on_error="collect")
        assert [rejected.position for rejected in collected.rejected] == [1, 3]
        assert all(isinstance(rejected.error, VersionConflict) for rejected in collected.rejected)
        assert (collected.updated, collected.checked) == (count - 2, True)
    assert await doors.rows("SELECT DISTINCT version FROM bulk_orders WHERE state = 'paid'") == [(2,)]


async def test_an_update_without_versions_bumps_them_unchecked(doors: Door) -> None:
    await create(doors)
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(
            session, Order, [{"id": 1, "number": "a"}, {"id": 2, "number": "b"}]
        )
        result = await doors.twin(bulk.update, bulk.async_update)(
            session, Order, [{"id": 2, "state": "x"}, {"id": 1, "state": "y"}]
        )
        assert not result.checked
        with pytest.raises(BulkError, match="has no value for 'version'"):
            await doors.twin(bulk.update, bulk.async_update)(session, Order, [{"id": 2, "state": "x"}], check=True)
    assert await doors.rows("SELECT id, state, version FROM bulk_orders ORDER BY id") == [(1, "y", 2), (2, "x", 2)]


@pytest.mark.parametrize("count", [2, 30, 2100])
async def test_a_row_without_a_version_is_counted_on_from_nothing_as_a_flush_does(doors: Door, count: int) -> None:
    await create(doors)
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(session, Draft, [{"id": i, "text": "a"} for i in range(count)])
    for verb in (
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.upsert, bulk.async_upsert),
    ):
        await doors.write("UPDATE bulk_drafts SET version = NULL")
        async with doors.scope() as session:
            await verb(session, Draft, [{"id": i, "text": "b"} for i in range(count)])
        assert await doors.rows("SELECT DISTINCT version FROM bulk_drafts") == [(1,)]


async def test_a_loaded_object_is_updated_by_its_changes_and_checked(doors: Door) -> None:
    await create(doors)
    update = doors.twin(bulk.update, bulk.async_update)
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(session, Order, [{"id": i, "number": f"{i}"} for i in (1, 2)])
    async with doors.scope() as session:
        orders = list((await session.scalars(select(Order).order_by(Order.id))).all())
    orders[0].state = "seen"
    await doors.write("UPDATE bulk_orders SET number = 'other', version = 2 WHERE id = 1")
    async with doors.scope() as session:
        with pytest.raises(VersionConflict):
            await update(session, Order, orders)
    await doors.write("UPDATE bulk_orders SET version = 1 WHERE id = 1")
    async with doors.scope() as session:
        result = await update(session, Order, orders)
    assert (result.updated, result.unchanged) == (1, 1)
    assert await doors.rows("SELECT number, state, version FROM bulk_orders ORDER BY id") == [
        ("other", "seen", 2),
        ("2", "new", 1),
    ]


@pytest.mark.parametrize("count", [2, 30])
async def test_keys_without_a_row_are_an_error_or_ignored(doors: Door, count: int) -> None:
    update, delete = doors.twin(bulk.update, bulk.async_update), doors.twin(bulk.delete, bulk.async_delete)
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(
            session, User, [{"id": i, "name": f"{i}"} for i in range(count)]
        )
        for fn, rows in (
            (update, [{"id": i, "email": "x"} for i in range(count + 1)]),
            (delete, list(range(count + 1))),
        ):
            with pytest.raises(StaleDataError) as caught:
                await fn(session, User, rows)
            assert isinstance(caught.value, BulkError)
            assert caught.value.position == count
        assert (
            await update(session, User, [{"id": i, "email": "x"} for i in range(count + 1)], missing="ignore")
        ).updated == count
        assert (await delete(session, User, range(count + 1), missing="ignore")).deleted == count


async def test_the_clock_is_asked_once_for_each_chunk(doors: Door) -> None:
    await create(doors)
    async with doors.scope() as session:
        rows = [{"id": i, "text": "a"} for i in range(6)]
        await doors.twin(bulk.insert, bulk.async_insert)(session, Note, rows, chunk=3)
    times = [time for (time,) in await doors.rows(select(Note.__mapper__.version_id_col).order_by(Note.id))]
    assert times[0] == times[1] == times[2] < times[3] == times[4] == times[5]


@pytest.mark.parametrize("model", [Note, Token])
@pytest.mark.parametrize("count", [2, 30, 2100])
async def test_times_and_uuids_are_versions_as_well(doors: Door, model: Any, count: int) -> None:
    await create(doors)
    insert, update, upsert = (
        doors.twin(bulk.insert, bulk.async_insert),
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.upsert, bulk.async_upsert),
    )
    version = model.__mapper__.version_id_col.name

    async def versions(session: Any) -> list[Any]:
        return list((await session.scalars(select(getattr(model, version)).order_by(model.id))).all())

    async with doors.scope() as session:
        await insert(session, model, [{"id": i, "text": "a"} for i in range(count)])
        seen = [await versions(session)]
        checked = [{"id": i, "text": "b", version: old} for i, old in enumerate(seen[0])]
        assert (await update(session, model, checked)).checked
        seen.append(await versions(session))
        await update(session, model, [{"id": i, "text": "c"} for i in range(count)])
        seen.append(await versions(session))
        await upsert(session, model, [{"id": i, "text": "d"} for i in range(count)])
        seen.append(await versions(session))
        with pytest.raises(VersionConflict):
            await update(session, model, checked)
    assert all(len(set(of_a_row)) == 4 for of_a_row in zip(*seen, strict=True))


# Duplicates


async def test_duplicates_are_an_error_or_one_of_them_is_taken(doors: Door) -> None:
    upsert = doors.twin(bulk.upsert, bulk.async_upsert)
    rows = [{"name": "a", "email": "1"}, {"name": "b"}, {"name": "a", "email": "2"}]
    async with doors.scope() as session:
        with pytest.raises(BulkError, match="row 2 has the same key as row 0: 'a'"):
            await upsert(session, User, rows)
        result = await upsert(session, User, rows, on_duplicate="last", status=True, returning=[User.email])
        assert result.status == ["unchanged", "inserted", "inserted"]
        assert [row.email for row in result.returned] == ["2", None, "2"]
        await upsert(session, User, rows, on_duplicate="first")
    assert await doors.rows("SELECT name, email FROM users ORDER BY name") == [("a", "1"), ("b", None)]


# Upsert


@pytest.mark.parametrize("count", [3, 40, 2500])
async def test_an_upsert_says_what_became_of_each_row(doors: Door, count: int) -> None:
    await create(doors)
    upsert = doors.twin(bulk.upsert, bulk.async_upsert)
    async with doors.scope() as session:
        await upsert(session, Order, [{"number": f"{i}", "state": "x"} for i in range(0, count, 3)])
        rows = [{"number": f"{i}", "state": "x" if i % 2 else "y"} for i in range(count)]
        result = await upsert(
            session,
            Order,
            rows,
            match=[Order.number],
            when_changed=True,
            status=True,
            returning=[Order.number, Order.version],
        )
    expected = ["inserted" if i % 3 else "unchanged" if i % 2 else "updated" for i in range(count)]
    assert result.status == expected
    assert (result.inserted, result.updated, result.unchanged) == tuple(
        map(expected.count, ("inserted", "updated", "unchanged"))
    )
    assert [tuple(row) for row in result.returned] == [
        (f"{i}", 2 if status == "updated" else 1) for i, status in enumerate(expected)
    ]


async def test_an_upsert_writes_only_what_update_and_where_allow(doors: Door) -> None:
    upsert = doors.twin(bulk.upsert, bulk.async_upsert)
    async with doors.scope() as session:
        await upsert(
            session, Item, [{"sku": "a", "name": "old", "quantity": 5}, {"sku": "b", "name": "old", "quantity": 1}]
        )
        await upsert(
            session,
            Item,
            [{"sku": "a", "name": "new", "quantity": 2}, {"sku": "b", "name": "new", "quantity": 2}],
            update=[Item.quantity],
            where=lambda new: new.quantity > Item.quantity,
        )
    assert await doors.rows("SELECT sku, name, quantity, updated_at IS NULL FROM items ORDER BY sku") == [
        ("a", "old", 5, True),
        ("b", "old", 2, False),
    ]


async def test_a_key_of_several_columns_finds_its_row(doors: Door) -> None:
    await create(doors)
    insert, update, upsert, delete, get = (
        doors.twin(bulk.insert, bulk.async_insert),
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.upsert, bulk.async_upsert),
        doors.twin(bulk.delete, bulk.async_delete),
        doors.twin(bulk.get, bulk.async_get),
    )
    async with doors.scope() as session:
        await insert(session, Line, [{"order_number": "o", "place": i, "article": f"{i}"} for i in range(30)])
        await update(session, Line, [{"order_number": "o", "place": i, "article": f"u{i}"} for i in range(10)])
        await upsert(
            session,
            Line,
            [{"order_number": "o", "place": i, "article": f"p{i}"} for i in range(20, 35)],
            match=[Line.order_number, Line.place],
        )
        await delete(session, Line, [("o", i) for i in range(5)])
        lines = await get(session, Line, [("o", 34), ("o", 0), ("o", 5)])
        assert [line and line.article for line in lines] == ["p34", None, "u5"]
    assert await doors.scalar("SELECT count(*) FROM bulk_lines") == 30


# The session


async def test_objects_of_the_session_are_not_stale_afterwards(doors: Door) -> None:
    update, upsert, delete = (
        doors.twin(bulk.update, bulk.async_update),
        doors.twin(bulk.upsert, bulk.async_upsert),
        doors.twin(bulk.delete, bulk.async_delete),
    )
    async with doors.scope() as session:
        users = [User(name=f"n{i}") for i in range(4)]
        session.add_all(users)
        await session.flush()
        ids = [user.id for user in users]
        await update(session, User, [{"id": ids[0], "email": "u"}])
        await upsert(session, User, [{"name": "n1", "email": "p"}])
        await delete(session, User, [ids[2]])
        assert users[3].email is None  # untouched, and so not even read again
        assert (await session.get(User, ids[0])).email == "u"  # type: ignore[union-attr]
        assert (await session.get(User, ids[1])).email == "p"  # type: ignore[union-attr]
        assert await session.get(User, ids[2]) is None


async def test_what_is_pending_is_flushed_before(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="pending"))
        result = await doors.twin(bulk.upsert, bulk.async_upsert)(
            session, User, [{"name": "pending", "email": "e"}], status=True
        )
        assert result.status == ["updated"]


@pytest.mark.doors(colour="sync")
async def test_a_generator_may_call_bulk_itself(doors: Door) -> None:
    async with doors.scope() as session:

        def rows() -> Any:
            for i in range(3):
                bulk.insert(doors.sync(session), Account, [{"owner": f"{i}"}])
                yield {"name": f"{i}"}

        await doors.twin(bulk.upsert, bulk.async_upsert)(session, User, rows(), chunk=1)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 3
    assert await doors.scalar("SELECT count(*) FROM users") == 3
