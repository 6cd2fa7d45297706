"""Law 5: with verify_commit the outcome of a COMMIT whose answer is lost is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import Retry, commits, errors
from tests.contract.breaking import backend_pid, kill_backend, names
from tests.contract.lost import (
    FAULTS,
    LOST_COMMITS,
    RETRY,
    Log,
    create_markers,
    link,
    markers,
    slow_down_commits,
    somebody_waits_for_a_lock,
)
from tests.support.faults import Fault
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
PSYCOPG = pytest.mark.doors("postgresql-sync", "postgresql-async-psycopg")


# verify_commit=True


@POSTGRESQL
async def test_the_marker_is_one_row_in_the_units_own_transaction(doors: Door) -> None:
    await create_markers(doors)
    async with doors.scope(verify_commit=True):
        pass  # whether the table is there is asked once
    with doors.statements() as sql:
        async with doors.scope(verify_commit=True) as session:
            session.add(User(name="ann"))
    assert [line.split(" ")[0] for line in sql] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
    assert "sessionkit_commit" in sql[2]
    ((_, state),) = await markers(doors)
    assert state == "C"


async def test_a_unit_that_rolls_back_reads_or_does_nothing_leaves_no_marker(doors: Door) -> None:
    await create_markers(doors)
    with pytest.raises(LookupError):
        async with doors.scope(verify_commit=True) as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError
    async with doors.scope(verify_commit=True):
        pass
    async with doors.scope(verify_commit=True, read_only=True) as session:
        await session.execute(text("SELECT 1"))
    assert await markers(doors) == []


@POSTGRESQL
async def test_a_committed_unit_whose_answer_is_lost_returns_normally_and_runs_its_hooks_once(doors: Door) -> None:
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        assert await doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY)() == 1
        assert struck.struck
    assert (unit.runs, unit.hooks) == (1, ["commit 1"])
    assert await names(doors) == ["run 1"]
    assert [state for _, state in await markers(doors)] == ["C"]


@POSTGRESQL
async def test_a_question_whose_connection_fails_in_the_drivers_own_words_is_put_again(doors: Door) -> None:
    """Asyncpg's errors, for one, come as they are while it connects."""
    await create_markers(doors)
    unit, refused = Log(), list[object]()

    class Refused(Exception):
        pass

    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE_REPLY)

        def refuse(*_: object) -> None:
            if struck.struck and not refused:
                refused.append(Refused())
                raise Refused

        engine = doors.sync_engine_of(way.engine)
        event.listen(engine, "checkout", refuse)
        assert await doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY)() == 1
    assert len(refused) == 1
    assert (unit.runs, unit.hooks) == (1, ["commit 1"])
    assert await names(doors) == ["run 1"]


@POSTGRESQL
async def test_a_unit_whose_commit_never_arrived_is_run_again_with_a_new_key(doors: Door) -> None:
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.LOSE)
        assert await doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY)() == 2
        assert struck.struck
    assert (unit.runs, unit.hooks) == (2, ["rollback 1", "commit 2"])
    assert await names(doors) == ["run 2"]
    # The first key is claimed, so that it can never be committed; the second is the unit's.
    keys = await markers(doors)
    assert sorted(state for _, state in keys) == ["C", "T"]
    assert len({key for key, _ in keys}) == 2


@POSTGRESQL
async def test_a_verified_rollback_that_is_not_retried_is_the_databases_error(doors: Door) -> None:
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE)
        with pytest.raises(DBAPIError) as caught:
            async with doors.scope(way.factory, verify_commit=True) as session:
                await unit.body(session)
    assert errors.outcome_of(caught.value) == "rolled back"
    assert unit.hooks == ["rollback 1"]
    assert await names(doors) == []


@POSTGRESQL
async def test_the_claim_waits_for_a_commit_that_the_server_is_still_carrying_out(doors: Door) -> None:
    """A SELECT would find nothing, and the unit would be done twice."""
    await create_markers(doors)
    await slow_down_commits(doors)
    unit = Log()
    with link(doors) as way:
        struck = way.proxy.at("COMMIT", Fault.SWALLOW_REPLY)
        run = doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY, commit_timeout=0.2)
        async with doors.connect() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))

            async def letting_go() -> None:
                await somebody_waits_for_a_lock(doors, 2)  # the COMMIT, and who asks for its outcome
                assert await names(doors) == []
                await holder.rollback()

            result, _ = await doors.together(run, letting_go)
        assert struck.struck
    assert result == 1
    assert unit.hooks == ["commit 1"]
    assert await names(doors) == ["run 1"]


@pytest.mark.doors("postgresql-sync-psycopg2", "postgresql-async")
async def test_the_claim_waits_for_a_commit_that_is_still_on_its_way(doors: Door) -> None:
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        late = way.proxy.at("COMMIT", Fault.LATE)

        async def committing() -> int:
            return int(await doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY)())

        async def arriving() -> None:
            await somebody_waits_for_a_lock(doors)
            assert await names(doors) == []
            await doors._outside(late.deliver)

        result, _ = await doors.together(committing, arriving)
    assert result == 1
    assert unit.hooks == ["commit 1"]
    assert await names(doors) == ["run 1"]


@pytest.mark.doors("postgresql-sync-psycopg2", "postgresql-async")
async def test_a_commit_that_arrives_after_its_key_was_claimed_cannot_commit_any_more(doors: Door) -> None:
    """The owner is thrown out while the claim waits; its COMMIT, when it comes, meets nobody."""
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        late = way.proxy.at("COMMIT", Fault.LATE)
        pids: list[int] = []

        async def body(session: Any) -> int:
            pids.append(await backend_pid(session))
            return await unit.body(session)

        async def committing() -> int:
            return int(await doors.decorate(body, way.factory, verify_commit=True, retry=RETRY)())

        async def ending() -> None:
            await somebody_waits_for_a_lock(doors)
            await kill_backend(doors, pids[0])

        result, _ = await doors.together(committing, ending)
        assert late.struck
    assert result == 2
    assert await names(doors) == ["run 2"]
    assert sorted(state for _, state in await markers(doors)) == ["C", "T"]


@PSYCOPG
async def test_a_marker_that_arrives_with_its_commit_after_its_key_was_claimed_takes_its_unit_along(
    doors: Door,
) -> None:
    """The claim has nobody to wait for. What comes later is a duplicate, and the COMMIT behind it is not carried out."""
    await create_markers(doors)
    unit = Log()
    with link(doors) as way:
        late = way.proxy.at("COMMIT", Fault.LATE)
        assert await doors.decorate(unit.body, way.factory, verify_commit=True, retry=RETRY)() == 2
        await doors._outside(late.deliver)
    assert unit.hooks == ["rollback 1", "commit 2"]
    assert await names(doors) == ["run 2"]
    assert sorted(state for _, state in await markers(doors)) == ["C", "T"]


@POSTGRESQL
async def test_an_answer_that_cannot_be_had_in_time_is_unknown_and_carries_the_key(doors: Door) -> None:
    await create_markers(doors)
    unit = Log()
    retry = Retry(5, wait=0.001, timeout=1)
    with link(doors) as way:
        async with doors.scope(way.factory):
            pass
        struck = way.proxy.at("COMMIT", Fault.LOSE_REPLY)

        async def body(session: Any) -> int:
            run = await unit.body(session)
            await session.flush()
            await doors._outside(way.proxy.stop_listening)
            return run

        with pytest.raises(errors.CommitOutcomeUnknown, match="got no answer") as caught:
            await doors.decorate(body, way.factory, verify_commit=True, retry=retry)()
        assert struck.struck
    assert unit.hooks == []
    assert caught.value.key is not None
    assert await names(doors) == ["run 1"]
    # Later somebody may ask with the key.
    async with doors.connect() as connection:
        verdict = await connection.run_sync(commits.claim, caught.value.key)
        await connection.commit()
    assert verdict == "committed"


async def test_a_claim_of_a_key_that_nobody_has_says_rolled_back_and_stays_so(doors: Door) -> None:
    await create_markers(doors)
    key = "f" * 32
    for _ in range(2):
        async with doors.connect() as connection:
            assert await connection.run_sync(commits.claim, key) == "rolled back"
            await connection.commit()
    assert await markers(doors) == [(key, "T")]


async def test_without_its_table_verify_commit_fails_before_the_body_and_says_what_to_do(doors: Door) -> None:
    ran = []
    with pytest.raises(errors.OptionError, match=r"sessionkit\.commits\.create_table\(engine\)"):
        async with doors.scope(verify_commit=True) as session:
            ran.append(session)
    assert ran == []
    await create_markers(doors)
    async with doors.scope(verify_commit=True) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_connection_that_cannot_be_had_fails_the_attempt_and_not_the_look_for_the_table(doors: Door) -> None:
    """At the entry it could not be retried. Asyncpg's errors, for one, come as they are while it connects."""
    await create_markers(doors)
    ran: list[object] = []

    class Refused(Exception):
        pass

    def refuse(*_: object) -> None:
        if len(ran) < 2:
            raise Refused

    async def unit(session: Any) -> None:
        ran.append(session)
        session.add(User(name="ann"))
        await session.flush()

    event.listen(doors.sync_engine, "checkout", refuse)
    try:
        await doors.decorate(unit, verify_commit=True, retry=Retry(3, on=Refused, wait=0))()
    finally:
        event.remove(doors.sync_engine, "checkout", refuse)
    assert len(ran) == 2
    assert await names(doors) == ["ann"]


@POSTGRESQL
async def test_a_deferred_constraint_that_fails_at_commit_is_no_unknown_outcome(doors: Door) -> None:
    await create_markers(doors)
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope(verify_commit=True) as session:
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await markers(doors) == []


# The marker table


async def test_old_markers_are_pruned_and_young_ones_stay(doors: Door) -> None:
    await create_markers(doors)
    await create_markers(doors)  # again: it is there
    prune = doors.twin(commits.prune, commits.async_prune)
    async with doors.scope(verify_commit=True) as session:
        session.add(User(name="ann"))
    assert await prune(doors.engine) == 0
    assert len(await markers(doors)) == 1
    await doors.write("UPDATE sessionkit_commit SET created_at = '2020-01-01 00:00:00'")
    assert await prune(doors.engine, older_than=3600) == 1
    assert await markers(doors) == []


@pytest.mark.parametrize("age", [-1, True, float("nan")])
async def test_an_age_that_is_none_is_refused(doors: Door, age: float) -> None:
    with pytest.raises(errors.OptionError, match="older_than="):
        await doors.twin(commits.prune, commits.async_prune)(doors.engine, older_than=age)


# verify_commit=function


@POSTGRESQL
@FAULTS
async def test_the_application_can_be_asked_instead(doors: Door, fault: Fault) -> None:
    unit = Log()
    asked: list[Any] = []

    async def is_there(session: Any) -> bool:
        asked.append(session)
        return bool((await session.execute(text("SELECT count(*) FROM users"))).scalar_one())

    with link(doors) as way:
        way.proxy.at("COMMIT", fault)
        run = doors.decorate(unit.body, way.factory, verify_commit=doors._coloured(is_there), retry=RETRY)
        assert await run() == (1 if LOST_COMMITS[fault] else 2)
    assert len(asked) == 1
    assert len(await names(doors)) == 1
    assert unit.hooks == (["commit 1"] if LOST_COMMITS[fault] else ["rollback 1", "commit 2"])


@POSTGRESQL
@pytest.mark.parametrize("answer", [None, "yes", 1], ids=str)
async def test_an_application_that_cannot_tell_leaves_the_outcome_unknown(doors: Door, answer: Any) -> None:
    unit = Log()
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        with pytest.raises(errors.CommitOutcomeUnknown) as caught:
            await doors.decorate(unit.body, way.factory, verify_commit=lambda _: answer, retry=RETRY)()
    assert unit.runs == 1
    if answer is not None:
        assert caught.value.__cause__ is not None
        assert "returns True (committed), False, or None" in caught.value.__cause__.__notes__[0]


@POSTGRESQL
async def test_a_question_that_fails_leaves_the_outcome_unknown_and_is_told(doors: Door) -> None:
    def ask(_session: Any) -> bool:
        raise LookupError("the question is wrong")

    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        with pytest.raises(errors.CommitOutcomeUnknown) as caught:
            async with doors.scope(way.factory, verify_commit=ask) as session:
                session.add(User(name="ann"))
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert "the question is wrong" in caught.value.__cause__.__notes__[0]
    assert errors.outcome_of(caught.value) == "unknown"


async def test_nobody_is_asked_if_the_answer_came(doors: Door) -> None:
    def ask(_session: Any) -> bool:
        raise AssertionError("asked")

    async with doors.scope(verify_commit=ask) as session:
        session.add(User(name="ann"))
    with pytest.raises(LookupError):
        async with doors.scope(verify_commit=ask) as session:
            raise LookupError
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("value", [1, "yes", None, object()], ids=["a number", "a string", "None", "an object"])
async def test_verify_commit_must_be_a_bool_or_a_function(doors: Door, value: Any) -> None:
    with pytest.raises(errors.OptionError, match="verify_commit="):
        doors.Session.scope(verify_commit=value)
