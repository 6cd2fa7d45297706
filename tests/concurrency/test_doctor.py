"""`sessionkit doctor` and what is around a server: a pooler in between, and replicas that do not follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessionkit.cli.doctor import _examine
from tests.integrations import doctoring
from tests.integrations.doctoring import url_of, wait_for_the_doctor
from tests.support import pgbouncer
from tests.support.clusters import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integrations.doctoring import Seen
    from tests.support.doors import Door
    from tests.support.postgres import Server

doctor, module = doctoring.doctor, doctoring.module


@pytest.mark.pgbouncer
@pytest.mark.doors(backend="postgresql")
def test_a_pooler_is_found_and_what_it_asks_of_the_driver(
    doors: Door, doctor: Callable[..., Seen], module: Callable[[str], str], pgbouncer_port: int
) -> None:
    """Twice, since what the first doctor had prepared would be in the way of the second."""
    url = doors.database.url(url_of(doors).partition("+")[2].partition(":")[0])
    address = url.set(host="127.0.0.1", port=pgbouncer_port).render_as_string(hide_password=False)
    status = "ok" if doors.driver == "psycopg2" else "warn"
    for _ in range(2):
        seen = doctor(address)
        assert not seen.all("fail")
        told = seen.one("pool.pooler", status)
        assert "transaction mode" in told
    if status == "warn":
        # As the advice has it.
        arguments = told.partition("connect_args=")[2].partition("), or")[0]
        make = "create_engine" if doors.colour == "sync" else "create_async_engine"
        name = module(f"from uuid import uuid4\nengine = {make}({address!r}, connect_args={arguments})")
        assert "prepares no statements" in doctor(f"{name}:engine").one("pool.pooler", "ok")


@pytest.mark.pgbouncer
@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.parametrize(
    ("mode", "size", "check", "status", "told"),
    [
        ("session", 4, "pool.pooler", "ok", "its own server connection (session mode)"),
        ("session", 1, "pool.pooler", "warn", "a second connection has to wait for the first"),
        ("statement", 4, "server.connection", "fail", "not allowed in statement pooling mode"),
    ],
)
def test_the_mode_of_a_pooler_is_found(
    mode: str,
    size: int,
    check: str,
    status: str,
    told: str,
    doors: Door,
    doctor: Callable[..., Seen],
    postgresql_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_examine, "SLACK", 1.0)
    server = postgresql_server
    guard = pgbouncer.Guard(server.host, server.port, server.user, server.password, mode, size)
    try:
        url = doors.database.url(doors.driver).set(host="127.0.0.1", port=guard.port)
        address = url.render_as_string(hide_password=False)
        assert told in doctor(address, "--timeout", "1.5" if size == 1 else "5").one(check, status)
    finally:
        guard.close()
    wait_for_the_doctor()


def test_replicas_that_lag_are_seen_and_are_well_when_they_have_caught_up(doctor: Callable[..., Seen]) -> None:
    cluster = Cluster(replicas=1)
    try:
        (replica,) = cluster.replicas
        primary, reader = (
            node.url("psycopg").render_as_string(hide_password=False) for node in (cluster.primary, replica)
        )
        cluster.catch_up()
        seen = doctor(primary, "--reader", reader)
        assert not seen.all("fail")
        assert "follows" in seen.one("readers.1", "ok")
        assert "walreceiver at 127.0.0.1" in seen.one("replication.replicas", "ok")

        replica.sql("SELECT pg_wal_replay_pause()")
        while replica.sql("SELECT pg_get_wal_replay_pause_state(), pg_sleep(0.01)")[0][0] != "paused":
            pass
        cluster.primary.sql("INSERT INTO users (name) VALUES ('ann')")
        cluster.primary.sql("SELECT pg_create_physical_replication_slot('of_nobody', true)")
        seen = doctor(primary, "--reader", reader, "--reader", primary)
        assert (seen.exit_status, seen.all("fail")) == (1, {"readers.1", "readers.2"})
        assert "is paused" in seen.one("readers.1", "fail")
        assert "pg_wal_replay_resume()" in seen.one("readers.1", "fail")
        assert "is not a standby" in seen.one("readers.2", "fail")
        assert "pg_drop_replication_slot('of_nobody')" in seen.one("replication.slots", "warn")

        # The standby itself, given as the database.
        seen = doctor(reader)
        assert "a standby" in seen.one("server.role", "warn")
        assert seen.all("warn") >= {"isolation.SERIALIZABLE", "isolation.REPORT"}
        assert not seen.all("fail")

        cluster.primary.sql("SELECT pg_drop_replication_slot('of_nobody')")
        replica.sql("SELECT pg_wal_replay_resume()")
        cluster.catch_up()
        seen = doctor(primary, "--reader", reader)
        assert not seen.all("fail")
        assert not seen.of("replication.slots")

        # One that follows, and lags.
        replica.sql("ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
        replica.sql("SELECT pg_reload_conf()")
        for number in range(1000):  # until the replica has heard of its setting
            cluster.primary.sql(f"INSERT INTO users (name) VALUES ('bob {number}')")
            if replica.sql("SELECT pg_sleep(0.01) WHERE pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"):
                break
        assert not doctor(primary, "--reader", reader).all("fail")
        assert "behind" in doctor(primary, "--reader", reader, "--max-lag", "0").one("readers.1", "fail")
        replica.sql("ALTER SYSTEM RESET recovery_min_apply_delay")
        replica.sql("SELECT pg_reload_conf()")
        cluster.catch_up()
        seen = doctor(primary, "--reader", reader, "--max-lag", "1")
        assert not seen.all("fail")

        replica.stop()
        seen = doctor(primary, "--reader", reader)
        assert "no connection" in seen.one("readers.1", "fail")
        assert seen.one("replication.replicas", "ok") == "no standby follows this server"
    finally:
        cluster.close()
