"""Law 1 where the transaction ends underneath the scope: connections that die, the driver's cursor, ends by hand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import errors, on_commit, on_rollback
from tests.contract.breaking import (
    backend_pid,
    kill_backend,
    names,
    take,
)
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# Lost connections


@pytest.mark.doors(backend="postgresql")
async def test_a_connection_that_was_killed_and_swallowed_cannot_be_committed_over(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await kill_backend(doors, await backend_pid(session))
            with pytest.raises(DBAPIError) as first:
                await session.execute(text("SELECT 1"))
    assert caught.value.__cause__ is first.value
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_connection_that_was_killed_in_a_savepoint_is_not_healed_by_it(doors: Door) -> None:
    with pytest.raises((errors.UnexpectedRollback, DBAPIError)):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            with pytest.raises(DBAPIError):
                async with doors.scope(propagation="savepoint") as inner:
                    pid = await backend_pid(inner)
                    await kill_backend(doors, pid)
                    await inner.execute(text("SELECT 1"))
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_connection_that_was_killed_unseen_fails_at_the_end(doors: Door) -> None:
    hooks: list[str] = []
    with pytest.raises((errors.SessionKitError, DBAPIError)):
        async with doors.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            session.add(User(name="ann"))
            await session.flush()
            await kill_backend(doors, await backend_pid(session))
    assert await names(doors) == []
    assert hooks == []


# The driver's own cursor, and transactions ended by hand


async def _driver_execute(doors: Door, session: AsyncSession, statement: str) -> None:
    """Send a statement past SQLAlchemy."""
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    result = driver.cursor().execute(statement) if doors.driver == "psycopg2" else driver.execute(statement)
    if doors.colour == "async":
        await result


@pytest.mark.doors(backend="postgresql")
async def test_a_failure_of_the_drivers_own_cursor_that_was_swallowed_cannot_be_committed_over(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            with suppress(Exception):
                await _driver_execute(doors, session, "SELECT * FROM no_such_table")
    assert await names(doors) == []


@pytest.mark.doors(backend="sqlite")
async def test_sqlite_ending_the_transaction_by_itself_is_seen(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            with suppress(Exception):
                await _driver_execute(doors, session, "INSERT OR ROLLBACK INTO users (name) VALUES ('taken')")
    assert await names(doors) == []


async def test_a_transaction_rolled_back_by_hand_underneath_is_seen(doors: Door) -> None:
    hooks: list[str] = []
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            on_rollback(lambda: hooks.append("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            transaction = doors.sync(session).get_transaction()
            assert transaction is not None
            await session.run_sync(lambda _: transaction.rollback())
            session.add(User(name="bob"))
    assert await names(doors) == []
    assert hooks == ["rollback"]


async def test_a_connection_rolled_back_by_hand_is_seen(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await (await session.connection()).rollback()
    assert await names(doors) == []


async def test_what_follows_on_a_connection_rolled_back_by_hand_is_not_committed_alone(doors: Door) -> None:
    with pytest.raises(errors.SessionKitError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await (await session.connection()).rollback()
            session.add(User(name="bob"))
            await session.flush()
    assert await names(doors) == []


@pytest.mark.parametrize("how", ["session transaction", "connection"])
async def test_an_unexpected_rollback_is_never_said_of_what_a_commit_by_hand_has_committed(
    doors: Door, how: str
) -> None:
    """Refused at once, or told apart at the end: but never "nothing was committed" while it was."""
    hooks: list[str] = []
    with pytest.raises(errors.SessionKitError) as caught:
        async with doors.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            on_rollback(lambda: hooks.append("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            if how == "connection":
                await (await session.connection()).commit()
            else:
                transaction = doors.sync(session).get_transaction()
                assert transaction is not None
                await session.run_sync(lambda _: transaction.commit())
    committed = await names(doors)
    assert not (isinstance(caught.value, errors.UnexpectedRollback) and committed), caught.value
    assert hooks == (["rollback"] if committed == [] else [])


ENDS = [
    "ROLLBACK",
    "rollback work",
    "  ROLLBACK TRANSACTION",
    "COMMIT",
    "END",
    "/* done */ COMMIT",
    "-- done\nROLLBACK",
]


@pytest.mark.parametrize("statement", ENDS)
async def test_the_end_of_the_transaction_sent_as_sql_is_refused_or_seen(doors: Door, statement: str) -> None:
    hooks: list[str] = []
    if doors.backend == "sqlite":
        statement = statement.replace("work", "transaction")
    with pytest.raises(errors.SessionKitError) as caught:
        async with doors.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            on_rollback(lambda: hooks.append("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            await session.execute(text(statement))
    committed = await names(doors)
    assert not (isinstance(caught.value, errors.UnexpectedRollback) and committed), caught.value
    assert hooks == ([] if committed else ["rollback"])


@pytest.mark.parametrize("statement", ENDS)
async def test_what_follows_the_end_of_the_transaction_sent_as_sql_is_not_committed_alone(
    doors: Door, statement: str
) -> None:
    if doors.backend == "sqlite":
        statement = statement.replace("work", "transaction")
    with pytest.raises(errors.SessionKitError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            await session.execute(text(statement))
            session.add(User(name="bob"))
    assert await names(doors) in ([], ["ann"])


@pytest.mark.parametrize("statement", ENDS)
async def test_an_end_sent_as_sql_whose_refusal_is_swallowed_loses_nothing_quietly(doors: Door, statement: str) -> None:
    """Refused, it was not sent, and the scope may commit all; or it was sent, and the scope must say so."""
    if doors.backend == "sqlite":
        statement = statement.replace("work", "transaction")
    try:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            with suppress(errors.ScopeError):
                await session.execute(text(statement))
            session.add(User(name="bob"))
    except errors.SessionKitError:
        assert await names(doors) in ([], ["ann"])
    else:
        assert await names(doors) == ["ann", "bob"]


async def test_savepoints_may_be_sent_as_sql(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        await session.execute(text("SAVEPOINT mine"))
        session.add(User(name="bob"))
        await session.flush()
        await session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        await session.execute(text("RELEASE SAVEPOINT mine"))
    assert await names(doors) == ["ann"]


async def test_a_savepoint_rolled_back_by_hand_inside_its_scope_is_seen(doors: Door) -> None:
    """What was done in the scope after its savepoint was gone can be undone by nothing but the whole transaction."""
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(errors.UnexpectedRollback, match="by hand"):
                async with doors.scope(propagation="savepoint") as inner:
                    inner.add(User(name="bob"))
                    await inner.flush()
                    savepoint = doors.sync(session).get_nested_transaction()
                    assert savepoint is not None
                    await session.run_sync(lambda _: savepoint.rollback())
                    inner.add(User(name="eve"))
                    await inner.flush()
    assert await names(doors) == []
