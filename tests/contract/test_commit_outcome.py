"""Law 5: a COMMIT whose answer is lost is never retried, unless its outcome was found out; and every exception tells."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import Retry, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import Cancelled, backend_pid, failing_driver_call, kill_backend, names, take
from tests.contract.lost import (
    FAULTS,
    LOST_COMMITS,
    RETRY,
    Log,
    link,
    settled,
)
from tests.support.faults import Fault
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
PSYCOPG = pytest.mark.doors("postgresql-sync", "postgresql-async-psycopg")


# Without verify_commit


@POSTGRESQL
@FAULTS
async def test_an_answer_that_is_lost_is_an_unknown_outcome_and_is_not_retried(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        unit, log = Log(), []
        struck = way.proxy.at("COMMIT", fault)
        run = doors.decorate(unit.body, way.factory, retry=Retry(5, wait=0, before_retry=log.append, on=Exception))
        with pytest.raises(errors.CommitOutcomeUnknown, match="may or may not have been committed") as caught:
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


# On a connection of the caller's own, where the release of a savepoint is the unit's COMMIT


@pytest.mark.parametrize("inner", [False, True], ids=["plain", "after a savepoint of its own"])
async def test_a_commit_that_fails_on_a_connection_of_the_callers_has_rolled_back(doors: Door, inner: bool) -> None:
    told: list[str] = []
    async with doors.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(insert(User).values(name="outer"))  # SQLite's driver begins with the first write
        factory = doors.factory(doors.raw(connection), join_transaction_mode="create_savepoint")
        with pytest.raises(IntegrityError) as caught:
            async with doors.scope(factory) as session:
                on_commit(lambda: told.append("committed"))
                on_rollback(lambda: told.append("rolled back"))
                if inner:
                    async with session.begin_nested():
                        session.add(User(name="ann"))
                session.add(User(name="outer"))  # is flushed by the commit
        assert errors.outcome_of(caught.value) == "rolled back"
        await transaction.commit()
    assert told == ["rolled back"]
    assert await names(doors) == ["outer"]


async def test_what_fails_after_the_release_on_a_connection_of_the_callers_has_committed(doors: Door) -> None:
    told: list[str] = []

    def fail(_: Any) -> None:
        raise LookupError

    async with doors.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(insert(User).values(name="outer"))
        factory = doors.factory(doors.raw(connection), join_transaction_mode="create_savepoint")
        with pytest.raises(LookupError) as caught:
            async with doors.scope(factory) as session:
                event.listen(doors.sync(session), "after_commit", fail)
                on_commit(lambda: told.append("committed"))
                session.add(User(name="ann"))
        assert errors.outcome_of(caught.value) == "committed"
        await transaction.commit()
    assert told == ["committed"]
    assert await names(doors) == ["outer", "ann"]


@pytest.mark.parametrize("inner", [False, True], ids=["plain", "after a savepoint of its own"])
async def test_of_a_release_without_an_answer_the_outcome_is_unknown(doors: Door, inner: bool) -> None:
    def cut(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("RELEASE"):
            raise LookupError

    async with doors.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(insert(User).values(name="outer"))
        factory = doors.factory(doors.raw(connection), join_transaction_mode="create_savepoint")
        with pytest.raises(errors.CommitOutcomeUnknown) as caught:
            async with doors.scope(factory) as session:
                if inner:
                    async with session.begin_nested():
                        session.add(User(name="ann"))
                session.add(User(name="bob"))
                event.listen(doors.sync_engine, "before_cursor_execute", cut)
        event.remove(doors.sync_engine, "before_cursor_execute", cut)
        assert isinstance(caught.value.__cause__, LookupError)
        await transaction.rollback()
