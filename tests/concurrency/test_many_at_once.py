"""Many threads and many tasks: nobody gets another's session, nothing is lost, the pool gets all back."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from sessionkit import async_scoped_session, current_session, errors, on_commit, scoped_session, session_scope
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.doors import Door

THREADS = 50
TASKS = 200


def crowd(doors: Door) -> int:
    return THREADS if doors.colour == "sync" else TASKS


def small_pool(doors: Door) -> Any:
    """An engine with fewer connections than users, all of whom wait patiently."""
    pool = QueuePool if doors.colour == "sync" else AsyncAdaptedQueuePool
    timeout: dict[str, Any] = {"connect_args": {"timeout": 60}} if doors.backend == "sqlite" else {}
    return doors.make_engine(poolclass=pool, pool_size=5, max_overflow=0, pool_timeout=60, **timeout)


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
async def test_everybody_gets_a_session_of_their_own_and_every_unit_is_whole(doors: Door) -> None:
    """One scope value for all; some fail, some swallow, some nest; the database holds what the scopes said."""
    number_of = crowd(doors)
    scope = session_scope(doors.factory(small_pool(doors)))
    committed: set[str] = set()
    hooks: list[str] = []
    sessions: list[Any] = []

    def user(number: int) -> Callable[[], Coroutine[Any, Any, None]]:
        dice = random.Random(number)

        async def work() -> None:
            kind = dice.choice(["commit", "fail", "swallow", "nest", "savepoint"])
            name = f"{kind} {number}"
            try:
                async with doors.enter(scope) as session:
                    sessions.append(doors.raw(session))
                    assert current_session() is doors.raw(session)
                    on_commit(lambda: hooks.append(name))
                    session.add(User(name=name))
                    await session.flush()
                    assert current_session() is doors.raw(session)
                    if kind == "fail":
                        raise LookupError
                    if kind == "swallow":
                        with suppress(Exception):
                            await session.execute(insert(User).values(name=name))
                    if kind == "nest":
                        async with doors.enter(scope) as inner:
                            assert doors.same(inner, session)
                            inner.add(User(name=f"{name} inner"))
                    if kind == "savepoint":
                        with suppress(LookupError):
                            async with session.begin_nested():
                                session.add(User(name=f"{name} inner"))
                                raise LookupError
            except (LookupError, errors.UnexpectedRollback):
                assert kind in {"fail", "swallow"}
                return
            assert kind in {"commit", "nest", "savepoint"}
            committed.add(name)
            if kind == "nest":
                committed.add(f"{name} inner")

        return work

    await doors.together(*(user(number) for number in range(number_of)))
    assert len({id(session) for session in sessions}) == number_of
    assert {name for (name,) in await doors.rows(select(User.name))} == committed
    assert sorted(hooks) == sorted(name for name in committed if not name.endswith("inner"))
    assert doors.checked_out() == 0


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
async def test_a_scoped_session_is_never_anothers(doors: Door) -> None:
    number_of = crowd(doors)
    factory = doors.factory(small_pool(doors))
    db: Any = (scoped_session if doors.colour == "sync" else async_scoped_session)(factory)
    barrier = doors.barrier(number_of)
    sessions: list[Any] = []

    async def work() -> None:
        own = db()
        sessions.append(own)
        await barrier.wait()  # all have one now
        assert db() is own
        async with doors.scope(factory) as session:
            assert db() is doors.raw(session)
            sessions.append(doors.raw(session))
        assert db() is own
        removed = db.remove()
        if doors.colour == "async":
            await removed

    await doors.together(*[work] * number_of)
    assert len({id(session) for session in sessions}) == 2 * number_of
    assert doors.checked_out() == 0


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_of_many_threads_in_one_session_one_gets_in_and_the_others_are_told(doors: Door) -> None:
    """Over and over: whatever the moment, it is an answer or an error, never a crossed row, and the scope commits."""
    rounds = 20
    told: list[BaseException] = []
    answers: list[str] = []
    barrier = doors.barrier(8)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()

        async def work() -> None:
            for _ in range(rounds):
                await barrier.wait()
                try:
                    answers.append((await session.execute(select(User.name))).scalar_one())
                except errors.ConcurrentUse as error:
                    told.append(error)

        await doors.together(*[work] * 8)
        assert len(answers) + len(told) == rounds * 8
        assert len(answers) >= rounds
        assert set(answers) == {"ann"}
    assert await doors.rows(select(User.name)) == [("ann",)]


@pytest.mark.doors(colour="async")
async def test_many_tasks_of_which_many_are_cancelled_leave_nothing_behind(doors: Door) -> None:
    factory = doors.factory(small_pool(doors))
    done: set[str] = set()

    async def work(number: int) -> None:
        async with doors.scope(factory) as session:
            session.add(User(name=f"user {number}"))
            await session.flush()
        done.add(f"user {number}")

    dice = random.Random(7)
    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    first = asyncio.create_task(work(1000))
    await first
    for task in tasks:
        if dice.random() < 0.5:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    there = {name for (name,) in await doors.rows(select(User.name))}
    # Who was cancelled in the COMMIT has committed, and was told by the cancellation; nobody who finished is missing.
    assert done <= there
    assert doors.checked_out() == 0


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_a_thread_that_takes_the_number_of_one_that_is_gone_is_not_taken_for_it(doors: Door) -> None:
    """The system gives a dead thread's identifier to the next one."""
    idents: set[int] = set()
    seen: list[Any] = []

    def work() -> None:
        idents.add(threading.get_ident())
        with suppress(errors.NoCurrentSession):
            seen.append(current_session())
        with doors.Session.scope() as session:
            session.execute(select(User))

    async with doors.scope():
        for _ in range(20):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert seen == []
