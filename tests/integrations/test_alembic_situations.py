"""Batches, and situations that projects have reported to Alembic: each operation does all that it was asked, or nothing."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sessionkit.integrations.alembic import MigrationError
from tests.integrations.alembic_project import Project, empty, projects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = [pytest.mark.own_database, pytest.mark.doors("sqlite-sync", "postgresql-sync")]
on_postgresql = pytest.mark.doors("postgresql-sync")
on_sqlite = pytest.mark.doors("sqlite-sync")

make = pytest.fixture(name="make")(projects)


@pytest.fixture
def engine(doors: Door, tmp_path: Path) -> Iterator[sa.Engine]:
    """An engine that enforces foreign keys, on a database with a table of three rows."""
    engine = create_engine(empty(doors, tmp_path), poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    run(
        engine,
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL)",
        "INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    )
    yield engine
    engine.dispose()


def run(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextmanager
def operations(engine: sa.Engine, **options: Any) -> Iterator[Any]:
    with engine.execution_options(**options).begin() as connection:
        yield Operations(MigrationContext.configure(connection))


def rows(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def columns(engine: sa.Engine, table: str = "orders", **kw: Any) -> list[str]:
    return [column["name"] for column in inspect(engine).get_columns(table, **kw)]


LINES = (
    "CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders (id) ON DELETE CASCADE)",
    "INSERT INTO lines VALUES (1, 1), (2, 2)",
)
TREE = (
    "ALTER TABLE orders ADD COLUMN parent INTEGER REFERENCES orders (id) ON DELETE CASCADE",
    "UPDATE orders SET parent = 1 WHERE id = 2",
)
TRIGGER = ("CREATE TRIGGER t AFTER UPDATE ON orders BEGIN SELECT 1; END",)
OTHERS_TRIGGER = (
    "CREATE TABLE log (id INTEGER)",
    "CREATE TRIGGER t AFTER INSERT ON log BEGIN UPDATE orders SET name = 'x' WHERE id = new.id; END",
)
VIEW = ("CREATE VIEW named AS SELECT name FROM orders",)
EXPRESSION = ("CREATE UNIQUE INDEX ux ON orders (lower(name))",)


# The order of a batch


def test_in_a_batch_each_operation_sees_what_was_written_before_it(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        op = Operations(context)
        with context.begin_transaction(), op.batch_alter_table("orders") as batch_op:
            batch_op.add_version_column()
        with context.begin_transaction(), op.batch_alter_table("orders") as batch_op:
            batch_op.alter_column("version_id", new_column_name="old", existing_type=sa.Integer())
            batch_op.add_version_column(kind="uuid")
            batch_op.alter_column("version_id", new_column_name="lock", existing_type=sa.Uuid())
            batch_op.add_column(sa.Column("n", sa.Integer()))
            batch_op.add_version_column(backfill="coalesce(n, old + 6)", keep_default=False)
            batch_op.drop_version_column("lock", kind="uuid")
            batch_op.drop_column("old")
            batch_op.add_version_column("lock", kind="timestamp")
        connection.commit()
    assert sorted(columns(engine)) == ["id", "lock", "n", "name", "version_id"]
    assert rows(engine, "SELECT id, name, version_id FROM orders ORDER BY id") == [
        (1, "a", 7),
        (2, "b", 7),
        (3, "c", 7),
    ]


@pytest.mark.parametrize("before", [True, False])
def test_a_batch_that_always_copies_copies_what_was_added(before: bool, engine: sa.Engine) -> None:
    with operations(engine) as op, op.batch_alter_table("orders", recreate="always") as batch_op:
        if before:
            batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))
        batch_op.add_version_column(keep_default=False)
        batch_op.drop_version_column()
        batch_op.add_version_column(kind="uuid")
    assert columns(engine) == ["id", "name", "version_id"]
    assert len(rows(engine, "SELECT version_id FROM orders WHERE version_id IS NOT NULL")) == 3


@on_sqlite
def test_an_operation_that_has_a_batch_for_itself_copies_nothing(engine: sa.Engine) -> None:
    run(engine, *LINES, *TRIGGER, *VIEW)
    with operations(engine) as op:
        for kind in ("count", "timestamp", "uuid"):
            with op.batch_alter_table("orders") as batch_op:
                batch_op.add_version_column(kind=kind, keep_default=False)
            with op.batch_alter_table("orders") as batch_op:
                batch_op.drop_version_column(kind=kind)
    assert rows(engine, "SELECT * FROM lines") == [(1, 1), (2, 2)]
    assert rows(engine, "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')") == [(2,)]


# What a copy would lose


@on_sqlite
@pytest.mark.parametrize(
    ("there", "told"),
    [
        (LINES, "rows of lines refer to it"),
        (TREE, "rows of orders refer to it"),
        (TRIGGER, "its trigger t would be lost"),
        (OTHERS_TRIGGER, "the trigger t refers to it"),
        (VIEW, "the view named refers to it"),
        (EXPRESSION, "its index ux is over an expression"),
    ],
)
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.parametrize("first", ["add", "drop", "last", "copy_from"])
def test_a_copy_that_would_lose_something_is_refused_before_it_begins(
    first: str, there: tuple[str, ...], told: str, engine: sa.Engine
) -> None:
    if first == "copy_from" and there is TREE:
        return  # the definition below does not know of the key
    run(engine, *there)
    if first == "drop":
        run(engine, "ALTER TABLE orders ADD COLUMN version_id INTEGER DEFAULT 1 NOT NULL")
    before = rows(engine, "SELECT name, sql FROM sqlite_master ORDER BY 1"), rows(engine, "SELECT * FROM orders")
    definition = sa.Table(
        "orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
    )
    given = {"copy_from": definition} if first == "copy_from" else {}
    with pytest.raises(MigrationError, match=told), operations(engine) as op:
        with op.batch_alter_table("orders", **given) as batch_op:
            if first == "add":
                batch_op.add_version_column()
            elif first == "drop":
                batch_op.drop_version_column()
            batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))
            if first not in ("add", "drop"):
                batch_op.add_version_column(backfill=None if given else "id")
    if "lines" in told:
        assert rows(engine, "SELECT * FROM lines") == [(1, 1), (2, 2)]
    after = rows(engine, "SELECT name, sql FROM sqlite_master ORDER BY 1"), rows(engine, "SELECT * FROM orders")
    assert after == before
    assert not rows(engine, "SELECT name FROM sqlite_master WHERE name LIKE '_alembic%'")


@on_sqlite
def test_a_copy_that_loses_nothing_is_made(engine: sa.Engine) -> None:
    run(engine, LINES[0], "CREATE VIEW reordered_orders AS SELECT id FROM lines")
    with operations(engine) as op, op.batch_alter_table("orders") as batch_op:
        batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))
        batch_op.add_version_column(keep_default=False)
    assert rows(engine, "SELECT * FROM orders") == [(1, "a", 1), (2, "b", 1), (3, "c", 1)]


@on_sqlite
def test_a_second_copy_without_the_options_of_the_first_is_refused(engine: sa.Engine) -> None:
    run(engine, "ALTER TABLE orders ADD COLUMN version_id INTEGER DEFAULT 1 NOT NULL")
    check = sa.CheckConstraint("name <> ''", name="named")
    with pytest.raises(MigrationError, match="put it first in another op.batch_alter_table"), operations(engine) as op:
        with op.batch_alter_table("orders", table_args=(check,)) as batch_op:
            batch_op.drop_version_column()
            batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))
            batch_op.add_version_column(backfill="id")
    # Without one before it, the copy is made once, as it was asked.
    with operations(engine) as op, op.batch_alter_table("orders", table_args=(check,)) as batch_op:
        batch_op.alter_column("name", type_=sa.String(30), existing_type=sa.String(20))
        batch_op.add_version_column("lock")
    assert [each["name"] for each in inspect(engine).get_check_constraints("orders")] == ["named"]


# No half of an operation


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in batch"])
def test_a_back_fill_that_fails_leaves_no_column(batch: bool, make: Callable[..., Project]) -> None:
    project = make()
    env = (
        "from alembic import context\nfrom sqlalchemy import NullPool, create_engine\n"
        "engine = create_engine(context.config.get_main_option('sqlalchemy.url'), poolclass=NullPool)\n"
        "with engine.connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
    )
    project.env.write_text(env)
    project.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)", "INSERT INTO orders VALUES (1), (2)")
    if project.url.get_backend_name() == "sqlite":
        project.execute("CREATE TRIGGER t AFTER UPDATE ON orders BEGIN SELECT 1; END")
    operation = "add_version_column({}backfill=sa.text(\"json_extract('x', 'y')\") , keep_default=False)"
    if batch:
        body = "with op.batch_alter_table('orders') as batch_op:\n    batch_op." + operation.format("")
    else:
        body = "op." + operation.format("'orders', ")
    project.migration("first", body)
    with pytest.raises(DBAPIError):
        project.run("upgrade", "head")
    if project.url.get_backend_name() == "sqlite":
        assert columns(project.engine()) == ["id"]
        assert project.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'") == [("t",)]
    assert project.rows("SELECT * FROM alembic_version") == []


@on_sqlite
@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
@pytest.mark.parametrize("begun", [True, False], ids=["in a transaction", "before any"])
@pytest.mark.parametrize("operation", ["add", "drop"])
def test_a_batch_whose_copy_fails_leaves_nothing_of_the_batch(
    operation: str, begun: bool, level: str | None, engine: sa.Engine
) -> None:
    run(engine, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT, old INTEGER DEFAULT 1 NOT NULL)")
    run(engine, "INSERT INTO notes (body) VALUES ('a'), (NULL)")
    before = rows(engine, "SELECT name, sql FROM sqlite_master"), rows(engine, "SELECT * FROM notes")
    with engine.connect() as connection:
        connection = connection.execution_options(**{"isolation_level": level} if level else {})
        if begun:
            connection.begin()
        op = Operations(MigrationContext.configure(connection))
        with pytest.raises(IntegrityError, match="NOT NULL"), op.batch_alter_table("notes") as batch_op:
            if operation == "add":
                batch_op.add_version_column(keep_default=False)
            else:
                batch_op.drop_version_column("old")
            batch_op.alter_column("body", nullable=False, existing_type=sa.Text())
        connection.commit()
    assert (rows(engine, "SELECT name, sql FROM sqlite_master"), rows(engine, "SELECT * FROM notes")) == before


@on_sqlite
def test_a_batch_that_is_left_by_an_error_is_undone_with_the_transaction(engine: sa.Engine) -> None:
    with pytest.raises(LookupError), operations(engine) as op, op.batch_alter_table("orders") as batch_op:
        batch_op.add_version_column(keep_default=False)
        raise LookupError
    assert columns(engine) == ["id", "name"]


@on_sqlite
def test_a_server_that_takes_no_change_of_a_definition_leaves_nothing_behind(engine: sa.Engine) -> None:
    import sqlite3

    run(engine, *TRIGGER)
    before = rows(engine, "SELECT name, sql FROM sqlite_master")

    def forbid(action: int, what: str | None, *_: Any) -> int:
        return (
            sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_PRAGMA and what == "writable_schema" else sqlite3.SQLITE_OK
        )

    sa.event.listen(engine, "connect", lambda connection, _: connection.set_authorizer(forbid))
    with pytest.raises(MigrationError, match="nothing was changed; use keep_default=True"), operations(engine) as op:
        op.add_version_column("orders", keep_default=False)
    assert rows(engine, "SELECT name, sql FROM sqlite_master") == before


@on_sqlite
@pytest.mark.parametrize(
    "there",
    [
        "CREATE INDEX ix ON orders (version_id)",
        "CREATE VIEW v AS SELECT version_id FROM orders",
        "CREATE TRIGGER t AFTER UPDATE ON orders BEGIN SELECT new.version_id; END",
    ],
)
def test_a_column_that_something_speaks_of_is_not_dropped(there: str, engine: sa.Engine) -> None:
    with operations(engine) as op:
        op.add_version_column("orders")
    run(engine, there)
    before = rows(engine, "SELECT name, sql FROM sqlite_master")
    with pytest.raises(OperationalError, match="after drop column"), operations(engine) as op:
        op.drop_version_column("orders")
    assert rows(engine, "SELECT name, sql FROM sqlite_master") == before


# As reported to Alembic, and by projects that use it


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["count", "timestamp", "uuid"])
def test_a_table_with_computed_columns_gets_a_version(kind: str, keep: bool, engine: sa.Engine) -> None:
    virtual = ", c INT AS (a + 1)" if engine.dialect.name == "sqlite" else ""
    stored = "b INT GENERATED ALWAYS AS (a * 2) STORED"
    run(engine, f"CREATE TABLE sums (id INTEGER PRIMARY KEY, a INT, {stored}{virtual})")
    run(engine, "INSERT INTO sums (id, a) VALUES (1, 1), (2, 2)")
    before = rows(engine, "SELECT * FROM sums ORDER BY 1")
    with operations(engine) as op:
        op.add_version_column("sums", kind=kind, keep_default=keep)
    assert [row[:-1] for row in rows(engine, "SELECT * FROM sums ORDER BY 1")] == before
    assert all(row[-1] is not None for row in rows(engine, "SELECT * FROM sums"))
    with operations(engine) as op:
        op.drop_version_column("sums", kind=kind)
    assert rows(engine, "SELECT * FROM sums ORDER BY 1") == before


@on_sqlite
def test_an_index_of_words_that_triggers_keep_is_not_written_to_and_goes_on(engine: sa.Engine) -> None:
    run(
        engine,
        "CREATE VIRTUAL TABLE words USING fts5 (name, content='orders', content_rowid='id')",
        "INSERT INTO words (words) VALUES ('rebuild')",
        "CREATE TRIGGER changed AFTER UPDATE ON orders BEGIN"
        " INSERT INTO words (words, rowid, name) VALUES ('delete', old.id, old.name);"
        " INSERT INTO words (rowid, name) VALUES (new.id, new.name); END",
    )
    with operations(engine) as op:
        op.add_version_column("orders", backfill="id + 1", keep_default=False)
    assert rows(engine, "SELECT rowid FROM words WHERE words MATCH 'b'") == [(2,)]
    run(engine, "UPDATE orders SET name = 'word' WHERE id = 2", "INSERT INTO words (words) VALUES ('integrity-check')")
    assert rows(engine, "SELECT rowid FROM words WHERE words MATCH 'word'") == [(2,)]


@on_sqlite
@pytest.mark.parametrize(
    "definition",
    [
        """CREATE TABLE "or'd, ers" ( -- of 'today'
          id INTEGER PRIMARY KEY, /* a "key", and its ) */
          [na me] VARCHAR(20) DEFAULT ('a,b)') , -- with a ) in it
          CHECK ([na me] <> 'version_id INTEGER, ')
        )""",
        """CREATE TABLE "or'd, ers" (id INTEGER PRIMARY KEY, n INT -- the last one\n)""",
        """CREATE TABLE "or'd, ers" (id INTEGER PRIMARY KEY, n INT) -- and after it""",
        """CREATE TABLE "or'd, ers" (id INTEGER, "n" INT DEFAULT -1, PRIMARY KEY (id DESC)) WITHOUT ROWID""",
    ],
)
@pytest.mark.parametrize("kind", ["count", "timestamp", "uuid"])
def test_a_definition_is_changed_however_it_is_written(kind: str, definition: str, engine: sa.Engine) -> None:
    run(engine, definition, """INSERT INTO "or'd, ers" (id) VALUES (1)""")
    before = rows(engine, """SELECT * FROM "or'd, ers\"""")
    with operations(engine) as op:
        op.add_version_column("or'd, ers", kind=kind, keep_default=False)
        op.drop_version_column("or'd, ers", kind=kind)
        op.add_version_column("or'd, ers", kind=kind, keep_default=False)
    assert [row[:-1] for row in rows(engine, """SELECT * FROM "or'd, ers\"""")] == before
    added = inspect(engine).get_columns("or'd, ers")[-1]
    assert (added["nullable"], added["default"]) == (False, None)


def test_two_tables_that_refer_to_each_other_both_get_versions(engine: sa.Engine) -> None:
    run(
        engine,
        "CREATE TABLE a (id INTEGER PRIMARY KEY, b INTEGER)",
        "CREATE TABLE b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO a VALUES (1, 1)",
        "INSERT INTO b VALUES (1, 1)",
    )
    if engine.dialect.name == "postgresql":
        run(engine, "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b (id) DEFERRABLE INITIALLY DEFERRED")
    with operations(engine) as op:
        op.add_version_column("a", keep_default=False)
        op.add_version_column("b", kind="uuid", keep_default=False)
        op.add_version_column("a", column_name="seen", kind="timestamp", backfill=None)
    assert (len(rows(engine, "SELECT * FROM a JOIN b ON b.a = a.id")), columns(engine, "a")[2:]) == (
        1,
        ["version_id", "seen"],
    )


def test_a_view_that_is_written_through_goes_on(engine: sa.Engine) -> None:
    run(engine, "CREATE VIEW named AS SELECT id, name FROM orders")
    if engine.dialect.name == "sqlite":
        run(
            engine,
            "CREATE TRIGGER through INSTEAD OF UPDATE ON named BEGIN"
            " UPDATE orders SET name = new.name WHERE id = new.id; END",
        )
    with operations(engine) as op:
        op.add_version_column("orders", keep_default=False)
    run(engine, "UPDATE named SET name = 'z' WHERE id = 2")
    assert rows(engine, "SELECT * FROM orders ORDER BY 1") == [(1, "a", 1), (2, "z", 1), (3, "c", 1)]


@on_postgresql
def test_rows_that_a_policy_hides_from_the_migration_are_not_left_without_a_version(
    make: Callable[..., Project],
) -> None:
    project = make()
    role = f"sessionkit_migrator_{os.getpid()}"  # roles belong to the server, which others use
    project.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, tenant TEXT)",
        "INSERT INTO orders VALUES (1, 'a'), (2, 'b')",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE orders FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON orders USING (tenant = 'a')",
        f"CREATE ROLE {role}",
        f"GRANT ALL ON SCHEMA public TO {role}",
        f"ALTER TABLE orders OWNER TO {role}",
    )
    try:
        operation = "op.add_version_column('orders', backfill='id')"
        project.migration("first", f"op.execute('SET ROLE {role}')\n{operation}\nop.execute('RESET ROLE')")
        with pytest.raises(DBAPIError, match="violated by some row|contains null values"):
            project.run("upgrade", "head")
        assert project.rows("SELECT * FROM alembic_version") == []
        project.execute("ALTER TABLE orders NO FORCE ROW LEVEL SECURITY")
        project.run("upgrade", "head")
        assert project.rows("SELECT id, version_id FROM orders ORDER BY 1") == [(1, 1), (2, 2)]
    finally:
        project.execute("DROP TABLE orders", f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@on_postgresql
def test_a_table_that_is_published_and_has_no_key_gets_a_version_as_no_row_is_written(
    make: Callable[..., Project],
) -> None:
    project = make()
    project.execute("CREATE TABLE orders (id INTEGER)", "INSERT INTO orders VALUES (1), (2)")
    project.migration("first", "op.add_version_column('orders')")
    project.execute("CREATE PUBLICATION all_of_it FOR TABLE orders")
    project.run("upgrade", "head")
    assert project.rows("SELECT id, version_id FROM orders ORDER BY 1") == [(1, 1), (2, 1)]


def test_a_constraint_named_by_convention_is_dropped_before_the_column(engine: sa.Engine) -> None:
    run(
        engine,
        "CREATE TABLE plain (id INTEGER PRIMARY KEY, v INTEGER DEFAULT 1 NOT NULL, CONSTRAINT uq_plain_v UNIQUE (id, v))",
    )
    run(engine, "INSERT INTO plain (id) VALUES (1)")
    convention = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
    with operations(engine) as op, op.batch_alter_table("plain", naming_convention=convention) as batch_op:
        batch_op.drop_constraint("uq_plain_v", type_="unique")
        batch_op.drop_version_column("v")
        batch_op.add_version_column(kind="uuid", keep_default=False)
    assert columns(engine, "plain") == ["id", "version_id"]
    assert len(rows(engine, "SELECT * FROM plain")) == 1


@pytest.mark.parametrize("schema", [None, "shop"])
def test_a_map_of_schemas_which_alter_table_does_not_follow_is_refused(schema: str | None, engine: sa.Engine) -> None:
    with operations(engine, schema_translate_map={schema: "tenant"}) as op:
        for name in ("add", "drop", "adopt", "release"):
            operation = getattr(op, f"{name}_version_column")
            with pytest.raises(MigrationError, match="use schema='tenant'"):
                operation("orders", kind="timestamp", schema=schema)
    assert columns(engine) == ["id", "name"]
    with operations(engine, schema_translate_map={"other": "tenant"}) as op:
        op.add_version_column("orders")
    assert columns(engine) == ["id", "name", "version_id"]


@on_sqlite
def test_an_attached_database_is_a_schema(engine: sa.Engine, tmp_path: Path) -> None:
    file = str(tmp_path / "aux.db")
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute(f"ATTACH '{file}' AS aux"))
    run(
        engine,
        "CREATE TABLE aux.orders (id INTEGER PRIMARY KEY)",
        "CREATE TABLE aux.lines (id INTEGER REFERENCES orders (id) ON DELETE CASCADE)",
        "CREATE TRIGGER aux.t AFTER UPDATE ON orders BEGIN DELETE FROM lines; END",
        "INSERT INTO aux.orders VALUES (1)",
        "INSERT INTO aux.lines VALUES (1)",
    )
    with operations(engine) as op:
        op.add_version_column("orders", schema="aux", keep_default=False)
        with op.batch_alter_table("orders", schema="aux") as batch_op:
            batch_op.drop_version_column()
            batch_op.add_version_column(kind="uuid", keep_default=False)
    assert columns(engine) == ["id", "name"]
    assert len(rows(engine, "SELECT * FROM aux.lines")) == 1
    assert rows(engine, "SELECT name FROM aux.sqlite_master WHERE type = 'trigger'") == [("t",)]


@on_sqlite
@pytest.mark.parametrize("table", ["ORDERS", "Orders"])
def test_names_are_compared_as_sqlite_compares_them(table: str, engine: sa.Engine) -> None:
    run(engine, *LINES, *TRIGGER)
    with operations(engine) as op:
        op.add_version_column(table, "Lock", keep_default=False)
        op.drop_version_column(table, "LOCK")
        op.add_version_column(table, "lock", backfill="id")
    assert columns(engine) == ["id", "name", "lock"]
    assert rows(engine, "SELECT count(*) FROM lines") == [(2,)]


@on_sqlite
def test_a_strict_table_gets_types_that_it_takes(engine: sa.Engine) -> None:
    run(engine, "CREATE TABLE strict_ones (id INTEGER PRIMARY KEY) STRICT", "INSERT INTO strict_ones VALUES (1)")
    with operations(engine) as op:
        for kind in ("count", "timestamp", "uuid"):
            op.add_version_column("strict_ones", kind, kind=kind, keep_default=False)
    assert [type(value) for value in rows(engine, "SELECT * FROM strict_ones")[0]] == [int, int, str, str]


@on_sqlite
def test_a_table_that_counts_its_keys_goes_on_counting(engine: sa.Engine) -> None:
    run(
        engine,
        "CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER)",
        "INSERT INTO counted (n) VALUES (1), (2)",
        "DELETE FROM counted WHERE id = 2",
    )
    with operations(engine) as op:
        op.add_version_column("counted", keep_default=False)
    run(engine, "INSERT INTO counted (n, version_id) VALUES (3, 1)")
    assert rows(engine, "SELECT max(id) FROM counted") == [(3,)]


def test_a_table_may_be_made_renamed_and_versioned_in_one_migration(engine: sa.Engine) -> None:
    with operations(engine) as op:
        op.create_table("news", sa.Column("id", sa.Integer, primary_key=True))
        op.execute("INSERT INTO news VALUES (1)")
        op.add_version_column("news", keep_default=False)
        op.rename_table("news", "olds")
        op.drop_version_column("olds")
        op.add_version_column("olds", kind="timestamp", keep_default=False)
        op.drop_table("orders")
    assert columns(engine, "olds") == ["id", "updated_at"]
    assert len(rows(engine, "SELECT * FROM olds")) == 1


def test_a_connection_that_commits_each_statement_is_not_left_with_half(engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":
        run(engine, *LINES, *TRIGGER)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        op = Operations(MigrationContext.configure(connection))
        op.add_version_column("orders", keep_default=False)
        if engine.dialect.name == "sqlite":
            with pytest.raises(DBAPIError):
                op.add_version_column("orders", "lock", backfill="json_extract('x', 'y')", keep_default=False)
    assert columns(engine) == ["id", "name", "version_id"]


@on_sqlite
def test_the_leftover_of_a_copy_that_failed_is_not_in_the_way(engine: sa.Engine) -> None:
    run(engine, "CREATE TABLE _alembic_tmp_orders (id INTEGER)")
    with operations(engine) as op, op.batch_alter_table("orders") as batch_op:
        batch_op.add_version_column(keep_default=False)
    assert columns(engine) == ["id", "name", "version_id"]


@on_sqlite
def test_a_batch_of_drops_and_adds_is_written_as_sql(make: Callable[..., Project]) -> None:
    import sqlite3

    project = make()
    project.migration(
        "first",
        """
        op.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, version_id INTEGER DEFAULT 1 NOT NULL)")
        op.execute("INSERT INTO orders (id) VALUES (1)")
        with op.batch_alter_table("orders") as batch_op:
            batch_op.drop_version_column()
            batch_op.add_version_column(kind="uuid")
        """,
    )
    script = project.run("upgrade", "head", sql=True)
    with sqlite3.connect(project.url.database or "") as connection:
        connection.executescript(script)
    connection.close()
    assert len(project.rows("SELECT version_id FROM orders")[0][0]) == 32


@on_postgresql
def test_the_tables_that_inherit_a_table_follow_it(engine: sa.Engine) -> None:
    run(engine, "CREATE TABLE special (extra INTEGER) INHERITS (orders)", "INSERT INTO special VALUES (9, 'z', 1)")
    with operations(engine) as op:
        op.add_version_column("orders", keep_default=False)
        op.drop_version_column("orders")
        op.add_version_column("orders", kind="uuid")
    assert rows(engine, "SELECT count(*), count(version_id) FROM orders") == [(4, 4)]


def test_an_async_driver_does_the_same(make: Callable[..., Project]) -> None:
    project = make()
    drivers = project.ini.read_text().replace("+pysqlite:", "+aiosqlite:").replace("+psycopg:", "+asyncpg:")
    project.ini.write_text(drivers)
    project.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY)",
        "INSERT INTO orders VALUES (1)",
        "CREATE TABLE lines (id INTEGER REFERENCES orders (id) ON DELETE CASCADE)",
        "INSERT INTO lines VALUES (1)",
    )
    project.migration("first", "op.add_version_column('orders', keep_default=False, backfill='id * 5')")
    project.run("upgrade", "head")
    assert project.rows("SELECT version_id FROM orders") == [(5,)]
    assert project.rows("SELECT * FROM lines") == [(1,)]
