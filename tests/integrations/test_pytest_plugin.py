"""The test kit, on projects whose tests run in a pytest of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.tenants import create_notes
from tests.integrations import kit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester: pytest.Pytester, doors: Door, monkeypatch: pytest.MonkeyPatch) -> kit.Project:
    return kit.Project(pytester, doors, monkeypatch)


async def left(doors: Door) -> object:
    return await doors.scalar("SELECT count(*) FROM accounts")


@pytest.mark.doors(colour="sync")
@pytest.mark.own_database
async def test_what_sync_code_commits_is_seen_by_it_and_gone_after_the_test(doors: Door, project: kit.Project) -> None:
    source = kit.read("sync")
    await project.alone()
    result = project.run(test_rollback=source, test_template=source.replace('MODE = "rollback"', 'MODE = "template"'))
    result.assert_outcomes(passed=63)
    assert await left(doors) == 0


@pytest.mark.doors(colour="async")
@pytest.mark.own_database
async def test_what_async_code_commits_is_seen_by_it_and_gone_after_the_test(doors: Door, project: kit.Project) -> None:
    source = kit.read("async")
    await project.alone()
    result = project.run(
        test_asyncio=source.replace("RUNNER", "asyncio"),
        test_anyio=source.replace("RUNNER", "anyio"),
        test_template=source.replace("RUNNER", "asyncio").replace('MODE = "rollback"', 'MODE = "template"'),
    )
    result.assert_outcomes(passed=57)
    assert await left(doors) == 0


@pytest.mark.doors(backend="postgresql")
@pytest.mark.own_database
@pytest.mark.parametrize("mode", ["rollback", "template"])
async def test_units_of_a_test_have_each_their_own_settings_and_role(
    doors: Door, project: kit.Project, mode: str
) -> None:
    await create_notes(doors, "a", "b")
    source = kit.read("settings").replace("MODE", mode)
    if doors.colour == "async":
        source = source.replace("ASYNC_", "async_").replace("async def test", "@pytest.mark.asyncio\nasync def test")
    else:
        source = source.replace("ASYNC_", "")
        for word in ("async with", "async def", "await "):
            source = source.replace(word, word.replace("async ", "").replace("await ", ""))
    await project.alone()
    result = project.run(test_settings=source)
    result.assert_outcomes(passed=6)
    assert await doors.rows("SELECT tenant FROM notes ORDER BY tenant") == [("a",), ("b",)]


@pytest.mark.doors("sqlite-sync")
async def test_a_unit_over_several_engines_is_rolled_back_on_each(
    doors: Door, project: kit.Project, tmp_path: Path
) -> None:
    result = project.run(
        test_shop=f"""
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
    """
    )
    result.assert_outcomes(passed=3)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 0


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
async def test_a_test_is_told_what_it_left_open_and_what_would_have_stayed(doors: Door, project: kit.Project) -> None:
    result = project.run(test_shop=kit.read("told"))
    result.assert_outcomes(passed=14, errors=12)
    result.stdout.fnmatch_lines(
        [
            "*the session opened at *test_shop.py:18 is still in a transaction*",
            "*the session opened at *test_shop.py:26 is still in a transaction*",
            "*a connection opened at *test_shop.py:31 was not returned to the pool*",
            "*called COMMIT or ROLLBACK on a session's connection*",
            "*was rolled back, and in rollback mode this also undoes what the session opened at*",
            "*the test asked for 1 more failures of COMMIT than there were COMMITs*",
            "*a COMMIT at *test_shop.py:62 was refused, because it would change the database for good*",
            "*a COMMIT at *test_shop.py:70 was refused, because it would change the database for good*",
            "*a statement at *test_shop.py:76 was refused, because it would change the database for good*",
            "*the marker sessionkit('template', node='rollback') is not understood*",
            "*asks for mode='fast'*",
            "*a factory was bound to Engine(sqlite://) while the test ran*",
        ]
    )
    assert await left(doors) == 0


@pytest.mark.doors("sqlite-async", "postgresql-async")
async def test_an_async_test_is_told_it_as_well(doors: Door, project: kit.Project) -> None:
    source = kit.read("told_async")
    result = project.run(test_asyncio=source.replace("RUNNER", "asyncio"), test_anyio=source.replace("RUNNER", "anyio"))
    result.assert_outcomes(passed=10, errors=8)
    result.stdout.fnmatch_lines(
        [
            "*the session opened at *test_anyio.py:16 is still in a transaction*",
            "*the session opened at *test_anyio.py:22 is still in a transaction*",
            "*a connection opened at *test_anyio.py:27 was not returned to the pool*",
            "*a COMMIT at *test_anyio.py:35 was refused, because it would change the database for good*",
            "*the session opened at *test_asyncio.py:16 is still in a transaction*",
            "*the session opened at *test_asyncio.py:22 is still in a transaction*",
            "*a connection opened at *test_asyncio.py:27 was not returned to the pool*",
            "*a COMMIT at *test_asyncio.py:35 was refused, because it would change the database for good*",
        ]
    )
    assert await left(doors) == 0


@pytest.mark.doors("sqlite-sync")
async def test_databases_in_memory_are_rolled_back_and_cannot_be_copied(project: kit.Project) -> None:
    result = project.run(test_shop=kit.read("memory"))
    result.assert_outcomes(passed=9, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*is not a file that can be copied; use mode='rollback', or a database file*",
            "*a connection was requested at *test_shop.py:105, but this database has only one*",
        ]
    )


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.own_database
async def test_it_gets_along_with_other_plugins_and_fixtures_of_wider_scopes(doors: Door, project: kit.Project) -> None:
    source = kit.read("others")
    await project.alone()
    result = project.run(
        "--setup-show",
        plugins=(*kit.PLUGINS, "_hypothesis_pytestplugin", "pytest_randomly"),
        test_rollback=source,
        test_template=source.replace('MODE = "rollback"', 'MODE = "template"'),
    )
    result.assert_outcomes(passed=10)
    assert await left(doors) == 0


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.own_database
async def test_an_application_that_disposes_of_its_engine_leaves_no_connection_behind(
    doors: Door, project: kit.Project
) -> None:
    await project.alone()
    source = kit.read("lifespan")
    if doors.colour == "sync":
        source = source.replace("async with", "with").replace("await ", "").replace("async def read", "def read")
    result = project.run("-p", "no:randomly", test_lifespan=source)
    result.assert_outcomes(passed=8)
    assert await left(doors) == 0


@pytest.mark.doors("sqlite-sync")
async def test_without_its_fixtures_the_plugin_does_nothing_and_without_factories_it_tells_how(
    project: kit.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    project.write(conftest="")
    # Other plugins that are installed here import some of them.
    others = [f"no:{name}" for name in ("postgresql", "pytest_postgresql", "anyio", "pytest_alembic")]
    result = project.run(
        *(argument for name in others for argument in ("-p", name)),
        plugins=(),
        test_shop="""
            import sys

            def test_nothing_is_there():
                names = {"psycopg", "psycopg2", "asyncpg", "aiosqlite", "flask", "fastapi", "alembic"}
                assert not names & set(sys.modules), names & set(sys.modules)
                assert "sessionkit.integrations._kit.isolation" not in sys.modules

            def test_it(sessionkit_isolation):
                pass
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*sessionkit_factories in conftest.py*"])
