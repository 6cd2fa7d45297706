"""Law 1: a scope that exits without an exception has committed all that was done in it, or it says why not."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import errors, set_rollback_only
from tests.contract.breaking import (
    names,
    swallow_failed_flush,
    swallow_failed_statement,
    take,
)
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door


async def test_what_was_done_in_a_scope_is_committed(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="unit of work"))
        await session.execute(insert(User).values(name="statement"))
        await (await session.connection()).execute(insert(User).values(name="connection"))
        session.add(User(name="not flushed"))
    assert await names(doors) == ["unit of work", "statement", "connection", "not flushed"]


async def test_a_scope_says_begin_and_commit_once(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            session.add(User(name="bob"))
    assert [line.split(" ")[0] for line in sql] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]


async def test_a_scope_without_work_sends_nothing(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope():
            pass
    assert sql == []


async def test_an_exception_rolls_back_and_passes_as_it_was(doors: Door) -> None:
    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            raise mine
    assert caught.value is mine
    assert await names(doors) == []


async def test_a_flush_error_that_leaves_the_scope_is_the_drivers_own(doors: Door) -> None:
    await take(doors)
    with pytest.raises(IntegrityError):
        async with doors.scope() as session:
            session.add_all([User(name="ann"), User(name="taken")])
    assert await names(doors) == []


async def test_a_swallowed_flush_error_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    first: BaseException | None = None
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            first = await swallow_failed_flush(session)
    assert caught.value.__cause__ is first
    assert "IntegrityError" in str(caught.value)
    assert "re-raise it, or run the part that may fail in a scope with propagation='savepoint'" in str(caught.value)
    assert "no_rollback_for" not in str(caught.value)  # a failed flush has undone work: no option commits the rest
    assert await names(doors) == []


async def test_a_swallowed_statement_error_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    first: BaseException | None = None
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            await session.execute(insert(User).values(name="ann"))
            first = await swallow_failed_statement(session)
    assert caught.value.__cause__ is first
    assert await names(doors) == []


async def test_the_first_of_several_swallowed_errors_is_named(doors: Door) -> None:
    await take(doors)
    first: BaseException | None = None
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            first = await swallow_failed_statement(session)
            with suppress(DBAPIError):
                await session.execute(text("SELECT * FROM no_such_table"))
    assert caught.value.__cause__ is first


async def test_a_swallowed_error_on_the_connection_itself_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await swallow_failed_statement(await session.connection())
    assert await names(doors) == []


async def test_a_swallowed_autoflush_error_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(User(name="taken"))
            with suppress(IntegrityError):
                await session.scalars(text("SELECT name FROM users"))
                await session.run_sync(lambda s: s.query(User).all())
    assert await names(doors) == []


async def test_a_swallowed_bulk_error_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            await session.execute(insert(User).values(name="ann"))
            with suppress(IntegrityError):
                await session.run_sync(lambda s: s.bulk_insert_mappings(User, [{"name": "taken"}]))
    assert await names(doors) == []


async def test_a_swallowed_stale_row_cannot_be_committed_over(doors: Door) -> None:
    await take(doors)
    first: BaseException | None = None
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            user = (await session.execute(text("SELECT id FROM users WHERE name = 'taken'"))).scalar_one()
            mine = await session.get(User, user)
            assert mine is not None
            # Deleted behind the identity map's back, as another transaction could have done.
            await session.execute(delete(User).where(User.id == user).execution_options(synchronize_session=False))
            mine.email = "new"
            try:
                await session.flush()
            except StaleDataError as error:
                first = error
    assert first is not None
    assert caught.value.__cause__ is first
    assert await doors.scalar("SELECT name FROM users") == "taken"


@pytest.mark.parametrize("moment", ["before_commit", "before_flush", "after_flush", "after_begin"])
async def test_an_error_in_a_session_listener_rolls_back_and_passes(doors: Door, moment: str) -> None:
    mine = LookupError(moment)

    def fail(*_: Any) -> None:
        raise mine

    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            event.listen(doors.sync(session), moment, fail)
            session.add(User(name="ann"))
    assert caught.value is mine
    assert await names(doors) == []


async def test_an_error_after_the_flush_that_is_swallowed_cannot_be_committed_over(doors: Door) -> None:
    mine = LookupError("after_flush")

    def fail(*_: Any) -> None:
        raise mine

    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            event.listen(doors.sync(session), "after_flush", fail)
            session.add(User(name="ann"))
            with suppress(LookupError):
                await session.flush()
    assert caught.value.__cause__ is mine
    assert await names(doors) == []


async def test_a_failed_commit_is_the_drivers_own_error_and_commits_nothing(doors: Door) -> None:
    with pytest.raises(IntegrityError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            session.add(Pledge(account_id=404))
    assert await names(doors) == []


# Joined scopes


async def test_a_joined_scope_that_failed_and_was_swallowed_dooms_the_outer_one(doors: Door) -> None:
    mine = LookupError("inner")
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with suppress(LookupError):
                async with doors.scope() as inner:
                    inner.add(User(name="bob"))
                    raise mine
    assert caught.value.__cause__ is mine
    for cure in ("re-raise it", "propagation='savepoint'", "no_rollback_for"):
        assert cure in str(caught.value)
    assert await names(doors) == []


async def test_a_joined_scope_that_asked_for_a_rollback_dooms_the_outer_one(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback, match="set_rollback_only"):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            async with doors.scope():
                set_rollback_only()
    assert await names(doors) == []


async def test_a_scope_that_asked_for_a_rollback_itself_exits_quietly(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        doors.call(set_rollback_only, session)
    assert await names(doors) == []


async def test_a_rollback_asked_for_outside_of_an_open_joined_scope_is_the_outers(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        async with doors.scope():
            pass
        set_rollback_only()
    assert await names(doors) == []


# More than one database


async def test_a_failure_on_one_of_two_databases_that_was_swallowed_commits_on_neither(doors: Door) -> None:
    other = doors.other_engine()
    factory = doors.factory(binds={User: doors.engine, Pledge: other})
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.flush()
            with suppress(DBAPIError):
                await session.execute(text("SELECT * FROM no_such_table"), bind_arguments={"mapper": Pledge})
    assert await names(doors) == []


async def test_both_of_two_databases_are_committed(doors: Door) -> None:
    other = doors.other_engine(foreign_keys=False)
    factory = doors.factory(binds={User: doors.engine, Pledge: other})
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        await session.execute(text("SELECT 1"), bind_arguments={"mapper": Pledge})
        await session.flush()
        with pytest.raises(LookupError):
            async with doors.scope(factory, propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                await session.execute(text("SELECT 1"), bind_arguments={"mapper": Pledge})
                raise LookupError
    assert await names(doors) == ["ann"]


# What comes after the last look


def swallow_at_commit(engine: Any) -> None:
    """Have a listener of the engine, the last of all, swallow an error while COMMIT is about to be sent."""

    @event.listens_for(engine, "commit")
    def work(connection: Any) -> None:
        with suppress(DBAPIError):
            connection.exec_driver_sql("SELECT * FROM no_such_table")


async def test_an_error_that_a_listener_of_commit_swallows_keeps_the_scope_from_committing(doors: Door) -> None:
    engine = doors.make_engine()
    Session = doors.factory(engine)
    async with doors.scope(Session) as session:
        await session.execute(text("SELECT 1"))  # its own listeners are there
    swallow_at_commit(doors.sync_engine_of(engine))
    with pytest.raises(errors.UnexpectedRollback, match="swallowed") as told:
        async with doors.scope(Session) as session:
            session.add(User(name="ann"))
    assert errors.outcome_of(told.value) == "rolled back"
    assert isinstance(told.value.__cause__, DBAPIError)
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_of_two_databases_it_is_told_which_has_committed(doors: Door) -> None:
    """A Session commits its connections in no order that it promises: here the second one fails, whichever that is."""
    other = doors.other_engine(foreign_keys=False)
    factory = doors.factory(binds={User: doors.engine, Pledge: other})
    asked: list[Any] = []

    def at_commit(connection: Any) -> None:
        asked.append(connection.engine)
        if len(asked) == 2:
            with suppress(DBAPIError):
                connection.exec_driver_sql("SELECT * FROM no_such_table")

    for engine in (doors.engine, other):
        event.listen(doors.sync_engine_of(engine), "commit", at_commit)
    with pytest.raises(errors.PartialCommit) as told:
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.execute(text("SELECT 1"), bind_arguments={"mapper": Pledge})
    first, second = asked
    assert {first, second} == {doors.sync_engine, doors.sync_engine_of(other)}
    assert told.value.outcomes == {first: "committed", second: "rolled back"}
    assert await names(doors) == (["ann"] if first is doors.sync_engine else [])


# A plain factory gets the same honesty


async def test_a_plain_sqlalchemy_factory_is_as_honest(doors: Door) -> None:
    await take(doors)
    plain = doors.plain_factory()
    for swallow in (swallow_failed_flush, swallow_failed_statement):
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(plain) as session:
                session.add(User(name="ann"))
                await session.flush()
                await swallow(session)
        assert await names(doors) == []


async def test_autoflush_off_changes_nothing(doors: Door) -> None:
    await take(doors)
    factory = doors.factory(autoflush=False)
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        assert (await session.execute(text("SELECT count(*) FROM users"))).scalar_one() == 1
    with pytest.raises(IntegrityError):
        async with doors.scope(factory) as session:
            session.add(User(name="bob"))
            session.add(User(name="taken"))
    assert await names(doors) == ["ann"]
