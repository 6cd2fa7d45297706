"""The rows that the tour loads, made one by one on demand, and a gauge of the memory used meanwhile."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST", "LoadBase", "Memory", "Reading", "Readings"]

MOST = 2**31 - 1
"""The keys of the table are 4 bytes wide."""


class LoadBase(DeclarativeBase):
    """Base of the table that is loaded."""


class Reading(LoadBase):
    """A reading of a sensor."""

    __tablename__ = "sessionkit_demo_readings"

    id: Mapped[int] = mapped_column(primary_key=True)
    sensor: Mapped[str] = mapped_column(String(20))
    value: Mapped[float]
    taken_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    faulty: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str | None]


class Readings:
    """Rows without a list of them. Their number is known, so a progress bar can show the time left."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = datetime(2020, 1, 1, tzinfo=UTC)
        for number in range(self._count):
            yield {
                "sensor": f"sensor {number % 97}",
                "value": number / 7,
                "taken_at": start + timedelta(seconds=number),
                "note": f"reading {number}" if number % 2 else None,
            }


class Memory:
    """The memory of the process now, and its peak since this object was made.

    Attributes:
        known: whether this system reports it.
    """

    _pages = Path("/proc/self/statm")

    def __init__(self) -> None:
        self._before = self._most = self._now()
        self.known = self._before > 0

    def look(self, rows: int, total: int | None) -> None:
        """Measure now; bulk calls this after each chunk."""
        self._most = max(self._most, self._now())

    @property
    def grown(self) -> float:
        """Return the growth in MB."""
        return (self._most - self._before) / 2**20

    def _now(self) -> int:
        if self._pages.exists():
            import resource

            return int(self._pages.read_text().split()[1]) * resource.getpagesize()
        try:
            import resource
        except ImportError:  # Windows
            return 0
        # The peak so far: good enough to see whether it rises. In KB, except on macOS.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
