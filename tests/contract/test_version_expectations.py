"""What a client saw, what is forced, what the children do: each takes effect in the SQL that reaches the database."""

from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.attributes import flag_modified

from sessionkit.errors import MalformedETag, VersionConflict, VersionError
from sessionkit.version import (
    bump_version,
    etag,
    expect_etag,
    expect_version,
    update_versioned,
    version_of,
)
from tests.contract.test_version_conflicts import fill, plain, read, rival
from tests.contract.versioned import (
    Cat,
    Customer,
    Doc,
    Dog,
    Line,
    Note,
    Order,
    Renamed,
    Stamped,
    Unique,
    shapes,
    table,
    tables,
)
from tests.support.doors import Door
from tests.support.models import User

pytestmark = [pytest.mark.above_drivers, pytest.mark.usefixtures("tables")]
__all__ = ["tables"]


def where(sql: list[str], verb: str) -> str:
    """Return the WHERE of the one statement that begins so."""
    (statement,) = (s for s in sql if s.startswith(verb))
    return statement.partition("WHERE")[2]


# expect_version


async def test_the_version_that_a_client_saw_is_what_the_database_compares(doors: Door) -> None:
    for key, cls in enumerate(shapes(doors), 1):
        await fill(doors, cls(id=key, title="old"))
        async with plain(doors) as session:
            (obj,) = await read(session, cls, key)
            seen = version_of(obj)
        await rival(doors, cls, key, title="theirs")
        async with plain(doors) as session:
            obj = await session.get(cls, key)
            now = version_of(obj)
            expect_version(obj, seen)
            assert version_of(obj) == now  # it tells what was read, still
            obj.title = "mine"
            with doors.statements() as sql, pytest.raises(VersionConflict) as caught:
                await session.commit()
            assert inspect(cls).version_id_col.name in where(sql, f"UPDATE {inspect(cls).version_id_col.table.name}")
        (conflict,) = caught.value.conflicts
        assert (conflict.expected, conflict.current) == (seen, now), cls
        async with plain(doors) as session:
            obj = await session.get(cls, key)
            expect_version(obj, str(version_of(obj)))  # the text of a form's hidden field
            obj.title = "mine"
            await session.commit()
            assert (await session.get(cls, key)).title == "mine"


async def test_a_delete_is_compared_with_what_the_client_saw(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        await session.delete(doc)
        with pytest.raises(VersionConflict):
            await session.commit()
    assert await doors.scalar("SELECT count(*) FROM v_docs") == 1


async def test_an_expectation_is_checked_by_the_database_even_if_nothing_was_changed(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        expect_version(await session.get(Doc, 1), 1)
        with doors.statements() as sql, pytest.raises(VersionConflict):
            await session.commit()
        assert "version_id" in where(sql, "UPDATE")


async def test_an_expectation_that_is_met_writes_nothing_by_itself(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        expect_version(await session.get(Doc, 1), 1)
        with doors.statements() as sql:
            await session.commit()
    assert not [s for s in sql if s.startswith("UPDATE")]


async def test_neither_refresh_nor_a_lock_makes_an_expectation_forgotten(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        await session.refresh(doc, with_for_update=True)
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_an_expectation_holds_for_all_flushes_of_the_transaction(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        for title in ("a", "b", "c"):
            doc.title = title
            await session.flush()
        await session.commit()
        # And ends with it.
        await rival(doors, Doc, 1, title="theirs")
        await session.refresh(doc)
        doc.title = "d"
        await session.commit()
    assert await doors.rows("SELECT title, version_id FROM v_docs") == [("d", 6)]


async def test_an_expectation_outlives_the_savepoint_that_was_rolled_back(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 2)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                doc.title = "undone"
                await session.flush()
                raise LookupError
        await session.refresh(doc)
        doc.title = "mine"
        await session.flush()
        await session.rollback()
        # Nobody has committed anything: what was expected is there, and is expected still after a failed flush.
        doc = await session.get(Doc, 1)
        doc.title = "undone too"
        session.add(User(id=1, name=None))
        with pytest.raises(IntegrityError):
            await session.flush()
        await session.rollback()
        await rival(doors, Doc, 1, title="theirs again")
        doc = await session.get(Doc, 1)
        await session.refresh(doc)
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


@pytest.mark.doors(backend="postgresql")
async def test_a_rival_who_writes_the_number_that_we_had_before_the_savepoint_was_undone_is_found(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                doc.title = "undone"
                await session.flush()
                raise LookupError
        await rival(doors, Doc, 1, title="theirs")
        await session.refresh(doc)
        assert version_of(doc) == 2
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_a_number_that_was_ours_until_the_savepoint_was_undone_is_not_ours_when_other_code_writes_it(
    doors: Door,
) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                doc.title = "undone"
                await session.flush()
                raise LookupError
        await session.execute(text("UPDATE v_docs SET title = 'theirs', version_id = 2"))
        await session.refresh(doc)
        assert version_of(doc) == 2
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_a_savepoint_that_a_failed_flush_undid_made_no_version(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        savepoint = await session.begin_nested()
        doc.title = "undone"
        await session.flush()
        session.add(User(id=1, name=None))
        with pytest.raises(IntegrityError):
            await session.flush()
        await savepoint.rollback()
        await session.execute(text("UPDATE v_docs SET title = 'theirs', version_id = 2"))
        await session.refresh(doc)
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_a_rival_who_writes_the_number_that_we_had_before_the_session_was_closed_is_found(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_version(doc, 1)
        doc.title = "undone"
        await session.flush()
        await session.close()
        await rival(doors, Doc, 1, title="theirs")
        session.add(doc)
        await session.refresh(doc)
        assert version_of(doc) == 2
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_an_expectation_travels_with_a_pickled_object(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        session.expunge(doc)
    doc.title = "mine"
    copy = pickle.loads(pickle.dumps(doc))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        session.add(copy)
        with pytest.raises(VersionConflict):
            await session.commit()
    expect_version(doc, 1)
    copy = pickle.loads(pickle.dumps(doc))
    async with plain(doors) as session:
        session.add(copy)
        await session.refresh(copy)
        copy.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_bad_expectations_are_refused(doors: Door) -> None:
    await fill(doors, Doc(id=1), Unique(id=1), User(id=1, name="ann"))
    async with plain(doors) as session:
        doc, unique, user = await session.get(Doc, 1), await session.get(Unique, 1), await session.get(User, 1)
        refused: list[tuple[Any, Any, str]] = [
            (Doc(id=5), 1, "was never flushed"),
            (user, 1, "an object of User has no version"),
            (object(), 1, "has no version"),
            (doc, "x", "must be a count"),
            (doc, "1_0", "must be a count"),
            (doc, True, "is not a version of a Versioned class"),
            (doc, None, "is not a version of a Versioned class"),
            (doc, uuid.uuid4(), "is not a version of a Versioned class"),
            (unique, "x", "is not a version of a UUIDVersioned class"),
        ]
        for obj, version, message in refused:
            with pytest.raises(VersionError, match=message):
                expect_version(obj, version)
        for fn in (version_of, etag):
            with pytest.raises(VersionError, match="was never flushed"):
                fn(Doc())
        with pytest.raises(VersionError, match="has no version"):
            bump_version(user)


# By hand


async def test_an_older_version_assigned_by_hand_is_refused_and_a_newer_one_is_written(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="a")
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        doc.version_id = 2
        with pytest.raises(VersionError, match=r"is at version 2, and 1 was assigned .* use expect_version\(obj, 1\)"):
            doc.version_id = 1
        with pytest.raises(VersionError):
            doc.version_id = None
        with pytest.raises(VersionError):
            doc.version_id = Doc.version_id + 1
        with pytest.raises(VersionError, match="cannot be deleted"):
            del doc.version_id
        doc.version_id += 5
        doc.title = "mine"
        with doors.statements() as sql:
            await session.commit()
        assert "version_id = " in where(sql, "UPDATE")
    assert await doors.rows("SELECT title, version_id FROM v_docs") == [("mine", 7)]


async def test_any_uuid_assigned_by_hand_is_refused(doors: Door) -> None:
    await fill(doors, Unique(id=1))
    async with plain(doors) as session:
        unique = await session.get(Unique, 1)
        unique.version_id = version_of(unique)
        with pytest.raises(VersionError, match="bump_version"):
            unique.version_id = uuid.uuid4()


async def test_the_version_of_a_new_object_is_the_first_whatever_it_was_given(doors: Door) -> None:
    await fill(doors, Doc(id=1, version_id=77))
    assert await doors.scalar("SELECT version_id FROM v_docs") == 1


async def test_flag_modified_on_the_version_is_refused_where_it_is_called(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        with pytest.raises(VersionError, match=r"would discard the version .* call bump_version\(obj\)"):
            flag_modified(doc, "version_id")
        assert doc not in session.dirty


# bump_version


async def test_a_bump_makes_a_new_version_of_every_kind(doors: Door) -> None:
    for key, cls in enumerate(shapes(doors), 1):
        await fill(doors, cls(id=key))
        async with plain(doors) as session:
            obj = await session.get(cls, key)
            await session.commit()
            before = version_of(obj)
            bump_version(obj)
            bump_version(obj)
            with doors.statements() as sql:
                await session.commit()
            assert len([s for s in sql if s.startswith("UPDATE")]) == 1
            after = version_of(obj)
            assert after == before + 1 if isinstance(obj, (Doc, Renamed)) else after != before, cls
            obj.title = "mine"
            await session.commit()


async def test_a_bump_is_compared_and_found_stale(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        bump_version(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    (conflict,) = caught.value.conflicts
    assert conflict.bumped
    assert conflict.attempted == {}


async def test_a_bump_of_a_new_object_does_nothing(doors: Door) -> None:
    async with plain(doors) as session:
        doc = Doc(id=1)
        bump_version(doc)
        session.add(doc)
        await session.commit()
        assert version_of(doc) == 1


# etag


async def test_an_etag_is_the_version_in_quotes_and_comes_back(doors: Door) -> None:
    for cls in shapes(doors):
        await fill(doors, cls(id=100 + shapes(doors).index(cls)))
        async with plain(doors) as session:
            obj = await session.get(cls, 100 + shapes(doors).index(cls))
            tag = etag(obj)
            assert tag.startswith('"')
            assert tag.endswith('"')
            expect_etag(obj, tag)
            obj.title = "new"
            await session.commit()
            assert etag(obj) != tag
            with pytest.raises(VersionConflict):
                expect_etag(obj, tag)
                obj.title = "newer"
                await session.commit()


@pytest.mark.parametrize("header", ['"2"', '"1", "2"', 'W/"2", "2"', ' "a,b" ,, "2" , ', "*", '"2",'])
async def test_a_header_that_names_the_version_lets_it_be_written(doors: Door, header: str) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="a")
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        expect_etag(doc, header)
        doc.title = "mine"
        await session.commit()
    assert await doors.scalar("SELECT title FROM v_docs") == "mine"


@pytest.mark.parametrize("header", ['"1"', '"3"', 'W/"2"', '"02"', '"x"', '"1", "3"', 'W/"2", "1"', '"2 "', '""'])
async def test_a_header_that_does_not_name_the_version_is_a_conflict(doors: Door, header: str) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="a")
    if header == '"2 "':
        header = '"2!"'  # a space is no etagc
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        with pytest.raises(VersionConflict) as caught:
            expect_etag(doc, header)
            doc.title = "mine"
            await session.commit()
        await session.rollback()
    (conflict,) = caught.value.conflicts
    assert (conflict.entity, conflict.identity) == (Doc, (1,))
    # A tag that is a version is sent to the database, which says no more than that no row has it.
    sent = {'"1"': 1, '"3"': 3, 'W/"2", "1"': 1}
    if header in sent:
        assert conflict.expected == sent[header]
    else:
        assert (conflict.expected, conflict.current, conflict.deleted) == (
            [1, 3] if "," in header else header,
            2,
            False,
        )
        assert "was changed by somebody else" in str(conflict)
    assert await doors.scalar("SELECT title FROM v_docs") == "a"


@pytest.mark.parametrize(
    "header", ["", "2", '"2', "'2'", '"2" "3"', '"2";"3"', 'w/"2"', "*, *", '*, "2"', ",", '"2 "', None]
)
async def test_a_header_that_is_none_is_malformed(doors: Door, header: Any) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        with pytest.raises(MalformedETag, match="If-Match is") as caught:
            expect_etag(doc, header)
        assert isinstance(caught.value, ValueError)


# __version_parents__


async def aggregate(doors: Door) -> None:
    order = Order(id=1, lines=[Line(id=1), Line(id=2)], notes=[Note(id=1)])
    await fill(doors, Customer(id=1, orders=[order, Order(id=2)]), Customer(id=2))


async def versions(doors: Door) -> dict[str, int]:
    rows = await doors.rows(
        "SELECT 'c' || id, version_id FROM v_customers UNION ALL SELECT 'o' || id, version_id FROM v_orders"
    )
    return {str(name): int(version) for name, version in rows}


async def test_a_change_of_a_child_bumps_each_level_above_it_once(doors: Door) -> None:
    await aggregate(doors)
    async with plain(doors) as session:
        lines = (await session.scalars(select(Line))).all()
        for line in lines:
            line.amount = 9
        with doors.statements() as sql:
            await session.commit()
    assert len([s for s in sql if s.startswith("UPDATE v_orders")]) == 1
    assert len([s for s in sql if s.startswith("UPDATE v_customers")]) == 1
    assert await versions(doors) == {"c1": 2, "o1": 2, "o2": 1, "c2": 1}


@pytest.mark.parametrize(
    "how", ["add", "collection", "remove", "delete", "key", "move", "note", "note away", "new key"]
)
async def test_every_way_to_change_the_children_bumps_the_root(doors: Door, how: str) -> None:
    await aggregate(doors)
    expected = {"c1": 2, "o1": 2, "o2": 1, "c2": 1}
    async with plain(doors) as session:
        order = await session.get(Order, 1)
        await session.refresh(order, ["lines", "notes"])
        line = await session.get(Line, 1)
        if how == "add":
            session.add(Line(id=3, order=order))
        elif how == "collection":
            order.lines.append(Line(id=3))
        elif how == "remove":
            order.lines.remove(line)
        elif how == "delete":
            await session.delete(line)
        elif how == "key":
            line.order_id = 2
            expected["o2"] = 2
        elif how == "move":
            line.order = await session.get(Order, 2)
            expected["o2"] = 2
        elif how == "note":
            order.notes.append(Note(id=2))
        elif how == "note away":
            order.notes.clear()
        else:
            session.add(Line(id=3, order_id=1))
        await session.commit()
    assert await versions(doors) == expected


async def test_what_changes_nothing_bumps_nothing(doors: Door) -> None:
    await aggregate(doors)
    async with plain(doors) as session:
        line = await session.get(Line, 1)
        line.amount = line.amount
        order = await session.get(Order, 1)
        await session.refresh(order, ["lines"])
        await session.commit()
    assert await versions(doors) == {"c1": 1, "o1": 1, "o2": 1, "c2": 1}


async def test_two_editors_of_two_lines_of_one_order_are_in_conflict(doors: Door) -> None:
    await aggregate(doors)
    async with plain(doors) as session:
        order, line = await session.get(Order, 1), await session.get(Line, 1)
        await session.commit()
        await rival(doors, Line, 2, amount=5)
        line.amount = 7
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        assert order is not None
    assert {(c.entity, c.identity) for c in caught.value.conflicts} >= {(Order, (1,))}
    assert "Line 1 (changed)" in caught.value.conflicts.others
    assert await doors.rows("SELECT amount FROM v_lines ORDER BY id") == [(1,), (5,)]


async def test_the_version_of_the_root_that_a_client_saw_guards_its_children(doors: Door) -> None:
    await aggregate(doors)
    await rival(doors, Line, 2, amount=5)
    async with plain(doors) as session:
        line = await session.get(Line, 1)
        order = await session.get(Order, 1)
        expect_version(order, 1)
        line.amount = 7
        with pytest.raises(VersionConflict):
            await session.commit()


async def test_deleting_the_whole_aggregate_is_no_conflict_with_itself(doors: Door) -> None:
    await aggregate(doors)
    async with plain(doors) as session:
        customer = await session.get(Customer, 1)
        await session.delete(customer)
        await session.commit()
    assert await versions(doors) == {"c2": 1}


async def test_what_a_before_flush_listener_changes_bumps_the_root_too(doors: Door) -> None:
    await aggregate(doors)
    async with plain(doors) as session:
        line = await session.get(Line, 1)

        @event.listens_for(doors.sync(session), "before_flush")
        def audit(_session: Any, _flush: Any, _instances: Any) -> None:
            line.amount = 3

        session.add(User(name="ann"))
        await session.commit()
    assert (await versions(doors))["o1"] == 2


# update_versioned


async def test_a_set_based_update_bumps_every_kind(doors: Door) -> None:
    for key, cls in enumerate(shapes(doors), 1):
        if cls in {Dog, Cat} or cls.__name__ in {"StampedDog", "XminDog"}:
            continue
        await fill(doors, cls(id=key, title="a"), cls(id=key + 100, title="b"))
        async with plain(doors) as session:
            one, other = await session.get(cls, key), await session.get(cls, key + 100)
            before = version_of(one), version_of(other)
            await session.execute(update_versioned(update(cls).where(cls.title == "a").values(title="c")))
            await session.refresh(one)
            await session.refresh(other)
            assert version_of(one) != before[0], cls
            assert version_of(other) == before[1], cls
            if cls is Stamped:
                assert version_of(one) > before[0]
            one.title = "d"
            await session.commit()


async def test_an_object_in_memory_follows_a_set_based_update(doors: Door) -> None:
    await fill(doors, Doc(id=1, title="a"), Unique(id=1, title="a"), Stamped(id=1, title="a"))
    async with plain(doors) as session:
        for cls in (Doc, Unique, Stamped):
            obj = await session.get(cls, 1)
            await session.execute(update_versioned(update(cls).where(cls.title == "a").values(title="b")))
            obj.title = "c"
            await session.flush()
        await session.commit()


@pytest.mark.doors("sqlite-sync")
@pytest.mark.usefixtures("doors")
def test_update_versioned_refuses_what_it_cannot_do() -> None:
    refused: list[tuple[Any, str]] = [
        (update(User).values(name="x"), "takes an update"),
        (update(table(User)).values(name="x"), "takes an update"),
        (select(Doc), "takes an update"),
        (update(Dog).values(bark="x"), "an UPDATE of v_dogs cannot set"),
        (update(Doc).values(version_id=3), "sets v_docs.version_id itself"),
    ]
    for statement, message in refused:
        with pytest.raises(VersionError, match=message):
            update_versioned(statement)


# The clock


async def test_a_timestamp_is_the_servers_and_in_utc(doors: Door) -> None:
    async with plain(doors) as session:
        stamped = Stamped(id=1)
        session.add(stamped)
        await session.flush()
        now = (await session.execute(select(func.current_timestamp()))).scalar_one()
        before = now if now.tzinfo else now.replace(tzinfo=UTC)
        await session.commit()
        assert stamped.updated_at.tzinfo is UTC
        assert abs(stamped.updated_at - before) < timedelta(seconds=5)
        loaded = await session.get(Stamped, 1, populate_existing=True)
        assert loaded.updated_at.tzinfo is UTC
        assert loaded.updated_at.utcoffset() == timedelta(0)


async def test_the_server_is_asked_once_for_a_flush(doors: Door) -> None:
    async with plain(doors) as session:
        session.add_all([Stamped(id=n) for n in range(1, 6)])
        with doors.statements() as sql:
            await session.commit()
    asked = [s for s in sql if "clock_timestamp" in s]
    assert len(asked) == (1 if doors.backend == "postgresql" else 0)


async def test_a_timestamp_increases_even_if_the_clock_goes_back(doors: Door) -> None:
    """The row is from a time to come, where every microsecond counts."""
    future = datetime(2999, 12, 31, 23, 59, 58, 999_997, tzinfo=UTC)
    await doors.write(insert(table(Stamped)).values(id=1, title="", updated_at=future))
    seen = [future]
    async with plain(doors) as session:
        for n in range(3):
            stamped = await session.get(Stamped, 1)
            stamped.title = f"flush {n}"
            await session.commit()
            seen.append(stamped.updated_at)
            await session.execute(update_versioned(update(Stamped).values(title=f"statement {n}")))
            await session.commit()
            await session.refresh(stamped)
            seen.append(stamped.updated_at)
            await session.commit()
    assert seen == [future + timedelta(microseconds=n) for n in range(7)]


async def test_the_sql_of_the_next_timestamp_carries_into_the_second_and_keeps_its_digits(doors: Door) -> None:
    for moment in (
        datetime(2999, 1, 1, 0, 0, 0, 9, tzinfo=UTC),
        datetime(2999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ):
        await doors.write(text("DELETE FROM v_stamped"))
        await doors.write(insert(table(Stamped)).values(id=1, title="", updated_at=moment))
        async with plain(doors) as session:
            await session.execute(update_versioned(update(Stamped).values(title="x")))
            await session.commit()
            stamped = await session.get(Stamped, 1)
            assert stamped.updated_at == moment + timedelta(microseconds=1)


async def test_a_timestamp_moves_on_from_the_past_with_the_clock(doors: Door) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    await doors.write(insert(table(Stamped)).values(id=1, title="", updated_at=past))
    async with plain(doors) as session:
        await session.execute(update_versioned(update(Stamped).values(title="x")))
        await session.commit()
        stamped = await session.get(Stamped, 1)
        assert stamped.updated_at.year > 2020
