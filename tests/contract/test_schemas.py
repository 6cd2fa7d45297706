"""Tenants by schema: whatever a unit sends goes to the schema that its scope names, and nothing of it is left after it."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.schema import CreateSchema, CreateTable

from sessionkit import Retry, bulk, errors
from tests.contract.lost import LOST_COMMITS, create_markers, link, markers
from tests.support.faults import Fault
from tests.support.models import Address, User

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

ONE, TWO = {None: "tenant_1"}, {None: "tenant_2"}
SCHEMAS = ("tenant_1", "tenant_2")


@pytest.fixture
def engine(doors: Door, tmp_path: Path) -> Any:
    """An engine on whose connections there are two more schemas: on SQLite these are files that are attached."""
    engine = doors.make_engine()
    sync_engine = doors.sync_engine_of(engine)
    if doors.backend == "sqlite":

        @event.listens_for(sync_engine, "connect")
        def attach(dbapi_connection: Any, _record: object) -> None:
            cursor = dbapi_connection.cursor()
            for name in SCHEMAS:
                cursor.execute(f"ATTACH DATABASE '{tmp_path / name}.db' AS {name}")
            cursor.close()

    else:
        with doors.database.observer.begin() as connection:
            for name in SCHEMAS:
                connection.execute(CreateSchema(name))
    return engine


@pytest.fixture
def filled(doors: Door, engine: Any) -> Any:
    """The same, with tables in the two schemas."""

    async def fill() -> None:
        async with doors.enter(engine.connect()) as connection:
            for name in SCHEMAS:
                translated = await connection.execution_options(schema_translate_map={None: name})
                for table in (User.__table__, Address.__table__):
                    await translated.execute(CreateTable(table))
            await connection.commit()

    doors.run(fill())
    return engine


async def names(doors: Door, engine: Any, schema: str) -> list[str]:
    async with doors.enter(engine.connect()) as connection:
        found = await connection.execute(text(f"SELECT name FROM {schema}.users ORDER BY name"))
        return list(found.scalars())


async def everywhere(doors: Door, engine: Any) -> list[list[str]]:
    main = "main" if doors.backend == "sqlite" else "public"
    return [await names(doors, engine, schema) for schema in (main, *SCHEMAS)]


async def test_flushes_queries_and_lazy_loads_go_to_the_schema_of_the_scope(doors: Door, filled: Any) -> None:
    Session = doors.factory(filled)
    for schemas, name in ((ONE, "ann"), (TWO, "bob"), (None, "carl")):
        async with doors.scope(Session, schema_translate_map=schemas) as session:
            session.add(User(name=name, addresses=[Address(email=f"{name}@x")]))
    assert await everywhere(doors, filled) == [["carl"], ["ann"], ["bob"]]
    for schemas, name in ((ONE, "ann"), (TWO, "bob"), ({}, "carl")):
        async with doors.scope(Session, schema_translate_map=schemas, read_only=True) as session:
            user = (await session.scalars(select(User).options(selectinload(User.addresses)))).one()
            assert (user.name, user.addresses[0].email) == (name, f"{name}@x")
            await session.refresh(user)
            assert await session.get(User, user.id) is user


async def test_savepoints_and_joined_scopes_are_in_it_too(doors: Door, filled: Any) -> None:
    Session = doors.factory(filled)
    async with doors.scope(Session, schema_translate_map=ONE) as session:
        async with doors.scope(Session) as same, same.begin_nested():
            same.add(User(name="ann"))
        async with doors.scope(Session, schema_translate_map=dict(ONE), propagation="savepoint"):
            session.add(User(name="bob"))
        async with doors.scope(Session, schema_translate_map=None):
            session.add(User(name="carl"))
    assert await everywhere(doors, filled) == [[], ["ann", "bob", "carl"], []]


@pytest.mark.parametrize("method", ["auto", "sqlalchemy"])
async def test_bulk_calls_are_in_it_too(doors: Door, filled: Any, method: Any) -> None:
    Session, inserted = doors.factory(filled), doors.twin(bulk.insert, bulk.async_insert)
    upserted = doors.twin(bulk.upsert, bulk.async_upsert)
    rows = [{"name": f"user {number:04}"} for number in range(1200)]
    for schemas in (ONE, TWO):
        async with doors.scope(Session, schema_translate_map=schemas) as session:
            await inserted(session, User, rows, method=method)
            if schemas is TWO:
                await upserted(session, User, [{"name": "user 0000"}, {"name": "zoe"}], match=["name"], method=method)
    main, one, two = await everywhere(doors, filled)
    assert (len(main), len(one), len(two), two[-1]) == (0, 1200, 1201, "zoe")


async def test_each_attempt_is_in_it(doors: Door, filled: Any) -> None:
    runs: list[int] = []

    async def unit(session: Any) -> None:
        runs.append(1)
        session.add(User(name=f"attempt {len(runs)}"))
        await session.flush()
        if len(runs) == 1:
            raise StaleDataError("somebody was faster")

    await doors.decorate(unit, doors.factory(filled), schema_translate_map=ONE, retry=Retry(2, wait=0))()
    assert await everywhere(doors, filled) == [[], ["attempt 2"], []]


async def test_a_factory_has_a_default_and_a_scope_another(doors: Door, filled: Any) -> None:
    Session = doors.factory(filled, schema_translate_map=ONE)
    for name, options in (("ann", {}), ("bob", {"schema_translate_map": TWO}), ("carl", {"schema_translate_map": {}})):
        async with doors.scope(Session, **options) as session:
            session.add(User(name=name))
    assert await everywhere(doors, filled) == [["carl"], ["ann"], ["bob"]]


@pytest.mark.doors(backend="postgresql")
async def test_a_new_transaction_inside_another_may_be_another_tenants(doors: Door, filled: Any) -> None:
    Session = doors.factory(filled)
    async with doors.scope(Session, schema_translate_map=ONE) as session:
        session.add(User(name="ann"))
        async with doors.scope(Session, schema_translate_map=TWO, propagation="new") as other:
            other.add(User(name="bob"))
    assert await everywhere(doors, filled) == [[], ["ann"], ["bob"]]


async def test_a_plain_factory_after_it_sees_nothing_of_it(doors: Door, filled: Any) -> None:
    Session = doors.plain_factory(filled)
    with pytest.raises(IntegrityError):
        async with doors.scope(Session, schema_translate_map=ONE) as session:
            session.add_all([User(name="ann"), User(name="ann")])
    async with doors.session(Session) as session:
        session.add(User(name="bob"))
        await session.commit()
    assert await everywhere(doors, filled) == [["bob"], [], []]


@pytest.mark.parametrize("before", [None, TWO], ids=["no map", "another map"])
async def test_a_connection_of_the_users_own_is_afterwards_as_it_was(doors: Door, filled: Any, before: Any) -> None:
    async with doors.enter(filled.connect()) as connection:
        await connection.execution_options(schema_translate_map=before)
        Session = doors.factory(doors.raw(connection))
        for failing in (False, True):
            with suppress(LookupError):
                async with doors.scope(Session, schema_translate_map=ONE) as session:
                    session.add(User(name=f"ann {failing}"))
                    await session.flush()
                    if failing:
                        raise LookupError
            await connection.execute(insert(User).values(name=f"bob {failing}"))
            await connection.commit()
    found = await everywhere(doors, filled)
    assert found[1] == ["ann False"]
    assert found[0 if before is None else 2] == ["bob False", "bob True"]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("fault", LOST_COMMITS, ids=str)
async def test_the_commit_marker_is_where_it_always_is(doors: Door, filled: Any, fault: Fault) -> None:
    """One table for all tenants: who asks later need not know whose unit it was."""
    await create_markers(doors)
    with link(doors, verify_commit=True) as way:
        way.proxy.at("COMMIT", fault)

        async def unit(session: Any) -> None:
            session.add(User(name="ann"))

        await doors.decorate(unit, way.factory, schema_translate_map=ONE, retry=Retry(2, wait=0))()
    assert await everywhere(doors, filled) == [[], ["ann"], []]
    assert "C" in {state for _, state in await markers(doors)}


@pytest.mark.doors(backend="postgresql")
async def test_a_function_that_verifies_looks_into_the_same_schema(doors: Door, filled: Any) -> None:
    async def was_committed(session: Any) -> bool:
        return (await doors.neutral(session).scalars(select(User.name))).all() == ["ann"]

    def sync_was_committed(session: Any) -> bool:
        return bool(session.scalars(select(User.name)).all() == ["ann"])

    verify = was_committed if doors.colour == "async" else sync_was_committed
    with link(doors, verify_commit=verify) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        async with doors.scope(way.factory, schema_translate_map=ONE) as session:
            session.add(User(name="ann"))
    assert await everywhere(doors, filled) == [[], ["ann"], []]


async def test_tenants_leave_nothing_behind_however_many_there_are(doors: Door, filled: Any) -> None:
    """No engine is kept for each map, as one is for each preset."""
    Session = doors.factory(filled)

    def engines() -> int:
        gc.collect()
        return sum(isinstance(each, Engine) for each in gc.get_objects())

    async def use(number: int) -> None:
        async with doors.scope(Session, schema_translate_map={None: "tenant_1", "x": f"tenant_{number}"}) as session:
            await session.execute(select(User))

    await use(0)
    before = engines()
    for number in range(1, 6):
        await use(number)
    assert engines() <= before  # those of tests before may be collected meanwhile


# Refused


async def test_joining_with_another_map_is_refused(doors: Door) -> None:
    async with doors.scope(schema_translate_map=ONE):
        with pytest.raises(errors.OptionError, match=r"tenant_2.*already runs with.*tenant_1"):
            async with doors.scope(schema_translate_map=TWO):
                pass
    async with doors.scope(name="outer"):
        with pytest.raises(errors.OptionError, match="the scope 'outer' already runs with none"):
            async with doors.scope(schema_translate_map=TWO):
                pass


async def test_a_session_that_was_passed_in_is_refused(doors: Door) -> None:
    async def unit(session: Any) -> None:
        raise AssertionError

    async with doors.session(doors.plain_factory()) as session:
        with pytest.raises(
            errors.OptionError, match="schema_translate_map= was asked for, but a session was passed in"
        ):
            await doors.decorate(unit, form="keyword", schema_translate_map=ONE)(session=session)


@pytest.mark.parametrize("given", ["tenant_1", [("a", "b")], {1: "a"}, {"a": 1}, {None: b"a"}, {None: ""}], ids=repr)
async def test_what_is_no_map_is_refused_at_once(doors: Door, given: Any) -> None:
    with pytest.raises(errors.OptionError, match="schema_translate_map="):
        doors.scope(schema_translate_map=given)


async def test_a_schema_that_is_not_there_is_the_databases_error(doors: Door) -> None:
    with pytest.raises(DBAPIError):
        async with doors.scope(schema_translate_map={None: "nowhere"}) as session:
            session.add(User(name="ann"))
