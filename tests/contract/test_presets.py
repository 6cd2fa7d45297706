"""A preset is in force at the first statement, or is refused before it.

PostgreSQL through all four drivers, SQLite through both. What is in force is asked of the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, select, text

from sessionkit import (
    READ_ONLY,
    SERIALIZABLE,
    SNAPSHOT,
    Preset,
    commits,
    errors,
)
from sessionkit._dialects import postgresql
from tests.contract.settings import (
    each_preset,
    expected,
    in_force,
    left_behind,
    pooled_engine,
    without_preset,
)
from tests.support.models import Account, User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

on_postgresql = pytest.mark.doors(backend="postgresql")


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


# Refused before the first statement


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"isolation": "CHAOS"}, "CHAOS"),
        ({"isolation": "SERIALIZABLE; DROP TABLE users"}, "DROP"),
        ({"isolation": ""}, "''"),
        ({"isolation": "AUTOCOMMIT"}, "not a transaction"),
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
