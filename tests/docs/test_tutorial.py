"""The shop of the tutorial: what its pages show under the name of a file is what stands in that file."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT, TUTORIAL, blocks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.doors import Door

SHOP = ROOT / "examples" / "tutorial"
BANK = ROOT / "examples" / "races"


def shown(file: str) -> list[str]:
    """Return the blocks with this title, of all pages in their order; in tabs, those of the sync one."""
    found = [block for page in sorted(TUTORIAL.glob("*.md")) for block in blocks(page) if block.title == file]
    return [block.source for block in found if block.tab != "async"]


def pieces(source: str) -> dict[str, str]:
    """Return the classes, functions and values that a source defines, by their names; the last one of a name counts."""
    found = {}
    for node in ast.parse(source).body:
        first = node.lineno
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = node.name
            first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            continue
        found[name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return found


def test_the_shop_is_what_the_pages_have_built() -> None:
    assert pieces((SHOP / "shop.py").read_text()) == pieces("\n".join(shown("shop.py")))


@pytest.mark.parametrize("file", ["conftest.py", "test_shop.py"])
def test_the_tests_of_the_shop_are_those_of_the_last_page(file: str) -> None:
    assert [(SHOP / file).read_text().strip()] == [source.strip() for source in shown(file)]


def test_the_tests_of_the_shop_pass(tmp_path: Path) -> None:
    shop = shutil.copytree(SHOP, tmp_path / "shop")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    # No plugins but ours: what else this environment holds is not the reader's.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "sessionkit.integrations.pytest_plugin"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=shop, env={**inherited, **alone}, capture_output=True, text=True, timeout=100, check=False
    )
    assert "\n5 passed" in done.stdout, done.stdout + done.stderr


def test_the_bank_is_what_its_page_has_built() -> None:
    assert pieces((BANK / "accounts.py").read_text()) == pieces("\n".join(shown("accounts.py")))
    for file, title in [
        ("conftest.py", "conftest.py of the bank"),
        ("test_wrong.py", "test_wrong.py"),
        ("test_right.py", "test_right.py"),
    ]:
        assert [(BANK / file).read_text().strip()] == [source.strip() for source in shown(title)]


@pytest.mark.doors("postgresql-sync")
@pytest.mark.own_database
def test_the_tests_of_the_bank_end_as_its_page_says(doors: Door, tmp_path: Path) -> None:
    bank = shutil.copytree(BANK, tmp_path / "bank")
    source = (bank / "accounts.py").read_text()
    url = doors.database.url(doors.driver).render_as_string(hide_password=False)
    (bank / "accounts.py").write_text(source.replace("postgresql+psycopg:///bank", url))
    doors.engine.dispose()
    doors.database.observer.dispose()
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "sessionkit.integrations.pytest_plugin"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=bank, env={**inherited, **alone}, capture_output=True, text=True, timeout=100, check=False
    )
    assert "\n1 failed, 4 passed" in done.stdout, done.stdout + done.stderr
    printed = " ".join(line.removeprefix("E").strip() for line in done.stdout.splitlines())
    (page,) = [block for block in blocks(TUTORIAL / "07-two-at-once.md") if "replay with" in block.source]
    assert " ".join(page.source.split()) in " ".join(printed.split())
