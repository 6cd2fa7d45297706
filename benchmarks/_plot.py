"""Bars as SVG, for light and dark pages, with a text for readers who cannot see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLE = """
    text { font: 13px sans-serif; fill: #1f2328; }
    .value { fill: #57606a; } .head { font-weight: 600; }
    .bar { fill: #8c959f; } .ours { fill: #1f883d; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .value { fill: #9198a1; }
      .bar { fill: #6e7681; } .ours { fill: #3fb950; }
    }"""
_LEFT, _WIDE, _HIGH = 290, 330, 24


class Bar(NamedTuple):
    """One bar of a group: its name, its length, and the text next to it."""

    name: str
    value: float
    label: str
    ours: bool


def bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Draw groups of bars; the longest bar of a group takes the whole width."""
    text = ". ".join(f"{head}: {'; '.join(f'{bar.name} {bar.label}' for bar in group)}" for head, group in groups)
    height = sum(len(group) * _HIGH + 40 for _, group in groups) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDE + 150} {height}" role="img">',
        f"  <title>{escape(title)}</title>",
        f"  <desc>{escape(text)}.</desc>",
        f"  <style>{_STYLE}\n  </style>",
    ]
    y = 0
    for head, group in groups:
        most = max(bar.value for bar in group)
        lines.append(f'  <text x="{_LEFT}" y="{y + 22}" class="head">{escape(head)}</text>')
        y += 30
        for bar in group:
            width = max(2, round(bar.value / most * _WIDE))
            kind = "ours" if bar.ours else "bar"
            lines += [
                f'  <text x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(bar.name.strip())}</text>',
                f'  <rect x="{_LEFT}" y="{y + 3}" width="{width}" height="{_HIGH - 7}" rx="2" class="{kind}"/>',
                f'  <text x="{_LEFT + width + 8}" y="{y + 15}" class="value">{escape(bar.label)}</text>',
            ]
            y += _HIGH
        y += 10
    return "\n".join([*lines, "</svg>", ""])
