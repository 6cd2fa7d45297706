"""Waiting, for code that is written once: it sleeps in sync code, and awaits behind the greenlet bridge in async code."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.util import await_only

skipping: list[list[float]] = []
"""While tests skip the waits between attempts: what each of them is told, in seconds."""


def pause(delay: float) -> float:
    """Return how long to wait between two attempts where `delay` was decided, in seconds."""
    for skipped in skipping:
        skipped.append(delay)
    return 0.0 if skipping else delay


def sleep(seconds: float, asynchronous: bool) -> None:
    """Wait for so many seconds."""
    if asynchronous:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
