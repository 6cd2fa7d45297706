"""What sessionkit promises of concurrent units, in every order of their statements and not only in staged ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from sessionkit import bulk, commits, locks, sqlite
from sessionkit.bulk import async_get_or_create, get_or_create
from sessionkit.errors import VersionConflict
from tests.contract.versioned import Base, Doc
from tests.support.models import Account, Item, User
from tests.support.racing import race

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = [
    pytest.mark.own_database,
    pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async"),
]


@pytest.fixture(params=["as it is", "deferred"])
def factory(request: pytest.FixtureRequest, doors: Door) -> Any:
    """Return the door's factory; on SQLite also one whose transactions take the lock only when they write."""
    if request.param == "as it is" or doors.backend == "postgresql":
        return doors.Session
    return doors.factory(sqlite.configure(doors.make_engine(), begin="deferred"))


def unit(doors: Door, factory: Any, work: Any, **options: Any) -> Any:
    decorated = doors.decorate(work, factory, **options)

    async def unit() -> Any:
        return await decorated()

    return unit


async def test_with_versions_no_update_is_lost(doors: Door, factory: Any) -> None:
    Base.metadata.create_all(doors.database.observer)

    async def fill() -> None:
        async with doors.scope(factory) as session:
            session.add(Doc(id=1))

    async def work(session: Any) -> None:
        (await session.get(Doc, 1)).pages += 1

    refused = unit(doors, factory, work)
    found = await race(doors, refused, refused, factories=[factory], setup=fill)
    found.assert_serial()
    assert found.complete
    errors = [outcome.error for each in found.schedules for outcome in each.outcomes if outcome.error]
    assert any(isinstance(error, VersionConflict) for error in errors) == (doors.backend == "postgresql")
    retried = unit(doors, factory, work, retry=5)
    found = await race(doors, retried, retried, factories=[factory], setup=fill)
    found.assert_serial()
    assert {row[3] for each in found.schedules for row in each.state["v_docs"]} == {2}


async def test_a_mutex_lets_one_in_at_a_time(doors: Door) -> None:
    async def fill() -> None:
        async with doors.scope() as session:
            session.add(Account(id=1, balance=0))

    async def work(session: Any) -> None:
        account = await session.get(Account, 1)
        account.balance += 1

    alone = unit(doors, doors.Session, work, mutex="one")
    other = unit(doors, doors.Session, work, mutex="another")
    found = await race(doors, alone, alone, setup=fill)
    found.assert_serial()
    assert any(step.waited for each in found.schedules for step in each.steps)
    found = await race(doors, alone, other, setup=fill)
    assert bool(found.failures) == (doors.backend == "postgresql")  # on SQLite each is the write lock


async def test_a_job_goes_to_one_taker(doors: Door) -> None:
    async def fill() -> None:
        async with doors.scope() as session:
            session.add_all([Item(sku=sku, state="due") for sku in "ab"])

    async def work(session: Any) -> str | None:
        jobs = select(Item).where(Item.state == "due").order_by(Item.sku)
        job = await doors.twin(locks.take, locks.async_take)(session, jobs)
        if job is None:
            return None
        job.state = "done"
        return str(job.sku)

    taker = unit(doors, doors.Session, work)
    found = await race(doors, taker, taker, setup=fill, ignore=[Item.created_at])
    assert found.complete
    assert {tuple(sorted(outcome.value for outcome in each.outcomes)) for each in found.schedules} == {("a", "b")}
    found = await race(doors, taker, taker, taker, setup=fill, ignore=[Item.created_at], max_schedules=100)
    values = [[outcome.value for outcome in each.outcomes if outcome.value] for each in found.schedules]
    assert all(len(taken) == len(set(taken)) for taken in values)


async def test_two_upserts_of_one_key_leave_one_row(doors: Door, factory: Any) -> None:
    def work(quantity: int) -> Any:
        async def upsert(session: Any) -> tuple[int, int]:
            rows = [{"sku": "a", "quantity": quantity}]
            result = await doors.twin(bulk.upsert, bulk.async_upsert)(session, Item, rows, match=[Item.sku])
            return result.inserted, result.updated

        return unit(doors, factory, upsert)

    found = await race(doors, work(1), work(2), factories=[factory], ignore=[Item.created_at])
    found.assert_serial()
    values = {outcome.value for each in found.schedules for outcome in each.outcomes if not outcome.refused}
    assert values == {(1, 0), (0, 1)}


@pytest.mark.doors("postgresql-sync", "postgresql-async")
async def test_rows_that_are_copied_are_a_step_too(doors: Door) -> None:
    async def insert(session: Any) -> None:
        rows = [{"id": number, "balance": 1} for number in range(1, 4)]
        await doors.twin(bulk.insert, bulk.async_insert)(session, Account, rows, method="copy")

    async def total(session: Any) -> int:
        return len((await session.scalars(select(Account))).all())

    found = await race(doors, unit(doors, doors.Session, insert), unit(doors, doors.Session, total))
    assert any(step.statement.startswith("COPY") for each in found.schedules for step in each.steps)
    assert {each.outcomes[1].value for each in found.schedules} == {0, 3}
    found.assert_serial()


async def test_an_inner_scope_never_commits_the_outer_one(doors: Door) -> None:
    """A reader sees all of an outer unit or nothing, wherever the inner ones end."""

    async def inner(session: Any) -> None:
        session.add(Account(id=2))

    joined = doors.decorate(inner)
    nested = doors.decorate(inner, propagation="savepoint")

    def outer(call: Any) -> Any:
        async def work(session: Any) -> None:
            session.add(Account(id=1))
            await session.flush()
            await call()
            session.add(Account(id=3))

        return unit(doors, doors.Session, work)

    async def count() -> int:
        async with doors.scope(read_only=True) as session:
            return len((await session.scalars(select(Account))).all())

    for call in (joined, nested):
        found = await race(doors, outer(call), count)
        assert {each.outcomes[1].value for each in found.schedules} == {0, 3}
        found.assert_serial()


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_a_unit_with_a_key_happens_once_and_both_callers_get_its_answer(doors: Door, isolation: str) -> None:
    commits.create_table(doors.database.observer)
    ran: list[int] = []

    async def pay(session: Any) -> int:
        session.add(Account(owner="ann", balance=5))
        await session.flush()
        ran.append(1)
        return len(ran)

    once = unit(doors, doors.Session, pay, once="pay:7", isolation=isolation, retry=5)
    found = await race(doors, once, once)
    assert found.explored > 1
    for each in found.schedules:
        assert len(each.state["accounts"]) == 1
        assert each.outcomes[0].error is each.outcomes[1].error is None
        assert each.outcomes[0].value == each.outcomes[1].value


async def test_get_or_create_gives_both_the_same_row(doors: Door, factory: Any) -> None:
    async def work(session: Any) -> tuple[str, bool]:
        got = doors.twin(get_or_create, async_get_or_create)
        user, created = await got(session, User, {"name": "red"}, defaults={"email": "x"})
        return user.name, created

    either = unit(doors, factory, work)
    found = await race(doors, either, either, factories=[factory])
    assert found.complete
    found.assert_serial()
    for each in found.schedules:
        assert len(each.state["users"]) == 1
        # On SQLite a deferred transaction that has read before it writes is refused, as each such one is.
        assert all(outcome.error is None or outcome.refused for outcome in each.outcomes)
    if doors.backend == "postgresql":
        assert not any(outcome.error for each in found.schedules for outcome in each.outcomes)
