"""What a preset sends, counted on the wire: no statement and no round trip more than it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import (
    READ_COMMITTED,
    READ_ONLY,
    REPEATABLE_READ,
    REPORT,
    SERIALIZABLE,
    SNAPSHOT,
    Preset,
)
from tests.contract.settings import (
    driver_attributes,
)
from tests.contract.tenants import ROLE, create_roles
from tests.support.models import User
from tests.support.wire import Counted, counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

on_postgresql = pytest.mark.doors(backend="postgresql")


# On the wire


@pytest.fixture
def counted(doors: Door) -> Iterator[Counted]:
    with counting(doors) as made:
        yield made


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
async def test_settings_and_a_role_go_in_the_statement_of_the_timeouts(doors: Door, counted: Counted) -> None:
    """None more with timeouts, one without them, and none for a scope that asks for nothing."""
    await create_roles(doors)
    settings = {"settings": {"app.tenant": 7, "app.lang": lambda: "it's"}, "role": ROLE}
    for options, calls in (
        ({"lock_timeout": 4, "statement_timeout": 5}, 2),
        ({"lock_timeout": 4, "statement_timeout": 5, **settings}, 5),
        ({"preset": REPORT, "lock_timeout": 4, **settings}, 4),
        (settings, 3),
    ):
        (begin, set_, mine, commit), round_trips = await counted.scope(**options)
        assert (begin[:5], mine, commit) == ("BEGIN", "SELECT 1 AS mine", "COMMIT")
        assert set_.count("set_config(") == calls
        assert round_trips == 4
    assert await counted.scope(settings={"app.tenant": None}, role=None) == await counted.scope()


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
