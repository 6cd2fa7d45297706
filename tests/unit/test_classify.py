"""errors.classify: by the code that the driver gave and nothing else, in SQLAlchemy's wrapping and without it.

Built from the drivers' own classes; tests/contract/test_retry_catalogue.py provokes what can be provoked on real servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import struct
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import aiosqlite
import asyncpg
import psycopg
import psycopg2
import pytest
from sqlalchemy import create_engine, exc, orm
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, async_sessionmaker, errors, sessionmaker
from sessionkit.errors import Classification, classify

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Dialect
    from sqlalchemy.ext.asyncio import AsyncSession

# facts of PostgreSQL's appendix A: code, kind, retryable, ambiguous as the answer to COMMIT
SQLSTATES = [
    ("40001", "serialization_failure", True, False),
    ("40P01", "deadlock_detected", True, False),
    ("40003", "statement_completion_unknown", False, True),
    ("55P03", "lock_not_available", False, False),
    ("57014", "query_canceled", False, False),
    ("57P01", "admin_shutdown", True, True),
    ("57P02", "crash_shutdown", True, True),
    ("57P03", "cannot_connect", True, False),
    ("57P05", "idle_session_timeout", True, True),
    ("25P03", "idle_in_transaction_session_timeout", True, True),
    ("08000", "connection_lost", True, True),
    ("08003", "connection_lost", True, True),
    ("08006", "connection_lost", True, True),
    ("53300", "cannot_connect", True, False),
    ("23502", "not_null_violation", False, False),
    ("23503", "foreign_key_violation", False, False),
    ("23505", "unique_violation", False, False),
    ("23514", "check_violation", False, False),
    ("23P01", "exclusion_violation", False, False),
    ("25P02", "in_failed_sql_transaction", False, False),
    ("25006", "read_only_sql_transaction", False, False),
    ("53100", "disk_full", False, False),
    ("53200", "out_of_memory", False, False),
    ("53400", "configuration_limit_exceeded", False, False),
    ("58030", "system_error", False, False),
    ("XX000", "internal_error", False, False),
    ("22012", "data_exception", False, False),
    ("23000", "integrity_constraint_violation", False, False),
    ("42P01", "syntax_error_or_access_rule_violation", False, False),
    ("0A000", "other", False, False),
    ("P0001", "other", False, False),
]

# https://www.sqlite.org/rescode.html: number, name, kind, retryable
SQLITE = [
    (5, "SQLITE_BUSY", "busy", True),
    (261, "SQLITE_BUSY_RECOVERY", "busy", True),
    (773, "SQLITE_BUSY_TIMEOUT", "busy", True),
    (517, "SQLITE_BUSY_SNAPSHOT", "busy_snapshot", True),
    (6, "SQLITE_LOCKED", "locked", True),
    (262, "SQLITE_LOCKED_SHAREDCACHE", "locked", True),
    (7, "SQLITE_NOMEM", "out_of_memory", False),
    (8, "SQLITE_READONLY", "read_only_sql_transaction", False),
    (264, "SQLITE_READONLY_RECOVERY", "read_only_sql_transaction", False),
    (9, "SQLITE_INTERRUPT", "query_canceled", False),
    (10, "SQLITE_IOERR", "system_error", False),
    (778, "SQLITE_IOERR_WRITE", "system_error", False),
    (11, "SQLITE_CORRUPT", "corrupt", False),
    (13, "SQLITE_FULL", "disk_full", False),
    (14, "SQLITE_CANTOPEN", "cannot_open", False),
    (19, "SQLITE_CONSTRAINT", "integrity_constraint_violation", False),
    (275, "SQLITE_CONSTRAINT_CHECK", "check_violation", False),
    (787, "SQLITE_CONSTRAINT_FOREIGNKEY", "foreign_key_violation", False),
    (1299, "SQLITE_CONSTRAINT_NOTNULL", "not_null_violation", False),
    (1555, "SQLITE_CONSTRAINT_PRIMARYKEY", "unique_violation", False),
    (2067, "SQLITE_CONSTRAINT_UNIQUE", "unique_violation", False),
    (21, "SQLITE_MISUSE", "other", False),
    (26, "SQLITE_NOTADB", "not_a_database", False),
    (1, "SQLITE_ERROR", "other", False),
]

# From the documentation of MySQL and MariaDB.
MYSQL = [
    (1213, "deadlock_detected", True, False),
    (1205, "lock_wait_timeout", True, False),
    (1020, "record_changed", True, False),
    (1062, "unique_violation", False, False),
    (1452, "foreign_key_violation", False, False),
    (1792, "read_only_sql_transaction", False, False),
    (2003, "cannot_connect", True, False),
    (2006, "connection_lost", True, True),
    (2013, "connection_lost", True, True),
    (2055, "connection_lost", True, True),
    (4031, "connection_lost", True, True),
    (1064, "other", False, False),
]


@cache
def dialect(driver: str) -> Dialect:
    if driver in {"aiosqlite", "pysqlite"}:
        url = f"sqlite+{driver}://"
    else:
        url = f"postgresql+{driver}://nowhere/nothing"
    make = create_async_engine if driver in {"aiosqlite", "asyncpg"} else create_engine
    return make(url).dialect


def psycopg_error(code: str) -> Exception:
    return psycopg.errors.lookup(code)("the message is never read")


class Psycopg2Error(psycopg2.OperationalError):
    """psycopg2 fills pgcode from the server's answer; from outside it cannot be set."""

    def __init__(self, code: str) -> None:
        super().__init__("the message is never read")
        self.code = code

    @property
    def pgcode(self) -> str:
        return self.code


def asyncpg_error(code: str) -> Exception:
    error: Exception = asyncpg.PostgresError.new({"C": code, "M": "the message is never read", "S": "ERROR"})
    return error


DRIVERS = {"psycopg": psycopg_error, "psycopg2": Psycopg2Error, "asyncpg": asyncpg_error}


def wrapped(driver: str, error: Exception, *, statement: str | None = "SELECT 1", lost: bool = False) -> Exception:
    """Wrap a driver's error as SQLAlchemy does: asyncpg's first by the adapter, then by SQLAlchemy."""
    dbapi: Any = dialect(driver).loaded_dbapi  # type: ignore[attr-defined]
    if driver == "asyncpg":
        adapted = dbapi.Error(str(error), error) if _takes_the_original(dbapi.Error) else dbapi.Error(str(error))
        adapted.pgcode = adapted.sqlstate = getattr(error, "sqlstate", None)
        adapted.__cause__ = error
        error = adapted
    return exc.DBAPIError.instance(  # type: ignore[return-value]
        statement, {}, error, dbapi.Error, connection_invalidated=lost, dialect=dialect(driver)
    )


def _takes_the_original(kind: type) -> bool:
    try:
        kind("message")
    except TypeError:
        return True
    return False


def expected(kind: str, code: str | None, retryable: bool, ambiguous: bool) -> Classification:
    return Classification(kind, code, retryable, ambiguous)


@pytest.mark.parametrize("driver", list(DRIVERS))
@pytest.mark.parametrize(("code", "kind", "retryable", "ambiguous"), SQLSTATES, ids=[row[0] for row in SQLSTATES])
def test_a_sqlstate_means_the_same_from_every_driver_wrapped_or_not(
    driver: str, code: str, kind: str, retryable: bool, ambiguous: bool
) -> None:
    bare = DRIVERS[driver](code)
    assert classify(bare) == expected(kind, code, retryable, ambiguous)
    assert classify(wrapped(driver, bare)) == expected(kind, code, retryable, ambiguous)
    dropped = retryable or code == "25006"  # the next connection may lead to a server that takes writes
    assert classify(wrapped(driver, bare, lost=True)) == expected(kind, code, dropped, ambiguous)


def sqlite_error(number: int, name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("database is locked")  # the same text for 5, 261, 517 and 773
    error.sqlite_errorcode, error.sqlite_errorname = number, name
    return error


@pytest.mark.parametrize(("number", "name", "kind", "retryable"), SQLITE, ids=[row[1] for row in SQLITE])
def test_a_code_of_sqlite_means_the_same_from_both_drivers_wrapped_or_not(
    number: int, name: str, kind: str, retryable: bool
) -> None:
    error = sqlite_error(number, name)
    assert aiosqlite.Error is sqlite3.Error
    for each in (error, wrapped("pysqlite", error), wrapped("aiosqlite", error)):
        assert classify(each) == expected(kind, name, retryable, False)


@pytest.mark.parametrize(("number", "kind", "retryable", "ambiguous"), MYSQL, ids=[str(row[0]) for row in MYSQL])
@pytest.mark.parametrize("driver", ["pymysql", "MySQLdb", "asyncmy", "aiomysql", "mariadb"])
def test_a_number_of_mysql_is_looked_up(driver: str, number: int, kind: str, retryable: bool, ambiguous: bool) -> None:
    error = type("OperationalError", (Exception,), {"__module__": f"{driver}.err"})(number, "the message")
    assert classify(error) == expected(kind, str(number), retryable, ambiguous)


def test_a_number_of_somebody_elses_is_not_taken_for_one_of_mysql() -> None:
    assert classify(Exception(1213, "the message")).kind == "other"
    assert classify(KeyError(1213)).kind == "other"


# Without a code


@pytest.mark.parametrize("driver", list(DRIVERS))
def test_a_lost_connection_without_a_code_is_told_by_sqlalchemy(driver: str) -> None:
    dbapi: Any = dialect(driver).loaded_dbapi  # type: ignore[attr-defined]
    error = Exception("the message") if driver == "asyncpg" else dbapi.OperationalError("the message")
    for statement in ("SELECT 1", None):
        lost = wrapped(driver, error, statement=statement, lost=True)
        assert classify(lost) == expected("connection_lost", None, True, True)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_an_error_without_a_code_and_a_statement_is_a_connection_that_was_not_made(driver: str) -> None:
    dbapi: Any = dialect(driver).loaded_dbapi  # type: ignore[attr-defined]
    refused = wrapped(driver, dbapi.OperationalError("the message"), statement=None)
    assert classify(refused) == expected("cannot_connect", None, True, False)


def test_an_error_without_a_code_in_a_statement_is_nothing_special() -> None:
    assert classify(wrapped("psycopg", psycopg.OperationalError("the message"))).kind == "other"
    assert classify(exc.InterfaceError("SELECT 1", {}, Exception())).kind == "other"


async def _connect_with_asyncpg(host: str, port: int, **options: Any) -> None:
    await asyncpg.connect(host=host, port=port, user="nobody", database="nothing", **options)


def _failure_of(port: int, **options: Any) -> BaseException:
    try:
        asyncio.run(_connect_with_asyncpg("127.0.0.1", port, **options))
    except OSError as error:
        return error
    raise AssertionError


def test_what_asyncpg_raises_while_it_connects_is_told_by_where_it_came_from() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        hangs = _failure_of(port, timeout=0.05)
    refused = _failure_of(port)
    assert type(hangs) is TimeoutError
    assert isinstance(refused, ConnectionRefusedError)
    for error in (hangs, refused):
        assert classify(error) == expected("cannot_connect", None, True, False)


# The first connect of an engine, with real sockets

CONNECTING = ["psycopg", "psycopg2", "asyncpg", "psycopg_async"]


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _refusing(code: str, stopped: threading.Event) -> int:
    """Serve what answers each greeting with a fatal error, as PostgreSQL does; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    fields = f"SFATAL\0VFATAL\0C{code}\0Mthe message is never read\0\0".encode()

    def serve() -> None:
        with listener:
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError), listener.accept()[0] as client:
                    client.settimeout(5)
                    # A request for encryption is one byte back, and then the greeting comes.
                    while client.recv(4096)[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
                        client.sendall(b"N")
                    client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _first_use(driver: str, url: str) -> tuple[BaseException, int]:
    """Run a unit with two attempts on a new engine; return what it failed with, and how often its body ran."""
    runs: list[int] = []
    twice = Retry(2, wait=0)

    def unit(session: orm.Session) -> None:
        runs.append(1)
        session.connection()

    async def async_unit(session: AsyncSession) -> None:
        runs.append(1)
        await session.connection()

    async def run() -> None:
        before = set(threading.enumerate())
        async_engine = create_async_engine(f"{driver.removesuffix('_async')}{url}")
        try:
            await async_sessionmaker(async_engine, retry=twice).run(async_unit)
        finally:
            await async_engine.dispose()
            if driver.endswith("aiosqlite"):
                for thread in set(threading.enumerate()) - before:
                    await asyncio.to_thread(thread.join, 30)  # it still has an answer for this loop

    driver = driver if driver.startswith("sqlite") else f"postgresql+{driver}"
    # SQLAlchemy 2.0 wraps none of what asyncpg raises while it connects, and 2.1 the server's answers only.
    with pytest.raises((exc.DBAPIError, OSError, asyncpg.PostgresError)) as caught:
        if driver.endswith(("asyncpg", "aiosqlite", "_async")):
            asyncio.run(run())
        else:
            engine = create_engine(f"{driver}{url}")
            try:
                sessionmaker(engine, retry=twice).run(unit)
            finally:
                engine.dispose()
    return caught.value, len(runs)


@pytest.mark.parametrize("driver", CONNECTING)
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_server_that_is_not_there_cannot_be_connected_to_and_the_unit_is_run_again(driver: str, host: str) -> None:
    error, runs = _first_use(driver, f"://nobody@{host}:{_closed_port()}/nothing")
    assert classify(error) == expected("cannot_connect", None, True, False)
    assert isinstance(error, OSError) is (driver == "asyncpg"), "SQLAlchemy does not wrap what asyncpg raises here"
    assert errors.outcome_of(error) == "rolled back"
    assert runs == 2


@pytest.mark.parametrize("driver", CONNECTING)
@pytest.mark.parametrize("code", ["57P03", "53300"], ids=["starting up", "too many connections"])
def test_a_server_that_takes_no_one_in_cannot_be_connected_to_and_the_unit_is_run_again(driver: str, code: str) -> None:
    stopped = threading.Event()
    try:
        error, runs = _first_use(driver, f"://nobody@127.0.0.1:{_refusing(code, stopped)}/nothing")
    finally:
        stopped.set()
    # libpq gives no code of a connection that was not made.
    assert classify(error) == expected("cannot_connect", code if driver == "asyncpg" else None, True, False)
    assert runs == 2


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_a_file_that_cannot_be_opened_is_no_lost_connection(driver: str, tmp_path: Path) -> None:
    error, runs = _first_use(driver, f":///{tmp_path}/no/such/folder.db")
    assert classify(error) == expected("cannot_open", "SQLITE_CANTOPEN", False, False)
    assert runs == 1


@pytest.mark.parametrize(
    "kind", [OSError, ConnectionRefusedError, ConnectionResetError, TimeoutError, FileNotFoundError]
)
def test_an_oserror_of_somebody_else_is_not_the_databases(kind: type[OSError]) -> None:
    """A mail server that cannot be reached is no reason to run the unit again."""
    try:
        raise kind
    except OSError as error:
        assert classify(error) == expected("other", None, False, False)


# What is not a driver's


def test_a_stale_version_is_retryable() -> None:
    assert classify(StaleDataError()) == expected("stale_version", None, True, False)
    assert issubclass(errors.VersionConflict, StaleDataError)


def test_an_unexpected_rollback_means_what_its_first_error_means() -> None:
    def unexpected(cause: BaseException | None) -> errors.UnexpectedRollback:
        error = errors.UnexpectedRollback("nothing was committed")
        error.__cause__ = cause
        return error

    assert classify(unexpected(wrapped("psycopg", psycopg_error("40001")))).kind == "serialization_failure"
    assert classify(unexpected(ValueError())).kind == "other"
    assert classify(unexpected(None)).kind == "other"


def test_what_was_raised_from_a_drivers_error_means_what_that_means() -> None:
    for cause in (
        psycopg_error("40001"),
        wrapped("psycopg", psycopg_error("40001")),
        wrapped("asyncpg", asyncpg_error("40001")),
    ):
        try:
            raise LookupError("mine") from cause
        except LookupError as error:
            assert classify(error) == expected("serialization_failure", "40001", True, False)


def test_what_was_raised_beside_a_drivers_error_means_nothing() -> None:
    try:
        try:
            raise psycopg_error("40001")
        except psycopg.Error:
            raise LookupError("mine")  # noqa: B904 - that it has no cause is the point
    except LookupError as error:
        assert classify(error).kind == "other"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        errors.ScopeError("no"),
        errors.CommitOutcomeUnknown("lost"),
        exc.TimeoutError("QueuePool limit reached"),
        exc.InvalidRequestError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_anything_else_is_other_and_never_retryable(error: BaseException) -> None:
    assert classify(error) == expected("other", None, False, False)


def test_an_unknown_outcome_does_not_mean_what_its_cause_means() -> None:
    error = errors.CommitOutcomeUnknown("lost")
    error.__cause__ = wrapped("psycopg", psycopg_error("57P01"))
    assert classify(error) == expected("other", None, False, False)


def test_every_kind_can_be_given_to_also() -> None:
    kinds = {row[1] for row in SQLSTATES} | {row[2] for row in SQLITE} | {row[1] for row in MYSQL}
    assert Retry(also=tuple(kinds)).also == tuple(kinds)
