"""Law 3: a session that the caller of a decorated function passes in belongs to the caller."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sessionkit import current_session, errors, on_commit, set_rollback_only
from tests.contract.breaking import names, swallow_failed_flush, swallow_failed_statement, take
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


async def add(session: AsyncSession, name: str, *, email: str | None = None) -> str:
    """Add a user."""
    session.add(User(name=name, email=email))
    return name


FORMS = pytest.mark.parametrize("form", ["first", "keyword"])


# A session that the caller passes


@pytest.mark.parametrize("propagation", ["join", "require"])
async def test_a_passed_session_is_used_and_left_to_the_caller(doors: Door, propagation: str) -> None:
    async def body(session: AsyncSession, name: str) -> AsyncSession:
        assert current_session() is doors.raw(session)
        session.add(User(name=name))
        await session.flush()
        return session

    decorated = doors.decorate(body, form="keyword", propagation=propagation)
    for factory in (doors.plain_factory(), doors.Session):
        async with doors.session(factory) as mine:
            assert await decorated("ann", session=mine) == mine
            assert mine.in_transaction()
            assert await names(doors) == []
            with pytest.raises(errors.NoCurrentSession):
                current_session()
            await mine.rollback()
            await decorated("bob", session=mine)
            await mine.commit()
            assert await names(doors) == ["bob"]
            await doors.write("DELETE FROM users")


async def test_a_passed_session_of_a_scope_joins_that_scope(doors: Door) -> None:
    decorated = doors.decorate(add, form="keyword")
    async with doors.scope() as session:
        await decorated("ann", session=session)
        with pytest.raises(errors.ScopeError):
            await session.commit()
    assert await names(doors) == ["ann"]


async def test_an_error_with_a_passed_session_of_a_scope_dooms_that_scope(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        session.add(User(name="ann"))
        raise LookupError

    decorated = doors.decorate(body, form="keyword")
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope() as session:
            with contextlib.suppress(LookupError):
                await decorated(session=session)
    assert await names(doors) == []


async def test_an_error_with_a_passed_plain_session_is_the_callers_to_handle(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        session.add(User(name="ann"))
        await session.flush()
        raise LookupError

    decorated = doors.decorate(body, form="keyword")
    async with doors.session(doors.plain_factory()) as mine:
        with pytest.raises(LookupError):
            await decorated(session=mine)
        assert mine.in_transaction()
        await mine.commit()
    assert await names(doors) == ["ann"]


async def test_a_passed_session_with_savepoint_undoes_the_call_only(doors: Door) -> None:
    async def body(session: AsyncSession, name: str, fail: bool) -> None:
        session.add(User(name=name))
        await session.flush()
        if fail:
            raise LookupError

    decorated = doors.decorate(body, form="keyword", propagation="savepoint")
    async with doors.session(doors.plain_factory()) as mine:
        mine.add(User(name="ann"))
        await decorated("bob", False, session=mine)
        with pytest.raises(LookupError):
            await decorated("eve", True, session=mine)
        await mine.commit()
    assert await names(doors) == ["ann", "bob"]


async def test_a_passed_session_with_savepoint_tells_of_a_swallowed_flush_error(doors: Door) -> None:
    """The savepoint is gone with what else was done in it."""
    await take(doors)

    async def body(session: AsyncSession) -> None:
        session.add(User(name="bob"))
        await session.flush()
        await swallow_failed_flush(session)

    decorated = doors.decorate(body, form="keyword", propagation="savepoint")
    async with doors.session(doors.plain_factory()) as mine:
        mine.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback):
            await decorated(session=mine)
        await mine.commit()
    assert await names(doors) == ["ann"]


async def test_a_passed_session_with_savepoint_tells_of_a_swallowed_statement_error(doors: Door) -> None:
    """On SQLite the savepoint could be released, on PostgreSQL it could not: the rule is the same on both."""
    await take(doors)

    async def body(session: AsyncSession) -> None:
        session.add(User(name="bob"))
        await session.flush()
        await swallow_failed_statement(session)

    decorated = doors.decorate(body, form="keyword", propagation="savepoint")
    async with doors.session(doors.plain_factory()) as mine:
        mine.add(User(name="ann"))
        with pytest.raises(errors.UnexpectedRollback):
            await decorated(session=mine)
        await mine.commit()
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("propagation", ["new", "forbid"])
async def test_a_passed_session_cannot_have_a_transaction_of_the_functions_own(doors: Door, propagation: str) -> None:
    decorated = doors.decorate(add, form="keyword", propagation=propagation)
    async with doors.session() as mine:
        with pytest.raises(errors.ScopeError, match=propagation):
            await decorated("ann", session=mine)
        assert not mine.in_transaction()
    assert await names(doors) == []


async def test_what_is_passed_must_be_a_session_of_the_colour(doors: Door) -> None:
    decorated = doors.decorate(add, form="keyword")
    for wrong in (None, object(), doors.sync_engine):
        with pytest.raises(errors.ScopeError, match="Session"):
            await decorated("ann", session=wrong)
    if doors.colour == "async":
        async with doors.session() as mine:
            with pytest.raises(errors.SyncAsyncMismatch):
                await decorated("ann", session=mine.sync_session)


async def test_a_scoped_session_may_be_passed(doors: Door) -> None:
    decorated = doors.decorate(add, form="keyword")
    scoped = doors.scoped()
    await decorated("ann", session=scoped)
    assert await names(doors) == []
    await scoped.commit()
    await scoped.remove()
    assert await names(doors) == ["ann"]


async def test_hooks_in_a_function_with_a_passed_session_follow_the_callers_commit(doors: Door) -> None:
    ran: list[str] = []

    async def body(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))
        on_commit(lambda: ran.append("commit"))

    decorated = doors.decorate(body, form="keyword")
    async with doors.session(doors.plain_factory()) as mine:
        await decorated(session=mine)
        assert ran == []
        await mine.commit()
        assert ran == ["commit"]


async def test_a_rollback_asked_for_in_a_function_with_a_passed_plain_session_is_refused(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        set_rollback_only()

    async with doors.session(doors.plain_factory()) as mine:
        with pytest.raises(errors.ScopeError, match="rollback"):
            await doors.decorate(body, form="keyword")(session=mine)


async def test_a_scope_inside_a_function_with_a_passed_session_joins_it(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        async with doors.scope() as inner:
            assert doors.same(inner, session)
            inner.add(User(name="ann"))

    async with doors.session() as mine:
        await doors.decorate(body, form="keyword")(session=mine)
        assert await names(doors) == []
        await mine.commit()
    assert await names(doors) == ["ann"]
