"""A schedule as a picture: a column of SQL for each unit, time goes down. For pages that are light or dark."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ._story import lines_of

if TYPE_CHECKING:
    from ._schedule import Schedule, Told

__all__ = ["draw"]

COLUMN, LINE, MARGIN = 340, 17, 16
LETTERS = 46

STYLE = """
    :root { --text: #1f2328; --soft: #59636e; --line: #c4ccd4; --bad: #cf222e; }
    @media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #454c55; --bad: #f85149; } }
    text { font: 12.5px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; fill: var(--text); white-space: pre; }
    .head { font-weight: 600; } .soft { fill: var(--soft); } .bad { fill: var(--bad); }
    path { fill: none; stroke: var(--line); stroke-width: 1.5; }
    .u1 { fill: #0969da; } .u2 { fill: #8250df; } .u3 { fill: #1a7f37; } .u4 { fill: #9a6700; }
    .tint { fill-opacity: .12; }"""


def draw(found: Told, schedule: Schedule) -> str:
    """Return the SVG of a schedule."""
    parts: list[str] = []
    y = MARGIN + LINE
    width = 2 * MARGIN + 24 + COLUMN * len(found.names)

    def text(x: float, text: str, kind: str = "") -> None:
        look = f' class="{kind}"' if kind else ""
        parts.append(f'<text x="{x:g}" y="{y:g}"{look}>{escape(text, quote=False)}</text>')

    for number, name in enumerate(found.names, 1):
        text(_left(number), f"unit {number}: {name}"[:LETTERS], f"head u{(number - 1) % 4 + 1}")
    y += LINE
    for place, step in enumerate(schedule.steps, 1):
        lines = lines_of(step, LETTERS)
        height = LINE * len(lines) + 6
        parts.append(
            f'<rect x="{_left(step.unit) - 8:g}" y="{y - LINE + 3:g}" width="{COLUMN - 8}" height="{height}" rx="4" '
            f'class="tint u{(step.unit - 1) % 4 + 1}"/>'
        )
        text(MARGIN, str(place), "soft")
        for line in lines:
            answer = line.lstrip().startswith("->")
            text(_left(step.unit), line, "bad" if answer and step.error is not None else "soft" if answer else "")
            y += LINE
        y += 10
    for number, outcome in enumerate(schedule.outcomes, 1):
        text(_left(number), str(outcome)[:LETTERS], "soft" if outcome.error is None else "bad")
    title = f"{found.names}: turns {schedule.seed}"
    told = ", ".join(f"unit {number} {outcome}" for number, outcome in enumerate(schedule.outcomes, 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {y + MARGIN:g}" width="{width:g}" '
        f'height="{y + MARGIN:g}" role="img"><title>{escape(title)}</title><desc>{escape(told)}</desc>'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _left(unit: int) -> float:
    return MARGIN + 24 + (unit - 1) * COLUMN
