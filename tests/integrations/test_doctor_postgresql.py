"""`sessionkit doctor` on PostgreSQL: each sickness is seen, and gone when it is mended; and nothing is changed."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, create_engine, event, insert, text
from sqlalchemy.exc import DBAPIError

from sessionkit import commits
from sessionkit.binding import recover_prepared
from sessionkit.cli import main
from sessionkit.cli.doctor import Limits, _examine, _tables
from sessionkit.cli.doctor._patient import Patient
from tests.contract.settings import READ_ONLY_VIOLATION, error_code
from tests.contract.tenants import ROLE, TENANT, create_notes
from tests.integrations import doctoring
from tests.integrations.doctoring import url_of, wait_for_the_doctor
from tests.support.faults import Fault, FaultProxy
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integrations.doctoring import Seen
    from tests.support.doors import Door
    from tests.support.postgres import Server

pytestmark = pytest.mark.doors(backend="postgresql")
sync = pytest.mark.doors("postgresql-sync")

doctor, module = doctoring.doctor, doctoring.module

# The server of the tests gives up its data for speed, and waits for whoever is idle: that is told, and nothing else.
AS_STARTED = {"server.durability", "sessions.idle_timeout"}


@contextmanager
def connected(doors: Door, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """Connect as another application does."""
    url = doors.database.url("psycopg").set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(url, **options)) as connection:
        yield connection


def test_a_healthy_server_is_well(doors: Door, doctor: Callable[..., Seen]) -> None:
    seen = doctor(url_of(doors), "--metadata", "tests.support.models:Base")
    assert (seen.exit_status, seen.document["status"]) == (0, "warn")
    assert not seen.all("fail")
    assert seen.all("warn") <= AS_STARTED | {"models.versions"}
    assert seen.one("server.version", "ok").startswith("PostgreSQL ")
    assert seen.one("server.driver", "ok").startswith(f"{doors.driver} ")
    assert "copy" in seen.one("server.bulk", "ok")
    assert {each["check"]: each["found"] for each in seen.document["findings"] if "isolation." in each["check"]} == {
        "isolation.nothing_asked": "READ COMMITTED",
        "isolation.READ_COMMITTED": "READ COMMITTED",
        "isolation.READ_ONLY": "READ COMMITTED read only",
        "isolation.REPEATABLE_READ": "REPEATABLE READ",
        "isolation.SNAPSHOT": "REPEATABLE READ read only",
        "isolation.SERIALIZABLE": "SERIALIZABLE",
        "isolation.REPORT": "SERIALIZABLE read only deferrable",
    }
    assert "QueuePool of 5 + 10 (SQLAlchemy's default)" in seen.one("pool.size", "ok")
    assert seen.one("pool.pooler", "ok").startswith("none")
    assert "without a version" in seen.one("models.versions", "warn")


async def test_row_level_security_that_leaks_is_seen_and_mended_is_well(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    await create_notes(doors)
    bare = f"current_setting('{TENANT}', true)"
    await doors.write("ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
    await doors.write("CREATE TABLE other (tenant text)")
    await doors.write("ALTER TABLE other ENABLE ROW LEVEL SECURITY")
    await doors.write(f"CREATE POLICY bare ON other USING (tenant = {bare} OR tenant = nullif({bare}, ''))")
    await doors.write("CREATE POLICY more ON other USING (tenant = nullif(current_setting('App.Other', true), ''))")
    await doors.write(f"CREATE POLICY unset ON other USING (nullif({bare}, '') IS NULL OR tenant = nullif({bare}, ''))")
    await doors.write("CREATE VIEW shown AS SELECT * FROM other")
    name = module(
        f"""
        engine = create_engine({url_of(doors)!r})
        Session = sessionmaker(engine, settings={{"app.Tenant": REQUIRED}})
        Tenants = sessionmaker(engine, settings={{"app.tenant": REQUIRED, "app.other": lambda: 1}}, role={ROLE!r})
        Asked = sessionmaker(engine, role=lambda: {ROLE!r})
        """
    )
    url = url_of(doors)
    seen = doctor(url, "--factory", f"{name}:Session")
    off, unforced = seen.of("rls.tables")
    assert (off["status"], unforced["status"]) == ("fail", "warn")
    assert "notes" in off["found"]
    assert "other" in unforced["found"]
    found = [each["found"] for each in seen.of("rls.policies")]
    assert ["let a transaction through" in each for each in found] == [True, False]
    assert "unset on other" in found[0]
    assert "bare on other" in found[1]
    assert "unset" not in found[1]
    assert "superuser" in seen.one("rls.role", "fail")
    assert "app.other" in seen.one("rls.settings", "fail")
    assert "shown" in seen.one("rls.views", "warn")
    assert seen.exit_status == 1

    assert "--factory" in doctor(url).one("rls.settings", "ok")
    assert "not known here" in doctor(url, "--factory", f"{name}:Asked").one("rls.role", "warn")

    await doors.write(f"ALTER TABLE other OWNER TO {ROLE}")
    assert f"{ROLE}" in doctor(url, "--factory", f"{name}:Tenants").one("rls.role", "fail")

    await doors.write("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    await doors.write("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    await doors.write("ALTER TABLE other FORCE ROW LEVEL SECURITY")
    await doors.write("DROP POLICY bare ON other")
    await doors.write("DROP POLICY unset ON other")
    await doors.write("DROP VIEW shown")
    seen = doctor(url, "--factory", f"{name}:Tenants", "--factory", f"{name}:Session")
    for check in ("rls.tables", "rls.policies", "rls.settings"):
        seen.one(check, "ok")
    assert seen.of("rls.views") == []
    assert {each["status"] for each in seen.of("rls.role")} == {"ok", "fail"}


@pytest.mark.parametrize(
    ("type_", "cuts"),
    [
        ("varchar(8)", True),
        ("char(8)", True),
        ("numeric(6, 2)", True),
        ("interval day", True),
        ("name", True),
        ("code", True),
        ("inner_code", True),
        ("varchar", False),
        ("bpchar", False),
        ("numeric", False),
        ("interval", False),
        ("plain", False),
    ],
)
@sync
async def test_a_policy_whose_cast_makes_one_tenant_of_two_is_seen(
    doors: Door, doctor: Callable[..., Seen], type_: str, cuts: bool
) -> None:
    await doors.write("CREATE DOMAIN code AS varchar(8)")
    await doors.write("CREATE DOMAIN inner_code AS code")
    await doors.write("CREATE DOMAIN plain AS varchar")
    await doors.write(f"CREATE TABLE cutting (tenant {type_}, length varchar(3))")
    await doors.write("ALTER TABLE cutting ENABLE ROW LEVEL SECURITY")
    condition = f"tenant = CAST(nullif(current_setting('{TENANT}', true), '') AS {type_}) AND length <> 'x'"
    await doors.write(f"CREATE POLICY own ON cutting USING ({condition})")
    found = doctor(url_of(doors)).one("rls.policies", "fail" if cuts else "ok")
    assert ("own on cutting" in found) is cuts


def test_a_database_without_row_level_security_is_not_asked_about_it(doors: Door, doctor: Callable[..., Seen]) -> None:
    assert not [each for each in doctor(url_of(doors)).document["findings"] if each["check"].startswith("rls")]


def test_a_sick_server_is_seen_and_the_same_one_mended_is_well(doors: Door, doctor: Callable[..., Seen]) -> None:
    """An idle transaction with somebody who waits for it, and prepared transactions: of ours, and of somebody else."""
    url = url_of(doors)
    ours, foreign = f"sessionkit.{secrets.token_hex(16)}.0.{secrets.token_hex(8)}", "it's a secret of theirs"
    with connected(doors, application_name="web") as idle, connected(doors) as waiting, connected(doors) as other:
        idle.execute("INSERT INTO users (name) VALUES ('geheim')")
        waiter = threading.Thread(target=waiting.execute, args=("LOCK TABLE users",))
        waiter.start()
        other.autocommit = True
        while not other.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchall():
            pass
        for number, gid in enumerate((ours, foreign)):
            other.execute("BEGIN")
            other.execute("INSERT INTO accounts (owner, balance) VALUES ('x', %s)", [number])
            other.execute(f"PREPARE TRANSACTION {sql.quote(gid)}")

        assert not doctor(url).all("fail"), "what is young is not left over"
        seen = doctor(url, "--older-than", "0")
        assert (seen.exit_status, seen.all("fail")) == (
            1,
            {"sessions.idle", "sessions.prepared"} - {""},
        )
        told = seen.one("sessions.idle", "fail")
        assert f"pid {idle.info.backend_pid} (web, role " in told
        assert "INSERT INTO users (name) VALUES ( ...; 1 waiting for it" in told
        assert f"pg_terminate_backend({idle.info.backend_pid})" in told
        mine, theirs = seen.of("sessions.prepared")
        assert mine["found"].startswith(f"{ours}, of sessionkit, prepared")
        assert "recover_prepared(engine, ...)" in mine["advice"]
        assert "not of sessionkit" in theirs["found"]
        assert "ROLLBACK PREPARED 'it''s a secret of theirs'" in theirs["advice"]
        assert "geheim" not in json.dumps(seen.document)

        # What is advised mends it.
        other.execute("SELECT pg_terminate_backend(%s)", [idle.info.backend_pid])
        waiter.join(30)
        waiting.rollback()
        other.execute("ROLLBACK PREPARED 'it''s a secret of theirs'")
        engine = create_engine(doors.database.url("psycopg"))
        recover_prepared(engine, older_than=0)
        engine.dispose()
        healed = doctor(url, "--older-than", "0")
        assert healed.exit_status == 0
        assert healed.all("warn") <= AS_STARTED


@sync
def test_live_draws_who_waits_for_whom(doors: Door, doctor: Callable[..., Seen]) -> None:
    url = url_of(doors)
    assert doctor(url, "--live").one("sessions.waits", "ok") == "no session waits for a lock"
    assert not doctor(url).of("sessions.waits")
    with ExitStack() as stack:
        holder, second, third = [
            stack.enter_context(connected(doors, application_name=f"shop: {name}"))
            for name in ("pay", "book", "report")
        ]
        pids = [each.info.backend_pid for each in (holder, second, third)]
        holder.execute("LOCK TABLE users")
        threads = [
            threading.Thread(target=second.execute, args=("LOCK TABLE accounts; LOCK TABLE users",)),
            threading.Thread(target=third.execute, args=("LOCK TABLE accounts",)),
        ]
        watcher = stack.enter_context(connected(doors, autocommit=True))
        for number, thread in enumerate(threads, 1):
            thread.start()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while watcher.execute(waiting).fetchone() != (number,):
                pass
        told = [each["found"] for each in doctor(url, "--live").of("sessions.waits")]
        holder.rollback()
        threads[0].join(30)
        second.rollback()
        threads[1].join(30)
        third.rollback()
    assert len(told) == 3
    assert told[0].startswith(f"pid {pids[0]} (shop: pay, role ")
    assert told[1].startswith(f"└─ pid {pids[1]} (shop: book, role ")
    assert told[2].startswith(f"   └─ pid {pids[2]} (shop: report, role ")
    assert "waits for" in told[1]


@sync
def test_many_that_are_left_over_are_counted(doors: Door, doctor: Callable[..., Seen]) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(doors)).execute("SELECT 1")
        seen = doctor(url_of(doors), "--older-than", "0").of("sessions.idle")
        assert len(seen) == 4
        assert seen[-1]["found"].startswith("and 2 more: pid ")


def until_cancelled(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(60)")


@sync
def test_a_transaction_that_works_for_long_is_seen(doors: Door, doctor: Callable[..., Seen]) -> None:
    with connected(doors) as busy, connected(doors, autocommit=True) as other:
        work = threading.Thread(target=until_cancelled, args=(busy,))
        work.start()
        active = "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%%' AND pid = %s"
        while not other.execute(active, [busy.info.backend_pid]).fetchall():
            pass
        told = doctor(url_of(doors), "--older-than", "0").one("sessions.long", "warn")
        assert "running: SELECT pg_sleep(60)" in told
        assert f"pg_cancel_backend({busy.info.backend_pid})" in told
        other.execute("SELECT pg_cancel_backend(%s)", [busy.info.backend_pid])
        work.join(30)


def everything(doors: Door) -> list[Any]:
    """Return what there is in the database, its settings included, with who wrote it last."""
    with doors.database.observer.connect() as connection:
        tables = connection.exec_driver_sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200")
        rows = [
            connection.exec_driver_sql(f'SELECT xmin::text, t::text FROM "{table}" AS t ORDER BY 2').all()
            for table in sorted(tables.scalars())
        ]
    return [doors.database._look(), rows]  # type: ignore[attr-defined]


def test_nothing_is_changed_and_nothing_stays_behind(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    commits.create_table(doors.database.observer)
    with doors.database.observer.begin() as connection:
        connection.execute(insert(User).values(name="ann"))
    make = "create_engine" if doors.colour == "sync" else "create_async_engine"
    name = module(f"engine = {make}({doors.database.url(doors.driver).render_as_string(hide_password=False)!r})")
    before, sent = everything(doors), list[str]()

    def note(connection: Any, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement.split(maxsplit=1)[0].upper())

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for each in (url_of(doors), f"{name}:engine"):
            doctor(each, "--metadata", "tests.support.models:Base", "--older-than", "0")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert set(sent) <= {"SELECT", "SHOW", "WITH"}
    assert everything(doors) == before
    assert doors.database.left_open() == []


@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=str)
def test_what_it_would_write_is_refused_by_the_server(options: dict[str, Any], doors: Door) -> None:
    patient = Patient("shop:engine", doors.make_engine(**options), True, Limits(), None)
    with patient.looking() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(insert(User).values(name="bob"))
    assert error_code(caught.value) == READ_ONLY_VIOLATION["postgresql"]


# Settings


@sync
@pytest.mark.own_database
def test_settings_of_the_role_and_the_database_are_seen(doors: Door, doctor: Callable[..., Seen]) -> None:
    url, name = url_of(doors), doors.database.name  # type: ignore[attr-defined]

    def alter(change: str) -> None:
        with doors.database.observer.connect() as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" {change}')

    assert " SET idle_in" in doctor(url).one("sessions.idle_timeout", "warn")
    alter("SET idle_in_transaction_session_timeout = '90s'")
    assert "has been idle for 90s" in doctor(url).one("sessions.idle_timeout", "ok")
    assert doctor(url).one("server.role", "ok") == "a primary"
    alter("SET default_transaction_read_only = on")
    assert "cannot write" in doctor(url).one("server.role", "warn")
    alter("RESET default_transaction_read_only")
    alter("SET default_transaction_isolation = 'serializable'")
    seen = doctor(url)
    assert seen.one("isolation.nothing_asked", "ok") == "SERIALIZABLE"
    assert seen.one("isolation.READ_COMMITTED", "ok") == "READ COMMITTED"
    alter("CONNECTION LIMIT 10")
    assert "one process alone could open 15" in doctor(url).one("pool.size", "fail")
    alter("CONNECTION LIMIT 20")
    assert "has 20 connection slots" in doctor(url).one("pool.size", "ok")


@sync
def test_a_listener_that_sets_the_transaction_up_anew_is_found_out(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    """What the server says counts, not what was asked for."""
    name = module(f"""
        engine = create_engine({url_of(doors)!r})

        @event.listens_for(engine, "begin")
        def begun(connection):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE")
    """)
    seen = doctor(f"{name}:engine")
    assert {"isolation.REPEATABLE_READ", "isolation.SERIALIZABLE", "isolation.READ_ONLY"} <= seen.all("fail")
    assert seen.one("isolation.SNAPSHOT", "fail").startswith(
        "READ COMMITTED, but it should be REPEATABLE READ read only"
    )


def test_an_engine_in_autocommit_mode_is_a_failure(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    url = doors.database.url(doors.driver).render_as_string(hide_password=False)
    make = "create_engine" if doors.colour == "sync" else "create_async_engine"
    name = module(f"engine = {make}({url!r}, isolation_level='AUTOCOMMIT')")
    seen = doctor(f"{name}:engine")
    assert seen.exit_status == 1
    assert "AUTOCOMMIT" in seen.one("isolation.nothing_asked", "fail") or "autocommit" in str(seen.document)


@sync
@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("poolclass=NullPool", "ok", "NullPool"),
        ("poolclass=StaticPool", "warn", "all sessions share one connection"),
        ("max_overflow=-1", "ok", "without a limit"),
        ("pool_size=1000", "fail", "could open 1010"),
        ("pool_size=1, max_overflow=0", "ok", "QueuePool of 1 + 0"),
    ],
)
def test_the_pool_of_the_application_is_looked_at(
    arguments: str, status: str, told: str, doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str]
) -> None:
    name = module(f"engine = create_engine({url_of(doors)!r}, {arguments})")
    assert told in doctor(f"{name}:engine").one("pool.size", status)


@pytest.mark.doors("postgresql-async")
def test_an_engine_that_was_used_in_another_event_loop_is_looked_at_in_the_doctors(
    doors: Door, module: Callable[[str], str], tmp_path: Path
) -> None:
    """In a process of its own: what such an application leaves behind at import, nobody can close."""
    url = doors.database.url(doors.driver).render_as_string(hide_password=False)
    name = module(f"""
        import asyncio
        engine = create_async_engine({url!r})

        async def prepare():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        asyncio.run(prepare())
    """)
    command = [sys.executable, "-m", "sessionkit", "doctor", "--json", f"{name}:engine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"] != "fail"


# Who may see what, and who does not answer


@sync
def test_an_ordinary_role_is_told_that_it_does_not_see_everything(doors: Door, doctor: Callable[..., Seen]) -> None:
    role = f"clerk_{secrets.token_hex(4)}"
    commits.create_table(doors.database.observer)
    with doors.database.observer.connect() as observer:
        observer.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'geheim'")
        try:
            url = doors.database.url("psycopg").set(username=role, password="geheim")
            address = url.render_as_string(hide_password=False)
            with connected(doors) as idle:
                idle.execute("SELECT 1")
                seen = doctor(address, "--older-than", "0")
                assert f"GRANT pg_read_all_stats TO {role}" in seen.one("sessions.privileges", "warn")
                assert not seen.all("fail"), "it sees nothing of the others"
                assert "may not query this: permission denied" in seen.one("commits.table", "warn")
                observer.exec_driver_sql(f"GRANT pg_read_all_stats TO {role}")
                seen = doctor(address, "--older-than", "0")
                assert seen.all("fail") == {"sessions.idle"}
                seen.one("sessions.privileges", "ok")
                assert "geheim" not in json.dumps(seen.document)
        finally:
            observer.exec_driver_sql(f"DROP ROLE {role}")


def test_a_server_that_cannot_be_had_is_one_finding(doors: Door, doctor: Callable[..., Seen]) -> None:
    url = doors.database.url(url_of(doors).partition("+")[2].partition(":")[0]).set(password="geheim")

    def told(**changes: Any) -> str:
        # Long enough for the others on a busy machine.
        limit = "0.5" if changes == {"port": port} else "5"
        seen = doctor(url.set(**changes).render_as_string(hide_password=False), "--timeout", limit)
        assert (seen.exit_status, len(seen.document["findings"])) == (1, 1)
        assert "geheim" not in json.dumps(seen.document)
        return seen.one("server.connection", "fail")

    port = 0
    assert "does not exist" in told(database="nowhere")
    assert "does not exist" in told(username="nobody")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "did not accept the connection within 0.5 s" in told(port=port)
    assert f"whether 127.0.0.1:{port} is up" in told(port=port)


@pytest.mark.doors("postgresql-sync", "postgresql-async")
def test_a_server_that_falls_silent_does_not_hold_the_doctor(
    doors: Door, doctor: Callable[..., Seen], postgresql_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_examine, "SLACK", 1.0)
    with FaultProxy(postgresql_server.host, postgresql_server.port) as proxy:
        proxy.at("server_version", Fault.PASS)
        url = doors.database.url(url_of(doors).partition("+")[2].partition(":")[0])
        address = url.set(port=proxy.port).render_as_string(hide_password=False)
        assert doctor(address).exit_status == 0
        fault = proxy.at("max_prepared_transactions", Fault.SWALLOW)
        seen = doctor(address, "--timeout", "1.5")
        assert fault.struck
        assert seen.exit_status == 1
        assert "no answer for 4 s" in seen.one("sessions.prepared", "fail")
        seen.one("sessions.privileges", "ok")
        proxy.refuse()
    wait_for_the_doctor()


@pytest.mark.doors("postgresql-sync", "postgresql-async")
def test_a_query_that_takes_too_long_does_not_hold_the_others(doors: Door, doctor: Callable[..., Seen]) -> None:
    commits.create_table(doors.database.observer)
    with connected(doors) as other:
        other.execute("LOCK TABLE sessionkit_commit")
        seen = doctor(url_of(doors), "--timeout", "1", "--metadata", "tests.support.models:Base")
        assert "no result after 1 s" in seen.one("commits.table", "warn")
        seen.one("models.tables", "ok")


@sync
def test_keys_that_no_job_prunes_are_seen(
    doors: Door, doctor: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = doors.database.observer
    doctor(url_of(doors)).one("commits.once_table", "ok")
    commits.create_table(engine)
    insert = "INSERT INTO sessionkit_once VALUES ('{}', 'U', '', '', 'D', NULL, now(), now() - interval '{}')"
    with engine.begin() as connection:
        connection.execute(text(insert.format("a", "1 hour")))
    doctor(url_of(doors)).one("commits.once_table", "ok")
    monkeypatch.setattr(_tables, "MANY_MARKERS", 1)
    assert "once_ttl=" in doctor(url_of(doors)).one("commits.once_table", "warn")
    with engine.begin() as connection:
        connection.execute(text(insert.format("b", "3 days")))
    assert "over its time since 3 d" in doctor(url_of(doors)).one("commits.once_table", "warn")
    commits.prune(engine)
    assert "and empty" in doctor(url_of(doors)).one("commits.once_table", "ok")


@sync
def test_markers_that_nobody_prunes_are_seen(doors: Door, doctor: Callable[..., Seen]) -> None:
    engine = doors.database.observer
    commits.create_table(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sessionkit_commit VALUES ('a', 'C', now() - interval '8 days 2 hours')"))
    assert "holds 1 markers, the oldest from 8 d 2 h ago" in doctor(url_of(doors)).one("commits.table", "warn")
    commits.prune(engine)
    doctor(url_of(doors)).one("commits.table", "ok")


@sync
def test_an_interrupt_ends_it(doors: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_examine.queue.Queue, "get", interrupt)
    assert main(["doctor", url_of(doors)]) == 130
    wait_for_the_doctor()
