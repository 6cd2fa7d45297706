"""Tables with a past: rows, children, indexes, checks, triggers and views, up, down and up again; not one row is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from tests.integrations.alembic_project import Project, projects

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync")
on_sqlite = pytest.mark.doors("sqlite-sync")

make = pytest.fixture(name="make")(projects)

ENGINE = """
from alembic import context
from sqlalchemy import create_engine, event
engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
if engine.dialect.name == "sqlite":
    @event.listens_for(engine, "connect")
    def enforce(connection, record):
        connection.execute("PRAGMA foreign_keys={keys}")
"""
ENVS = {
    "own": """
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
""",
    "ours": """
from sessionkit.integrations.alembic import run_migrations
run_migrations(None, engine=engine)
engine.dispose()
""",
}


@dataclass(frozen=True)
class History:
    """What was there, and the migration.

    Attributes:
        tables: SQL of what was there.
        up: the migration; down: back again.
        sqlite: SQL that only SQLite knows; postgresql: only PostgreSQL.
    """

    tables: list[str]
    up: str
    down: str
    sqlite: list[str] = field(default_factory=list)
    postgresql: list[str] = field(default_factory=list)


ORDERS = [
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL)",
    "INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')",
]
LINES = [
    "CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE)",
    "INSERT INTO lines VALUES (1, 1), (2, 1), (3, 3)",
]
SEEN_SQLITE = [
    "CREATE TABLE seen (what VARCHAR(20), id INTEGER)",
    "CREATE TRIGGER changed AFTER UPDATE ON orders BEGIN INSERT INTO seen VALUES ('changed', new.id); END",
    "CREATE TRIGGER made AFTER INSERT ON orders WHEN new.name <> ';' BEGIN INSERT INTO seen VALUES ('made', new.id); END",
    "CREATE TRIGGER kept BEFORE DELETE ON orders BEGIN SELECT raise(ABORT, 'orders are kept'); END",
]
SEEN_POSTGRESQL = [
    "CREATE TABLE seen (what VARCHAR(20), id INTEGER)",
    "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN INSERT INTO seen VALUES (TG_OP, new.id); RETURN new; END $$",
    "CREATE TRIGGER made AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION see()",
]
FULL = "keep_default=False"

HISTORIES = {
    "an order has lines, which go with it": History(
        [*ORDERS, *LINES], f"op.add_version_column('orders', {FULL})", "op.drop_version_column('orders')"
    ),
    "a tree refers to itself": History(
        [
            "CREATE TABLE nodes (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES nodes (id) ON DELETE CASCADE)",
            "INSERT INTO nodes VALUES (1, NULL), (2, 1), (3, 2), (4, 3)",
        ],
        f"op.add_version_column('nodes', kind='uuid', {FULL})",
        "op.drop_version_column('nodes', kind='uuid')",
    ),
    "three tables in one migration, one of them the child of both others": History(
        [
            *ORDERS,
            "CREATE TABLE people (id INTEGER PRIMARY KEY)",
            "INSERT INTO people VALUES (1), (2)",
            "CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders (id) ON DELETE SET NULL, "
            "person_id INTEGER DEFAULT 1 REFERENCES people (id) ON DELETE SET DEFAULT)",
            "INSERT INTO lines VALUES (1, 1, 2), (2, 3, 2)",
        ],
        f"""
        op.add_version_column('orders', {FULL})
        op.add_version_column('people', kind='timestamp', {FULL})
        op.create_index('ix_lines', 'lines', ['order_id'])
        op.add_version_column('lines', kind='uuid', {FULL})
        """,
        """
        op.drop_version_column('lines', kind='uuid')
        op.drop_index('ix_lines', 'lines')
        op.drop_version_column('people', kind='timestamp')
        op.drop_version_column('orders')
        """,
    ),
    "triggers keep a log": History(
        [*ORDERS, *LINES],
        f"op.add_version_column('orders', kind='timestamp', {FULL})",
        "op.drop_version_column('orders', kind='timestamp')",
        sqlite=SEEN_SQLITE,
        postgresql=SEEN_POSTGRESQL,
    ),
    "views over views": History(
        [
            *ORDERS,
            *LINES,
            "CREATE VIEW named AS SELECT id, name FROM orders",
            "CREATE VIEW busy AS SELECT named.id, count(*) AS n FROM named JOIN lines ON order_id = named.id GROUP BY named.id",
        ],
        f"op.add_version_column('orders', 'lock', {FULL})",
        "op.drop_version_column('orders', 'lock')",
        sqlite=["CREATE TRIGGER named_in INSTEAD OF DELETE ON named BEGIN DELETE FROM orders WHERE id = old.id; END"],
    ),
    "indexes and checks of every kind": History(
        [
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL DEFAULT ')', n INTEGER "
            "CHECK (n > 0), CHECK (n < 1000), CONSTRAINT \"the (name\" CHECK (name <> ''), UNIQUE (name, n))",
            "CREATE UNIQUE INDEX part ON orders (name) WHERE n IS NOT NULL",
            "CREATE INDEX lowered ON orders (lower(name), n DESC)",
            "INSERT INTO orders VALUES (1, 'a', 1), (2, 'b', NULL), (3, 'b', 3)",
        ],
        f"op.add_version_column('orders', {FULL}, backfill='n * 10')"
        "\nop.create_index('ix_version', 'orders', ['version_id'])",
        "op.drop_index('ix_version', 'orders')\nop.drop_version_column('orders')",
    ),
    "a key of two columns, and one that is computed": History(
        [],
        f"op.add_version_column('stock', kind='uuid', {FULL})",
        "op.drop_version_column('stock', kind='uuid')",
        sqlite=[
            "CREATE TABLE stock (a INTEGER, b TEXT COLLATE NOCASE, twice INTEGER AS (a * 2) STORED, once INTEGER AS (a), "
            "PRIMARY KEY (a, b)) WITHOUT ROWID",
            "INSERT INTO stock VALUES (1, 'x'), (2, 'X')",
            "CREATE TABLE moves (a INTEGER, b TEXT, FOREIGN KEY (a, b) REFERENCES stock ON DELETE CASCADE)",
            "INSERT INTO moves VALUES (1, 'x'), (2, 'X')",
        ],
        postgresql=[
            "CREATE TABLE stock (a INTEGER, b TEXT, twice INTEGER GENERATED ALWAYS AS (a * 2) STORED, PRIMARY KEY (a, b))",
            "INSERT INTO stock VALUES (1, 'x'), (2, 'X')",
            "CREATE TABLE moves (a INTEGER, b TEXT, FOREIGN KEY (a, b) REFERENCES stock ON DELETE CASCADE)",
            "INSERT INTO moves VALUES (1, 'x'), (2, 'X')",
        ],
    ),
    "from one kind to another, in a batch": History(
        [
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20), version_id INTEGER DEFAULT 1 NOT NULL)",
            "INSERT INTO orders (id, name) VALUES (1, 'a'), (2, 'b'), (3, 'c')",
            *LINES,
            "CREATE VIEW named AS SELECT id, name FROM orders",
        ],
        f"""
        with op.batch_alter_table('orders') as batch_op:
            batch_op.drop_version_column('version_id', kind='count')
            batch_op.add_version_column('version_id', kind='uuid', {FULL})
        """,
        """
        with op.batch_alter_table('orders') as batch_op:
            batch_op.drop_version_column('version_id', kind='uuid')
            batch_op.add_version_column('version_id', kind='count')
        """,
    ),
    "in a batch with what copies nothing": History(
        [*ORDERS, *LINES],
        f"""
        with op.batch_alter_table('orders') as batch_op:
            batch_op.add_column(sa.Column('changed_at', sa.DateTime()))
            batch_op.add_version_column(kind='timestamp', backfill='changed_at', {FULL})
            batch_op.create_index('ix_changed', ['changed_at', 'updated_at'])
        """,
        """
        op.drop_index('ix_changed', 'orders')
        with op.batch_alter_table('orders') as batch_op:
            batch_op.drop_version_column(kind='timestamp')
        op.drop_column('orders', 'changed_at')
        """,
        sqlite=SEEN_SQLITE,
    ),
    "names that want quotes": History(
        [
            'CREATE TABLE "Order, (old" ("the id" INTEGER PRIMARY KEY, "select" VARCHAR(20) DEFAULT \'it\'\'s DEFAULT 1\')',
            'INSERT INTO "Order, (old" ("the id") VALUES (1), (2)',
            'CREATE TABLE "Line" (id INTEGER PRIMARY KEY, o INTEGER REFERENCES "Order, (old" ("the id") ON DELETE CASCADE)',
            'INSERT INTO "Line" VALUES (1, 1), (2, 2)',
        ],
        f"op.add_version_column('Order, (old', 'DEFAULT 1 NOT NULL', {FULL})",
        "op.drop_version_column('Order, (old', 'DEFAULT 1 NOT NULL')",
    ),
    "a time that was kept by hand": History(
        [
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, name VARCHAR(20), updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)",
            "INSERT INTO orders VALUES (1, 'a', '2026-01-31 12:00:00.000000'), (2, 'b', '2026-01-31 12:00:00.123456')",
            "CREATE INDEX ix_orders_at ON orders (updated_at)",
            "CREATE TABLE lines (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE)",
            "INSERT INTO lines VALUES (1, 1), (2, 1), (3, 2)",
            "CREATE VIEW named AS SELECT id, name FROM orders",
        ],
        "op.adopt_version_column('orders')",
        "op.release_version_column('orders')",
        sqlite=SEEN_SQLITE,
        postgresql=SEEN_POSTGRESQL,
    ),
}


class World:
    """A database with a past, and what is seen in it."""

    def __init__(self, project: Project, env: str, keys: str, history: History) -> None:
        self.project = project
        self.sqlite = project.url.get_backend_name() == "sqlite"
        project.env.write_text(ENGINE.format(keys=keys) + ENVS[env])
        project.execute(*history.tables, *(history.sqlite if self.sqlite else history.postgresql))
        if history is HISTORIES["a time that was kept by hand"] and self.sqlite:
            project.execute("DELETE FROM seen")
        project.migration("first", "pass")
        project.run("upgrade", "head")
        project.migration("second", history.up, history.down)
        with project.engine().connect() as connection:
            self.columns = {name: self._columns(connection, name) for name in self._tables(connection)}

    def _tables(self, connection: Any) -> list[str]:
        query = (
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
            if self.sqlite
            else "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        )
        return [name for (name,) in connection.execute(text(query)) if name != "alembic_version"]

    def _columns(self, connection: Any, table: str) -> list[str]:
        versions = {"version_id", "lock"}
        found = connection.exec_driver_sql(f'SELECT * FROM "{table}"').keys()
        return [f'"{name}"' for name in found if name not in versions]

    def rows(self) -> dict[str, Any]:
        """Return all rows of all tables and views that were there at the beginning, and what guards them."""
        with self.project.engine().connect() as connection:
            seen: dict[str, Any] = {
                name: sorted(
                    [
                        tuple(value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value for value in row)
                        for row in connection.exec_driver_sql(f'SELECT {", ".join(columns)} FROM "{name}"')
                    ],
                    key=repr,
                )
                for name, columns in self.columns.items()
            }
            if self.sqlite:
                kinds = "SELECT type, name, tbl_name FROM sqlite_master WHERE type IN ('table', 'view', 'trigger') ORDER BY 2"
                seen["objects"] = [tuple(row) for row in connection.exec_driver_sql(kinds)]
                guards = "SELECT name, sql FROM sqlite_master WHERE type IN ('view', 'trigger') ORDER BY 1"
                seen["guards"] = [tuple(row) for row in connection.exec_driver_sql(guards)]
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
                assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            return seen

    def schema(self) -> Any:
        """Return how everything is defined."""
        if self.sqlite:
            return self.project.rows("SELECT name, sql FROM sqlite_master ORDER BY name")
        return self.project.rows(
            "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2"
        ) + self.project.rows("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")


@pytest.mark.parametrize(("env", "keys"), [("own", "ON"), ("own", "OFF"), ("ours", "ON")])
@pytest.mark.parametrize("name", HISTORIES)
def test_up_down_and_up_again_every_row_is_there(name: str, env: str, keys: str, make: Callable[..., Project]) -> None:
    world = World(make(), env, keys, HISTORIES[name])
    if keys == "OFF" and not world.sqlite:
        return  # PostgreSQL always enforces them
    before, schema = world.rows(), world.schema()

    world.project.run("upgrade", "head")
    assert world.rows() == before
    above = world.schema()
    world.project.run("downgrade", "-1")
    assert world.rows() == before
    if not (world.sqlite and "by hand" in name):  # the default that it has got stays
        assert world.schema() == schema
    world.project.run("upgrade", "head")
    assert world.rows() == before
    if "uuid" not in HISTORIES[name].down and "timestamp" not in HISTORIES[name].up:  # whose defaults are new ones
        assert world.schema() == above
