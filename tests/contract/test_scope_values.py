"""A scope is a value: reused, nested, entered by many at once; and left elsewhere, or out of order."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sessionkit import current_session, errors, on_commit
from tests.contract.breaking import names
from tests.support.models import User
from tests.support.neutral import drive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# A scope is a value


async def test_a_scope_value_can_be_entered_again(doors: Door) -> None:
    from sessionkit import session_scope

    scope = session_scope(doors.Session, name="again")
    seen = []
    for name in ("ann", "bob", "eve"):
        async with doors.enter(scope) as session:
            session.add(User(name=name))
            seen.append(doors.raw(session))
    assert len({id(session) for session in seen}) == 3
    assert await names(doors) == ["ann", "bob", "eve"]


async def test_a_scope_value_can_be_entered_inside_itself(doors: Door) -> None:
    from sessionkit import session_scope

    scope = session_scope(doors.Session)
    async with doors.enter(scope) as session:
        async with doors.enter(scope) as inner, doors.enter(scope) as innermost:
            assert doors.same(inner, session)
            assert doors.same(innermost, session)
            innermost.add(User(name="ann"))
        assert current_session() is doors.raw(session)
        assert doors.raw(session).in_transaction()
    assert await names(doors) == ["ann"]


async def test_a_savepoint_scope_value_inside_itself_ends_the_inner_entry_first(doors: Door) -> None:
    from sessionkit import session_scope

    scope = session_scope(doors.Session, propagation="savepoint")
    async with doors.enter(scope) as session:
        session.add(User(name="ann"))
        with pytest.raises(LookupError):
            async with doors.enter(scope):
                session.add(User(name="bob"))
                async with doors.enter(scope):
                    session.add(User(name="eve"))
                raise LookupError
    assert await names(doors) == ["ann"]


async def test_one_scope_value_can_be_entered_by_many_at_the_same_time(doors: Door) -> None:
    from sessionkit import session_scope

    scope = session_scope(doors.Session)
    barrier = doors.barrier(8)
    sessions: list[Any] = []

    def body(number: int) -> Callable[[], Coroutine[Any, Any, None]]:
        async def run() -> None:
            with suppress(LookupError):
                async with doors.enter(scope) as session:
                    sessions.append(doors.raw(session))
                    await barrier.wait()  # all are inside
                    assert current_session() is doors.raw(session)
                    session.add(User(name=f"user {number}"))
                    if number % 2:
                        raise LookupError

        return run

    await doors.together(*(body(number) for number in range(8)))
    assert len({id(session) for session in sessions}) == 8
    assert sorted(await names(doors)) == [f"user {number}" for number in range(0, 8, 2)]


# Left elsewhere than entered, and out of order


async def elsewhere(doors: Door, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Call `fn` in a context of its own and, under asyncio, in a task of its own, as frameworks do."""
    context = contextvars.Context()
    if doors.colour == "sync":
        return context.run(drive, fn(*args))
    return await asyncio.create_task(fn(*args), context=context)


async def test_a_scope_can_be_left_in_another_context_than_it_was_entered_in(doors: Door) -> None:
    scope = doors.scope()
    session = await elsewhere(doors, scope.__aenter__)
    session.add(User(name="ann"))
    await session.flush()
    await elsewhere(doors, scope.__aexit__, None, None, None)
    assert await names(doors) == ["ann"]


async def test_scopes_left_in_other_contexts_are_not_taken_for_one_another(doors: Door) -> None:
    """Two requests at once, whose framework enters and leaves their dependencies in contexts of its own."""
    first, second = doors.enter(doors.Session.scope()), doors.enter(doors.Session.scope())
    await elsewhere(doors, first.__aenter__)
    session = await elsewhere(doors, second.__aenter__)
    mine = LookupError("the first one's")
    await elsewhere(doors, first.__aexit__, LookupError, mine, None)
    session.add(User(name="of the second"))
    await session.flush()
    assert doors.raw(session).in_transaction()
    await elsewhere(doors, second.__aexit__, None, None, None)
    assert await names(doors) == ["of the second"]


async def test_one_value_entered_twice_elsewhere_never_ends_a_strangers_transaction(doors: Door) -> None:
    """Which entry is left cannot be known then: it is an error, and not a guess."""
    from sessionkit import session_scope

    scope = doors.enter(session_scope(doors.Session))
    first = await elsewhere(doors, scope.__aenter__)
    second = await elsewhere(doors, scope.__aenter__)
    second.add(User(name="of the second"))
    await second.flush()
    mine = LookupError("the first one's")
    if doors.colour == "async":
        with pytest.raises(errors.ScopeError, match="another context"):
            await elsewhere(doors, scope.__aexit__, LookupError, mine, None)
        assert doors.raw(second).in_transaction()
    # (In one thread both are its own, and the newest one is as good a guess as any.)
    for session in (second, first):
        await session.run_sync(end_by_force)
    assert doors.checked_out() == 0


def end_by_force(session: Any) -> None:
    session._sessionkit_unit = None
    session.rollback()
    session.close()


async def test_a_scope_that_is_left_before_what_joined_it_does_not_lose_the_others_work(doors: Door) -> None:
    """As two generators do that are used in turns: the inner scope's later work is kept, or its exit is an error."""
    outer, inner = doors.scope(), doors.scope()
    await outer.__aenter__()
    session = await inner.__aenter__()
    session.add(User(name="ann"))
    error: BaseException | None = None
    try:
        await outer.__aexit__(None, None, None)
        session.add(User(name="bob"))
        await session.flush()
    except errors.SessionKitError as refused:
        error = refused
    try:
        await inner.__aexit__(type(error) if error else None, error, None)
    except errors.SessionKitError as refused:
        error = refused
    assert error is not None or await names(doors) == ["ann", "bob"]


async def test_after_the_outer_scope_was_left_the_inner_one_takes_nothing_in(doors: Door) -> None:
    outer, inner = doors.scope(), doors.scope()
    await outer.__aenter__()
    session = await inner.__aenter__()
    session.add(User(name="ann"))
    await outer.__aexit__(None, None, None)
    with pytest.raises(errors.ScopeError, match="has ended") as refused:
        session.add(User(name="bob"))
    await inner.__aexit__(errors.ScopeError, refused.value, None)
    assert await names(doors) == ["ann"]


async def test_two_scopes_left_out_of_order_leave_nothing_ambient(doors: Door) -> None:
    other = doors.factory(doors.other_engine())
    first, second = doors.scope(), doors.scope(other)
    one = await first.__aenter__()
    two = await second.__aenter__()
    one.add(User(name="ann"))
    two.add(User(name="bob"))
    await first.__aexit__(None, None, None)
    assert current_session() is doors.raw(two)
    with pytest.raises(errors.NoCurrentSession):
        current_session(doors.Session)
    await second.__aexit__(None, None, None)
    assert await names(doors) == ["ann"]


async def test_a_scope_in_a_generator_that_is_left_by_break_ends_when_it_is_closed(doors: Door) -> None:
    async def rows() -> AsyncIterator[int]:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            yield 1
            yield 2

    generator = rows()
    async for _ in generator:
        break
    await elsewhere(doors, generator.aclose)  # type: ignore[attr-defined]
    assert doors.checked_out() == 0
    assert await names(doors) == []


async def test_leaving_a_scope_that_was_not_entered_is_an_error(doors: Door) -> None:
    with pytest.raises(errors.ScopeError, match="without having been entered"):
        await doors.scope().__aexit__(None, None, None)


async def test_a_joined_scopes_hook_waits_for_the_outer_one(doors: Door) -> None:
    ran: list[bool] = []
    async with doors.scope() as session:
        async with doors.scope() as inner:
            inner.add(User(name="ann"))
            on_commit(lambda: ran.append(True))
        assert ran == []
        await session.execute(text("SELECT 1"))
        assert ran == []
    assert ran == [True]
