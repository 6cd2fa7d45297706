"""`no_rollback_for=`: exceptions that are answers and no failures; the unit commits, where nothing of it has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import IntegrityError

from sessionkit import Retry, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import names, swallow_failed_flush, swallow_failed_statement, take
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Rejected(Exception):
    """An answer of the application's: "no", with what led to it kept."""


class RejectedFirmly(Rejected):
    pass


ANSWERS = (Rejected,)


# A scope that owns its transaction


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_scope_commits_and_the_exception_passes_on(doors: Door, plain: bool, flushed: bool) -> None:
    ran: list[str] = []
    mine = Rejected("no")
    with pytest.raises(Rejected) as caught:
        async with doors.scope(doors.plain_factory() if plain else None, no_rollback_for=ANSWERS) as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name="ann"))
            if flushed:
                await session.flush()
            raise mine
    assert caught.value is mine
    assert await names(doors) == ["ann"]
    assert ran == ["commit"]
    assert errors.outcome_of(mine) == "committed"


async def test_a_subclass_of_a_named_class_commits_too(doors: Door) -> None:
    with pytest.raises(RejectedFirmly) as caught:
        async with doors.scope(no_rollback_for=(LookupError, Rejected)) as session:
            session.add(User(name="ann"))
            raise RejectedFirmly
    assert await names(doors) == ["ann"]
    assert errors.outcome_of(caught.value) == "committed"


@pytest.mark.parametrize("options", [{}, {"no_rollback_for": ()}, {"no_rollback_for": ANSWERS}])
async def test_any_other_exception_rolls_back(doors: Door, options: Any) -> None:
    with pytest.raises(LookupError) as caught:
        async with doors.scope(**options) as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError("mine")
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_without_the_option_such_an_exception_rolls_back(doors: Door) -> None:
    with pytest.raises(Rejected) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            raise Rejected
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_it_can_be_the_factorys_default_and_the_scopes_own_word_wins(doors: Door) -> None:
    factory = doors.factory(no_rollback_for=ANSWERS)
    with pytest.raises(Rejected):
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            raise Rejected
    with pytest.raises(Rejected):
        async with doors.scope(factory, no_rollback_for=()) as session:
            session.add(User(name="bob"))
            raise Rejected
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("form", ["first", "keyword"])
async def test_a_decorated_function_commits_and_raises(doors: Door, form: Any) -> None:
    async def body(session: Any, name: str) -> None:
        session.add(User(name=name))
        raise Rejected(name)

    with pytest.raises(Rejected, match="ann") as caught:
        await doors.decorate(body, form=form, no_rollback_for=ANSWERS)("ann")
    assert await names(doors) == ["ann"]
    assert errors.outcome_of(caught.value) == "committed"


async def test_what_has_committed_is_not_run_again(doors: Door) -> None:
    runs: list[int] = []

    async def body(session: Any) -> None:
        runs.append(1)
        session.add(User(name=f"run {len(runs)}"))
        raise Rejected

    retry = Retry(3, wait=0, on=Rejected)
    with pytest.raises(Rejected):
        await doors.decorate(body, retry=retry, no_rollback_for=ANSWERS)()
    assert len(runs) == 1
    with pytest.raises(Rejected):
        async for attempt in doors.attempts(retry=retry, no_rollback_for=ANSWERS):
            async with attempt as session:
                await body(session)
    assert len(runs) == 2
    assert await names(doors) == ["run 1", "run 2"]


# Only where the transaction is whole


async def test_after_a_failed_statement_that_was_swallowed_it_is_an_exception_like_any_other(doors: Door) -> None:
    await take(doors)
    ran: list[str] = []
    with pytest.raises(Rejected) as caught:
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            await swallow_failed_statement(session)
            raise Rejected
    assert await names(doors) == []
    assert ran == ["rollback"]
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_after_a_failed_flush_that_was_swallowed_it_is_an_exception_like_any_other(doors: Door) -> None:
    await take(doors)
    with pytest.raises(Rejected) as caught:
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            session.add(User(name="ann"))
            await session.flush()
            await swallow_failed_flush(session)
            raise Rejected
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_the_error_of_a_statement_is_never_an_answer(doors: Door) -> None:
    await take(doors)
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope(no_rollback_for=(IntegrityError,)) as session:
            session.add(User(name="ann"))
            await session.flush()
            session.add(User(name="taken"))
            await session.flush()
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_a_failure_that_its_savepoint_has_healed_is_none(doors: Door) -> None:
    await take(doors)
    with pytest.raises(Rejected) as caught:
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            session.add(User(name="ann"))
            with pytest.raises(IntegrityError):
                async with session.begin_nested():
                    session.add(User(name="taken"))
                    await session.flush()
            raise Rejected
    assert await names(doors) == ["ann"]
    assert errors.outcome_of(caught.value) == "committed"


async def test_a_rollback_that_was_asked_for_is_made(doors: Door) -> None:
    with pytest.raises(Rejected) as caught:
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            session.add(User(name="ann"))
            set_rollback_only()
            raise Rejected
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_a_flush_at_the_end_that_fails_leaves_nothing_and_both_errors_are_seen(doors: Door) -> None:
    await take(doors)
    await _fails_at_its_end(doors, User(name="taken"))


async def test_a_commit_that_the_database_refuses_leaves_nothing_and_both_errors_are_seen(doors: Door) -> None:
    await _fails_at_its_end(doors, Pledge(account_id=404))


async def _fails_at_its_end(doors: Door, refused: Any) -> None:
    mine = Rejected("no")
    with pytest.raises((Rejected, IntegrityError)) as caught:
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            session.add(User(name="ann"))
            await session.flush()
            session.add(refused)
            raise mine
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"
    if caught.value is not mine:
        chain: list[BaseException | None] = [caught.value]
        while chain[-1] is not None:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        assert mine in chain


# Inner scopes


async def test_a_joined_scope_does_not_doom_the_outer_one(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(Rejected):
            async with doors.scope(no_rollback_for=ANSWERS) as inner:
                inner.add(User(name="bob"))
                raise Rejected
    assert await names(doors) == ["ann", "bob"]


async def test_a_joined_scope_without_the_option_dooms_the_outer_one_that_has_it(doors: Door) -> None:
    """Its own word is what counts for what was done in it."""
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(no_rollback_for=ANSWERS) as session:
            session.add(User(name="ann"))
            with pytest.raises(LookupError):
                async with doors.scope():
                    raise LookupError
    assert await names(doors) == []


async def test_a_joined_decorated_function_does_not_doom_the_outer_scope(doors: Door) -> None:
    async def body(session: Any, name: str) -> None:
        session.add(User(name=name))
        raise Rejected

    inner = doors.decorate(body, no_rollback_for=ANSWERS)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(Rejected):
            await inner("bob")
    assert await names(doors) == ["ann", "bob"]


async def test_an_exception_that_no_outer_scope_named_rolls_back_when_it_leaves_it(doors: Door) -> None:
    with pytest.raises(Rejected) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            async with doors.scope(no_rollback_for=ANSWERS) as inner:
                inner.add(User(name="bob"))
                raise Rejected
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_an_exception_that_both_have_named_commits_all(doors: Door) -> None:
    factory = doors.factory(no_rollback_for=ANSWERS)
    with pytest.raises(Rejected) as caught:
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            async with doors.scope(factory) as inner:
                inner.add(User(name="bob"))
                raise Rejected
    assert await names(doors) == ["ann", "bob"]
    assert errors.outcome_of(caught.value) == "committed"


async def test_a_joined_scope_in_which_a_statement_failed_dooms_the_outer_one(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(Rejected):
                async with doors.scope(no_rollback_for=ANSWERS) as inner:
                    await swallow_failed_statement(inner)
                    raise Rejected
    assert await names(doors) == []


async def test_a_joined_scope_that_asked_for_a_rollback_dooms_the_outer_one(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(Rejected):
                async with doors.scope(no_rollback_for=ANSWERS):
                    set_rollback_only()
                    raise Rejected
    assert await names(doors) == []


async def test_a_savepoint_scope_in_which_a_statement_failed_is_undone(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(Rejected) as caught:
            async with doors.scope(propagation="savepoint", no_rollback_for=ANSWERS) as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                await swallow_failed_statement(inner)
                raise Rejected
    assert await names(doors) == ["ann"]
    assert isinstance(caught.value, Rejected)


async def test_a_savepoint_scope_keeps_what_was_done_in_it(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(Rejected):
            async with doors.scope(propagation="savepoint", no_rollback_for=ANSWERS) as inner:
                inner.add(User(name="bob"))
                raise Rejected
    assert await names(doors) == ["ann", "bob"]


# What is no class of exceptions


@pytest.mark.doors("sqlite-sync", "sqlite-async")
@pytest.mark.parametrize("wrong", [(5,), ("Rejected",), (Rejected("no"),), (int,), 5, "Rejected"])
async def test_what_is_no_class_of_exceptions_is_refused(doors: Door, wrong: Any) -> None:
    for make in (lambda: doors.Session.scope(no_rollback_for=wrong), lambda: doors.factory(no_rollback_for=wrong)):
        with pytest.raises(errors.OptionError, match="no_rollback_for") as caught:
            make()
        assert not isinstance(caught.value, errors.UnknownOptionError)
