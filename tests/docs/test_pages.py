"""The documentation is true: its Python runs, and what it shows is what happens. (pages.py tells what blocks mean.)"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionkit.cli._ledger import Ledger
from tests.docs.pages import ADDRESSES, EXAMPLES, ROOT, Reader, Wrong, blocks, named, pages, readings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL

    from tests.support.doors import Door

ASYNC = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


@pytest.fixture
def reader(doors: Door) -> Iterator[Reader]:
    """A reader with the names of docs/examples.md, on two databases of the door's backend."""
    examples: dict[str, Any] = {"__name__": "examples"}
    block = next(block for block in blocks(EXAMPLES) if block.language == "python")
    exec(compile(block.source, block.where, "exec", dont_inherit=True), examples)
    examples.pop("engine").dispose()
    first, second = doors.database.url(doors.driver), doors.other_engine().url
    ledger = Ledger()
    with asyncio.Runner() as loop:
        sync_engine = create_engine(first)
        engines = [create_async_engine(_async(first)), create_async_engine(_async(second))]
        for url in (first, second):
            filled = create_engine(url)
            examples["fill"](filled)
            filled.dispose()
        ledger.follow(Engine)
        # What SQLAlchemy asks a server at the first connection is not the page's.
        sync_engine.connect().close()
        for engine in engines:
            loop.run(_connect(engine))
        names = {**examples, "engine": sync_engine, "async_engine": engines[0]}
        async_names: dict[str, Any] = {"engine": engines[1], "async_engine": engines[1]}
        try:
            own = {ADDRESSES[""]: _told(first), ADDRESSES["async"]: _told(_async(second))}
            yield Reader(doors.backend, ledger, names, async_names, loop, own)
        finally:
            ledger.leave()
            sys.modules.pop(
                "examples", None
            )  # a queue imports the module of its job, and finds the directory of this name
            # Those of the page as well.
            for made in {sync_engine, *engines, *filter(_is_engine, (*names.values(), *async_names.values()))}:
                loop.run(made.dispose()) if isinstance(made, AsyncEngine) else made.dispose()


def _is_engine(value: object) -> bool:
    return isinstance(value, Engine | AsyncEngine)


async def _connect(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


def _async(url: URL) -> URL:
    return url.set(drivername=ASYNC[url.get_backend_name()])


def _told(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.parametrize("together", readings(), ids=named(together[0] for together in readings()))
def test_a_page_is_true(together: list[Path], reader: Reader) -> None:
    for page in together:
        assert reader.read(page)


@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```python\n1 / 0\n```", 'raised an error that no ```text title="error" shows'),
        ("```python\n1 / 0\n```\n```python\n```", 'raised an error that no ```text title="error" shows'),
        ('```python\nprint(1)\n```\n```text title="output"\n2\n```', "gives\n\n1"),
        ('```python\n```\n```text title="error"\nValueError: no\n```', "raised nothing"),
        (
            "```python\nfrom sessionkit import current_session\ncurrent_session()\n```\n"
            '```text title="error"\nNoCurrentSession: ...\n(More: https://sessionkit.example/)\n```',
            "errors/#NoCurrentSession)",
        ),
        ("```python\nengine.connect().close()\n```\n```sql\nCOMMIT\n```", "gives\n\n"),
        (
            "```python\nwith engine.begin() as c:\n    c.execute(select(User))\n```\n```sql\nSELECT 0\nCOMMIT\n```",
            "FROM user_account",
        ),
    ],
)
def test_a_page_that_lies_is_caught(
    text: str, told: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    page = tmp_path / "lies.md"
    page.write_text(text)
    with pytest.raises(Wrong, match=re.escape(told)):
        reader.read(page)


# The site


def nav() -> set[str]:
    return set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))


def test_every_page_is_in_the_navigation() -> None:
    assert nav() == {str(page.relative_to(ROOT / "docs")) for page in pages() if page.name != "README.md"}


@pytest.mark.parametrize("page", pages(), ids=named(pages()))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", link)]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
    assert not re.search(r"issue #?\d|/work/|/tmp/", text)


SOUGHT = {
    "replace session_scope()": "how-to/replace-session-scope.md",
    "retry": "how-to/retry-a-unit-of-work.md",
    "test code that commits": "how-to/test-code-that-commits.md",
    "load a CSV": "how-to/load-a-messy-csv.md",
    "what an error means": "errors.md",
    "which tool": "how-to/which-tool.md",
}


def clicks(start: Path) -> dict[str, int]:
    """Return how many links of the texts, without the navigation, lead from a page to each other page."""
    docs = ROOT / "docs"
    far, found = {start: 0}, [start]
    for page in found:
        for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target not in far:
                far[target] = far[page] + 1
                found.append(target)
    return {page.relative_to(docs).as_posix(): far[page] for page in found if page.is_relative_to(docs)}


def test_what_people_look_for_is_three_clicks_from_the_front_page() -> None:
    far = clicks(ROOT / "docs" / "index.md")
    assert {what: far.get(page, 99) for what, page in SOUGHT.items() if far.get(page, 99) > 3} == {}


TOOLS = {
    "lost updates": "hidden-version-field",
    "deadlocks": "retry-a-unit-of-work",
    "hot rows": "live-with-hot-rows",
    "read-only reports": "make-a-read-only-report",
    "many rows": "bulk-upsert",
    "many databases": "commit-several-databases-as-one",
    "tests": "test-code-that-commits",
    "one at a time": "run-one-at-a-time",
    "jobs": "take-jobs-from-a-table",
    "a lost COMMIT": "find-out-whether-a-commit-went-through",
}


def test_the_table_of_tools_has_a_line_for_each_problem() -> None:
    text = (ROOT / "docs" / "how-to" / "which-tool.md").read_text(encoding="utf-8")
    assert [problem for problem, page in TOOLS.items() if f"]({page}.md)" not in text] == []
