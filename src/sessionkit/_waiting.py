"""Waiting, for code that is written once: sync code sleeps, async code awaits behind the greenlet bridge."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.util import await_only

skipping: list[list[float]] = []
"""While tests skip the waits between attempts: one list per test, which collects the seconds not waited."""


def pause(delay: float) -> float:
    """Return how long to really wait between two attempts for a decided `delay`, in seconds."""
    for skipped in skipping:
        skipped.append(delay)
    return 0.0 if skipping else delay


def sleep(seconds: float, asynchronous: bool) -> None:
    """Wait for that many seconds."""
    if asynchronous:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
