"""How to print values: ages, sizes, errors, other people's queries; never passwords."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import URL

__all__ = ["a_few", "address", "age", "at_least", "error_line", "query_start", "secrets_of", "size"]

_SECRET = re.compile(r"pass|secret|token|key", re.IGNORECASE)
_HIDDEN = "***"


def address(url: URL) -> str:
    """Return a URL without its password, even if that is in an argument for the driver."""
    hidden = {name: _HIDDEN for name in url.query if _SECRET.search(name)}
    # Replaced in the text: the URL would quote the asterisks.
    return url.update_query_dict(hidden).render_as_string().replace("%2A%2A%2A", _HIDDEN)


def secrets_of(url: URL) -> list[str]:
    """Return the parts of a URL that must not be printed."""
    values = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if _SECRET.search(name):
            values += [value] if isinstance(value, str) else value
    return values


def error_line(error: BaseException, secrets: Iterable[str]) -> str:
    """Return an error in one line: the driver's message, without the statement and its values."""
    while isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text


def age(seconds: float) -> str:
    """Return a duration in its two largest units."""
    for unit, length, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            rest = int(seconds % length // part)
            return f"{int(seconds // length)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"


def at_least(seconds: float) -> str:
    """Return the limit from which an age is reported."""
    return f"for {age(seconds)} or more" if seconds else "at all"


def size(count: float) -> str:
    """Return a number of bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.0f} TB"


def query_start(query: str, width: int = 40) -> str:
    """Return the start of a query, up to its first value, which may be a password or a person's name."""
    text = " ".join(query.split())
    start = re.split(r"'|\$\w*\$", text, maxsplit=1)[0][:width].rstrip()
    return start if start == text else f"{start} ..."


def a_few(names: Iterable[str], most: int = 4) -> str:
    """Return the first few of many names, and the number of the others."""
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
