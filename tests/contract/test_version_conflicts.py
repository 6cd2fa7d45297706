"""A stale row is found, whoever writes it, and the error tells which it was."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from sqlalchemy import insert, inspect, select, update
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import defer, load_only
from sqlalchemy.orm.exc import StaleDataError

from sessionkit.errors import SessionKitError, VersionConflict, VersionError
from sessionkit.version import version_of
from tests.contract.versioned import (
    Base,
    Cat,
    Doc,
    Dog,
    Order,
    Page,
    Pair,
    Stamped,
    Unique,
    shapes,
    table,
    tables,
)
from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.usefixtures("tables")]
__all__ = ["tables"]


async def fill(doors: Door, *objects: Any) -> None:
    async with doors.session() as session:
        session.add_all(objects)
        await session.commit()


async def rival(doors: Door, cls: Any, identity: Any, **values: Any) -> None:
    """Change a row from elsewhere."""
    async with doors.session() as session:
        obj = await session.get(cls, identity)
        for key, value in values.items():
            setattr(obj, key, value)
        await session.commit()


async def rival_deletes(doors: Door, cls: Any, identity: Any) -> None:
    async with doors.session() as session:
        await session.delete(await session.get(cls, identity))
        await session.commit()


def plain(doors: Door) -> Any:
    """A session of SQLAlchemy's own, which keeps what it has read."""
    return doors.session(doors.plain_factory(expire_on_commit=False))


async def read(session: Any, cls: Any, *identities: Any) -> list[Any]:
    """Read objects, and end the transaction so that a rival can write (SQLite) and is seen (PostgreSQL)."""
    objects = [await session.get(cls, identity) for identity in identities]
    await session.commit()
    return objects


async def test_every_shape_of_class_is_versioned_and_finds_a_lost_update(doors: Door) -> None:
    for key, cls in enumerate(shapes(doors), 1):  # subclasses share their keys
        await fill(doors, cls(id=key, title="old"))
        async with plain(doors) as session:
            (obj,) = await read(session, cls, key)
            before = version_of(obj)
            assert before is not None, cls
            obj.title = "first"
            await session.commit()
            first = version_of(obj)
            assert first != before, cls
            await rival(doors, cls, key, title="theirs")
            obj.title = "second"
            with pytest.raises(VersionConflict) as caught:
                await session.commit()
        (conflict,) = caught.value.conflicts
        assert (conflict.entity, conflict.identity, conflict.expected) == (cls, (key,), first)
        assert conflict.current not in {None, first}
        assert conflict.deleted is False
        assert conflict.attempted == {"title": "second"}
        assert conflict.original["title"] == "first"
        assert conflict.database is None
        async with plain(doors) as session:
            assert (await session.get(cls, key)).title == "theirs"


async def test_the_where_holds_the_version_that_was_read_and_the_set_the_next(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        doc.title = "new"
        with doors.statements() as sql:
            await session.commit()
        (statement,) = (s for s in sql if s.startswith("UPDATE"))
        assert "version_id=" in statement.partition("WHERE")[0]
        assert "v_docs.version_id = " in statement.partition("WHERE")[2]
        await session.delete(doc)
        with doors.statements() as sql:
            await session.commit()
        (statement,) = (s for s in sql if s.startswith("DELETE"))
        assert "v_docs.version_id = " in statement


async def test_a_conflict_is_a_stale_data_error_and_one_of_ours(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        doc.title = "mine"
        with pytest.raises(StaleDataError) as caught:
            await session.flush()
        assert isinstance(caught.value, VersionConflict)
        assert isinstance(caught.value, SessionKitError)
        assert isinstance(caught.value.__cause__, StaleDataError)
        assert "Doc 1 was changed by somebody else: version 1 was expected, 2 found" in str(caught.value)


async def test_after_a_failed_flush_the_session_wants_a_rollback_and_then_works(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.flush()
        assert not session.is_active
        with pytest.raises(PendingRollbackError):
            await session.execute(select(Doc))
        await session.rollback()
        await session.refresh(doc)
        assert doc.title == "theirs"
        doc.title = "mine"
        await session.commit()
    assert await doors.rows("SELECT title, version_id FROM v_docs") == [("mine", 3)]


async def test_in_a_savepoint_only_the_savepoint_is_undone(doors: Door) -> None:
    await fill(doors, Doc(id=1), Doc(id=2))
    async with plain(doors) as session:
        one, two = await read(session, Doc, 1, 2)
        await rival(doors, Doc, 1, title="theirs")
        two.title = "kept"
        await session.flush()
        with pytest.raises(VersionConflict):
            async with session.begin_nested():
                one.title = "mine"
        await session.commit()
    assert await doors.rows("SELECT title FROM v_docs ORDER BY id") == [("theirs",), ("kept",)]


async def test_all_stale_rows_of_a_flush_are_listed(doors: Door) -> None:
    """Of five changed rows of one class two are stale, of the other class one; a rival's version equals our next."""
    await fill(doors, *(Doc(id=n) for n in range(1, 6)), *(Unique(id=n) for n in range(1, 4)))
    async with plain(doors) as session:
        docs = await read(session, Doc, 1, 2, 3, 4, 5)
        uniques = await read(session, Unique, 1, 2, 3)
        await rival(doors, Doc, 2, title="theirs")
        await rival_deletes(doors, Doc, 4)
        await rival(doors, Unique, 3, title="theirs")
        for obj in (*docs, *uniques):
            obj.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    conflicts = {(c.entity, c.identity[0]): c for c in caught.value.conflicts}
    assert conflicts.keys() == {(Doc, 2), (Doc, 4), (Unique, 3)}
    assert (conflicts[Doc, 2].current, conflicts[Doc, 2].deleted) == (2, False)
    assert (conflicts[Doc, 4].current, conflicts[Doc, 4].deleted) == (None, True)
    assert "and 2 more" in str(caught.value)


async def test_a_row_that_a_rival_deleted_is_told_from_one_that_was_changed(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival_deletes(doors, Doc, 1)
        doc.title = "mine"
        with pytest.raises(VersionConflict, match="Doc 1 was deleted by somebody else") as caught:
            await session.commit()
    (conflict,) = caught.value.conflicts
    assert conflict.deleted is True
    assert conflict.current is None


async def test_a_stale_delete_is_a_conflict_that_attempted_nothing_to_be_written(doors: Door) -> None:
    await fill(doors, Doc(id=1, title="old"))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        await session.delete(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    (conflict,) = caught.value.conflicts
    assert conflict.attempted is None
    assert conflict.original["title"] == "old"
    assert await doors.rows("SELECT title FROM v_docs") == [("theirs",)]


async def test_of_many_deletes_those_that_are_stale_are_listed(doors: Door) -> None:
    await fill(doors, *(Doc(id=n) for n in range(1, 5)))
    async with plain(doors) as session:
        docs = await read(session, Doc, 1, 2, 3, 4)
        await rival(doors, Doc, 2, title="theirs")
        for doc in docs:
            await session.delete(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    assert [(c.identity, c.current, c.deleted) for c in caught.value.conflicts] == [((2,), 2, False)]


async def test_of_many_deletes_those_that_a_rival_deleted_are_told_or_said_to_be_unknown(doors: Door) -> None:
    await fill(doors, *(Doc(id=n) for n in range(1, 4)))
    async with plain(doors) as session:
        docs = await read(session, Doc, 1, 2, 3)
        await rival_deletes(doors, Doc, 2)
        for doc in docs:
            await session.delete(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        await session.rollback()
        told = {c.identity: c.deleted for c in caught.value.conflicts}
        assert told in ({(2,): True}, {(1,): None, (2,): None, (3,): None})
        loaded = await doors.twin(caught.value.load, caught.value.async_load)(session)
    assert [c.identity for c in loaded if c.deleted] == [(2,)]


async def test_a_composite_key_is_told_as_a_tuple(doors: Door) -> None:
    await fill(doors, *(Pair(left=n, right=n + 1) for n in (1, 2)))
    async with plain(doors) as session:
        pairs = await read(session, Pair, (1, 2), (2, 3))
        await rival(doors, Pair, (1, 2), title="theirs")
        await rival(doors, Pair, (2, 3), title="theirs")
        for pair in pairs:
            pair.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        await session.rollback()
        loaded = await doors.twin(caught.value.load, caught.value.async_load)(session)
    assert {c.identity: c.database["title"] for c in loaded if c.database} == {(1, 2): "theirs", (2, 3): "theirs"}


async def test_load_reads_all_rows_of_a_class_with_one_select_and_touches_no_object(doors: Door) -> None:
    await fill(doors, Doc(id=1), Doc(id=2))
    async with plain(doors) as session:
        docs = await read(session, Doc, 1, 2)
        await rival(doors, Doc, 1, title="theirs", body="new")
        await rival_deletes(doors, Doc, 2)
        for doc in docs:
            doc.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    async with plain(doors) as session:
        mine = await session.get(Doc, 1)
        mine.title = "in the works"
        with doors.statements() as sql:
            loaded = await doors.twin(caught.value.load, caught.value.async_load)(session)
        assert [s.split()[0] for s in sql if not s.startswith("BEGIN")] == ["SELECT"]
        assert mine in session.dirty
        assert mine.title == "in the works"
        await session.rollback()
    assert caught.value.conflicts == loaded
    changed, deleted = loaded
    assert changed.current == 2
    assert changed.database == {"id": 1, "title": "theirs", "body": "new", "pages": 0, "version_id": 2}
    assert (deleted.deleted, deleted.database) == (True, None)


async def test_a_conflict_can_be_pickled(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        doc.title = "mine"
        session.add(Doc(id=7))
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.conflicts == caught.value.conflicts
    assert copy.conflicts.others == caught.value.conflicts.others == ("a new Doc",)
    assert copy.conflicts[0].mapper is inspect(Doc)


async def test_a_subclass_is_named_by_its_own_mapper(doors: Door) -> None:
    await fill(doors, Dog(id=1), Cat(id=2))
    async with plain(doors) as session:
        animals = [*await read(session, Dog, 1), *await read(session, Cat, 2)]
        await rival(doors, Dog, 1, bark="theirs")
        await rival(doors, Cat, 2, purr="theirs")
        animals[0].bark = animals[1].purr = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        await session.rollback()
        loaded = await doors.twin(caught.value.load, caught.value.async_load)(session)
    assert {c.entity: c.attempted for c in loaded} == {Dog: {"bark": "mine"}, Cat: {"purr": "mine"}}
    assert loaded[0].database is not None
    assert loaded[0].database["bark"] == "theirs"


async def test_a_stale_row_of_a_class_without_a_version_stays_what_sqlalchemy_says_of_it(doors: Door) -> None:
    from tests.support.models import Account

    await fill(doors, Account(id=1), Doc(id=1))
    async with plain(doors) as session:
        (account,), (doc,) = await read(session, Account, 1), await read(session, Doc, 1)
        await doors.write("DELETE FROM accounts")
        account.balance = 5
        doc.title = "mine"
        with pytest.raises(StaleDataError) as caught:
            await session.commit()
    assert not isinstance(caught.value, VersionConflict)


# Bulk


@pytest.mark.parametrize("cls", [Doc, Stamped, Unique])
async def test_a_bulk_update_by_key_lists_its_stale_rows(doors: Door, cls: Any) -> None:
    await fill(doors, *(cls(id=n) for n in (1, 2, 3)))
    async with plain(doors) as session:
        objects = await read(session, cls, 1, 2, 3)
        key = inspect(cls).version_id_col.key
        rows = [{"id": obj.id, "title": "mine", key: version_of(obj)} for obj in objects]
        await rival(doors, cls, 1, title="theirs")
        await rival_deletes(doors, cls, 3)
        with pytest.raises(VersionConflict) as caught:
            await session.execute(update(cls), rows)
        assert session.is_active
        assert session.in_transaction()
        await session.rollback()
    told = {c.identity: (c.expected, c.deleted, c.attempted) for c in caught.value.conflicts}
    assert told == {
        (1,): (rows[0][key], False, {"title": "mine"}),
        (3,): (rows[2][key], True, {"title": "mine"}),
    }


async def test_an_object_in_memory_can_be_written_after_a_bulk_update(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        await session.execute(update(Doc), [{"id": 1, "title": "bulk", "version_id": 1}])
        doc.body = "more"
        await session.commit()
    assert await doors.rows("SELECT title, body, version_id FROM v_docs") == [("bulk", "more", 3)]


async def test_a_bulk_update_without_the_version_says_that_it_was_not_checked(doors: Door) -> None:
    await fill(doors, Doc(id=1), Doc(id=2))
    async with plain(doors) as session:
        rows = [{"id": 1, "title": "a", "version_id": 1}, {"id": 2, "title": "b"}]
        with (
            doors.statements() as sql,
            pytest.raises(VersionError, match=r"row 1 .* has no 'version_id', so nothing was checked"),
        ):
            await session.execute(update(Doc), rows)
        assert not [s for s in sql if s.startswith("UPDATE")]


async def test_bulk_inserts_and_core_inserts_give_the_first_version(doors: Door) -> None:
    async with plain(doors) as session:
        for cls in (Doc, Stamped, Unique):
            await session.execute(insert(cls), [{"id": 1, "title": "a"}, {"id": 2, "title": "b"}])
            await session.execute(insert(cls).values(id=3, title="c"))
            await session.execute(insert(table(cls)).values(id=4, title="d"))
        await session.commit()
        for cls in (Doc, Stamped, Unique):
            objects = (await session.scalars(select(cls))).all()
            assert len(objects) == 4
            assert all(version_of(obj) is not None for obj in objects)
            for obj in objects:
                obj.title = "next"
        await session.commit()


# Refused


async def test_a_driver_that_counts_no_rows_is_refused(doors: Door) -> None:
    await fill(doors, Doc(id=1), Doc(id=2))
    engine = doors.make_engine()
    doors.sync_engine_of(engine).dialect.supports_sane_rowcount = False
    async with doors.session(doors.plain_factory(engine)) as session:
        (await session.get_one(Doc, 1)).title = "mine"
        with pytest.raises(VersionError, match="does not report how many rows"):
            await session.flush()
        await session.rollback()
        await session.delete(await session.get(Doc, 2))
        with pytest.raises(VersionError, match="does not report how many rows"):
            await session.flush()
        await session.rollback()
        with pytest.raises(VersionError, match="does not report how many rows"):
            await session.execute(update(Doc), [{"id": 1, "version_id": 1, "title": "x"}])


async def test_a_row_without_a_version_is_refused_with_the_migration_to_run(doors: Door) -> None:
    await doors.write("DROP TABLE v_docs")
    await doors.write(
        "CREATE TABLE v_docs"
        " (id INTEGER PRIMARY KEY, title VARCHAR(50), body VARCHAR(200), pages INTEGER, version_id INTEGER)"
    )
    await doors.write("INSERT INTO v_docs (id, title) VALUES (1, 'old')")
    migration = r"UPDATE v_docs SET version_id = 1 WHERE version_id IS NULL"
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        doc.title = "mine"
        with pytest.raises(VersionError, match=f"Doc 1 has NULL in its version column.*{migration}"):
            await session.flush()
        await session.rollback()
        await session.delete(await session.get(Doc, 1))
        with pytest.raises(VersionError, match=migration):
            await session.flush()
        await session.rollback()
    await doors.write(migration)
    await rival(doors, Doc, 1, title="mine")
    assert await doors.rows("SELECT title, version_id FROM v_docs") == [("mine", 2)]


@pytest.mark.parametrize("option", [load_only(Doc.title), defer(Doc.version_id)])
async def test_an_object_that_was_read_without_its_version_is_not_written(doors: Door, option: Any) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        doc = (await session.scalars(select(Doc).options(option))).one()
        await session.commit()
        await rival(doors, Doc, 1, title="theirs")
        doc.title = "mine"
        with pytest.raises(VersionError, match="was read without 'version_id'"):
            await session.commit()
    assert await doors.rows("SELECT title FROM v_docs") == [("theirs",)]


@pytest.mark.doors(backend="sqlite")
async def test_xmin_is_refused_on_sqlite_before_anything_is_sent(doors: Door) -> None:
    async with plain(doors) as session:
        for statement in (
            select(Page),
            insert(Page).values(title="x"),
            update(Page).where(Page.version_id == 3).values(title="x"),
        ):
            if statement.is_select or statement.is_update:
                with doors.statements() as sql, pytest.raises(VersionError, match="XminVersioned was used on sqlite"):
                    await session.execute(statement)
                assert not [s for s in sql if not s.startswith("BEGIN")]
        session.add(Page(id=1))
        with pytest.raises(VersionError, match="XminVersioned was used on sqlite"):
            await session.flush()
        await session.rollback()


@pytest.mark.doors(backend="postgresql")
async def test_xmin_is_compared_beyond_two_billion(doors: Door) -> None:
    await fill(doors, Page(id=1))
    async with plain(doors) as session:
        (row,) = (await session.execute(select(Page.id, Page.version_id).where(Page.version_id != 3_000_000_000))).all()
        assert isinstance(row.version_id, int)


@pytest.mark.doors(backend="postgresql")
async def test_xmin_adds_no_column(doors: Door) -> None:
    columns = await doors.rows("SELECT column_name FROM information_schema.columns WHERE table_name = 'v_pages'")
    assert {name for (name,) in columns} == {"id", "title"}


@pytest.mark.doors(backend="postgresql")
async def test_xmin_cannot_be_bulk_updated_by_key(doors: Door) -> None:
    await fill(doors, Page(id=1))
    async with plain(doors) as session:
        with pytest.raises(VersionError, match="system column"):
            await session.execute(update(Page), [{"id": 1, "title": "x", "version_id": 5}])


async def test_nothing_of_this_is_in_the_way_of_classes_without_a_version(doors: Door) -> None:
    from tests.support.models import User

    async with plain(doors) as session:
        session.add(User(id=1, name="ann"))
        await session.commit()
        await session.execute(update(User), [{"id": 1, "email": "x"}])
        await session.execute(update(User).values(email="y"))
        await session.commit()
    assert await doors.rows("SELECT email FROM users") == [("y",)]
    assert {Order.__tablename__, Doc.__tablename__} <= set(Base.metadata.tables)
