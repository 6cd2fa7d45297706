"""Law 5: a COMMIT whose answer is lost is never retried, unless its outcome was found out; and every exception tells."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import Retry, commits, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import Cancelled, backend_pid, failing_driver_call, kill_backend, names, take
from tests.contract.lost import (
    LOST_COMMITS,
    create_markers,
    link,
    markers,
    settled,
    slow_down_commits,
    somebody_waits_for_a_lock,
)
from tests.support.faults import Fault
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
PSYCOPG = pytest.mark.doors("postgresql-sync", "postgresql-async-psycopg")
FAULTS = pytest.mark.parametrize("fault", LOST_COMMITS, ids=lambda fault: fault.name)

RETRY = Retry(5, wait=0.001)


class Log:
    """A unit that writes one row for each of its runs, and notes what it is told."""

    def __init__(self) -> None:
        self.runs = 0
        self.hooks: list[str] = []

    async def body(self, session: Any) -> int:
        self.runs += 1
        run = self.runs
        session.add(User(name=f"run {run}"))
        on_commit(lambda: self.hooks.append(f"commit {run}"))
        on_rollback(lambda: self.hooks.append(f"rollback {run}"))
        return run


# Without verify_commit


@POSTGRESQL
@FAULTS
async def test_an_answer_that_is_lost_is_an_unknown_outcome_and_is_not_retried(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        unit, log = Log(), []
        struck = way.proxy.at("COMMIT", fault)
        run = doors.decorate(unit.body, way.factory, retry=Retry(5, wait=0, before_retry=log.append, on=Exception))
        with pytest.raises(errors.CommitOutcomeUnknown, match="may have been committed or not") as caught:
            await run()
        assert struck.struck
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert caught.value.key is None
        assert errors.outcome_of(caught.value) == "unknown"
        assert (unit.runs, unit.hooks, log) == (1, [], [])
        assert await names(doors) == (["run 1"] if LOST_COMMITS[fault] else [])


@POSTGRESQL
@FAULTS
async def test_a_plain_scope_tells_of_an_unknown_outcome_too(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", fault)
        with pytest.raises(errors.CommitOutcomeUnknown, match="With verify_commit=True the scope finds out"):
            async with doors.scope(way.factory, name="order") as session:
                session.add(User(name="ann"))
        # The pool has got rid of what was lost.
        async with doors.scope(way.factory) as session:
            session.add(User(name="bob"))
    assert "bob" in await names(doors)


@POSTGRESQL
@FAULTS
async def test_a_read_only_unit_has_nothing_to_lose_and_is_run_again(doors: Door, fault: Fault) -> None:
    runs: list[int] = []

    async def body(session: Any) -> int:
        runs.append(1)
        return int((await session.execute(text("SELECT 7"))).scalar_one())

    with link(doors) as way:
        struck = way.proxy.at("COMMIT", fault)
        assert await doors.decorate(body, way.factory, read_only=True, retry=RETRY)() == 7
        assert struck.struck
    assert len(runs) == 2


@POSTGRESQL
@FAULTS
async def test_a_read_only_unit_without_retry_has_rolled_back(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", fault)
        with pytest.raises(DBAPIError) as caught:
            async with doors.scope(way.factory, read_only=True) as session:
                await session.execute(text("SELECT 1"))
    assert errors.outcome_of(caught.value) == "rolled back"


@POSTGRESQL
@pytest.mark.parametrize("word", ["INSERT", "SELECT 1"])
async def test_a_connection_that_is_lost_before_commit_is_retried(doors: Door, word: str) -> None:
    unit = Log()

    async def body(session: Any) -> None:
        await unit.body(session)
        await session.flush()
        await session.execute(text("SELECT 1"))

    with link(doors) as way:
        struck = way.proxy.at(word, Fault.LOSE_REPLY)
        await doors.decorate(body, way.factory, retry=RETRY)()
        assert struck.struck
    assert await names(doors) == ["run 2"]
    assert unit.hooks == ["rollback 1", "commit 2"]


@POSTGRESQL
async def test_a_backend_that_was_terminated_before_commit_is_no_unknown_outcome_of_a_flush(doors: Door) -> None:
    """The flush comes first, and finds it."""
    unit = Log()

    async def body(session: Any) -> None:
        await unit.body(session)
        if unit.runs == 1:
            await kill_backend(doors, await backend_pid(session))
            session.add(User(name="more"))

    await doors.decorate(body, retry=RETRY)()
    assert await names(doors) == ["run 2"]


# verify_commit=True


@POSTGRESQL
async def test_the_marker_is_one_row_in_the_units_own_transaction(doors: Door) -> None:
    await create_markers(doors)
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

        with pytest.raises(errors.CommitOutcomeUnknown, match="no answer could be had") as caught:
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


async def test_without_its_table_verify_commit_fails_before_the_commit_and_says_what_to_do(doors: Door) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(verify_commit=True) as session:
            session.add(User(name="ann"))
    assert "sessionkit.commits.create_table(engine)" in caught.value.__notes__[0]
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []


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


# outcome_of


async def test_the_outcome_of_a_bodys_error_is_rolled_back(doors: Door) -> None:
    for kind in (LookupError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind) as caught:
            async with doors.scope() as session:
                session.add(User(name="ann"))
                await session.flush()
                raise kind
        assert errors.outcome_of(caught.value) == "rolled back"


async def test_the_outcome_of_a_flush_error_and_of_an_unexpected_rollback_is_rolled_back(doors: Door) -> None:
    await take(doors)
    with pytest.raises(IntegrityError) as failed:
        async with doors.scope() as session:
            session.add(User(name="taken"))
    assert errors.outcome_of(failed.value) == "rolled back"
    with pytest.raises(errors.UnexpectedRollback) as unexpected:
        async with doors.scope() as session:
            with pytest.raises(IntegrityError):
                await session.execute(insert(User).values(name="taken"))
    assert errors.outcome_of(unexpected.value) == "rolled back"


async def test_the_outcome_of_a_failed_hook_is_what_the_hook_was_for(doors: Door) -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(errors.HookError) as committed:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(fail)
    assert errors.outcome_of(committed.value) == committed.value.outcome == "committed"
    with pytest.raises(errors.HookError) as undone:
        async with doors.scope():
            on_rollback(fail)
            set_rollback_only()
    assert errors.outcome_of(undone.value) == undone.value.outcome == "rolled back"


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("after", [True, False], ids=["carried out", "not sent"])
async def test_an_interrupt_in_the_commit_has_an_unknown_outcome(doors: Door, after: bool) -> None:
    """Ctrl-C while the driver waits for the answer: the transaction may have been committed."""
    hooks: list[str] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        async with failing_driver_call(doors, "do_commit", KeyboardInterrupt(), after=after):
            async with doors.scope() as session:
                on_commit(lambda: hooks.append("commit"))
                on_rollback(lambda: hooks.append("rollback"))
                session.add(User(name="ann"))
    assert errors.outcome_of(caught.value) == "unknown"
    assert hooks == []
    assert await names(doors) == (["ann"] if after else [])


async def test_an_exception_that_left_no_scope_has_an_unknown_outcome(doors: Door) -> None:
    assert errors.outcome_of(LookupError()) == "unknown"


async def test_the_outcome_is_told_through_what_an_exception_was_turned_into(doors: Door) -> None:
    with pytest.raises(ValueError, match="other") as caught:
        try:
            async with doors.scope():
                raise LookupError
        except LookupError as error:
            raise ValueError("other") from error
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_of_an_exception_group_the_outcome_is_told_if_all_agree(doors: Door) -> None:
    async def left(kind: str) -> Exception:
        try:
            async with doors.scope():
                if kind == "committed":
                    on_commit(lambda: 1 / 0)
                else:
                    raise LookupError
        except Exception as error:  # noqa: BLE001 - it is what is wanted
            return error
        raise AssertionError

    one, two, done = await left("rolled back"), await left("rolled back"), await left("committed")
    assert errors.outcome_of(ExceptionGroup("", [one, two])) == "rolled back"
    assert errors.outcome_of(ExceptionGroup("", [done, ExceptionGroup("", [done])])) == "committed"
    assert errors.outcome_of(ExceptionGroup("", [one, done])) == "unknown"
    assert errors.outcome_of(ExceptionGroup("", [one, ValueError()])) == "unknown"


async def test_an_exception_that_cannot_be_changed_tells_its_outcome_too(doors: Door) -> None:
    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    with pytest.raises(Frozen) as caught:
        async with doors.scope():
            raise Frozen
    assert errors.outcome_of(caught.value) == "rolled back"


@pytest.mark.doors(colour="async")
async def test_a_cancellation_tells_its_outcome_at_whichever_await_it_came(doors: Door) -> None:
    outcomes: set[str] = set()
    for number in range(60):
        await settled(doors)
        name = f"user {number}"

        async def body(name: str = name) -> None:
            async with doors.scope() as session:
                session.add(User(name=name))
                await session.flush()

        cancelled = Cancelled(body(), number)
        caught: list[BaseException] = []

        async def run(cancelled: Cancelled = cancelled, caught: list[BaseException] = caught) -> None:
            try:
                await cancelled
            except asyncio.CancelledError as error:
                caught.append(error)
                raise

        # gather() would make a new CancelledError, which knows nothing.
        await asyncio.gather(asyncio.ensure_future(run()), return_exceptions=True)
        if not cancelled.done:
            break
        outcome = errors.outcome_of(caught[0])
        outcomes.add(outcome)
        assert outcome == ("committed" if name in await names(doors) else "rolled back")
    assert outcomes == {"committed", "rolled back"}


@pytest.mark.doors(colour="async")
async def test_a_timeout_tells_the_outcome_of_the_scope_that_it_ended(doors: Door) -> None:
    loop = asyncio.get_running_loop()
    inside = asyncio.Event()

    async def unit() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            inside.set()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as timeout:
        async with asyncio.timeout(None) as limit:
            async with doors.scope() as session:
                session.add(User(name="ann"))
                await session.flush()
                limit.reschedule(loop.time())
                await asyncio.Event().wait()
    assert errors.outcome_of(timeout.value) == "rolled back"

    task = asyncio.create_task(unit())
    await inside.wait()
    with pytest.raises(TimeoutError) as waited:
        await asyncio.wait_for(task, 0)
    assert errors.outcome_of(waited.value) == "rolled back"


@pytest.mark.doors(colour="async")
async def test_a_task_group_tells_the_outcome_of_the_scopes_in_its_tasks(doors: Door) -> None:
    async def unit() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError

    with pytest.raises(ExceptionGroup) as group:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(unit())
    assert errors.outcome_of(group.value) == "rolled back"


@pytest.mark.doors(colour="async")
async def test_a_task_group_that_fails_inside_a_scope_has_rolled_it_back(doors: Door) -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
    assert errors.outcome_of(caught.value) == "rolled back"
    assert await names(doors) == []
