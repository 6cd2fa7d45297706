"""Captures hooks in a test, and holds them back or runs them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..._spi import captures

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..._spi import Hook

__all__ = ["capture_on_commit"]


@contextmanager
def capture_on_commit(*, run: bool = False) -> Generator[list[Callable[[], object]], None, None]:
    """Collect the on_commit hooks that are due, and hold them back unless `run`."""
    found: list[Callable[[], object]] = []

    def capture(due: list[Hook]) -> list[Hook]:
        found.extend(hook.fn for hook in due if hook.after == "committed")
        return due if run else [hook for hook in due if hook.after != "committed"]

    captures.append(capture)
    try:
        yield found
    finally:
        captures.remove(capture)
