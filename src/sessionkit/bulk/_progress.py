"""A progress bar on standard error: rows so far, rows per second, time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTH = 24


class Bar:
    """Draws itself at most ten times per second, and once at the end.

    Args:
        label: what the call does.
        total: the number of rows to come, or None.
        stream: where to write; by default standard error.
        clock: returns seconds; monotonic.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._full, self._empty = _glyphs(getattr(self._stream, "encoding", None))
        self._clock = clock
        self._started = clock()
        self._drawn: float | None = None
        self._rows = 0

    def __call__(self, rows: int, total: int | None = None) -> None:
        """Show that `rows` rows are done."""
        self._rows = rows
        now = self._clock()
        if self._stream.isatty() and (self._drawn is None or now - self._drawn >= 0.1):
            self._drawn = now
            self._stream.write(f"\r{self.line(now)}\x1b[K")
            self._stream.flush()

    def close(self) -> None:
        """Show the last state, and end the line."""
        end = "\x1b[K\n" if self._stream.isatty() else "\n"
        start = "\r" if self._stream.isatty() else ""
        self._stream.write(f"{start}{self.line(self._clock())}{end}")
        self._stream.flush()

    def line(self, now: float) -> str:
        """Return the text of the bar."""
        seconds = max(now - self._started, 1e-9)
        rate = self._rows / seconds
        if self._total is None:
            return f"{self._label}  {self._rows:,} rows  {rate:,.0f}/s  {_span(seconds)}"
        share = min(self._rows / self._total, 1.0) if self._total else 1.0
        filled = round(share * _WIDTH)
        left = _span((self._total - self._rows) / rate) if rate else "?"
        bar = self._full * filled + self._empty * (_WIDTH - filled)
        return f"{self._label} {bar} {share:4.0%}  {self._rows:,}/{self._total:,} rows  {rate:,.0f}/s  {left} left"


def _glyphs(encoding: str | None) -> tuple[str, str]:
    try:
        "█░".encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "#", "."
    return "█", "░"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
