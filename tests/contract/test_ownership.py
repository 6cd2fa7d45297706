"""Law 7: a session belongs to the thread and the task whose scope it is; nobody inherits it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sessionkit import async_scoped_session, current_session, errors, on_commit, scoped_session, set_rollback_only
from sessionkit.context import top
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


# The ambient session


async def test_the_current_session_is_the_innermost_scopes(doors: Door) -> None:
    with pytest.raises(errors.NoCurrentSession):
        current_session()
    async with doors.scope() as session:
        assert current_session() is doors.raw(session)
        async with doors.scope(propagation="new") as inner:
            assert current_session() is doors.raw(inner)
        assert current_session() is doors.raw(session)
    with pytest.raises(LookupError, match="no scope"):  # NoCurrentSession is one
        current_session()


async def test_the_ambient_session_is_gone_after_a_failure(doors: Door) -> None:
    with pytest.raises(ZeroDivisionError):
        async with doors.scope():
            raise ZeroDivisionError
    with pytest.raises(errors.NoCurrentSession):
        current_session()


async def test_another_thread_sees_no_ambient_session_and_opens_its_own(doors: Door) -> None:
    seen: list[Any] = []
    async with doors.scope() as session:
        opened = doors.raw(session)

        async def work() -> None:
            with pytest.raises(errors.NoCurrentSession):
                current_session()
            with pytest.raises(errors.NoCurrentSession):
                on_commit(lambda: None)
            async with doors.scope() as own:
                seen.append(doors.raw(own))

        await doors.in_other_thread(work)
    assert len(seen) == 1
    assert seen[0] is not opened


@pytest.mark.doors(colour="sync")
async def test_a_thread_that_inherits_the_context_does_not_inherit_the_scope(doors: Door) -> None:
    import contextvars

    seen: list[Any] = []

    def work() -> None:
        try:
            current_session()
        except errors.NoCurrentSession as error:
            seen.append(str(error))
        with doors.Session.scope() as own:
            seen.append(own)

    async with doors.scope() as session:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), name="heir")
        thread.start()
        thread.join()
    message, own = seen
    assert "'heir'" in message
    assert threading.current_thread().name in message
    assert own is not doors.raw(session)


@pytest.mark.doors(colour="sync")
async def test_a_thread_that_the_scope_is_lent_to_is_inside_of_it(doors: Door) -> None:
    """What integrations do whose framework runs a part of a request in a worker thread."""
    import contextvars

    @doors.Session.scope
    def decorated(session: Any) -> Any:
        return session

    def work() -> None:
        seen.append(current_session() is decorated() is scoped_session(doors.Session)())
        with doors.Session.scope(propagation="savepoint") as session:
            session.add(User(name="ann"))
        with doors.Session.scope(propagation="savepoint"):
            set_rollback_only()
        with pytest.raises(errors.ScopeError, match="forbid"), doors.Session.scope(propagation="forbid"):
            pytest.fail("entered")

    seen: list[bool] = []
    async with doors.scope():
        entry = top()
        assert entry is not None
        here = threading.get_ident()
        for lent, body in ((True, work), (False, stranger)):
            entry.lent = lambda owner, lent=lent: lent and owner != here  # type: ignore[misc]
            thread = threading.Thread(target=contextvars.copy_context().run, args=(body,))
            thread.start()
            thread.join()
    assert seen == [True]
    assert await names(doors) == ["ann"]


def stranger() -> None:
    with pytest.raises(errors.NoCurrentSession):
        current_session()


@pytest.mark.doors(colour="async")
async def test_a_child_task_does_not_inherit_the_scope_and_opens_its_own(doors: Door) -> None:
    async def child() -> Any:
        with pytest.raises(errors.NoCurrentSession, match=r"task 'child'.*belongs to task"):
            current_session()
        with pytest.raises(errors.ScopeError):
            async with doors.scope(propagation="require"):
                pytest.fail("entered")
        async with doors.scope() as own:
            return own

    async with doors.scope() as session:
        assert await asyncio.create_task(child(), name="child") is not session
        assert current_session() is session


@pytest.mark.doors(colour="async")
async def test_a_child_task_that_outlives_the_scope_sees_none_either(doors: Door) -> None:
    over = asyncio.Event()

    async def child() -> None:
        await over.wait()
        with pytest.raises(errors.NoCurrentSession):
            current_session()
        async with doors.scope() as own:
            own.add(User(name="ann"))

    async with doors.scope():
        task = asyncio.create_task(child())
    over.set()
    await task
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_a_worker_thread_of_a_task_does_not_inherit_the_scope(doors: Door) -> None:
    def work() -> None:
        with pytest.raises(errors.NoCurrentSession):
            current_session()

    async with doors.scope():
        await asyncio.to_thread(work)


@pytest.mark.doors(colour="async")
async def test_code_inside_run_sync_is_in_the_scope(doors: Door) -> None:
    async with doors.scope() as session:
        assert await session.run_sync(lambda _: current_session()) is session


# scoped_session


def scoped(doors: Door) -> Any:
    db: Any = (scoped_session if doors.colour == "sync" else async_scoped_session)(doors.Session)
    return db


async def _maybe(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


async def test_inside_a_scope_a_scoped_session_stands_for_the_scopes_session(doors: Door) -> None:
    db = scoped(doors)
    outside = db()
    async with doors.scope() as session:
        assert db() is doors.raw(session)
        db.add(User(name="ann"))
        async with doors.scope() as inner:
            assert db() is doors.raw(inner)
    assert db() is outside
    assert await names(doors) == ["ann"]
    await _maybe(db.remove())


async def test_a_scoped_session_is_each_threads_and_each_tasks_own(doors: Door) -> None:
    db = scoped(doors)
    mine = db()
    barrier = doors.barrier(5)

    async def body() -> Any:
        own = db()
        await barrier.wait()
        assert db() is own
        await _maybe(db.remove())
        assert db() is not own
        await _maybe(db.remove())
        return own

    sessions = await doors.together(*[body] * 5)
    assert len({id(doors.raw(session)) for session in [*sessions, mine]}) == 6
    assert db() is mine
    await _maybe(db.remove())
    assert db() is not mine
    await _maybe(db.remove())


async def test_a_scoped_session_cannot_be_removed_inside_a_scope(doors: Door) -> None:
    db = scoped(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.ScopeError):
            await _maybe(db.remove())
        assert db() is doors.raw(session)
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="async")
async def test_a_child_task_does_not_get_its_parents_scoped_session(doors: Door) -> None:
    db = scoped(doors)
    mine = db()

    async def child() -> None:
        assert db() is not mine
        await db.remove()

    await asyncio.create_task(child())
    assert db() is mine
    await db.remove()


async def test_a_scopefunc_decides_as_it_does_in_sqlalchemy(doors: Door) -> None:
    key = ["a"]
    kind: Any = scoped_session if doors.colour == "sync" else async_scoped_session
    db = kind(doors.Session, scopefunc=lambda: key[0])
    first = db()
    key[0] = "b"
    second = db()
    assert second is not first
    key[0] = "a"
    assert db() is first
    async with doors.scope() as session:
        assert db() is doors.raw(session)
    await _maybe(db.remove())
    assert db() is not first
    await _maybe(db.remove())
    key[0] = "b"
    assert db() is second
    await _maybe(db.remove())
