"""What others met with SET LOCAL, row-level security, roles and poolers, rebuilt in a few lines each.

The threads are of other projects on GitHub; each test names its own.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import REQUIRED, SYSTEM, bulk, errors
from tests.contract.tenants import (
    LOGIN,
    OTHER_ROLE,
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
from tests.support.neutral import drive

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.doors(backend="postgresql")


@pytest.mark.filterwarnings("ignore::sessionkit.errors.ManualCommit")
async def test_a_commit_in_the_middle_of_a_request_loses_the_tenant(doors: Door) -> None:
    """VariantEffect/mavedb-api#808, Morelitea/initiative#783: 34 call sites commit, and each query after one is of nobody."""
    await create_notes(doors, "a", "b")
    Session = doors.factory(settings={TENANT: "a"}, role=ROLE, manual_commit="savepoint")
    async with doors.scope(Session) as session:
        for _ in range(3):
            session.add(Note(tenant="a", body="more"))
            await session.commit()
            assert set(await tenants_seen(session)) == {"a"}


async def test_the_second_transaction_of_a_connection_casts_an_empty_string(doors: Door) -> None:
    """prisma/orm#20407: the policy worked on a new connection, and raised 22P02 on one that had been used."""
    tenant = UUID("6f1ed002-ab5d-4b2a-8b3a-5a5c7c5c9d10")
    await create_roles(doors)
    await doors.write("CREATE TABLE owned (tenant uuid)")
    await doors.write("ALTER TABLE owned ENABLE ROW LEVEL SECURITY")
    await doors.write(
        f"CREATE POLICY own ON owned USING (tenant = CAST(nullif(current_setting('{TENANT}', true), '') AS uuid))"
    )
    await doors.write(f"GRANT SELECT, INSERT ON owned TO {ROLE}")
    Session = doors.factory(doors.make_engine(pool_size=1, max_overflow=0), role=ROLE)
    count = text("SELECT count(*) FROM owned")
    async with doors.scope(Session, settings={TENANT: tenant}) as session:
        await session.execute(text(f"INSERT INTO owned VALUES ('{tenant}')"))
        assert (await session.execute(count)).scalar_one() == 1
    async with doors.scope(Session) as session:
        assert (await session.execute(count)).scalar_one() == 0


async def test_a_value_that_was_pasted_into_set_local(doors: Door) -> None:
    """alfio-event/alf.io#567: SET LOCAL takes no bound value, so the value was pasted into the statement."""
    await create_notes(doors, "a")
    bad = "a'; SET LOCAL ROLE none; SELECT set_config('app.tenant', 'a', true); --"
    async with doors.scope(settings={TENANT: bad}, role=ROLE) as session:
        assert await setting(session) == bad
        assert await current_user(session) == ROLE
        assert await tenants_seen(session) == []


async def test_a_role_that_the_next_client_inherits(doors: Door) -> None:
    """pgdogdev/pgdog#1341: SET ROLE and a session-level lock stayed on a connection that went back to the pool."""
    await create_roles(doors)
    engine = doors.make_engine(pool_size=1, max_overflow=0)
    with pytest.raises(DBAPIError):
        async with doors.scope(doors.factory(engine, role=ROLE)) as session:
            await session.execute(text("SELECT pg_advisory_xact_lock(1)"))
            await session.execute(text("SELECT 1 / 0"))
    async with doors.session(doors.plain_factory(engine)) as session:
        assert await current_user(session) != ROLE
        locks = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        assert (await session.execute(locks)).scalar_one() == 0


async def test_a_bulk_load_into_a_table_with_policies(doors: Door) -> None:
    """r-dbi/RPostgres#470: COPY FROM is not supported with row-level security."""
    await create_notes(doors, "b")
    upsert = doors.twin(bulk.upsert, bulk.async_upsert)
    async with doors.scope(settings={TENANT: "a"}, role=ROLE) as session:
        for body in ("first", "second"):
            rows = [{"id": 1000 + i, "tenant": "a", "body": body} for i in range(2000)]
            await upsert(session, Note, rows)
    assert await doors.rows("SELECT tenant, body, count(*) FROM notes GROUP BY 1, 2 ORDER BY 1") == [
        ("a", "second", 2000),
        ("b", "of b", 1),
    ]


async def test_a_job_that_nobody_gave_a_tenant(doors: Door) -> None:
    """fabriziosalmi/nis2-public#140, dvoraj75/django-rls-tenants#32: workers ran as superuser, or saw nothing at all."""
    await create_notes(doors, "a", "b")
    tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
    Session = doors.factory(settings={TENANT: REQUIRED}, role=ROLE)

    async def job(session: Any) -> list[str]:
        return await tenants_seen(session)

    decorated = doors.decorate(job, Session, settings={TENANT: tenant.get})
    with pytest.raises(errors.SettingRequired, match="job"):
        await decorated()
    token = tenant.set("b")
    try:
        assert await decorated() == ["b"]
    finally:
        tenant.reset(token)

    async def worker() -> None:
        await decorated()

    with pytest.raises(errors.SettingRequired):
        await doors.in_other_thread(worker if doors.colour == "async" else lambda: drive(worker()))


async def test_a_search_path_that_stays_on_a_pooled_connection(doors: Door) -> None:
    """django-tenants/django-tenants#545: SET search_path behind PgBouncer, and tables that are not found now and then."""
    await doors.write("CREATE SCHEMA tenant_a CREATE TABLE notes (body text)")
    await doors.write("INSERT INTO tenant_a.notes VALUES ('of a')")
    Session = doors.factory(doors.make_engine(pool_size=1, max_overflow=0))
    async with doors.scope(Session, settings={"search_path": "tenant_a"}) as session:
        assert (await session.execute(text("SELECT body FROM notes"))).scalar_one() == "of a"
    with pytest.raises(DBAPIError, match="notes"):
        async with doors.scope(Session) as session:
            await session.execute(text("SELECT body FROM notes"))


async def test_a_user_whose_default_role_was_lost_in_the_pool(doors: Door) -> None:
    """npgsql/npgsql#5997: ALTER USER ... SET role, which the reset of the connection did not bring back."""
    await create_login(doors)
    await doors.write(f"ALTER ROLE {LOGIN} IN DATABASE {doors.database.url('psycopg').database} SET role = {ROLE}")
    Session = doors.factory(login_engine(doors, pool_size=1, max_overflow=0))
    async with doors.scope(Session) as session:
        assert await current_user(session) == ROLE
        async with doors.scope(Session, role=OTHER_ROLE, propagation="savepoint"):
            assert await current_user(session) == OTHER_ROLE
            async with doors.scope(Session, role=None, propagation="savepoint"):
                assert await current_user(session) == ROLE
        assert await current_user(session) == ROLE
    async with doors.scope(Session, role=OTHER_ROLE) as session:
        assert await current_user(session) == OTHER_ROLE
    async with doors.scope(Session) as session:
        assert await current_user(session) == ROLE


async def test_an_update_that_a_policy_filters_in_silence(doors: Door) -> None:
    """margince/margince#537: a statement of the wrong tenant changes no row, and no error says so."""
    await create_notes(doors, "a", "b")
    Session = doors.factory(settings={TENANT: REQUIRED}, role=ROLE)
    async with doors.scope(Session, settings=SYSTEM, role=None, name="find") as session:
        note = (await session.scalars(select(Note).where(Note.tenant == "b"))).one()
    note.body = "changed by a"
    with pytest.raises(StaleDataError):
        async with doors.scope(Session, settings={TENANT: "a"}) as session:
            session.add(note)
    assert await doors.rows("SELECT body FROM notes ORDER BY tenant") == [("of a",), ("of b",)]


async def test_an_application_that_sets_the_tenant_in_an_event_of_the_session_can_move_in(doors: Door) -> None:
    """Arvo-AI/aurora#367 and many others: an after_begin listener that sets it, beside scopes that do."""
    await create_notes(doors, "a", "b")
    Session = doors.factory(role=ROLE)
    kind = Session.class_ if doors.colour == "sync" else Session.class_.sync_session_class

    def set_tenant(session: Any, _transaction: Any, connection: Any) -> None:
        if "tenant" in session.info:
            connection.execute(
                text(f"SELECT set_config('{TENANT}', :tenant, true)"), {"tenant": session.info["tenant"]}
            )

    event.listen(kind, "after_begin", set_tenant)
    try:
        async with doors.session(Session) as session:
            session.sync_session.info["tenant"] = "a"
            assert await setting(session) == "a"
        async with doors.scope(Session, settings={TENANT: "b"}) as session:
            assert await tenants_seen(session) == ["b"]
    finally:
        event.remove(kind, "after_begin", set_tenant)
