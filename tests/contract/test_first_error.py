"""Law 2: the first error survives, whatever fails while cleaning up, and the connection goes back to the pool."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sessionkit import errors, on_commit, on_rollback
from tests.contract.breaking import (
    backend_pid,
    driver_error,
    failing_driver_call,
    failing_statement,
    kill_backend,
    names,
    swallow_failed_statement,
    take,
)
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Unheard(BaseException):
    """What no `except Exception` sees."""


BASE_EXCEPTIONS = [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, Unheard]


# Cleaning up fails


async def test_a_failing_rollback_does_not_replace_the_bodys_error(doors: Door) -> None:
    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with failing_driver_call(doors, "do_rollback", driver_error(doors)):
            async with doors.scope() as session:
                session.add(User(name="ann"))
                await session.flush()
                raise mine
    assert caught.value is mine
    assert doors.checked_out() == 0
    assert await names(doors) == []


async def test_a_rollback_that_fails_with_no_driver_error_does_not_replace_the_bodys_error(doors: Door) -> None:
    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with failing_driver_call(doors, "do_rollback", RuntimeError("odd")):
            async with doors.scope() as session:
                session.add(User(name="ann"))
                await session.flush()
                raise mine
    assert caught.value is mine
    assert doors.checked_out() == 0
    assert await names(doors) == []


async def test_a_failing_rollback_does_not_replace_the_error_of_the_commit(doors: Door) -> None:
    with pytest.raises(IntegrityError):
        async with failing_driver_call(doors, "do_rollback", driver_error(doors)):
            async with doors.scope() as session:
                session.add(User(name="ann"))
                session.add(Pledge(account_id=404))
    assert doors.checked_out() == 0
    assert await names(doors) == []


async def test_a_failing_rollback_does_not_replace_an_unexpected_rollback(doors: Door) -> None:
    await take(doors)
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with failing_driver_call(doors, "do_rollback", driver_error(doors)):
            async with doors.scope() as session:
                first = await swallow_failed_statement(session)
    assert caught.value.__cause__ is first
    assert doors.checked_out() == 0


@pytest.mark.parametrize("listens_to", ["after_rollback", "after_soft_rollback", "after_transaction_end"])
async def test_a_failing_listener_of_the_rollback_does_not_replace_the_bodys_error(
    doors: Door, listens_to: str
) -> None:
    def fail(_session: Any, transaction: Any = None) -> None:
        if transaction is None or transaction.parent is None:  # a flush has a transaction of its own, inside
            raise RuntimeError(listens_to)

    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            event.listen(doors.sync(session), listens_to, fail)
            session.add(User(name="ann"))
            await session.flush()
            raise mine
    assert caught.value is mine
    assert doors.checked_out() == 0
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_connection_that_died_does_not_replace_the_bodys_error(doors: Door) -> None:
    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with doors.scope() as session:
            await kill_backend(doors, await backend_pid(session))
            raise mine
    assert caught.value is mine
    async with doors.scope() as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_failing_rollback_to_a_savepoint_does_not_replace_the_bodys_error(doors: Door) -> None:
    mine = LookupError("mine")
    with suppress(errors.UnexpectedRollback):
        async with doors.scope():
            with pytest.raises(LookupError) as caught:
                async with failing_driver_call(doors, "do_rollback_to_savepoint", driver_error(doors)):
                    async with doors.scope(propagation="savepoint") as inner:
                        inner.add(User(name="bob"))
                        await inner.flush()
                        raise mine
            assert caught.value is mine


async def test_the_cause_that_the_body_gave_its_error_stays(doors: Door) -> None:
    reason = ValueError("reason")
    with pytest.raises(LookupError) as caught:
        async with failing_driver_call(doors, "do_rollback", driver_error(doors)):
            async with doors.scope() as session:
                await session.execute(insert(User).values(name="ann"))
                raise LookupError("mine") from reason
    assert caught.value.__cause__ is reason


# Sessions that were passed in


async def test_a_savepoint_on_a_passed_session_that_cannot_be_undone_does_not_replace_the_bodys_error(
    doors: Door,
) -> None:
    mine = LookupError("mine")

    async def body(session: Any) -> None:
        session.add(User(name="ann"))
        await session.flush()
        # The caller's session is no scope's: nothing forbids it.
        await session.rollback()
        raise mine

    decorated = doors.decorate(body, form="keyword", propagation="savepoint")
    async with doors.session(doors.plain_factory()) as session:
        with pytest.raises(LookupError) as caught:
            await decorated(session=session)
        assert caught.value is mine


async def test_a_savepoint_on_a_passed_session_whose_rollback_fails_does_not_replace_the_bodys_error(
    doors: Door,
) -> None:
    mine = LookupError("mine")

    async def body(session: Any) -> None:
        session.add(User(name="ann"))
        await session.flush()
        raise mine

    decorated = doors.decorate(body, form="keyword", propagation="savepoint")
    async with doors.session(doors.plain_factory()) as session:
        with pytest.raises(LookupError) as caught:
            async with failing_driver_call(doors, "do_rollback_to_savepoint", driver_error(doors)):
                await decorated(session=session)
        assert caught.value is mine


# Exceptions that are no Exception


@pytest.mark.parametrize("kind", BASE_EXCEPTIONS)
async def test_a_base_exception_of_the_body_rolls_back_and_passes(doors: Door, kind: type[BaseException]) -> None:
    mine = kind()
    hooks: list[str] = []
    with pytest.raises(kind) as caught:
        async with doors.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            on_rollback(lambda: hooks.append("rollback"))
            session.add(User(name="ann"))
            await session.flush()
            raise mine
    assert caught.value is mine
    assert doors.checked_out() == 0
    assert await names(doors) == []
    assert hooks == ["rollback"]


@pytest.mark.parametrize("kind", BASE_EXCEPTIONS)
async def test_a_base_exception_of_a_savepoints_body_undoes_the_savepoint(
    doors: Door, kind: type[BaseException]
) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(kind):
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
                raise kind
    assert await names(doors) == ["ann"]


DRIVER_CALLS = ["do_begin", "do_commit", "do_rollback", "do_execute"]


@pytest.mark.parametrize("call", DRIVER_CALLS)
async def test_a_base_exception_in_a_driver_call_leaves_nothing_behind(doors: Door, call: str) -> None:
    await _interrupt(doors, call, Unheard)


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", DRIVER_CALLS)
async def test_an_interrupt_in_a_driver_call_leaves_nothing_behind(
    doors: Door, call: str, kind: type[BaseException]
) -> None:
    """Ctrl-C arrives where it likes. (Under asyncio it cancels the main task instead, see test_cancellation.py.)"""
    await _interrupt(doors, call, kind)


async def _interrupt(doors: Door, call: str, kind: type[BaseException]) -> None:
    caught: BaseException | None = None
    async with failing_driver_call(doors, call, kind()):
        try:
            async with doors.scope() as session:
                await session.execute(insert(User).values(name="ann"))
                if call == "do_rollback":
                    raise LookupError("mine")
        except BaseException as error:  # noqa: BLE001 - which one is what the test asks
            caught = error
    assert type(caught) is kind or (call == "do_rollback" and isinstance(caught, LookupError))
    assert doors.checked_out() == 0
    assert await names(doors) == []
    async with doors.scope() as session:
        session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


@pytest.mark.parametrize("kind", [Unheard, RuntimeError])
async def test_what_is_raised_after_the_commit_was_carried_out_never_runs_the_hooks_of_a_rollback(
    doors: Door, kind: type[BaseException]
) -> None:
    ran: list[str] = []
    mine = kind()
    with pytest.raises((kind, errors.CommitOutcomeUnknown)) as caught:
        async with failing_driver_call(doors, "do_commit", mine, after=True):
            async with doors.scope() as session:
                on_rollback(lambda: ran.append("rollback"))
                session.add(User(name="ann"))
    assert mine in (caught.value, caught.value.__cause__)
    assert await names(doors) == ["ann"]
    assert ran == []
    assert doors.checked_out() == 0


async def test_a_base_exception_while_closing_gives_the_connection_back(doors: Door) -> None:
    def interrupt(_session: Any, transaction: Any) -> None:
        if transaction.parent is None:
            raise Unheard

    with pytest.raises((Unheard, LookupError)):
        async with doors.scope() as session:
            event.listen(doors.sync(session), "after_transaction_end", interrupt)
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError
    assert doors.checked_out() == 0
    assert await names(doors) == []
    with pytest.raises(errors.NoCurrentSession):
        from sessionkit import current_session

        current_session()


async def test_a_generator_that_is_closed_inside_its_scope_rolls_back(doors: Door) -> None:
    async def rows() -> AsyncIterator[int]:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            yield 1
            yield 2

    generator = rows()
    assert await anext(generator) == 1
    await generator.aclose()  # type: ignore[attr-defined]
    assert doors.checked_out() == 0
    assert await names(doors) == []


# Entering fails


async def test_a_factory_that_fails_lets_its_error_pass(doors: Door) -> None:
    class Refusing(doors.Session.class_):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kw: Any) -> None:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        async with doors.scope(doors.factory(class_=Refusing)):
            pytest.fail("entered")


async def test_a_begin_that_the_database_refuses_lets_its_error_pass(doors: Door) -> None:
    """And the scope is as usable after it as any."""
    engine = doors.make_engine()

    def refuse(*_: Any) -> None:
        raise LookupError("mine")

    event.listen(doors.sync_engine_of(engine), "begin", refuse)
    with pytest.raises(LookupError, match="mine"):
        async with doors.scope(doors.factory(engine)) as session:
            await session.execute(text("SELECT 1"))
    assert doors.checked_out() == 0


async def test_an_exhausted_pool_is_an_error_and_the_pool_recovers(doors: Door) -> None:
    from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

    pool = QueuePool if doors.colour == "sync" else AsyncAdaptedQueuePool
    engine = doors.make_engine(poolclass=pool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    factory = doors.factory(engine)
    async with doors.enter(engine.connect()):
        with pytest.raises(PoolTimeout):
            async with doors.scope(factory) as session:
                session.add(User(name="ann"))
    async with doors.scope(factory) as session:
        session.add(User(name="bob"))
    assert await names(doors) == ["bob"]


async def test_an_interrupted_savepoint_leaves_the_outer_scope_to_judge(doors: Door) -> None:
    """SAVEPOINT itself fails: the inner scope was never entered, the outer one goes on as the database allows."""
    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        with pytest.raises(DBAPIError), failing_statement(doors, "SAVEPOINT", driver_error(doors)):
            async with doors.scope(propagation="savepoint") as inner:
                inner.add(User(name="bob"))
                await inner.flush()
        with suppress(errors.UnexpectedRollback):
            async with doors.scope() as again:
                assert doors.same(again, session)
        doors.call(lambda s: s.expunge_all(), session)
        from sessionkit import set_rollback_only

        set_rollback_only()
    assert await names(doors) == []
