"""Small SVG pictures for pages that are light or dark, and for screens that are as wide as a hand.

A picture follows the page's own switch between light and dark, since an image is given the colour scheme of the element
that holds it. It is 440 wide at most, so that 14 pixels of type are still legible on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 440
ROW = 30

STYLE = """
    :root { --text: #1f2328; --soft: #59636e; --line: #c4ccd4; --first: #0969da; --second: #8250df; --good: #1a7f37; --bad: #cf222e; }
    @media (prefers-color-scheme: dark) {
      :root { --text: #e6edf3; --soft: #9198a1; --line: #454c55; --first: #4493f8; --second: #ab7df8; --good: #3fb950; --bad: #f85149; }
    }
    text { font: 14px -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: var(--text); }
    .code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 12.5px; }
    .head { font-weight: 600; }
    .soft { fill: var(--soft); } .first { fill: var(--first); } .second { fill: var(--second); }
    .good { fill: var(--good); } .bad { fill: var(--bad); }
    .stroke { fill: none; stroke: var(--line); stroke-width: 1.5; }
    .stroke.first { stroke: var(--first); } .stroke.second { stroke: var(--second); }
    .stroke.good { stroke: var(--good); } .stroke.bad { stroke: var(--bad); } .stroke.soft { stroke: var(--soft); }
    .thick { stroke-width: 3; stroke-linecap: round; } .dashed { stroke-dasharray: 2 6; }
    .tint { fill-opacity: .12; stroke: none; }"""


@dataclass
class Picture:
    """What is drawn, and what is said to those who do not see it."""

    title: str
    told: str
    height: float = 0
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", *, upright: bool = True
    ) -> None:
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        place += "" if upright else f' transform="rotate(90 {x:g} {y:g})"'
        look = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{look}{place}>{escape(text, quote=False)}</text>')

    def line(self, path: str, kind: str = "", *, arrow: bool = False) -> None:
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<path d="{path}" class="{f"stroke {kind}".strip()}"{end}/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="4.5" class="{kind}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str = "", *, dashed: bool = False) -> None:
        """Draw a rounded rectangle; with a kind, it is filled with a tint of its colour."""
        shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"'
        if kind:
            self.parts.append(f'{shape} class="{kind} tint"/>')
        self.parts.append(f'{shape} class="{f"stroke {kind}".strip()}{" dashed" * dashed}"/>')

    def verdict(self, text: str, kind: str) -> None:
        """Say below everything what came of it."""
        self.box(8, self.height + 4, WIDTH - 16, 33, kind)
        self.text(WIDTH / 2, self.height + 25, text, f"{kind} head", "middle")
        self.height += 49

    def heading(self, text: str) -> None:
        self.text(8, self.height + 20, text, "head")
        self.height += 32

    def times(self, lanes: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draw what happens in several lanes, the time runs down: each row holds a cell for each lane.

        A lane whose name begins with `=` shows a value, and the others what somebody does to it: from BEGIN to the end of
        the transaction a line leads from dot to dot. A cell that begins with `!` went wrong, with `+` well, and one that
        begins with `~` is a wait.
        """
        values = [lane.startswith("=") for lane in lanes]
        wide = (WIDTH - 76 * sum(values)) / (len(lanes) - sum(values))
        left, x = [], 0.0
        for is_value in values:
            left.append(x)
            x += 76 if is_value else wide
        kinds = iter(("first", "second", "soft"))
        look = ["soft" if is_value else next(kinds) for is_value in values]
        top = self.height
        for lane, start, is_value, kind in zip(lanes, left, values, look, strict=True):
            if is_value:
                self.text(start + 38, top + 18, lane[1:], "soft", "middle")
            else:
                self.text(start + 9, top + 18, lane, f"head {kind}")
        for number, (start, is_value, kind) in enumerate(zip(left, values, look, strict=True)):
            cells = [(top + 42 + ROW * at, row[number]) for at, row in enumerate(rows) if row[number]]
            if is_value:
                self._values(start, cells)
            else:
                self._doings(start + 16, kind, cells)
        self.height = top + 42 + ROW * len(rows) - 8

    def _values(self, start: float, cells: Sequence[tuple[float, str]]) -> None:
        for y, cell in cells:
            kind = {"!": "bad", "+": "good"}.get(cell[0], "")
            self.box(start + 18, y - 12, 40, 24, kind)
            self.text(start + 38, y + 5, cell.lstrip("!+"), f"code {kind}".strip(), "middle")

    def _doings(self, x: float, kind: str, cells: Sequence[tuple[float, str]]) -> None:
        for (begun, before), (y, cell) in pairwise(cells):
            if before.lstrip("!+").split(":")[0] not in {"COMMIT", "ROLLBACK"}:
                self.line(f"M{x:g} {begun:g}V{y:g}", f"{kind} thick{' dashed' * ('~' in before + cell)}")
        for y, cell in cells:
            told = {"!": "bad", "+": "good", "~": "soft"}.get(cell[0], "")
            word = cell.lstrip("!+~")
            code = "code" if word.isupper() else ""
            if cell[0] != "~":
                self.dot(x, y, told or kind)
            self.text(x + 13, y + 5, word, f"{code} {told}".strip())

    def svg(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height:g}" '
                f'viewBox="0 0 {WIDTH} {self.height:g}" role="img">',
                f"<title>{escape(self.title, quote=False)}</title>",
                f"<desc>{escape(self.told, quote=False)}</desc>",
                f"<style>{STYLE}\n</style>",
                '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
                '<path d="M0 0L8 4L0 8Z" class="soft"/></marker></defs>',
                *self.parts,
                "</svg>",
                "",
            ]
        )
