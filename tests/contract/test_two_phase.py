"""Two-phase commit over PostgreSQL databases: all or nothing, and nothing is left prepared that recovery cannot end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import binding, errors, on_commit, on_rollback
from tests.contract.many import at_statement, cut, two_databases, work
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from tests.contract.many import Two
    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="postgresql")


class Interrupt(BaseException):
    """As a KeyboardInterrupt, which an event loop would not let a test catch."""


async def prepared_for(doors: Door, **kw: Any) -> Two:
    two = two_databases(doors, **kw)
    await two.make_markers()
    async with doors.scope(doors.factory(two.pledges)) as session:
        session.add(Account(id=1))
    return two


async def recover(two: Two, **kw: Any) -> list[binding.PreparedTransaction]:
    kw = {"older_than": 0, **kw}
    found: list[binding.PreparedTransaction] = await two.doors.twin(
        binding.recover_prepared, binding.async_recover_prepared
    )(two.users, two.pledges, **kw)
    return found


# The way it should go


async def test_both_databases_commit_and_hooks_run_once(doors: Door) -> None:
    two = await prepared_for(doors)
    ran: list[str] = []
    async with doors.scope(two.factory(twophase=True)) as session:
        doors.call(on_commit, lambda: ran.append("commit"))
        work(session)
    assert await two.committed() == (1, 1)
    assert await two.prepared() == []
    assert ran == ["commit"]


async def test_the_first_database_is_prepared_last_and_committed_first(doors: Door) -> None:
    two = await prepared_for(doors)
    sent: list[tuple[str, str]] = []
    for engine, name in ((two.users_sync, "users"), (two.pledges_sync, "pledges")):

        def look(_connection: Any, _cursor: Any, statement: str, *_: Any, name: str = name) -> None:
            if "PREPARE" in statement:
                sent.append((name, " ".join(statement.split()[:2])))

        event.listen(engine, "before_cursor_execute", look)
    async with doors.scope(two.factory(twophase=True)) as session:
        await session.execute(insert(User).values(name="ann"))
        session.add(Pledge(account_id=1))
    assert sent == [
        ("pledges", "PREPARE TRANSACTION"),
        ("users", "PREPARE TRANSACTION"),
        ("users", "COMMIT PREPARED"),
        ("pledges", "COMMIT PREPARED"),
    ]


async def test_the_connections_are_as_good_as_new_afterwards(doors: Door) -> None:
    two = await prepared_for(doors, pool_size=1, max_overflow=0)
    for number in range(3):
        async with doors.scope(two.factory(twophase=True), isolation="SERIALIZABLE") as session:
            work(session, name=f"user {number}")
    async with doors.scope(two.factory()) as session:
        for model in (User, Pledge):
            level = await session.execute(text("SHOW transaction_isolation"), bind_arguments={"mapper": model})
            assert level.scalar_one() == "read committed"
        with pytest.raises(LookupError):
            async with doors.scope(two.factory(), propagation="savepoint"):
                raise LookupError
    with pytest.raises(LookupError):
        async with doors.scope(two.factory()) as session:
            work(session, name="rolled back")
            await session.flush()
            raise LookupError
    assert await two.committed() == (3, 3)


async def test_a_unit_with_one_database_commits_without_a_second_phase(doors: Door) -> None:
    two = two_databases(doors)
    async with doors.scope(two.factory(twophase=True)) as session:
        session.add(User(name="the first asks the server once"))
    with doors.statements(two.users) as sql:
        async with doors.scope(two.factory(twophase=True)) as session:
            session.add(User(name="ann"))
    assert [line.split()[0] for line in sql] == ["BEGIN", "INSERT", "COMMIT"]


async def test_what_only_reads_is_not_prepared(doors: Door) -> None:
    two = two_databases(doors)
    with doors.statements(two.users) as sql:
        async with doors.scope(two.factory(twophase=True), read_only=True) as session:
            for model in (User, Pledge):
                await session.execute(text("SELECT 1"), bind_arguments={"mapper": model})
    assert not [line for line in sql if "PREPARE" in line]


async def test_a_listener_of_before_commit_can_still_write_to_a_second_database(doors: Door) -> None:
    two = await prepared_for(doors)
    async with doors.scope(two.factory(twophase=True)) as session:
        event.listen(doors.sync(session), "before_commit", lambda sync_session: sync_session.add(Pledge(account_id=1)))
        await session.execute(insert(User).values(name="ann"))
    assert await two.committed() == (1, 1)


# Failures before the decision: nothing is committed anywhere


async def test_a_refusal_to_prepare_in_one_database_rolls_back_all(doors: Door) -> None:
    two = await prepared_for(doors)
    ran: list[str] = []
    for first in (User, Pledge):
        with pytest.raises(IntegrityError) as caught:
            async with doors.scope(two.factory(twophase=True)) as session:
                doors.call(on_rollback, lambda: ran.append("rollback"))
                await session.execute(text("SELECT 1"), bind_arguments={"mapper": first})
                work(session, breaks=True)
        assert errors.outcome_of(caught.value) == "rolled back"
    assert ran == ["rollback", "rollback"]
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


@pytest.mark.parametrize("model", [User, Pledge])
async def test_an_aborted_transaction_is_not_prepared_in_silence(doors: Door, model: Any) -> None:
    two = await prepared_for(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(two.factory(twophase=True)) as session:
            work(session)
            await session.flush()
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT nothing FROM nowhere"), bind_arguments={"mapper": model})
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


@pytest.mark.parametrize("model", [User, Pledge])
async def test_a_failure_that_a_listener_of_before_commit_swallows_is_not_prepared_in_silence(
    doors: Door, model: Any
) -> None:
    two = await prepared_for(doors)

    def swallow(sync_session: Any) -> None:
        with pytest.raises(DBAPIError):
            sync_session.execute(text("SELECT nothing FROM nowhere"), bind_arguments={"mapper": model})

    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(two.factory(twophase=True)) as session:
            event.listen(doors.sync(session), "before_commit", swallow)
            work(session)
            await session.flush()
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("who", ["users", "pledges"])
async def test_an_interrupt_of_prepare_leaves_nothing_behind(doors: Door, who: str, after: bool) -> None:
    two = await prepared_for(doors)
    engine = two.users_sync if who == "users" else two.pledges_sync

    def interrupt(_: Any) -> None:
        raise Interrupt

    with pytest.raises(Interrupt) as caught, at_statement(engine, "PREPARE TRANSACTION", interrupt, after=after):
        async with doors.scope(two.factory(twophase=True)) as session:
            work(session)
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


async def test_a_marker_table_that_is_not_there_is_an_error_that_says_how_to_make_it(doors: Door) -> None:
    two = two_databases(doors)
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            await session.execute(text("SELECT 1"), bind_arguments={"mapper": Pledge})
    assert "commits.create_table(engine)" in "".join(caught.value.__notes__)
    assert "twophase" in "".join(caught.value.__notes__)
    assert await two.committed() == (0, 0)


# The decision, and what comes after it


async def test_a_refused_decision_rolls_back_all(doors: Door) -> None:
    two = await prepared_for(doors)

    def take_away(connection: Any) -> None:
        with two.users_sync.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
            gid = other.exec_driver_sql(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            ).scalar_one()
            other.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")

    with (
        pytest.raises(DBAPIError) as caught,
        at_statement(two.users_sync, "COMMIT PREPARED", take_away),
    ):
        async with doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


async def test_a_decision_that_somebody_else_has_carried_out_is_a_success(doors: Door) -> None:
    two = await prepared_for(doors)

    def commit_first(connection: Any) -> None:
        with two.users_sync.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
            gid = other.exec_driver_sql(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            ).scalar_one()
            other.exec_driver_sql(f"COMMIT PREPARED '{gid}'")

    with at_statement(two.users_sync, "COMMIT PREPARED", commit_first):
        async with doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert await two.committed() == (1, 1)
    assert await two.prepared() == []


@pytest.mark.parametrize("after", [False, True], ids=["before the server had it", "after it was done"])
async def test_a_decision_without_an_answer_is_unknown_and_recovery_goes_by_what_was_done(
    doors: Door, after: bool
) -> None:
    two = await prepared_for(doors)
    ran: list[str] = []

    with (
        pytest.raises(errors.CommitOutcomeUnknown) as caught,
        at_statement(two.users_sync, "COMMIT PREPARED", raises_as_lost if after else cut, after=after),
    ):
        async with doors.scope(two.factory(twophase=True)) as session:
            doors.call(on_commit, lambda: ran.append("commit"))
            doors.call(on_rollback, lambda: ran.append("rollback"))
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "unknown"
    assert ran == []
    left = await two.prepared()
    assert len(left) == (1 if after else 2)
    assert all(str(caught.value.key) in gid for gid in left)
    expected = "committed" if after else "rolled back"
    assert [found.decision for found in await recover(two)] == [expected] * len(left)
    assert await two.committed() == ((1, 1) if after else (0, 0))
    assert await two.prepared() == []


def raises_as_lost(connection: Any) -> None:
    """Make the answer to a statement get lost."""
    cut(connection)
    connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("after", [False, True], ids=["before the server had it", "after it was done"])
async def test_with_verify_commit_a_decision_without_an_answer_is_carried_out(doors: Door, after: bool) -> None:
    two = await prepared_for(doors)
    ran: list[str] = []
    with at_statement(two.users_sync, "COMMIT PREPARED", raises_as_lost if after else cut, after=after):
        async with doors.scope(two.factory(twophase=True), verify_commit=True) as session:
            doors.call(on_commit, lambda: ran.append("commit"))
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert ran == ["commit"]
    assert await two.committed() == (1, 1)
    assert await two.prepared() == []


async def test_a_database_that_is_lost_after_the_decision_is_a_success_that_recovery_completes(
    doors: Door, caplog: pytest.LogCaptureFixture
) -> None:
    two = await prepared_for(doors)
    ran: list[str] = []
    with (
        caplog.at_level(logging.WARNING, "sessionkit"),
        at_statement(two.pledges_sync, "COMMIT PREPARED", cut),
    ):
        async with doors.scope(two.factory(twophase=True)) as session:
            doors.call(on_commit, lambda: ran.append("commit"))
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert ran == ["commit"]
    assert "recover_prepared() ends it" in caplog.text
    assert await two.committed() == (1, 0)
    assert [found.decision for found in await recover(two)] == ["committed"]
    assert await two.committed() == (1, 1)


async def test_an_interrupt_after_the_decision_says_that_it_is_committed(doors: Door) -> None:
    two = await prepared_for(doors)

    def interrupt(_: Any) -> None:
        raise Interrupt

    with pytest.raises(Interrupt) as caught, at_statement(two.pledges_sync, "COMMIT PREPARED", interrupt):
        async with doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "committed"
    assert [found.decision for found in await recover(two)] == ["committed"]
    assert await two.committed() == (1, 1)


# Recovery


async def leave_prepared(two: Two, *, decided: bool = False) -> None:
    """Leave a unit in the middle of its commit."""
    engine = two.pledges_sync if decided else two.users_sync

    def interrupt(_: Any) -> None:
        raise Interrupt

    with pytest.raises(Interrupt), at_statement(engine, "COMMIT PREPARED", interrupt):
        async with two.doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))


async def test_recovery_lists_what_is_prepared_with_its_age_and_ends_it_once(doors: Door) -> None:
    two = await prepared_for(doors)
    await leave_prepared(two, decided=True)
    (gid,) = await two.prepared()
    (listed,) = await recover(two, resolve=False)
    assert (listed.gid, listed.decision) == (gid, None)
    assert 0 <= listed.age < 60
    (young,) = await recover(two, older_than=60)
    assert (young.gid, young.decision) == (gid, None)
    assert await two.prepared() == [gid]
    (ended,) = await recover(two)
    assert (ended.gid, ended.decision) == (gid, "committed")
    assert await recover(two) == []
    assert await two.committed() == (1, 1)


async def test_recovery_leaves_alone_what_others_have_prepared(doors: Door) -> None:
    two = await prepared_for(doors)
    once = uuid4().hex  # the names are the server's, and other processes run this test on it
    foreign = [f"somebody's {once}", f"sessionkit.0.0.{once}", f"_sa_{once}"]
    for gid in foreign:
        async with doors.enter(two.users.connect()) as connection:
            await connection.execute(text("SELECT pg_current_xact_id()"))
            quoted = gid.replace("'", "''")
            await connection.execute(text(f"PREPARE TRANSACTION '{quoted}'"))
            await connection.invalidate()
    assert await recover(two) == []
    assert sorted(await two.prepared()) == sorted(foreign)


async def test_recovery_without_the_coordinators_engine_decides_nothing(doors: Door) -> None:
    two = await prepared_for(doors)
    await leave_prepared(two, decided=True)
    ask = doors.twin(binding.recover_prepared, binding.async_recover_prepared)
    (found,) = await ask(two.pledges, older_than=0)
    assert found.decision is None
    assert len(await two.prepared()) == 1
    assert [each.decision for each in await recover(two)] == ["committed"]


async def test_recovery_of_a_unit_that_is_still_at_work_rolls_it_back_as_a_whole(doors: Door) -> None:
    two = await prepared_for(doors)
    with pytest.raises(DBAPIError) as caught, at_statement(two.users_sync, "COMMIT PREPARED", recovering(two)):
        async with doors.scope(two.factory(twophase=True)) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


def recovering(two: Two) -> Any:
    def act(_: Any) -> None:
        found = binding._recover([two.users_sync, two.pledges_sync], 0, True, False)
        assert [each.decision for each in found] == ["rolled back", "rolled back"]

    return act


async def test_recoveries_at_the_same_time_come_to_the_same_end(doors: Door) -> None:
    two = await prepared_for(doors)
    for decided in (False, True):
        await leave_prepared(two, decided=decided)

        async def once() -> list[Any]:
            return [found.decision for found in await recover(two)]

        verdict = "committed" if decided else "rolled back"
        for decisions in await doors.together(*[once for _ in range(4)]):
            assert set(decisions) <= {verdict, None}
        await recover(two)
        assert await two.prepared() == []
        assert await two.committed() == ((1, 1) if decided else (0, 0))


# What is refused


async def test_a_scope_of_another_factory_inside_would_not_take_part_and_is_refused(doors: Door) -> None:
    two = await prepared_for(doors)
    other = doors.factory(two.pledges)
    async with doors.scope(two.factory(twophase=True)) as session:
        await session.execute(insert(User).values(name="ann"))
        with pytest.raises(errors.ScopeError, match="another factory.*would not take part"):
            async with doors.scope(other):
                pytest.fail("entered")
        async with doors.scope(other, propagation="new") as inner:
            inner.add(Account(id=2))
    assert await two.committed() == (1, 0)


async def test_a_session_on_a_connection_of_the_callers_is_refused(doors: Door) -> None:
    async with doors.connect() as connection:
        factory = doors.factory(doors.raw(connection), twophase=True)
        with pytest.raises(errors.OptionError, match="the scope must not prepare"):
            async with doors.scope(factory) as session:
                await session.execute(text("SELECT 1"))


@pytest.mark.parametrize("older_than", [-1, float("nan"), True])
async def test_an_age_that_is_none_is_refused(doors: Door, older_than: Any) -> None:
    with pytest.raises(errors.OptionError, match="older_than"):
        await recover(two_databases(doors), older_than=older_than)
