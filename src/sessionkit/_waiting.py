"""Waiting, in the colour of who waits: for code that is written once and runs behind the greenlet bridge in async."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.util import await_only


def sleep(seconds: float, asynchronous: bool) -> None:
    """Wait for so many seconds."""
    if asynchronous:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
