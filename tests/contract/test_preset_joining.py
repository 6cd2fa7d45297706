"""A scope that joins gets what it asked for, or an error with both values; what it did not ask for, it takes as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from sessionkit import (
    READ_COMMITTED,
    READ_ONLY,
    REPEATABLE_READ,
    REPORT,
    SERIALIZABLE,
    SNAPSHOT,
    Isolation,
    Preset,
    errors,
)
from tests.contract.breaking import names
from tests.contract.settings import in_force
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

LEVELS = list(Isolation)


@pytest.mark.parametrize("propagation", ["join", "savepoint", "require"])
@pytest.mark.parametrize("runs", LEVELS)
@pytest.mark.parametrize("asked", LEVELS)
async def test_a_level_at_least_as_strong_satisfies_and_a_weaker_one_raises_with_both_values(
    doors: Door, runs: Isolation, asked: Isolation, propagation: Any
) -> None:
    async def both() -> None:
        async with doors.scope(isolation=runs) as session:
            async with doors.scope(isolation=asked, propagation=propagation) as inner:
                assert doors.same(inner, session)
                session.add(User(name="ann"))

    # What runs is what the backend gives: READ COMMITTED at least on PostgreSQL, SERIALIZABLE always on SQLite.
    given = max(runs, Isolation.READ_COMMITTED, key=lambda level: level.strength)
    if doors.backend == "sqlite":
        given = Isolation.SERIALIZABLE
    if given.strength >= asked.strength:
        await both()
        assert await names(doors) == ["ann"]
        return
    with pytest.raises(errors.OptionError) as caught:
        await both()
    assert str(asked) in str(caught.value)
    assert str(given) in str(caught.value)
    assert "propagation='new'" in str(caught.value)


async def test_options_that_were_not_given_accept_what_runs(doors: Door) -> None:
    for preset in (READ_COMMITTED, SERIALIZABLE, READ_ONLY, SNAPSHOT, REPORT, Preset(lock_timeout=3)):
        async with doors.scope(preset=preset) as session:
            before = await in_force(doors, session)
            async with doors.scope() as inner:
                assert await in_force(doors, inner) == before


@pytest.mark.doors(backend="postgresql")
async def test_the_level_of_the_engine_counts_where_the_outer_scope_asked_for_none(doors: Door) -> None:
    strong = doors.factory(doors.make_engine(isolation_level="SERIALIZABLE"))
    async with doors.scope(strong), doors.scope(strong, isolation="SERIALIZABLE") as inner:
        assert (await in_force(doors, inner))["transaction_isolation"] == "serializable"
    derived = doors.factory(doors.engine.execution_options(isolation_level="REPEATABLE READ"))
    async with doors.scope(derived), doors.scope(derived, isolation="REPEATABLE READ") as inner:
        assert (await in_force(doors, inner))["transaction_isolation"] == "repeatable read"
    async with doors.scope(derived):
        with pytest.raises(errors.OptionError, match=r"SERIALIZABLE.*REPEATABLE READ"):
            async with doors.scope(derived, isolation="SERIALIZABLE"):
                pass


@pytest.mark.doors(backend="postgresql")
@pytest.mark.own_database
async def test_the_level_of_the_server_counts_where_nobody_asked_for_one(doors: Door) -> None:
    database = doors.database.url(doors.driver).database
    await doors.write(f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'serializable'")
    Session = doors.factory(doors.make_engine())
    async with doors.scope(Session) as session:
        await session.execute(text("SELECT 1"))
        async with doors.scope(Session, isolation="SERIALIZABLE") as inner:
            assert (await in_force(doors, inner))["transaction_isolation"] == "serializable"


@pytest.mark.parametrize("propagation", ["join", "savepoint"])
async def test_read_only_false_inside_a_read_only_transaction_raises(doors: Door, propagation: Any) -> None:
    async with doors.scope(read_only=True) as session:
        with pytest.raises(errors.OptionError, match=r"read_only=False.*read-only"):
            async with doors.scope(read_only=False, propagation=propagation):
                pass
        await session.execute(text("SELECT 1"))


async def test_read_only_false_inside_a_scope_that_was_made_read_only_for_a_while_raises(doors: Door) -> None:
    async with doors.scope():
        async with doors.scope(read_only=True):
            with pytest.raises(errors.OptionError, match=r"read_only=False.*read-only"):
                async with doors.scope(read_only=False):
                    pass
        async with doors.scope(read_only=False) as session:
            session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_read_only_inside_read_only_adds_nothing(doors: Door) -> None:
    async with doors.scope(read_only=True) as session:
        await session.execute(text("SELECT 1"))
        with doors.statements() as sql:
            async with doors.scope(read_only=True):
                pass
    assert sql == []


async def test_deferrable_joins_deferrable_only(doors: Door) -> None:
    async with doors.scope(preset=REPORT), doors.scope(preset=REPORT):
        pass
    async with doors.scope(isolation="SERIALIZABLE", read_only=True):
        with pytest.raises(errors.OptionError, match=r"deferrable=True.*runs without it"):
            async with doors.scope(preset=REPORT):
                pass


@pytest.mark.parametrize("option", ["statement_timeout", "lock_timeout"])
async def test_a_timeout_joins_a_shorter_one_and_not_a_longer_one(doors: Door, option: str) -> None:
    async with doors.scope(**{option: 3}):  # type: ignore[arg-type]
        async with doors.scope(**{option: 3}), doors.scope(**{option: 5}):  # type: ignore[arg-type]
            pass
        with pytest.raises(errors.OptionError, match=rf"{option}=2 s.*3 s"):
            async with doors.scope(**{option: 2}):  # type: ignore[arg-type]
                pass
    async with doors.scope():
        with pytest.raises(errors.OptionError, match=rf"{option}=2 s.*none of its own"):
            async with doors.scope(**{option: 2}):  # type: ignore[arg-type]
                pass


async def test_a_refused_joining_does_not_doom_the_outer_scope(doors: Door) -> None:
    async with doors.scope(preset=Preset(lock_timeout=3)) as session:
        with pytest.raises(errors.OptionError):
            async with doors.scope(lock_timeout=1):
                pass
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_the_defaults_of_a_factory_bind_its_transactions_and_not_its_joined_scopes(doors: Door) -> None:
    """A scope that says nothing accepts what runs, also where the outer one has said less than the factory's default."""
    Session = doors.factory(preset=SERIALIZABLE, lock_timeout=3)
    async with doors.scope(Session, isolation="READ COMMITTED", lock_timeout=10) as session:
        async with doors.scope(Session) as inner:
            assert doors.same(inner, session)
            inner.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_a_read_only_default_is_put_aside_by_the_outer_scope_for_all_inside(doors: Door) -> None:
    Session = doors.factory(read_only=True)

    async def add(session: AsyncSession) -> None:
        session.add(User(name="ann"))

    joined = doors.decorate(add, Session)
    async with doors.scope(Session, read_only=False):
        await joined()
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="postgresql")
async def test_a_new_transaction_is_the_way_out(doors: Door) -> None:
    async with doors.scope(isolation="READ COMMITTED", read_only=True) as outer:
        await outer.execute(text("SELECT 1"))
        async with doors.scope(isolation="SERIALIZABLE", read_only=False, lock_timeout=2, propagation="new") as session:
            assert (await in_force(doors, session))["transaction_isolation"] == "serializable"
            session.add(User(name="ann"))
        assert (await outer.scalars(select(User.name))).all() == ["ann"]


async def test_a_function_with_a_level_of_its_own_joins_a_stronger_scope_and_not_a_weaker_one(doors: Door) -> None:
    async def body(session: AsyncSession) -> bool:
        return await session.scalar(text("SELECT 1")) == 1

    transfer = doors.decorate(body, form="keyword", isolation=Isolation.REPEATABLE_READ)
    assert await transfer()
    async with doors.scope(preset=SERIALIZABLE) as session:
        assert await transfer()
        assert await transfer(session=session)
    if doors.backend == "postgresql":
        async with doors.scope(preset=READ_COMMITTED) as session:
            for arguments in ({}, {"session": session}):
                with pytest.raises(errors.OptionError, match=r"REPEATABLE READ.*READ COMMITTED"):
                    await transfer(**arguments)


async def test_a_preset_of_two_engines_is_as_weak_as_the_weakest(doors: Door) -> None:
    if doors.backend == "sqlite":
        return_level = Isolation.SERIALIZABLE
        other = doors.other_engine()
    else:
        return_level = Isolation.READ_COMMITTED
        other = doors.other_engine(isolation_level="SERIALIZABLE")
    from tests.support.models import Account

    Session = doors.factory(binds={User: doors.engine, Account: other})
    async with doors.scope(Session) as session:
        await session.execute(select(User))
        await session.execute(select(Account))
        for asked in (REPEATABLE_READ, SERIALIZABLE):
            assert asked.isolation is not None
            if asked.isolation.strength <= return_level.strength:
                async with doors.scope(Session, preset=asked):
                    pass
            else:
                with pytest.raises(errors.OptionError, match=str(return_level)):
                    async with doors.scope(Session, preset=asked):
                        pass
