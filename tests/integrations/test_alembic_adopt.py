"""An ``updated_at`` that a project has kept by itself becomes the version of a `TimestampVersioned` class."""

from __future__ import annotations

import ast
import runpy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from sessionkit import errors, sessionmaker, version_of
from sessionkit.integrations.alembic import MigrationError
from tests.integrations.alembic_project import Project, projects, psql

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync")
on_postgresql = pytest.mark.doors("postgresql-sync")
on_sqlite = pytest.mark.doors("sqlite-sync")

make = pytest.fixture(name="make")(projects)

BY_HAND = """
    from datetime import datetime
    from sqlalchemy import func

    class Order({bases}Base):
        __tablename__ = "orders"{more}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        updated_at: Mapped[datetime{null}] = mapped_column(server_default=func.now(), onupdate=func.now(){index})
"""


def by_hand(null: str = " | None", index: str = "") -> str:
    return BY_HAND.format(bases="", more="", null=null, index=index)


def handed_over(null: str = " | None", index: str = "") -> str:
    more = '\n        __version_column__ = "updated_at"'
    return BY_HAND.format(bases="TimestampVersioned, ", more=more, null=null, index=index)


def said(script: str, function: str = "upgrade") -> list[str]:
    found = next(node for node in ast.parse(script).body if getattr(node, "name", None) == function)
    assert isinstance(found, ast.FunctionDef)
    return [ast.unparse(each) for each in found.body[1:]]


def with_rows(make: Callable[..., Project], models: str, **kw: Any) -> Project:
    """Return a project whose code has kept the column by itself for a while."""
    project = make(models, **kw)
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.execute(
        "INSERT INTO orders (id, name) VALUES (1, 'by the default')",
        "INSERT INTO orders (id, name, updated_at) VALUES (2, 'by the code', '2026-01-31 12:00:00.123456')",
    )
    return project


@pytest.mark.parametrize("null", [" | None", ""], ids=["nullable", "not null"])
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in batch"])
@pytest.mark.parametrize("index", ["", ", index=True"], ids=["plain", "indexed"])
def test_a_column_kept_by_hand_becomes_a_version_that_finds_a_lost_update(
    null: str, batch: bool, index: str, make: Callable[..., Project]
) -> None:
    call = f"run_migrations(target_metadata, render_as_batch={batch})"
    project = with_rows(make, by_hand(null, index), call=call)
    if null:
        project.execute("INSERT INTO orders (id, name, updated_at) VALUES (3, 'never', NULL)")
    project.write_models(handed_over(null, index))
    script = project.autogenerate("second")
    assert ("batch_op" if batch else "op") + ".adopt_version_column(" in script
    assert ("batch_op" if batch else "op") + ".release_version_column(" in script
    assert f"existing_nullable={bool(null)}" in script
    before = project.rows("SELECT id, name FROM orders ORDER BY id")
    project.run("upgrade", "head")
    project.run("check")
    project.run("downgrade", "-1")
    project.run("upgrade", "head")
    project.run("check")
    assert project.rows("SELECT id, name FROM orders ORDER BY id") == before
    # Code that does not know of versions goes on inserting rows.
    project.execute("INSERT INTO orders (id, name) VALUES (4, 'old code')")

    Order = runpy.run_path(str(project.folder / "shop_models.py"))["Order"]
    engine = project.engine()
    Session = sessionmaker(engine)
    with Session() as session:
        assert session.get(Order, 2).updated_at == datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
        session.rollback()
    for number in range(1, 5 if null else 3):
        with Session() as session, Session() as other:
            mine, theirs = session.get(Order, number), other.get(Order, number)
            theirs.name = "theirs"
            other.commit()
            mine.name = "mine"
            with pytest.raises(errors.VersionConflict):
                session.commit()
            assert version_of(theirs).tzinfo is not None
    engine.dispose()


def test_the_migration_that_is_written_says_how_the_column_was(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.write_models(handed_over())
    script = project.autogenerate("second")
    was = "kind='timestamp', existing_nullable=True, existing_timezone=False"
    assert said(script) == [f"op.adopt_version_column('orders', 'updated_at', {was})"]
    assert said(script, "downgrade") == [f"op.release_version_column('orders', 'updated_at', {was})"]
    assert "import sessionkit.integrations.alembic" in script
    project.run("upgrade", "head")
    assert said(project.autogenerate("third")) == ["pass"]
    project.run("upgrade", "head")
    project.write_env("run_migrations(target_metadata, compare_server_default=True)")
    project.run("check")


@on_postgresql
def test_a_class_that_leaves_its_own_column_out_adopts_it_as_well(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.write_models(
        """
    class Order(TimestampVersioned, Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
"""
    )
    was = "kind='timestamp', existing_nullable=True, existing_timezone=False"
    assert said(project.autogenerate("second")) == [f"op.adopt_version_column('orders', 'updated_at', {was})"]
    project.run("upgrade", "head")
    project.run("check")


def test_an_update_by_core_goes_on_setting_it(make: Callable[..., Project]) -> None:
    from sqlalchemy import update

    project = make(handed_over())
    project.autogenerate("first")
    project.run("upgrade", "head")
    Order = runpy.run_path(str(project.folder / "shop_models.py"))["Order"]
    engine = project.engine()
    with sessionmaker(engine).scope() as session:
        session.add(Order(id=1, name="a"))
    with engine.begin() as connection:
        seen = [connection.execute(text("SELECT updated_at FROM orders")).scalar()]
        for name in "bcd":
            connection.execute(update(Order.__table__).values(name=name))
            seen.append(connection.execute(text("SELECT updated_at FROM orders")).scalar())
    assert seen == sorted(set(seen))
    engine.dispose()


def test_no_trigger_fires_and_none_is_lost(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.execute(
        "INSERT INTO orders (id, name, updated_at) VALUES (3, 'never', NULL)", "CREATE TABLE seen (id INTEGER)"
    )
    if project.url.get_backend_name() == "sqlite":
        project.execute("CREATE TRIGGER see AFTER UPDATE ON orders BEGIN INSERT INTO seen VALUES (new.id); END")
    else:
        project.execute(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO seen VALUES (new.id); RETURN new; END $$",
            "CREATE TRIGGER see AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION see()",
        )
    project.migration("second", "op.adopt_version_column('orders')", "op.release_version_column('orders')")
    project.run("upgrade", "head")
    project.run("downgrade", "-1")
    project.run("upgrade", "head")
    assert project.rows("SELECT * FROM seen") == []
    project.execute("UPDATE orders SET name = 'x' WHERE id = 1")
    assert project.rows("SELECT * FROM seen") == [(1,)]


@on_postgresql
@pytest.mark.parametrize(
    ("type_", "needed"), [("TIMESTAMPTZ", False), ("TIMESTAMPTZ(6)", False), ("TIMESTAMPTZ(3)", True)]
)
def test_a_column_that_is_as_a_version_already_needs_no_migration(
    type_: str, needed: bool, make: Callable[..., Project]
) -> None:
    project = make(handed_over(null=""))
    project.execute(
        f"CREATE TABLE orders (id SERIAL PRIMARY KEY, name VARCHAR NOT NULL, updated_at {type_} NOT NULL DEFAULT now())",
        "INSERT INTO orders (name) VALUES ('a')",
    )
    written = said(project.autogenerate("first"))
    assert any("adopt_version_column" in line for line in written) is needed
    project.run("upgrade", "head")
    project.run("check")


@on_postgresql
def test_times_of_another_zone_are_read_in_it_and_written_back_so(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    arguments = "'orders', timezone='Europe/Berlin'"
    project.migration("second", f"op.adopt_version_column({arguments})", f"op.release_version_column({arguments})")
    project.run("upgrade", "head")
    query = "SELECT updated_at AT TIME ZONE 'UTC' FROM orders WHERE id = 2"
    assert project.rows(query) == [(datetime(2026, 1, 31, 11, 0, 0, 123456),)]  # noqa: DTZ001
    project.run("downgrade", "-1")
    query = "SELECT updated_at FROM orders WHERE id = 2"
    assert project.rows(query) == [(datetime(2026, 1, 31, 12, 0, 0, 123456),)]  # noqa: DTZ001


def test_rows_without_a_time_can_get_that_of_another_column(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.execute(
        "ALTER TABLE orders ADD COLUMN made_at TIMESTAMP",
        "UPDATE orders SET updated_at = NULL, made_at = '2020-02-20 20:20:20'",
    )
    project.migration("second", "op.adopt_version_column('orders', backfill='made_at')")
    project.run("upgrade", "head")
    assert {str(at)[:19] for (at,) in project.rows("SELECT updated_at FROM orders")} == {"2020-02-20 20:20:20"}


@on_postgresql
def test_psql_runs_the_sql(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.migration("second", "op.adopt_version_column('orders')", "op.release_version_column('orders')")
    first = project.rows("SELECT version_num FROM alembic_version")[0][0]
    psql(project.url, project.run("upgrade", f"{first}:second", sql=True))
    column = next(c for c in inspect(project.engine()).get_columns("orders") if c["name"] == "updated_at")
    assert (column["nullable"], column["type"].timezone) == (False, True)
    psql(project.url, project.run("downgrade", f"second:{first}", sql=True))
    column = next(c for c in inspect(project.engine()).get_columns("orders") if c["name"] == "updated_at")
    assert (column["nullable"], column["type"].timezone) == (True, False)


@on_sqlite
def test_sqlite_refuses_it_in_a_script_and_in_another_zone(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.migration("second", "op.adopt_version_column('orders')", "op.release_version_column('orders')")
    for command, target in (("upgrade", "head"), ("downgrade", "second:base")):
        with pytest.raises(MigrationError, match="run this migration online"):
            project.run(command, target, sql=True)
    project.scripts()[-1].unlink()
    project.migration("second", "op.adopt_version_column('orders', timezone='Europe/Berlin')")
    with pytest.raises(MigrationError, match="SQLite has no time zones"):
        project.run("upgrade", "head")


@on_sqlite
@pytest.mark.parametrize("strange", ["12345", "'2026-01-31 12:00:00+02:00'", "'yesterday'", "''"])
def test_sqlite_changes_nothing_where_a_value_is_no_time(strange: str, make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    project.execute(f"INSERT INTO orders (id, name, updated_at) VALUES (3, 'x', {strange})")
    before = project.rows("SELECT * FROM orders"), project.rows("SELECT sql FROM sqlite_master")
    project.migration("second", "op.adopt_version_column('orders')")
    with pytest.raises(MigrationError, match="not a time in SQLAlchemy's form"):
        project.run("upgrade", "head")
    assert (project.rows("SELECT * FROM orders"), project.rows("SELECT sql FROM sqlite_master")) == before


@on_sqlite
@pytest.mark.parametrize(
    "column",
    [
        "[updated_at] DATETIME",
        '"updated_at" DATETIME DEFAULT CURRENT_TIMESTAMP',
        "updated_at DEFAULT (datetime('now', '-1 day')) CHECK (updated_at IS NOT NULL) /* a comment, with ( */",
        "`updated_at` TIMESTAMP CONSTRAINT there NOT NULL DEFAULT '2020-01-01 00:00:00' COLLATE NOCASE -- the last, change\n",
        "UPDATED_AT DATETIME UNIQUE REFERENCES times (at) DEFERRABLE INITIALLY DEFERRED",
    ],
)
def test_sqlite_finds_the_column_however_its_table_is_written(column: str, tmp_path: Any) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE times (at PRIMARY KEY)")
        connection.exec_driver_sql(
            f"CREATE TABLE 'the orders'(-- updated_at, (\n id INTEGER PRIMARY KEY, x DEFAULT ')', {column}, CHECK (id > 0)) WITHOUT ROWID"
        )
        connection.exec_driver_sql(
            "INSERT INTO \"the orders\" (id, x, updated_at) VALUES (1, 'a', '2026-01-01 00:00:00')"
        )
    with engine.begin() as connection:
        Operations(MigrationContext.configure(connection)).adopt_version_column("the orders")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM 'the orders'")
        connection.exec_driver_sql("INSERT INTO 'the orders' (id) VALUES (2)")
        (at,) = connection.exec_driver_sql("SELECT updated_at FROM 'the orders'").one()
        assert len(at) == 26
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    with pytest.raises(IntegrityError, match="NOT NULL"), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO 'the orders' (id, updated_at) VALUES (3, NULL)")
    engine.dispose()


def test_arguments_that_mean_nothing_are_refused(make: Callable[..., Project]) -> None:
    project = with_rows(make, by_hand())
    for arguments, told in (
        ("'orders', kind='count'", "only works with kind='timestamp'"),
        ("'orders', existing_nullable='yes'", "existing_nullable='yes' was given"),
        ("'orders', timezone=2", "timezone=2 was given"),
        ("'orders', backfill=2", "backfill=2 was given"),
    ):
        project.migration("second", f"op.adopt_version_column({arguments})")
        with pytest.raises(MigrationError, match=told):
            project.run("upgrade", "head")
        (project.folder / "migrations" / "versions" / "second.py").unlink()
