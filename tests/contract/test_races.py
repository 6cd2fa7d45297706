"""`sessionkit.testing.races`: units against each other, in every order of their statements."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text, update

from sessionkit import commits, locks, sqlite
from sessionkit.errors import NotLocked, OptionError
from sessionkit.testing import races
from tests.support.models import Account, User
from tests.support.racing import alone, as_unit, race

if TYPE_CHECKING:
    from pathlib import Path

    from sessionkit.testing import Races, Schedule
    from tests.support.doors import Door

pytestmark = [pytest.mark.own_database, pytest.mark.filterwarnings("error")]


def bodies(doors: Door) -> Any:
    """Return what fills the table, and a unit that reads, adds and writes."""

    async def fill() -> None:
        async with doors.scope() as session:
            session.add(Account(id=1, owner="ann", balance=100))

    def increment(**options: Any) -> Any:
        lock = options.pop("lock", None)

        async def increment() -> None:
            async with doors.scope(**options) as session:
                account = await session.get(Account, 1, with_for_update=lock)
                account.balance += 1

        return increment

    return fill, increment


def lost(doors: Door) -> bool:
    """Tell whether read-modify-write loses updates through this door: SQLite's scopes write one at a time."""
    return doors.backend == "postgresql"


async def test_a_lost_update_is_found_where_the_database_allows_it(doors: Door) -> None:
    fill, increment = bodies(doors)
    found = await race(doors, increment(), increment(), setup=fill)
    assert found.complete
    assert all(len(each.outcomes) == 2 and not any(o.error for o in each.outcomes) for each in found.schedules)
    if not lost(doors):
        assert (found.explored, found.pruned, found.failures) == (4, 4, ())
        found.assert_serial()
        return
    # Two reads, two updates, two commits: 14 orders, since the second update waits for the commit of the first.
    assert (found.explored, found.pruned, len(found.failures)) == (6, 8, 4)
    with pytest.raises(AssertionError) as told:
        found.assert_serial()
    lines = str(told.value).splitlines()
    assert lines[0] == (
        "2 units: 6 schedules were run, 8 others are like one of them; 4 of the 6 schedules ended as they do in no order "
        "one after the other. The shortest:"
    )
    assert "at the end: accounts (1, 'ann', 101)" in lines
    assert "unit 1 then unit 2: accounts (1, 'ann', 102)" in lines
    assert lines[-1] == f'replay with seed="{found.failures[0].seed}"'


@pytest.mark.parametrize(
    "how", [{"lock": True}, {"isolation": "SERIALIZABLE"}, {"isolation": "SERIALIZABLE", "retry": 5}]
)
async def test_what_prevents_it_is_seen_to_prevent_it(doors: Door, how: dict[str, Any]) -> None:
    fill, increment = bodies(doors)
    body = increment(**how)
    if "retry" in how:
        options = {name: value for name, value in how.items() if name != "lock"}

        async def work(session: Any) -> None:
            account = await session.get(Account, 1)
            account.balance += 1

        decorated = doors.decorate(work, **options)

        async def body() -> None:
            await decorated()

    found = await race(doors, body, body, setup=fill)
    assert found.complete
    found.assert_serial()
    refused = [each for each in found.schedules if any(outcome.refused for outcome in each.outcomes)]
    assert bool(refused) == (how == {"isolation": "SERIALIZABLE"} and doors.backend == "postgresql")
    if "retry" in how:
        assert {dict(zip("ab", each.state["accounts"], strict=False))["a"][2] for each in found.schedules} == {102}


async def test_the_seed_of_a_schedule_runs_it_again_and_no_other(doors: Door) -> None:
    fill, increment = bodies(doors)
    found = await race(doors, increment(), increment(), setup=fill)
    for each in found.schedules:
        (again,) = (await race(doors, increment(), increment(), setup=fill, seed=each.seed)).schedules
        assert (again.order, again.state, again.serial) == (each.order, each.state, each.serial)
        assert [step.statement for step in again.steps] == [step.statement for step in each.steps]
    with pytest.raises(OptionError, match="does not fit these units"):
        await race(doors, increment(), increment(), setup=fill, seed="1" * 40)


async def test_check_sees_what_is_committed_and_fails_by_raising_or_by_false(doors: Door) -> None:
    fill, increment = bodies(doors)
    seen: list[int] = []

    async def both_count() -> bool:
        async with doors.scope(read_only=True) as session:
            seen.append((await session.get(Account, 1)).balance)
        return seen[-1] == 102

    def raises(schedule: Schedule) -> None:
        assert schedule.state["accounts"][0][2] == 102, "one is lost"

    found = await race(doors, increment(), increment(), setup=fill, check=as_unit(doors, both_count))
    assert len(seen) == found.explored
    raised = await race(doors, increment(), increment(), setup=fill, check=raises)
    if not lost(doors):
        found.assert_none()
        raised.assert_none()
        return
    assert len(found.failures) == len(raised.failures) == 4
    with pytest.raises(
        AssertionError, match=r"(?s)4 of the 6 schedules failed their check.*check: AssertionError: it returned False"
    ):
        found.assert_none()
    with pytest.raises(AssertionError, match="check: AssertionError: one is lost"):
        raised.assert_none()


async def test_without_a_check_assert_none_says_so(doors: Door) -> None:
    fill, increment = bodies(doors)
    found = await race(
        doors,
        increment(),
        increment(),
        setup=fill,
        seed="1" * (3 if lost(doors) else 4) + "2" * (3 if lost(doors) else 4),
    )
    with pytest.raises(AssertionError, match="without check="):
        found.assert_none()


async def test_each_schedule_starts_with_the_tables_and_sequences_as_they_were(doors: Door) -> None:
    await doors.write("INSERT INTO users (id, name) VALUES (7, 'kept')")

    async def add() -> int:
        async with doors.scope() as session:
            session.add(user := User(name="new"))
            await session.flush()
            await session.execute(text("DELETE FROM users WHERE name = 'kept'"))
            return user.id

    async def look() -> list[str]:
        async with doors.scope(read_only=True) as session:
            return list((await session.scalars(select(User.name).order_by(User.id))).all())

    found = await race(doors, add, look, factories=[doors.factory()])
    assert found.complete
    assert {each.outcomes[0].value for each in found.schedules} == {1 if doors.backend == "postgresql" else 8}
    assert {tuple(each.outcomes[1].value) for each in found.schedules} == {("kept",), ("new",)}
    found.assert_serial()
    assert await doors.rows("SELECT id, name FROM users") == [(7, "kept")]  # the original knows nothing of it


async def test_what_differs_each_time_is_left_out_and_named(doors: Door) -> None:
    numbers = iter(range(1, 10**6))

    async def add() -> int:
        number = next(numbers)
        async with doors.scope() as session:
            session.add(User(name=f"name {number}", email="x"))
        return number

    found = await race(doors, add, add)
    assert found.ignored == ("users.name", "what unit 1 returns", "what unit 2 returns")
    found.assert_serial()
    assert {len(row) for each in found.schedules for row in each.state["users"]} == {2}


async def test_ignored_columns_and_a_state_of_ones_own(doors: Door) -> None:
    fill, increment = bodies(doors)
    found = await race(doors, increment(), increment(), setup=fill, ignore=[Account.balance])
    found.assert_serial()

    async def owners() -> list[str]:
        async with doors.scope(read_only=True) as session:
            return list((await session.scalars(select(Account.owner))).all())

    found = await race(doors, increment(), increment(), setup=fill, state=as_unit(doors, owners))
    found.assert_serial()
    assert {tuple(each.state) for each in found.schedules} == {("ann",)}


async def test_skip_locked_and_nowait_see_that_others_hold_the_row_before_their_commit(doors: Door) -> None:
    if doors.backend == "sqlite":
        return  # where a scope that writes is alone
    fill, increment = bodies(doors)

    async def skip() -> int:
        async with doors.scope() as session:
            query = select(Account.id).with_for_update(skip_locked=True)
            return len((await session.scalars(query)).all())

    async def nowait() -> None:
        async with doors.scope() as session:
            await doors.twin(locks.lock, locks.async_lock)(session, Account, 1, wait=False)

    found = await race(doors, increment(lock=True), skip, setup=fill)
    assert {each.outcomes[1].value for each in found.schedules} == {0, 1}
    found = await race(doors, increment(lock=True), nowait, setup=fill)
    assert {type(each.outcomes[1].error) for each in found.schedules} == {type(None), *_not_locked(found)}
    assert all(issubclass(each, NotLocked) for each in _not_locked(found))


def _not_locked(found: Races) -> set[type]:
    kinds = {type(each.outcomes[1].error) for each in found.schedules} - {type(None)}
    assert kinds
    return kinds


async def test_a_deadlock_is_an_outcome_like_others(doors: Door) -> None:
    if doors.backend == "sqlite":
        return

    async def fill() -> None:
        async with doors.scope() as session:
            session.add_all([Account(id=1), Account(id=2)])

    def add(*keys: int) -> Any:
        async def unit() -> None:
            async with doors.scope() as session:
                for key in keys:
                    await session.execute(update(Account).where(Account.id == key).values(balance=Account.balance + 1))

        return unit

    found = await race(doors, add(1, 2), add(2, 1), setup=fill)
    found.assert_serial()
    refused = [each for each in found.schedules if any(outcome.refused for outcome in each.outcomes)]
    assert refused
    for each in refused:
        (again,) = (await race(doors, add(1, 2), add(2, 1), setup=fill, seed=each.seed)).schedules
        assert sum(outcome.refused for outcome in again.outcomes) == 1


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_plain_session_on_sqlite_loses_updates_and_the_upgrade_of_a_reader_is_refused(doors: Door) -> None:
    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'ann', 100)")
    factory = doors.plain_factory()

    async def increment() -> None:
        async with doors.session(factory) as session:
            account = await session.get(Account, 1)
            account.balance += 1
            await session.commit()

    found = await race(doors, increment, increment, factories=[factory])
    assert found.failures  # its SELECT is a transaction of its own
    engine = doors.make_engine()
    sqlite.configure(engine, begin="deferred")
    deferred = doors.plain_factory(engine)

    async def deferred_increment() -> None:
        async with doors.session(deferred) as session:
            account = await session.get(Account, 1)
            account.balance += 1
            await session.commit()

    found = await race(doors, deferred_increment, deferred_increment, factories=[deferred])
    found.assert_serial()
    refused = {str(o.error.orig) for each in found.schedules for o in each.outcomes if o.refused}  # type: ignore[union-attr]
    assert refused == {"database is locked"}  # BUSY_SNAPSHOT


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_sync_and_async_units_run_against_each_other(doors: Door) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from sessionkit import async_sessionmaker

    driver = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}[doors.backend]
    engine = create_async_engine(doors.database.url(driver))
    Async = async_sessionmaker(engine)
    fill, increment = bodies(doors)

    async def async_increment() -> None:
        async with Async.scope() as session:
            account = await session.get_one(Account, 1)
            account.balance += 1

    await alone(doors)
    found = races(
        as_unit(doors, increment()), async_increment, lambda: async_increment(),
        factories=[doors.Session, Async], setup=as_unit(doors, fill), max_schedules=60,
    )  # fmt: skip
    assert bool(found.failures) == lost(doors)
    assert found.names == ("increment", "async_increment", "async_increment")


async def test_a_unit_that_never_comes_to_a_step_is_given_up_and_the_next_schedule_goes_on(doors: Door) -> None:
    fill, increment = bodies(doors)
    released = threading.Event()
    calls: list[int] = []

    async def stands() -> None:
        async with doors.scope() as session:
            await session.get(Account, 1)
            calls.append(1)
            if len(calls) == 3:  # not yet while they run one after the other
                if doors.colour == "async":
                    import asyncio

                    await asyncio.Event().wait()
                released.wait()

    try:
        found = await race(doors, stands, increment(), setup=fill, step_timeout=1.0)
    finally:
        released.set()
        for thread in threading.enumerate():
            if thread.name.startswith("unit "):
                thread.join()
    assert found.explored > 1
    (failure,) = [each for each in found.schedules if isinstance(each.outcomes[0].error, TimeoutError)]
    assert failure.outcomes[1].error is None  # its locks were free again
    assert not failure.serial
    told = str(failure.outcomes[0].error)
    assert "unit 1 was given up: it did not come to its next step in 1 s after SELECT" in told
    assert "test_races.py" in told
    with pytest.raises(AssertionError, match="was given up"):
        found.assert_serial()


async def test_a_unit_that_never_ends_is_given_up_too(doors: Door) -> None:
    fill, increment = bodies(doors)

    async def forever() -> None:
        async with doors.session() as session:
            while True:
                await session.execute(text("SELECT 1"))

    found = await race(doors, increment(), forever, setup=fill, max_schedules=1)
    assert "had taken 1000 steps and had not ended" in str(found.schedules[0].outcomes[1].error)


async def test_above_its_budget_it_draws_a_sample_and_says_so(doors: Door) -> None:
    fill, increment = bodies(doors)
    # Of two that wait for one row at READ COMMITTED, the server chooses who is next, and not always the same one.
    three = [increment(isolation="REPEATABLE READ") for _ in range(3)]
    all_ = await race(doors, *three, setup=fill)
    some = await race(doors, *three, setup=fill, max_schedules=8, seed=5)
    same = await race(doors, *three, setup=fill, max_schedules=8, seed=5)
    assert all_.complete
    assert not some.complete
    assert some.explored == 8 < all_.explored
    assert [each.order for each in some.schedules] == [each.order for each in same.schedules]
    assert "not all, but a sample (seed=5)" in str(some)


async def test_an_error_of_setup_leaves_the_call_and_the_engine_is_as_before(doors: Door) -> None:
    _, increment = bodies(doors)

    async def fails() -> None:
        raise LookupError("no such account")

    with pytest.raises(LookupError, match="no such account"):
        await race(doors, increment(), increment(), setup=fails)
    async with doors.scope() as session:
        assert await session.scalar(select(func.count()).select_from(Account)) == 0
    assert [name for (name,) in await databases(doors) if "_" in name and name.count("_") > 3] == []


async def databases(doors: Door) -> list[Any]:
    """Return the copies that are left of this door's database."""
    if doors.backend == "sqlite":
        return []
    name = doors.database.name  # type: ignore[attr-defined]
    return await doors.rows(f"SELECT datname FROM pg_database WHERE datname LIKE '{name}#_%' ESCAPE '#'")


async def test_nothing_of_it_is_left(doors: Door) -> None:
    fill, increment = bodies(doors)
    threads = threading.active_count()
    await race(doors, increment(), increment(), setup=fill)
    assert threading.active_count() <= threads
    assert await databases(doors) == []
    assert doors.checked_out() == 0


@pytest.mark.doors("sqlite-sync")
@pytest.mark.parametrize(
    ("units", "options", "said"),
    [
        (1, {}, "1 unit(s); it takes two or more"),
        (2, {"max_schedules": 0}, "max_schedules=0"),
        (2, {"max_schedules": True}, "max_schedules=True"),
        (2, {"max_seconds": 0}, "max_seconds=0"),
        (2, {"step_timeout": -1}, "step_timeout=-1"),
        (2, {"seed": "13"}, "seed='13'"),
        (2, {"seed": "x"}, "seed='x'"),
        (2, {"seed": None}, "seed=None"),
        (2, {"check": lambda one, two: None}, "as check, which takes no argument, or the Schedule"),
        (2, {"setup": lambda session: None}, "as setup, which takes no arguments; wrap it in a lambda"),
        (2, {"state": 3}, "3 as state; it is a function"),
        (2, {"ignore": ["balance"]}, "ignore='balance'"),
        (2, {"factories": []}, "bound to no engine"),
        (2, {"factories": [3]}, "neither a factory nor an engine"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_before_any_work(
    doors: Door, units: int, options: dict[str, Any], said: str
) -> None:
    ran: list[int] = []
    with pytest.raises(OptionError) as refused:
        races(*[lambda: ran.append(1)] * units, **{"factories": [doors.Session], **options})
    assert said in str(refused.value)
    assert ran == []


@pytest.mark.doors("sqlite-sync")
async def test_units_that_are_none_are_refused(doors: Door) -> None:
    async def work() -> None: ...

    for unit, said in [
        (work(), r"a call of work; it calls the units itself, many times: write lambda: work\(\.\.\.\)"),
        (3, "3 as a unit; a unit is a function"),
        (lambda session: None, "as a unit, which takes no arguments"),
    ]:
        with pytest.raises(OptionError, match=said):
            races(unit, work, factories=[doors.Session])  # type: ignore[arg-type]


@pytest.mark.doors("sqlite-sync")
async def test_a_database_with_one_connection_is_refused(doors: Door) -> None:
    from sqlalchemy import StaticPool, create_engine

    from sessionkit import sessionmaker

    for engine in (create_engine("sqlite://"), create_engine("sqlite://", poolclass=StaticPool)):
        with pytest.raises(OptionError, match="whose one connection all units would share"):
            races(print, print, factories=[sessionmaker(engine)])


async def test_the_picture_of_the_shortest_failure(doors: Door, tmp_path: Path) -> None:
    from xml.etree import ElementTree as ET

    fill, increment = bodies(doors)
    found = await race(doors, increment(), increment(), setup=fill)
    found.svg(tmp_path / "found.svg")
    root = ET.parse(tmp_path / "found.svg").getroot()
    words = " ".join("".join(each.itertext()) for each in root.iter())
    assert "unit 1: increment" in words
    assert "COMMIT" in words


async def test_rich_shows_it_in_colours(doors: Door) -> None:
    from io import StringIO

    from rich.console import Console

    fill, increment = bodies(doors)
    found = await race(doors, increment(), increment(), setup=fill)
    console = Console(file=StringIO(), force_terminal=True, width=160)
    console.print(found)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in printed
    assert ("replay with seed" in printed) == lost(doors)


async def test_the_once_marker_and_the_markers_of_commits_work_in_the_copy(doors: Door) -> None:
    """`verify_commit` finds its table in the copy."""
    commits.create_table(doors.database.observer)
    fill, increment = bodies(doors)
    found = await race(
        doors, increment(verify_commit=True, lock=True), increment(verify_commit=True, lock=True), setup=fill
    )
    assert not any(outcome.error for each in found.schedules for outcome in each.outcomes)


@pytest.mark.doors("postgresql-sync")
async def test_without_a_superuser_the_tables_are_brought_back_in_the_order_of_their_foreign_keys(doors: Door) -> None:
    from sqlalchemy import create_engine

    from sessionkit import sessionmaker

    name = doors.database.name  # type: ignore[attr-defined]
    role = f"{name}_owner"
    for statement in (
        f"CREATE ROLE {role} LOGIN CREATEDB",
        f"ALTER DATABASE {name} OWNER TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "INSERT INTO users (id, name) VALUES (100, 'kept')",
        "INSERT INTO addresses (id, user_id, email) VALUES (100, 100, 'kept')",
    ):
        await doors.write(statement)
    engine = create_engine(doors.database.url("psycopg").set(username=role, password=None))
    Session = sessionmaker(engine)

    def renames() -> None:
        with Session.scope() as session:
            user = session.get_one(User, 100)
            user.name += "!"
            session.add(User(name="other"))

    def reads() -> list[Any]:
        with Session.scope(read_only=True) as session:
            return list(
                session.execute(text("SELECT u.name, a.email FROM users u JOIN addresses a ON a.user_id = u.id"))
            )

    try:
        await alone(doors)
        found = races(renames, reads, factories=[Session])
        found.assert_serial()
        assert {tuple(each.outcomes[1].value[0]) for each in found.schedules} == {("kept", "kept"), ("kept!", "kept")}
        assert {row[0] for each in found.schedules for row in each.state["users"]} == {1, 100}  # the sequence too
    finally:
        engine.dispose()
        await doors.write(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
        await doors.write(f"DROP OWNED BY {role}")
        await doors.write(f"DROP ROLE {role}")


async def test_a_unit_that_changes_the_schema_gets_a_fresh_copy_each_time(doors: Door) -> None:
    async def creates() -> None:
        async with doors.scope() as session:
            await session.execute(text("CREATE TABLE made (id INTEGER PRIMARY KEY)"))
            await session.execute(text("INSERT INTO made VALUES (1)"))

    async def adds() -> None:
        async with doors.scope() as session:
            session.add(Account(id=1))

    found = await race(doors, creates, adds, max_schedules=6)
    assert not any(outcome.error for each in found.schedules for outcome in each.outcomes)
    found.assert_serial()
    assert all(each.state["made"] == ((1,),) for each in found.schedules)
