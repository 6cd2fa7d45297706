"""`manual_commit="savepoint"`: an application that commits by hand moves in as it is, and the scope still decides."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, inspect, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from sessionkit import Retry, errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import names, swallow_failed_flush, swallow_failed_statement, take
from tests.contract.failing import stale
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.filterwarnings("ignore:.*not durable before the scope ends")]

BY_HAND: dict[str, Any] = {"manual_commit": "savepoint"}


@pytest.fixture(params=["ours", "plain"])
def factory(request: pytest.FixtureRequest, doors: Door) -> Any:
    return doors.plain_factory() if request.param == "plain" else doors.Session


# commit()


async def test_a_commit_by_hand_is_not_the_commit(doors: Door, factory: Any) -> None:
    with doors.statements() as sql:
        async with doors.scope(factory, **BY_HAND) as session:
            session.add(User(name="ann"))
            await session.commit()
            assert await names(doors) == []
            session.add(User(name="bob"))
            await session.commit()
            assert await names(doors) == []
            assert "COMMIT" not in sql
            assert (await session.scalars(select(User.name).order_by(User.id))).all() == ["ann", "bob"]
    assert await names(doors) == ["ann", "bob"]
    assert sql.count("COMMIT") == 1
    assert "ROLLBACK" not in sql


async def test_a_commit_by_hand_flushes_and_what_follows_it_goes_with_the_scope(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(user := User(name="ann"))
        await session.commit()
        assert not session.new
        assert user in session
        session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


@pytest.mark.parametrize("expire", [False, True])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_commit_by_hand_expires_as_the_factory_says(doors: Door, expire: bool, plain: bool) -> None:
    make = doors.plain_factory if plain else doors.factory
    async with doors.scope(make(expire_on_commit=expire), **BY_HAND) as session:
        session.add(user := User(name="ann"))
        await session.commit()
        assert inspect(user).expired is expire
        await session.refresh(user)
        assert user.name == "ann"


async def test_nothing_to_commit_is_no_error(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        await session.commit()
        await session.commit()
        session.add(User(name="ann"))
        await session.commit()
        await session.commit()
    assert await names(doors) == ["ann"]


async def test_a_flush_that_fails_in_a_commit_by_hand_raises_its_own_error_and_a_rollback_heals(
    doors: Door, factory: Any
) -> None:
    await take(doors)
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(User(name="ann"))
        await session.commit()
        session.add(User(name="taken"))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        session.add(User(name="bob"))
        await session.commit()
    assert await names(doors) == ["ann", "bob"]


async def test_a_commit_by_hand_over_a_failed_statement_makes_nothing_whole(doors: Door, factory: Any) -> None:
    await take(doors)
    with pytest.raises((errors.SessionKitError, SQLAlchemyError)):
        async with doors.scope(factory, **BY_HAND) as session:
            session.add(User(name="ann"))
            await session.commit()
            await swallow_failed_statement(session)
            await session.commit()
    assert await names(doors) == []


# rollback()


async def test_a_rollback_by_hand_undoes_what_was_done_since_the_last_commit_by_hand(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(User(name="ann"))
        await session.commit()
        session.add(flushed := User(name="bob"))
        await session.flush()
        session.add(pending := User(name="eve"))
        await session.rollback()
        assert flushed not in session
        assert pending not in session
        session.add(User(name="joe"))
    assert await names(doors) == ["ann", "joe"]


async def test_a_rollback_by_hand_without_a_commit_by_hand_undoes_all_and_the_session_is_usable(
    doors: Door, factory: Any
) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(User(name="ann"))
        await session.flush()
        await session.rollback()
        await session.rollback()
        assert (await session.scalars(select(User.name))).all() == []
        session.add(User(name="bob"))
        await session.commit()
        await session.rollback()
        assert (await session.scalars(select(User.name))).all() == ["bob"]
    assert await names(doors) == ["bob"]


async def test_a_rollback_by_hand_puts_the_attributes_of_objects_back(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(user := User(name="ann", email="old"))
        await session.commit()
        await session.refresh(user)
        user.email = "new"
        await session.flush()
        await session.rollback()
        await session.refresh(user)
        assert user.email == "old"
    assert await doors.rows("SELECT name, email FROM users") == [("ann", "old")]


@pytest.mark.parametrize("fail", [swallow_failed_flush, swallow_failed_statement])
@pytest.mark.parametrize("before", [False, True])
async def test_a_rollback_by_hand_heals_the_unit(doors: Door, factory: Any, fail: Any, before: bool) -> None:
    await take(doors)
    async with doors.scope(factory, **BY_HAND) as session:
        if before:
            session.add(User(name="ann"))
            await session.commit()
        await fail(session)
        await session.rollback()
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
        session.add(User(name="bob"))
    assert await names(doors) == (["ann", "bob"] if before else ["bob"])


async def test_a_failure_that_was_swallowed_and_not_rolled_back_is_not_healed_by_the_commits_before_it(
    doors: Door, factory: Any
) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory, **BY_HAND) as session:
            session.add(User(name="ann"))
            await session.commit()
            await swallow_failed_statement(session)
    assert await names(doors) == []


async def test_the_loop_that_commits_each_row_and_rolls_the_bad_ones_back_works(doors: Door, factory: Any) -> None:
    await take(doors)
    async with doors.scope(factory, **BY_HAND) as session:
        for name in ("ann", "taken", "bob", "taken", "eve"):
            session.add(User(name=name))
            try:
                await session.commit()
            except IntegrityError:
                await session.rollback()
    assert await names(doors) == ["ann", "bob", "eve"]


# close()


async def test_a_close_by_hand_expunges_and_leaves_the_transaction_to_the_scope(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(user := User(name="ann"))
        await session.commit()
        session.add(flushed := User(name="bob"))
        await session.flush()
        session.add(pending := User(name="eve"))
        await session.close()
        assert list(session) == []
        assert not session.new
        assert all(inspect(known).session is None for known in (user, flushed, pending))
        assert doors.checked_out() == 1
        assert await names(doors) == []
        session.add(User(name="joe"))
    assert await names(doors) == ["ann", "bob", "joe"]


async def test_the_session_as_a_context_manager_is_closed_so(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        async with session:
            session.add(User(name="ann"))
            await session.commit()
        assert list(session) == []
    assert await names(doors) == ["ann"]


# Whatever was committed by hand


async def test_hooks_and_after_commit_wait_for_the_commit_and_run_once(doors: Door, factory: Any) -> None:
    ran: list[str] = []
    async with doors.scope(factory, **BY_HAND) as session:
        event.listen(doors.sync(session), "after_commit", lambda _: ran.append("after_commit"))
        on_commit(lambda: ran.append("first"))
        on_rollback(lambda: ran.append("rollback"))
        session.add(User(name="ann"))
        await session.commit()
        on_commit(lambda: ran.append("second"))
        session.add(User(name="bob"))
        await session.commit()
        assert ran == []
    assert ran == ["after_commit", "first", "second"]


async def test_a_hook_that_was_registered_since_the_last_commit_goes_with_a_rollback_by_hand(
    doors: Door, factory: Any
) -> None:
    ran: list[str] = []
    async with doors.scope(factory, **BY_HAND) as session:
        on_commit(lambda: ran.append("kept"))
        session.add(User(name="ann"))
        await session.commit()
        on_commit(lambda: ran.append("undone"))
        session.add(User(name="bob"))
        await session.rollback()
        on_commit(lambda: ran.append("after it"))
    assert ran == ["kept", "after it"]


async def test_a_unit_that_was_left_by_an_exception_keeps_nothing(doors: Door, factory: Any) -> None:
    ran: list[str] = []
    with pytest.raises(LookupError) as caught:
        async with doors.scope(factory, **BY_HAND) as session:
            event.listen(doors.sync(session), "after_commit", lambda _: ran.append("after_commit"))
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name="ann"))
            await session.commit()
            raise LookupError
    assert await names(doors) == []
    assert ran == ["rollback"]
    assert errors.outcome_of(caught.value) == "rolled back"


async def test_a_unit_that_asked_for_a_rollback_keeps_nothing(doors: Door, factory: Any) -> None:
    async with doors.scope(factory, **BY_HAND) as session:
        session.add(User(name="ann"))
        await session.commit()
        set_rollback_only()
    assert await names(doors) == []


async def test_a_unit_whose_commit_the_database_refuses_keeps_nothing(doors: Door, factory: Any) -> None:
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope(factory, **BY_HAND) as session:
            session.add(User(name="ann"))
            await session.commit()
            session.add(Pledge(account_id=404))
            await session.commit()
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


# Inner scopes


async def test_a_joined_scope_commits_by_hand_as_the_outer_one_does(doors: Door) -> None:
    factory = doors.factory(**BY_HAND)
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        await session.commit()
        async with doors.scope(factory) as inner:
            inner.add(User(name="bob"))
            await inner.commit()
            inner.add(User(name="eve"))
            await inner.flush()
            await inner.rollback()
            inner.add(User(name="joe"))
            await inner.commit()
        assert await names(doors) == []
        session.add(User(name="mia"))
        await session.rollback()
    assert await names(doors) == ["ann", "bob", "joe"]


async def test_a_joined_scope_may_commit_by_hand_where_the_outer_one_may_not(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        async with doors.scope(**BY_HAND) as inner:
            inner.add(User(name="bob"))
            await inner.commit()
        with pytest.raises(errors.ScopeError):
            await session.commit()
    assert await names(doors) == ["ann", "bob"]


async def test_what_a_joined_scope_committed_by_hand_goes_with_the_outer_transaction(doors: Door) -> None:
    with pytest.raises(LookupError):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            async with doors.scope(**BY_HAND) as inner:
                inner.add(User(name="bob"))
                await inner.commit()
            raise LookupError
    assert await names(doors) == []


async def test_a_joined_scope_that_was_left_by_an_exception_dooms_what_it_committed_by_hand(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            session.add(User(name="ann"))
            with pytest.raises(LookupError):
                async with doors.scope(**BY_HAND) as inner:
                    inner.add(User(name="bob"))
                    await inner.commit()
                    raise LookupError
    assert await names(doors) == []


async def test_a_savepoint_scope_keeps_and_undoes_by_hand_inside_of_its_savepoint(doors: Door) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        async with doors.scope(propagation="savepoint", **BY_HAND) as inner:
            inner.add(User(name="bob"))
            await inner.rollback()
            inner.add(User(name="eve"))
            await inner.commit()
            inner.add(User(name="joe"))
            await inner.flush()
            await inner.rollback()
    assert await names(doors) == ["ann", "eve"]


async def test_a_savepoint_scope_that_was_left_by_an_exception_keeps_nothing_of_its_own(doors: Door) -> None:
    async with doors.scope(**BY_HAND) as session:
        session.add(User(name="ann"))
        await session.commit()
        with pytest.raises(LookupError):
            async with doors.scope(propagation="savepoint", **BY_HAND) as inner:
                inner.add(User(name="bob"))
                await inner.commit()
                raise LookupError
        session.add(User(name="eve"))
        await session.commit()
    assert await names(doors) == ["ann", "eve"]


# Where it can be written


async def test_it_can_be_the_factorys_default_and_the_scopes_own_word_wins(doors: Door) -> None:
    factory = doors.factory(**BY_HAND)
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        await session.commit()
    async with doors.scope(factory, manual_commit="refuse") as session:
        session.add(User(name="bob"))
        with pytest.raises(errors.ScopeError):
            await session.commit()
    assert await names(doors) == ["ann", "bob"]


@pytest.mark.parametrize("form", ["first", "keyword"])
async def test_a_decorated_function_commits_by_hand_and_a_run_that_failed_keeps_nothing(doors: Door, form: Any) -> None:
    runs: list[int] = []

    async def body(session: Any) -> str:
        runs.append(1)
        session.add(User(name=f"run {len(runs)}"))
        await session.commit()
        if len(runs) == 1:
            raise stale()
        return "done"

    decorated = doors.decorate(body, form=form, retry=Retry(3, wait=0), **BY_HAND)
    assert await decorated() == "done"
    assert await names(doors) == ["run 2"]


async def test_attempts_commit_by_hand(doors: Door) -> None:
    async for attempt in doors.attempts(retry=Retry(3, wait=0), **BY_HAND):
        async with attempt as session:
            session.add(User(name=f"run {attempt.number}"))
            await session.commit()
            if attempt.number == 1:
                raise stale()
    assert await names(doors) == ["run 2"]


@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
async def test_refuse_is_the_default(doors: Door, factory: Any, method: str) -> None:
    for options in ({}, {"manual_commit": "refuse"}):
        async with doors.scope(factory, **options) as session:
            session.add(User(name=f"user {len(options)}"))
            with pytest.raises(errors.ScopeError, match=rf"session\.{method}\(\)"):
                await getattr(session, method)()
    assert await names(doors) == ["user 0", "user 1"]


@pytest.mark.doors("sqlite-sync", "sqlite-async")
@pytest.mark.parametrize("wrong", ["", "savepoints", "SAVEPOINT", True, 1])
async def test_another_value_is_told_which_there_are(doors: Door, wrong: Any) -> None:
    for make in (lambda: doors.Session.scope(manual_commit=wrong), lambda: doors.factory(manual_commit=wrong)):
        with pytest.raises(errors.OptionError, match="'refuse'.*'savepoint'") as caught:
            make()
        assert not isinstance(caught.value, errors.UnknownOptionError)


async def test_outside_of_scopes_such_functions_commit_as_they_always_did(doors: Door) -> None:
    factory = doors.factory(**BY_HAND)

    async def work(session: Any, name: str) -> None:
        session.add(User(name=name))
        await session.commit()
        session.add(User(name=f"{name} undone"))
        await session.flush()
        await session.rollback()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with doors.session(factory) as session:
            await work(session, "ann")
            assert await names(doors) == ["ann"]
        async with doors.enter(factory.begin()) as session:
            session.add(User(name="bob"))
    async with doors.scope(factory) as session:
        await work(session, "eve")
    assert await names(doors) == ["ann", "bob", "eve"]


# The warning

_numbers = itertools.count()

SYNC = """
def work(session):
    session.commit()
    session.rollback()
    session.commit()
"""

ASYNC = """
async def work(session):
    await session.commit()
    await session.rollback()
    await session.commit()
"""


def users_function(doors: Door) -> tuple[Any, str]:
    """Return a function as a user of this colour writes it, in a file that nothing else has ever warned of."""
    file, space = f"/users/code_{next(_numbers)}.py", dict[str, Any]()
    exec(compile(SYNC if doors.colour == "sync" else ASYNC, file, "exec"), space)
    return space["work"], file


async def called(doors: Door, fn: Any, session: Any) -> None:
    value = fn(doors.raw(session))
    if doors.colour == "async":
        await value


async def test_each_call_site_is_told_once_at_the_users_line(doors: Door) -> None:
    work, file = users_function(doors)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            async with doors.scope(**BY_HAND) as session:
                await called(doors, work, session)
                await called(doors, work, session)
    mine = [warning for warning in told if issubclass(warning.category, errors.ManualCommit)]
    assert [warning.filename for warning in mine] == [file] * len(mine)
    # (A rollback by hand takes nothing back that anybody thought durable.)
    assert {3, 5} <= {warning.lineno for warning in mine} <= {3, 4, 5}
    assert len(mine) == len({warning.lineno for warning in mine})
    assert "not durable before the scope ends" in str(mine[0].message)


async def test_a_call_site_is_told_once_though_each_scope_has_a_name_of_its_own(doors: Door) -> None:
    """The scope of a web request is named after its path, of which there are any number."""
    work, _ = users_function(doors)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for number in range(3):
            async with doors.scope(name=f"GET /users/{number}", **BY_HAND) as session:
                await called(doors, work, session)
    lines = [warning.lineno for warning in told if issubclass(warning.category, errors.ManualCommit)]
    assert lines == [3, 5]


async def test_the_warning_can_be_filtered(doors: Door) -> None:
    assert issubclass(errors.ManualCommit, UserWarning)
    work, _ = users_function(doors)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", errors.ManualCommit)
        async with doors.scope(**BY_HAND) as session:
            await called(doors, work, session)
    assert told == []


async def test_a_warning_that_is_an_error_leaves_nothing_half_done(doors: Door) -> None:
    """`-W error` turns a commit by hand into a refusal, and the unit goes on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.ManualCommit)
        async with doors.scope(**BY_HAND) as session:
            work, _ = users_function(doors)
            session.add(User(name="ann"))
            with pytest.raises(errors.ManualCommit):
                await called(doors, work, session)
            session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]
