"""Several databases in one project: each in its own transactions, in a fixed order, and one alone if it is asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect

from sessionkit import errors
from sessionkit.integrations.alembic import MigrationError
from tests.integrations.alembic_project import Project, empty, empty_other

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL

    from tests.support.doors import Door

pytestmark = [
    pytest.mark.own_database,
    pytest.mark.doors("sqlite-sync", "postgresql-async"),
]

MODELS = """
    from sqlalchemy import Column, Table

    class Audit(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Line(Versioned, Base):
        __tablename__ = "lines"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))

    class Entry(Audit):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
"""
BOTH = "run_migrations({'main': Base.metadata, 'audit': Audit.metadata})"
HEAD = "from shop_models import Audit, Base, Entry, Line, Order"


class Databases:
    """A project with two databases."""

    def __init__(self, doors: Door, tmp_path: Path) -> None:
        self.main = empty(doors, tmp_path, "main")
        self.audit = empty_other(doors, tmp_path)
        self.project = Project(tmp_path / "project", self.main, MODELS)
        self.project.write_env(BOTH, HEAD)
        text = self.project.ini.read_text().replace("# databases", "databases")
        urls = {name: self.address(name) for name in ("main", "audit")}
        self.project.ini.write_text(
            text + "".join(f"\n[{name}]\nsqlalchemy.url = {url}\n" for name, url in urls.items())
        )

    def address(self, name: str) -> str:
        url: URL = getattr(self, name)
        return url.render_as_string(hide_password=False)

    def tables(self, name: str) -> set[str]:
        self.project.url = getattr(self, name)
        return set(inspect(self.project.engine()).get_table_names()) - {"alembic_version"}


@pytest.fixture
def two(doors: Door, tmp_path: Path) -> Databases:
    return Databases(doors, tmp_path)


def test_a_migration_has_a_function_for_each_database(two: Databases) -> None:
    text = two.project.autogenerate("first")
    assert re.findall(r"def (\w+)", text) == [
        "upgrade", "downgrade", "upgrade_main", "downgrade_main", "upgrade_audit", "downgrade_audit",
    ]  # fmt: skip
    two.project.run("upgrade", "head")
    assert two.tables("main") == {"orders", "lines"}
    assert two.tables("audit") == {"entries"}
    two.project.run("check")
    two.project.run("downgrade", "base")
    assert two.tables("main") | two.tables("audit") == set()


def test_one_of_them_can_be_chosen(two: Databases) -> None:
    two.project.autogenerate("first")
    two.project.run("upgrade", "head", x=["bind=audit"])
    assert (two.tables("main"), two.tables("audit")) == (set(), {"entries"})
    with pytest.raises(MigrationError, match="-x bind=adit was asked for; the databases are main, audit"):
        two.project.run("upgrade", "head", x=["bind=adit"])
    two.project.run("upgrade", "head", x=["bind=audit", "bind=main", "other=thing"])
    assert two.tables("main") == {"orders", "lines"}


def test_what_was_done_before_a_failure_stays_and_the_error_says_so(two: Databases) -> None:
    text = two.project.autogenerate("first")
    (script,) = two.project.scripts()
    script.write_text(text.replace('"""Upgrade audit."""', "raise ValueError('no')"))
    with pytest.raises(ValueError, match="no") as caught:
        two.project.run("upgrade", "head")
    assert caught.value.__notes__ == ["this was the database audit; already migrated: main"]
    assert (two.tables("main"), two.tables("audit")) == ({"orders", "lines"}, set())
    # Mended, it goes on where it was.
    script.write_text(text)
    two.project.run("upgrade", "head")
    assert two.tables("audit") == {"entries"}


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
def test_a_script_is_for_one_database(two: Databases) -> None:
    two.project.autogenerate("first")
    with pytest.raises(MigrationError, match="select one with -x bind=: main, audit"):
        two.project.run("upgrade", "head", sql=True)
    script = two.project.run("upgrade", "head", sql=True, x=["bind=audit"])
    assert "CREATE TABLE entries" in script
    assert "CREATE TABLE orders" not in script


def test_every_database_keeps_its_rows_up_down_and_up_again(two: Databases) -> None:
    two.project.autogenerate("first")
    two.project.run("upgrade", "head")
    before = {
        "main": ["INSERT INTO orders VALUES (1), (2)", "INSERT INTO lines VALUES (1, 1, 1), (2, 2, 1)"],
        "audit": ["INSERT INTO entries VALUES (1), (2)"],
    }
    for name, statements in before.items():
        two.project.url = getattr(two, name)
        two.project.execute(*statements)
    two.project.run("revision", message="second")
    (script,) = [each for each in two.project.scripts() if "second" in each.name]
    text = script.read_text().replace(
        "from alembic import op", "import sessionkit.integrations.alembic\nfrom alembic import op"
    )
    for name, up, down in (
        ("main", "op.add_version_column('orders', keep_default=False)", "op.drop_version_column('orders')"),
        (
            "audit",
            "with op.batch_alter_table('entries') as b: b.add_version_column(kind='uuid', keep_default=False)",
            "with op.batch_alter_table('entries') as b: b.drop_version_column(kind='uuid')",
        ),
    ):
        text = text.replace(f'"""Upgrade {name}."""', up).replace(f'"""Downgrade {name}."""', down)
    script.write_text(text)
    for command, target in (("upgrade", "head"), ("downgrade", "-1"), ("upgrade", "head")):
        two.project.run(command, target)
        seen = {}
        for name, table in (("main", "orders"), ("main", "lines"), ("audit", "entries")):
            two.project.url = getattr(two, name)
            seen[table] = two.project.rows(f"SELECT id FROM {table} ORDER BY id")
        assert seen == dict.fromkeys(("orders", "lines", "entries"), [(1,), (2,)])


def test_a_migration_by_hand_has_the_functions_too(two: Databases) -> None:
    two.project.run("revision", message="by hand")
    assert "def upgrade_audit" in two.project.scripts()[0].read_text()
    two.project.run("upgrade", "head")


ENGINES = """
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sessionkit import async_sessionmaker, sessionmaker
create = {create}
main, audit = create({main!r}), create({audit!r})
{call}
"""


def with_engines(two: Databases, doors: Door, call: str) -> None:
    create = "create_engine" if doors.colour == "sync" else "create_async_engine"
    dispose = "\nmain.dispose(), audit.dispose()" if doors.colour == "sync" else ""
    two.project.write_env(
        ENGINES.format(create=create, main=two.address("main"), audit=two.address("audit"), call=call + dispose), HEAD
    )


@pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async")
def test_engines_may_be_given_by_name(two: Databases, doors: Door) -> None:
    metadata = "{'audit': Audit.metadata, 'main': Base.metadata}"
    with_engines(two, doors, f"run_migrations({metadata}, engine={{'main': main, 'audit': audit}})")
    two.project.autogenerate("first")
    two.project.run("upgrade", "head")
    assert (two.tables("main"), two.tables("audit")) == ({"orders", "lines"}, {"entries"})


@pytest.mark.parametrize("named", [True, False], ids=["named", "by its databases"])
def test_a_factory_tells_which_tables_are_where(named: bool, two: Databases, doors: Door) -> None:
    maker = "sessionmaker" if doors.colour == "sync" else "async_sessionmaker"
    # `lines` of the same metadata is in the other database, and so in none of its own.
    text = two.project.folder.joinpath("shop_models.py")
    text.write_text(text.read_text().replace('mapped_column(ForeignKey("orders.id"))', "mapped_column()"))
    given = ", engine={'main': main, 'audit': audit}" if named else ""
    if not named:
        stems = [url.database.rpartition("/")[2].removesuffix(".db") for url in (two.main, two.audit)]
        ini = two.project.ini.read_text()
        two.project.ini.write_text(ini.replace("databases = main, audit", f"databases = {', '.join(stems)}"))
    with_engines(two, doors, f"run_migrations({maker}(binds={{Order: main, Line: audit, Audit: audit}}){given})")
    two.project.autogenerate("first")
    two.project.run("upgrade", "head")
    assert (two.tables("main"), two.tables("audit")) == ({"orders"}, {"lines", "entries"})
    two.project.run("check")


def test_a_factory_of_one_engine_is_one_database_without_a_name(two: Databases, doors: Door) -> None:
    two.project.ini.write_text(two.project.ini.read_text().replace("databases = ", "# databases = "))
    maker = "sessionmaker" if doors.colour == "sync" else "async_sessionmaker"
    with_engines(two, doors, f"run_migrations({maker}(binds={{Base: main}}))")
    assert "def upgrade() -> None" in two.project.autogenerate("first")
    two.project.run("upgrade", "head")
    assert two.tables("main") == {"orders", "lines"}


@pytest.mark.doors("sqlite-sync")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("run_migrations({'main': Base.metadata})", "one names audit, main and another main"),
        (
            "run_migrations(Base.metadata, engine={'main': main, 'log': audit})",
            "the metadata, engine= and `databases` in alembic.ini must name the same databases",
        ),
        (
            "run_migrations({'main': Base.metadata, 'audit': Audit.metadata}, engine=main)",
            "give a mapping from each name",
        ),
        ("run_migrations(sessionmaker(main))", r"call run_migrations\(Base\.metadata, engine=factory\)"),
        ("run_migrations(sessionmaker(binds={Order: main, Audit: audit}))", "the table lines belongs to no engine"),
        (
            "run_migrations(sessionmaker(binds={Base: main, Audit: audit}), engine={'main': main})",
            "has no name in engine=",
        ),
        (
            "run_migrations(sessionmaker(binds={Base: main, Audit: audit}), engine=main)",
            "a mapping from names to engines",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(call: str, told: str, two: Databases, doors: Door) -> None:
    with_engines(two, doors, f"try:\n    {call}\nfinally:\n    main.dispose(), audit.dispose()")
    with pytest.raises(errors.OptionError, match=told):
        two.project.run("current")


@pytest.mark.doors("sqlite-sync")
def test_a_factory_of_two_engines_is_no_engine(two: Databases, doors: Door) -> None:
    two.project.ini.write_text(two.project.ini.read_text().replace("databases = ", "# databases = "))
    factory = "sessionmaker(binds={Base: main, Audit: audit})"
    with_engines(two, doors, f"try:\n    run_migrations(Base.metadata, engine={factory})\nfinally:\n    main.dispose()")
    with pytest.raises(errors.OptionError, match="which is bound to 2 engines"):
        two.project.run("current")


@pytest.mark.doors("sqlite-sync")
def test_a_name_that_no_function_can_have_is_refused(two: Databases, doors: Door) -> None:
    with_engines(two, doors, "run_migrations(Base.metadata, engine={'my-db': main, 'audit': audit})\nmain.dispose()")
    two.project.ini.write_text(
        two.project.ini.read_text().replace("databases = main, audit", "databases = my-db, audit")
    )
    with pytest.raises(errors.OptionError, match="upgrade_my-db"):
        two.project.run("current")
