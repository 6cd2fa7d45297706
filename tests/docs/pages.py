"""Pages of the documentation that are run: every Python block, and the SQL, the output and the errors shown under it.

Sybil finds the fenced blocks; what they mean is said here. The blocks of a page run in their order and share names.

```python               is run. `await`, `async with` and `async for` may stand at the top level.
```sql title="SQLite"   is what the Python block above has sent, one statement a line (a line that is indented goes on
                        the one above, `--` is a remark, `...` stands for anything). Checked on the backend that the
                        title names, on both without a title. Where tabs stand above, the last block of each tab has
                        sent it.
```text title="output"  is what the Python block above has printed.
```text title="error"   is what it has raised. A block that raises without it fails. The address at the end of our own
                        errors may be left out.

The names at hand are those of docs/examples.md: its models, `engine` and `async_engine` on one database with those
tables and rows. A block in a tab that is called "async" has names of its own, there `engine` is asynchronous, and a
database of its own: so both tabs can say the same. What a block outside of the tabs defines, both have.

The pages of the tutorial are read one after the other, as one page. They make engines of their own: the address of a
database that stands in one (`ADDRESSES`) is that of the test's.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from sessionkit import errors

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from sessionkit.cli._ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples.md"
TUTORIAL = ROOT / "docs" / "tutorial"
ADDRESSES = {"": "sqlite:///shop.db", "async": "sqlite+aiosqlite:///shop.db"}
"""What the pages call the databases of the two tabs."""


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def readings() -> list[list[Path]]:
    """Return the pages that hold Python, each in a list of those that are read together."""
    alone = [page for page in pages() if any(block.language == "python" for block in blocks(page))]
    tutorial = [page for page in alone if page.parent == TUTORIAL]
    return [tutorial, *([page] for page in alone if page not in tutorial)]


class Wrong(AssertionError):
    """A page says what is not so."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    source: str
    tab: str
    where: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    document = Document(text, str(page))
    lexer = FencedCodeBlockLexer(r"[a-z]+[^\n]*", mapping={"source": "source"})
    found = []
    for region in sorted(lexer(document), key=lambda region: region.start):
        line = text.count("\n", 0, region.start) + 1
        opening = text[region.start :].lstrip("\n").splitlines()[0]
        info = opening.strip().strip("`~")
        title = re.search(r'title="([^"]*)"', info)
        tab = _tab_around(text[: region.start], len(opening) - len(opening.lstrip()))
        source = textwrap.dedent(str(region.lexemes["source"]))
        name = page.relative_to(ROOT)
        found.append(Block(info.split()[0], title[1] if title else "", source, tab, f"{name}:{line}", line))
    return found


def _tab_around(above: str, indent: int) -> str:
    """Return the name of the tab that a block stands in: the last `=== "name"` that is indented less."""
    if not indent:
        return ""
    tabs = re.findall(r'^( *)===\!? "([^"]+)"', above, re.MULTILINE)
    return next((name for spaces, name in reversed(tabs) if len(spaces) < indent), "")


@dataclass
class Run:
    """What a Python block has done."""

    block: Block
    sql: list[str]
    output: str
    error: BaseException | None
    error_seen: bool = False


@dataclass
class Reader:
    """Reads a page as the tests do: runs it, and compares what it shows with what happens."""

    backend: str
    ledger: Ledger
    names: dict[str, Any]
    async_names: dict[str, Any]
    loop: asyncio.Runner
    addresses: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    _lent: dict[str, Any] = field(default_factory=dict)

    def read(self, page: Path) -> int:
        """Return how many Python blocks were run.

        Raises:
            Wrong: the page says what is not so.
        """
        count = 0
        for block in blocks(page):
            if block.language == "python":
                self._check_that_no_error_was_hidden()
                self._run(block)
                count += 1
            elif block.language == "sql":
                self._check_sql(block)
            elif block.language == "text" and block.title == "output":
                self._compare(block, block.source.splitlines(), self._last(block).output.splitlines())
            elif block.language == "text" and block.title == "error":
                self._check_error(block)
        self._check_that_no_error_was_hidden()
        return count

    def _run(self, block: Block) -> None:
        names = self.names
        if block.tab == "async":
            names = self.async_names
            for name, value in self.names.items():
                if name not in names or names[name] is self._lent.get(name, self):
                    names[name] = self._lent[name] = value
        # The blank lines make the line numbers of a traceback those of the page.
        source = "\n" * block.line + block.source
        for shown, real in self.addresses.items():
            source = source.replace(f'"{shown}"', repr(real))
        code = compile(source, block.where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        printed = StringIO()
        error: BaseException | None = None
        with self.ledger.recording(), redirect_stdout(printed):
            try:
                if code.co_flags & inspect.CO_COROUTINE:
                    self.loop.run(eval(code, names))
                else:
                    exec(code, names)
            except Exception as raised:  # noqa: BLE001 - the page may say so
                error = raised
        self.runs.append(Run(block, self.ledger.lines, printed.getvalue(), error))

    def _last(self, block: Block) -> Run:
        if not self.runs:
            raise Wrong(f"{block.where}: no Python block stands above")
        return self.runs[-1]

    def _check_that_no_error_was_hidden(self) -> None:
        if self.runs and (last := self.runs[-1]).error is not None and not last.error_seen:
            raise Wrong(f'{last.block.where} raised an error that no ```text title="error" shows') from last.error

    def _check_error(self, block: Block) -> None:
        last = self._last(block)
        if last.error is None:
            raise Wrong(f"{block.where}: the block above raised nothing")
        last.error_seen = True
        said = str(last.error) if "(More: " in block.source else errors.message_of(last.error)
        text = f"{type(last.error).__name__}: {said}"
        # A message is one long line; the page may break it.
        self._compare(block, [_squeezed(block.source)], [_squeezed(text)])

    def _check_sql(self, block: Block) -> None:
        titles = {"SQLite": "sqlite", "PostgreSQL": "postgresql", "": self.backend}
        if titles.get(block.title) != self.backend:
            return
        for run in self._above(block):
            self._compare(block, statements(block.source), run.sql, run.block.where)

    def _above(self, block: Block) -> list[Run]:
        """Return what the block above has done; where it stands in tabs, the last block of each of them."""
        last = self._last(block)
        tabs: dict[str, Run] = {}
        for run in reversed(self.runs):
            if not run.block.tab or (run.block.tab in tabs and run.block.tab != last.block.tab):
                break
            tabs.setdefault(run.block.tab, run)
        return list(tabs.values()) or [last]

    def _compare(self, block: Block, shown: list[str], real: list[str], by: str = "") -> None:
        if len(shown) != len(real) or not all(map(_same, shown, real)):
            happened = "\n".join(real)
            by = by or "the block above"
            raise Wrong(f"{block.where} shows on {self.backend}\n\n{block.source}\nbut {by} gives\n\n{happened}")


def statements(source: str) -> list[str]:
    """Return the statements that an SQL block shows."""
    joined: list[str] = []
    for line in source.splitlines():
        if line.strip().startswith("--") or not line.strip():
            continue
        if line.startswith(" ") and joined:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line.strip())
    return [re.sub(r"\s+--.*", "", line) for line in joined]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _same(shown: str, real: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.rstrip().split("..."))
    return re.fullmatch(pattern, real.rstrip(), re.DOTALL) is not None


def named(paths: Iterable[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]
