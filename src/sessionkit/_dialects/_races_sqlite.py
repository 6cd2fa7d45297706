"""Races on SQLite: each statement passes the gate in the driver, and one that finds the database busy is sent again.

SQLite knows no row locks: one transaction writes, and the others read what was committed when they began to read. So a
step matters to other units where its transaction takes the write lock, takes its snapshot, or ends.

The steps are seen in ``sqlite3`` itself, by a subclass of its connection: whatever sends them, and in which thread. In
async code that is the thread of the connection, which waits there while its task awaits the answer.
"""

from __future__ import annotations

import re
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ._races import Effect, Gate, Lock, Move, Raced, Rows, shown_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Engine

_SPACE = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_WORD = re.compile(_SPACE + r"(\w+)(?:\s+(\w+))?", re.DOTALL)
_TIMEOUT = re.compile(_SPACE + r"PRAGMA\s+busy_timeout\s*(?:(?:=|\()\s*(\d+)\s*\)?)?\s*;?\s*$", re.IGNORECASE)
_WRITES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)

_WRITE: Lock = ("database", None, "w")
_READING: Lock = ("readers", None, "s")  # in rollback journal mode a COMMIT waits for those who read
_NOT_READING: Lock = ("readers", None, "w")

_BUSY, _BUSY_SNAPSHOT = 5, 517  # https://www.sqlite.org/rescode.html


class _Watched:
    """What a subclass of ``sqlite3.Connection`` adds: the gate before each step.

    The busy timeout of SQLite stays at zero; what the unit sets is kept here, and says whether it waits at all.
    """

    gate: Gate
    raced: RacedSqlite
    unit: Any = None
    busy_timeout = 5000
    locked = False  # it holds the write lock
    begun = False  # it has its snapshot


def watched(base: Any, gate: Gate, raced: RacedSqlite, timeout: float) -> type[Any]:
    """Return a class of connections whose steps pass the gate."""

    class Cursor(base.Cursor):  # type: ignore[misc]
        move: Move | None = None

        def execute(self, sql: str, *args: Any) -> Any:
            return _run(self.connection, sql, args, super().execute, self)

        def executemany(self, sql: str, *args: Any) -> Any:
            return _run(self.connection, sql, (), lambda sql: super(Cursor, self).executemany(sql, *args), self)

        def executescript(self, script: str) -> Any:
            return _run(self.connection, script, (), super().executescript, self)

        def fetchone(self) -> Any:
            row = super().fetchone()
            self._note([] if row is None else [row])
            return row

        def fetchmany(self, *args: Any, **kw: Any) -> Any:
            rows = super().fetchmany(*args, **kw)
            self._note(rows)
            return rows

        def fetchall(self) -> Any:
            rows = super().fetchall()
            self._note(rows)
            return rows

        def _note(self, rows: list[Any]) -> None:
            if self.move is not None and self.move.result == "":
                self.move.result = shown_rows(rows[:3], len(rows) > 3)

    class Connection(_Watched, base.Connection):  # type: ignore[misc]
        def __init__(self, *args: Any, **kw: Any) -> None:
            super().__init__(*args, **kw)
            raced.made.add(self)

        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, *args: Any) -> Any:
            return self.cursor().execute(sql, *args)

        def executemany(self, sql: str, *args: Any) -> Any:
            return self.cursor().executemany(sql, *args)

        def executescript(self, script: str) -> Any:
            return self.cursor().executescript(script)

        def commit(self) -> None:
            _run(self, "COMMIT", (), lambda _: super(Connection, self).commit(), None)

        def rollback(self) -> None:
            _run(self, "ROLLBACK", (), lambda _: super(Connection, self).rollback(), None)

    Connection.gate, Connection.raced, Connection.busy_timeout = gate, raced, round(timeout * 1000)
    return Connection


def _run(connection: Any, sql: str, args: Any, send: Callable[..., Any], cursor: Any) -> Any:
    setting = _TIMEOUT.match(sql)
    if setting is not None:
        if setting[1] is None:
            return send(f"SELECT {connection.busy_timeout}")
        connection.busy_timeout = int(setting[1])
        return send("SELECT 0")
    unit = connection.unit
    kind = _kind(sql)
    open_ = connection.in_transaction
    if not open_:
        connection.locked = connection.begun = False
    if unit is None or kind == "none" or (kind == "end" and not open_):
        return send(sql, *args)
    move = Move(sql, args[0] if args else None, _effect(connection, kind, open_))
    connection.gate.before(unit, move)
    try:
        answer = _send(connection, unit, move, lambda: send(sql, *args))
    except BaseException as error:
        move.error = error
        raise
    finally:
        _follow(connection, kind)
        connection.gate.after(unit, move)
    if cursor is not None:
        cursor.move = move if cursor.description is not None else None
        if cursor.description is None and cursor.rowcount >= 0:
            move.result = f"{cursor.rowcount} row{'s' * (cursor.rowcount != 1)}"
    return answer


def _send(connection: Any, unit: Any, move: Move, send: Callable[[], Any]) -> Any:
    while True:
        try:
            return send()
        except Exception as error:
            code = getattr(error, "sqlite_errorcode", 0)
            # With a busy timeout of zero it would not have waited for anybody. A snapshot that is out of date stays so.
            if code & 0xFF != _BUSY or code == _BUSY_SNAPSHOT or connection.busy_timeout == 0:
                raise
            if not connection.gate.again(unit, move):
                raise


def _kind(sql: str) -> str:
    found = _WORD.match(sql)
    first, second = (found[1].upper(), (found[2] or "").upper()) if found is not None else ("", "")
    if first in ("PRAGMA", "SAVEPOINT", "RELEASE", "EXPLAIN", "ATTACH", "DETACH"):
        return "none"
    if first == "ROLLBACK" and re.search(r"\bTO\b", sql, re.IGNORECASE):
        return "none"
    if first == "BEGIN":
        return "lock" if second in ("IMMEDIATE", "EXCLUSIVE") else "none"
    if first in ("COMMIT", "END", "ROLLBACK"):
        return "end"
    if first in ("SELECT", "VALUES") or (first == "WITH" and not _WRITES.search(sql)):
        return "read"
    return "write"


def _effect(connection: Any, kind: str, open_: bool) -> Effect:
    raced = connection.raced
    reading = frozenset() if raced.wal or connection.begun else frozenset([_READING])
    if kind == "end":
        held = [*([_WRITE] if connection.locked else []), *([_READING] if connection.begun and not raced.wal else [])]
        waits = [_NOT_READING] if connection.locked and not raced.wal else []
        return Effect(raced.place, locks=frozenset(waits), ends=True, held=frozenset(held))
    locks = frozenset([_WRITE]) if kind != "read" and not connection.locked else frozenset()
    # A SELECT outside of a transaction is one of its own; a write begins one, in the driver's default mode.
    alone = not open_ and (kind == "read" or (kind == "write" and connection.isolation_level is None))
    return Effect(
        raced.place,
        locks=locks
        | reading
        | (frozenset([_NOT_READING]) if alone and kind == "write" and not raced.wal else frozenset()),
        snapshot=not connection.begun,
        ends=alone,
        held=locks | reading if alone else frozenset(),
    )


def _follow(connection: Any, kind: str) -> None:
    if not connection.in_transaction:
        connection.locked = connection.begun = False
    else:
        connection.begun = True
        connection.locked = connection.locked or kind in ("lock", "write")


class RacedSqlite(Raced):
    """A file."""

    wal = False
    _base: Any = None
    _reader: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # A pool closes only those connections that have come back to it.
        self.made: WeakSet[Any] = WeakSet()

    def arguments(self, dialect: Any, gate: Gate) -> Callable[[dict[str, Any]], None]:
        dbapi = dialect.loaded_dbapi
        module = getattr(dbapi, "sqlite", dbapi)  # aiosqlite's holds it

        def change(parameters: dict[str, Any]) -> None:
            given = parameters.get("factory")
            base = module if given is None else type("Given", (), {"Connection": given, "Cursor": module.Cursor})
            parameters["factory"] = watched(base, gate, self, parameters.get("timeout", 5.0))
            parameters["timeout"] = 0
            parameters["check_same_thread"] = False  # an abandoned unit is ended from another thread

        return change

    def watch(self, engine: Engine, gate: Gate) -> Callable[[], None]:
        return lambda: None

    def lent(self, driver_connection: Any, unit: Any) -> int | None:
        connection = getattr(driver_connection, "_conn", driver_connection)
        connection.unit = unit
        if unit is not None:
            connection.locked = connection.begun = False
        return None

    def _module(self) -> Any:
        dbapi = self.dialect.loaded_dbapi
        return getattr(dbapi, "sqlite", dbapi)

    def _connection(self) -> Any:
        if self._reader is None:
            self._reader = self._module().connect(self.path, isolation_level=None, check_same_thread=False)
            self._reader.execute("PRAGMA synchronous = OFF")
        return self._reader

    def remember(self) -> None:
        self.wal = self._connection().execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self._base = self._module().connect(":memory:", check_same_thread=False)
        self._connection().backup(self._base)
        self._schema = self._schema_version()

    def restore(self) -> bool:
        changed = self._schema_version() != self._schema
        self._base.backup(self._connection())
        self._schema = self._schema_version()
        if changed:
            self._read_schema_again()
        return True

    def _read_schema_again(self) -> None:
        # SQLite 3.35 takes the schema that a connection knows for true when it parses CREATE TABLE: one that has made a
        # table refuses to make it again once it is gone. Any query has the connection look.
        for connection in list(self.made):
            with suppress(Exception):  # it is closed
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def _schema_version(self) -> int:
        (version,) = self._connection().execute("PRAGMA schema_version").fetchone()
        return int(version)

    def forget(self) -> None:
        if self._base is not None:
            self._base.close()

    def state(self) -> dict[str, Rows]:
        found = {}
        with closing(self._connection().cursor()) as cursor:
            names = cursor.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
            ).fetchall()
            for (name,) in names:
                quoted = '"' + name.replace('"', '""') + '"'
                rows = cursor.execute(f"SELECT * FROM {quoted}").fetchall()
                found[name] = Rows(tuple(column[0] for column in cursor.description), rows)
        return found

    def waiting(self, numbers: Sequence[int]) -> set[int]:
        return set()

    def end(self, driver_connection: Any, number: int | None) -> None:
        connection = getattr(driver_connection, "_conn", driver_connection)
        connection.unit = None
        connection.interrupt()
        connection.rollback()

    def close(self) -> None:
        for connection in list(self.made):
            with suppress(Exception):
                connection.close()
        if self._reader is not None:
            self._reader.close()
