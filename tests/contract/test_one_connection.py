"""Law 17: one connection is one transaction. A pool that hands it out twice does not get two units into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import SingletonThreadPool, StaticPool, insert, select

from sessionkit import errors, on_commit
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


def static(doors: Door) -> Any:
    """Return an engine whose pool has one connection for all."""
    options: dict[str, Any] = {"connect_args": {"check_same_thread": False}} if doors.driver == "pysqlite" else {}
    return doors.make_engine(poolclass=StaticPool, **options)


@pytest.fixture
def shared(doors: Door) -> Any:
    return static(doors)


async def write(session: Any, name: str, flushed: bool) -> None:
    session.add(User(name=name))
    if flushed:
        await session.flush()


FLUSHED = pytest.mark.parametrize("flushed", [True, False], ids=["flush in the body", "flush at the end"])
FAILS = pytest.mark.parametrize("fails", [False, True], ids=["the first commits", "the first fails"])


# Two at once


@FLUSHED
@FAILS
@pytest.mark.parametrize("plain", [False, True])
async def test_a_second_task_or_thread_is_refused_and_the_first_goes_on(
    doors: Door, shared: Any, fails: bool, flushed: bool, plain: bool
) -> None:
    factory = doors.plain_factory(shared) if plain else doors.factory(shared)
    first_is_in, second_is_out = doors.event(), doors.event()
    hooks: list[str] = []

    async def first() -> None:
        async with doors.scope(factory, name="the first") as session:
            await write(session, "first", True)
            on_commit(lambda: hooks.append("first"))
            first_is_in.set()
            await second_is_out.wait()
            assert (await session.scalars(select(User.name))).all() == ["first"]
            await write(session, "first again", False)
            if fails:
                raise LookupError

    async def second() -> list[str]:
        await first_is_in.wait()
        with doors.statements(shared) as sql:
            with pytest.raises(errors.ScopeError) as caught:
                async with doors.scope(factory, name="the second") as session:
                    on_commit(lambda: hooks.append("second"))
                    await write(session, "second", flushed)
        second_is_out.set()
        assert errors.outcome_of(caught.value) == "rolled back"
        return sql

    result, sql = await doors.together(first, second, return_exceptions=True)
    if isinstance(sql, BaseException):
        raise sql
    assert sql == [], "the second has touched the connection"
    assert isinstance(result, LookupError) if fails else result is None
    assert await names(doors) == ([] if fails else ["first", "first again"])
    assert hooks == ([] if fails else ["first"])


@FLUSHED
@FAILS
async def test_a_new_transaction_inside_a_scope_is_refused_and_the_scope_goes_on(
    doors: Door, shared: Any, fails: bool, flushed: bool
) -> None:
    factory = doors.factory(shared)
    await _second_inside(doors, shared, factory, factory, fails, flushed, propagation="new")


@FLUSHED
@FAILS
@pytest.mark.parametrize("plain", [False, True])
async def test_a_scope_of_another_factory_on_the_same_engine_is_refused_and_the_first_goes_on(
    doors: Door, shared: Any, fails: bool, flushed: bool, plain: bool
) -> None:
    other = doors.plain_factory(shared) if plain else doors.factory(shared)
    await _second_inside(doors, shared, doors.factory(shared), other, fails, flushed)


async def _second_inside(
    doors: Door, engine: Any, factory: Any, other: Any, fails: bool, flushed: bool, **options: Any
) -> None:
    async def work() -> None:
        async with doors.scope(factory) as session:
            await write(session, "first", True)
            with doors.statements(engine) as sql, pytest.raises(errors.ScopeError):
                async with doors.scope(other, **options) as second:
                    await write(second, "second", flushed)
            assert sql == []
            assert doors.raw(session).in_transaction()
            await write(session, "first again", False)
            if fails:
                raise LookupError

    if fails:
        with pytest.raises(LookupError):
            await work()
    else:
        await work()
    assert await names(doors) == ([] if fails else ["first", "first again"])


async def test_a_refusal_that_the_first_passes_on_rolls_it_back_like_any_error(doors: Door, shared: Any) -> None:
    factory = doors.factory(shared)
    with pytest.raises(errors.ScopeError):
        async with doors.scope(factory) as session:
            await write(session, "first", True)
            async with doors.scope(factory, propagation="new") as second:
                await write(second, "second", True)
    assert await names(doors) == []


@FLUSHED
@FAILS
async def test_a_plain_sessions_transaction_refuses_a_scope_and_goes_on(
    doors: Door, shared: Any, fails: bool, flushed: bool
) -> None:
    async with doors.session(doors.plain_factory(shared)) as plain:
        await write(plain, "plain", True)
        with doors.statements(shared) as sql, pytest.raises(errors.ScopeError):
            async with doors.scope(doors.factory(shared)) as session:
                await write(session, "second", flushed)
        assert sql == []
        await write(plain, "plain again", True)
        await (plain.rollback() if fails else plain.commit())
    assert await names(doors) == ([] if fails else ["plain", "plain again"])


async def test_a_connection_that_somebody_has_begun_on_refuses_a_scope_and_goes_on(doors: Door, shared: Any) -> None:
    async with doors.enter(shared.connect()) as connection:
        await connection.execute(insert(User).values(name="core"))
        with pytest.raises(errors.ScopeError):
            async with doors.scope(doors.factory(shared)) as session:
                await write(session, "second", True)
        await connection.commit()
    assert await names(doors) == ["core"]


async def test_many_at_once_each_commit_what_they_said_and_nothing_else(doors: Door, shared: Any) -> None:
    """Who was refused has nothing there, who was not has everything; one at least is served."""
    factory = doors.factory(shared)
    async with doors.scope(factory) as session:
        await session.connection()  # StaticPool makes a connection for each of those that are the first at once
    barrier = doors.barrier(5)
    committed: list[str] = []

    async def unit(number: int) -> None:
        await barrier.wait()
        try:
            async with doors.scope(factory) as session:
                await write(session, f"{number} a", True)
                await write(session, f"{number} b", True)
        except errors.ScopeError:
            return
        committed.extend([f"{number} a", f"{number} b"])

    await doors.together(*[unit(number) for number in range(5)])
    assert sorted(await names(doors)) == sorted(committed)
    assert committed


# One after the other


@pytest.mark.parametrize("plain", [False, True])
async def test_scopes_one_after_the_other_share_the_connection(doors: Door, shared: Any, plain: bool) -> None:
    factory = doors.plain_factory(shared) if plain else doors.factory(shared)
    other = doors.factory(shared)
    for number in range(3):
        async with doors.scope(factory) as session:
            await write(session, f"user {number}", number == 1)
            async with doors.scope(factory), doors.scope(factory, propagation="savepoint"):
                pass
        with pytest.raises(LookupError):
            async with doors.scope(other) as session:
                await write(session, "lost", True)
                raise LookupError
        async with doors.session(doors.plain_factory(shared)) as session:
            assert len((await session.scalars(select(User))).all()) == number + 1
    assert await names(doors) == ["user 0", "user 1", "user 2"]


async def test_after_a_refusal_the_connection_is_as_free_as_before(doors: Door, shared: Any) -> None:
    factory = doors.factory(shared)
    for number in range(3):
        async with doors.scope(factory) as session:
            await write(session, f"user {number}", True)
            with pytest.raises(errors.ScopeError):
                async with doors.scope(factory, propagation="new") as second:
                    await write(second, "second", True)
    assert await names(doors) == ["user 0", "user 1", "user 2"]


async def test_a_scope_that_touched_nothing_hinders_nobody(doors: Door, shared: Any) -> None:
    """It has no transaction: nothing was sent, and no connection was taken."""
    factory = doors.factory(shared)
    async with doors.scope(factory):
        async with doors.scope(factory, propagation="new") as session:
            await write(session, "ann", True)
    assert await names(doors) == ["ann"]


async def test_the_next_task_or_thread_is_served_once_the_first_is_done(doors: Door, shared: Any) -> None:
    factory = doors.factory(shared)
    done = doors.event()

    async def first() -> None:
        async with doors.scope(factory) as session:
            await write(session, "first", True)
        done.set()

    async def second() -> None:
        await done.wait()
        async with doors.scope(factory) as session:
            await write(session, "second", True)

    await doors.together(first, second)
    assert await names(doors) == ["first", "second"]


# A pool that makes others wait


async def test_a_pool_of_one_connection_makes_the_second_wait(doors: Door) -> None:
    options: dict[str, Any] = {}
    if doors.backend == "sqlite":
        from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

        # (Not every line of SQLAlchemy takes a queue for a SQLite file by itself.)
        options["poolclass"] = QueuePool if doors.colour == "sync" else AsyncAdaptedQueuePool
    engine = doors.make_engine(pool_size=1, max_overflow=0, **options)
    factory = doors.factory(engine)
    first_is_in, second_comes = doors.event(), doors.event()

    async def first() -> None:
        async with doors.scope(factory) as session:
            await write(session, "first", True)
            first_is_in.set()
            await second_comes.wait()
            await write(session, "first again", True)

    async def second() -> None:
        await first_is_in.wait()
        second_comes.set()
        async with doors.scope(factory) as session:
            await write(session, "second", True)

    await doors.together(first, second)
    assert await names(doors) == ["first", "first again", "second"]


# A pool with one connection for each thread


@pytest.mark.doors("sqlite-sync")
@FLUSHED
@FAILS
@pytest.mark.parametrize("new", [True, False])
async def test_a_connection_for_each_thread_is_refused_to_a_second_unit_of_the_thread(
    doors: Door, fails: bool, flushed: bool, new: bool
) -> None:
    engine = doors.make_engine(poolclass=SingletonThreadPool)
    factory = doors.factory(engine)
    other = factory if new else doors.factory(engine)
    options = {"propagation": "new"} if new else {}
    await _second_inside(doors, engine, factory, other, fails, flushed, **options)


@pytest.mark.doors("sqlite-sync")
async def test_a_connection_for_each_thread_serves_each_thread(doors: Door) -> None:
    engine = doors.make_engine(poolclass=SingletonThreadPool)
    factory = doors.factory(engine)

    async def reads() -> list[str]:
        async with doors.scope(factory, read_only=True) as session:
            return list((await session.scalars(select(User.name))).all())

    async with doors.scope(factory) as session:
        await write(session, "first", True)
        assert await doors.in_other_thread(reads) == []
    assert await doors.in_other_thread(reads) == ["first"]


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_database_in_memory_holds_one_unit_at_a_time(doors: Door) -> None:
    """What `create_engine("sqlite://")` gives, without an option: one connection, which is the database."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_engine("sqlite://") if doors.colour == "sync" else create_async_engine("sqlite+aiosqlite://")
    doors._adopted(engine, True)
    factory = doors.factory(engine)
    async with doors.scope(factory) as session:
        await session.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR, email VARCHAR)"))
    async with doors.scope(factory) as session:
        await write(session, "first", True)
        with pytest.raises(errors.ScopeError):
            async with doors.scope(factory, propagation="new") as second:
                await write(second, "second", True)
        await write(session, "first again", True)
    async with doors.scope(factory) as session:
        assert (await session.scalars(select(User.name))).all() == ["first", "first again"]


# Sessions that are bound to a connection


@FLUSHED
@FAILS
@pytest.mark.parametrize("plain", [False, True])
async def test_two_units_on_one_given_connection_are_refused_and_the_first_goes_on(
    doors: Door, fails: bool, flushed: bool, plain: bool
) -> None:
    async with doors.connect() as connection:
        bind = doors.raw(connection)
        make = doors.plain_factory if plain else doors.factory
        await _second_inside(doors, doors.engine, make(bind), make(bind), fails, flushed)


async def test_units_one_after_the_other_on_one_given_connection_are_served(doors: Door) -> None:
    async with doors.connect() as connection:
        factory = doors.factory(doors.raw(connection))
        for name in ("ann", "bob"):
            async with doors.scope(factory) as session:
                await write(session, name, True)
            with pytest.raises(LookupError):
                async with doors.scope(factory) as session:
                    await write(session, "lost", True)
                    raise LookupError
        assert not connection.in_transaction()
    assert await names(doors) == ["ann", "bob"]
