"""`run_migrations`: one deployment at a time, never in the way of the application, and clear when it gives up."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, inspect
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit import errors, sqlite
from sessionkit.integrations.alembic import MigrationBlocked, MigrationError
from sessionkit.integrations.alembic._servers import _number
from tests.integrations.alembic_project import Project, projects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = pytest.mark.own_database
both = pytest.mark.doors("sqlite-sync", "postgresql-sync")
on_postgresql = pytest.mark.doors("postgresql-sync")
on_sqlite = pytest.mark.doors("sqlite-sync")

make = pytest.fixture(name="make")(projects)

CREATE = "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True), sa.Column('name', sa.String(20)))"
LOCK = "SELECT pg_advisory_xact_lock(%s)" % _number(".alembic_version")  # noqa: UP031
QUICK = "retry=Retry(50, wait=0.01, wait_max=0.01)"


def call(arguments: str = "") -> str:
    return f"from sessionkit import Retry\nrun_migrations(target_metadata{', ' * bool(arguments)}{arguments})"


def tables(project: Project) -> set[str]:
    return set(inspect(project.engine()).get_table_names())


@contextmanager
def in_a_thread(work: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Run something meanwhile; its failure is in the list when the block has ended."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield failures
    finally:
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def told(logger: str = "alembic.sessionkit") -> Iterator[Callable[[str, int], None]]:
    """Wait until something was logged so many times."""
    seen: list[str] = []
    changed = threading.Condition()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with changed:
                seen.append(record.getMessage())
                changed.notify_all()

    def wait(text: str, times: int = 1) -> None:
        with changed:
            assert changed.wait_for(lambda: sum(text in line for line in seen) >= times, 30), seen

    handler = Handler()
    log = logging.getLogger(logger)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield wait
    log.removeHandler(handler)
    log.setLevel(level)


# In every colour


@pytest.mark.doors(
    "sqlite-sync",
    "sqlite-async",
    "postgresql-sync",
    "postgresql-async",
    "postgresql-async-psycopg",
    "postgresql-sync-psycopg2",
)
def test_a_project_from_alembic_init_migrates_up_and_down(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.autogenerate("first")
    project.run("upgrade", "head")
    assert tables(project) == {"orders", "alembic_version"}
    assert "(head)" in project.run("current")
    project.run("check")
    project.run("downgrade", "base")
    assert tables(project) == {"alembic_version"}
    project.run("stamp", "head")
    assert project.rows("SELECT count(*) FROM alembic_version") == [(1,)]


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
def test_an_engine_may_be_given(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    colour = "" if doors.colour == "sync" else "async_"
    where = "sqlalchemy" if doors.colour == "sync" else "sqlalchemy.ext.asyncio"
    project.write_env(
        f"from {where} import create_{colour}engine\n"
        f"engine = create_{colour}engine({project.url.render_as_string(hide_password=False)!r})\n"
        "run_migrations(target_metadata, engine=engine)\n"
        "assert engine.pool.checkedout() == 0\n" + ("engine.dispose()" if doors.colour == "sync" else "")
    )
    project.ini.write_text(project.ini.read_text().replace("sqlalchemy.url", "# sqlalchemy.url"))
    project.migration("first", CREATE)
    project.run("upgrade", "head")
    assert tables(project) == {"orders", "alembic_version"}


# One deployment at a time


@pytest.mark.doors("sqlite-sync", "postgresql-sync", "postgresql-async")
def test_of_two_upgrades_at_once_one_waits_and_finds_nothing_to_do(
    make: Callable[..., Project], tmp_path: Path, doors: Door
) -> None:
    project = make(call=call())
    if doors.backend == "sqlite":
        text = project.ini.read_text()
        project.ini.write_text(text.replace("project.db", "project.db?timeout=0.1"))
    go, begun, ran = (tmp_path / name for name in ("go", "begun", "ran"))
    project.migration(
        "first",
        f"""
        import pathlib, time
        pathlib.Path({str(begun)!r}).touch()
        while not pathlib.Path({str(go)!r}).exists():
            time.sleep(0.02)
        with pathlib.Path({str(ran)!r}).open("a") as log:
            log.write("first ")
        {CREATE}
        """,
    )
    project.migration("second", f"with open({str(ran)!r}, 'a') as log:\n    log.write('second ')")
    first = project.start("upgrade", "head")
    ends = time.monotonic() + 60
    while not begun.exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)
    second = project.start("upgrade", "head")
    lines: list[str] = []
    assert second.stderr is not None
    while not any("waiting" in line for line in lines):
        line = second.stderr.readline()
        assert line, lines
        lines.append(line)
    go.touch()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert "Running upgrade" in said
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert "Running upgrade" not in "".join(lines) + said
    assert ran.read_text() == "first second "


@pytest.mark.doors("postgresql-sync", "postgresql-async")
def test_who_waits_too_long_for_another_deployment_is_told_who_it_is(make: Callable[..., Project], doors: Door) -> None:
    project = make(call=call("lock_wait=0"))
    project.migration("first", CREATE)
    with project.engine(connect_args={"application_name": "the other one"}).connect() as other:
        other.exec_driver_sql(LOCK)
        with pytest.raises(MigrationBlocked, match=r"waited 0 s for another migration[^$]*the other one") as caught:
            project.run("upgrade", "head")
        # What changes nothing does not wait.
        project.run("current")
        project.run("history", indicate_current=True)
    assert [blocker.application for blocker in caught.value.blockers] == ["the other one"]
    assert "orders" not in tables(project)


@on_postgresql
def test_without_the_lock_nobody_waits(make: Callable[..., Project]) -> None:
    project = make(call=call("lock=False, lock_wait=0"))
    project.migration("first", CREATE)
    with project.engine().connect() as other:
        other.exec_driver_sql(LOCK)
        project.run("upgrade", "head")
    assert "orders" in tables(project)


@pytest.mark.doors("postgresql-sync", "postgresql-async")
def test_a_migration_that_lost_the_lock_is_rolled_back(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE locktype = 'advisory' AND granted AND datname = current_database()"
    )
    project.migration("first", CREATE)
    project.migration("second", f"op.create_table('lines', sa.Column('id', sa.Integer()))\nop.execute({end!r})")
    with pytest.raises(MigrationError, match="the lock of this migration was lost"):
        project.run("upgrade", "head")
    assert tables(project) == {"orders", "alembic_version"}
    assert project.rows("SELECT version_num FROM alembic_version") == [("first",)]


@on_sqlite
def test_on_sqlite_who_waits_too_long_is_told(make: Callable[..., Project]) -> None:
    project = make(call=call("lock_wait=0"))
    project.ini.write_text(project.ini.read_text().replace("project.db", "project.db?timeout=0.05"))
    project.migration("first", CREATE)
    with project.engine().connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(MigrationBlocked, match=r"waited 0 s for the write lock of .*project\.db"):
            project.run("upgrade", "head")


# Never in front of the application


@pytest.fixture
def orders(make: Callable[..., Project], doors: Door) -> Project:
    """A project whose `orders` have a row, and whose next migration wants to alter them."""
    project = make(call=call(f"lock_timeout=0.1, {QUICK}"))
    project.migration("first", CREATE + "\nop.execute(\"INSERT INTO orders VALUES (1, 'a')\")")
    project.run("upgrade", "head")
    project.migration(
        "second", "op.create_table('lines', sa.Column('id', sa.Integer()))\nop.add_version_column('orders')"
    )
    return project


@pytest.mark.doors("postgresql-sync", "postgresql-async")
def test_a_lock_that_cannot_be_had_is_given_up_and_tried_again(orders: Project, doors: Door) -> None:
    with (
        told() as wait,
        orders.engine().connect() as reader,
        in_a_thread(lambda: orders.run("upgrade", "head")) as failures,
    ):
        reader.exec_driver_sql("SELECT * FROM orders")
        wait("lock_not_available", 2)
        # The reader goes on, and so does who comes after it: nobody queues for ever behind the migration.
        orders.execute("UPDATE orders SET name = 'b'")
        wait("lock_not_available", 3)
        reader.rollback()
    assert not failures
    assert orders.rows("SELECT name, version_id FROM orders") == [("b", 1)]
    assert "lines" in tables(orders)


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.parametrize("attempts", [1, 2])
def test_who_gives_up_names_the_queries_in_the_way(attempts: int, orders: Project, doors: Door) -> None:
    orders.write_env(call(f"lock_timeout=0.4, retry=Retry({attempts}, wait=0)"))
    with orders.engine(connect_args={"application_name": "the reporter"}).connect() as reader:
        reader.exec_driver_sql("SELECT * FROM orders WHERE id = 1")
        (pid,) = reader.exec_driver_sql("SELECT pg_backend_pid() /* of the orders */").scalars()
        with pytest.raises(MigrationBlocked) as caught:
            orders.run("upgrade", "head")
    tried = "once" if attempts == 1 else "2 times"
    assert f"could not get a lock within 0.4 s, tried {tried}, for: ALTER TABLE orders ADD COLUMN" in str(caught.value)
    (blocker,) = caught.value.blockers
    assert (blocker.pid, blocker.application, blocker.state) == (pid, "the reporter", "idle in transaction")
    assert "of the orders" in blocker.query
    assert str(blocker) in str(caught.value)
    assert errors.classify(caught.value.__cause__).kind == "lock_not_available"
    # Nothing of the migration is left.
    assert "lines" not in tables(orders)
    assert orders.rows("SELECT version_num FROM alembic_version") == [("first",)]


@on_postgresql
@pytest.mark.parametrize("target", ["+2", "head"])
def test_a_relative_target_is_not_aimed_at_twice(target: str, orders: Project) -> None:
    orders.write_env(call(f"lock_timeout=0.1, {QUICK}"))
    (second,) = (path for path in orders.scripts() if path.name == "second.py")
    second.write_text(second.read_text().replace("op.add_version_column('orders')", "pass"))
    orders.migration("third", "op.drop_column('orders', 'name')")
    orders.migration("fourth", "op.create_table('not_yet', sa.Column('id', sa.Integer()))")
    with orders.engine().connect() as reader:
        reader.exec_driver_sql("SELECT * FROM orders")
        if target == "+2":
            with pytest.raises(MigrationBlocked, match="tried once"):
                orders.run("upgrade", target)
        else:
            with told() as wait, in_a_thread(lambda: orders.run("upgrade", target)) as failures:
                wait("lock_not_available", 2)
                reader.rollback()
            assert not failures
    assert orders.rows("SELECT version_num FROM alembic_version") == [("second" if target == "+2" else "fourth",)]


@on_postgresql
def test_the_command_line_says_it_in_one_line(orders: Project) -> None:
    orders.write_env(call("lock_timeout=0.2, retry=1"))
    with orders.engine().connect() as reader:
        reader.exec_driver_sql("SELECT * FROM orders")
        process = orders.start("upgrade", "head")
        out, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "FAILED: could not get a lock" in out + told
    assert "Traceback" not in out + told


@on_postgresql
def test_each_migration_is_a_transaction(make: Callable[..., Project]) -> None:
    project = make()
    project.migration("first", CREATE)
    project.migration("second", "op.create_table('lines', sa.Column('id', sa.Integer()))\nraise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        project.run("upgrade", "head")
    assert tables(project) == {"orders", "alembic_version"}
    assert project.rows("SELECT version_num FROM alembic_version") == [("first",)]


@on_postgresql
def test_an_engine_that_commits_each_statement_does_not_commit_half_a_migration(make: Callable[..., Project]) -> None:
    project = make()
    project.write_env(
        "from sqlalchemy import create_engine\nengine = create_engine(context.config.get_main_option('sqlalchemy.url'), "
        "isolation_level='AUTOCOMMIT')\ntry:\n    run_migrations(target_metadata, engine=engine)\nfinally:\n    engine.dispose()"
    )
    project.migration("first", CREATE + "\nraise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        project.run("upgrade", "head")
    assert "orders" not in tables(project)


# SQLite: a transaction around it all


@pytest.mark.doors("sqlite-sync", "sqlite-async")
def test_an_upgrade_of_sqlite_is_done_wholly_or_not_at_all(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.migration("first", CREATE)
    project.migration("second", "op.create_table('lines', sa.Column('id', sa.Integer()))\nraise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        project.run("upgrade", "head")
    assert tables(project) == set()


PARENTS = """
op.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20))")
op.execute("CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders ON DELETE CASCADE)")
op.execute("INSERT INTO orders VALUES (1, 'a')")
op.execute("INSERT INTO lines VALUES (10, 1)")
"""
CONFIGURED = """
from sqlalchemy import create_engine
from sessionkit import sqlite
engine = sqlite.configure(create_engine(context.config.get_main_option("sqlalchemy.url")), begin={begin!r})
try:
    run_migrations(target_metadata, engine=engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
finally:
    engine.dispose()
"""


@on_sqlite
@pytest.mark.parametrize("begin", ["immediate", "deferred"])
def test_a_table_that_is_copied_keeps_the_rows_that_refer_to_it(begin: str, make: Callable[..., Project]) -> None:
    project = make(call=CONFIGURED.format(begin=begin))
    project.migration("first", PARENTS)
    project.migration("second", "op.add_version_column('orders', keep_default=False)")
    project.run("upgrade", "head")
    assert project.rows("SELECT * FROM lines") == [(10, 1)]
    assert project.rows("SELECT version_id FROM orders") == [(1,)]


@on_sqlite
def test_a_migration_that_breaks_a_foreign_key_is_not_committed(make: Callable[..., Project]) -> None:
    project = make(call=CONFIGURED.format(begin="immediate"))
    project.migration("first", PARENTS)
    project.run("upgrade", "head")
    project.execute("INSERT INTO lines VALUES (11, 2)")  # broken already: this engine does not enforce them
    project.migration("second", "op.execute('CREATE TABLE fine (id INTEGER)')")
    project.run("upgrade", "head")
    project.migration("third", "op.execute('DELETE FROM orders')")
    with pytest.raises(MigrationError, match=r"1 rows would refer to missing rows \(lines -> orders\)"):
        project.run("upgrade", "head")
    assert project.rows("SELECT id FROM orders") == [(1,)]


@on_sqlite
def test_a_driver_that_ignores_commit_is_found_out(make: Callable[..., Project]) -> None:
    if sys.version_info < (3, 12):
        return  # there it has no such mode
    project = make()
    project.write_env(
        "from sqlalchemy import create_engine\nengine = create_engine(context.config.get_main_option('sqlalchemy.url'), "
        "connect_args={'autocommit': True})\ntry:\n    run_migrations(target_metadata, engine=engine)\nfinally:\n    engine.dispose()"
    )
    project.migration("first", CREATE)
    with pytest.raises(MigrationError, match="ignores commit"):
        project.run("upgrade", "head")
    assert tables(project) == set()


@both
def test_a_migration_may_leave_its_transaction(make: Callable[..., Project]) -> None:
    project = make()
    project.migration("first", CREATE)
    project.migration(
        "second",
        "with op.get_context().autocommit_block():\n    op.create_index('ix', 'orders', ['name'], postgresql_concurrently=True)\nop.add_version_column('orders')",
    )
    project.run("upgrade", "head")
    project.run("upgrade", "head")
    assert [index["name"] for index in inspect(project.engine()).get_indexes("orders")] == ["ix"]


# A connection of the caller's


@both
def test_in_a_transaction_of_the_callers_the_caller_commits(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.migration("first", CREATE)
    engine = project.engine()
    if doors.backend == "sqlite":
        sqlite.configure(engine)
    for commit in (False, True):
        with engine.connect() as connection:
            transaction = connection.begin()
            if doors.backend == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = '7s'")
            project.run("upgrade", "head", connection=connection)
            assert connection.in_transaction()
            if doors.backend == "postgresql":
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"
                # Whoever comes now waits for the caller.
                with project.engine().connect() as other:
                    assert not other.exec_driver_sql(LOCK.replace("pg_", "pg_try_")).scalar()
            (transaction.commit if commit else transaction.rollback)()
        assert ("orders" in tables(project)) is commit
    engine.dispose()


@both
def test_a_connection_that_has_not_begun_is_committed_and_left_open(make: Callable[..., Project]) -> None:
    project = make()
    project.migration("first", CREATE)
    with project.engine().connect() as connection:
        project.run("upgrade", "head", connection=connection)
        assert not connection.in_transaction()
        assert not connection.closed
        assert "orders" in tables(project)


@pytest.mark.doors("sqlite-async", "postgresql-async")
def test_inside_a_running_loop_a_connection_is_handed_over(make: Callable[..., Project], doors: Door) -> None:
    project = make()
    project.migration("first", CREATE)
    engine = create_async_engine(project.url, poolclass=NullPool)

    async def main() -> None:
        with pytest.raises(MigrationError, match="inside a running event loop"):
            project.run("upgrade", "head", connection=engine)
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: project.run("upgrade", "head", connection=sync))

    asyncio.run(main())
    assert "orders" in tables(project)


@both
def test_a_connection_that_commits_each_statement_is_refused(make: Callable[..., Project]) -> None:
    project = make()
    project.migration("first", CREATE)
    with project.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(errors.OptionError, match="half a migration could not be undone"):
            project.run("upgrade", "head", connection=connection)
        project.run("current", connection=connection)
    assert "orders" not in tables(project)


@pytest.mark.doors("sqlite-async")
def test_an_asynchronous_connection_is_refused_with_the_way_out(make: Callable[..., Project]) -> None:
    project = make()
    connection = create_async_engine(project.url, poolclass=NullPool).connect()
    with pytest.raises(errors.OptionError, match=r"pass the connection that `await connection\.run_sync"):
        project.run("current", connection=connection)


# What means nothing


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("lock='yes'", "lock='yes' was given to run_migrations()"),
        ("lock_wait=None", "lock_wait=None was given"),
        ("lock_timeout=-1", "lock_timeout=-1 was given"),
        ("lock_timeout=0", "lock_timeout=0 was given"),
        ("retry='often'", "retry='often' was given to run_migrations()"),
        ("engine=7", "engine=7 was given"),
        ("transaction_per_migration=True", "is one transaction, which locks out a second upgrade"),
        ("connection=7", "connection= was given to run_migrations(), which sets it itself"),
    ],
)
@on_sqlite
def test_arguments_that_mean_nothing_are_refused(arguments: str, told: str, make: Callable[..., Project]) -> None:
    project = make(call=call(arguments))
    with pytest.raises(errors.OptionError) as caught:
        project.run("upgrade", "head")
    assert told in str(caught.value)


@on_sqlite
def test_what_is_no_metadata_is_refused_with_the_way_out(make: Callable[..., Project]) -> None:
    project = make(call="run_migrations(Base)")
    with pytest.raises(errors.OptionError, match=r"pass Base\.metadata"):
        project.run("current")


@on_sqlite
def test_without_any_address_it_says_where_one_is_looked_for(make: Callable[..., Project]) -> None:
    project = make()
    project.ini.write_text(project.ini.read_text().replace("sqlalchemy.url", "# sqlalchemy.url"))
    with pytest.raises(MigrationError, match=r"\[alembic\] of alembic\.ini has no sqlalchemy\.url"):
        project.run("current")


@on_sqlite
def test_a_database_that_cannot_be_locked_is_refused_where_it_was_asked(make: Callable[..., Project]) -> None:
    project = make(call=call("engine='mysql+pymysql://nobody@127.0.0.1/none', lock=True"))
    with pytest.raises(errors.OptionError, match="has no lock for mysql"):
        project.run("current")
