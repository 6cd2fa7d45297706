"""Carrying the attempted changes over: what is written, what is refused; never a lost update, whoever edits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.orm.attributes import flag_modified

from sessionkit.errors import VersionConflict, VersionError
from sessionkit.version import bump_version
from tests.contract.test_version_conflicts import fill, plain, read, rival, rival_deletes
from tests.contract.versioned import Doc, Line, Order, Unique, table, tables
from tests.support.doors import Door
from tests.support.models import User

pytestmark = [pytest.mark.above_drivers, pytest.mark.usefixtures("tables")]
__all__ = ["tables"]


async def conflict(
    doors: Door, mine: dict[str, Any], theirs: dict[str, Any] | None, *, delete: bool = False
) -> VersionConflict:
    """Let a rival write (None: delete) a row with title "old" and body "old" before we do."""
    await fill(doors, Doc(id=1, title="old", body="old"))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        if theirs is None:
            await rival_deletes(doors, Doc, 1)
        else:
            await rival(doors, Doc, 1, **theirs)
        for key, value in mine.items():
            setattr(doc, key, value)
        if delete:
            await session.delete(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    return caught.value


async def resolve(doors: Door, error: VersionConflict, policy: Any, **options: Any) -> list[Any]:
    async with plain(doors) as session:
        objects = await doors.twin(error.resolve, error.async_resolve)(session, policy, **options)
        await session.commit()
        return list(objects)


async def committed(doors: Door) -> tuple[Any, ...]:
    (row,) = await doors.rows("SELECT title, body, version_id FROM v_docs")
    return row


async def test_client_wins_writes_what_was_attempted_and_only_that(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"title": "theirs", "body": "theirs"})
    (doc,) = await resolve(doors, error, "client_wins")
    assert doc.title == "mine"
    assert await committed(doors) == ("mine", "theirs", 3)


async def test_database_wins_writes_nothing(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"title": "theirs"})
    with doors.statements() as sql:
        (doc,) = await resolve(doors, error, "database_wins")
    assert [s.split()[0] for s in sql if not s.startswith(("BEGIN", "COMMIT"))] == ["SELECT"]
    assert doc.title == "theirs"
    assert await committed(doors) == ("theirs", "old", 2)


async def test_merge_takes_the_changes_of_both_where_they_are_of_different_columns(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"body": "theirs"})
    await resolve(doors, error, "merge")
    assert await committed(doors) == ("mine", "theirs", 3)


async def test_merge_of_the_same_change_writes_nothing(doors: Door) -> None:
    error = await conflict(doors, {"title": "same"}, {"title": "same"})
    await resolve(doors, error, "merge")
    assert await committed(doors) == ("same", "old", 2)


async def test_merge_raises_again_where_both_changed_a_column_to_different_values(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine", "body": "mine"}, {"title": "theirs"})
    with pytest.raises(VersionConflict) as caught:
        await resolve(doors, error, "merge")
    (still,) = caught.value.conflicts
    assert still.database is not None
    assert (still.database["title"], still.current) == ("theirs", 2)
    assert await committed(doors) == ("theirs", "old", 2)
    await resolve(doors, caught.value, "client_wins")
    assert await committed(doors) == ("mine", "mine", 3)


async def test_a_function_decides_row_by_row(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"title": "theirs"})
    await resolve(
        doors, error, lambda c: {"title": f"{c.original['title']}, {c.attempted['title']}, {c.database['title']}"}
    )
    assert await committed(doors) == ("old, mine, theirs", "old", 3)
    error = await conflict_again(doors)
    await resolve(doors, error, lambda c: "client_wins" if c.identity == (1,) else "database_wins")
    assert (await committed(doors))[0] == "again"
    error = await conflict_again(doors, "once more")
    with pytest.raises(VersionError, match="the policy returned 5 for Doc 1"):
        await resolve(doors, error, lambda _: 5)
    with pytest.raises(VersionError, match="no attribute tilte"):
        await resolve(doors, error, lambda _: {"tilte": "x"})


async def conflict_again(doors: Door, title: str = "again") -> VersionConflict:
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs again")
        doc.title = title
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    return caught.value


async def test_an_unknown_policy_is_refused_with_those_that_exist(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"title": "theirs"})
    with pytest.raises(VersionError, match=r"client_wins.*database_wins.*merge.*'mine_wins'"):
        await resolve(doors, error, "mine_wins")


@pytest.mark.parametrize("policy", ["client_wins", "merge", lambda _: {"title": "x"}])
async def test_a_deleted_row_cannot_be_written(doors: Door, policy: Any) -> None:
    error = await conflict(doors, {"title": "mine"}, None)
    with pytest.raises(VersionConflict) as caught:
        await resolve(doors, error, policy)
    assert caught.value.conflicts[0].deleted is True
    assert await resolve(doors, error, "database_wins") == [None]


async def test_a_delete_is_carried_over_only_if_the_client_wins(doors: Door) -> None:
    error = await conflict(doors, {}, {"title": "theirs"}, delete=True)
    with pytest.raises(VersionConflict):
        await resolve(doors, error, "merge")
    await resolve(doors, error, "database_wins")
    assert await committed(doors) == ("theirs", "old", 2)
    await resolve(doors, error, "client_wins")
    assert await doors.rows("SELECT * FROM v_docs") == []


async def test_deleting_what_is_gone_is_done(doors: Door) -> None:
    error = await conflict(doors, {}, None, delete=True)
    for policy in ("client_wins", "merge", "database_wins"):
        assert await resolve(doors, error, policy) == [None]


async def test_all_rows_are_decided_before_one_is_changed(doors: Door) -> None:
    await fill(doors, Doc(id=1, title="old"), Doc(id=2, title="old"), Unique(id=1, title="old"))
    async with plain(doors) as session:
        objects = [*await read(session, Doc, 1, 2), *await read(session, Unique, 1)]
        await rival(doors, Doc, 1, body="theirs")
        await rival(doors, Doc, 2, title="theirs")
        await rival(doors, Unique, 1, title="theirs")
        for obj in objects:
            obj.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    async with plain(doors) as session:
        with doors.statements() as sql, pytest.raises(VersionConflict) as again:
            await doors.twin(caught.value.resolve, caught.value.async_resolve)(session, "merge")
        assert len([s for s in sql if s.startswith("SELECT")]) == 2
        assert not session.dirty
    assert {(c.entity, c.identity) for c in again.value.conflicts} == {(Doc, (2,)), (Unique, (1,))}


async def test_a_forced_version_is_carried_over(doors: Door) -> None:
    await fill(doors, Doc(id=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, title="theirs")
        bump_version(doc)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    await resolve(doors, caught.value, "merge")
    assert await committed(doors) == ("theirs", None, 3)


async def test_a_many_to_one_is_carried_over_as_its_foreign_key(doors: Door) -> None:
    from tests.contract.versioned import Customer

    await fill(doors, Customer(id=1), Customer(id=2), Order(id=1, customer_id=1))
    async with plain(doors) as session:
        order, two = (await read(session, Order, 1))[0], (await read(session, Customer, 2))[0]
        await session.refresh(order, ["customer"])
        await session.commit()
        await doors.write("UPDATE v_orders SET version_id = 7, title = 'theirs'")
        order.customer = two
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    (conflict_,) = caught.value.conflicts
    assert conflict_.attempted == {"customer_id": 2}
    await resolve(doors, caught.value, "merge", partial=True)
    assert await doors.rows("SELECT title, customer_id FROM v_orders") == [("theirs", 2)]


async def test_what_cannot_be_carried_over_is_refused_and_named(doors: Door) -> None:
    await fill(doors, Order(id=1), Order(id=2), Doc(id=1), User(id=1, name="ann"))
    async with plain(doors) as session:
        order = (await read(session, Order, 1))[0]
        await session.refresh(order, ["lines"])
        second = await session.get(Order, 2)
        await session.refresh(second, ["lines", "notes"])
        doc, user = await session.get(Doc, 1), await session.get(User, 1)
        await session.commit()
        await rival(doors, Order, 1, title="theirs")
        user.email = "flushed before"
        await session.flush()
        order.title = "mine"
        order.lines.append(Line())
        doc.title = "mine"
        await session.delete(second)
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    others = caught.value.conflicts.others
    assert set(others) == {
        "Order 1 (its lines)",
        "a new Line",
        "Doc 1 (changed)",
        "Order 2 (deleted)",
        "1 objects or statements before, in the same transaction",
    }
    for policy in ("client_wins", "database_wins", "merge"):
        with pytest.raises(VersionError, match=r"Doc 1 \(changed\).*run the whole unit again; or pass partial=True"):
            await resolve(doors, caught.value, policy)
    await resolve(doors, caught.value, "client_wins", partial=True)
    assert await doors.rows("SELECT title FROM v_orders WHERE id = 1") == [("mine",)]
    assert await doors.rows("SELECT email FROM users") == [(None,)]


async def test_an_object_with_changes_of_its_own_is_not_overwritten(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"title": "theirs"})
    async with plain(doors) as session:
        doc = await session.get(Doc, 1)
        doc.body = "in the works"
        with pytest.raises(VersionError, match="Doc 1 has changes in this session"):
            await doors.twin(error.resolve, error.async_resolve)(session, "client_wins")
        assert doc.body == "in the works"
        await session.rollback()


async def test_the_session_that_failed_can_resolve_after_its_rollback(doors: Door) -> None:
    await fill(doors, Doc(id=1, title="old", body="old"))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, body="theirs")
        doc.title = "mine"
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        await session.rollback()
        (fresh,) = await doors.twin(caught.value.resolve, caught.value.async_resolve)(session, "merge")
        assert fresh is doc
        await session.commit()
    assert await committed(doors) == ("mine", "theirs", 3)


async def test_a_row_that_changes_while_it_is_resolved_is_found_by_the_flush(doors: Door) -> None:
    error = await conflict(doors, {"title": "mine"}, {"body": "theirs"})
    if doors.backend == "sqlite":
        return  # there a writer holds off all others from its first statement on
    async with plain(doors) as session:
        await doors.twin(error.resolve, error.async_resolve)(session, "merge")
        await rival(doors, Doc, 1, body="theirs again")
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    await resolve(doors, caught.value, "merge")
    assert await committed(doors) == ("mine", "theirs again", 4)


async def test_a_value_whose_original_is_unknown_is_not_merged(doors: Door) -> None:
    await fill(doors, Doc(id=1, title="old"))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, body="theirs")
        doc.title = "mine"
        flag_modified(doc, "pages")
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
        assert "pages" not in caught.value.conflicts[0].original
        await session.rollback()
    await resolve(doors, caught.value, "merge")  # the database has the same value, so nothing is lost
    assert await committed(doors) == ("mine", "theirs", 3)


async def test_a_sql_expression_is_carried_over_as_one(doors: Door) -> None:
    await fill(doors, Doc(id=1, pages=1))
    async with plain(doors) as session:
        (doc,) = await read(session, Doc, 1)
        await rival(doors, Doc, 1, pages=10)
        doc.pages = Doc.pages + 1
        with pytest.raises(VersionConflict) as caught:
            await session.commit()
    with pytest.raises(VersionConflict):
        await resolve(doors, caught.value, "merge")
    await resolve(doors, caught.value, "client_wins")
    assert await doors.scalar("SELECT pages FROM v_docs") == 11


# Against a model

COLUMNS = ("title", "body", "pages")
values = st.sampled_from(["a", "b", "old"])
changes = st.dictionaries(st.sampled_from(["title", "body"]), values, max_size=2)


def three_way(base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any] | None:
    """The model: None where both changed a column to different values."""
    ours, result = {**base, **mine}, {}
    database = {**base, **theirs}
    for key, original in base.items():
        if ours[key] == original:
            result[key] = database[key]
        elif database[key] in {original, ours[key]}:
            result[key] = ours[key]
        else:
            return None
    return result


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=changes, theirs=changes)
def test_merge_is_the_three_way_merge_of_the_model(doors: Door, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    async def body() -> None:
        base = {"title": "old", "body": "old"}
        await doors.write("DELETE FROM v_docs")
        await doors.write(insert(table(Doc)).values(id=1, pages=0, version_id=1, **base))
        async with plain(doors) as session:
            (doc,) = await read(session, Doc, 1)
            await rival(doors, Doc, 1, pages=1, **theirs)
            for key, value in mine.items():
                setattr(doc, key, value)
            merged = three_way(base, mine, theirs)
            try:
                await session.commit()
                assert all(base[key] == value for key, value in mine.items())  # there was nothing to be written
            except VersionConflict as error:
                await session.rollback()
                if merged is None:
                    with pytest.raises(VersionConflict):
                        await resolve(doors, error, "merge")
                    merged = {**base, **theirs}
                else:
                    await resolve(doors, error, "merge")
        async with plain(doors) as session:
            found = (await session.execute(select(Doc.title, Doc.body))).one()._asdict()
        assert found == merged

    doors.run(body())


steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["read", "add", "bump", "delete", "insert", "set_based"])), max_size=30
)


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_no_interleaving_of_editors_loses_an_update(doors: Door, steps: list[tuple[int, str]]) -> None:
    """Three editors read a row and add one to what they have read; the sum of the successes is in the row."""

    async def body() -> None:
        await doors.write("DELETE FROM v_docs")
        sessions: list[Any] = [doors.neutral(doors.plain_factory(expire_on_commit=False)()) for _ in range(3)]
        held: list[Doc | None] = [None] * 3
        fresh = [False] * 3  # the model: has nobody written since this editor has read?
        pages: int | None = None
        try:
            for editor, step in steps:
                session, doc = sessions[editor], held[editor]
                if step == "read":
                    held[editor] = await session.get(Doc, 1, populate_existing=True)
                    fresh[editor] = held[editor] is not None
                    assert (None if held[editor] is None else held[editor].pages) == pages  # type: ignore[union-attr]
                    await session.commit()
                elif step == "insert" and pages is None:
                    await doors.write(
                        insert(table(Doc)).values(id=1, title="", pages=0, version_id=await unused(doors))
                    )
                    pages, fresh = 0, [False] * 3
                elif step == "set_based" and pages is not None:
                    from sqlalchemy import update

                    from sessionkit.version import update_versioned

                    async with plain(doors) as other:
                        await other.execute(update_versioned(update(Doc).values(pages=Doc.pages + 1)))
                        await other.commit()
                    pages, fresh = pages + 1, [False] * 3
                elif step in {"add", "bump", "delete"} and doc is not None:
                    if step == "add":
                        doc.pages += 1
                    elif step == "bump":
                        bump_version(doc)
                    else:
                        await session.delete(doc)
                    if fresh[editor]:
                        await session.commit()
                        assert pages is not None
                        pages = {"add": pages + 1, "bump": pages, "delete": None}[step]
                        fresh = [other == editor and step != "delete" for other in range(3)]
                    else:
                        with pytest.raises(VersionConflict):
                            await session.commit()
                        await session.rollback()
                        session.expunge_all()
                    if not fresh[editor]:
                        held[editor] = None
        finally:
            for session in sessions:
                await session.close()
        assert await doors.rows("SELECT pages FROM v_docs") == ([] if pages is None else [(pages,)])

    doors.run(body())


versions = iter(range(1000, 10**9, 1000))


async def unused(_doors: Door) -> int:
    """A count starts anew with a row that is inserted again: here it must not, or the model would have to forgive."""
    return next(versions)
