"""Mistakes that public threads report, rebuilt in a few lines: `races` finds each, and passes what they did about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tests.support.models import Account, Address, Item, Shift, User
from tests.support.racing import race

if TYPE_CHECKING:
    from sessionkit.testing import Races, Schedule
    from tests.support.doors import Door

pytestmark = [pytest.mark.own_database, pytest.mark.doors("postgresql-sync", "postgresql-async")]


class Bench:
    """Runs units of a situation."""

    def __init__(self, doors: Door, *rows: Any) -> None:
        self.doors = doors
        self.rows = rows

    async def fill(self) -> None:
        async with self.doors.scope() as session:
            for row in self.rows:
                session.add(type(row)(**{name: value for name, value in vars(row).items() if name[0] != "_"}))

    async def run(self, *works: Any, check: Any, **options: Any) -> Races:
        def unit(work: Any) -> Any:
            async def unit() -> Any:
                async with self.doors.scope(**options) as session:
                    return await work(session)

            return unit

        found = await race(self.doors, *map(unit, works), setup=self.fill, check=check)
        assert found.complete
        return found


def values(schedule: Schedule) -> list[Any]:
    return [outcome.value for outcome in schedule.outcomes if outcome.error is None]


async def test_a_refresh_token_is_used_twice(doors: Door) -> None:
    """NorthlandPositronics/Cogtrix#952."""
    bench = Bench(doors, Item(sku="token", state="valid"))

    async def looks_first(session: Any) -> bool:
        if await session.scalar(select(Item.state).where(Item.sku == "token")) != "valid":
            return False
        await session.execute(update(Item).where(Item.sku == "token").values(state="revoked"))
        return True

    async def at_once(session: Any) -> bool:
        revoked = update(Item).where(Item.sku == "token", Item.state == "valid").values(state="revoked")
        return bool((await session.execute(revoked)).rowcount)

    def once(schedule: Schedule) -> bool:
        return values(schedule).count(True) == 1

    assert (await bench.run(looks_first, looks_first, check=once)).failures
    (await bench.run(at_once, at_once, check=once)).assert_none()


async def test_two_workers_reserve_one_job(doors: Door) -> None:
    """datajoint/datajoint-python#1399: the condition on the state was only in the SELECT."""
    bench = Bench(doors, Item(sku="a", state="pending"), Item(sku="b", state="pending"))
    first = select(Item.sku).where(Item.state == "pending").order_by(Item.sku).limit(1)

    async def two_steps(session: Any) -> str | None:
        sku = await session.scalar(first)
        if sku is not None:
            await session.execute(update(Item).where(Item.sku == sku).values(state="reserved"))
        return sku  # type: ignore[no-any-return]

    async def skips(session: Any) -> str | None:
        sku = await session.scalar(first.with_for_update(skip_locked=True))
        if sku is not None:
            await session.execute(update(Item).where(Item.sku == sku).values(state="reserved"))
        return sku  # type: ignore[no-any-return]

    def each_once(schedule: Schedule) -> bool:
        return len(set(values(schedule))) == 2

    assert (await bench.run(two_steps, two_steps, check=each_once)).failures
    (await bench.run(skips, skips, check=each_once)).assert_none()


QUOTA = 2


async def test_a_quota_is_exceeded(doors: Door) -> None:
    """elmohq/elmo#680; and ChatSift/chatsift#398: to count in the INSERT itself does not help."""
    bench = Bench(doors, User(id=1, name="owner"), Address(id=100, user_id=1, email="first"))

    async def counts(session: Any) -> bool:
        if await session.scalar(select(func.count()).select_from(Address)) >= QUOTA:
            return False
        session.add(Address(user_id=1, email="more"))
        return True

    async def counts_inside(session: Any) -> bool:
        sql = "INSERT INTO addresses (user_id, email) SELECT 1, 'more' WHERE (SELECT count(*) FROM addresses) < 2"
        return bool((await session.execute(text(sql))).rowcount)

    async def locks_the_owner(session: Any) -> bool:
        await session.get(User, 1, with_for_update=True)
        return await counts(session)

    def within(schedule: Schedule) -> bool:
        return len(schedule.state["addresses"]) <= QUOTA

    assert (await bench.run(counts, counts, check=within)).failures
    assert (await bench.run(counts_inside, counts_inside, check=within)).failures
    (await bench.run(locks_the_owner, locks_the_owner, check=within)).assert_none()
    (await bench.run(counts, counts, check=within, isolation="SERIALIZABLE")).assert_none()


async def test_the_lock_of_the_siblings_does_not_keep_a_new_one_out(doors: Door) -> None:
    """Glitchedpixel-io/media-api#193: FOR UPDATE cannot lock a row that is not there."""
    bench = Bench(doors, Account(id=7), Item(sku="a", quantity=1))

    async def appends(session: Any) -> int:
        positions = (await session.scalars(select(Item.quantity).with_for_update())).all()
        session.add(Item(sku=f"new {id(session)}", quantity=max(positions) + 1))
        return max(positions) + 1

    async def locks_the_parent(session: Any) -> int:
        await session.get(Account, 7, with_for_update=True)
        return await appends(session)

    def distinct(schedule: Schedule) -> bool:
        return len(set(values(schedule))) == 2

    assert (await bench.run(appends, appends, check=distinct)).failures
    (await bench.run(locks_the_parent, locks_the_parent, check=distinct)).assert_none()


async def test_the_last_two_admins_remove_each_other(doors: Door) -> None:
    """DivinPrince/quickinbox#29: the count in the DELETE is a snapshot, so on PostgreSQL it does not protect."""
    bench = Bench(doors, Shift(doctor="ann", on_call=True), Shift(doctor="bob", on_call=True))

    def removes(who: str, lock: bool) -> Any:
        async def work(session: Any) -> None:
            if lock:
                await session.execute(select(Shift.doctor).order_by(Shift.doctor).with_for_update())
            sql = "DELETE FROM shifts WHERE doctor = :who AND (SELECT count(*) FROM shifts WHERE on_call) > 1"
            await session.execute(text(sql), {"who": who})

        return work

    def one_left(schedule: Schedule) -> bool:
        return len(schedule.state["shifts"]) == 1

    assert (await bench.run(removes("ann", False), removes("bob", False), check=one_left)).failures
    (await bench.run(removes("ann", True), removes("bob", True), check=one_left)).assert_none()


async def test_get_or_create_fails_for_the_slower_one(doors: Door) -> None:
    """Climate-REF/climate-ref#679: a savepoint around the INSERT, and another SELECT."""
    bench = Bench(doors)

    async def get_or_create(session: Any) -> str:
        found = await session.scalar(select(User).where(User.name == "red"))
        if found is None:
            session.add(found := User(name="red"))
            await session.flush()
        return str(found.name)

    async def with_savepoint(session: Any) -> str:
        found = await session.scalar(select(User).where(User.name == "red"))
        if found is None:
            try:
                async with session.begin_nested():
                    session.add(found := User(name="red"))
            except IntegrityError:
                found = (await session.scalars(select(User).where(User.name == "red"))).one()
        return str(found.name)

    def both(schedule: Schedule) -> bool:
        return values(schedule) == ["red", "red"] and len(schedule.state["users"]) == 1

    found = await bench.run(get_or_create, get_or_create, check=both)
    assert {type(outcome.error) for each in found.failures for outcome in each.outcomes} >= {IntegrityError}
    (await bench.run(with_savepoint, with_savepoint, check=both)).assert_none()


async def test_two_flushes_that_write_tables_in_different_orders_deadlock(doors: Door) -> None:
    """sqlalchemy/sqlalchemy#5735."""
    bench = Bench(doors, Account(id=1), User(id=1, name="ann"))

    def writes(*order: Any) -> Any:
        async def work(session: Any) -> None:
            for model in order:
                column = {"balance": 5} if model is Account else {"email": "new"}
                await session.execute(update(model).where(model.id == 1).values(**column))

        return work

    def no_error(schedule: Schedule) -> bool:
        return not any(outcome.error for outcome in schedule.outcomes)

    found = await bench.run(writes(Account, User), writes(User, Account), check=no_error)
    assert all(any(outcome.refused for outcome in each.outcomes) for each in found.failures)
    assert found.failures
    (await bench.run(writes(Account, User), writes(Account, User), check=no_error)).assert_none()


async def test_a_child_comes_between_the_clearing_and_the_delete_of_its_parent(doors: Door) -> None:
    """vstorm-co/agenticos#1135."""
    bench = Bench(doors, User(id=1, name="org"), Address(id=100, user_id=1, email="old"))

    def purge(lock: bool) -> Any:
        async def work(session: Any) -> None:
            if lock:
                await session.execute(select(User.id).where(User.id == 1).with_for_update())
            await session.execute(text("DELETE FROM addresses WHERE user_id = 1"))
            await session.execute(text("DELETE FROM users WHERE id = 1"))

        return work

    async def joins(session: Any) -> str:
        try:
            async with session.begin_nested():
                await session.execute(insert(Address).values(user_id=1, email="new"))
        except IntegrityError:
            return "too late"
        return "joined"

    def purged(schedule: Schedule) -> bool:
        return schedule.outcomes[0].error is None

    found = await bench.run(purge(False), joins, check=purged)
    assert {type(each.outcomes[0].error) for each in found.failures} == {IntegrityError}
    (await bench.run(purge(True), joins, check=purged)).assert_none()


async def test_a_row_of_a_deleted_owner_comes_back(doors: Door) -> None:
    """coder/coder#28546: an insert that has read `deleted = false` loses to a soft delete and commits after it."""
    bench = Bench(doors, User(id=1, name="ann", email="active"))

    def adds(lock: Any) -> Any:
        async def work(session: Any) -> None:
            query = select(User.email).where(User.id == 1)
            if lock:
                query = query.with_for_update(**lock)
            if await session.scalar(query) == "active":
                await session.execute(insert(Address).values(user_id=1, email="key"))

        return work

    async def soft_delete(session: Any) -> None:
        await session.execute(update(User).where(User.id == 1).values(email="deleted"))
        await session.execute(text("DELETE FROM addresses WHERE user_id = 1"))

    def gone(schedule: Schedule) -> bool:
        return schedule.state["addresses"] == ()

    assert (await bench.run(adds(None), soft_delete, check=gone)).failures
    assert (
        await bench.run(adds({"read": True, "key_share": True}), soft_delete, check=gone)
    ).failures  # too weak against an UPDATE
    (await bench.run(adds({"read": True}), soft_delete, check=gone)).assert_none()


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
async def test_pending_transfers_exceed_the_balance(doors: Door) -> None:
    """Scottcjn/Rustchain#4819, on SQLite without BEGIN IMMEDIATE."""

    async def fill() -> None:
        async with doors.scope() as session:
            session.add(Account(id=1, balance=100))

    async def transfer(session: Any) -> None:
        balance = await session.scalar(select(Account.balance).where(Account.id == 1))
        pending = await session.scalar(select(func.coalesce(func.sum(Item.quantity), 0)))
        if balance - pending >= 80:
            session.add(Item(sku=f"{id(session)}", quantity=80))

    plain = doors.plain_factory()

    async def by_session() -> None:
        async with doors.session(plain) as session:
            await transfer(session)
            await session.commit()

    async def by_scope() -> None:
        async with doors.scope(isolation="SERIALIZABLE") as session:
            await transfer(session)

    def covered(schedule: Schedule) -> bool:
        return len(schedule.state["items"]) <= 1

    assert (
        await race(doors, by_session, by_session, factories=[plain, doors.Session], setup=fill, check=covered)
    ).failures
    (await race(doors, by_scope, by_scope, setup=fill, check=covered)).assert_none()
