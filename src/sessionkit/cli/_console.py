"""The output of the commands: with rich if it is installed, otherwise plain text."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Console", "PlainConsole", "console"]


class Console(Protocol):
    """The things that a command can print."""

    def title(self, text: str, below: str) -> None:
        """Print the title of the command, once."""

    def step(self, number: int, title: str) -> None:
        """Begin a step."""

    def code(self, source: str) -> None:
        """Print Python code."""

    def sql(self, lines: Sequence[str]) -> None:
        """Print statements, one per line; a line that begins with ``--`` is a remark."""

    def result(self, text: str, good: bool) -> None:
        """Print the result of a step."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[tuple[bool | None, Sequence[str]]]) -> None:
        """Print a table; each row begins with a mark: True passed, False failed, None skipped."""

    def error(self, text: str) -> None:
        """Print to standard error why the command cannot go on."""


def console(plain: bool = False) -> Console:
    """Return the best console available."""
    if not plain:
        try:
            return RichConsole()
        except ImportError:
            pass
    return PlainConsole()


def _marks(encoding: str | None) -> dict[bool | None, str]:
    marks: dict[bool | None, str] = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "-"}
    try:
        "".join(marks.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return {True: "ok", False: "FAILED", None: "-"}
    return marks


class PlainConsole:
    """Text for every terminal and for files."""

    width = 100

    def __init__(self) -> None:
        self._marks = _marks(sys.stdout.encoding)

    def title(self, text: str, below: str) -> None:
        print(f"{text}\n{'=' * len(text)}")
        print(textwrap.fill(below, self.width))

    def step(self, number: int, title: str) -> None:
        print(f"\n{number}. {title}\n{'-' * (len(title) + len(str(number)) + 2)}")

    def code(self, source: str) -> None:
        print(textwrap.indent(source, "    "))

    def sql(self, lines: Sequence[str]) -> None:
        for line in lines:
            print(textwrap.fill(line, self.width, initial_indent="  > ", subsequent_indent="      "))

    def result(self, text: str, good: bool) -> None:
        mark = f"{self._marks[good]} "
        print(textwrap.fill(text, self.width, initial_indent=mark, subsequent_indent=" " * len(mark)))

    def table(self, title: str, header: Sequence[str], rows: Sequence[tuple[bool | None, Sequence[str]]]) -> None:
        lines = [("", *header), *((self._marks[mark], *cells) for mark, cells in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(f"\n{title}\n{'-' * len(title)}")
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())

    def error(self, text: str) -> None:
        print(f"sessionkit: {text}", file=sys.stderr)


class RichConsole(PlainConsole):
    """The same with colours.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console as Rich

        self._rich: Any = Rich(highlight=False)

    def title(self, text: str, below: str) -> None:
        from rich.panel import Panel
        from rich.text import Text

        body = Text.assemble((text, "bold"), "\n", (below, "dim"))
        self._rich.print(Panel(body, expand=False, border_style="cyan"))

    def step(self, number: int, title: str) -> None:
        from rich.rule import Rule
        from rich.text import Text

        self._rich.print()
        self._rich.print(Rule(Text(f"{number}. {title}", "bold cyan"), align="left", style="cyan"))

    def code(self, source: str) -> None:
        from rich.padding import Padding

        self._rich.print(Padding(_syntax(source, "python"), (0, 0, 1, 2)))

    def sql(self, lines: Sequence[str]) -> None:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        for line in lines:
            remark = line.startswith("--")
            grid.add_row(Text("  >", "cyan"), Text(line, "italic yellow") if remark else _syntax(line, "sql"))
        self._rich.print(grid)

    def result(self, text: str, good: bool) -> None:
        from rich.text import Text

        self._rich.print(Text(f"{self._marks[good]} {text}", "green" if good else "bold red"))

    def table(self, title: str, header: Sequence[str], rows: Sequence[tuple[bool | None, Sequence[str]]]) -> None:
        from rich.table import Table
        from rich.text import Text

        styles = {True: "green", False: "bold red", None: "dim"}
        table = Table(title=title, title_justify="left", title_style="bold", border_style="cyan")
        table.add_column("")
        for name in header:
            table.add_column(name)
        for mark, cells in rows:
            table.add_row(Text(self._marks[mark], styles[mark]), *(Text(cell) for cell in cells))
        self._rich.print()
        self._rich.print(table)


def _syntax(source: str, language: str) -> Any:
    from rich.syntax import Syntax

    return Syntax(source, language, theme="ansi_dark", background_color="default", word_wrap=True)
