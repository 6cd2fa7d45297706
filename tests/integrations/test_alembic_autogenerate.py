"""A model became versioned, or ceased to be: what autogenerate writes, and that it then has nothing more to say."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.integrations.alembic_project import PLAIN, Project, projects, versioned

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync")

make = pytest.fixture(name="make")(projects)


def body(text: str, function: str = "upgrade") -> str:
    """Return the statements of a migration's function, without its docstring."""
    found = next(node for node in ast.parse(text).body if getattr(node, "name", None) == function)
    assert isinstance(found, ast.FunctionDef)
    return "\n".join(ast.unparse(each) for each in found.body[1:])


KINDS = {"Versioned": "count", "TimestampVersioned": "timestamp", "UUIDVersioned": "uuid"}
NAMES = {"count": "version_id", "timestamp": "updated_at", "uuid": "version_id"}
TABLES = list(NAMES)


def three(versions: bool = True, column: str = "") -> str:
    """Return three models, one for each kind, versioned or not; each table is called as its kind."""
    return "".join(
        versioned(kind if versions else "", column=column if versions else "", table=table).replace(
            "Order", f"Of{kind}"
        )
        for kind, table in KINDS.items()
    ).replace("(, Base)", "(Base)")


def lines(operation: str, options: str = "", column: str = "") -> set[str]:
    return {f"op.{operation}('{kind}', '{column or NAMES[kind]}', kind='{kind}'{options})" for kind in TABLES}


def with_rows(make: Callable[..., Project], **kw: Any) -> Project:
    """Return a project whose first migration has been run, with two rows in each table."""
    project = make(three(versions=False), **kw)
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.execute(*(f"INSERT INTO {table} (id, name) VALUES (1, 'a'), (2, 'b')" for table in TABLES))
    return project


def test_models_that_became_versioned_yield_the_operation_and_then_nothing(make: Callable[..., Project]) -> None:
    project = with_rows(make)
    project.write_models(three())
    text = project.autogenerate("second")
    assert set(body(text).splitlines()) == lines("add_version_column", ", keep_default=True")
    assert set(body(text, "downgrade").splitlines()) == lines("drop_version_column")
    assert "import sessionkit.integrations.alembic" in text

    project.run("upgrade", "head")
    for table in TABLES:
        assert project.rows(f"SELECT count({NAMES[table]}) FROM {table}") == [(2,)]
    assert body(project.autogenerate("third")) == "pass"
    project.run("upgrade", "head")
    project.run("check")
    # Nor where defaults are compared, though one was kept.
    project.write_env("run_migrations(target_metadata, compare_server_default=True)")
    project.run("check")


def test_models_that_ceased_to_be_versioned_yield_the_opposite_and_then_nothing(make: Callable[..., Project]) -> None:
    project = with_rows(make)
    project.write_models(three(column="lock"))
    project.autogenerate("second")
    project.run("upgrade", "head")
    project.write_models(three(versions=False))
    text = project.autogenerate("third")
    assert set(body(text).splitlines()) == lines("drop_version_column", column="lock")
    assert set(body(text, "downgrade").splitlines()) == lines("add_version_column", ", keep_default=True", "lock")
    project.run("upgrade", "head")
    project.run("check")

    # And back again, on full tables.
    project.run("downgrade", "-1")
    for table in TABLES:
        assert project.rows(f"SELECT count(lock) FROM {table}") == [(2,)]
    project.run("downgrade", "base")


def test_new_tables_say_their_versions_without_names_of_sessionkits_inside(make: Callable[..., Project]) -> None:
    project = make(three(column="lock"))
    text = project.autogenerate("first")
    assert "sessionkit.version" not in text
    for kind in TABLES:
        assert f"info={{'sessionkit_version': {{'lock': '{kind}'}}}}" in text
    project.run("upgrade", "head")
    project.run("check")
    # So that it is known later what the columns were.
    project.write_models(three(versions=False))
    text = project.autogenerate("second")
    assert set(body(text).splitlines()) == lines("drop_version_column", column="lock")
    project.run("upgrade", "head")
    project.run("downgrade", "base")


@pytest.mark.doors("postgresql-sync")
def test_xmin_needs_no_migration(make: Callable[..., Project]) -> None:
    project = make(versioned("XminVersioned"))
    assert "xmin" not in project.autogenerate("first")
    project.run("upgrade", "head")
    project.run("check")
    project.write_models(PLAIN)
    project.run("check")


def test_a_version_that_nothing_tells_of_is_known_by_its_name(make: Callable[..., Project]) -> None:
    project = make(versioned("Versioned"))
    text = project.autogenerate("first")
    script = project.scripts()[0]
    script.write_text(re.sub(r",\n *info=.*", "", text))
    project.run("upgrade", "head")
    project.write_models(PLAIN)
    assert body(project.autogenerate("second")) == "op.drop_version_column('orders', 'version_id', kind='count')"


def test_a_column_of_that_type_which_was_never_a_version_is_left_to_alembic(make: Callable[..., Project]) -> None:
    handmade = PLAIN.replace("name: Mapped[str]", "name: Mapped[str]\n        updated_at: Mapped[datetime]")
    handmade = "\n    from datetime import datetime" + handmade
    project = make(handmade)
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.write_models(PLAIN)
    assert body(project.autogenerate("second")) == "op.drop_column('orders', 'updated_at')"


def test_from_a_count_to_a_uuid_the_column_is_replaced(make: Callable[..., Project]) -> None:
    project = make()
    project.autogenerate("first")
    project.run("upgrade", "head")
    for number, kind in enumerate(["Versioned", "UUIDVersioned"]):
        project.write_models(versioned(kind))
        text = project.autogenerate(f"m{number}")
        project.run("upgrade", "head")
        project.run("check")
    assert body(text).splitlines() == [
        "op.drop_version_column('orders', 'version_id', kind='count')",
        "op.add_version_column('orders', 'version_id', kind='uuid', keep_default=True)",
    ]
    project.run("downgrade", "base")


def test_in_batch_mode_the_operation_is_the_batchs(make: Callable[..., Project]) -> None:
    project = make(call="run_migrations(target_metadata, render_as_batch=True)")
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.write_models(versioned("TimestampVersioned", column="lock", extra="note: Mapped[str | None]"))
    text = project.autogenerate("second")
    assert "batch_op.add_version_column('lock', kind='timestamp', keep_default=True)" in body(text)
    assert "batch_op.drop_version_column('lock', kind='timestamp')" in body(text, "downgrade")
    project.run("upgrade", "head")
    project.run("check")
    project.write_models(PLAIN)
    assert "batch_op.drop_version_column('lock', kind='timestamp')" in body(project.autogenerate("third"))
    project.run("upgrade", "head")
    project.run("downgrade", "base")


@pytest.mark.doors("postgresql-sync")
def test_a_table_in_a_schema_keeps_it(make: Callable[..., Project]) -> None:
    inside = '__table_args__ = {"schema": "shop"}'
    plain = PLAIN.replace('__tablename__ = "orders"', f'__tablename__ = "orders"\n        {inside}')
    project = make(plain, call="run_migrations(target_metadata, include_schemas=True)")
    project.execute("CREATE SCHEMA shop")
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.write_models(versioned("TimestampVersioned", extra=inside))
    text = project.autogenerate("second")
    assert (
        body(text)
        == "op.add_version_column('orders', 'updated_at', kind='timestamp', keep_default=True, schema='shop')"
    )
    project.run("upgrade", "head")
    project.run("check")
    project.write_models(plain)
    text = project.autogenerate("third")
    assert body(text) == "op.drop_version_column('orders', 'updated_at', kind='timestamp', schema='shop')"


@pytest.mark.doors("postgresql-sync")
def test_a_model_may_name_the_schema_that_is_the_default(make: Callable[..., Project]) -> None:
    project = make(
        versioned("UUIDVersioned", extra='__table_args__ = {"schema": "public"}'),
        call="run_migrations(target_metadata, include_schemas=True, compare_server_default=True)",
    )
    project.execute("CREATE TABLE orders (id SERIAL PRIMARY KEY, name VARCHAR NOT NULL)")
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.run("check")


OTHERS = """
    from datetime import datetime
    from uuid import UUID

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        updated_at: Mapped[datetime | None]
        token: Mapped[UUID | None] = mapped_column(index=True)

    class Line(Base):
        __tablename__ = "lines"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
"""


def test_what_is_not_about_versions_is_as_alembic_alone_writes_it(make: Callable[..., Project]) -> None:
    project = make()
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.write_models(OTHERS)
    with_us = project.autogenerate("second")
    for script in project.scripts():
        if "second" in script.name:
            script.unlink()
    plain = "['alembic.autogenerate.*', '~alembic.autogenerate.sessionkit']"
    project.write_env(f"run_migrations(target_metadata, autogenerate_plugins={plain})")
    alone = project.autogenerate("second")
    assert len(body(alone).splitlines()) >= 4
    for function in ("upgrade", "downgrade"):
        assert body(with_us, function) == body(alone, function)


OWN_ENV = """
from alembic import context
from sqlalchemy import create_engine
from shop_models import Base
{line}
with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
connection.engine.dispose()
"""


@pytest.mark.parametrize("line", ["import sessionkit.integrations.alembic", ""], ids=["imported", "by the plugin"])
def test_an_env_py_of_the_projects_own_needs_one_line_or_none(line: str, make: Callable[..., Project]) -> None:
    project = make()
    project.env.write_text(OWN_ENV.format(line=line))
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.execute("INSERT INTO orders (id, name) VALUES (1, 'a')")
    project.write_models(versioned())
    assert body(project.autogenerate("second")).startswith("op.add_version_column(")
    project.run("upgrade", "head")
    project.run("check")


@pytest.mark.doors("sqlite-sync")
def test_a_migration_runs_in_a_process_of_its_own(make: Callable[..., Project]) -> None:
    project = make()
    project.autogenerate("first")
    project.run("upgrade", "head")
    project.write_models(versioned())
    for arguments in [("revision", "--autogenerate", "-m", "second"), ("upgrade", "head")]:
        process = project.start(*arguments)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
    project.run("check")
