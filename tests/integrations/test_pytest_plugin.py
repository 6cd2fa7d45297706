"""The test kit, on projects whose tests run in a pytest of their own."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.doors import Door

pytest_plugins = ["pytester"]

PROJECTS = Path(__file__).parent / "kit_projects"

CONFTEST = {
    "sync": """
        import os
        import pytest
        from sqlalchemy import create_engine
        import sessionkit
        from sessionkit import sessionmaker

        engine = create_engine(os.environ["SHOP_URL"])
        if engine.dialect.name == "sqlite":
            sessionkit.sqlite.configure(engine)
        Session = sessionmaker(engine)

        @pytest.fixture
        def sessionkit_factories():
            return [Session]

        @pytest.fixture(autouse=True)
        def _isolated(request):
            if "plain" not in request.keywords:
                request.getfixturevalue("sessionkit_isolation")

        @pytest.fixture(scope="session", autouse=True)
        def _disposed():
            yield
            engine.dispose()
    """,
    "async": """
        import os
        import pytest
        from sqlalchemy import NullPool
        from sqlalchemy.ext.asyncio import create_async_engine
        from sessionkit import async_sessionmaker

        engine = create_async_engine(os.environ["SHOP_URL"], poolclass=NullPool)
        Session = async_sessionmaker(engine)

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        def sessionkit_factories():
            return [Session]

        @pytest.fixture(autouse=True)
        def _isolated(sessionkit_isolation):
            pass
    """,
}


class Project:
    """A project of a user's, on the database of a door."""

    def __init__(self, pytester: pytest.Pytester, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester = pytester
        url = door.database.url("psycopg" if door.driver == "psycopg2" else door.driver)
        monkeypatch.setenv("SHOP_URL", url.render_as_string(hide_password=False))
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        pytester.makeini(
            "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
            "markers =\n    plain: without isolation\n"
        )
        pytester.makeconftest(textwrap.dedent(CONFTEST[door.colour]))

    def run(self, source: str, *options: str) -> pytest.RunResult:
        """Run a file of tests."""
        self._pytester.makepyfile(test_shop=textwrap.dedent(source))
        return self._pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", *options)


@pytest.fixture
def project(pytester: pytest.Pytester, doors: Door, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, doors, monkeypatch)


def kit(name: str) -> str:
    return (PROJECTS / name).read_text()


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_what_sync_code_commits_is_seen_by_it_and_gone_after_the_test(doors: Door, project: Project) -> None:
    result = project.run(kit("sync_shop.txt"))
    result.assert_outcomes(passed=16)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-async", "postgresql-async")
@pytest.mark.parametrize("runner", ["asyncio", "anyio"])
async def test_what_async_code_commits_is_seen_by_it_and_gone_after_the_test(
    doors: Door, project: Project, runner: str
) -> None:
    result = project.run(kit("async_shop.txt").replace("RUNNER", runner))
    result.assert_outcomes(passed=10)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.own_database
async def test_the_same_sync_tests_run_on_databases_of_their_own(doors: Door, project: Project) -> None:
    doors.sync_engine.dispose()
    doors.database.observer.dispose()
    result = project.run(
        kit("sync_shop.txt")
        + """
pytestmark = pytest.mark.sessionkit(mode="template")


def test_an_inner_unit_stays_committed_where_the_outer_one_fails():
    with pytest.raises(ZeroDivisionError), Session.scope() as outer:
        outer.begin_nested()
        if engine.dialect.name == "postgresql":
            outer.execute(INSERT)
            add(propagation="new")
        1 / 0
    assert count() == (1 if engine.dialect.name == "postgresql" else 0)
""",
        "-k",
        "not joined and not without_a_scope",
    )
    result.assert_outcomes(passed=15, deselected=2)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-async", "postgresql-async")
@pytest.mark.own_database
async def test_the_same_async_tests_run_on_databases_of_their_own(doors: Door, project: Project) -> None:
    await doors.engine.dispose()
    doors.database.observer.dispose()
    source = kit("async_shop.txt").replace(
        "pytest.mark.RUNNER", '[pytest.mark.asyncio, pytest.mark.sessionkit(mode="template")]'
    )
    result = project.run(source, "-k", "not nested_ones")
    result.assert_outcomes(passed=9, deselected=1)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-sync")
async def test_a_unit_over_several_engines_is_rolled_back_on_each(
    doors: Door, project: Project, tmp_path: Path
) -> None:
    result = project.run(f"""
        import pytest
        from conftest import engine
        from sqlalchemy import create_engine, text
        from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

        from sessionkit import sessionmaker
        from sessionkit.errors import PartialCommit

        other = create_engine("sqlite:///{tmp_path}/other.db")

        class Base(DeclarativeBase):
            pass

        class Account(Base):
            __tablename__ = "accounts"
            id: Mapped[int] = mapped_column(primary_key=True)
            owner: Mapped[str]
            balance: Mapped[int]

        class Audit(Base):
            __tablename__ = "audit"
            id: Mapped[int] = mapped_column(primary_key=True)

        Base.metadata.create_all(other, [Audit.__table__])
        Session = sessionmaker(binds={{Account: engine, Audit: other}})

        @pytest.fixture
        def sessionkit_factories():
            yield [Session]
            other.dispose()

        def counts():
            with Session.scope() as session:
                return session.query(Account).count(), session.query(Audit).count()

        def add():
            with Session.scope() as session:
                session.add(Account(owner="ann", balance=0))
                session.flush()
                session.add(Audit())

        @pytest.mark.parametrize("time", [1, 2])
        def test_both(time):
            assert counts() == (0, 0)
            add()
            assert counts() == (1, 1)

        def test_only_one(fail_commit_with, lose_connection_during_commit):
            lose_connection_during_commit(committed=True)
            with pytest.raises(PartialCommit):
                add()
            assert counts() == (1, 0)
    """)
    result.assert_outcomes(passed=3)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("postgresql-sync")
async def test_web_applications_are_in_the_test_in_other_threads_too(doors: Door, project: Project) -> None:
    result = project.run("""
        from conftest import Session
        from fastapi import FastAPI
        from flask import Flask
        from httpx import ASGITransport, AsyncClient
        from sqlalchemy import text

        import asyncio
        from sessionkit.integrations.flask import SessionKit

        INSERT = text("INSERT INTO accounts (owner, balance) VALUES ('ann', 0)")
        COUNT = text("SELECT count(*) FROM accounts")

        def count():
            with Session.scope() as session:
                return session.scalar(COUNT)

        def test_flask():
            app = Flask("shop")
            db = SessionKit(app, Session)

            @app.post("/")
            def add():
                db.session.execute(INSERT)
                return "", 201

            assert app.test_client().post("/").status_code == 201
            assert app.test_client().post("/").status_code == 201
            assert count() == 2

        def test_fastapi():
            app = FastAPI()

            @app.post("/")
            def add():  # in a thread of a pool
                with Session.scope() as session:
                    session.execute(INSERT)

            async def requests():
                async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
                    return [(await client.post("/")).status_code for _ in range(2)]

            assert asyncio.run(requests()) == [200, 200]
            assert count() == 2
    """)
    result.assert_outcomes(passed=2)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_a_test_is_told_what_it_left_open_and_what_rollback_mode_cannot_show(project: Project) -> None:
    result = project.run("""
        import warnings

        import pytest
        from conftest import Session
        from sqlalchemy import text

        INSERT = text("INSERT INTO accounts (owner, balance) VALUES ('ann', 0)")
        kept = []

        def test_scope():
            scope = Session.scope()
            kept.append(scope)
            scope.__enter__().execute(INSERT)  # line 13

        def test_session():
            session = Session()
            kept.append(session)
            session.execute(INSERT)  # line 18

        def test_by_hand():
            warnings.simplefilter("ignore")
            with pytest.raises(Exception), Session.scope() as session:
                session.execute(INSERT)
                session.connection().commit()

        def test_audit():
            with pytest.raises(ZeroDivisionError), Session.scope() as outer:
                outer.execute(text("SELECT 1"))
                with Session.scope(propagation="new") as inner:
                    inner.execute(INSERT)
                1 / 0

        def test_fault(fail_commit_with):
            fail_commit_with("40001")

        def test_after_them():
            with Session.scope() as session:
                assert session.scalar(text("SELECT count(*) FROM accounts")) == 0

        def test_deferred():
            with pytest.raises(Exception, match="(?i)foreign key"), Session.scope() as session:
                session.execute(text("INSERT INTO pledges (account_id) VALUES (77)"))
            with Session.scope() as session:
                assert session.scalar(text("SELECT count(*) FROM pledges")) == 0
                session.execute(text("INSERT INTO pledges (id, account_id) VALUES (1, 78)"))
                session.execute(text("INSERT INTO accounts (id, owner, balance) VALUES (78, 'ann', 0)"))
    """)
    result.assert_outcomes(passed=7, errors=5)
    result.stdout.fnmatch_lines(
        [
            "*the session opened at *test_shop.py:13 is still in a transaction*",
            "*the session opened at *test_shop.py:18 is still in a transaction*",
            "*was called by hand on a session's connection*",
            "*was rolled back, and in rollback mode that takes what the session opened at*",
            "*1 failures of COMMIT were asked for that met none*",
        ]
    )


@pytest.mark.doors("sqlite-sync")
async def test_without_its_fixtures_the_plugin_does_nothing_and_without_factories_it_tells_how(
    pytester: pytest.Pytester, project: Project
) -> None:
    pytester.makeconftest("")
    result = project.run(
        """
        import sys

        def test_nothing_is_there():
            names = {"psycopg", "psycopg2", "asyncpg", "aiosqlite", "flask", "fastapi", "alembic"}
            assert not names & set(sys.modules), names & set(sys.modules)
            assert "sessionkit.integrations._isolation" not in sys.modules

        def test_it(sessionkit_isolation):
            pass
        """,
        # Other plugins that are installed here import some of them.
        "-p",
        "no:postgresql",
        "-p",
        "no:pytest_postgresql",
        "-p",
        "no:anyio",
        "-p",
        "no:pytest_alembic",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*sessionkit_factories in conftest.py*"])
