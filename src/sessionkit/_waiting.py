"""Waiting, in the colour of who waits: for code that is written once and runs behind the greenlet bridge in async."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.util import await_only

skipped: list[float] | None = None
"""While a test skips the waits between attempts: those that were skipped, in seconds. Otherwise None."""


def pause(delay: float) -> float:
    """Return how long to wait between two attempts where `delay` was decided, in seconds."""
    if skipped is None:
        return delay
    skipped.append(delay)
    return 0.0


def sleep(seconds: float, asynchronous: bool) -> None:
    """Wait for so many seconds."""
    if asynchronous:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
