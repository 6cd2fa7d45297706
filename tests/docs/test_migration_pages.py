"""The pages for those who come from elsewhere: what each of them has to have. That they run is test_pages.py's."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

import sessionkit
from tests.docs.pages import ROOT, blocks, named

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "docs" / "migrate"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "index.md")
SECTIONS = ["Before", "After", "What behaves differently", "Step by step"]


def section(page: Path, title: str) -> str:
    return re.split(rf"^## {title}\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without the lines under their heads."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in lines if not set("".join(cells)) <= {"-"}]


def test_there_is_a_page_for_each_that_the_index_names() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} == set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert len(PAGES) == 3


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_a_page_has_its_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    titles = [title for title in re.findall(r"^## (.*)$", text, re.MULTILINE) if title in SECTIONS]
    assert titles == SECTIONS
    assert "| what you write there | what you write here |" in text.partition("## Before")[0]
    assert re.search(r"was tried\s+with its\s+release\s+\d", text)  # a fact about others has a version


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_what_was_written_before_is_python_and_what_is_written_after_is_run(page: Path) -> None:
    after = page.read_text(encoding="utf-8").partition("\n## After\n")[0].count("\n") + 1
    found = [(block.line > after, block.language) for block in blocks(page)]
    assert found.count((False, "py")) == 1
    assert (False, "python") not in found
    assert (True, "python") in found
    for block in blocks(page):
        if block.language == "py":
            ast.parse(block.source)


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_the_tables_are_whole(page: Path) -> None:
    differences = section(page, "What behaves differently")
    rest = page.read_text(encoding="utf-8").replace(differences, "")
    assert rows(differences)
    assert {len(cells) for cells in rows(differences)} == {3}
    assert {len(cells) for cells in rows(rest)} == {2}


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_what_the_tables_name_is_there(page: Path) -> None:
    here = "\n".join(cells[-1] for cells in rows(page.read_text(encoding="utf-8")))
    for module, name in re.findall(r"`(bulk|errors)\.(\w+)", here):
        assert hasattr(getattr(sessionkit, module), name), f"{module}.{name}"
    for mode in re.findall(r'propagation="(\w+)"', here):
        sessionkit.session_scope(sessionkit.sessionmaker(), propagation=mode)
    for name in re.findall(r"`(on_commit|set_rollback_only|sessionmaker|expect_version|Versioned|Retry)\b", here):
        assert hasattr(sessionkit, name)
