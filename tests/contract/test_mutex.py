"""`mutex=`: one unit at a time in the whole system."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import Isolation, Retry, errors, locks, sqlite
from tests.contract.breaking import names
from tests.support.models import Account, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
SQLITE = pytest.mark.doors(backend="sqlite")

BILLING = ("billing", 7)


async def held(doors: Door, key: Any = BILLING) -> int:
    """Return how many hold a mutex, as the server shows it."""
    number = locks.mutex_key(key)
    return int(
        await doors.scalar(
            text(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND classid = CAST(CAST(:high AS bigint) AS oid) AND objid = CAST(CAST(:low AS bigint) AS oid)"
            ).bindparams(high=number >> 32 & 0xFFFFFFFF, low=number & 0xFFFFFFFF)
        )
    )


# -- one at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [None, "SERIALIZABLE"])
async def test_units_with_one_mutex_come_one_after_the_other(doors: Door, isolation: Any) -> None:
    """Each reads what the ones before have committed, or its stale read ends in an error that is retried."""
    if doors.backend == "sqlite":
        sqlite.configure(doors.engine, busy_timeout=30)
    await doors.write(insert(Account).values(id=1, balance=0))
    retry = None if isolation is None else Retry(50, wait=0)

    async def increment(session: AsyncSession) -> None:
        account = (await session.scalars(select(Account))).one()
        account.balance += 1

    run = doors.decorate(increment, mutex=BILLING, isolation=isolation, retry=retry)

    async def body() -> None:
        for _ in range(5):
            await run()

    await doors.together(*[body] * 4)
    assert await doors.scalar("SELECT balance FROM accounts") == 20


@POSTGRESQL
async def test_it_is_the_first_statement_and_goes_with_the_transaction(doors: Door) -> None:
    await doors.write(insert(User).values(name="taken"))
    with doors.statements() as sql:
        async with doors.scope(mutex=BILLING) as session:
            assert await held(doors) == 1
            assert await session.scalar(select(func.count()).select_from(User)) == 1
    assert await held(doors) == 0
    selects = [line for line in sql if line.startswith("SELECT")]
    assert "pg_advisory_xact_lock" in selects[0]
    assert len(selects) == 2
    with pytest.raises(ZeroDivisionError):
        async with doors.scope(mutex=BILLING):
            raise ZeroDivisionError
    assert await held(doors) == 0


@POSTGRESQL
@pytest.mark.parametrize("wait", [False, 0, 0.03])
async def test_who_does_not_get_it_in_time_is_told_who_has_it(doors: Door, wait: float) -> None:
    async with doors.scope(mutex=BILLING) as session:
        pid = await session.scalar(select(func.pg_backend_pid()))
        ran: list[int] = []

        async def other() -> None:
            with pytest.raises(errors.NotLocked) as caught:
                async with doors.scope(mutex=BILLING, mutex_wait=wait):
                    ran.append(1)
            error = caught.value
            (holder,) = error.holders
            assert (holder.pid, holder.since is not None) == (pid, True)
            assert "t2(s7:billing i1:7)" in str(error)
            assert str(pid) in str(error)
            assert errors.classify(error).kind == "lock_not_available"
            assert errors.outcome_of(error) == "rolled back"
            assert isinstance(error, DBAPIError) is bool(wait)

        await doors.together(other)
        assert ran == []
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


@POSTGRESQL
async def test_the_wait_is_bounded_by_the_lock_timeout_and_by_the_timeout_of_retry(doors: Door) -> None:
    async def nothing(session: AsyncSession) -> None:
        raise AssertionError

    async def short() -> None:
        with pytest.raises(errors.NotLocked) as caught:
            async with doors.scope(mutex=BILLING, lock_timeout=0.03):
                pass
        assert len(caught.value.holders) == 1

    async def deadline() -> None:
        with pytest.raises(errors.NotLocked) as caught:
            await doors.decorate(nothing, mutex=BILLING, retry=Retry(timeout=2))()
        assert len(caught.value.holders) == 1

    async with doors.scope(mutex=BILLING):
        await doors.together(short)
        await doors.together(deadline)


@POSTGRESQL
@pytest.mark.parametrize("by", ["decorator", "attempts"])
async def test_an_entry_that_did_not_get_it_can_be_retried(doors: Door, by: str) -> None:
    tried: list[int] = []
    holds, free = doors.event(), doors.event()

    def before_retry(attempt: Any) -> None:
        tried.append(attempt.number)
        free.set()

    retry = Retry(500, wait=0.01, also=("lock_not_available",), before_retry=before_retry)

    async def add(session: AsyncSession) -> None:
        session.add(User(name="bob"))

    async def holder() -> None:
        async with doors.scope(mutex=BILLING) as session:
            holds.set()
            session.add(User(name="ann"))
            await free.wait()

    async def waiter() -> None:
        await holds.wait()
        if by == "decorator":
            await doors.decorate(add, mutex=BILLING, mutex_wait=False, retry=retry)()
        else:
            async for attempt in doors.attempts(mutex=BILLING, mutex_wait=False, retry=retry):
                async with attempt as session:
                    await add(session)

    await doors.together(holder, waiter)
    assert tried[0] == 1
    assert tried == list(range(1, len(tried) + 1))
    assert await names(doors) == ["ann", "bob"]


# -- who may not ask ------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_at_repeatable_read_it_is_refused_whoever_set_the_level(doors: Door) -> None:
    match = "READ COMMITTED, which is enough"
    with pytest.raises(errors.OptionError, match=match), doors.statements() as sql:
        async with doors.scope(mutex=BILLING, isolation="REPEATABLE READ"):
            pass
    assert not [line for line in sql if "advisory" in line]
    engine = doors.make_engine(isolation_level="REPEATABLE READ")
    with pytest.raises(errors.OptionError, match=match):
        async with doors.scope(doors.factory(engine), mutex=BILLING):
            pass
    async with doors.scope(isolation="REPEATABLE READ") as session:
        with pytest.raises(errors.OptionError, match=match):
            async with doors.scope(mutex=BILLING):
                pass
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]
    async with doors.scope(mutex=BILLING, isolation=Isolation.SERIALIZABLE):
        assert await held(doors) == 1


@POSTGRESQL
@pytest.mark.own_database
async def test_the_level_that_the_server_gives_is_asked_with_the_lock(doors: Door) -> None:
    name = doors.engine.url.database
    await doors.write(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    engine = doors.make_engine()
    with pytest.raises(errors.OptionError, match="READ COMMITTED, which is enough"):
        async with doors.scope(doors.factory(engine), mutex=BILLING):
            pass
    async with doors.scope(doors.factory(engine), mutex=BILLING, isolation="READ COMMITTED"):
        assert await held(doors) == 1


async def test_a_wait_without_a_mutex_is_refused_and_so_is_what_is_no_key(doors: Door) -> None:
    with pytest.raises(errors.OptionError, match="without mutex="):
        doors.factory(mutex_wait=1)
    with pytest.raises(errors.OptionError, match="without mutex="):
        async with doors.scope(mutex_wait=False):
            pass
    for wrong in (1.5, True, ["a"], ("a", None), {"a": 1}, object()):
        with pytest.raises(errors.OptionError, match="same in every process"):
            async with doors.scope(mutex=wrong):
                pass
    for wait in (-1, "1", float("inf"), None):
        with pytest.raises(errors.OptionError, match="mutex_wait="):
            async with doors.scope(mutex=1, mutex_wait=wait):
                pass


async def test_a_session_of_no_scope_is_refused_and_that_of_a_scope_joins(doors: Door) -> None:
    async def body(session: AsyncSession) -> str:
        return "done"

    run = doors.decorate(body, mutex=BILLING, form="keyword")
    async with doors.session(doors.plain_factory()) as own:
        with pytest.raises(errors.OptionError, match="belongs to no scope"):
            await run(session=own)
    async with doors.scope() as session:
        assert await run(session=session) == "done"
        if doors.backend == "postgresql":
            assert await held(doors) == 1


# -- joined ---------------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_a_joining_scope_takes_it_and_the_outer_transaction_keeps_it(doors: Door) -> None:
    async with doors.scope() as session:
        async with doors.scope(mutex=BILLING):
            assert await held(doors) == 1
            async with doors.scope(mutex=BILLING):  # re-entrant
                assert await held(doors) == 1
        assert await held(doors) == 1
        async with doors.scope(propagation="savepoint", mutex="a"):
            assert await held(doors, "a") == 1
        assert await held(doors, "a") == 1
        with pytest.raises(ZeroDivisionError):
            async with doors.scope(propagation="savepoint", mutex="b"):
                raise ZeroDivisionError
        assert await held(doors, "b") == 0
        async with doors.scope(mutex="b"):
            assert await held(doors, "b") == 1
        session.add(User(name="ann"))
    assert (await held(doors), await held(doors, "a"), await names(doors)) == (0, 0, ["ann"])


@POSTGRESQL
@pytest.mark.parametrize("wait", [False, 0.02])
async def test_a_joining_scope_that_does_not_get_it_leaves_the_outer_one_whole(doors: Door, wait: float) -> None:
    async def other() -> None:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            for propagation in ("join", "savepoint"):
                with pytest.raises(errors.NotLocked):
                    async with doors.scope(mutex=BILLING, mutex_wait=wait, propagation=propagation):
                        pass
            session.add(User(name="bob"))

    async with doors.scope(mutex=BILLING):
        await doors.together(other)
    assert await names(doors) == ["ann", "bob"]


@POSTGRESQL
async def test_the_default_of_a_factory_is_the_outermost_scopes(doors: Door) -> None:
    factory = doors.factory(mutex=BILLING)
    with doors.statements() as sql:
        async with doors.scope(factory), doors.scope(factory), doors.scope(factory, propagation="savepoint"):
            pass
    assert len([line for line in sql if "advisory" in line]) == 1
    async with doors.scope(factory, mutex=None):
        assert await held(doors) == 0


async def test_a_transaction_of_its_own_inside_a_holder_is_refused_at_once(doors: Door) -> None:
    async with doors.scope(mutex=BILLING) as session:
        with pytest.raises(errors.ScopeError, match="would wait for itself"):
            async with doors.scope(mutex=BILLING, propagation="new"):
                pass
        if doors.backend == "postgresql":
            async with doors.scope(mutex="another", propagation="new"):
                pass
            async with doors.scope(propagation="savepoint"), doors.scope(mutex="inner"):
                pass
            with pytest.raises(errors.ScopeError, match="would wait for itself"):
                async with doors.scope(mutex="inner", propagation="new"):
                    pass
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


@POSTGRESQL
@pytest.mark.parametrize("how", ["scope", "savepoint", "decorated"])
async def test_a_scope_that_joins_such_a_transaction_is_refused_at_once_too(doors: Door, how: str) -> None:
    async def body(session: AsyncSession) -> None:
        raise AssertionError

    async with doors.scope(mutex=BILLING) as session:
        async with doors.scope(propagation="new") as own:
            with pytest.raises(errors.ScopeError, match="would wait for itself"):
                if how == "decorated":
                    await doors.decorate(body, mutex=BILLING, mutex_wait=5)()
                else:
                    async with doors.scope(
                        mutex=BILLING, mutex_wait=5, propagation="join" if how == "scope" else "savepoint"
                    ):
                        pass
            async with doors.scope(mutex="another"):
                assert await held(doors, "another") == 1
            own.add(User(name="ann"))
        session.add(User(name="bob"))
    assert await names(doors) == ["ann", "bob"]


@POSTGRESQL
async def test_a_read_only_scope_holds_it_too(doors: Door) -> None:
    async with doors.scope(mutex=BILLING, read_only=True) as session:
        assert await held(doors) == 1
        assert await session.scalar(select(func.count()).select_from(User)) == 0


# -- SQLite ---------------------------------------------------------------------------------------------------------


@SQLITE
async def test_on_sqlite_the_write_lock_is_the_mutex(doors: Door) -> None:
    factory = doors.factory()

    async def other() -> None:
        for key in (BILLING, "another"):
            with pytest.raises(errors.NotLocked) as caught:
                async with doors.scope(factory, mutex=key, mutex_wait=False):
                    raise AssertionError
            assert isinstance(caught.value, DBAPIError)
            assert caught.value.holders == ()
            assert errors.classify(caught.value).kind == "lock_not_available"

    async with doors.scope(mutex=BILLING) as session:
        await doors.together(other)
        session.add(User(name="ann"))
    async with doors.scope(factory, mutex=BILLING, mutex_wait=0.5) as session:
        assert await session.scalar(text("PRAGMA busy_timeout")) == 5000
        session.add(User(name="bob"))
    async with doors.scope(factory) as session:
        async with doors.scope(factory, mutex=BILLING, mutex_wait=False):
            session.add(User(name="eve"))
    assert await names(doors) == ["ann", "bob", "eve"]


@SQLITE
async def test_on_sqlite_who_writes_nothing_cannot_hold_it(doors: Door) -> None:
    with pytest.raises(errors.OptionError, match="read-only"):
        async with doors.scope(mutex=BILLING, read_only=True):
            pass
    deferred = doors.make_engine()
    sqlite.configure(deferred, begin="deferred")
    with pytest.raises(errors.OptionError, match="BEGIN IMMEDIATE"):
        async with doors.scope(doors.factory(deferred), mutex=BILLING):
            pass


# -- functions of the arguments -------------------------------------------------------------------------------------


async def asked_of(doors: Door, mutex: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what a function of the arguments was asked with."""

    async def body(session: AsyncSession, tenant: int, region: str = "eu", *rest: int, **more: Any) -> int:
        return tenant

    assert await doors.decorate(body, mutex=mutex)(*args, **kwargs) == 7


async def test_a_function_gets_the_arguments_that_it_names(doors: Door) -> None:
    seen: list[Any] = []

    def by_name(tenant: int) -> Any:
        seen.append(tenant)
        return "bill", tenant

    def positional(region: str, tenant: int, /) -> str:
        seen.append((region, tenant))
        return region

    def everything(**arguments: Any) -> str:
        seen.append(arguments)
        return "x"

    def nothing() -> str:
        return "y"

    for mutex in (by_name, positional, everything, nothing):
        await asked_of(doors, mutex, 7, day=3)
    assert seen == [7, ("eu", 7), {"tenant": 7, "region": "eu", "rest": (), "day": 3}]
    with pytest.raises(errors.OptionError, match="'wrong', but the call has no such argument"):
        await asked_of(doors, lambda wrong: wrong, 7)
    with pytest.raises(errors.OptionError, match="same in every process"):
        await asked_of(doors, lambda: None, 7)


async def test_a_function_is_asked_of_methods_run_and_plain_blocks(doors: Door) -> None:
    seen: list[Any] = []

    def key(order: int = 0) -> str:
        seen.append(order)
        return f"order:{order}"

    async def body(order: int, *, session: Any) -> int:
        return order

    assert await doors.decorate(body_with_keyword, mutex=key, form="keyword")(5) == 5
    async with doors.scope(mutex=key):
        pass
    async for attempt in doors.attempts(mutex=key):
        async with attempt:
            pass
    assert seen == [5, 0, 0]
    with pytest.raises(errors.OptionError, match="plain `with`"):
        async with doors.scope(mutex=lambda order: order):
            pass

    async def later() -> str:
        return "x"

    with pytest.raises(errors.OptionError, match="async"):
        async with doors.scope(mutex=later):
            pass


async def body_with_keyword(session: AsyncSession, order: int) -> int:
    return order


@pytest.mark.doors(colour="sync")
async def test_run_asks_with_the_arguments_of_the_function(doors: Door) -> None:
    scope = doors.Session.scope(mutex=lambda order: ("pay", order))
    assert scope.run(lambda session, order: order, 7) == 7
    assert scope.run(lambda session, *, order=3: order) == 3


# -- keys -----------------------------------------------------------------------------------------------------------

KEYS: list[Any] = [
    "1",
    1,
    -1,
    b"1",
    b"\x31",
    "",
    b"",
    (),
    ("",),
    ("ab",),
    ("a", "b"),
    (("a",), "b"),
    ("a b",),
    ("a", ("b",)),
    "s1:1",
    UUID(int=1),
    str(UUID(int=1)),
    2**70,
    "ä",
]


def test_keys_are_told_apart_by_type_and_length() -> None:
    numbers = [locks.mutex_key(key) for key in KEYS if key != b"\x31"]
    assert len(set(numbers)) == len(numbers)
    assert all(-(2**63) <= number < 2**63 for number in numbers)


def test_a_key_is_the_same_in_every_process() -> None:
    program = "from sessionkit import locks; print(locks.mutex_key(('billing', 42)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == locks.mutex_key(("billing", 42)) == 3533015294120137166
    with pytest.raises(errors.OptionError, match="surrogates"):
        locks.mutex_key("\ud800")
