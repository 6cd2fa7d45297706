"""`run`: a function is called in a scope, as if it were decorated, and what it returns is returned."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, current_session, errors, on_commit
from tests.contract.breaking import names, swallow_failed_statement, take
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

ONE_DATABASE = pytest.mark.doors("sqlite-sync", "sqlite-async")


async def run(owner: Any, doors: Door, body: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `owner.run(body, ...)`, where `owner` is a factory, a scoped session or a scope."""
    return await doors._called(owner.run)(doors._coloured(body), *args, **kwargs)


async def add(session: AsyncSession, name: str, *, email: str | None = None) -> str:
    session.add(User(name=name, email=email))
    return name.upper()


async def test_what_was_done_is_committed_and_what_was_returned_is_returned(doors: Door) -> None:
    assert await run(doors.Session, doors, add, "ann", email="a") == "ANN"
    assert await run(doors.Session.scope(name="x"), doors, add, "bob") == "BOB"
    assert await run(doors.scoped(), doors, add, name="eve") == "EVE"
    assert await names(doors) == ["ann", "bob", "eve"]
    assert doors.checked_out() == 0


async def test_the_functions_exception_rolls_back_and_passes_as_it_was(doors: Door) -> None:
    mine = LookupError("mine")

    async def body(session: AsyncSession) -> None:
        session.add(User(name="ann"))
        await session.flush()
        raise mine

    with pytest.raises(LookupError) as caught:
        await run(doors.Session, doors, body)
    assert caught.value is mine
    assert errors.outcome_of(mine) == "rolled back"
    assert await names(doors) == []


async def test_a_swallowed_error_is_told_by_the_call(doors: Door) -> None:
    await take(doors)

    async def body(session: AsyncSession) -> str:
        await swallow_failed_statement(session)
        return "as if all were well"

    with pytest.raises(errors.UnexpectedRollback):
        await run(doors.Session, doors, body)


async def test_it_is_retried_by_the_policy_of_the_scope_or_the_factorys_default(doors: Door) -> None:
    runs: list[int] = []
    hooks: list[int] = []

    async def unlucky(session: AsyncSession, name: str) -> int:
        runs.append(1)
        number = len(runs)
        on_commit(lambda: hooks.append(number))
        session.add(User(name=f"{name} {len(runs)}"))
        await session.flush()
        if len(runs) % 2:
            raise StaleDataError("somebody was faster")
        return len(runs)

    patient = doors.factory(retry=Retry(3, wait=0))
    assert await run(patient, doors, unlucky, "ann") == 2
    assert await run(doors.Session.scope(retry=Retry(3, wait=0)), doors, unlucky, "bob") == 4
    with pytest.raises(StaleDataError):
        await run(patient.scope(retry=None), doors, unlucky, "eve")
    with pytest.raises(StaleDataError):
        runs.clear()
        await run(doors.Session, doors, unlucky, "joe")
    assert await names(doors) == ["ann 2", "bob 4"]
    assert hooks == [2, 4]


async def test_inside_a_scope_it_joins_and_is_undone_with_it(doors: Door) -> None:
    async def body(session: AsyncSession, outer: Any) -> None:
        assert doors.raw(session) is doors.raw(outer) is current_session()
        session.add(User(name="ann"))

    with pytest.raises(LookupError):
        async with doors.scope() as outer:
            await run(doors.Session, doors, body, outer)
            raise LookupError
    assert await names(doors) == []
    async with doors.scope():
        with pytest.raises(errors.OptionError, match="retry= was asked for"):
            await run(doors.Session.scope(retry=3), doors, add, "ann")


async def test_a_savepoint_undoes_what_was_run_alone(doors: Door) -> None:
    async def fail(session: AsyncSession) -> None:
        await add(session, "bob")
        raise LookupError

    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(LookupError):
            await run(doors.Session.scope(propagation="savepoint"), doors, fail)
    assert await names(doors) == ["ann"]


async def test_one_scope_runs_many_functions_each_with_a_session_of_its_own(doors: Door) -> None:
    sessions: list[Any] = []

    async def body(session: AsyncSession) -> None:
        sessions.append(doors.raw(session))

    scope = doors.Session.scope()
    for _ in range(3):
        await run(scope, doors, body)
    assert len({id(session) for session in sessions}) == 3


@ONE_DATABASE
async def test_messages_call_the_unit_by_the_functions_name(doors: Door) -> None:
    async def rename(session: AsyncSession) -> None:
        await session.commit()

    with pytest.raises(errors.ScopeError, match="rename"):
        await run(doors.Session, doors, rename)


@pytest.mark.doors(colour="sync")
async def test_lambdas_partials_and_methods_are_called(doors: Door) -> None:
    class Service:
        def add(self, session: Any, name: str) -> Service:
            session.add(User(name=name))
            return self

        def __call__(self, session: Any, fn: str, self_: str = "joe") -> str:
            session.add(User(name=fn))
            return self_

    service = Service()
    assert doors.Session.run(lambda session: session.add(User(name="ann"))) is None
    assert doors.Session.run(functools.partial(service.add, name="bob")) is service
    assert doors.Session.run(service.add, "eve") is service
    assert doors.Session.run(service, fn="mia") == "joe"
    assert await names(doors) == ["ann", "bob", "eve", "mia"]


@pytest.mark.doors(colour="async")
async def test_async_lambdas_partials_and_methods_are_awaited(doors: Door) -> None:
    class Service:
        async def add(self, session: Any, name: str) -> Service:
            session.add(User(name=name))
            return self

        async def __call__(self, session: Any, name: str) -> str:
            return await add(session, name)

    service = Service()
    assert await doors.Session.run(lambda session: add(session, "ann")) == "ANN"
    assert await doors.Session.run(functools.partial(service.add, name="bob")) is service
    assert await doors.Session.run(service.add, "eve") is service
    assert await doors.Session.run(service, "mia") == "MIA"
    assert await names(doors) == ["ann", "bob", "eve", "mia"]


# What is refused


@ONE_DATABASE
async def test_a_function_of_the_other_colour_is_refused_before_it_is_called(doors: Door) -> None:
    called: list[int] = []

    def sync_fn(session: Any) -> None:
        called.append(1)

    async def async_fn(session: Any) -> None:
        called.append(1)

    wrong = async_fn if doors.colour == "sync" else sync_fn
    for owner in (doors.Session, doors.Session.scope(), doors.scoped()):
        with pytest.raises(errors.SyncAsyncMismatch, match="async"):
            await doors._called(owner.run)(wrong)
    assert called == []


@ONE_DATABASE
async def test_a_lambda_that_is_of_the_other_colour_is_rolled_back(doors: Door) -> None:
    async def async_fn(session: Any) -> None:
        raise AssertionError

    def sync_fn(session: Any) -> None:
        session.add(User(name="ann"))

    wrong: Any = (lambda s: async_fn(s)) if doors.colour == "sync" else (lambda s: sync_fn(s))
    with pytest.raises(errors.SyncAsyncMismatch):
        await doors._called(doors.Session.run)(wrong)
    assert await names(doors) == []


@ONE_DATABASE
async def test_generators_classes_and_what_is_no_function_are_refused(doors: Door) -> None:
    def generator(session: Any) -> Any:
        yield session

    async def async_generator(session: Any) -> Any:
        yield session

    call = doors._called(doors.Session.run)
    for fn in (generator, async_generator):
        with pytest.raises(errors.ScopeError, match=r"generator.*Session\.scope\(\) as session"):
            await call(fn)
    with pytest.raises(errors.ScopeError, match="not the class"):
        await call(type("Service", (), {}))
    for thing in ("SELECT 1", None, 5):
        with pytest.raises(errors.ScopeError, match=r"run\(\) calls a function, not"):
            await call(thing)
