"""Edits one column in the text of a CREATE TABLE, as SQLite keeps it. Text only; nothing here knows a database."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|$))
      | '(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
      | [(),] | [^\s(),'"`\[\-/]+ | .""",
    re.VERBOSE | re.DOTALL,
)


def with_column(sql: str, column: str, change: Callable[[str], str]) -> str | None:
    """Return the text with one column's definition changed; None if the column is not found."""
    for start, end in _elements(sql):
        tokens = _words(sql, start, end)
        if tokens and _unquoted(sql[slice(*tokens[0])]).lower() == column.lower():
            first, last = tokens[0][0], tokens[-1][1]
            return sql[:first] + change(sql[first:last]) + sql[last:]
    return None


def without_default(definition: str, default: str) -> str:
    """Return a column's definition without this default."""
    before, _, after = definition.rpartition(f" DEFAULT {default}")
    return before + after


def with_default(definition: str, default: str) -> str:
    """Return a column's definition with this default instead of any other."""
    words = _words(definition, 0, len(definition))
    depth = 0
    for place, (start, end) in enumerate(words):
        word = definition[start:end]
        depth += (word == "(") - (word == ")")
        if depth == 0 and word.upper() == "DEFAULT" and place + 1 < len(words):
            return f"{definition[:start].rstrip()}{definition[_end_of_value(definition, words[place + 1 :]) :]} DEFAULT {default}"
    return f"{definition} DEFAULT {default}"


def _end_of_value(definition: str, words: list[tuple[int, int]]) -> int:
    """Return where a default ends: a word, a number with its sign, or an expression in parentheses."""
    depth = 0
    for start, end in words:
        word = definition[start:end]
        depth += (word == "(") - (word == ")")
        if depth == 0 and word not in "+-":
            return end
    return words[-1][1]


def not_null(definition: str) -> str:
    """Return a column's definition with NOT NULL at its end."""
    return f"{definition} NOT NULL"


def nullable(definition: str) -> str:
    """Return a column's definition without NOT NULL."""
    depth = 0
    words = _words(definition, 0, len(definition))
    for (start, end), (next_start, next_end) in pairwise(words):
        word = definition[start:end].upper()
        depth += (word == "(") - (word == ")")
        if not depth and word == "NOT" and definition[next_start:next_end].upper() == "NULL":
            return definition[:start].rstrip() + definition[next_end:]
    return definition


def _elements(sql: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each column and constraint."""
    depth = start = 0
    for token in _TOKEN.finditer(sql):
        word = token.group()
        if word == "(":
            depth += 1
            if depth == 1:
                start = token.end()
        elif word == ")":
            depth -= 1
            if depth == 0:
                yield start, token.start()
                return
        elif word == "," and depth == 1:
            yield start, token.start()
            start = token.end()


def _words(sql: str, start: int, end: int) -> list[tuple[int, int]]:
    return [token.span() for token in _TOKEN.finditer(sql, start, end) if not token["space"]]


def _unquoted(name: str) -> str:
    if name[0] in "'\"`":
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name
