"""`settings=` and `role=` on every connection of a unit, whatever else it was asked for."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sessionkit import REQUIRED, Retry, bulk, locks, on_commit
from sessionkit.errors import OptionError, SettingRequired
from tests.contract.lost import create_markers, link, markers
from tests.contract.many import Two
from tests.contract.tenants import (
    LOGIN,
    ROLE,
    TENANT,
    Note,
    create_login,
    create_notes,
    create_roles,
    current_user,
    login_engine,
    setting,
    tenants_seen,
)
from tests.support.faults import Fault
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="postgresql")

ONE = text("SELECT 1")


# -- several databases ----------------------------------------------------------------------------------------------


async def two_databases(doors: Door) -> Two:
    """Return two databases that `LOGIN` connects to, where the role may do what a unit does."""
    await create_login(doors)
    two = Two(doors, doors.engine, doors.other_engine())
    await two.make_markers()
    for engine in (two.users, two.pledges):
        async with doors.enter(engine.begin()) as connection:
            for role in (ROLE, LOGIN):
                await connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
                await connection.execute(text(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"))
    async with doors.scope(doors.factory(two.pledges)) as session:
        session.add(Account(id=1))
    return Two(doors, login_engine(doors, two.users), login_engine(doors, two.pledges))


async def both(session: Any) -> list[tuple[str | None, str]]:
    """Return what a unit runs with in each of its databases."""
    shown = text(f"SELECT current_setting('{TENANT}', true), current_user")
    found = [(await session.execute(shown, bind_arguments={"mapper": model})).one() for model in (User, Pledge)]
    return [(row[0], row[1]) for row in found]


@pytest.mark.parametrize("twophase", [False, True])
async def test_every_database_of_a_unit_is_set(doors: Door, twophase: bool) -> None:
    two = await two_databases(doors)
    Session = two.factory(twophase=twophase)
    async with doors.scope(Session, settings={TENANT: "a"}, role=ROLE) as session:
        assert await both(session) == [("a", ROLE)] * 2
        session.add(User(name="ann"))
        session.add(Pledge(account_id=1))
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="savepoint"):
            assert await both(session) == [("b", ROLE)] * 2
        assert await both(session) == [("a", ROLE)] * 2
    assert await two.committed() == (1, 1)
    async with doors.scope(Session) as session:
        assert [user for _, user in await both(session)] == [LOGIN] * 2
    assert await two.prepared() == []


async def test_a_database_that_a_savepoint_scope_uses_first_is_set_inside_it_and_after_it(doors: Door) -> None:
    two = await two_databases(doors)
    Session = two.factory()
    shown = text(f"SELECT current_setting('{TENANT}', true)")
    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        await session.execute(shown, bind_arguments={"mapper": User})
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="savepoint"):
            async with session.begin_nested():
                inside = await session.execute(shown, bind_arguments={"mapper": Pledge})
                assert inside.scalar_one() == "b"
        assert [tenant for tenant, _ in await both(session)] == ["a", "a"]


async def test_what_a_role_has_put_off_is_checked_before_a_two_phase_commit_and_undoes_both(doors: Door) -> None:
    two = await two_databases(doors)
    with pytest.raises(IntegrityError):
        async with doors.scope(two.factory(twophase=True), role=ROLE) as session:
            session.add(User(name="ann"))
            session.add(Pledge(account_id=404))
    assert await two.committed() == (0, 0)
    assert await two.prepared() == []


# -- a lost answer --------------------------------------------------------------------------------------------------


async def test_a_function_that_is_asked_about_a_lost_commit_runs_with_the_units_settings(doors: Door) -> None:
    await create_roles(doors)
    await doors.write(f"GRANT SELECT, INSERT ON users TO {ROLE}")
    await doors.write(f"GRANT USAGE ON SEQUENCE users_id_seq TO {ROLE}")
    seen = []

    async def asks(session: Any) -> bool:
        session = doors.neutral(session)
        seen.append((await setting(session), await current_user(session)))
        return (await session.execute(select(User))).first() is not None

    with link(doors, settings={TENANT: REQUIRED}) as way:
        verify = doors._coloured(asks)
        async with doors.scope(way.factory, settings={TENANT: "a"}, role=ROLE, verify_commit=verify) as session:
            session.add(User(name="ann"))
            await session.flush()
            way.proxy.at("COMMIT", Fault.LOSE_REPLY)
    assert seen == [("a", ROLE)]


async def test_a_marker_is_written_by_the_role_and_settles_a_lost_commit(doors: Door) -> None:
    await create_roles(doors)
    await create_markers(doors)
    for table in ("users", "sessionkit_commit"):
        await doors.write(f"GRANT SELECT, INSERT ON {table} TO {ROLE}")
    await doors.write(f"GRANT USAGE ON SEQUENCE users_id_seq TO {ROLE}")
    runs = []

    async def body(session: Any) -> str | None:
        runs.append(1)
        session.add(User(name="ann"))
        return await setting(session)

    with link(doors, settings={TENANT: "a"}, role=ROLE) as way:
        unit = doors.decorate(body, way.factory, verify_commit=True, retry=Retry(3, wait=0))
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        assert await unit() == "a"
    assert runs == [1]
    assert len(await markers(doors)) == 1


# -- other options and parts ----------------------------------------------------------------------------------------


async def test_a_hooks_own_scope_is_asked_for_itself(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: REQUIRED})
    seen: list[object] = []

    async def hook() -> None:
        with pytest.raises(SettingRequired):
            async with doors.scope(Session):
                raise AssertionError("entered")
        async with doors.scope(Session, settings={TENANT: "b"}) as session:
            seen.append(await setting(session))

    async def without_arguments() -> None:
        await hook()

    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        await session.execute(ONE)
        doors.call(on_commit, doors._coloured(without_arguments))
    assert seen == ["b"]


async def test_a_mutex_and_locks_of_rows_are_taken_under_them(doors: Door) -> None:
    await create_notes(doors, "a", "b")
    lock_all = doors.twin(locks.lock_all, locks.async_lock_all)
    async with doors.scope(settings={TENANT: "a"}, role=ROLE, mutex="notes") as session:
        assert await setting(session) == "a"
        found = (await session.scalars(select(Note))).all()
        assert [note.tenant for note in found] == ["a"]
        assert await lock_all(session, Note, [note.id for note in found]) == found


@pytest.mark.parametrize("count", [1, 3000])
async def test_bulk_obeys_the_policy_at_every_size(doors: Door, count: int) -> None:
    """COPY is refused by the server where row security is active: another way is taken there."""
    await create_notes(doors, "b")
    insert_rows = doors.twin(bulk.insert, bulk.async_insert)
    async with doors.scope(settings={TENANT: "a"}, role=ROLE) as session:
        await insert_rows(session, Note, [{"tenant": "a", "body": str(i)} for i in range(count)])
        assert len(await tenants_seen(session)) == count
    with pytest.raises(DBAPIError):
        async with doors.scope(settings={TENANT: "a"}, role=ROLE) as session:
            await insert_rows(
                session, Note, [{"tenant": "b" if i == count - 1 else "a", "body": ""} for i in range(count)]
            )
    assert await doors.scalar("SELECT count(*) FROM notes") == count + 1


async def test_a_session_of_a_users_own_connection_is_refused(doors: Door) -> None:
    async with doors.connect() as connection:
        Session = doors.factory(doors.raw(connection))
        for options in ({"settings": {TENANT: "a"}}, {"role": ROLE}):
            with pytest.raises(OptionError, match="bound to"):
                async with doors.scope(Session, **options) as session:
                    await session.execute(ONE)
        async with doors.scope(Session) as session:
            await session.execute(ONE)


async def test_a_get_bind_of_the_users_own_is_followed(doors: Door) -> None:
    base = type(doors.sync(doors.factory()()))
    sync_engine = doors.sync_engine

    class Routed(base):  # type: ignore[misc, valid-type]
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return sync_engine

    options = {"class_": Routed} if doors.colour == "sync" else {"sync_session_class": Routed}
    Session = doors.factory(None, binds={}, settings={TENANT: REQUIRED}, **options)
    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        assert await setting(session) == "a"
    async with doors.session(Session) as session:
        with pytest.raises(SettingRequired):
            await session.execute(ONE)


async def test_a_factory_of_sqlalchemys_own_is_served_as_well(doors: Door) -> None:
    await create_roles(doors)
    plain = doors.plain_factory()
    async with doors.scope(plain, settings={TENANT: "a"}, role=ROLE) as session:
        assert (await setting(session), await current_user(session)) == ("a", ROLE)
        async with doors.scope(plain, settings={TENANT: "b"}, propagation="savepoint"):
            assert await setting(session) == "b"
        assert await setting(session) == "a"
    async with doors.session(plain) as session:
        assert await setting(session) in (None, "")


async def test_listeners_of_the_begin_are_under_them(doors: Door) -> None:
    seen = []

    def look(connection: Any) -> None:
        seen.append(connection.exec_driver_sql(f"SELECT current_setting('{TENANT}', true)").scalar_one())

    engine = doors.make_engine()
    event.listen(doors.sync_engine_of(engine), "begin", look)
    async with doors.scope(doors.factory(engine), settings={TENANT: "a"}) as session:
        await session.execute(insert(User).values(name="ann"))
    assert seen == ["a"]


@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_is_kept_of_a_unit_that_had_them(doors: Door, fails: bool) -> None:
    await create_roles(doors)
    Session = doors.factory(settings={TENANT: REQUIRED}, role=ROLE)
    kept: list[weakref.ref[Any]] = []

    async def unit() -> None:
        async with doors.scope(Session, settings={TENANT: "a"}) as session:
            kept.extend(weakref.ref(each) for each in (doors.raw(session), doors.sync(session)))
            kept.append(weakref.ref((await session.connection()).sync_connection))
            async with doors.scope(Session, settings={TENANT: "b"}, role=None, propagation="savepoint") as inner:
                assert await setting(inner) == "b"
                if fails:
                    raise LookupError

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            kept.clear()
            try:
                await unit()
            except LookupError:
                assert fails
        assert [ref() for ref in kept if ref() is not None] == []
    finally:
        gc.enable()


async def test_a_unit_that_is_done_once_claims_its_key_with_the_role_and_replays_under_it(doors: Door) -> None:
    await create_roles(doors)
    await create_markers(doors)
    for table in ("users", "sessionkit_once"):
        await doors.write(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ROLE}")
    await doors.write(f"GRANT USAGE ON SEQUENCE users_id_seq TO {ROLE}")
    Session = doors.factory(settings={TENANT: REQUIRED}, role=ROLE)

    async def body(session: Any, name: str) -> str | None:
        session.add(User(name=name))
        return await setting(session)

    add = doors.decorate(body, Session, settings={TENANT: "a"}, once=lambda name: f"add:{name}")
    assert [await add("ann"), await add("ann")] == ["a", "a"]
    assert await doors.rows("SELECT name FROM users") == [("ann",)]
    without = doors.decorate(body, Session, once=lambda name: f"add:{name}")
    with pytest.raises(SettingRequired):
        await without("ann")
