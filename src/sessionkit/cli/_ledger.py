"""What an engine sends, for showing it: one line for each statement, BEGIN and COMMIT included."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy.engine import Connection, Engine

__all__ = ["Ledger"]


class Ledger:
    """The statements of one engine or of several, in the order in which they are sent.

    SQLite itself tells what it executes, so that a BEGIN is seen as it is, with its mode, and values stand where they
    belong. Elsewhere SQLAlchemy's events tell.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._open = False

    def follow(self, engine: Engine) -> None:
        """Listen to an engine that has not connected yet."""
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", self._trace)
            return
        for name in ("begin", "commit", "rollback"):
            event.listen(engine, name, partial(self._boundary, name.upper()))
        event.listen(engine, "before_cursor_execute", self._statement)

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Note what is sent from now on, in an empty list."""
        self.lines, self._open = [], True
        try:
            yield
        finally:
            self._open = False

    @contextmanager
    def looking_away(self) -> Generator[None, None, None]:
        """Note nothing for a while."""
        before, self._open = self._open, False
        try:
            yield
        finally:
            self._open = before

    def remark(self, text: str) -> None:
        """Put a remark between the statements."""
        self._note(f"-- {text}")

    def _note(self, line: str) -> None:
        if self._open:
            self.lines.append(re.sub(r"\s+", " ", line).strip())

    def _trace(self, driver: Any, record: object) -> None:
        inner = getattr(driver, "driver_connection", driver)
        if inner is driver:
            driver.set_trace_callback(self._note)
        else:  # aiosqlite, whose connection lives in a thread of its own
            await_only(inner.set_trace_callback(self._note))

    def _boundary(self, word: str, connection: Connection) -> None:
        self._note(word)

    def _statement(
        self, connection: Connection, cursor: object, statement: str, parameters: Any, context: object, many: bool
    ) -> None:
        self._note(f"{statement}   {_values(parameters)}" if parameters else statement)


def _values(parameters: Any) -> str:
    return str(dict(parameters)) if hasattr(parameters, "items") else str(parameters)
