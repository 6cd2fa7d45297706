"""`op.add_version_column` and `op.drop_version_column`, on tables with rows."""

from __future__ import annotations

import runpy
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from sessionkit import commits, errors, expect_version, sessionmaker, sqlite, version_of
from sessionkit.integrations.alembic import MigrationError
from tests.integrations.alembic_project import Project, empty, projects, psql, versioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync")
on_postgresql = pytest.mark.doors("postgresql-sync")
on_sqlite = pytest.mark.doors("sqlite-sync")

make = pytest.fixture(name="make")(projects)

KINDS = ["count", "timestamp", "uuid"]


@pytest.fixture
def engine(doors: Door, tmp_path: Path) -> Iterator[sa.Engine]:
    """An engine on a database with one table of three rows."""
    engine = create_engine(empty(doors, tmp_path), poolclass=NullPool)
    if doors.backend == "sqlite":
        sqlite.configure(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    yield engine
    engine.dispose()


@contextmanager
def operations(engine: sa.Engine) -> Iterator[Any]:
    with engine.begin() as connection:
        yield Operations(MigrationContext.configure(connection))


def column_of(engine: sa.Engine, name: str, table: str = "orders", schema: str | None = None) -> Any:
    return next((c for c in inspect(engine).get_columns(table, schema=schema) if c["name"] == name), None)


def rows(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_the_column_of_a_full_table_is_filled_and_not_null(keep: bool, engine: sa.Engine) -> None:
    with operations(engine) as op:
        for kind in KINDS:
            op.add_version_column("orders", kind, kind=kind, keep_default=keep)

    for kind in KINDS:
        column = column_of(engine, kind)
        assert not column["nullable"]
        assert (column["default"] is not None) is keep
        values = [value for (value,) in rows(engine, f"SELECT {kind} FROM orders")]
        assert len(values) == 3
        assert None not in values

    # Code that does not know the columns can insert while the defaults are there, and not without.
    new = "INSERT INTO orders (id, name) VALUES (4, 'd')"
    if keep:
        with engine.begin() as connection:
            connection.exec_driver_sql(new)
        assert None not in rows(engine, f"SELECT {', '.join(KINDS)} FROM orders WHERE id = 4")[0]
    else:
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.exec_driver_sql(new)


@pytest.mark.parametrize("kind", ["Versioned", "TimestampVersioned", "UUIDVersioned"])
def test_the_model_reads_what_the_migration_wrote_and_finds_a_lost_update(
    kind: str, make: Callable[..., Project]
) -> None:
    project = make(versioned(kind))
    short = {"Versioned": "count", "TimestampVersioned": "timestamp", "UUIDVersioned": "uuid"}[kind]
    project.migration(
        "first",
        "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True), sa.Column('name', sa.String(20)))",
    )
    project.run("upgrade", "head")
    project.execute("INSERT INTO orders VALUES (1, 'a')")
    project.migration("second", f"op.add_version_column('orders', kind={short!r})")
    project.run("upgrade", "head")

    order = runpy.run_path(str(project.folder / "shop_models.py"))["Order"]
    engine = project.engine()
    Session = sessionmaker(engine)
    with Session() as session:
        mine = session.get(order, 1)
        session.rollback()
        assert version_of(mine) is not None
        with Session.scope() as other:
            other.get(order, 1).name = "theirs"
        expect_version(mine, before := version_of(mine))
        with Session.scope() as other:
            other.get(order, 1).name = "theirs again"
        mine.name = "mine"
        with pytest.raises(errors.VersionConflict) as caught:
            session.commit()
    assert caught.value.conflicts[0].expected == before
    engine.dispose()


def test_dropping_it_takes_it_away(engine: sa.Engine) -> None:
    with operations(engine) as op:
        for kind in KINDS:
            op.add_version_column("orders", kind=kind)
            op.drop_version_column("orders", kind=kind)
    assert [column["name"] for column in inspect(engine).get_columns("orders")] == ["id", "name"]
    assert rows(engine, "SELECT id, name FROM orders ORDER BY id") == [(1, "a"), (2, "b"), (3, "c")]


# In batch mode


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_in_batch_mode_it_goes_together_with_other_changes(keep: bool, engine: sa.Engine) -> None:
    with operations(engine) as op, op.batch_alter_table("orders") as batch_op:
        batch_op.alter_column("name", new_column_name="title", existing_type=sa.String(20))
        for kind in KINDS:
            batch_op.add_version_column(kind, kind=kind, keep_default=keep)

    assert rows(engine, "SELECT id, title FROM orders ORDER BY id") == [(1, "a"), (2, "b"), (3, "c")]
    for kind in KINDS:
        column = column_of(engine, kind)
        assert not column["nullable"]
        assert (column["default"] is not None) is keep
        assert rows(engine, f"SELECT count(*) FROM orders WHERE {kind} IS NULL") == [(0,)]

    with operations(engine) as op, op.batch_alter_table("orders") as batch_op:
        for kind in KINDS:
            batch_op.drop_version_column(kind, kind=kind)
    assert [column["name"] for column in inspect(engine).get_columns("orders")] == ["id", "title"]
    assert rows(engine, "SELECT count(*) FROM orders") == [(3,)]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_in_batch_mode_the_definition_of_the_table_may_be_given(keep: bool, engine: sa.Engine) -> None:
    orders = sa.Table(
        "orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
    )
    with operations(engine) as op, op.batch_alter_table("orders", copy_from=orders) as batch_op:
        batch_op.add_version_column(keep_default=keep)
        batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))

    column = column_of(engine, "version_id")
    assert not column["nullable"]
    assert (column["default"] is not None) is keep
    assert [c.name for c in orders.c] == ["id", "name"], "the caller's own table was changed"
    assert rows(engine, "SELECT version_id FROM orders") == [(1,), (1,), (1,)]


# On PostgreSQL: nothing that a big table would wait for


def filenode(engine: sa.Engine) -> Any:
    return rows(engine, "SELECT relfilenode FROM pg_class WHERE relname = 'orders'")


@on_postgresql
def test_the_table_is_not_rewritten(engine: sa.Engine) -> None:
    before = filenode(engine)
    for kind in KINDS:
        for keep in (True, False):
            with operations(engine) as op:
                op.add_version_column("orders", f"{kind}_{keep}", kind=kind, keep_default=keep)
            assert filenode(engine) == before, (kind, keep)


@on_postgresql
def test_a_volatile_default_would_rewrite_it(engine: sa.Engine) -> None:
    before = filenode(engine)
    with operations(engine) as op:
        op.add_column("orders", sa.Column("v", sa.Uuid(), server_default=text("gen_random_uuid()"), nullable=False))
    assert filenode(engine) != before


@on_postgresql
def test_rows_that_are_inserted_later_get_uuids_of_their_own(engine: sa.Engine) -> None:
    with operations(engine) as op:
        op.add_version_column("orders", kind="uuid")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO orders (id, name) VALUES (4, 'd'), (5, 'e')")
    assert rows(engine, "SELECT count(DISTINCT version_id) FROM orders") == [(3,)]


def test_a_uuid_does_not_come_back_after_a_downgrade(engine: sa.Engine) -> None:
    seen = set()
    for _ in range(2):
        with operations(engine) as op:
            op.add_version_column("orders", kind="uuid")
        seen.add(rows(engine, "SELECT DISTINCT version_id FROM orders")[0][0])
        with operations(engine) as op:
            op.drop_version_column("orders", kind="uuid")
    assert len(seen) == 2


@on_postgresql
def test_names_and_schemas_are_quoted(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "my shop"')
        connection.exec_driver_sql("""CREATE TABLE "my shop"."it's: %% an order" (id INTEGER PRIMARY KEY)""")
        connection.exec_driver_sql("""INSERT INTO "my shop"."it's: %% an order" VALUES (1)""")
    names = {"table_name": "it's: % an order", "column_name": "lock:version", "schema": "my shop"}
    with operations(engine) as op:
        op.add_version_column(**names)
    assert not column_of(engine, "lock:version", names["table_name"], "my shop")["nullable"]
    with operations(engine) as op:
        op.drop_version_column(**names)
    # With a back-fill, which says its SQL by itself.
    context = MigrationContext.configure(engine.connect())
    with context.connection, context.begin_transaction():
        Operations(context).add_version_column(**names, backfill="id % 7 + '2'::int")
    assert rows(engine, """SELECT "lock:version" FROM "my shop"."it's: %% an order" """) == [(3,)]


# Back-fill


@contextmanager
def migrating(engine: sa.Engine) -> Iterator[Any]:
    """Operations whose context owns the transaction, as in an env.py."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            yield Operations(context)
        if connection.in_transaction():
            connection.commit()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("kind", ["text", "expression"])
def test_a_back_fill_gives_each_row_its_own_value(kind: str, keep: bool, engine: sa.Engine) -> None:
    expression = "NULLIF(id * 10, 20)" if kind == "text" else sa.func.nullif(sa.column("id") * 10, 20)
    with migrating(engine) as op:
        op.add_version_column("orders", backfill=expression, batch_size=2, keep_default=keep)
    assert rows(engine, "SELECT id, version_id FROM orders ORDER BY id") == [(1, 10), (2, 1), (3, 30)]
    column = column_of(engine, "version_id")
    assert not column["nullable"]
    assert (column["default"] is not None) is keep
    if engine.dialect.name == "postgresql":
        assert inspect(engine).get_check_constraints("orders") == []


@on_postgresql
def test_a_back_fill_goes_through_the_partitions(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE events (id INTEGER) PARTITION BY RANGE (id)")
        connection.exec_driver_sql("CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (500)")
        connection.exec_driver_sql("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (500) TO (1000)")
        connection.exec_driver_sql("INSERT INTO events SELECT generate_series(0, 999)")
    with migrating(engine) as op:
        op.add_version_column("events", backfill="id", batch_size=100)
    assert rows(engine, "SELECT count(*) FROM events WHERE version_id = id") == [(1000,)]


@on_postgresql
def test_a_back_fill_that_was_interrupted_is_taken_up_again(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO orders SELECT i, 'x' FROM generate_series(4, 1000) i")
    # A row that cannot be filled, somewhere behind the first batches.
    with pytest.raises(sa.exc.DataError), migrating(engine) as op:
        op.add_version_column("orders", backfill="100 / (id - 900)", batch_size=1)
    assert rows(engine, "SELECT count(*) FROM orders WHERE version_id IS NULL")[0][0] in range(1, 1000)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM orders WHERE id = 900")

    with migrating(engine) as op:
        op.add_version_column("orders", backfill="100 / (id - 900)", batch_size=1)
    assert rows(engine, "SELECT count(*) FROM orders WHERE version_id <> 100 / (id - 900)") == [(0,)]
    assert not column_of(engine, "version_id")["nullable"]


@on_postgresql
def test_a_back_fill_is_refused_in_a_transaction_of_the_callers(engine: sa.Engine) -> None:
    with pytest.raises(MigrationError, match="which commits batch by batch"), operations(engine) as op:
        op.add_version_column("orders", backfill="id")
    assert column_of(engine, "version_id") is None


@on_postgresql
def test_a_back_fill_gives_its_rows_free_while_one_of_them_is_locked(engine: sa.Engine) -> None:
    def until(query: str) -> None:
        ends = time.monotonic() + 30
        while not rows(engine, query)[0][0]:
            assert time.monotonic() < ends, f"never became true: {query}"

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE tries MINVALUE 0")
        connection.exec_driver_sql(
            "CREATE FUNCTION slow(id integer) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN IF id = 1 THEN "
            "PERFORM nextval('tries'); PERFORM pg_advisory_xact_lock(1); END IF; RETURN id; END $$"
        )
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"sessionkit_lock_timeout": 0.05})
                with context.begin_transaction():
                    Operations(context).add_version_column("orders", backfill="slow(id)")
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failures.append(error)

    with engine.connect() as gate, engine.connect() as holder, engine.connect() as other:
        gate.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        thread = threading.Thread(target=migrate)
        thread.start()
        until("SELECT last_value > 0 FROM tries")  # the column is there, and a batch at work
        holder.exec_driver_sql("SELECT 1 FROM orders WHERE id = 2 FOR UPDATE")
        gate.rollback()
        until(f"SELECT last_value > {rows(engine, 'SELECT last_value FROM tries')[0][0] + 2} FROM tries")
        # A row of the same batch can be changed: it is waited for no longer than the batch's own wait.
        other.exec_driver_sql("UPDATE orders SET name = 'new' WHERE id = 1")
        other.commit()
        holder.rollback()
        thread.join(60)
    assert not failures
    assert rows(engine, "SELECT id, name, version_id FROM orders ORDER BY id") == [
        (1, "new", 1),
        (2, "b", 2),
        (3, "c", 3),
    ]


# Offline


@on_postgresql
@pytest.mark.parametrize("backfill", ["", ", backfill='id * 10', batch_size=2"], ids=["constant", "backfill"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("driver", ["asyncpg"])
def test_psql_runs_the_sql(backfill: str, keep: bool, driver: str, make: Callable[..., Project]) -> None:
    project = make()
    project.ini.write_text(project.ini.read_text().replace("+psycopg:", f"+{driver}:"))
    project.migration(
        "first",
        "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True))\nop.execute('INSERT INTO orders VALUES (1), (2), (3)')",
    )
    for kind in KINDS:
        more = backfill if kind == "count" else ""
        project.migration(
            f"add_{kind}",
            f"op.add_version_column('orders', 'v_{kind}', kind={kind!r}, keep_default={keep}{more})",
            f"op.drop_version_column('orders', 'v_{kind}', kind={kind!r})",
        )
    psql(project.url, project.run("upgrade", "head", sql=True))
    columns = {c["name"]: c for c in inspect(project.engine()).get_columns("orders")}
    assert set(columns) == {"id", "v_count", "v_timestamp", "v_uuid"}
    assert not any(column["nullable"] for column in columns.values())
    assert [columns[f"v_{kind}"]["default"] is not None for kind in KINDS] == [keep] * 3
    assert project.rows("SELECT v_count FROM orders ORDER BY id") == [(10,), (20,), (30,)] if backfill else [(1,)] * 3
    assert project.rows("SELECT version_num FROM alembic_version") == [("add_uuid",)]
    project.run("upgrade", "head")  # finds nothing to do

    psql(project.url, project.run("downgrade", "add_uuid:first", sql=True))
    assert {c["name"] for c in inspect(project.engine()).get_columns("orders")} == {"id"}


@on_sqlite
def test_sqlite_runs_the_sql(make: Callable[..., Project]) -> None:
    import sqlite3

    project = make()
    project.migration(
        "first",
        "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True))\nop.execute('INSERT INTO orders VALUES (1)')",
    )
    project.migration(
        "second", "\n".join(f"op.add_version_column('orders', 'v_{kind}', kind={kind!r})" for kind in KINDS)
    )
    script = project.run("upgrade", "head", sql=True)
    with sqlite3.connect(project.url.database or "") as connection:
        connection.executescript(script)
    connection.close()
    assert not any(c["nullable"] for c in inspect(project.engine()).get_columns("orders") if c["name"] != "id")
    assert project.rows("SELECT v_count FROM orders") == [(1,)]


@on_sqlite
def test_offline_sqlite_cannot_drop_a_default_without_the_tables_definition(make: Callable[..., Project]) -> None:
    project = make()
    project.migration("first", "op.add_version_column('orders', keep_default=False)")
    with pytest.raises(MigrationError, match="can only drop a default by changing the table's definition"):
        project.run("upgrade", "head", sql=True)


# What cannot be


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"kind": "xmin"}, "XminVersioned uses the system column xmin"),
        ({"kind": "counter"}, "use one of 'count', 'timestamp', 'uuid'"),
        ({"table_name": ""}, "table_name='' was given"),
        ({"column_name": 7}, "column_name=7 was given"),
        ({"keep_default": "yes"}, "keep_default='yes' was given"),
        ({"backfill": 1}, "backfill=1 was given"),
        ({"batch_size": 0}, "batch_size=0 was given"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_anything_is_done(
    arguments: dict[str, Any], told: str, engine: sa.Engine
) -> None:
    with pytest.raises(MigrationError, match=told), operations(engine) as op:
        op.add_version_column(**{"table_name": "orders", **arguments})
    assert len(inspect(engine).get_columns("orders")) == 2


@pytest.mark.parametrize("schema", [None, "keys"])
def test_the_table_of_once_is_made_and_dropped(engine: sa.Engine, schema: str | None) -> None:
    if schema is not None:
        if engine.dialect.name == "sqlite":
            return
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA keys")
    with operations(engine) as op:
        op.create_once_table(schema=schema)
    made = inspect(engine)
    expected = commits.once_table(sa.MetaData())
    columns = {column["name"]: column for column in made.get_columns("sessionkit_once", schema=schema)}
    assert list(columns) == [column.name for column in expected.columns]
    assert [columns[column.name]["nullable"] for column in expected.columns] == [c.nullable for c in expected.columns]
    assert made.get_pk_constraint("sessionkit_once", schema=schema)["constrained_columns"] == ["key", "kind"]
    assert [index["column_names"] for index in made.get_indexes("sessionkit_once", schema=schema)] == [["expires_at"]]
    if schema is None:
        factory = sessionmaker(engine)
        assert factory.scope(once="key").run(lambda session: 7) == 7
        assert factory.scope(once="key").run(lambda session: 8) == 7
        commits.create_table(engine)  # finds it
    with operations(engine) as op:
        op.drop_once_table(schema=schema)
    assert not inspect(engine).has_table("sessionkit_once", schema=schema)
