"""Several databases in one scope: the options and hooks hold for all, and a commit that breaks half-way is told as it is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import READ_ONLY, Retry, binding, errors, on_commit, on_rollback
from tests.contract.many import at_commit, cut, two_databases, work
from tests.contract.settings import READ_ONLY_VIOLATION, error_code
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from tests.contract.many import Two
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Interrupt(BaseException):
    """As a KeyboardInterrupt, which an event loop would not let a test catch."""


def note(seen: list[str], what: str, _: Any) -> None:
    seen.append(what)


async def with_account(two: Two) -> Two:
    async with two.doors.scope(two.doors.factory(two.pledges)) as session:
        session.add(Account(id=1))
    return two


async def test_a_scope_commits_in_every_database_that_it_used(doors: Door) -> None:
    two = await with_account(two_databases(doors))
    async with doors.scope(two.factory()) as session:
        work(session)
    assert await two.committed() == (1, 1)


async def test_a_failure_rolls_back_in_every_database(doors: Door) -> None:
    two = await with_account(two_databases(doors))
    with pytest.raises(LookupError):
        async with doors.scope(two.factory()) as session:
            work(session)
            await session.flush()
            raise LookupError
    assert await two.committed() == (0, 0)


@pytest.mark.parametrize("model", [User, Pledge])
async def test_read_only_is_kept_by_every_database(doors: Door, model: Any) -> None:
    two = two_databases(doors)
    values = {"name": "ann"} if model is User else {"account_id": 1}
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(two.factory(), preset=READ_ONLY) as session:
            await session.execute(insert(model).values(**values))
    assert error_code(caught.value) == READ_ONLY_VIOLATION[doors.backend]
    async with doors.scope(two.factory()) as session:
        session.add(User(name="the next user of the connection"))
    assert await two.committed() == (1, 0)


@pytest.mark.doors(backend="postgresql")
async def test_a_preset_holds_in_every_database(doors: Door) -> None:
    two = two_databases(doors)
    async with doors.scope(two.factory(), isolation="SERIALIZABLE", lock_timeout=3) as session:
        for model in (User, Pledge):
            shown = await session.execute(
                text("SELECT current_setting('transaction_isolation'), current_setting('lock_timeout')"),
                bind_arguments={"mapper": model},
            )
            assert tuple(shown.one()) == ("serializable", "3s")


async def test_a_swallowed_failure_in_one_database_keeps_all_from_committing(doors: Door) -> None:
    two = two_databases(doors)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(two.factory()) as session:
            session.add(User(name="ann"))
            await session.flush()
            with pytest.raises(IntegrityError):
                await session.execute(insert(Pledge).values(id=1, account_id=None))
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert await two.committed() == (0, 0)


async def test_hooks_run_once_after_the_last_database_has_committed(doors: Door) -> None:
    two = await with_account(two_databases(doors))
    ran: list[str] = []
    committed: list[Any] = []
    with at_commit(two.users_sync, committed.append), at_commit(two.pledges_sync, committed.append):
        async with doors.scope(two.factory()) as session:
            doors.call(on_commit, lambda: ran.append(f"after {len(committed)}"))
            work(session)
    assert ran == ["after 2"]


# A commit that breaks half-way


async def test_databases_commit_in_the_order_in_which_they_were_used_first(doors: Door) -> None:
    two = await with_account(two_databases(doors))
    orders: list[list[str]] = []
    for first, second in [(User, Pledge), (Pledge, User)] * 3:
        seen: list[str] = []
        with (
            at_commit(two.users_sync, partial(note, seen, "users")),
            at_commit(two.pledges_sync, partial(note, seen, "pledges")),
        ):
            async with doors.scope(two.factory()) as session:
                for model in (first, second):
                    await session.execute(text("SELECT 1"), bind_arguments={"mapper": model})
        orders.append(seen)
    assert orders == [["users", "pledges"], ["pledges", "users"]] * 3


async def test_a_refusal_after_another_database_has_committed_is_told_with_both_outcomes(doors: Door) -> None:
    two = two_databases(doors)
    ran: list[str] = []
    with pytest.raises(errors.PartialCommit) as caught:
        async with doors.scope(two.factory()) as session:
            doors.call(on_commit, lambda: ran.append("commit"))
            doors.call(on_rollback, lambda: ran.append("rollback"))
            await session.execute(insert(User).values(name="ann"))
            work(session, breaks=True, name="bob")
    error = caught.value
    assert error.outcomes == {two.users_sync: "committed", two.pledges_sync: "rolled back"}
    assert list(error.outcomes) == [two.users_sync, two.pledges_sync]
    assert isinstance(error.__cause__, IntegrityError)
    assert errors.outcome_of(error) == "unknown"
    assert ran == []
    assert await two.committed() == (2, 0)
    assert "twophase=True" in str(error)
    assert "is committed" in str(error)
    assert "is rolled back" in str(error)


async def test_a_refusal_by_the_first_database_is_the_drivers_own_error_and_nothing_is_committed(doors: Door) -> None:
    two = two_databases(doors)
    ran: list[str] = []
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope(two.factory()) as session:
            doors.call(on_rollback, lambda: ran.append("rollback"))
            await session.execute(insert(Pledge).values(account_id=404))
            session.add(User(name="ann"))
    assert errors.outcome_of(caught.value) == "rolled back"
    assert ran == ["rollback"]
    assert await two.committed() == (0, 0)


async def test_a_partial_commit_is_never_retried(doors: Door) -> None:
    two = two_databases(doors)
    attempts = 0
    with pytest.raises(errors.PartialCommit):
        async for attempt in doors.attempts(two.factory(), retry=Retry(3, on=Exception, wait=0)):
            async with attempt as session:
                attempts += 1
                await session.execute(insert(User).values(name=f"ann{attempts}"))
                work(session, breaks=True)
    assert attempts == 1


def errors_of_any_kind() -> Any:
    from sessionkit import Retry

    return Retry(3, on=Exception, wait=0)


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("which", ["first", "second"])
async def test_a_connection_that_is_lost_in_commit_leaves_that_database_unknown(doors: Door, which: str) -> None:
    two = await with_account(two_databases(doors))
    lost = two.users_sync if which == "first" else two.pledges_sync
    with pytest.raises(errors.PartialCommit) as caught, at_commit(lost, cut):
        async with doors.scope(two.factory()) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    expected = ("unknown", "rolled back") if which == "first" else ("committed", "unknown")
    assert tuple(caught.value.outcomes.values()) == expected
    assert errors.outcome_of(caught.value) == "unknown"


async def test_an_interrupt_half_way_passes_as_it_is_and_says_what_was_committed(doors: Door) -> None:
    two = await with_account(two_databases(doors))

    def interrupt(_: Any) -> None:
        raise Interrupt

    with pytest.raises(Interrupt) as caught, at_commit(two.pledges_sync, interrupt):
        async with doors.scope(two.factory()) as session:
            await session.execute(insert(User).values(name="ann"))
            session.add(Pledge(account_id=1))
    assert errors.outcome_of(caught.value) == "unknown"
    assert "is committed" in "".join(caught.value.__notes__)
    assert await two.committed() == (1, 0)


async def test_what_only_reads_in_several_databases_has_nothing_to_tear(doors: Door) -> None:
    two = two_databases(doors)

    def fail(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught, at_commit(two.pledges_sync, fail):
        async with doors.scope(two.factory(), read_only=True) as session:
            for model in (User, Pledge):
                await session.execute(text("SELECT 1"), bind_arguments={"mapper": model})
    assert errors.outcome_of(caught.value) == "rolled back"


@pytest.mark.parametrize("verify", [True, lambda session: True], ids=["marker", "function"])
async def test_an_outcome_of_several_databases_cannot_be_verified_without_two_phases(doors: Door, verify: Any) -> None:
    two = await with_account(two_databases(doors))
    with pytest.raises(errors.ScopeError, match="do not commit as one; use twophase=True"):
        async with doors.scope(two.factory(), verify_commit=verify) as session:
            work(session)
    assert await two.committed() == (0, 0)


async def test_what_a_listener_of_before_commit_breaks_and_swallows_is_not_committed(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))

            def swallow(sync_session: Any) -> None:
                try:
                    sync_session.execute(text("SELECT nothing FROM nowhere"))
                except DBAPIError:
                    pass

            event.listen(doors.sync(session), "before_commit", swallow)
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert await doors.scalar("SELECT count(*) FROM users") == 0


@pytest.mark.doors(backend="sqlite")
async def test_a_database_without_two_phases_is_refused_before_the_first_statement(doors: Door) -> None:
    two = two_databases(doors)
    with doors.statements(two.users) as sql, pytest.raises(errors.OptionError, match="two-phase commit was asked for"):
        async with doors.scope(two.factory(twophase=True)):
            pytest.fail("entered")
    assert sql == []
    with pytest.raises(errors.OptionError, match="only on PostgreSQL"):
        await doors.twin(binding.recover_prepared, binding.async_recover_prepared)(two.users)


async def test_of_failures_in_two_databases_the_first_is_the_cause_whichever_database_was_used_first(
    doors: Door,
) -> None:
    Session = doors.factory(binds={User: doors.engine, Account: doors.other_engine()})
    failed: list[BaseException] = []
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(Session) as session:
            await session.execute(text("SELECT 1"), bind_arguments={"mapper": User})
            for mapper in (Account, User):
                with pytest.raises(DBAPIError) as swallowed:
                    await session.execute(text("SELECT no_such_column"), bind_arguments={"mapper": mapper})
                failed.append(swallowed.value)
    assert caught.value.__cause__ is failed[0]
