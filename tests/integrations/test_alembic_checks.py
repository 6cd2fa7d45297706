"""Is the database where the code expects it; do models and migrations agree; and data that migrations move."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import pytest_alembic
import pytest_alembic.tests.default as agreed
from alembic.config import Config
from pytest_alembic.config import Config as PytestConfig
from pytest_alembic.plugin.error import AlembicTestFailure
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import errors
from sessionkit.integrations.alembic import MigrationError, NotUpToDate, assert_up_to_date, async_assert_up_to_date
from tests.integrations.alembic_project import PLAIN, Project, projects, versioned

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = pytest.mark.own_database
both = pytest.mark.doors("sqlite-sync", "postgresql-sync")

make = pytest.fixture(name="make")(projects)

CREATE = "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True), sa.Column('name', sa.String(20)))"


# assert_up_to_date


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
async def test_a_database_behind_the_code_is_found_at_the_start(
    make: Callable[..., Project], doors: Door, tmp_path: Path
) -> None:
    project = make()
    project.migration("first", CREATE)
    project.migration("second", "op.add_version_column('orders')", "op.drop_version_column('orders')")
    engine = (create_engine if doors.colour == "sync" else create_async_engine)(project.url, poolclass=NullPool)
    check = doors.twin(assert_up_to_date, async_assert_up_to_date)

    async def upgrade(revision: str) -> None:
        await doors.in_other_thread(lambda: project.run("upgrade", revision))

    with pytest.raises(
        NotUpToDate, match=r"is at no revision, and the newest migration is second; run `alembic upgrade"
    ) as caught:
        await check(engine, project.ini)
    assert (caught.value.current, caught.value.expected) == ((), ("second",))
    await upgrade("first")
    with pytest.raises(NotUpToDate, match="is at first, and"):
        await check(engine, str(project.ini))
    await upgrade("head")
    await check(engine, Config(str(project.ini)))
    async with doors.enter(engine.connect()) as connection:
        await check(doors.raw(connection), project.ini)
    project.execute("UPDATE alembic_version SET version_num = 'of the future'")
    with pytest.raises(NotUpToDate, match="the code is older than the database"):
        await check(engine, project.ini)
    with pytest.raises(NotUpToDate, match="at no revision"):
        await check(engine, project.ini, version_table="another")


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_what_it_is_given_is_looked_at_first(make: Callable[..., Project], doors: Door) -> None:
    check, other = doors.twin(assert_up_to_date, async_assert_up_to_date), doors.engine
    with pytest.raises(MigrationError, match="there is no such file"):
        await check(doors.engine, "nowhere/alembic.ini")
    if doors.colour == "async":
        with pytest.raises(errors.SyncAsyncMismatch, match="await async_assert_up_to_date"):
            assert_up_to_date(other)
    else:
        with pytest.raises(errors.SyncAsyncMismatch, match=r"write `assert_up_to_date"):
            await async_assert_up_to_date(other)
        with pytest.raises(errors.OptionError, match="takes an engine or a connection"):
            assert_up_to_date("sqlite://")  # type: ignore[arg-type]


# pytest-alembic's own tests


@pytest.mark.doors("sqlite-sync", "postgresql-sync", "postgresql-async")
def test_pytest_alembics_own_tests_pass(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.autogenerate("first")
    for kind in ("Versioned", "TimestampVersioned", "UUIDVersioned"):
        project.run("upgrade", "head")
        project.write_models(versioned(kind))
        project.autogenerate(kind)
    engine = (create_engine if doors.colour == "sync" else create_async_engine)(project.url, poolclass=NullPool)
    for test in map(agreed.__dict__.get, pytest_alembic.tests.__all__):
        project.run("downgrade", "base")
        config = PytestConfig.from_raw_config(Config(str(project.ini)))
        with project.inside(), pytest_alembic.runner(config=config, engine=engine) as alembic_runner:
            assert test is not None
            test(alembic_runner)
    # They would have said so.
    project.write_models(PLAIN)
    with project.inside(), pytest_alembic.runner(config=config, engine=engine) as alembic_runner:
        with pytest.raises(AlembicTestFailure, match="out of sync"):
            agreed.test_model_definitions_match_ddl(alembic_runner)


# Data


DATA = """
from sessionkit import bulk, on_commit, session_scope, sessionmaker
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase):
    pass
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
Session = sessionmaker(op.get_bind())
with session_scope(Session) as session:
    session.add(Order(id=1, name="one"))
    bulk.insert(session, Order, [{"id": n, "name": str(n)} for n in range(2, 50)])
with Session.scope() as session:
    bulk.upsert(session, Order, [{"id": 1, "name": "changed"}, {"id": 50, "name": "new"}], match=[Order.id])
    for order in bulk.get(session, Order, [2, 3]):
        order.name = "again"
assert op.get_bind().in_transaction()
"""


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
def test_scopes_and_bulk_work_within_the_transaction_of_the_migration(
    fails: bool, make: Callable[..., Project], doors: Door
) -> None:
    project = make()
    project.migration("first", CREATE)
    project.run("upgrade", "head")
    project.migration("second", DATA + ("raise ValueError('after all')" if fails else ""))
    if fails:
        with pytest.raises(ValueError, match="after all"):
            project.run("upgrade", "head")
        assert project.rows("SELECT count(*) FROM orders") == [(0,)]
        return
    project.run("upgrade", "head")
    assert project.rows("SELECT count(*), sum(CASE name WHEN 'again' THEN 1 ELSE 0 END) FROM orders") == [(50, 2)]
    assert project.rows("SELECT name FROM orders WHERE id = 1") == [("changed",)]


@both
def test_a_scope_that_fails_takes_the_migration_with_it(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.migration("first", CREATE)
    project.run("upgrade", "head")
    project.migration(
        "second",
        """
        from sessionkit import sessionmaker
        op.execute("INSERT INTO orders VALUES (1, 'a')")
        with sessionmaker(op.get_bind()).scope() as session:
            session.execute(sa.text("INSERT INTO orders VALUES (1, 'twice')"))
        """,
    )
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError):
        project.run("upgrade", "head")
    assert project.rows("SELECT count(*) FROM orders") == [(0,)]
    assert project.rows("SELECT version_num FROM alembic_version") == [("first",)]


# A big table that is written to


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.parametrize(
    "how", ["", ", kind='uuid'", ", backfill='id', batch_size=2000"], ids=["constant", "uuid", "backfill"]
)
def test_writers_go_on_while_a_big_table_gets_its_version(how: str, make: Callable[..., Project], doors: Door) -> None:
    rows = 1_000_000 if os.environ.get("SESSIONKIT_LONG") else 20_000
    limit = 2.0
    project = make(call=f"run_migrations(target_metadata, lock_timeout={limit})")
    project.migration("first", CREATE)
    project.run("upgrade", "head")
    project.execute(f"INSERT INTO orders SELECT i, 'x' FROM generate_series(1, {rows}) i", "ANALYZE orders")
    project.migration("second", f"op.add_version_column('orders'{how})")
    stop, running = threading.Event(), threading.Barrier(3)
    failures: list[BaseException] = []
    written = [0, 0]

    def write(number: int) -> None:
        # No statement of the application waits longer for a lock than a migration's may.
        engine = project.engine(connect_args={"options": f"-c lock_timeout={round(limit * 1000)}"})
        try:
            with engine.connect() as connection:
                running.wait(30)
                while not stop.is_set():
                    written[number] += 1
                    key = rows + 2 * written[number] + number
                    connection.exec_driver_sql(f"INSERT INTO orders (id, name) VALUES ({key}, 'new')")
                    connection.exec_driver_sql(
                        f"UPDATE orders SET name = 'y' WHERE id = {written[number] * 37 % rows + 1}"
                    )
                    connection.commit()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        running.wait(30)
        project.run("upgrade", "head")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failures, failures
    assert min(written) > 0
    column = "version_id"
    assert project.rows(f"SELECT count(*) FROM orders WHERE {column} IS NULL") == [(0,)]
    assert project.rows("SELECT count(*) FROM orders") == [(rows + sum(written),)]
    assert project.rows(
        f"SELECT is_nullable FROM information_schema.columns WHERE table_name = 'orders' AND column_name = '{column}'"
    ) == [("NO",)]
