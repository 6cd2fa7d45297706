"""The how-to pages about Alembic, done as they say: their files written, their commands run, in a real project.

(Their Python blocks are run by tests/docs; what stands in a migration or an env.py is marked `py` and run here.)
"""

from __future__ import annotations

import ast
import configparser
import io
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from textwrap import indent
from typing import TYPE_CHECKING

import pytest
from alembic.config import main
from sqlalchemy import inspect

from tests.docs.pages import ROOT, Block, blocks
from tests.integrations.alembic_project import PLAIN, TEMPLATE, Project, empty_other, projects, versioned

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = [pytest.mark.own_database, pytest.mark.doors("sqlite-sync", "postgresql-sync")]

make = pytest.fixture(name="make")(projects)


def page(name: str) -> list[Block]:
    return blocks(ROOT / "docs" / "how-to" / f"{name}.md")


def commands(found: list[Block]) -> list[list[str]]:
    lines = [line for block in found if block.language == "sh" for line in block.source.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("alembic ")]


def write(project: Project, found: list[Block]) -> None:
    """Write the files that the page names."""
    for block in found:
        if block.language == "py" and block.title:
            (project.folder / block.title).write_text(block.source)


def models(project: Project, text: str) -> None:
    folder = project.folder / "shop"
    folder.mkdir(exist_ok=True)
    project.write_models(text)
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text((project.folder / "shop_models.py").read_text())


def run(project: Project, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(project.folder)
    out = io.StringIO()
    try:
        with project.inside(), redirect_stdout(out), redirect_stderr(out):
            main(["--raiseerr", *arguments])
    finally:
        # The next command is to read the models as they are then; and other tests have a shop too.
        for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
            del sys.modules[name]
    return out.getvalue()


def test_adopt_in_an_existing_project(make: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    found = page("adopt-in-an-alembic-project")
    project = make()
    models(project, PLAIN)
    write(project, found)
    run(project, ["revision", "--autogenerate", "-m", "before"], monkeypatch)
    run(project, ["upgrade", "head"], monkeypatch)
    project.execute("INSERT INTO orders (id, name) VALUES (1, 'a')")
    models(project, versioned())

    *rest, init = commands(found)
    assert init[:2] == ["init", "-t"]
    assert [arguments[0] for arguments in rest] == ["revision", "upgrade"]
    for arguments in rest:
        run(project, arguments, monkeypatch)
    assert project.rows("SELECT version_id FROM orders") == [(1,)]
    (script,) = [each.read_text() for each in project.scripts() if "before" not in each.name]
    shown = next(block.source for block in found if 'op.add_version_column("orders"' in block.source)
    for line in re.findall(r"op\..*", shown):
        assert line.replace('"', "'") in script
    run(project, ["check"], monkeypatch)


def test_the_template_is_where_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, init = commands(page("adopt-in-an-alembic-project"))
    assert init[2] == "$(python -m sessionkit.integrations.alembic)"
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()):
        main(["init", "-t", str(TEMPLATE), init[3]])
    assert "run_migrations(" in (tmp_path / "migrations" / "env.py").read_text()
    assert {path.name for path in (tmp_path / "migrations").iterdir()} == {
        "README",
        "env.py",
        "script.py.mako",
        "versions",
    }


TWO = """
    class Audit(DeclarativeBase):
        pass

    class Entry(Audit):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
"""


def test_several_databases(
    make: Callable[..., Project], doors: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = page("migrate-several-databases")
    project = make()
    models(project, PLAIN + TWO)
    write(project, found)
    other = empty_other(doors, tmp_path)
    ini = configparser.RawConfigParser()
    ini.read(project.ini)
    (fragment,) = (block.source for block in found if block.language == "ini")
    ini.read_string(fragment)
    for section, url in (("main", project.url), ("audit", other)):
        assert ini.has_option(section, "sqlalchemy.url")
        ini.set(section, "sqlalchemy.url", url.render_as_string(hide_password=False))
    with project.ini.open("w") as file:
        ini.write(file)
    done = [arguments for arguments in commands(found) if arguments[0] != "init"]
    assert [arguments[-1] for arguments in done] == ["first", "head", "head", "--sql"]
    for arguments in done:
        said = run(project, arguments, monkeypatch)
    assert "CREATE TABLE entries" in said
    assert "orders" in inspect(project.engine()).get_table_names()
    project.url = other
    assert "entries" in inspect(project.engine()).get_table_names()


def test_without_downtime(make: Callable[..., Project]) -> None:
    found = page("add-a-version-column-without-downtime")
    project = make()
    project.migration(
        "first",
        """
        op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True), sa.Column("changed_at", sa.DateTime(True)))
        op.execute("INSERT INTO orders VALUES (1, '2020-02-02 02:02:02.000000'), (2, NULL)")
        """,
    )
    project.run("upgrade", "head")
    steps = [block.source for block in found if block.language == "py" and "def upgrade()" in block.source]
    for number, source in enumerate(steps):
        (function,) = ast.parse(source).body
        assert isinstance(function, ast.FunctionDef)
        body = "\n".join(ast.unparse(each) for each in function.body)
        if "alter_column" in body and project.url.get_backend_name() == "sqlite":
            continue  # the page is about PostgreSQL
        project.migration(f"step_{number}", indent(body, ""))
        project.run("upgrade", "head")
    assert len(steps) == 3
    columns = {column["name"]: column for column in inspect(project.engine()).get_columns("orders")}
    assert not columns["version_id"]["nullable"]
    assert not columns["updated_at"]["nullable"]
    assert project.rows("SELECT count(*) FROM orders WHERE updated_at = changed_at") == [(1,)]
    run_downgrade = commands(found)
    assert run_downgrade == [["downgrade", "-1"]]
