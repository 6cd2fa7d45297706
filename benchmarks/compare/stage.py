"""The stage: two tables in a SQLite file or on PostgreSQL, and a view of what is committed that no peer can influence."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import URL

from tests.support import postgres
from tests.support.faults import Fault, FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.faults import Struck

# A new one in each process, because several may work on one server at the same time.
DATABASE = f"sessionkit_comparison_{os.getpid()}"
TABLES = """
DROP TABLE IF EXISTS entry;
DROP TABLE IF EXISTS account;
DROP TABLE IF EXISTS item;
CREATE TABLE account (
    id INTEGER PRIMARY KEY, name VARCHAR(50) NOT NULL UNIQUE, balance INTEGER NOT NULL, version INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE entry (id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account (id));
CREATE TABLE item (
    id {serial} PRIMARY KEY, code INTEGER NOT NULL UNIQUE, name VARCHAR(50) NOT NULL, price DOUBLE PRECISION NOT NULL
);
"""


class Stage:
    """A database with the tables `account`, `entry` and `item`.

    Attributes:
        backend: "sqlite" or "postgresql".
        url: its address, without a driver.
    """

    def __init__(self, url: URL) -> None:
        self.backend = url.get_backend_name()
        self.url = url

    def reset(self) -> None:
        """Create the tables again, empty."""
        script = TABLES.format(serial="SERIAL" if self.backend == "postgresql" else "INTEGER")
        if self.backend == "sqlite":
            with closing(sqlite3.connect(str(self.url.database))) as file:
                file.executescript(script)
        else:
            self.throw_out()
            with self._postgresql() as connection:
                connection.execute(script)

    def throw_out(self) -> None:
        """End the transactions that a peer has left open, so that the next question finds the tables free."""
        with self._postgresql() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )

    def write(self, statement: str) -> None:
        """Write and commit, as another user of the database."""
        if self.backend == "sqlite":
            with closing(sqlite3.connect(str(self.url.database), timeout=0.1)) as file, file:
                file.execute(statement)
        else:
            with self._postgresql() as connection:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what is committed."""
        if self.backend == "sqlite":
            with closing(sqlite3.connect(str(self.url.database), timeout=5)) as file:
                return list(file.execute(query))
        with self._postgresql() as connection:
            return connection.execute(query).fetchall()

    def names(self) -> list[str]:
        """Return the names of the accounts that are committed."""
        return [name for (name,) in self.rows("SELECT name FROM account ORDER BY id")]

    def balances(self) -> list[int]:
        """Return the balances of the accounts that are committed."""
        return [balance for (balance,) in self.rows("SELECT balance FROM account ORDER BY id")]

    def open_transactions(self) -> int:
        """Count open transactions; on SQLite, say whether one holds the write lock."""
        if self.backend == "sqlite":
            try:
                self.write("UPDATE account SET balance = balance WHERE id = -1")
            except sqlite3.OperationalError:
                return 1
            return 0
        found = self.rows(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'"
        )
        return int(found[0][0])

    @contextmanager
    def answer_of_commit_lost(self) -> Iterator[tuple[URL, Struck]]:
        """Yield an address of the database behind a proxy that loses the answer to the next COMMIT."""
        assert self.url.host is not None
        assert self.url.port is not None
        with FaultProxy(self.url.host, self.url.port) as proxy:
            fault = proxy.at("COMMIT", Fault.LOSE_REPLY)
            yield self.url.set(port=proxy.port), fault

    def _postgresql(self) -> psycopg.Connection[tuple[Any, ...]]:
        return connect(self.url)


def connect(url: URL) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect, without a peer and without a transaction."""
    return psycopg.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database, autocommit=True
    )


def on_sqlite(folder: Path) -> Stage:
    """Return a stage in a new SQLite file."""
    return Stage(URL.create("sqlite", database=str(folder / "comparison.db")))


@contextmanager
def on_postgresql(url: URL | None) -> Iterator[Stage]:
    """Yield a stage on a given server, or on one that it starts the way the tests do."""
    guard = None
    if url is None:
        guard = postgres.Guard()
        server = postgres.from_keeper(guard.port)
        url = server.url("psycopg", server.maintenance_dbname)
    url = url.set(drivername="postgresql")
    try:
        with connect(url) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
        try:
            yield Stage(url.set(database=DATABASE))
        finally:
            with connect(url) as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    finally:
        if guard is not None:
            guard.close()


class Meeting:
    """A place where two units wait for each other once, with a limit, because a database may keep one of them out.

    A unit that is run again does not wait again.
    """

    def __init__(self, patience: float = 0.4) -> None:
        self._barrier = threading.Barrier(2)
        self._patience = patience
        self._been = threading.local()

    def wait(self) -> None:
        if not getattr(self._been, "here", False):
            self._been.here = True
            with suppress(threading.BrokenBarrierError):
                self._barrier.wait(self._patience)


def together(*bodies: Callable[[], object]) -> list[Exception]:
    """Run each body in its own thread; return what they raised."""
    errors: list[Exception] = []

    def run(body: Callable[[], object]) -> None:
        try:
            body()
        except Exception as error:  # noqa: BLE001 - what is raised is the outcome
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def raised_by(body: Callable[[], object]) -> Exception | None:
    """Return what a body raised."""
    try:
        body()
    except Exception as error:  # noqa: BLE001 - what is raised is the outcome
        return error
    return None


def named(*errors: BaseException) -> str:
    """Name errors as the reader of a log sees them."""
    return ", ".join(dict.fromkeys(f"`{type(error).__name__}`{_code(error)}" for error in errors))


def _code(error: BaseException) -> str:
    """Return the database's reason, if it says more than the name of the class."""
    seen: BaseException | None = error
    while seen is not None:
        if "database is locked" in str(seen):
            return " (database is locked)"
        if isinstance(state := getattr(seen, "sqlstate", None), str):
            return f" ({state})"
        seen = getattr(seen, "orig", None) or seen.__cause__
    return ""
