"""`sessionkit doctor`: what it is asked, how it answers, and the checks that every database has."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from sessionkit.cli import doctor as doctor_package
from sessionkit.cli import main
from sessionkit.cli.doctor import _examine
from sessionkit.cli.doctor._finding import Finding, ok
from tests.docs.pages import ROOT, _same, blocks
from tests.integrations import doctoring
from tests.integrations.alembic_project import Project, projects
from tests.integrations.doctoring import url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integrations.doctoring import Seen
    from tests.support.doors import Door

doctor, module = doctoring.doctor, doctoring.module
make = pytest.fixture(name="make")(projects)

each_backend = pytest.mark.doors("sqlite-sync", "postgresql-sync")


# What it is asked


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shop"], "the database is 'shop', which is not of the form module:name"),
        ([":x"], "which is not of the form module:name"),
        (["no_such_module:engine"], "importing no_such_module raised ModuleNotFoundError"),
        (["sqlalchemy:no_such_name"], "there is no 'no_such_name' in sqlalchemy"),
        (["sqlalchemy:create_engine"], "is a function, not an Engine or AsyncEngine"),
        (["nosuchdialect://u:geheim@h/d"], "the database is nosuchdialect://u:***@h/d, and SQLAlchemy has no dialect"),
        (["postgresql+nosuchdriver://u:geheim@h/d"], "has no dialect 'postgresql+nosuchdriver'"),
        (["postgresql://u:geheim@h:port/d"], "its URL cannot be read"),
        (["sqlite://", "--reader", "postgresql://u:geheim@h:port/d"], "--reader: its URL cannot be read"),
        (["sqlite://", "--metadata", "sqlalchemy:create_engine"], "not a declarative base, registry or MetaData"),
        (["sqlite://", "--factory", "sqlalchemy:create_engine"], "takes a sessionmaker"),
        (
            ["sqlite://", "--metadata", "tests.support.models"],
            "--metadata is 'tests.support.models', which is not of the form module:name",
        ),
        (
            ["sqlite://", "--alembic", "no/such/place"],
            "neither an alembic.ini nor a directory with alembic.ini or env.py",
        ),
    ],
)
def test_wrong_usage_gets_one_line_and_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert told in err
    assert len(err.splitlines()) == 1
    assert "geheim" not in err


@pytest.mark.sqlite
@pytest.mark.parametrize("option", ["--older-than=-1", "--max-lag=long", "--timeout=0", "--timeout=inf", "--loudly"])
def test_an_option_that_cannot_be_gets_status_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", "sqlite://", option])
    assert left.value.code == 2
    assert "usage: sessionkit" in capsys.readouterr().err


@pytest.mark.sqlite
def test_a_module_that_cannot_be_imported_is_told_without_a_traceback(
    module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    for source, told in (("1 / 0", "ZeroDivisionError: division by zero"), ("raise SystemExit(0)", "SystemExit: 0")):
        assert main(["doctor", f"{module(source)}:engine"]) == 2
        assert capsys.readouterr().err.endswith(f"raised {told}\n")


@pytest.mark.sqlite
def test_what_the_application_says_does_not_get_between_the_findings(
    module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = module("print('hello')\nengine = create_engine('sqlite://')")
    assert main(["doctor", "--json", f"{name}:engine"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["url"] == "sqlite://"
    assert err == "hello\n"


@pytest.mark.sqlite
def test_names_of_others_move_no_cursor_and_fit_every_terminal(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    check = _examine.Check("some.check", lambda connection, patient: [ok("some.check", "\x1b[2Jgr\xfc\xdfe")])
    monkeypatch.setitem(_examine.CHECKS, "sqlite", (check,))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sys.stdout.buffer, encoding="ascii", write_through=True))
    assert main(["doctor", "sqlite://"]) == 0
    assert rb"?[2Jgr\xfc\xdfe" in capsysbinary.readouterr().out


@pytest.mark.sqlite
def test_a_file_that_the_application_opens_by_itself_is_a_file(
    module: Callable[[str], str], tmp_path: Path, doctor: Callable[..., Seen]
) -> None:
    name = module("import sqlite3\nengine = create_engine('sqlite://', creator=lambda: sqlite3.connect('shop.db'))")
    assert str(tmp_path / "shop.db") in doctor(f"{name}:engine").one("file.exists", "ok")


# How it answers


@each_backend
def test_the_document_has_the_keys_that_the_reference_tells(doors: Door, doctor: Callable[..., Seen]) -> None:
    document = doctor(url_of(doors)).document
    assert list(document) == ["schema", "sessionkit", "database", "url", "dialect", "driver", "status", "findings"]
    assert (document["schema"], document["dialect"], document["driver"]) == (1, doors.backend, doors.driver)
    for each in document["findings"]:
        assert list(each) == ["check", "status", "found", "advice"]
        assert re.fullmatch(r"[a-z]+\.\w+", each["check"])
        assert each["status"] in {"ok", "warn", "fail"}
        assert each["found"]
        assert (each["advice"] is None) == (each["status"] == "ok")


@each_backend
@pytest.mark.parametrize("width", [80, 120])
def test_the_report_is_one_screen(
    width: int, doors: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["doctor", url_of(doors)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out, "no terminal, no colours"
    assert len(out.splitlines()) <= 50
    assert max(map(len, out.splitlines()[1:])) <= width
    assert re.search(r"^ok    server\.driver +\w+ ", out, re.MULTILINE)
    assert re.search(r"^WARN  [\w.]+ .*(\n +.*)*?\n +-> ", out, re.MULTILINE)
    assert re.search(r"\n0 errors, \d warnings?, \d+ ok\n$", out)
    assert "nothing asked, READ_COMMITTED" in out


@pytest.mark.sqlite
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_it_wants_none(
    environment: dict[str, str], coloured: bool, module: Callable[[str], str], tmp_path: Path
) -> None:
    """And the application is found in the working directory."""
    name = module("class db:\n    engine = create_engine('sqlite://')")
    ours, theirs = os.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    command = [sys.executable, "-m", "sessionkit", "doctor", f"{name}:db.engine"]
    environment = {**plain, "TERM": "xterm", **environment}
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, env=environment) as running:
        os.close(theirs)
        out = b""
        while part := _read(ours):
            out += part
    os.close(ours)
    assert running.returncode == 0
    assert (b"\x1b[32m" in out) == coloured
    assert b"in memory" in out


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


@pytest.mark.doors("sqlite-sync")
def test_the_page_shows_a_report_as_it_is(
    doors: Door,
    module: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    name = module(f"engine = create_engine({url_of(doors)!r})")
    assert main(["doctor", f"{name}:engine"]) == 1
    out = capsys.readouterr().out.replace(f"{name}:engine", "shop.db:engine")
    real = out.replace("sqlite+pysqlite:", "sqlite:").splitlines()
    page = ROOT / "docs" / "how-to" / "check-a-database.md"
    (shown,) = [block.source.splitlines() for block in blocks(page) if block.title == "report"]
    # Where the tests' folder is, and how long its name, the page does not say.
    file = next(number for number, line in enumerate(real) if "file.exists" in line)
    end = next(number for number, line in enumerate(real) if "file.journal_mode" in line)
    real[file:end] = ["ok    file.exists          shop.db"]
    assert len(shown) == len(real)
    for there, here in zip(shown, real, strict=True):
        assert _same(there, here), here


@pytest.mark.sqlite
def test_the_reference_names_every_check() -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    sources = [file.read_text() for file in Path(doctor_package.__file__ or "").parent.glob("*.py")]
    names = {name for source in sources for name in re.findall(r'"((?:[a-z]+)\.[a-z_]+)"', source)}
    names &= {name for name in names if name.partition(".")[0] in _groups(text)}
    assert len(names) > 25
    assert not {name for name in names if f"`{name}`" not in text} - {"isolation.presets"}


def _groups(text: str) -> set[str]:
    return set(re.findall(r"`([a-z]+)\.\w+`", text))


@pytest.mark.sqlite
def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(
    doctor: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(connection: Any, patient: Any) -> list[Finding]:
        raise ZeroDivisionError("by zero")

    after = _examine.Check("some.after", lambda connection, patient: [ok("some.after", "reached")])
    monkeypatch.setitem(_examine.CHECKS, "sqlite", (_examine.Check("some.check", breaks), after))
    seen = doctor("sqlite://")
    assert seen.exit_status == 1
    assert "could not be checked: ZeroDivisionError: by zero" in seen.one("some.check", "fail")
    seen.one("some.after", "ok")


# Models and migrations


VERSIONED = """
class Base(DeclarativeBase):
    pass

class Order(Versioned, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]

class Stamp(TimestampVersioned, Base):
    __tablename__ = "stamps"
    id: Mapped[int] = mapped_column(primary_key=True)
"""


@pytest.mark.own_database
def test_models_and_tables_that_differ_are_seen_and_are_well_when_they_agree(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    url, name = url_of(doors), module(VERSIONED)

    def execute(*statements: str) -> None:
        driver = "pysqlite" if doors.backend == "sqlite" else "psycopg"
        engine = create_engine(doors.database.url(driver))
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def look() -> Seen:
        return doctor(url, "--metadata", f"{name}:Base")

    assert "not in the database: orders, stamps -> alembic upgrade head" in look().one("models.tables", "fail")
    execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, version_id INTEGER)",
        "CREATE TABLE stamps (id INTEGER PRIMARY KEY, updated_at TIMESTAMP NOT NULL)",
    )
    seen = look()
    assert (seen.exit_status, seen.all("fail")) == (1, {"models.columns", "models.nullable"})
    assert "not in the database: orders.total" in seen.one("models.columns", "fail")
    assert "orders.version_id -> " in seen.one("models.nullable", "fail")
    execute(
        "DROP TABLE orders",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, version_id INTEGER NOT NULL, total INTEGER)",
    )
    healed = look()
    assert (healed.exit_status, healed.all("fail")) == (0, set())
    assert healed.one("models.tables", "ok") == "2, each with all its columns in the database"
    assert healed.one("models.versions", "ok") == "2 classes, all versioned"


@each_backend
def test_classes_without_a_version_are_named(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    told = doctor(url_of(doors), "--metadata", "tests.support.models:Base").one("models.versions", "warn")
    assert re.search(r": Account, Address, \w+, \w+ and \d+ more -> class \.\.\.\(Versioned, Base\)", told)
    name = module("metadata = MetaData()\nTable('users', metadata, Column('id', Integer))")
    seen = doctor(url_of(doors), "--metadata", f"{name}:metadata")
    assert seen.one("models.tables", "ok").startswith("1, each")
    assert not seen.of("models.versions"), "a table alone has no class"


@pytest.mark.sqlite
def test_classes_that_cannot_be_mapped_are_wrong_usage(
    module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = module("""
        class Base(DeclarativeBase):
            pass

        class Order(Base):
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(primary_key=True)
            customer = relationship("NoSuchClass")
    """)
    try:
        assert main(["doctor", "sqlite://", "--metadata", f"{name}:Base"]) == 2
        assert "whose classes cannot be mapped" in capsys.readouterr().err
    finally:
        sys.modules[name].Base.registry.dispose()


@each_backend
def test_versions_that_postgresql_keeps_by_itself_need_no_column(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    name = module("""
        class Base(DeclarativeBase):
            pass

        class User(XminVersioned, Base):
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)
    """)
    seen = doctor(url_of(doors), "--metadata", f"{name}:Base")
    assert not seen.all("fail")
    assert seen.one("models.versions", "ok") == "1 classes, all versioned"


@pytest.mark.own_database
def test_a_database_behind_its_migrations_is_seen_until_it_is_upgraded(
    doors: Door, doctor: Callable[..., Seen], make: Callable[..., Project]
) -> None:
    project = make()
    if doors.backend == "sqlite":
        project.execute("CREATE TABLE any_table (id INTEGER)")
    project.migration("first", "op.create_table('orders', sa.Column('id', sa.Integer(), primary_key=True))")
    driver = url_of(doors).partition(":")[0]
    url = project.url.set(drivername=driver).render_as_string(hide_password=False)
    for place in (project.folder, project.ini, project.folder / "migrations"):
        told = doctor(url, "--alembic", place).one("migrations.head", "fail")
        assert told.startswith(
            "the database is at no revision, and the newest migration is first -> run `alembic upgrade"
        )
    project.run("upgrade", "head")
    assert doctor(url, "--alembic", project.folder).one("migrations.head", "ok") == "the database is at first"
    other = project.folder / "migrations" / "versions" / "first.py"
    text = other.read_text().replace("revision = 'first'", "revision = 'another'", 1)
    other.with_name("another.py").write_text(text.replace("'orders'", "'others'"))
    assert "2 heads: " in doctor(url, "--alembic", project.folder).one("migrations.heads", "warn")
    other.with_name("another.py").unlink()
    project.execute("UPDATE alembic_version SET version_num = 'of the future'")
    assert "the code is older" in doctor(url, "--alembic", project.folder).one("migrations.head", "fail")


# A database that nobody knows


class Unheard(SQLiteDialect_pysqlite):
    """SQLite under another name, with levels that it can be told."""

    name = "unheard"
    supports_statement_cache = True

    def get_isolation_level_values(self, dbapi_connection: Any) -> Any:
        return ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"]

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        self.level = level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return getattr(self, "level", "READ COMMITTED")


@pytest.mark.sqlite
def test_of_a_database_that_it_does_not_know_it_says_what_it_can(doctor: Callable[..., Seen]) -> None:
    registry.register("unheard", __name__, "Unheard")
    registry.impls["unheard"] = lambda: Unheard
    seen = doctor("unheard://")
    assert seen.exit_status == 0
    assert "the doctor does not know unheard: sessions" in seen.one("server.known", "warn")
    assert seen.one("isolation.REPEATABLE_READ", "ok") == "REPEATABLE READ"
    assert "cannot have it enforced on unheard" in seen.one("isolation.READ_ONLY", "warn")
    assert "executemany" not in seen.one("server.bulk", "ok")
