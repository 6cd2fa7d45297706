"""A table whose rows belong to tenants, kept apart by row-level security; and what a transaction is set to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from tests.support.doors import Door

ROLE = "sessionkit_tests_app"
OTHER_ROLE = "sessionkit_tests_other"

TENANT = "app.tenant"


LOGIN = "sessionkit_tests_login"
"""Connects, is no superuser, and may be either of the roles."""


class TenantBase(DeclarativeBase):
    pass


class Note(TenantBase):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    body: Mapped[str]


async def create_roles(doors: Door) -> None:
    """Make the roles of the tests; they belong to the server, where other tests may make them at the same moment."""
    for role in (ROLE, OTHER_ROLE) if doors.backend == "postgresql" else ():
        await doors.write(
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )


async def create_login(doors: Door) -> None:
    await create_roles(doors)
    await doors.write(
        f"DO $$ BEGIN CREATE ROLE {LOGIN} LOGIN PASSWORD '{LOGIN}'; "
        "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    for role in (ROLE, OTHER_ROLE):
        await doors.write(
            f"DO $$ BEGIN GRANT {role} TO {LOGIN}; EXCEPTION WHEN unique_violation OR internal_error THEN NULL; END $$"
        )


def login_engine(doors: Door, engine: Any = None, **kw: Any) -> Any:
    """Return an engine that connects as `LOGIN` to the database of another one."""
    url = doors.sync_engine_of(engine or doors.engine).url.set(username=LOGIN, password=LOGIN)
    return doors._adopted(doors._create_engine(url, **kw), False)


async def create_notes(doors: Door, *tenants: str) -> None:
    """Make the table with its policy, and a note of each tenant. The policy goes for the roles, not for who connects."""
    await create_roles(doors)
    await doors.write("CREATE TABLE notes (id serial PRIMARY KEY, tenant text NOT NULL, body text NOT NULL)")
    await doors.write("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    own = f"tenant = nullif(current_setting('{TENANT}', true), '')"
    await doors.write(f"CREATE POLICY own ON notes USING ({own}) WITH CHECK ({own})")
    for role in (ROLE, OTHER_ROLE):
        await doors.write(f"GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {role}")
        await doors.write(f"GRANT USAGE ON SEQUENCE notes_id_seq TO {role}")
        await doors.write(f"GRANT SELECT, INSERT, UPDATE, DELETE ON users TO {role}")
        await doors.write(f"GRANT USAGE ON SEQUENCE users_id_seq TO {role}")
    for tenant in tenants:
        await doors.write(
            "INSERT INTO notes (tenant, body) VALUES (:tenant, :body)", tenant=tenant, body=f"of {tenant}"
        )


async def setting(session: Any, name: str = TENANT) -> str | None:
    """Return what a setting is, as the server tells it; None: it never was."""
    value: str | None = (
        await session.execute(text("SELECT current_setting(:name, true)"), {"name": name})
    ).scalar_one()
    return value


async def current_user(session: Any) -> str:
    user: str = (await session.execute(text("SELECT current_user"))).scalar_one()
    return user


async def tenants_seen(session: Any) -> list[str]:
    """Return whose notes a transaction sees."""
    return sorted((await session.execute(text("SELECT tenant FROM notes"))).scalars())
