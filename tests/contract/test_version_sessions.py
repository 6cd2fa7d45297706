"""Versions in the sessions that people have: sessionkit's, scoped ones, merge, locks; and the old recipe."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Column, DateTime, Integer, String, orm, select, update
from sqlalchemy.orm import declarative_base, make_transient
from sqlalchemy.orm.exc import StaleDataError

from sessionkit.errors import VersionConflict, VersionError
from sessionkit.version import VersionAware, Versioned, expect_version, version_of
from tests.contract.test_version_conflicts import fill, plain, read, rival, rival_deletes
from tests.contract.versioned import Doc, Stamped, Unique, tables
from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.usefixtures("tables")]
__all__ = ["tables"]


class Aware(VersionAware, orm.Session):
    """What sessionkit's Session inherits."""


def aware(doors: Door) -> Any:
    """Open a session with the methods of ours around get, merge and the legacy bulk calls."""
    if doors.colour == "sync":
        return doors.session(doors.plain_factory(class_=Aware, expire_on_commit=False))
    return doors.session(doors.plain_factory(sync_session_class=Aware, expire_on_commit=False))


async def run_sync(session: Any, fn: Any) -> Any:
    """Call a method that an AsyncSession does not have."""
    return await session.run_sync(fn)


async def test_a_locking_get_of_an_older_object_is_a_conflict(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with aware(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        with pytest.raises(VersionConflict) as caught:
            await session.get(Doc, 1, with_for_update=True)
        (conflict,) = caught.value.conflicts
        assert (conflict.identity, conflict.expected, conflict.current) == ((1,), 1, 2)
        await session.rollback()
        await session.refresh(doc, with_for_update=True)
        doc.title = "mine"
        await session.commit()


async def test_a_locking_select_does_not_refresh_and_the_flush_finds_that(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        (locked,) = (await session.scalars(select(Doc).with_for_update())).all()
        assert locked is doc
        doc.title = "mine"
        with pytest.raises(VersionConflict):
            await session.commit()
        await session.rollback()
        fresh = select(Doc).with_for_update().execution_options(populate_existing=True)
        (await session.scalars(fresh)).one().title = "mine"
        await session.commit()


@pytest.mark.parametrize("state", ["absent", "loaded", "expired"])
async def test_merging_an_older_object_is_a_conflict(doors: Door, state: str) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
    copy = pickle.loads(pickle.dumps(doc))
    await rival(doors, Doc, 1, title="theirs")
    copy.title = "mine"
    async with aware(doors) as session:
        here = None if state == "absent" else await session.get(Doc, 1)
        if state == "expired":
            session.expire(here)
        with pytest.raises(VersionConflict) as caught:
            await session.merge(copy)
        (conflict,) = caught.value.conflicts
        assert (conflict.identity, conflict.expected, conflict.current) == ((1,), 1, 2)
        await session.rollback()


async def test_merging_the_present_version_writes_it_and_is_checked(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
    doc.title = "mine"
    async with aware(doors) as session:
        merged = await session.merge(doc)
        await session.commit()
        assert version_of(merged) == 2
    async with aware(doors) as session:
        new = await session.merge(Doc(id=7, title="new"))
        await session.commit()
        assert version_of(new) == 1


@pytest.mark.parametrize("method", ["bulk_update_mappings", "bulk_save_objects"])
async def test_the_legacy_bulk_methods_raise_conflicts_too(doors: Door, method: str) -> None:
    await fill(doors, *(Doc(id=n) for n in (1, 2, 3)))
    async with aware(doors) as session:
        docs = await read(session, Doc, 1, 2, 3)
        await rival(doors, Doc, 2, title="theirs")
        for doc in docs:
            session.expunge(doc)
            doc.title = "mine"
        rows = [{"id": doc.id, "title": "mine", "version_id": version_of(doc)} for doc in docs]
        with pytest.raises(VersionConflict) as caught:
            if method == "bulk_save_objects":
                await run_sync(session, lambda s: s.bulk_save_objects(docs))
            else:
                await run_sync(session, lambda s: s.bulk_update_mappings(Doc, rows))
        await session.rollback()
    assert [(c.identity, c.current) for c in caught.value.conflicts] == [((2,), 2)]
    assert caught.value.conflicts[0].attempted is not None
    assert caught.value.conflicts[0].attempted["title"] == "mine"


async def test_the_legacy_bulk_methods_have_the_servers_clock(doors: Door) -> None:
    async with aware(doors) as session:
        await run_sync(session, lambda s: s.bulk_save_objects([Stamped(id=1), Doc(id=1)]))
        await run_sync(session, lambda s: s.bulk_insert_mappings(Stamped, [{"id": 2, "title": ""}]))
        await session.commit()
        one = await session.get(Stamped, 1)
        await run_sync(
            session,
            lambda s: s.bulk_update_mappings(Stamped, [{"id": 1, "title": "x", "updated_at": version_of(one)}]),
        )
        await session.commit()
        await session.refresh(one)
        assert one.title == "x"
    async with plain(doors) as session:
        with pytest.raises(VersionError, match="takes its time from the server's clock"):
            await run_sync(session, lambda s: s.bulk_insert_mappings(Stamped, [{"id": 3, "title": ""}]))
        await session.rollback()


async def test_a_bulk_method_of_a_plain_session_is_stopped_by_sqlalchemy(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    await rival(doors, Doc, 1, title="theirs")
    async with plain(doors) as session:
        rows = [{"id": 1, "title": "mine", "version_id": 1}]
        with pytest.raises(StaleDataError):
            await run_sync(session, lambda s: s.bulk_update_mappings(Doc, rows))
        await session.rollback()


async def test_a_scope_raises_the_conflict_and_commits_nothing(doors: Door) -> None:
    await fill(doors, Doc(id=1), Doc(id=2))
    with pytest.raises(VersionConflict):
        async with doors.scope() as session:
            one, two = await session.get_one(Doc, 1), await session.get_one(Doc, 2)
            expect_version(one, 7)
            one.title = two.title = "mine"
    assert await doors.rows("SELECT title FROM v_docs") == [("",), ("",)]


@pytest.mark.doors(colour="sync")
async def test_a_scoped_session_checks_versions_as_any_other(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    registry = orm.scoped_session(orm.sessionmaker(doors.engine, expire_on_commit=False))
    doc = registry.get(Doc, 1)
    assert doc is not None
    registry.commit()
    await rival(doors, Doc, 1, title="theirs")
    doc.title = "mine"
    with pytest.raises(VersionConflict) as caught:
        registry.commit()
    registry.rollback()
    (fresh,) = caught.value.resolve(registry(), "client_wins")
    registry.commit()
    assert fresh.title == "mine"
    registry.remove()


async def test_objects_survive_pickling_with_their_version(doors: Door) -> None:
    for cls in (Doc, Stamped, Unique):
        await fill(doors, cls(id=1))
        async with plain(doors) as session:
            (obj,) = await read(session, cls, 1)
        copy = pickle.loads(pickle.dumps(obj))
        assert version_of(copy) == version_of(obj)
        copy.title = "mine"
        await rival_deletes(doors, cls, 1)
        async with plain(doors) as session:
            session.add(copy)
            with pytest.raises(VersionConflict) as caught:
                await session.commit()
            assert caught.value.conflicts[0].deleted


async def test_a_row_that_replaces_a_deleted_one_is_checked(doors: Door) -> None:
    """SQLAlchemy turns a DELETE and an INSERT of one key in one flush into an UPDATE."""
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        await session.delete(doc)
        session.add(Doc(id=1, title="mine"))
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        (conflict,) = caught.value.conflicts
        assert (conflict.identity, conflict.expected, conflict.current) == ((1,), 1, 2)
        await session.rollback()
        await session.refresh(doc)
        await session.delete(doc)
        session.add(Doc(id=1, title="mine", version_id=1))
        await session.commit()
    assert await doors.rows("SELECT title, version_id FROM v_docs") == [("mine", 3)]


async def test_a_transient_copy_is_inserted_as_a_new_row(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        session.expunge(doc)
        make_transient(doc)
        doc.id = 2
        session.add(doc)
        await session.commit()
        assert version_of(doc) == 1


async def test_with_eager_defaults_and_returning_a_lost_update_is_found(doors: Door) -> None:
    from tests.contract.versioned import Renamed

    await fill(doors, Renamed(id=1), Renamed(id=2))
    async with plain(doors) as session:
        one, two = await read(session, Renamed, 1, 2)
        await rival(doors, Renamed, 2, title="theirs")
        one.title = two.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    assert [c.identity for c in caught.value.conflicts] == [(2,)]


# The recipe that this replaces

OldBase = declarative_base()


class OldUser(OldBase):  # type: ignore[misc, valid-type]
    __tablename__ = "v_old_users"

    id = Column(Integer, primary_key=True)
    name = Column(String(50))
    email = Column(String(50))
    updated_at = Column(
        DateTime,
        default=lambda: datetime.now(UTC).replace(tzinfo=None),
        onupdate=lambda: datetime.now(UTC).replace(tzinfo=None),
    )


class NewUser(Versioned, OldBase):  # type: ignore[misc, valid-type]
    __tablename__ = "v_new_users"

    id = Column(Integer, primary_key=True)
    name = Column(String(50))
    email = Column(String(50))


@pytest.fixture
def old_and_new(doors: Door) -> Iterator[None]:
    OldBase.metadata.create_all(doors.database.observer)
    yield
    if doors.backend == "postgresql":
        OldBase.metadata.drop_all(doors.database.observer)


async def counter(doors: Door, cls: Any, after: Any) -> tuple[int, list[str]]:
    """Let two editors read a name and append a letter to it, one by one; return its length and who was told."""
    await fill(doors, cls(id=1, name=""))
    told: list[str] = []
    async with plain(doors) as ann, plain(doors) as bob:
        users = {"ann": await ann.get(cls, 1), "bob": await bob.get(cls, 1)}
        old = {name: getattr(user, "updated_at", None) for name, user in users.items()}
        await ann.commit()
        await bob.commit()
        for name, session in (("ann", ann), ("bob", bob)):
            users[name].name += name[0]
            await after(session, users[name], old[name], lambda name=name: told.append(name))
    (row,) = await doors.rows(select(cls.name))
    return len(row[0]), told


async def recipe(session: Any, user: Any, old_updated_at: Any, tell: Any) -> None:
    """Do as the old document says: ask after one's own commit."""
    await session.commit()
    await session.refresh(user)
    if user.updated_at != old_updated_at:
        tell()


def ours(doors: Door) -> Any:
    async def ours(session: Any, user: Any, _: Any, tell: Any) -> None:
        try:
            await session.commit()
        except VersionConflict as error:
            tell()
            await session.rollback()
            resolve = doors.twin(error.resolve, error.async_resolve)
            await resolve(session, lambda conflict: {"name": conflict.database["name"] + "b"})
            await session.commit()

    return ours


@pytest.mark.usefixtures("old_and_new")
async def test_the_old_recipe_loses_an_update_and_cries_at_each_and_ours_finds_the_one(doors: Door) -> None:
    # The recipe: two edits were acknowledged, one is there, and both editors are told the same, hit or not.
    assert await counter(doors, OldUser, recipe) == (1, ["ann", "bob"])
    # Ours: both are there, and the one who was in conflict is told.
    assert await counter(doors, NewUser, ours(doors)) == (2, ["bob"])


@pytest.mark.usefixtures("old_and_new")
async def test_a_classic_declarative_base_can_be_versioned(doors: Door) -> None:
    await fill(doors, NewUser(id=1, name="a"))
    async with plain(doors) as session:
        await session.execute(update(NewUser), [{"id": 1, "name": "b", "version_id": 1}])
        await session.commit()
    assert await doors.rows(select(NewUser.name, NewUser.version_id)) == [("b", 2)]
