"""The commit marker goes in one message with COMMIT where the driver can do that, and nothing else about it changes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import Retry, errors
from sessionkit._core import seams
from tests.contract.breaking import failing_driver_call, kill_backend, names, take
from tests.contract.lost import create_markers, markers, slow_down_commits, somebody_waits_for_a_lock
from tests.contract.many import at_commit
from tests.support.models import Account, Pledge, User
from tests.support.wire import Counted, counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="postgresql")
PSYCOPG = pytest.mark.doors("postgresql-sync", "postgresql-async-psycopg")
OTHERS = pytest.mark.doors("postgresql-sync-psycopg2", "postgresql-async")

COMMENT = " -- made by the test"


@pytest.fixture
def counted(doors: Door) -> Iterator[Counted]:
    with counting(doors) as made:
        yield made


@PSYCOPG
@pytest.mark.parametrize("commented", [False, True])
async def test_the_marker_has_no_round_trip_of_its_own(doors: Door, counted: Counted, commented: bool) -> None:
    await create_markers(doors)
    if commented:

        def comment(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            return statement + COMMENT, parameters

        event.listen(doors.sync_engine_of(counted.engine), "before_cursor_execute", comment, retval=True)
    statements, plain = await counted.scope()
    assert len(statements) == 3
    (begin, mine, commit), round_trips = await counted.scope(verify_commit=True)
    assert (begin, mine.removesuffix(COMMENT)) == ("BEGIN", "SELECT 1 AS mine")
    assert commit.startswith("INSERT INTO sessionkit_commit")
    assert commit.endswith("; COMMIT")
    assert round_trips == plain
    assert len(await markers(doors)) == 8


@OTHERS
async def test_with_the_other_drivers_it_is_a_statement_of_its_own(doors: Door, counted: Counted) -> None:
    await create_markers(doors)
    _, plain = await counted.scope()
    (_, _, marker, commit), round_trips = await counted.scope(verify_commit=True)
    assert marker.startswith("INSERT INTO sessionkit_commit")
    assert commit == "COMMIT"
    assert round_trips == plain + 1


@PSYCOPG
@pytest.mark.parametrize("after", [False, True], ids=["fails before", "fails after"])
@pytest.mark.parametrize("known", [False, True], ids=["new engine", "engine that has committed so"])
async def test_where_somebody_else_has_a_say_in_the_commit_it_is_one_too(doors: Door, after: bool, known: bool) -> None:
    """Whoever has replaced it may not call what would send the marker, and a COMMIT without it would be a false verdict."""
    await create_markers(doors)
    if known:
        async with doors.scope(verify_commit=True) as session:
            await session.execute(text("SELECT 1"))
        await doors.write("TRUNCATE sessionkit_commit")
    with suppress(LookupError):
        async with failing_driver_call(doors, "do_commit", LookupError(), after=after):
            async with doors.scope(verify_commit=True) as session:
                session.add(User(name="ann"))
    assert await names(doors) == (["ann"] if after else [])
    assert [state for _, state in await markers(doors)] == ["C" if after else "T"]
    async with doors.scope(verify_commit=True) as session:
        session.add(User(name="bob"))
    assert "bob" in await names(doors)
    assert len(await markers(doors)) == 2


async def test_the_test_kit_commits_the_marker_too_where_it_loses_the_answer(doors: Door) -> None:
    await create_markers(doors)

    def commit_and_lose(connection: Any) -> None:
        seams.at_commit.clear()
        connection.send_commit()
        raise LookupError

    seams.at_commit.append(commit_and_lose)
    async with doors.scope(verify_commit=True) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]
    assert [state for _, state in await markers(doors)] == ["C"]


async def test_a_listener_that_commits_by_itself_makes_nobody_believe_in_a_rollback(doors: Door) -> None:
    """It sends COMMIT without the marker where that is held back for it: the marker can then tell nothing."""
    await create_markers(doors)

    def commit_and_fail(connection: Any) -> None:
        connection.dialect.do_commit(connection.connection)
        raise LookupError

    with at_commit(doors.sync_engine, commit_and_fail):
        try:
            async with doors.scope(verify_commit=True) as session:
                session.add(User(name="ann"))
        except errors.CommitOutcomeUnknown:
            assert doors.driver == "psycopg"
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_listener_of_commit_sends_belongs_to_the_transaction(doors: Door, fails: bool) -> None:
    await create_markers(doors)

    def audit(connection: Any) -> None:
        assert connection.execute(insert(User).values(name="audit").returning(User.name)).scalar_one() == "audit"

    with at_commit(doors.sync_engine, audit):
        try:
            async with doors.scope(verify_commit=True) as session:
                session.add(User(name="ann"))
                if fails:
                    session.add(Pledge(account_id=1))
        except IntegrityError:
            assert fails
    assert await names(doors) == ([] if fails else ["ann", "audit"])
    assert len(await markers(doors)) == (not fails)


@PSYCOPG
async def test_what_a_listener_of_commit_breaks_and_swallows_is_not_committed(doors: Door) -> None:
    await create_markers(doors)
    await take(doors)

    def swallow(connection: Any) -> None:
        with pytest.raises(IntegrityError):
            connection.execute(insert(User).values(name="taken"))

    with at_commit(doors.sync_engine, swallow), pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(verify_commit=True) as session:
            session.add(User(name="ann"))
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []


async def test_another_connection_that_commits_meanwhile_does_not_take_the_marker_along(doors: Door) -> None:
    await create_markers(doors)
    engine = doors.sync_engine
    begun: list[Any] = []

    def other(_connection: Any) -> None:
        if not begun:
            begun.append(None)
            with engine.begin() as connection:
                connection.execute(insert(User).values(name="other"))

    with at_commit(engine, other), pytest.raises(IntegrityError):
        async with doors.scope(verify_commit=True) as session:
            session.add(Pledge(account_id=1))
    assert await names(doors) == ["other"]
    assert await markers(doors) == []


async def test_a_marker_that_is_refused_leaves_a_connection_of_the_users_usable(doors: Door) -> None:
    """There is no table: PostgreSQL has aborted the transaction, which must be over for the connection too."""
    async with doors.connect() as connection:
        Session = doors.factory(doors.raw(connection))
        with pytest.raises(DBAPIError, match="sessionkit_commit") as caught:
            async with doors.scope(Session, verify_commit=True) as session:
                session.add(User(name="ann"))
        assert "sessionkit.commits.create_table(engine)" in caught.value.__notes__[0]
        assert errors.outcome_of(caught.value) == "rolled back"
        async with doors.scope(Session) as session:
            session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


@pytest.mark.parametrize("kept", [False, True])
async def test_in_a_transaction_of_the_users_own_the_marker_is_as_good_as_that(doors: Door, kept: bool) -> None:
    """The scope does not commit there, so nothing is held back for a COMMIT."""
    await create_markers(doors)
    async with doors.connect() as connection:
        transaction = await connection.begin()
        async with doors.scope(doors.factory(doors.raw(connection)), verify_commit=True) as session:
            session.add(User(name="ann"))
        assert await connection.scalar(text("SELECT count(*) FROM sessionkit_commit")) == 1
        if kept:
            await transaction.commit()
        else:
            await transaction.rollback()
    assert len(await names(doors)) == len(await markers(doors)) == kept


async def test_a_serialization_failure_at_the_end_is_rolled_back_and_run_again(doors: Door) -> None:
    """Write skew: of two that have read both accounts, and changed one each, the second to commit fails."""
    await create_markers(doors)
    await doors.write(insert(Account).values([{"id": number, "balance": 1} for number in (1, 2)]))
    failures: list[BaseException] = []

    async def empty(session: Any, number: int) -> None:
        total = sum((await session.scalars(select(Account.balance))).all())
        if number == 1 and not failures:
            await empty_other()
        await session.execute(update(Account).where(Account.id == number).values(balance=total - 1))

    async def empty_other() -> None:
        async with doors.scope(verify_commit=True, isolation="SERIALIZABLE", propagation="new") as session:
            await empty(session, 2)

    retry = Retry(3, wait=0, before_retry=lambda attempt: failures.append(attempt.error))
    await doors.decorate(empty, verify_commit=True, isolation="SERIALIZABLE", retry=retry)(1)
    assert [errors.classify(error).kind for error in failures] == ["serialization_failure"]
    assert await doors.rows("SELECT id, balance FROM accounts ORDER BY id") == [(1, 1), (2, 1)]
    assert [state for _, state in await markers(doors)] == ["C", "C"]


async def test_a_backend_that_is_terminated_in_commit_is_found_to_have_rolled_back(doors: Door) -> None:
    await create_markers(doors)
    await slow_down_commits(doors)
    runs: list[int] = []

    async def body(session: Any) -> None:
        runs.append((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())
        session.add(User(name=f"run {len(runs)}"))

    async with doors.connect() as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))

        async def killing() -> None:
            await somebody_waits_for_a_lock(doors)
            await kill_backend(doors, runs[0])
            await holder.rollback()

        await doors.together(doors.decorate(body, verify_commit=True, retry=Retry(3, wait=0)), killing)
    assert await names(doors) == ["run 2"]
    assert sorted(state for _, state in await markers(doors)) == ["C", "T"]
