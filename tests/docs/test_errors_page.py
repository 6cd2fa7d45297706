"""The page of errors has a place for each of them, and the address at the end of an error leads there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib

import pytest

import sessionkit
from sessionkit.errors import DOCUMENTATION, SessionKitError, address_of
from tests.docs.pages import ROOT, blocks, pages

PAGE = ROOT / "docs" / "errors.md"
TEXT = PAGE.read_text(encoding="utf-8")
ANCHORS = re.findall(r"^#+ (\w+) \{ ?#\1 ?\}$", TEXT, re.MULTILINE)


def of_ours() -> list[type[SessionKitError]]:
    """Return the exceptions of all modules of the package, public or not."""
    for module in pkgutil.walk_packages(sessionkit.__path__, "sessionkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [SessionKitError]
    for kind in found:  # grows while it is walked
        found += [sub for sub in kind.__subclasses__() if sub.__module__.startswith("sessionkit") and sub not in found]
    return found


KINDS = of_ours()


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_the_address_of_an_error_is_a_section_of_the_page(kind: type[SessionKitError]) -> None:
    address, _, anchor = address_of(kind.__new__(kind)).partition("#")
    assert address == f"{DOCUMENTATION}{PAGE.stem}/"
    assert ANCHORS.count(anchor) == 1


def test_every_section_is_of_an_exception() -> None:
    assert set(ANCHORS) <= {kind.__name__ for kind in KINDS}


def test_the_documentation_is_said_to_be_at_one_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert project["urls"]["Documentation"] == DOCUMENTATION
    assert re.findall(r"^site_url: (.*)$", site, re.MULTILINE) == [DOCUMENTATION]
    assert "use_directory_urls: true" in site  # the page is at errors/, not at errors.html


def test_a_page_shows_an_address_and_only_addresses_that_there_are() -> None:
    shown = [
        (page.name, *found)
        for page in pages()
        for block in blocks(page)
        for found in re.findall(r"\(More: (\S+)#(\w+)\)", block.source)
    ]
    assert "errors.md" in {name for name, _, _ in shown}
    assert {address for _, address, _ in shown} == {f"{DOCUMENTATION}errors/"}
    assert {anchor for _, _, anchor in shown} <= set(ANCHORS)


def test_the_table_at_the_top_has_a_line_for_each() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \| [^|]+ \| [^|]+ \| [^|]+ \|$", TEXT, re.MULTILINE)
    assert all(name == anchor for name, anchor in rows)
    assert sorted(name for name, _ in rows) == sorted(ANCHORS)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_section_says_what_to_do(anchor: str) -> None:
    section = re.split(rf"^#+ {anchor} \{{.*\n", TEXT, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", re.sub(r"```.*?```", "", section, flags=re.DOTALL), flags=re.MULTILINE)[0]
    assert "**What to do.**" in section or "| the message says | do this |" in section
