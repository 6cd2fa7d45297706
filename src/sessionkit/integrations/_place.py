"""Finds the running line in the user's code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["place"]

# Packages whose code is never the user's: ours, our dependencies, and modules that only start threads and tasks.
_PASSED_OVER = {"asyncio", "concurrent", "contextlib", "sessionkit", "sqlalchemy", "threading"}


def place() -> str:
    """Return the running file and line in the user's code: the innermost frame that is neither ours nor SQLAlchemy's."""
    frame: FrameType | None = sys._getframe(1)
    greenlet: Any = None
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in _PASSED_OVER:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
        if (
            frame is None and "greenlet" in sys.modules
        ):  # async code: continue with the code that waits for this greenlet
            greenlet = (greenlet or sys.modules["greenlet"].getcurrent()).parent
            frame = None if greenlet is None else greenlet.gr_frame
    return "an unknown place"
