"""How findings are shown: one screen of text, with colours where the terminal has them, or JSON."""

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
"""The version of the JSON: it changes when a key goes or gets another meaning, not when one is added."""

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
    """Return the findings as a document (docs/reference/command-line.md tells its keys)."""
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
    """Lay the findings out: a line for each that is well, and under what is not, what mends it."""
    where = f"  {patient.asked}" + (f"  {patient.address}" if patient.own else "")
    yield [("sessionkit doctor", "bold"), (_printable(where), "dim")]
    yield []
    shown = _folded(findings)
    column = max((len(finding.check) for finding in shown), default=0)
    # Where there is little room, what goes on does so at the left.
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
        (f"{counts['fail']} to mend", "bold red" if counts["fail"] else ""),
        (", ", ""),
        (f"{counts['warn']} to think about", "bold yellow" if counts["warn"] else ""),
        (", ", ""),
        (f"{counts['ok']} well", "green"),
    ]


def _printable(text: str) -> str:
    """Return a text that moves no cursor: names of others are in it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _folded(findings: list[Finding]) -> list[Finding]:
    """Return the findings with one for all presets that are well."""
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
    """Print the findings as wide as the terminal is."""
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
    # It leaves the colours out by itself where NO_COLOR is set, or the output is no terminal.
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False, width=width, soft_wrap=True) if sys.stdout.isatty() else None
