"""Where in the user's code something was called, for a warning. Knows nothing of ours."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

_OURS = ("sessionkit", "sqlalchemy")


class CallSite(NamedTuple):
    """A line of the user's, and what Python notes there of the warnings that it was given."""

    filename: str
    line: int
    registry: dict[Any, Any]

    def warn(self, message: str, category: type[Warning]) -> None:
        """Warn there. Say the same text at every place: Python keeps each that differs."""
        warnings.warn_explicit(message, category, self.filename, self.line, registry=self.registry)


def call_site() -> CallSite | None:
    """Return the innermost line that is neither ours nor SQLAlchemy's; in async code that which awaits."""
    frame: FrameType | None = sys._getframe(1)
    greenlet: Any = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            registry = frame.f_globals.setdefault("__warningregistry__", {})
            return CallSite(frame.f_code.co_filename, frame.f_lineno, registry)
        frame = frame.f_back
        if frame is None and "greenlet" in sys.modules:  # in async code: go on with what waits for this greenlet
            greenlet = (greenlet or sys.modules["greenlet"].getcurrent()).parent
            frame = None if greenlet is None else greenlet.gr_frame
    return None
