"""A database in the state of the template for each test: cheap, and safe after whatever the test before did.

PostgreSQL: each worker keeps one database and resets it before a test. To look costs half a millisecond, to drop what a
test has made a few, TRUNCATE ... RESTART IDENTITY of the tables that it wrote to another one or two; a clone of the
template and its drop cost 30 to 150 ms. What only a clone undoes (a column that a test added to a table of the template,
a setting of the database) is seen by a fingerprint of the catalogue, and then the database is dropped and cloned again;
so are the databases of tests marked `own_database`. The reset comes before the test and not after it, so that a killed or
failed test cannot spoil the next one.

TRUNCATE and not DELETE: DELETE is faster on small tables, but leaves the pages of a bulk test to all that follow.
Rolling back instead is out of the question: what these tests are about is COMMIT.

SQLite: a copy of a file that was filled once, which is faster than CREATE TABLE for each test.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

from pytest_postgresql.janitor import DatabaseJanitor
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from tests.support import models

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import Server

OBSERVER = "sessionkit-tests-observer"
NO_LIMIT = 2**32 - 1

# Every catalogue row that a test could have made or changed: its xmin is the transaction that wrote it last. With the
# command that drops it, and when; what goes with its table (indexes, row types, triggers) has none of its own. A schema
# for temporary tables stays when they are gone.
_CATALOGUE = """
    SELECT 'class' AS kind, oid, 0 AS part, xmin, CASE relkind
        WHEN 'r' THEN '3 TABLE' WHEN 'p' THEN '3 TABLE' WHEN 'f' THEN '3 FOREIGN TABLE' WHEN 'v' THEN '4 VIEW'
        WHEN 'm' THEN '4 MATERIALIZED VIEW' WHEN 'S' THEN '5 SEQUENCE' END AS sort, oid::regclass::text AS name
      FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'attribute', attrelid, attnum, xmin, NULL, NULL FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT 'constraint', oid, 0, xmin, NULL, NULL FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT 'function', oid, 0, xmin, '7 ROUTINE', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'type', oid, 0, xmin, CASE WHEN typtype IN ('e', 'd', 'r') THEN '6 TYPE' END, oid::regtype::text
      FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'trigger', oid, 0, xmin, NULL, NULL FROM pg_trigger WHERE oid >= 16384
    UNION ALL SELECT 'schema', oid, 0, xmin, '2 SCHEMA', oid::regnamespace::text
      FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'extension', oid, 0, xmin, '1 EXTENSION', quote_ident(extname) FROM pg_extension WHERE oid >= 16384
    UNION ALL SELECT 'setting', setrole, 0, xmin, NULL, NULL FROM pg_db_role_setting
      WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_TABLES = models.Base.metadata.sorted_tables
_SEQUENCES = {
    f"{table.name}_{column.name}_seq": table.name
    for table in _TABLES
    if (column := table.autoincrement_column) is not None
}
# Rows that were rolled back leave pages, too.
_WRITTEN = " UNION ALL ".join(
    [
        *(f"SELECT '{table.name}' WHERE pg_relation_size('{table.name}') > 0" for table in _TABLES),
        *(
            f"SELECT '{table}' FROM {sequence} WHERE is_called OR last_value <> 1"
            for sequence, table in _SEQUENCES.items()
        ),
    ]
)
_LOOK = text(f"""
    SELECT md5(string_agg(kind || oid::text || '.' || part || ':' || xmin::text, ',' ORDER BY kind, oid, part)
               FILTER (WHERE oid <= :newest)),
           max(oid),
           array_agg('DROP ' || substr(sort, 3) || ' IF EXISTS ' || name || ' CASCADE' ORDER BY sort, oid)
               FILTER (WHERE oid > :newest AND sort IS NOT NULL),
           (SELECT array_agg(name) FROM ({_WRITTEN}) AS written (name))
      FROM ({_CATALOGUE}) AS catalogue
""")


@dataclass(frozen=True)
class State:
    """What a database holds.

    Attributes:
        template: a fingerprint of what came with the template.
        newest: the highest of all numbers in the catalogue; what a test makes has a higher one.
        drops: the commands that drop what has been made since.
        written: the tables of the template that hold rows, or whose numbers have been used.
    """

    template: str
    newest: int
    drops: tuple[str, ...]
    written: frozenset[str]


class Database(ABC):
    """One database of a test, and a connection that looks at it from outside."""

    backend: str

    @abstractmethod
    def url(self, driver: str) -> URL:
        """Return its address for a driver."""

    @property
    @abstractmethod
    def observer(self) -> Engine:
        """Return an engine of the harness's own: it sees what is committed, and none of the test's settings."""

    @abstractmethod
    def left_open(self) -> list[str]:
        """Tell what the test left open in the database itself, seen from outside."""

    @abstractmethod
    def close(self) -> None:
        """Close the observer."""


class SqliteDatabase(Database):
    backend = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path

    def url(self, driver: str) -> URL:
        return URL.create(f"sqlite+{driver}", database=str(self.path))

    @cached_property
    def observer(self) -> Engine:
        # No pool: an idle connection to a file can still hold a shared lock or keep a WAL file alive.
        return create_engine(self.url("pysqlite"), poolclass=NullPool, connect_args={"timeout": 30})

    def left_open(self) -> list[str]:
        """Take the exclusive lock: whoever else is in a transaction is in the way of it."""
        engine = create_engine(
            self.url("pysqlite"), poolclass=NullPool, connect_args={"timeout": 0, "isolation_level": None}
        )
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
                connection.exec_driver_sql("ROLLBACK")
        except OperationalError as error:
            return [f"the SQLite file is still in use: {error.orig}"]
        return []

    def close(self) -> None:
        self.observer.dispose()


class SqliteDatabases:
    """The filled file, and copies of it."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        models.load(URL.create("sqlite+pysqlite", database=str(self._template)))

    def new(self, path: Path) -> SqliteDatabase:
        shutil.copyfile(self._template, path)
        return SqliteDatabase(path)


class PostgresqlDatabase(Database):
    backend = "postgresql"

    def __init__(self, server: Server, name: str, template: str) -> None:
        self.name = name
        self.server = server
        self._template = ""
        self._newest = NO_LIMIT
        self._janitor = DatabaseJanitor(
            user=server.user,
            host=server.host,
            port=server.port,
            password=server.password,
            maintenance_dbname=server.maintenance_dbname,
            dbname=name,
            template_dbname=template,
            # Whether the server can be reached was asked once, when it was started or found.
            connection_timeout=5,
        )

    def url(self, driver: str) -> URL:
        return self.server.url(driver, self.name)

    @cached_property
    def observer(self) -> Engine:
        # AUTOCOMMIT: it holds no snapshot, so each read sees the latest commit. Two connections: `rows()` may run in
        # several threads.
        return create_engine(
            self.url("psycopg"),
            isolation_level="AUTOCOMMIT",
            pool_size=2,
            pool_pre_ping=True,
            connect_args={"application_name": OBSERVER},
        )

    def create(self) -> None:
        self._janitor.init()
        self._newest = NO_LIMIT
        self._newest = self._look().newest
        self._template = self._look().template

    def drop(self) -> None:
        self.close()
        # The engine is made anew with the next database of this name.
        del self.__dict__["observer"]
        self._janitor.drop()

    def reset(self) -> None:
        """Bring it back to the template's state."""
        self.throw_out()
        if not self._restored():
            self.drop()
            self.create()

    def _restored(self) -> bool:
        """Undo what can be undone in place; tell whether that was all."""
        try:
            if (state := self._look()).drops:
                self._run("; ".join(state.drops))
                state = self._look()
            if state.template != self._template or state.newest != self._newest:
                return False
            if state.written:
                self._run(f"TRUNCATE {', '.join(sorted(state.written))} RESTART IDENTITY CASCADE")
                # TRUNCATE gives a table new storage, which is a change of its catalogue row.
                self._template = self._look().template
        except DBAPIError:
            # A table of the template is gone, or what was made hangs together in a way that no order of commands knows.
            return False
        return True

    def throw_out(self) -> None:
        """End what the last test left behind: connections, and transactions that it prepared."""
        with self.observer.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND application_name <> '{OBSERVER}'"
                " AND backend_type = 'client backend'"
            )
            prepared = connection.exec_driver_sql(
                "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()"
            )
            for gid in prepared.scalars().all():
                connection.exec_driver_sql(f"ROLLBACK PREPARED {gid}")

    def left_open(self) -> list[str]:
        """Look for transactions that somebody but the observer still holds."""
        looking = text(
            "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND application_name <> :observer AND state <> 'idle'"
        )
        open_: list[str] = []
        with self.observer.connect() as connection:
            # A backend whose client has just gone needs a moment to notice; a transaction that is held stays.
            for _ in range(10):
                open_ = [
                    f"backend {pid} is {state} after: {query}"
                    for pid, state, query in connection.execute(looking, {"observer": OBSERVER})
                ]
                if not open_:
                    break
                connection.exec_driver_sql("SELECT pg_sleep(0.05)")
        return open_

    def close(self) -> None:
        self.observer.dispose()

    def _look(self) -> State:
        with self.observer.connect() as connection:
            template, newest, drops, written = connection.execute(_LOOK, {"newest": self._newest}).one()
        return State(str(template), newest, tuple(drops or ()), frozenset(written or ()))

    def _run(self, command: str) -> None:
        with self.observer.connect() as connection:
            connection.exec_driver_sql(command)


class PostgresqlDatabases:
    """This worker's database, and clones for the tests that want their own."""

    def __init__(self, server: Server, template: str) -> None:
        self._server = server
        self._template = template
        self._numbers = count(1)
        self._own: list[PostgresqlDatabase] = []
        self._spare: list[PostgresqlDatabase] = []
        self._shared: PostgresqlDatabase | None = None

    def shared(self) -> PostgresqlDatabase:
        """Return the worker's database, clean."""
        if self._shared is None:
            self._shared = self.new()
        else:
            self._shared.reset()
        return self._shared

    def another(self) -> PostgresqlDatabase:
        """Return a clean database beside the shared one, to be given back."""
        if not self._spare:
            return self.new()
        database = self._spare.pop()
        database.reset()
        return database

    def give_back(self, database: PostgresqlDatabase) -> None:
        # What was left prepared in it would be in the way of tests that look at the whole server.
        database.throw_out()
        self._spare.append(database)

    def new(self) -> PostgresqlDatabase:
        """Return a clone of the template that nobody else uses."""
        # The template's name is this process's own, so are the clones'.
        database = PostgresqlDatabase(self._server, f"{self._template}_{next(self._numbers)}", self._template)
        database.create()
        self._own.append(database)
        return database

    def drop(self, database: PostgresqlDatabase) -> None:
        database.drop()
        self._own.remove(database)

    def close(self) -> None:
        for database in list(self._own):
            with suppress(OSError):
                self.drop(database)


def enforce_foreign_keys(engine: Engine) -> None:
    """Have SQLite check what PostgreSQL always checks, so that a body means the same on both."""

    @event.listens_for(engine, "connect")
    def switch_on(dbapi_connection: object, _record: object) -> None:
        cursor = dbapi_connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
