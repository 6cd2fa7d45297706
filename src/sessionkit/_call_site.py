"""Where user code called something, for a warning. Independent of the rest of sessionkit."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

_OURS = ("sessionkit", "sqlalchemy")


class CallSite(NamedTuple):
    """A line of user code, and Python's record of the warnings it has shown for it."""

    filename: str
    line: int
    registry: dict[Any, Any]

    def warn(self, message: str, category: type[Warning]) -> None:
        """Warn at this line. Use the same text for every line: Python keeps each text that differs."""
        warnings.warn_explicit(message, category, self.filename, self.line, registry=self.registry)


def call_site() -> CallSite | None:
    """Return the innermost line outside sessionkit and SQLAlchemy; in async code, the line that awaits."""
    frame: FrameType | None = sys._getframe(1)
    greenlet: Any = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            registry = frame.f_globals.setdefault("__warningregistry__", {})
            return CallSite(frame.f_code.co_filename, frame.f_lineno, registry)
        frame = frame.f_back
        if frame is None and "greenlet" in sys.modules:  # in async code: the greenlet that waits for this one
            greenlet = (greenlet or sys.modules["greenlet"].getcurrent()).parent
            frame = None if greenlet is None else greenlet.gr_frame
    return None
