"""Each test finds the database as the template is, whatever the test before it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

    from tests.support.databases import PostgresqlDatabase, PostgresqlDatabases
    from tests.support.doors import Door

pytestmark = pytest.mark.postgresql


@pytest.fixture
def database(postgresql_databases: PostgresqlDatabases) -> Iterator[PostgresqlDatabase]:
    database = postgresql_databases.new()
    yield database
    postgresql_databases.drop(database)


@pytest.fixture
def engine(database: PostgresqlDatabase) -> Iterator[Engine]:
    engine = create_engine(database.url("psycopg"))
    yield engine
    engine.dispose()


def test_rows_are_removed_and_sequences_start_again(database: PostgresqlDatabase, engine: Engine) -> None:
    for _ in range(2):
        with engine.begin() as connection:
            added = connection.execute(insert(User).values(name="ann").returning(User.id))
            assert added.scalar_one() == 1
            assert connection.execute(select(Account.id)).all() == []
        engine.dispose()
        database.reset()


MADE = {
    "a table": "CREATE TABLE others (id serial PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, t text UNIQUE)",
    "one that points at the template's": "CREATE TABLE others (id int PRIMARY KEY, user_id int REFERENCES users)",
    "one with parts": "CREATE TABLE others (n int) PARTITION BY RANGE (n);"
    " CREATE TABLE another PARTITION OF others FOR VALUES FROM (1) TO (2)",
    "one with a view, a function, a trigger, a type": "CREATE TYPE kind AS ENUM ('a', 'b'); CREATE TABLE others (kind kind);"
    " CREATE VIEW seen AS SELECT * FROM others JOIN users ON true;"
    " CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
    " CREATE TRIGGER t BEFORE INSERT ON others FOR EACH ROW EXECUTE FUNCTION f()",
    "a schema with a table": "CREATE SCHEMA other; CREATE TABLE other.others (id serial PRIMARY KEY);"
    " CREATE TYPE other.kind AS ENUM ('a'); CREATE FUNCTION other.f(other.kind) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "names that want quoting": 'CREATE SCHEMA "O\'ther One"; CREATE TABLE "O\'ther One"."It\'s %s" (id int)',
    "a domain, a range, a procedure, an aggregate": "CREATE DOMAIN positive AS int CHECK (VALUE > 0);"
    " CREATE TYPE span AS RANGE (subtype = float8); CREATE PROCEDURE p(int) LANGUAGE sql AS 'SELECT 1';"
    " CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0')",
}


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE others (id int PRIMARY KEY)",
        "ALTER TABLE users ADD COLUMN age int",
        "ALTER TABLE accounts DROP CONSTRAINT balance_is_not_negative",
        "ALTER TABLE users ALTER COLUMN email SET DEFAULT 'nobody'",
        "DROP TABLE pledges",
        "CREATE INDEX ON users (email)",
        "CREATE SCHEMA other",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE colour AS ENUM ('sync', 'async')",
        "CREATE TRIGGER one BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE pledges ADD FOREIGN KEY (id) REFERENCES users (id)",
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET lock_timeout = 7'; END $$",
        *MADE.values(),
    ],
)
def test_a_change_of_the_schema_is_undone(database: PostgresqlDatabase, engine: Engine, change: str) -> None:
    def structure() -> list[object]:
        with engine.connect() as connection:
            rows: list[object] = [
                connection.execute(text(query)).all()
                for query in (
                    # Without what has an oid in its name.
                    "SELECT relname FROM pg_class WHERE oid >= 16384 AND relname NOT LIKE 'pg_toast%' ORDER BY 1",
                    "SELECT relname, attname, atthasdef FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
                    " WHERE c.oid >= 16384 AND attnum > 0 AND relname NOT LIKE 'pg_toast%' ORDER BY 1, 2",
                    "SELECT conname FROM pg_constraint WHERE oid >= 16384 ORDER BY 1",
                    "SELECT nspname FROM pg_namespace ORDER BY 1",
                    "SELECT proname FROM pg_proc WHERE oid >= 16384 ORDER BY 1",
                    "SELECT typname FROM pg_type WHERE oid >= 16384 ORDER BY 1",
                    "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
                    "SHOW lock_timeout",
                )
            ]
        engine.dispose()
        return rows

    before = structure()
    with engine.begin() as connection:
        connection.exec_driver_sql(change)
    engine.dispose()
    assert structure() != before
    database.reset()
    assert structure() == before


@pytest.mark.parametrize("made", MADE)
def test_what_a_test_has_made_is_dropped_without_a_clone(
    database: PostgresqlDatabase, engine: Engine, made: str
) -> None:
    oid = "SELECT oid FROM pg_database WHERE datname = current_database()"
    with engine.begin() as connection:
        before = connection.exec_driver_sql(oid).scalar()
        connection.exec_driver_sql("CREATE TEMPORARY TABLE short AS SELECT 1 AS n")
        connection.exec_driver_sql(MADE[made])
    engine.dispose()
    database.reset()
    with engine.connect() as connection:
        assert connection.exec_driver_sql(oid).scalar() == before


def test_numbers_that_were_taken_for_nothing_start_again(database: PostgresqlDatabase, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT nextval('users_id_seq'), setval('accounts_id_seq', 5, false)")
    engine.dispose()
    database.reset()
    with engine.connect() as connection:
        numbers = connection.exec_driver_sql("SELECT nextval('users_id_seq'), nextval('accounts_id_seq')").one()
    assert tuple(numbers) == (1, 1)


def test_a_connection_that_was_left_in_a_transaction_is_ended(database: PostgresqlDatabase, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(insert(User).values(name="ann"))
        assert database.left_open() != []
        database.reset()
        with pytest.raises(SQLAlchemyError):
            connection.execute(select(User))
        connection.invalidate()
    with engine.connect() as connection:
        assert connection.execute(select(User.name)).all() == []


def test_a_transaction_that_was_left_prepared_is_rolled_back(database: PostgresqlDatabase, engine: Engine) -> None:
    with engine.connect() as connection:
        transaction = connection.begin_twophase("it's mine")
        connection.execute(insert(User).values(name="ann"))
        transaction.prepare()
        connection.invalidate()
    database.reset()
    with engine.connect() as connection:
        assert (
            connection.execute(
                text("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
            ).scalar()
            == 0
        )
        assert connection.execute(select(User.name)).all() == []


@pytest.mark.own_database
@pytest.mark.doors(backend="postgresql")
async def test_an_own_database_is_nobody_elses(doors: Door, postgresql_databases: PostgresqlDatabases) -> None:
    async with doors.scope() as session:
        session.add(User(name="ann"))
    shared = postgresql_databases.shared()
    assert doors.database.url("psycopg").database != shared.url("psycopg").database
    with shared.observer.connect() as connection:
        assert connection.execute(select(User.name)).all() == []
