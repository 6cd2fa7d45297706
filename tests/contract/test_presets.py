"""A preset is in force at the first statement, ends with its transaction, and leaves nothing on the connection.

PostgreSQL through all four drivers, SQLite through both. What is in force is asked of the database; what goes over the
wire is counted there.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import (
    READ_COMMITTED,
    READ_ONLY,
    REPEATABLE_READ,
    REPORT,
    SERIALIZABLE,
    SNAPSHOT,
    Preset,
    commits,
    errors,
)
from sessionkit._dialects import postgresql
from tests.contract.breaking import backend_pid, kill_backend
from tests.contract.settings import PRESETS, driver_attributes, expected, in_force, left_behind, pooled_engine
from tests.support.models import Account, User
from tests.support.wire import Wire, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

each_preset = pytest.mark.parametrize("preset", [pytest.param(preset, id=name) for name, preset in PRESETS.items()])
on_postgresql = pytest.mark.doors(backend="postgresql")


async def without_preset(doors: Door, engine: Any) -> dict[str, Any]:
    async with doors.enter(engine.connect()) as connection:
        return await in_force(doors, connection)


# In force at the first statement


@each_preset
async def test_a_preset_is_in_force_at_the_first_statement(doors: Door, preset: Preset) -> None:
    default = await without_preset(doors, doors.engine)
    async with doors.scope(preset=preset) as session:
        assert await in_force(doors, session) == expected(doors, preset, default)


@each_preset
async def test_a_preset_is_in_force_on_a_connection_that_the_pool_has_just_made(doors: Door, preset: Preset) -> None:
    default = await without_preset(doors, doors.engine)
    async with doors.scope(doors.factory(doors.make_engine()), preset=preset) as session:
        assert await in_force(doors, session) == expected(doors, preset, default)


async def test_the_options_of_a_scope_do_the_same_one_by_one(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    options: dict[str, Any] = {
        "isolation": "serializable",
        "read_only": True,
        "deferrable": True,
        "statement_timeout": 9,
        "lock_timeout": 8,
    }
    async with doors.scope(**options) as session:
        assert await in_force(doors, session) == expected(doors, Preset(**options), default)


async def test_an_option_of_a_scope_wins_over_its_preset(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    async with doors.scope(preset=SNAPSHOT, isolation="SERIALIZABLE", lock_timeout=3) as session:
        asked = Preset("SERIALIZABLE", read_only=True, lock_timeout=3)
        assert await in_force(doors, session) == expected(doors, asked, default)


async def test_presets_are_defaults_of_a_factory_and_a_scope_varies_them(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    Session = doors.factory(preset=SERIALIZABLE, lock_timeout=3)
    async with doors.scope(Session) as session:
        assert await in_force(doors, session) == expected(doors, Preset("SERIALIZABLE", lock_timeout=3), default)
    async with doors.scope(Session, read_only=True, lock_timeout=4) as session:
        asked = Preset("SERIALIZABLE", read_only=True, lock_timeout=4)
        assert await in_force(doors, session) == expected(doors, asked, default)
    async with doors.scope(Session, isolation=None, lock_timeout=None) as session:
        assert await in_force(doors, session) == default


async def test_configure_changes_the_defaults_of_scopes_that_are_opened_later(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    Session = doors.factory(preset=READ_ONLY)
    Session.configure(preset=Preset("SERIALIZABLE", read_only=True))
    async with doors.scope(Session) as session:
        assert await in_force(doors, session) == expected(doors, Preset("SERIALIZABLE", read_only=True), default)


async def test_a_decorated_function_runs_under_its_preset(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)

    async def body(session: AsyncSession) -> dict[str, Any]:
        return await in_force(doors, session)

    for form in ("first", "keyword"):
        assert await doors.decorate(body, form=form, preset=SNAPSHOT)() == expected(doors, SNAPSHOT, default)


async def test_scopes_of_a_plain_sqlalchemy_factory_take_presets_too(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    plain = doors.plain_factory()
    async with doors.scope(plain, preset=SNAPSHOT) as session:
        assert await in_force(doors, session) == expected(doors, SNAPSHOT, default)
    async with doors.session(plain) as session:
        assert await in_force(doors, session) == default


async def test_a_preset_is_in_force_on_every_engine_of_binds(doors: Door) -> None:
    other = doors.other_engine()
    default = await without_preset(doors, doors.engine)
    assert await without_preset(doors, other) == default
    asked = Preset("SERIALIZABLE", read_only=True, lock_timeout=3)
    Session = doors.factory(binds={User: doors.engine, Account: other})
    async with doors.scope(Session, preset=asked) as session:
        for mapper in (User, Account):
            connection = await session.connection(bind_arguments={"mapper": mapper})
            assert await in_force(doors, connection) == expected(doors, asked, default)
    for engine in (doors.engine, other):
        assert await without_preset(doors, engine) == default


@on_postgresql
@each_preset
async def test_a_preset_is_in_force_in_both_transactions_of_a_two_phase_commit(doors: Door, preset: Preset) -> None:
    one, other = pooled_engine(doors), doors.other_engine(pool_size=2, max_overflow=0)
    for engine in (one, other):
        await doors.twin(commits.create_table, commits.async_create_table)(engine)
    before = [await left_behind(doors, engine) for engine in (one, other)]
    default = await without_preset(doors, one)
    Session = doors.factory(binds={User: one, Account: other}, twophase=True)
    async with doors.scope(Session, preset=preset) as session:
        for mapper in (User, Account):
            connection = await session.connection(bind_arguments={"mapper": mapper})
            assert await in_force(doors, connection) == expected(doors, preset, default)
        if not preset.read_only:
            session.add_all([User(name="ann"), Account(owner="ann")])
    assert await doors.rows(select(User.name)) == ([] if preset.read_only else [("ann",)])
    assert [await left_behind(doors, engine) for engine in (one, other)] == before


@on_postgresql
async def test_a_listener_of_the_users_that_speaks_at_the_beginning_speaks_under_the_preset(doors: Door) -> None:
    engine = doors.make_engine()
    heard: list[str] = []

    @event.listens_for(doors.sync_engine_of(engine), "begin")
    def tenant(connection: Any) -> None:
        connection.execute(select(func.set_config("app.tenant", "blue", True)))
        heard.append(connection.scalar(text("SELECT current_setting('transaction_isolation')")))

    default = await without_preset(doors, doors.engine)
    async with doors.scope(doors.factory(engine), preset=SNAPSHOT) as session:
        assert await in_force(doors, session) == expected(doors, SNAPSHOT, default)
        assert (await session.execute(text("SELECT current_setting('app.tenant')"))).scalar_one() == "blue"
    assert heard == ["repeatable read"]


@on_postgresql
@pytest.mark.own_database
async def test_read_only_false_is_read_write_where_the_servers_default_is_read_only(doors: Door) -> None:
    database = doors.database.url(doors.driver).database
    await doors.write(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    Session = doors.factory(doors.make_engine())
    async with doors.scope(Session, read_only=False, lock_timeout=3) as session:
        session.add(User(name="ann"))
    async with doors.scope(Session, isolation="SERIALIZABLE", read_only=False) as session:
        session.add(User(name="bob"))
    async with doors.scope(Session) as session:
        assert (await in_force(doors, session))["transaction_read_only"] == "on"
    assert await doors.rows(select(User.name).order_by(User.id)) == [("ann",), ("bob",)]


@on_postgresql
@pytest.mark.own_database
async def test_deferrable_false_is_not_deferrable_where_the_servers_default_is_deferrable(doors: Door) -> None:
    database = doors.database.url(doors.driver).database
    await doors.write(f'ALTER DATABASE "{database}" SET default_transaction_deferrable = on')
    Session = doors.factory(doors.make_engine())
    async with doors.scope(Session, isolation="SERIALIZABLE", read_only=True, deferrable=False) as session:
        assert (await in_force(doors, session))["transaction_deferrable"] == "off"
    async with doors.scope(Session) as session:
        assert (await in_force(doors, session))["transaction_deferrable"] == "on"


@on_postgresql
@each_preset
async def test_a_driver_without_an_entry_is_told_by_set_transaction(
    doors: Door, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_DRIVERS", {})
    default = await without_preset(doors, doors.engine)
    async with doors.scope(preset=preset) as session:
        assert await in_force(doors, session) == expected(doors, preset, default)
    assert await without_preset(doors, doors.engine) == default


# Gone after the transaction


class Mine(Exception):
    pass


async def end_well(doors: Door, factory: Any, preset: Preset) -> None:
    async with doors.scope(factory, preset=preset) as session:
        await session.execute(text("SELECT 1"))


async def end_by_an_error(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(Mine):
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT 1"))
            raise Mine


async def end_by_a_failed_statement(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(DBAPIError):
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT * FROM no_such_table"))


async def end_without_a_statement(doors: Door, factory: Any, preset: Preset) -> None:
    async with doors.scope(factory, preset=preset):
        pass


async def end_with_a_swallowed_error(doors: Door, factory: Any, preset: Preset) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory, preset=preset) as session:
            with suppress(DBAPIError):
                await session.execute(text("SELECT * FROM no_such_table"))


async def end_by_a_lost_connection(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.backend == "postgresql":
        with pytest.raises(DBAPIError):
            async with doors.scope(factory, preset=preset) as session:
                await kill_backend(doors, await backend_pid(session))
                await session.execute(text("SELECT 1"))
    else:
        with pytest.raises(errors.UnexpectedRollback):
            async with doors.scope(factory, preset=preset) as session:
                connection = await session.connection()
                await connection.invalidate()


async def end_by_a_connection_lost_unnoticed(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.backend == "sqlite":
        await end_by_a_lost_connection(doors, factory, preset)
        return
    with pytest.raises(Mine):
        async with doors.scope(factory, preset=preset) as session:
            await kill_backend(doors, await backend_pid(session))
            raise Mine


async def end_by_a_cancellation(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.colour == "sync":
        with pytest.raises(KeyboardInterrupt):
            async with doors.scope(factory, preset=preset) as session:
                await session.execute(text("SELECT 1"))
                raise KeyboardInterrupt
        return
    inside = asyncio.Event()

    async def body() -> None:
        async with doors.scope(factory, preset=preset) as session:
            await session.execute(text("SELECT 1"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def end_by_a_cancelled_statement(doors: Door, factory: Any, preset: Preset) -> None:
    if doors.colour == "sync" or doors.backend == "sqlite":
        await end_by_a_cancellation(doors, factory, preset)
        return

    async def body() -> None:
        async with doors.scope(factory, preset=preset) as session:
            pid.set_result(await backend_pid(session))
            await session.execute(text("SELECT pg_advisory_xact_lock(3)"))

    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with doors.connect() as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(3)"))
        task = asyncio.create_task(body())
        while not await doors.scalar("SELECT count(*) FROM pg_locks WHERE pid = :pid AND NOT granted", pid=await pid):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


each_end = pytest.mark.parametrize(
    "end",
    [
        pytest.param(end, id=end.__name__.removeprefix("end_"))
        for end in (
            end_well,
            end_without_a_statement,
            end_by_an_error,
            end_by_a_failed_statement,
            end_with_a_swallowed_error,
            end_by_a_lost_connection,
            end_by_a_connection_lost_unnoticed,
            end_by_a_cancellation,
            end_by_a_cancelled_statement,
        )
    ],
)


@each_end
async def test_nothing_of_a_preset_is_left_on_any_connection_of_the_pool(doors: Door, end: Any) -> None:
    engine = pooled_engine(doors)
    before = await left_behind(doors, engine)
    Session = doors.factory(engine)
    for number, preset in enumerate(PRESETS.values()):
        # A millisecond is over by the time that somebody else uses the connection.
        if doors.backend == "sqlite" and preset.statement_timeout is not None:
            preset = preset.replace(statement_timeout=0.001)
        await end(doors, Session, preset)
        assert await left_behind(doors, engine) == before
        # The transaction itself is over as well: other scopes can write.
        async with doors.scope(Session) as session:
            session.add(User(name=f"after {number}"))
            await session.flush()


@on_postgresql
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_an_engine_that_was_made_with_a_level_gets_it_back(doors: Door, level: str) -> None:
    engine = pooled_engine(doors, isolation_level=level)
    before = await left_behind(doors, engine)
    assert {state["transaction_isolation"] for state in before} == {level.lower()}
    default = await without_preset(doors, engine)
    for preset in PRESETS.values():
        async with doors.scope(doors.factory(engine), preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        assert await left_behind(doors, engine) == before


@on_postgresql
@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "SERIALIZABLE"},
        {"postgresql_readonly": True},
        {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True},
    ],
    ids=["level", "read only", "report"],
)
async def test_an_engine_with_execution_options_leaves_nothing_to_the_engine_whose_pool_it_shares(
    doors: Door, options: dict[str, Any]
) -> None:
    engine = pooled_engine(doors)
    derived = engine.execution_options(**options)
    await without_preset(doors, derived)  # SQLAlchemy writes its own default into the driver as it takes an option back
    await left_behind(doors, engine)
    async with doors.enter(derived.connect()) as one, doors.enter(derived.connect()) as two:
        default = await in_force(doors, one)
        await in_force(doors, two)
    before = await left_behind(doors, engine)
    for preset in PRESETS.values():
        if preset.deferrable is None and "postgresql_deferrable" in options and preset.isolation is not None:
            continue
        async with doors.scope(doors.factory(derived), preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        assert await left_behind(doors, engine) == before


@on_postgresql
async def test_two_engines_of_one_pool_share_it_without_disturbing_each_other(doors: Door) -> None:
    engine = pooled_engine(doors)
    before = await left_behind(doors, engine)
    default = await without_preset(doors, engine)
    derived = engine.execution_options(mine=True)
    asked = Preset("SERIALIZABLE", read_only=True, lock_timeout=3)
    for bind in (derived, engine, derived.execution_options(more=True)):
        with doors.statements(engine) as sql:
            async with doors.scope(doors.factory(bind), preset=asked) as session:
                assert await in_force(doors, session) == expected(doors, asked, default)
        assert len([line for line in sql if "set_config" in line]) == 1
        assert await left_behind(doors, engine) == before


@on_postgresql
async def test_settings_of_the_users_connection_come_back_after_timeouts(doors: Door) -> None:
    engine = pooled_engine(doors)

    @event.listens_for(doors.sync_engine_of(engine), "connect")
    def mine(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("SET statement_timeout = '11s'")
        cursor.close()
        dbapi_connection.commit()

    before = await left_behind(doors, engine)
    assert {state["statement_timeout"] for state in before} == {"11s"}
    async with doors.scope(doors.factory(engine), statement_timeout=2, idle_timeout=5) as session:
        settings = await in_force(doors, session)
        assert (settings["statement_timeout"], settings["idle_in_transaction_session_timeout"]) == ("2s", "5s")
    assert await left_behind(doors, engine) == before


async def test_scopes_with_and_without_presets_take_turns_on_one_connection(doors: Door) -> None:
    engine = doors.make_engine(pool_size=1, max_overflow=0)
    default = await without_preset(doors, engine)
    Session = doors.factory(engine)
    for preset in PRESETS.values():
        async with doors.scope(Session, preset=preset) as session:
            assert await in_force(doors, session) == expected(doors, preset, default)
        async with doors.scope(Session) as session:
            assert await in_force(doors, session) == default
        async with doors.session(Session) as session:
            assert await in_force(doors, session) == default


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("preset", [None, SERIALIZABLE], ids=["no preset", "serializable"])
async def test_the_first_scopes_of_a_factory_opened_together_have_one_connection_each(
    doors: Door, preset: Preset | None
) -> None:
    """In threads only: each makes what it needs of the engine, and must not change it under the other's feet."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            Session = doors.factory()
            meet = doors.barrier(4)

            async def body(meet: Any = meet, Session: Any = Session) -> None:
                await meet.wait()
                async with doors.scope(Session, preset=preset) as session:
                    bind = session.get_bind()
                    await meet.wait()
                    assert session.get_bind() is bind

            await doors.together(*(body() for _ in range(4)))
    finally:
        sys.setswitchinterval(interval)


async def test_a_plain_session_of_the_same_factory_knows_nothing_of_the_factorys_preset(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    async with doors.session(doors.factory(preset=REPORT)) as session:
        assert await in_force(doors, session) == default


async def test_scopes_with_other_presets_run_at_the_same_time(doors: Door) -> None:
    default = await without_preset(doors, doors.engine)
    asked = [READ_ONLY, SNAPSHOT, REPORT]
    all_here = doors.barrier(len(asked))

    async def body(preset: Preset) -> None:
        async with doors.scope(preset=preset) as session:
            await all_here.wait()
            assert await in_force(doors, session) == expected(doors, preset, default)
            await all_here.wait()

    await doors.together(*(body(preset) for preset in asked))


# Refused before the first statement


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"isolation": "CHAOS"}, "CHAOS"),
        ({"isolation": "SERIALIZABLE; DROP TABLE users"}, "DROP"),
        ({"isolation": ""}, "''"),
        ({"isolation": "AUTOCOMMIT"}, "no transaction"),
        ({"read_only": "yes"}, "read_only='yes'"),
        ({"statement_timeout": -1}, "statement_timeout=-1"),
        ({"statement_timeout": "5s"}, "statement_timeout='5s'"),
        ({"lock_timeout": 0}, "lock_timeout=0"),
        ({"idle_timeout": float("nan")}, "idle_timeout=nan"),
        ({"deferrable": True}, "deferrable=True"),
        ({"deferrable": True, "isolation": "SERIALIZABLE"}, "deferrable=True"),
        ({"deferrable": True, "read_only": True, "isolation": "REPEATABLE READ"}, "deferrable=True"),
        ({"preset": "SERIALIZABLE"}, "preset='SERIALIZABLE'"),
    ],
)
async def test_what_no_server_accepts_is_refused_when_it_is_written_down(
    doors: Door, options: dict[str, Any], told: str
) -> None:
    with doors.statements() as sql:
        with pytest.raises(errors.OptionError, match=told):
            doors.factory(**options)
        with pytest.raises(errors.OptionError, match=told):
            doors.Session.scope(**options)
        with pytest.raises(errors.OptionError, match=told):
            doors.scope(**options)
    assert sql == []


@pytest.mark.parametrize("spelling", ["AUTOCOMMIT", "autocommit"])
@pytest.mark.parametrize("place", ["create_engine", "execution_options", "derived twice"])
async def test_an_autocommit_engine_is_refused_with_and_without_a_preset(
    doors: Door, spelling: str, place: str
) -> None:
    if place == "create_engine":
        engine = doors.make_engine(isolation_level=spelling)
    else:
        engine = doors.engine.execution_options(isolation_level=spelling)
        if place == "derived twice":
            engine = engine.execution_options(mine=True)
    with doors.statements(engine) as sql:
        for options in ({}, {"preset": SERIALIZABLE}):
            with pytest.raises(errors.OptionError, match="AUTOCOMMIT"):
                async with doors.scope(doors.factory(engine), **options) as session:
                    await session.execute(text("SELECT 1"))
    assert [line for line in sql if line not in {"BEGIN", "ROLLBACK"}] == []


@pytest.mark.doors(driver="psycopg")
@pytest.mark.parametrize("preset", [None, SERIALIZABLE], ids=["no preset", "a preset"])
async def test_an_engine_whose_driver_commits_by_itself_is_refused(doors: Door, preset: Preset | None) -> None:
    engine = doors.make_engine(connect_args={"autocommit": True})
    with pytest.raises(errors.OptionError, match="autocommit"):
        async with doors.scope(doors.factory(engine), preset=preset) as session:
            await session.execute(text("SELECT 1"))


async def test_a_preset_on_a_session_that_is_bound_to_a_connection_is_refused(doors: Door) -> None:
    async with doors.connect() as connection:
        Session = doors.factory(doors.raw(connection))
        with doors.statements() as sql, pytest.raises(errors.OptionError, match="bound to"):
            async with doors.scope(Session, preset=SERIALIZABLE) as session:
                await session.execute(text("SELECT 1"))
        assert sql == []
        # Without one, the connection's owner decides.
        async with doors.scope(Session) as session:
            await session.execute(text("SELECT 1"))


async def test_a_preset_on_a_session_that_was_passed_in_is_refused(doors: Door) -> None:
    async def body(session: AsyncSession) -> None: ...

    decorated = doors.decorate(body, form="keyword", preset=SERIALIZABLE)
    async with doors.session(doors.plain_factory()) as session:
        with doors.statements() as sql, pytest.raises(errors.OptionError, match="passed in"):
            await decorated(session=session)
    assert sql == []


@pytest.mark.doors(backend="sqlite")
async def test_an_idle_timeout_is_refused_on_sqlite_before_the_first_statement(doors: Door) -> None:
    with doors.statements() as sql, pytest.raises(errors.OptionError, match="idle_timeout=5"):
        async with doors.scope(idle_timeout=5):
            pass
    assert sql == []


# On the wire


class Counted:
    """One scope of a kind, run until the driver has prepared what it prepares; then counted."""

    def __init__(self, doors: Door, proxy: Wire) -> None:
        self.doors = doors
        self.proxy = proxy
        self.engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args=proxy.connect_args(doors))
        self.factory = doors.factory(self.engine)

    async def scope(self, **options: Any) -> tuple[list[str], int]:
        for _ in range(8):
            self.proxy.take()
            async with self.doors.scope(self.factory, **options) as session:
                await session.execute(text("SELECT 1 AS mine"))
        traffic = self.proxy.take()
        return traffic.statements, traffic.round_trips


@pytest.fixture
def counted(doors: Door) -> Iterator[Counted]:
    with wire(doors) as proxy:
        yield Counted(doors, proxy)
        # The proxy goes before the engine does.


@on_postgresql
async def test_level_read_only_and_deferrable_add_no_statement_and_no_round_trip(doors: Door, counted: Counted) -> None:
    # asyncpg has no word for READ WRITE; it is the server's default here, as the server has told the driver.
    writable = "" if doors.driver == "asyncpg" else " READ WRITE"
    for spoken, preset in {
        "": None,
        " ISOLATION LEVEL READ COMMITTED": READ_COMMITTED,
        " ISOLATION LEVEL REPEATABLE READ": REPEATABLE_READ,
        " ISOLATION LEVEL SERIALIZABLE": SERIALIZABLE,
        " READ ONLY": READ_ONLY,
        f" ISOLATION LEVEL REPEATABLE READ{writable}": Preset("REPEATABLE READ", read_only=False),
        " ISOLATION LEVEL REPEATABLE READ READ ONLY": SNAPSHOT,
        " ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE": REPORT,
    }.items():
        statements, round_trips = await counted.scope(preset=preset)
        assert statements == [f"BEGIN{spoken}", "SELECT 1 AS mine", "COMMIT"]
        assert round_trips == 3


@on_postgresql
async def test_all_timeouts_together_add_one_statement_and_one_round_trip(doors: Door, counted: Counted) -> None:
    for options in (
        {"statement_timeout": 5},
        {"statement_timeout": 5, "lock_timeout": 4, "idle_timeout": 3},
        {"preset": REPORT, "statement_timeout": 5, "lock_timeout": 4, "idle_timeout": 3},
    ):
        (begin, settings, mine, commit), round_trips = await counted.scope(**options)
        assert (begin[:5], mine, commit) == ("BEGIN", "SELECT 1 AS mine", "COMMIT")
        assert settings.startswith("SELECT set_config(")
        assert settings.count("set_config(") == sum(name.endswith("timeout") for name in options)
        assert round_trips == 4


@on_postgresql
async def test_a_scope_without_a_preset_after_one_with_it_begins_plainly(doors: Door, counted: Counted) -> None:
    """Not READ WRITE, which a standby refuses, as SQLAlchemy's own option leaves it behind with psycopg."""
    plain, _ = await counted.scope()
    await counted.scope(preset=REPORT)
    assert await counted.scope() == (plain, 3)
    assert plain[0] == "BEGIN"


@on_postgresql
async def test_a_read_only_scope_ends_with_commit_and_keeps_the_prepared_statements(
    doors: Door, counted: Counted
) -> None:
    for _ in range(3):
        statements, _ = await counted.scope(preset=READ_ONLY)
        assert statements[-1] == "COMMIT"
        assert not [line for line in statements if "DEALLOCATE" in line or "ROLLBACK" in line]


@pytest.mark.doors(backend="sqlite")
async def test_a_preset_of_sqlite_says_begin_once(doors: Door) -> None:
    said: list[str] = []
    engine = doors.make_engine()

    def listen(dbapi_connection: Any, _record: object) -> None:
        driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        getattr(driver, "_conn", driver).set_trace_callback(said.append)

    event.listen(doors.sync_engine_of(engine), "connect", listen)
    for preset, spoken in {
        None: ["BEGIN IMMEDIATE", "SELECT 1", "COMMIT"],
        SERIALIZABLE: ["BEGIN IMMEDIATE", "SELECT 1", "COMMIT"],
        READ_ONLY: ["PRAGMA query_only=ON", "BEGIN", "SELECT 1", "PRAGMA query_only=OFF", "COMMIT"],
        REPORT: ["PRAGMA query_only=ON", "BEGIN", "SELECT 1", "PRAGMA query_only=OFF", "COMMIT"],
    }.items():
        async with doors.connect():
            pass
        said.clear()
        async with doors.scope(doors.factory(engine), preset=preset) as session:
            said.clear() if not said else None
            await session.execute(text("SELECT 1"))
        assert [line for line in said if "foreign_keys" not in line] == spoken, preset


@on_postgresql
async def test_the_driver_is_told_no_more_than_it_was_asked(doors: Door) -> None:
    async with doors.connect() as connection:
        before = driver_attributes(doors, connection)
    async with doors.scope(preset=READ_ONLY) as session:
        during = driver_attributes(doors, await session.connection())
    assert {name for name in before if before[name] != during[name]} == {
        "driver's read_only" if doors.driver == "psycopg" else "driver's readonly"
    }


async def test_what_was_asked_stands_between_a_statement_and_the_first_flush(doors: Door) -> None:
    """The first thing that a unit sends may be an INSERT of the unit of work."""
    with pytest.raises(DBAPIError):
        async with doors.scope(preset=READ_ONLY) as session:
            session.add(User(name="ann"))
    with pytest.raises(DBAPIError):
        async with doors.scope(preset=READ_ONLY) as session:
            await session.execute(insert(User).values(name="ann"))
    assert await doors.rows(select(User.name)) == []
