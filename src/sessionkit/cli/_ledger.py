"""Records what an engine sends, to display it: one line per statement, including BEGIN and COMMIT, with values filled in."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy.engine import Connection, Engine

__all__ = ["Ledger"]


class Ledger:
    """The statements of one or several engines, in the order in which they are sent.

    SQLite itself reports what it executes, so a BEGIN appears with its real mode. Elsewhere this uses SQLAlchemy's events and
    replaces the placeholders by the values: fine for reading, never for executing.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._open = False
        self._listeners: list[tuple[Any, str, Callable[..., None]]] = []

    def follow(self, engine: Engine | type[Engine]) -> None:
        """Listen to an engine that has not connected yet, or to all engines."""
        self._listen(engine, "connect", self._on_connect)
        for name in ("begin", "commit", "rollback"):
            self._listen(engine, name, partial(self._on_boundary, name.upper()))
        self._listen(engine, "before_cursor_execute", self._on_statement)

    def _listen(self, engine: Any, name: str, listener: Callable[..., None]) -> None:
        event.listen(engine, name, listener)
        self._listeners.append((engine, name, listener))

    def leave(self) -> None:
        """Stop listening."""
        for engine, name, listener in self._listeners:
            event.remove(engine, name, listener)
        self._listeners.clear()

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Record what is sent from now on, starting with an empty list."""
        self.lines, self._open = [], True
        try:
            yield
        finally:
            self._open = False

    @contextmanager
    def looking_away(self) -> Generator[None, None, None]:
        """Record nothing inside the block."""
        before, self._open = self._open, False
        try:
            yield
        finally:
            self._open = before

    def remark(self, text: str) -> None:
        """Insert a remark between the statements."""
        self._note(f"-- {text}")

    def _note(self, line: str) -> None:
        if self._open:
            self.lines.append(re.sub(r"\s+", " ", line).strip())

    def _on_connect(self, driver: Any, record: object) -> None:
        if hasattr(driver, "set_trace_callback"):
            driver.set_trace_callback(self._note)
            return
        inner: Any = getattr(driver, "driver_connection", None)
        trace = getattr(inner, "set_trace_callback", None)
        if trace is not None:  # aiosqlite, whose connection lives in another thread
            await_only(trace(self._note))

    def _on_boundary(self, word: str, connection: Connection) -> None:
        if not _tells_itself(connection):
            self._note(word)

    def _on_statement(
        self, connection: Connection, cursor: object, statement: str, parameters: Any, context: object, many: bool
    ) -> None:
        if _tells_itself(connection):
            return
        if many:
            self._note(f"{statement}  -- {len(parameters)} times")
        else:
            self._note(_filled_in(statement, parameters, connection.dialect.paramstyle))


def _tells_itself(connection: Connection) -> bool:
    return hasattr(connection.connection.driver_connection, "set_trace_callback")


# %(name)s and %s, or $1, and the cast that gives the server a value's type.
_CAST = r"(::[A-Z]+( PRECISION| VARYING| WITH(OUT)? TIME ZONE)?(\([\d, ]+\))?(\[\])*)?"
_PLACEHOLDERS = {
    "pyformat": re.compile(rf"%\((?P<key>\w+)\)s{_CAST}"),
    "format": re.compile(r"%s"),
    "numeric_dollar": re.compile(rf"\$(?P<key>\d+){_CAST}"),
}


def _filled_in(statement: str, parameters: Any, style: str) -> str:
    if not parameters:
        return statement
    pattern = _PLACEHOLDERS.get(style)
    if pattern is None:
        return f"{statement}  -- {parameters}"
    values = iter(parameters)

    def value(match: re.Match[str]) -> str:
        if style == "pyformat":
            return _literal(parameters[match["key"]])
        if style == "numeric_dollar":
            return _literal(parameters[int(match["key"]) - 1])
        return _literal(next(values))

    filled = pattern.sub(value, statement)
    return filled if style == "numeric_dollar" else filled.replace("%%", "%")


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
