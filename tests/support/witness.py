"""What an engine does, seen through SQLAlchemy's events: the statements it sends, the connections it has lent."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

# Engine event -> what the driver sends for it. (Savepoints are statements, and come by the cursor event.)
_BOUNDARIES = {
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "begin_twophase": "BEGIN TWOPHASE",
    "prepare_twophase": "PREPARE TRANSACTION",
    "commit_twophase": "COMMIT PREPARED",
    "rollback_twophase": "ROLLBACK PREPARED",
}


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect what is sent while the block runs, one line each, white space squeezed."""
    seen: list[str] = []
    # The last line of each connection: several may be at work.
    last: dict[int, str] = {}
    listeners: list[tuple[str, Any]] = []

    def note(connection: Any, line: str) -> None:
        last[id(connection)] = line
        seen.append(line)

    def statement(connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        line = re.sub(r"\s+", " ", text).strip()
        before = last.get(id(connection), "")
        # Who spells a boundary itself (BEGIN IMMEDIATE) does it in SQLAlchemy's event of that name: that is one BEGIN
        # and not two.
        if before in _BOUNDARIES.values() and line.upper().startswith(before + " "):
            del seen[len(seen) - 1 - seen[::-1].index(before)]
        note(connection, line)

    listeners.append(("before_cursor_execute", statement))
    for name, word in _BOUNDARIES.items():

        def boundary(connection: Any, *_: Any, word: str = word) -> None:
            # The same, where the other listener of the event came before this one.
            if not last.get(id(connection), "").upper().startswith(word + " "):
                note(connection, word)

        listeners.append((name, boundary))
    for name, listener in listeners:
        event.listen(engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners:
            event.remove(engine, name, listener)


class Ledger:
    """The connections that an engine's pool has lent out.

    `pool.checkedout()` would do for one kind of pool; SQLAlchemy 2.0 takes another one for asynchronous SQLite.
    """

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._out: dict[int, str] = {}
        event.listen(engine, "checkout", self._lent)
        event.listen(engine, "checkin", self._returned)
        event.listen(engine, "detach", self._returned)

    def __len__(self) -> int:
        with self._lock:
            return len(self._out)

    def _lent(self, connection: Any, record: Any, _proxy: Any) -> None:
        with self._lock:
            self._out[id(record)] = repr(connection)

    def _returned(self, _connection: Any, record: Any) -> None:
        with self._lock:
            self._out.pop(id(record), None)
