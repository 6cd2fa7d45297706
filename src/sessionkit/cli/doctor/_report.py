"""Displays findings: one screen of text, with colours if the terminal supports them, or JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._finding import Finding, Status, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._patient import Patient

__all__ = ["SCHEMA", "as_json", "lines", "show"]

SCHEMA = 1
"""The version of the JSON: it changes when a key is removed or changes its meaning, not when one is added."""

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""

_MARKS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warn": ("WARN", "bold yellow"),
    "fail": ("FAIL", "bold red"),
}
_WIDEST = 120
_ROOMY = 100
_FOLDED = "isolation"


def as_json(patient: Patient, findings: list[Finding]) -> str:
    """Return the findings as a JSON document (docs/reference/command-line.md lists its keys)."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "sessionkit": version("sessionkit"),
            "database": patient.asked,
            "url": patient.address,
            "dialect": patient.engine.dialect.name,
            "driver": patient.engine.dialect.driver,
            "status": verdict(findings),
            "findings": [
                {
                    "check": finding.check,
                    "status": finding.status,
                    "found": finding.found,
                    "advice": finding.advice or None,
                }
                for finding in findings
            ],
        },
        indent=2,
    )


def lines(patient: Patient, findings: list[Finding], width: int) -> Iterator[Line]:
    """Lay out the findings: one line each, and below a problem the line that fixes it."""
    where = f"  {patient.asked}" + (f"  {patient.address}" if patient.own else "")
    yield [("sessionkit doctor", "bold"), (_printable(where), "dim")]
    yield []
    shown = _folded(findings)
    column = max((len(finding.check) for finding in shown), default=0)
    # On a narrow screen, continuation lines start at the left.
    indent = " " * (6 + column + 2 if width >= _ROOMY else 8)
    for finding in shown:
        mark, style = _MARKS[finding.status]
        head = f"{mark:<6}", f"{finding.check:<{column}}  "
        first, *more = textwrap.wrap(
            _printable(finding.found),
            max(20, width),
            initial_indent="".join(head),
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        yield [
            (head[0], style),
            (head[1], "dim" if finding.status == "ok" else "bold"),
            (first[sum(map(len, head)) :], ""),
        ]
        yield from ([(line, "")] for line in more)
        if finding.advice:
            wrapped = textwrap.wrap(
                _printable(finding.advice), max(20, width - len(indent) - 3), break_on_hyphens=False
            )
            for number, line in enumerate(wrapped):
                yield [(indent, ""), ("-> " if number == 0 else "   ", "cyan"), (line, "cyan")]
    yield []
    counts = {status: sum(1 for finding in findings if finding.status == status) for status in _MARKS}
    yield [
        (f"{counts['fail']} error{'s' * (counts['fail'] != 1)}", "bold red" if counts["fail"] else ""),
        (", ", ""),
        (f"{counts['warn']} warning{'s' * (counts['warn'] != 1)}", "bold yellow" if counts["warn"] else ""),
        (", ", ""),
        (f"{counts['ok']} ok", "green"),
    ]


def _printable(text: str) -> str:
    """Return text without control characters, because it contains names from outside."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _folded(findings: list[Finding]) -> list[Finding]:
    """Return the findings, with one line for all presets without a problem."""
    given: dict[str, list[str]] = {}
    for finding in findings:
        group, _, name = finding.check.partition(".")
        if group == _FOLDED and finding.status == "ok":
            given.setdefault(finding.found, []).append(name.replace("_", " ") if name.islower() else name)
    one = Finding(_FOLDED, "ok", "; ".join(f"{', '.join(names)}: {found}" for found, names in given.items()))
    folded: list[Finding] = []
    for finding in findings:
        if not (finding.check.startswith(f"{_FOLDED}.") and finding.status == "ok"):
            folded.append(finding)
        elif one not in folded:
            folded.append(one)
    return folded


def show(patient: Patient, findings: list[Finding], *, plain: bool) -> None:
    """Print the findings in the width of the terminal."""
    width = min(_WIDEST, shutil.get_terminal_size((100, 24)).columns)
    rich = None if plain else _rich(width)
    for line in lines(patient, findings, width):
        if rich is not None:
            from rich.text import Text

            rich.print(Text.assemble(*line, no_wrap=True))
        else:
            plain_text = "".join(text for text, _ in line).rstrip()
            encoding = sys.stdout.encoding or "ascii"
            print(plain_text.encode(encoding, "backslashreplace").decode(encoding))


def _rich(width: int) -> Any:
    # rich leaves out the colours if NO_COLOR is set or the output is not a terminal.
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False, width=width, soft_wrap=True) if sys.stdout.isatty() else None
