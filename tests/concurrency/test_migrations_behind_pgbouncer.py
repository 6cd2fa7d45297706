"""Behind a pooler that works by transaction, a migration keeps its lock to its end, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine

from tests.integrations.alembic_project import Project, empty
from tests.support.pgbouncer import SERVER_CONNECTIONS, connect_args

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.doors import Door

pytestmark = [
    pytest.mark.pgbouncer,
    pytest.mark.own_database,
    pytest.mark.doors("postgresql-sync", "postgresql-async"),
]

LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database "
    "WHERE locktype = 'advisory' AND granted AND datname = current_database()"
)
LOCKED = f'assert op.get_bind().exec_driver_sql("{LOCKS}").scalar() == 1'
LIMITED = "assert op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar() == '2s'"


def test_the_lock_is_held_and_nothing_is_left(doors: Door, pgbouncer_port: int, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", empty(doors, tmp_path))
    project.migration(
        "first",
        f"""
        op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True))
        op.execute("INSERT INTO orders SELECT generate_series(1, 1000)")
        {LOCKED}
        """,
    )
    project.migration("second", f"op.add_version_column('orders', backfill='id', batch_size=100)\n{LOCKED}\n{LIMITED}")
    project.migration("third", f"op.add_column('orders', sa.Column('name', sa.Text()))\n{LOCKED}\n{LIMITED}")
    engine = doors.make_engine(poolclass=NullPool, connect_args=connect_args(pgbouncer_port, doors))
    project.run("upgrade", "head", connection=engine)
    assert project.rows("SELECT count(*) FROM orders WHERE version_id = id") == [(1000,)]

    assert project.rows(LOCKS) == [(0,)]
    plain = create_engine(
        doors.database.url("psycopg"), poolclass=NullPool, connect_args={"host": "127.0.0.1", "port": pgbouncer_port, "prepare_threshold": None}
    )  # fmt: skip
    held = [plain.connect() for _ in range(SERVER_CONNECTIONS)]
    try:
        for connection in held:
            changed = (
                connection.exec_driver_sql("SELECT name FROM pg_settings WHERE source = 'session'").scalars().all()
            )
            assert not {"lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"} & set(changed)
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
    finally:
        for connection in held:
            connection.close()
