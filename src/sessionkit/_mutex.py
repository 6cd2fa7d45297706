"""Which mutex is meant, and how long to wait for a lock: turns what you write into what the database gets. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Any
from uuid import UUID

from .errors import OptionError


def mutex_text(value: object) -> str:
    """Return the text of a mutex key, the same in every process; see `mutex_key`.

    Raises:
        OptionError: a value of this type has no such text.
    """
    if isinstance(value, tuple):
        return f"t{len(value)}({' '.join(map(mutex_text, value))})"
    kind, text = _scalar(value)
    try:
        return f"{kind}{len(text.encode())}:{text}"
    except UnicodeEncodeError:
        raise OptionError(f"mutex={value!r} was asked for, but a string with lone surrogates has no bytes") from None


def _scalar(value: Any) -> tuple[str, str]:
    if isinstance(value, str):
        return "s", str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return "i", int.__repr__(value)
    if isinstance(value, bytes):
        return "b", value.hex()
    if isinstance(value, UUID):
        return "u", str(value)
    raise OptionError(
        f"mutex={value!r} was asked for, but a {type(value).__name__} has no text that is the same in every process; use a "
        "str, int, bytes or UUID, or a tuple of these"
    )


def mutex_key(value: Any) -> int:
    """Return the number under which a mutex is held, for other programs that want to hold it too.

    On PostgreSQL it is the argument of ``pg_advisory_xact_lock(bigint)``. It is the same in every process, on every
    machine and in every release: the first 8 bytes, read as a signed big-endian integer, of the SHA-256 of the UTF-8
    bytes of this text:

    - ``str``: ``s``, its length in UTF-8 bytes, ``:``, and the string: ``s7:billing``
    - ``int``: ``i``, the number of characters, ``:``, and its decimal digits, with ``-`` if it is negative: ``i2:42``
    - ``bytes``: ``b``, the number of digits, ``:``, and its hexadecimal digits in lower case: ``b4:00ff``
    - ``UUID``: ``u36:`` and its usual form in lower case
    - a tuple: ``t``, its length, and the texts of its elements in brackets, separated by a space: ``t2(s7:billing i2:42)``

    Args:
        value: the value of ``mutex=``.

    Raises:
        OptionError: the value has another type; ``bool`` counts as one.

    Emits no SQL.
    """
    return int.from_bytes(sha256(mutex_text(value).encode()).digest()[:8], "big", signed=True)


def seconds_of(wait: object, given: str) -> float | None:
    """Return how long to wait, in seconds: None means for ever, 0 not at all.

    Raises:
        OptionError: it is not a time.
    """
    if wait is True:
        return None
    if wait is False:
        return 0.0
    if not isinstance(wait, int | float) or not 0 <= wait < float("inf"):
        raise OptionError(f"{given}; it is True, False, or a number of seconds, 0 or more")
    return float(wait)


def shown(seconds: float) -> str:
    """Return a wait as a message says it: in seconds, with two digits behind the point at most."""
    return f"{max(0.01, round(seconds, 2)):f}".rstrip("0").rstrip(".") + " s"
