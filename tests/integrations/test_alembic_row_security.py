"""`op.enable_row_security` and the way back, and what autogenerate makes of a model that asks for it."""

from __future__ import annotations

import ast
import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from sessionkit import REQUIRED, sessionmaker
from sessionkit.integrations.alembic import DisableRowSecurityOp, EnableRowSecurityOp, MigrationError
from tests.contract.tenants import OTHER_ROLE, ROLE, create_roles
from tests.docs.pages import ROOT, blocks
from tests.integrations.alembic_project import Project, empty, projects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = [pytest.mark.own_database, pytest.mark.doors("postgresql-sync")]

make = pytest.fixture(name="make")(projects)

TYPES = {"integer": 7, "text": "it's \\", "uuid": "6f1ed002-ab5d-4b2a-8b3a-5a5c7c5c9d10", "bigint": 2**40}


@pytest.fixture
def engine(doors: Door, tmp_path: Path) -> Iterator[sa.Engine]:
    engine = create_engine(empty(doors, tmp_path), poolclass=NullPool)
    yield engine
    engine.dispose()


@contextmanager
def operations(engine: sa.Engine) -> Iterator[Any]:
    with engine.begin() as connection:
        yield Operations(MigrationContext.configure(connection))


def table(engine: sa.Engine, type_: str, name: str = "notes") -> None:
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {name} (id serial PRIMARY KEY, tenant_id {type_} NOT NULL)"))
        for role in (ROLE, OTHER_ROLE):
            connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {role}"))
            connection.execute(text(f"GRANT SELECT, INSERT ON {name} TO {role}"))
            connection.execute(text(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"))


@pytest.mark.parametrize("type_", list(TYPES))
async def test_a_transaction_sees_and_writes_the_rows_of_its_setting_and_none_without(
    doors: Door, engine: sa.Engine, type_: str
) -> None:
    await create_roles(doors)
    table(engine, type_)
    with operations(engine) as op:
        op.enable_row_security("notes", "tenant_id", "app.tenant")
    tenant = TYPES[type_]
    statement = text(f"INSERT INTO notes (tenant_id) VALUES (CAST(CAST(:tenant AS text) AS {type_}))")
    Session = sessionmaker(engine, settings={"app.tenant": REQUIRED}, role=ROLE)
    with Session.scope(settings={"app.tenant": tenant}) as session:
        session.execute(statement, {"tenant": str(tenant)})
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1
    with pytest.raises(DBAPIError, match="row-level security"), sessionmaker(engine, role=ROLE).scope() as session:
        session.execute(statement, {"tenant": str(tenant)})
    with sessionmaker(engine, role=ROLE).scope() as session:
        assert session.scalar(text("SELECT count(*) FROM notes")) == 0
        session.execute(text("SELECT set_config('app.tenant', '', true)"))  # as it is in a connection that was used
        assert session.scalar(text("SELECT count(*) FROM notes")) == 0


CUTTING = {
    "varchar(8)": ("acme-ltd", "acme-ltd-evil"),
    "char(8)": ("acme-ltd", "acme-ltd-evil"),
    "varchar(8)[]": ("{acme-ltd}", "{acme-ltd-evil}"),
    "numeric(6, 2)": ("1.00", "1.004"),
    "timestamp(0)": ("2030-01-01 00:00:00", "2030-01-01 00:00:00.4"),
    "bit(2)": ("10", "101"),
    "bit varying(2)": ("10", "101"),
    "interval day": ("1 day", "1 day 2 hours"),
    '"char"': ("a", "acme"),
    "name": ("a" * 63, "a" * 64),
    "code": ("acme-ltd", "acme-ltd-evil"),
    "inner_code": ("acme-ltd", "acme-ltd-evil"),
}
"""The tenant of a row, and another one that a cast to the column's type would make the same of."""


@pytest.mark.parametrize("written", [False, True], ids=["read", "type_="])
@pytest.mark.parametrize("type_", list(CUTTING))
async def test_no_length_or_precision_makes_another_tenant_of_a_value(
    doors: Door, engine: sa.Engine, type_: str, written: bool
) -> None:
    await create_roles(doors)
    mine, other = CUTTING[type_]
    with engine.begin() as connection:
        connection.execute(text("CREATE DOMAIN code AS varchar(8)"))
        connection.execute(text("CREATE DOMAIN inner_code AS code CHECK (VALUE <> '')"))
    table(engine, type_)
    with engine.begin() as connection:
        connection.execute(text(f"GRANT UPDATE ON notes TO {ROLE}"))
        connection.execute(text(f"INSERT INTO notes (tenant_id) VALUES (CAST('{mine}' AS {type_}))"))
    with operations(engine) as op:
        op.enable_row_security("notes", "tenant_id", "app.tenant", **({"type_": type_} if written else {}))
    Session = sessionmaker(engine, role=ROLE)
    with Session.scope(settings={"app.tenant": mine}) as session:
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1

    def tried(statement: str) -> int:
        """Return how many rows a statement of the other tenant reaches."""
        try:
            with Session.scope(settings={"app.tenant": other}) as session:
                found: Any = session.execute(text(statement))
                return int(found.rowcount)
        except DBAPIError:  # row-level security, or a value that the type does not have
            return 0

    assert tried("SELECT * FROM notes") == 0
    assert tried("UPDATE notes SET id = id") == 0
    assert tried(f"INSERT INTO notes (tenant_id) VALUES (CAST('{mine}' AS {type_}))") == 0


@pytest.mark.parametrize(
    ("type_", "cast"),
    [
        (sa.String(8), "VARCHAR"),
        (sa.CHAR(8), "bpchar"),
        (sa.CHAR(), "bpchar"),
        (sa.Numeric(6, 2), "NUMERIC"),
        (sa.Float(24), "FLOAT(24)"),
        (sa.Integer, "INTEGER"),
        (postgresql.TIMESTAMP(precision=0, timezone=True), "TIMESTAMP WITH TIME ZONE"),
        (postgresql.BIT(3), '"bit"'),
        (postgresql.BIT(3, varying=True), "BIT VARYING"),
        (postgresql.INTERVAL(fields="DAY TO SECOND", precision=0), "interval"),
        (postgresql.DOMAIN("code", sa.String(8)), "VARCHAR"),
        (postgresql.ARRAY(sa.String(8)), "VARCHAR[]"),
        ("national character varying (8)", "national character varying"),
        ("nchar(3)[]", "bpchar[]"),
        ('"char"', "text"),
        ('"My Type (8)"', '"My Type (8)"'),
        ('"My Schema".kind', '"My Schema".kind'),
    ],
)
def test_neither_does_the_type_of_a_migration_that_is_written_out_as_sql(
    engine: sa.Engine, type_: Any, cast: str
) -> None:
    out = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": out})
    offline: Any = Operations(context)
    offline.enable_row_security("notes", "tenant_id", "app.tenant", type_=type_)
    assert out.getvalue().count(f" AS {cast}))") == 2


async def test_it_binds_the_owner_and_can_leave_him_alone_and_goes_for_the_roles_that_are_named(
    doors: Door, engine: sa.Engine
) -> None:
    await create_roles(doors)
    for name, options in (("forced", {}), ("unforced", {"force": False}), ("named", {"to": [OTHER_ROLE]})):
        table(engine, "integer", name)
        with operations(engine) as op:
            op.enable_row_security(name, "tenant_id", "app.tenant", **options)
        with engine.begin() as connection:
            connection.execute(text(f"INSERT INTO {name} (tenant_id) VALUES (1)"))
            connection.execute(text(f"ALTER TABLE {name} OWNER TO {ROLE}"))
    with sessionmaker(engine, role=ROLE).scope() as session:
        counts = [session.scalar(text(f"SELECT count(*) FROM {name}")) for name in ("forced", "unforced", "named")]
    assert counts == [0, 1, 0]
    with sessionmaker(engine, role=OTHER_ROLE).scope(settings={"app.tenant": 1}) as session:
        assert session.scalar(text("SELECT count(*) FROM named")) == 1


async def test_a_condition_of_ones_own_and_names_that_need_quotes(doors: Door, engine: sa.Engine) -> None:
    await create_roles(doors)
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "My Schema"'))
        connection.execute(text('CREATE TABLE "My Schema"."My Notes" ("Tenant Id" integer, public boolean)'))
    where: dict[str, Any] = {"schema": "My Schema", "policy": "it's mine"}
    with operations(engine) as op:
        op.enable_row_security("My Notes", "Tenant Id", "app.ten:ant'", **where)
        op.enable_row_security("My Notes", using="public OR current_setting('a.b', true) = ':x'", schema="My Schema")
    with engine.connect() as connection:
        found = dict(connection.execute(text("SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy")).all())
    assert "'app.ten:ant'''" in found["it's mine"]
    assert "':x'" in found["sessionkit_tenant"]
    with operations(engine) as op:
        op.disable_row_security("My Notes", **where)
        op.disable_row_security("My Notes", schema="My Schema")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_policy")) == 0


def test_the_operations_undo_each_other() -> None:
    options: dict[str, Any] = {
        "type_": "integer", "using": None, "policy": "own", "to": ["a"], "force": False, "schema": "s"
    }  # fmt: skip
    enable = EnableRowSecurityOp("notes", "tenant_id", "app.tenant", **options)
    disable = enable.reverse()
    assert isinstance(disable, DisableRowSecurityOp)
    assert vars(disable.reverse()) == vars(enable)
    assert enable.to_diff_tuple() == ("enable_row_security", "s", "notes", "tenant_id", "app.tenant")


def test_what_it_cannot_do_is_said_before_anything_is_done(engine: sa.Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE here (tenant_id integer)"))
    with operations(engine) as op:
        for arguments, options in (
            (("notes",), {}),
            (("notes", "tenant_id"), {}),
            (("notes", "tenant_id", ""), {}),
            (("notes", "tenant_id", "app.tenant"), {"using": "true"}),
            (("notes", "tenant_id", "app.tenant"), {"policy": ""}),
            (("no_such_table", "tenant_id", "app.tenant"), {}),
            (("no_such_table",), {"using": "true"}),
            (("here",), {"using": " "}),
            (("here", "tenant_id", "tenant"), {}),
            (("here", "tenant_id", "app.tenant"), {"to": []}),
            (("here", "tenant_id", "app.tenant"), {"to": ""}),
            (("here", "tenant_id", "app.tenant"), {"to": [1]}),
        ):
            with pytest.raises(MigrationError):
                op.enable_row_security(*arguments, **options)
    lite = create_engine(f"sqlite:///{tmp_path}/lite.db", poolclass=NullPool)
    for word in ("enable", "disable"):
        with operations(lite) as op, pytest.raises(MigrationError, match="sqlite"):
            getattr(op, f"{word}_row_security")("notes", "tenant_id", "app.tenant")


MODELS = """
    class Order(Base):
        __tablename__ = "orders"
        __table_args__ = {"info": {"sessionkit_row_security": {"column_name": "tenant_id", "setting": "app.tenant"}}}
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[int]
"""


async def test_autogenerate_writes_it_once_with_its_way_back(doors: Door, make: Callable[..., Project]) -> None:
    project = make(MODELS)
    project.run("revision", message="first", autogenerate=True)
    (migration,) = (project.folder / "migrations" / "versions").glob("*.py")
    written = migration.read_text()
    assert "op.enable_row_security('orders', 'tenant_id', 'app.tenant', type_=sa.Integer())" in written
    assert "op.disable_row_security('orders', 'tenant_id', 'app.tenant', type_=sa.Integer())" in written
    assert "import sessionkit.integrations.alembic" in written
    assert written.index("op.create_table") < written.index("op.enable_row_security")
    assert written.index("op.disable_row_security") < written.index("op.drop_table")
    project.run("upgrade", "head")
    project.run("check")
    sql = project.run("upgrade", "head", sql=True)
    assert "CREATE POLICY sessionkit_tenant ON orders USING (tenant_id = CAST(nullif(" in sql
    assert "FORCE ROW LEVEL SECURITY" in sql
    project.run("downgrade", "base")


async def test_autogenerate_writes_the_type_without_its_length(doors: Door, make: Callable[..., Project]) -> None:
    project = make(
        MODELS.replace(
            "tenant_id: Mapped[int]", 'tenant_id: Mapped[str] = mapped_column(__import__("sqlalchemy").String(8))'
        )
    )
    project.run("revision", message="first", autogenerate=True)
    (migration,) = (project.folder / "migrations" / "versions").glob("*.py")
    assert "op.enable_row_security('orders', 'tenant_id', 'app.tenant', type_=sa.String())" in migration.read_text()
    project.run("upgrade", "head")
    (condition,) = project.rows("SELECT pg_get_expr(polqual, polrelid) FROM pg_policy")
    assert "(8)" not in condition[0]


async def test_the_info_of_a_table_may_have_a_condition(doors: Door, make: Callable[..., Project]) -> None:
    project = make(MODELS.replace('{"column_name": "tenant_id", "setting": "app.tenant"}', '{"using": "tenant_id=1"}'))
    project.run("revision", message="first", autogenerate=True)
    (migration,) = (project.folder / "migrations" / "versions").glob("*.py")
    assert "op.enable_row_security('orders', using='tenant_id=1')" in migration.read_text()
    project.run("upgrade", "head")
    project.run("check")


@pytest.mark.parametrize(
    "info", ['"tenant_id"', '["tenant_id"]', "True", '{1: 2, "b": 3}', '{"column_name": "tenant_id"}']
)
async def test_an_info_that_says_something_else_is_refused_with_the_name_of_the_table(
    doors: Door, make: Callable[..., Project], info: str
) -> None:
    project = make(MODELS.replace('{"column_name": "tenant_id", "setting": "app.tenant"}', info))
    with pytest.raises(MigrationError, match="orders"):
        project.run("revision", message="first", autogenerate=True)


async def test_sql_that_is_written_out_needs_the_type(doors: Door, make: Callable[..., Project]) -> None:
    project = make(MODELS)
    project.migration("first", "op.enable_row_security('orders', 'tenant_id', 'app.tenant')")
    with pytest.raises(MigrationError, match="type_="):
        project.run("upgrade", "head", sql=True)


async def test_the_page_does_what_it_shows(doors: Door, make: Callable[..., Project]) -> None:
    """The migration and its SQL, the model for autogenerate, and the rights of the role."""
    await create_roles(doors)
    page = blocks(ROOT / "docs" / "how-to" / "keep-tenants-apart-with-row-level-security.md")
    (migration,) = [block.source for block in page if block.title == "migration"]
    (model,) = [block.source for block in page if block.language == "py" and "class Note" in block.source]
    policy, rights = [block.source for block in page if block.language == "text" and block.source.startswith("CREATE")]

    project = make(model + "\n    id: Mapped[int] = mapped_column(primary_key=True)\n    tenant_id: Mapped[int]\n")
    project.execute("CREATE TABLE notes (id serial PRIMARY KEY, tenant_id integer NOT NULL)")
    upgrade, downgrade = [
        ast.unparse(each.body) for each in ast.parse(migration).body if isinstance(each, ast.FunctionDef)
    ]
    project.migration("policy", upgrade, downgrade)
    sent: list[str] = []
    with listening(sent):
        project.run("upgrade", "head")
    shown = re.split(r"\n(?=\S)", policy.strip())
    assert [" ".join(each.split()) for each in shown] == [
        each for each in sent if "POLICY" in each or "SECURITY" in each
    ]
    project.run("check")  # autogenerate has nothing to add for the model

    role, *grants = [each.strip() for each in rights.split(";") if each.strip()]
    assert role == "CREATE ROLE app_user NOLOGIN"
    for grant in grants:
        project.execute(grant.replace("the_user_that_connects", "current_user").replace("app_user", ROLE))
    project.run("downgrade", "base")
    assert project.rows("SELECT count(*) FROM pg_policy") == [(0,)]


@contextmanager
def listening(sent: list[str]) -> Iterator[None]:
    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(sa.Engine, "before_cursor_execute", look)
