"""Races on PostgreSQL: what a statement touches, by its words and the catalogue, and who waits for whom, by the server.

Readers see what was committed, and writers lock rows until their transaction ends. So most steps of two units can change
places without a difference, and only the others are worth two schedules. What a statement touches is read from its words:
each that is the name of a table counts, so too much is found rather than too little.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList
from sqlalchemy.sql.selectable import Select

from ._base import root_of
from ._copy_postgresql import watching
from ._races import Effect, Gate, Item, Lock, Move, Raced, Rows, shown_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Connection, Engine

_SCHEMA = "sessionkit_races"
_NOT_NAMES = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|%\(\w+\)s|\$\d+", re.DOTALL)
_NAME = re.compile(r'"((?:[^"]|"")+)"|([^\W\d]\w*)')
_LOCKING = re.compile(r"\bFOR\s+(NO\s+KEY\s+UPDATE|UPDATE|KEY\s+SHARE|SHARE)\b", re.IGNORECASE)
_MODES = {"NO KEY UPDATE": "u", "UPDATE": "w", "KEY SHARE": "k", "SHARE": "s"}
_WRITES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_TARGET = re.compile(
    r"(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO)\s+(?:ONLY\s+)?(?:[\w\"]+\.)?(\"(?:[^\"]|\"\")+\"|\w+)",
    re.IGNORECASE,
)
_SETS_LEVEL = re.compile(r"\bTRANSACTION\b|transaction_isolation|SESSION\s+CHARACTERISTICS", re.IGNORECASE)

# What no other unit can notice: these go with the step before.
_UNNOTICED = frozenset(
    {
        "SAVEPOINT",
        "RELEASE",
        "SET",
        "RESET",
        "SHOW",
        "BEGIN",
        "START",
        "DEALLOCATE",
        "DECLARE",
        "FETCH",
        "CLOSE",
        "MOVE",
    }
)

_SCHEMA_WORDS = frozenset({"CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "REINDEX", "IMPORT"})

_TABLES = f"""
    SELECT c.oid, n.nspname, c.relname, CAST(c.relkind AS text)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', '{_SCHEMA}')
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname
"""
_COLUMNS = """
    SELECT attrelid, attname FROM pg_catalog.pg_attribute
    WHERE attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attrelid, attnum
"""
_FOREIGN = """
    SELECT conrelid, confrelid, confdeltype, confupdtype FROM pg_catalog.pg_constraint WHERE contype = 'f'
"""
# Constraints beside the primary key for which rows of different keys meet, and the user's triggers and rules.
_UNIQUE = """
    SELECT i.indrelid, i.indisprimary, array_to_string(ARRAY(
        SELECT a.attname FROM unnest(i.indkey::int2[]) k LEFT JOIN pg_catalog.pg_attribute a
        ON a.attrelid = i.indrelid AND a.attnum = k), ',')
    FROM pg_catalog.pg_index i WHERE i.indisunique OR i.indisexclusion
"""
_SPECIAL = """
    SELECT tgrelid FROM pg_catalog.pg_trigger WHERE NOT tgisinternal
    UNION SELECT ev_class FROM pg_catalog.pg_rewrite WHERE rulename <> '_RETURN'
    UNION SELECT polrelid FROM pg_catalog.pg_policy
"""
_FUNCTIONS = """
    SELECT DISTINCT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""


class _Table:
    """What the catalogue says of a table.

    Attributes:
        schema, name: its name.
        columns: those that can be written.
        key: the columns of its primary key.
        unique: the other columns of which two rows cannot have the same.
        points_to, parents: tables that its foreign keys point to, by number and by name.
        children: those that may follow it where a row goes or changes its key, by cascades too.
        special: it has triggers, rules or policies, which may do anything.
    """

    def __init__(self, schema: str, name: str) -> None:
        self.schema = schema
        self.name = name
        self.columns: list[str] = []
        self.key: frozenset[str] = frozenset()
        self.unique: set[str] = set()
        self.points_to: set[int] = set()
        self.parents: list[str] = []
        self.children: list[str] = []
        self.special = False


class _Open:
    """What a transaction has done so far.

    Attributes:
        begun: it has its snapshot.
        locks: what it has locked.
        seen: what it has read.
        level: "READ COMMITTED", or a stronger one.
    """

    def __init__(self, level: str) -> None:
        self.begun = False
        self.locks: set[Lock] = set()
        self.seen: set[Item] = set()
        self.level = level


class RacedPostgresql(Raced):
    """A database of a server."""

    def arguments(self, dialect: Any, gate: Gate) -> Callable[[dict[str, Any]], None]:
        return lambda _: None

    # -- steps ------------------------------------------------------------------------------------------------------

    def watch(self, engine: Engine, gate: Gate) -> Callable[[], None]:
        watch = _Watch(self, gate)
        for name, listener in watch.listeners.items():
            event.listen(engine, name, listener)

        def copied(connection: Connection, statement: str) -> None:
            if root_of(connection.engine) is engine:
                watch.before(connection, None, statement, None, None, False)

        watching.append(copied)

        def end() -> None:
            watching.remove(copied)
            for name, listener in watch.listeners.items():
                event.remove(engine, name, listener)

        return end

    def lent(self, driver_connection: Any, unit: Any) -> int | None:
        if unit is None:
            return None
        if hasattr(driver_connection, "get_server_pid"):  # asyncpg
            return int(driver_connection.get_server_pid())
        return int(driver_connection.info.backend_pid)

    # -- what is in it ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        # It is a copy, which need not survive a power failure. And a deadlock should not take a second to be found.
        name = self.ask("SELECT quote_ident(current_database())")[1][0][0]
        self.ask(f"ALTER DATABASE {name} SET synchronous_commit = off")
        self._is_superuser = self.ask("SELECT current_setting('is_superuser')")[1][0][0] == "on"
        if self._is_superuser:
            self.ask(f"ALTER DATABASE {name} SET deadlock_timeout = '1ms'")

    def remember(self) -> None:
        self.level = str(self.ask("SELECT current_setting('default_transaction_isolation')")[1][0][0]).upper()
        self._read_catalogue()
        self.ask(f'DROP SCHEMA IF EXISTS "{_SCHEMA}" CASCADE')
        self.ask(f'CREATE SCHEMA "{_SCHEMA}"')
        self._kept: dict[int, str] = {}
        self._base: dict[int, tuple[Any, ...]] = self._sums()
        for oid, (count, _) in self._base.items():
            if count:
                self._kept[oid] = f'"{_SCHEMA}"."t{oid}"'
                self.ask(f"CREATE UNLOGGED TABLE {self._kept[oid]} AS SELECT * FROM ONLY {self._quoted(oid)}")
        self._rows: dict[int, Rows] = {
            oid: self._read(oid) for oid, (count, _) in self._base.items() if count <= _SMALL
        }
        self._sequences = [
            f"PERFORM setval('{_literal(sequence)}', {last}, {str(called).lower()});"
            for sequence in self._sequence_names
            for _, [(last, called)] in [self.ask(f"SELECT last_value, is_called FROM {sequence}")]
        ]
        self.schema_changed = False

    def _read_catalogue(self) -> None:
        self.tables: dict[int, _Table] = {}
        self.views: set[str] = set()
        self._sequence_names: list[str] = []
        for oid, schema, name, kind in self.ask(_TABLES)[1]:
            if kind == "r":
                self.tables[oid] = _Table(schema, name)
            elif kind == "S":
                self._sequence_names.append(f"{_quote(schema)}.{_quote(name)}")
            else:
                self.views.add(name)
        for oid, column in self.ask(_COLUMNS)[1]:
            if oid in self.tables:
                self.tables[oid].columns.append(column)
        for child, parent, *_ in self.ask(_FOREIGN)[1]:
            if child in self.tables and parent in self.tables:
                self.tables[child].points_to.add(parent)
                self.tables[child].parents.append(self.tables[parent].name)
        for oid, table in self.tables.items():
            table.children = [self.tables[below].name for below in self._pointing_to({oid}) - {oid}]
        for oid, primary, columns in self.ask(_UNIQUE)[1]:
            if oid in self.tables:
                if primary:
                    self.tables[oid].key = frozenset(columns.split(","))
                else:
                    self.tables[oid].unique.update(columns.split(","))
        for (oid,) in self.ask(_SPECIAL)[1]:
            if oid in self.tables:
                self.tables[oid].special = True
        self.functions = {name for (name,) in self.ask(_FUNCTIONS)[1]}
        self.by_name: dict[str, list[_Table]] = {}
        for table in self.tables.values():
            self.by_name.setdefault(table.name, []).append(table)

    def _quoted(self, oid: int) -> str:
        table = self.tables[oid]
        return f"{_quote(table.schema)}.{_quote(table.name)}"

    def _title(self, oid: int) -> str:
        table = self.tables[oid]
        return table.name if len(self.by_name[table.name]) == 1 else f"{table.schema}.{table.name}"

    def _sums(self) -> dict[int, tuple[Any, ...]]:
        """Return for each table how many rows it has, and a sum over them that two contents hardly share."""
        if not self.tables:
            return {}
        parts = (
            f"SELECT {oid}, count(*), coalesce(sum(hashtextextended(CAST(t.* AS text), 0)::numeric), 0)::text "
            f"FROM ONLY {self._quoted(oid)} t"
            for oid in self.tables
        )
        return {oid: (count, total) for oid, count, total in self.ask(" UNION ALL ".join(parts))[1]}

    def _read(self, oid: int) -> Rows:
        columns, rows = self.ask(f"SELECT * FROM ONLY {self._quoted(oid)}")
        return Rows(tuple(columns), [tuple(row) for row in rows])

    def state(self) -> dict[str, Rows]:
        if self.schema_changed:
            self._read_catalogue()
        now = self._sums()
        changed = {oid for oid, found in now.items() if found != self._base.get(oid)}
        return {
            self._title(oid): self._read(oid) if oid in changed else self._rows[oid]
            for oid in self.tables
            if oid in changed or oid in self._rows
        }

    def restore(self) -> bool:
        if self.schema_changed:
            return False
        now = self._sums()
        changed = {oid for oid, found in now.items() if found != self._base[oid]}
        if not changed and not self._sequences:
            return True
        body = self._as_superuser(changed, now) if self._is_superuser else self._as_owner(changed)
        if body is None:
            return False
        self.ask(f"DO $sessionkit$ BEGIN {' '.join([*body, *self._sequences])} END $sessionkit$")
        return True

    def _as_superuser(self, changed: set[int], now: dict[int, tuple[Any, ...]]) -> list[str]:
        """Return what brings tables back, without their triggers and foreign keys."""
        body = ["SET LOCAL session_replication_role = replica;"]
        for oid in changed:
            # TRUNCATE is for many rows: for few it takes ten times as long.
            if now[oid][0] <= _SMALL or self._pointed_to(oid):
                body.append(f"DELETE FROM ONLY {self._quoted(oid)};")
            else:
                body.append(f"TRUNCATE ONLY {self._quoted(oid)};")
            body.append(self._fill(oid))
        return body

    def _as_owner(self, changed: set[int]) -> list[str] | None:
        """Return what brings tables back, and those that point to them; None where they point in a circle."""
        changed = self._pointing_to(changed)
        order: list[int] = []
        left = set(changed)
        while left:
            free = {oid for oid in left if not (self.tables[oid].points_to - {oid}) & left}
            if not free:
                return None
            order += sorted(free)
            left -= free
        if not order:
            return []
        special = [oid for oid in order if self.tables[oid].special]
        return [
            *(f"ALTER TABLE {self._quoted(oid)} DISABLE TRIGGER USER;" for oid in special),
            f"TRUNCATE ONLY {', '.join(map(self._quoted, order))};",
            *map(self._fill, order),
            *(f"ALTER TABLE {self._quoted(oid)} ENABLE TRIGGER USER;" for oid in special),
        ]

    def _pointing_to(self, tables: set[int]) -> set[int]:
        """Return these tables, those that point to them, and so on."""
        while more := {oid for oid, table in self.tables.items() if table.points_to & tables} - tables:
            tables = tables | more
        return tables

    def _pointed_to(self, oid: int) -> bool:
        return any(oid in table.points_to for table in self.tables.values())

    def _fill(self, oid: int) -> str:
        if oid not in self._kept:
            return ""
        columns = ", ".join(map(_quote, self.tables[oid].columns))
        return (
            f"INSERT INTO {self._quoted(oid)} ({columns}) OVERRIDING SYSTEM VALUE "
            f"SELECT {columns} FROM {self._kept[oid]};"
        )

    def forget(self) -> None:
        self.ask(f'DROP SCHEMA IF EXISTS "{_SCHEMA}" CASCADE')

    # -- who waits --------------------------------------------------------------------------------------------------

    def waiting(self, numbers: Sequence[int]) -> set[int]:
        if not numbers:
            return set()
        all_ = ", ".join(map(str, numbers))
        # Not before the server has looked for a deadlock: so the one that closes the circle is the one that is refused.
        _, rows = self.ask(
            f"SELECT l.pid FROM pg_catalog.pg_locks l WHERE NOT l.granted AND l.pid IN ({all_}) "
            "AND coalesce(clock_timestamp() - l.waitstart > interval '5 ms', true) "
            f"AND (pg_blocking_pids(l.pid) || pg_safe_snapshot_blocking_pids(l.pid)) && ARRAY[{all_}]"
        )
        return {pid for (pid,) in rows}

    def end(self, driver_connection: Any, number: int | None) -> None:
        if number is not None:
            self.ask(f"SELECT pg_terminate_backend({number})")


_SMALL = 1000
"""Rows of a table that are shown though nothing has changed, and deleted one by one."""


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return text.replace("'", "''")


class _Watch:
    """The listeners of an engine that have each step pass the gate."""

    def __init__(self, raced: RacedPostgresql, gate: Gate) -> None:
        self._raced = raced
        self._gate = gate
        self._moves: WeakKeyDictionary[Connection, Move] = WeakKeyDictionary()
        self.listeners: dict[str, Callable[..., Any]] = {
            "before_cursor_execute": self.before,
            "after_cursor_execute": self._after,
            "handle_error": self._failed,
            "commit": lambda connection: self._end(connection, "COMMIT"),
            "rollback": lambda connection: self._end(connection, "ROLLBACK"),
            "rollback_savepoint": self._to_savepoint,
            "prepare_twophase": lambda connection, _: self._end(connection, "PREPARE TRANSACTION"),
        }

    def _open(self, connection: Connection) -> _Open:
        info = connection.info
        open_: _Open | None = info.get(_KEY)
        if open_ is None:
            open_ = info[_KEY] = _Open(self._level(connection))
        return open_

    def _level(self, connection: Connection) -> str:
        adapted: Any = connection.connection.dbapi_connection
        level = getattr(adapted, "isolation_level", None)
        if level is None:
            level = getattr(getattr(adapted, "_connection", adapted), "isolation_level", None)
        name = getattr(level, "name", level)
        if name is None or str(name) in ("default", "5"):
            return self._raced.level
        return _PSYCOPG2.get(name, str(name).upper().replace("_", " "))

    def _autocommit(self, connection: Connection) -> bool:
        adapted: Any = connection.connection.dbapi_connection
        return bool(getattr(adapted, "autocommit", False)) or getattr(adapted, "isolation_level", None) == "autocommit"

    def before(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        unit = self._gate.here()
        if unit is None:
            return
        open_ = self._open(connection)
        word = statement.lstrip(" (\n\t").partition(" ")[0].upper()
        if _SETS_LEVEL.search(statement):
            open_.level = "SERIALIZABLE"  # or what it may say: the strongest has the most to be tried
        if word in _UNNOTICED:
            return
        if word in _SCHEMA_WORDS:
            self._raced.schema_changed = True
        effect = self._effect(connection, open_, statement, parameters, context, many)
        move = Move(statement, parameters, effect)
        self._moves[connection] = move
        self._gate.before(unit, move, asynchronous=connection.dialect.is_async)
        open_.begun = True
        open_.locks.update(effect.locks)
        open_.seen.update(effect.seen)

    def _after(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        move = self._moves.pop(connection, None)
        unit = self._gate.here()
        if move is None or unit is None:
            return
        move.result = "" if getattr(context, "_is_server_side", False) else _result(cursor)
        if self._autocommit(connection):
            connection.info.pop(_KEY, None)
        self._gate.after(unit, move)

    def _failed(self, context: Any) -> None:
        move = None if context.connection is None else self._moves.pop(context.connection, None)
        unit = self._gate.here()
        if move is not None and unit is not None:
            move.error = context.original_exception
            self._gate.after(unit, move)

    def _end(self, connection: Connection, what: str) -> None:
        if connection.closed or connection.invalidated:
            return
        unit = self._gate.here()
        open_: _Open | None = connection.info.pop(_KEY, None)
        if unit is None or open_ is None or not open_.begun:
            return
        effect = Effect(
            self._raced.place,
            ends=True,
            held=frozenset(open_.locks),
            serializable=_is_serializable(open_),
            seen=frozenset(open_.seen),
        )
        move = Move(what, None, effect)
        self._moves[connection] = move
        self._gate.before(unit, move, asynchronous=connection.dialect.is_async)

    def _to_savepoint(self, connection: Connection, name: str, context: Any) -> None:
        unit = self._gate.here()
        open_: _Open | None = connection.info.get(_KEY)
        if unit is not None and open_ is not None and open_.begun:
            move = Move(
                "ROLLBACK TO SAVEPOINT", None, Effect(self._raced.place, ends=True, held=frozenset(open_.locks))
            )
            self._gate.before(unit, move, asynchronous=connection.dialect.is_async)

    # -- what a statement does --------------------------------------------------------------------------------------

    def _effect(
        self, connection: Connection, open_: _Open, statement: str, parameters: Any, context: Any, many: bool
    ) -> Effect:
        place, raced = self._raced.place, self._raced
        serializable = _is_serializable(open_)
        snapshot = not open_.begun and open_.level in ("REPEATABLE READ", "SERIALIZABLE")
        alone = self._autocommit(connection)
        bare = _NOT_NAMES.sub(" ", statement)
        names = {(quoted.replace('""', '"') if quoted else plain.lower()) for quoted, plain in _NAME.findall(bare)}
        first = next(iter(_NAME.findall(bare)), ("", ""))[1].upper()
        unknown = first not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "VALUES", "MERGE", "TABLE")
        if unknown or names & raced.functions or names & raced.views:
            everything: frozenset[Lock] = frozenset([("*", None, "x")])
            return Effect(place, locks=everything, unknown=True, ends=alone, held=everything)
        touched = [table for name in names & raced.by_name.keys() for table in raced.by_name[name]]
        key = None if serializable or many else self._key(touched, context)
        locks: set[Lock] = set()
        reads: set[Item] = set()
        if any("advisory" in name for name in names):
            locks.add((_ADVISORY, None, "w"))
        if names & {"nextval", "setval"}:
            locks.add((_SEQUENCES, None, "w"))
        writing = _WRITES.search(_LOCKING.sub(" ", bare)) is not None
        targets = {
            match[1].strip('"').replace('""', '"') if match[1].startswith('"') else match[1].lower()
            for match in _TARGET.finditer(bare)
        }
        lock = _LOCKING.search(bare)
        for table in touched:
            reads.add((table.name, key))
            if writing and table.name in targets:
                self._writes(table, key, first, context, locks)
            if lock is not None:
                locks.add((table.name, key, _MODES[" ".join(lock[1].upper().split())]))
        seen = frozenset(reads)
        if any(self._is_special(name) for name, _, mode in locks if mode in "uw"):
            return Effect(place, locks=frozenset([("*", None, "x")]), unknown=True, ends=alone)
        if open_.begun and open_.level in ("REPEATABLE READ", "SERIALIZABLE"):
            reads = set()  # of its snapshot
        return Effect(
            place,
            reads=frozenset(reads),
            locks=frozenset(locks),
            snapshot=snapshot,
            ends=alone,
            held=frozenset(locks) if alone else frozenset(),
            serializable=serializable,
            seen=seen if serializable else frozenset(),
        )

    def _is_special(self, name: str) -> bool:
        return any(table.special for table in self._raced.by_name.get(name, ()))

    def _writes(self, table: _Table, key: object, first: str, context: Any, locks: set[Lock]) -> None:
        """Add what an INSERT, UPDATE or DELETE of a table locks, in it and in those that foreign keys lead to."""
        changed = _changed_columns(context)
        keeps_keys = first == "UPDATE" and changed is not None and not changed & (table.key | table.unique)
        if keeps_keys:
            locks.add((table.name, key, "u"))
        else:
            own_key = key if not table.unique or first == "DELETE" else None
            locks.add((table.name, own_key, "w"))
            if first != "INSERT":
                locks.update((child, None, "w") for child in table.children)
        locks.update((parent, None, "k") for parent in table.parents)

    def _key(self, touched: list[_Table], context: Any) -> object:
        """Return the key of the one row that a statement is about, or None."""
        if len(touched) != 1 or not touched[0].key:
            return None
        compiled = getattr(context, "compiled", None)
        statement = getattr(compiled, "statement", None)
        if compiled is None or len(context.compiled_parameters) != 1:
            return None
        values = context.compiled_parameters[0]
        if isinstance(statement, Insert):
            if (
                getattr(statement, "_post_values_clause", None) is not None
                or compiled.insert_single_values_expr is None
            ):
                return None
            found = {name: values[name] for name in touched[0].key if name in values}
        elif isinstance(statement, Select | Update | Delete):
            found = _fixed(statement.whereclause, touched[0], values)
        else:
            return None
        if len(found) != len(touched[0].key) or any(value is None for value in found.values()):
            return None
        return tuple(str(found[name]) for name in sorted(found))


_KEY = "sessionkit_races"
_ADVISORY, _SEQUENCES = "<advisory>", "<sequences>"
_PSYCOPG2 = {1: "READ COMMITTED", 2: "REPEATABLE READ", 3: "SERIALIZABLE", 4: "READ COMMITTED"}


def _is_serializable(open_: _Open) -> bool:
    return open_.level == "SERIALIZABLE"


def _fixed(clause: Any, table: _Table, values: Any) -> dict[str, Any]:
    """Return the columns of a table's key that a condition fixes, and at which value."""
    found: dict[str, Any] = {}
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            found.update(_fixed(part, table, values))
    elif isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
        column, value = clause.left, clause.right
        if isinstance(value, BindParameter) and getattr(getattr(column, "table", None), "name", None) == table.name:
            name = getattr(column, "name", None)
            if name in table.key and value.key in values:
                found[str(name)] = values[value.key]
    return found


def _changed_columns(context: Any) -> frozenset[str] | None:
    """Return the columns that an UPDATE sets, or None where that is not known."""
    compiled: Any = getattr(context, "compiled", None)
    statement = getattr(compiled, "statement", None)
    if not isinstance(statement, Update) or not compiled.string.upper().lstrip().startswith("UPDATE"):
        return None
    if any(isinstance(each, Select | Insert | Delete) for each in visitors.iterate(statement)):
        return None
    found = re.search(r"\bSET\b(.*?)(?:\bWHERE\b|\bFROM\b|\bRETURNING\b|$)", compiled.string, re.DOTALL | re.IGNORECASE)
    return None if found is None else frozenset(re.findall(r'"?(\w+)"?\s*=', found[1]))


def _result(cursor: Any) -> str:
    """Tell what a statement has brought, and leave it where it is."""
    if cursor is None or cursor.description is None:
        count = getattr(cursor, "rowcount", -1)
        return f"{count} row{'s' * (count != 1)}" if count >= 0 else ""
    rows = getattr(cursor, "_rows", None)
    if rows is not None and hasattr(rows, "popleft"):  # SQLAlchemy's async adapters hold them all
        return shown_rows([*rows][:3], len(rows) > 3)
    try:
        rows = cursor.fetchmany(4)
        cursor.scroll(-len(rows))
    except Exception:  # noqa: BLE001 - a driver that cannot go back has not read anything
        return ""
    return shown_rows(rows[:3], len(rows) > 3)
