"""The catalogue of errors, provoked on real servers: what classify() says of each, and whether a unit is run again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import Retry, errors, sqlite
from tests.contract.breaking import backend_pid, kill_backend
from tests.contract.lost import backend_is_gone, link
from tests.support.faults import Fault
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

POSTGRESQL = pytest.mark.doors(backend="postgresql")
SQLITE = pytest.mark.doors(backend="sqlite")


async def meaning_of(
    doors: Door, body: Callable[[AsyncSession], Awaitable[Any]], factory: Any = None, **options: Any
) -> Any:
    """Run a unit that fails, and return what is said of its error and how often it ran."""
    runs: list[int] = []

    async def unit(session: AsyncSession) -> None:
        runs.append(1)
        await body(session)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is asked
        await doors.decorate(unit, factory, retry=Retry(2, wait=0), **options)()
    assert errors.outcome_of(caught.value) == "rolled back"
    found = errors.classify(caught.value)
    assert found.retryable is (len(runs) == 2), f"{found}, but it ran {len(runs)} times"
    return found.kind, found.code, found.retryable, found.ambiguous


def saying(*statements: str) -> Callable[[AsyncSession], Awaitable[None]]:
    async def body(session: AsyncSession) -> None:
        for statement in statements:
            await session.execute(text(statement))

    return body


RAISED = [
    # What a server says is the same whoever makes it say so: RAISE with the code.
    ("40001", "serialization_failure", True, False),
    ("40P01", "deadlock_detected", True, False),
    ("40003", "statement_completion_unknown", False, True),
    ("55P03", "lock_not_available", False, False),
    ("57014", "query_canceled", False, False),
    ("23505", "unique_violation", False, False),
    ("23P01", "exclusion_violation", False, False),
    ("25006", "read_only_sql_transaction", False, False),
    ("53100", "disk_full", False, False),
    ("53200", "out_of_memory", False, False),
    ("53400", "configuration_limit_exceeded", False, False),
    ("58030", "system_error", False, False),
    ("XX000", "internal_error", False, False),
]


@POSTGRESQL
@pytest.mark.parametrize(("code", "kind", "retryable", "ambiguous"), RAISED, ids=[row[0] for row in RAISED])
async def test_an_error_of_the_server_is_classified_by_its_code(
    doors: Door, code: str, kind: str, retryable: bool, ambiguous: bool
) -> None:
    raise_it = saying(f"DO $$ BEGIN RAISE EXCEPTION 'no message decides' USING ERRCODE = '{code}'; END $$")
    assert await meaning_of(doors, raise_it) == (kind, code, retryable, ambiguous)


@POSTGRESQL
async def test_a_statement_that_took_too_long_is_not_retried(doors: Door) -> None:
    body = saying("SELECT pg_sleep(30)")
    assert await meaning_of(doors, body, statement_timeout=0.05) == ("query_canceled", "57014", False, False)


@POSTGRESQL
async def test_a_lock_that_was_not_waited_for_is_retried_only_if_that_was_asked(doors: Door) -> None:
    await doors.write(insert(Account).values(id=1))
    nowait = saying("SELECT * FROM accounts WHERE id = 1 FOR UPDATE NOWAIT")
    async with doors.scope() as session:
        await session.execute(text("SELECT * FROM accounts WHERE id = 1 FOR UPDATE"))
        factory = doors.factory(doors.make_engine())
        assert await meaning_of(doors, nowait, factory) == ("lock_not_available", "55P03", False, False)
        waits = saying("UPDATE accounts SET balance = 1 WHERE id = 1")
        assert (await meaning_of(doors, waits, factory, lock_timeout=0.05))[1] == "55P03"
        runs: list[int] = []

        async def body(session: AsyncSession) -> None:
            runs.append(1)
            await nowait(session)

        with pytest.raises(DBAPIError):
            await doors.decorate(body, factory, retry=Retry(3, wait=0, also=("lock_not_available",)))()
        assert len(runs) == 3


@POSTGRESQL
async def test_a_backend_that_was_terminated_while_idle_is_a_lost_connection(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await kill_backend(doors, await backend_pid(session))
        await session.execute(text("SELECT 1"))

    kind, code, retryable, ambiguous = await meaning_of(doors, body)
    assert (kind, code) in {("admin_shutdown", "57P01"), ("connection_lost", "08003"), ("connection_lost", None)}
    assert (retryable, ambiguous) == (True, True)


@POSTGRESQL
async def test_a_backend_that_ends_itself_in_a_statement_is_a_lost_connection(doors: Door) -> None:
    kind, _, retryable, ambiguous = await meaning_of(doors, saying("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert (kind in {"admin_shutdown", "connection_lost"}, retryable, ambiguous) == (True, True, True)


@POSTGRESQL
async def test_a_transaction_that_was_idle_for_too_long_is_a_lost_connection(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await backend_is_gone(doors, await backend_pid(session))
        await session.execute(text("SELECT 1"))

    kind, code, retryable, ambiguous = await meaning_of(doors, body, idle_timeout=0.05)
    assert (kind, code) in {("idle_in_transaction_session_timeout", "25P03"), ("connection_lost", None)}
    assert (retryable, ambiguous) == (True, True)


@POSTGRESQL
@pytest.mark.parametrize("fault", [Fault.LOSE, Fault.LOSE_REPLY], ids=lambda fault: fault.name)
async def test_a_link_that_was_cut_is_a_lost_connection(doors: Door, fault: Fault) -> None:
    with link(doors) as way:
        for _ in range(2):
            way.proxy.at("cut here", fault)
        kind, code, *rest = await meaning_of(doors, saying("SELECT 1 /* cut here */"), way.factory)
    assert (kind, rest) == ("connection_lost", [True, True])
    assert code in {None, "08003", "08006"}


@POSTGRESQL
async def test_a_connection_that_was_refused_was_not_made(doors: Door) -> None:
    with link(doors) as way:
        way.proxy.refuse()
        assert await meaning_of(doors, saying("SELECT 1"), way.factory) == ("cannot_connect", None, True, False)


@POSTGRESQL
@pytest.mark.own_database
async def test_too_many_connections_are_no_connection(doors: Door) -> None:
    name = doors.database.name  # type: ignore[attr-defined]
    await doors.write(f"CREATE ROLE crowd_{name} LOGIN CONNECTION LIMIT 0")
    try:
        url = doors.database.url(doors.driver).set(username=f"crowd_{name}")
        factory = doors.factory(doors._adopted(doors._create_engine(url), False))
        kind, code, retryable, ambiguous = await meaning_of(doors, saying("SELECT 1"), factory)
    finally:
        await doors.write(f"DROP ROLE crowd_{name}")
    assert (kind, retryable, ambiguous) == ("cannot_connect", True, False)
    assert code in {"53300", None}  # libpq has only the text of what was said before there was a connection


@POSTGRESQL
async def test_a_write_in_a_read_only_unit_is_not_retried(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await session.execute(insert(User).values(name="ann"))

    assert await meaning_of(doors, body, read_only=True) == ("read_only_sql_transaction", "25006", False, False)


@POSTGRESQL
async def test_what_the_server_refuses_after_a_failure_is_not_what_is_retried(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        with suppress(DBAPIError):
            await session.execute(text("SELECT * FROM no_such_table"))
        await session.execute(text("SELECT 1"))

    assert await meaning_of(doors, body) == ("in_failed_sql_transaction", "25P02", False, False)


CONSTRAINTS = [
    ("INSERT INTO users (name) VALUES ('a'), ('a')", "unique_violation", "23505"),
    ("INSERT INTO users (name) VALUES (NULL)", "not_null_violation", "23502"),
    ("INSERT INTO accounts (owner, balance) VALUES ('a', -1)", "check_violation", "23514"),
    ("INSERT INTO addresses (user_id, email) VALUES (77, 'a')", "foreign_key_violation", "23503"),
]


@pytest.mark.parametrize(("statement", "kind", "code"), CONSTRAINTS, ids=[row[1] for row in CONSTRAINTS])
async def test_a_constraint_has_the_same_kind_on_both_backends_and_is_not_retried(
    doors: Door, statement: str, kind: str, code: str
) -> None:
    found = await meaning_of(doors, saying(statement))
    assert (found[0], found[2:]) == (kind, (False, False))
    assert found[1] == (code if doors.backend == "postgresql" else found[1])


async def test_a_stale_version_is_retried(doors: Door) -> None:
    async def body(_session: AsyncSession) -> None:
        raise StaleDataError("somebody was faster")

    assert await meaning_of(doors, body) == ("stale_version", None, True, False)


# SQLite


@SQLITE
async def test_a_file_that_somebody_writes_to_is_busy(doors: Door) -> None:
    factory = doors.factory(doors.make_engine(connect_args={"timeout": 0}))

    async def busy() -> Any:
        return await meaning_of(doors, saying("SELECT 1"), factory)

    async with doors.scope() as session:
        session.add(User(name="ann"))
        await session.flush()
        found = await (doors.in_other_thread(busy) if doors.colour == "sync" else asyncio.create_task(busy()))
    assert found == ("busy", "SQLITE_BUSY", True, False)


@SQLITE
async def test_a_snapshot_that_somebody_has_written_over_is_busy_at_once(doors: Door) -> None:
    """BEGIN DEFERRED, a read, a write of somebody else's, a write: waiting cannot help, a new transaction does."""
    engine = sqlite.configure(doors.make_engine(), begin="deferred")
    written: list[int] = []

    async def body(session: AsyncSession) -> None:
        await session.execute(text("SELECT * FROM users"))
        written.append(1)
        await doors.write(insert(User).values(name=f"somebody {len(written)}"))
        await session.execute(insert(User).values(name=f"ann {len(written)}"))

    found = await meaning_of(doors, body, doors.factory(engine))
    assert found == ("busy_snapshot", "SQLITE_BUSY_SNAPSHOT", True, False)


@SQLITE
async def test_a_database_that_is_full_is_not_retried(doors: Door) -> None:
    body = saying(
        "PRAGMA max_page_count = 1",
        "CREATE TABLE big AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        " SELECT i, randomblob(500) AS data FROM n",
    )
    assert await meaning_of(doors, body) == ("disk_full", "SQLITE_FULL", False, False)


@SQLITE
async def test_a_write_in_a_read_only_unit_of_sqlite_is_not_retried(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        await session.execute(insert(User).values(name="ann"))

    found = await meaning_of(doors, body, read_only=True)
    assert found == ("read_only_sql_transaction", "SQLITE_READONLY", False, False)


@SQLITE
async def test_a_statement_of_sqlite_that_took_too_long_is_not_retried(doors: Door) -> None:
    body = saying("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    found = await meaning_of(doors, body, statement_timeout=0.05)
    assert found == ("query_canceled", "SQLITE_INTERRUPT", False, False)


@SQLITE
async def test_a_file_that_is_no_database_is_not_retried(doors: Door, tmp_path: Any) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is no database" * 100)
    url = doors.database.url(doors.driver).set(database=str(junk))
    factory = doors.factory(doors._adopted(doors._create_engine(url), False))
    found = await meaning_of(doors, saying("SELECT * FROM users"), factory)
    assert found == ("not_a_database", "SQLITE_NOTADB", False, False)


@pytest.mark.doors("sqlite-sync")
async def test_a_file_that_cannot_be_opened_is_not_retried(doors: Door, tmp_path: Any) -> None:
    """Without aiosqlite: after a failed connect its thread may still want the event loop when that is closed."""
    url = doors.database.url(doors.driver).set(database=str(tmp_path / "nowhere" / "db"))
    factory = doors.factory(doors._adopted(doors._create_engine(url), False))
    with pytest.raises(OperationalError):
        async with doors.scope(factory) as session:
            await session.execute(text("SELECT 1"))
    assert await meaning_of(doors, saying("SELECT 1"), factory) == ("cannot_open", "SQLITE_CANTOPEN", False, False)
