"""The test kit in a small application: web frameworks, Alembic, pytest-postgresql, processes of pytest-xdist."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.integrations import kit

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

pytest_plugins = ["pytester"]

MIGRATION = """
    import sqlalchemy as sa
    from alembic import op

    revision, down_revision = "1", None

    def upgrade():
        op.create_table(
            "orders",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("item", sa.String(50), nullable=False, unique=True),
            sa.Column("state", sa.String(20), nullable=False),
            sa.Column("version_id", sa.Integer, nullable=False),
        )
"""

ENV = """
    from alembic import context
    from shop import Base

    from sessionkit.integrations.alembic import run_migrations

    run_migrations(Base.metadata, engine=context.config.attributes["connection"])
"""


@pytest.fixture
def project(pytester: pytest.Pytester, doors: Door, monkeypatch: pytest.MonkeyPatch) -> kit.Project:
    return kit.Project(pytester, doors, monkeypatch)


@pytest.mark.doors("postgresql-sync")
@pytest.mark.own_database
async def test_a_shop_with_migrations_in_several_processes_and_both_modes(
    doors: Door, project: kit.Project, pytester: pytest.Pytester
) -> None:
    project.write(conftest=kit.read("shop_conftest"), shop=kit.read("shop"))
    versions = pytester.mkdir("migrations") / "versions"
    versions.mkdir()
    project.write(**{"migrations/env": ENV, "migrations/versions/one": MIGRATION})
    source = kit.read("shop_tests")
    await project.alone()
    result = project.run(
        "-p",
        "no:randomly",
        plugins=(*kit.PLUGINS, "xdist.plugin", "pytest_postgresql.plugin"),
        test_rollback=source,
        test_template=source.replace('MODE = "rollback"', 'MODE = "template"'),
        test_postgresql=kit.read("shop_postgresql"),
    )
    result.assert_outcomes(passed=20)
    copies = "SELECT count(*) FROM pg_database WHERE datname LIKE current_database() || '\\_%' OR datname LIKE 'shop%'"
    assert await doors.scalar(copies) == 0


@pytest.mark.doors("postgresql-sync")
@pytest.mark.own_database
async def test_a_process_that_waits_lets_the_others_copy_the_database_that_they_share(
    doors: Door, project: kit.Project, pytester: pytest.Pytester
) -> None:
    for name in ("gw0", "gw1"):
        os.mkfifo(pytester.path / name)
    await project.alone()
    result = project.run(
        "-n2",
        "--dist=each",
        plugins=(*kit.PLUGINS, "xdist.plugin"),
        conftest="",
        test_shared=kit.read("shop_shared"),
    )
    result.assert_outcomes(passed=4)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0
