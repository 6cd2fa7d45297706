"""`Retry(lock_on_retry=True)`: from the second attempt on, what the unit selects is locked, and fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import aliased, joinedload, outerjoin, selectinload
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry
from tests.contract.breaking import names, take
from tests.support.models import Account, Address, User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

POSTGRESQL = pytest.mark.doors(backend="postgresql")
LOCKS = Retry(5, wait=0, lock_on_retry=True)


async def selects(
    doors: Door, body: Callable[[AsyncSession], Awaitable[Any]], retry: Retry = LOCKS, **options: Any
) -> list[list[str]]:
    """Return the SELECTs of two runs of a unit, whose first run fails at its end."""
    runs: list[list[str]] = []

    async def unit(session: AsyncSession) -> None:
        with doors.statements() as sql:
            runs.append(sql)
            await body(session)
            if len(runs) == 1:
                raise StaleDataError("somebody was faster")

    await doors.decorate(unit, retry=retry, **options)()
    return [[line for line in sql if line.startswith("SELECT")] for sql in runs]


def locked(statement: str) -> str:
    return statement.partition(" FOR UPDATE")[2].removeprefix(" OF ")


USER = aliased(User)

LOCKED: dict[str, tuple[Any, str]] = {
    "an entity": (select(User), "users"),
    "with conditions": (select(User).where(User.name == "ann").order_by(User.id).limit(1), "users"),
    "two entities": (select(User, Address).join(User.addresses), "users, addresses"),
    "an entity and a join": (select(User).join(User.addresses), "users"),
    "an alias": (select(USER).where(USER.name == "ann"), "users_1"),
    "the inner side of an outer join": (select(User, Address).outerjoin(User.addresses), "users"),
    "the inner side of an outer join by hand": (select(User).select_from(outerjoin(User, Address)), "users"),
    "with a joined eager load": (select(User).options(joinedload(User.addresses)), "users"),
    "with a joined eager load and a limit": (select(User).options(joinedload(User.addresses)).limit(5), "users"),
}

LEFT_ALONE: dict[str, Any] = {
    "columns": select(User.id, User.name),
    "an aggregate": select(func.count()).select_from(User),
    "an entity and a column": select(User, User.name),
    "groups": select(User).group_by(User.id),
    "distinct": select(User).distinct(),
    "a lock of its own": select(User).with_for_update(read=True),
    "a subquery": select(aliased(User, select(User).where(User.id > 0).subquery())),
    "a set operation": select(User).from_statement(select(User).union(select(User))),
    "a full join": select(User).join(User.addresses, full=True),
    "text": text("SELECT id FROM users"),
}


@POSTGRESQL
@pytest.mark.parametrize("name", LOCKED)
async def test_entities_are_locked_from_the_second_attempt_on(doors: Door, name: str) -> None:
    await take(doors)
    statement, tables = LOCKED[name]

    async def body(session: AsyncSession) -> None:
        (await session.execute(statement)).unique().all()

    (first,), (second,) = await selects(doors, body)
    assert "FOR UPDATE" not in first
    assert locked(second).partition(")")[0] == tables


@POSTGRESQL
@pytest.mark.parametrize("name", LEFT_ALONE)
async def test_what_cannot_be_locked_or_locks_itself_is_left_alone(doors: Door, name: str) -> None:
    await take(doors)

    async def body(session: AsyncSession) -> None:
        (await session.execute(LEFT_ALONE[name])).all()

    first, second = await selects(doors, body)
    assert first == second


@POSTGRESQL
async def test_get_and_the_legacy_query_lock_as_well(doors: Door) -> None:
    await doors.write(insert(User).values(id=1, name="ann"))

    async def body(session: AsyncSession) -> None:
        await session.get_one(User, 1)
        session.expunge_all()
        await session.run_sync(lambda s: s.query(User).filter_by(name="ann").one())

    first, second = await selects(doors, body)
    assert [locked(line) for line in first] == ["", ""]
    assert [locked(line) for line in second] == ["users", "users"]


@POSTGRESQL
async def test_loads_of_relationships_and_expired_columns_are_left_alone(doors: Door) -> None:
    await doors.write(insert(User).values(id=1, name="ann"))
    await doors.write(insert(Address).values(user_id=1, email="ann@example.com"))

    async def body(session: AsyncSession) -> None:
        (user,) = (await session.scalars(select(User).options(selectinload(User.addresses)))).all()
        await session.refresh(user, ["name"])

    _, (users, addresses, refreshed) = await selects(doors, body)
    assert (locked(users), locked(addresses), locked(refreshed)) == ("users", "", "")


async def test_without_it_nothing_is_locked_and_on_sqlite_nothing_has_to_be(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await session.execute(select(User))

    first, second = await selects(doors, body, retry=LOCKS if doors.backend == "sqlite" else Retry(wait=0))
    assert first == second


async def test_a_read_only_unit_does_not_lock(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await session.execute(select(User))

    first, second = await selects(doors, body, read_only=True)
    assert first == second


@POSTGRESQL
async def test_what_was_read_before_without_a_lock_is_refreshed(doors: Door) -> None:
    """An object in the identity map keeps its attributes in a plain SELECT, FOR UPDATE or not."""
    await doors.write(insert(Account).values(id=1, balance=0))
    balances: list[int] = []

    async def unit(session: AsyncSession) -> None:
        if not balances:
            balances.append(-1)
            raise StaleDataError("somebody was faster")
        kept = (await session.scalars(select(Account).with_for_update(read=True))).one()
        await session.execute(update(Account).values(balance=7).execution_options(synchronize_session=False))
        assert (await session.scalars(select(Account))).one() is kept
        balances.append(kept.balance)

    await doors.decorate(unit, retry=LOCKS)()
    assert balances == [-1, 7]


async def test_changes_that_are_not_flushed_are_not_overwritten_by_the_refresh(doors: Door) -> None:
    await doors.write(insert(User).values(id=1, name="old"))
    runs: list[int] = []

    async def unit(session: AsyncSession) -> None:
        runs.append(1)
        user = await session.get_one(User, 1)
        with doors.sync(session).no_autoflush:
            user.name = "new"
            await session.execute(select(User))
        if len(runs) == 1:
            raise StaleDataError("somebody was faster")

    await doors.decorate(unit, retry=LOCKS)()
    assert await names(doors) == ["new"]


@POSTGRESQL
async def test_on_a_hot_row_nobody_needs_more_than_one_retry(doors: Door) -> None:
    """Whoever has failed once waits in the queue for the row, and reads it when it is his."""
    await doors.write(insert(Account).values(id=1, balance=0))
    most: list[int] = []
    run = doors.decorate(_optimistic, retry=Retry(10, wait=0, lock_on_retry=True))

    async def body() -> None:
        for _ in range(10):
            runs: list[int] = []
            await run(runs)
            most.append(len(runs))

    await doors.together(*[body] * 6)
    assert await doors.scalar("SELECT balance FROM accounts") == 60
    assert max(most) == 2


async def _optimistic(session: AsyncSession, runs: list[int]) -> None:
    """Read, compute, and write only what nobody has changed since: a version column in miniature."""
    runs.append(1)
    account = (await session.scalars(select(Account).where(Account.id == 1))).one()
    done = await session.execute(
        update(Account)
        .where(Account.id == 1, Account.balance == account.balance)
        .values(balance=account.balance + 1)
        .execution_options(synchronize_session=False)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise StaleDataError("somebody was faster")


# -- a function that keeps conflicting ------------------------------------------------------------------------------


async def first_selects(doors: Door, run: Any, runs: list[Any], conflicts: bool, times: int) -> list[bool]:
    """Return whether the first SELECT of each of so many units locked."""
    seen: list[bool] = []
    for _ in range(times):
        runs.clear()
        with doors.statements() as sql:
            await run(runs, conflicts)
        seen.append(bool(locked(next(line for line in sql if line.startswith("SELECT")))))
    return seen


async def conflicting(session: AsyncSession, runs: list[int], conflicts: bool) -> None:
    runs.append(1)
    await session.execute(select(User))
    if conflicts and len(runs) == 1:
        raise StaleDataError("somebody was faster")


@POSTGRESQL
@pytest.mark.parametrize("name", [None, "reserve"])
async def test_a_function_that_keeps_conflicting_locks_from_the_first_attempt_on_until_it_is_calm(
    doors: Door, name: str | None
) -> None:
    options: dict[str, Any] = {} if name is None else {"name": name}
    run, runs = doors.decorate(conflicting, retry=LOCKS, **options), list[int]()
    hot = await first_selects(doors, run, runs, True, 10)
    assert not hot[0]
    assert any(await first_selects(doors, run, runs, False, 2))
    again = doors.decorate(conflicting, retry=LOCKS, **options)  # another scope around the same function
    calm = await first_selects(doors, again, runs, False, 200)
    assert calm[0] or calm[1]
    assert not any(await first_selects(doors, run, runs, False, 20))


@POSTGRESQL
async def test_of_what_has_no_name_nothing_is_learnt(doors: Door) -> None:
    with doors.statements() as sql:
        for _ in range(20):
            async for attempt in doors.attempts(retry=LOCKS):
                async with attempt as session:
                    await session.execute(select(User))
                    if attempt.number == 1:
                        raise StaleDataError("somebody was faster")
    reads = [line for line in sql if line.startswith("SELECT")]
    assert [bool(locked(line)) for line in reads] == [False, True] * 20
