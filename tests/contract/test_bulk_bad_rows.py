"""Bad rows: which ones are left out, what is told of each, and how little they cost."""

from __future__ import annotations

import gc
import pickle
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import CheckConstraint, ForeignKey, String, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sessionkit import bulk
from sessionkit.errors import BulkError, OptionError
from tests.contract.many import two_databases
from tests.contract.test_bulk_differential import CHECKS, LONG, METHODS
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection

    from tests.support.doors import Door

PATTERNS = settings(CHECKS, max_examples=200 if LONG else 15)


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "bad_owners"

    id: Mapped[int] = mapped_column(primary_key=True)


class Entry(Base):
    """A table that can refuse a row in every way."""

    __tablename__ = "bad_entries"
    __table_args__ = (CheckConstraint("amount > 0", name="bad_amount"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(6), unique=True)
    amount: Mapped[int]
    owner: Mapped[int | None] = mapped_column(ForeignKey("bad_owners.id"))
    note: Mapped[str | None]
    day: Mapped[date | None]


class Bill(Base):
    """Keeps an entry from being deleted."""

    __tablename__ = "bad_bills"

    id: Mapped[int] = mapped_column(primary_key=True)
    entry: Mapped[int] = mapped_column(ForeignKey("bad_entries.id"))


TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER bad_notes BEFORE INSERT ON bad_entries WHEN NEW.note = 'refused' "
        "BEGIN SELECT RAISE(ABORT, 'not this note'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION bad_notes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.note = 'refused' THEN RAISE EXCEPTION 'not this note'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER bad_notes BEFORE INSERT ON bad_entries FOR EACH ROW EXECUTE FUNCTION bad_notes()",
    ],
}


async def with_entries(doors: Door, work: Callable[[Connection], None]) -> None:
    async with doors.connect() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for statement in TRIGGERS[doors.backend]:
            await connection.execute(text(statement))
        await connection.commit()
        await connection.run_sync(work)
        await connection.rollback()


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "code": f"c{number}", "amount": 1, "owner": 1, "note": None, "day": None} | more


BAD: dict[str, dict[str, Any]] = {
    "null": {"amount": None},
    "long": {"code": "much too long"},
    "check": {"amount": 0},
    "there": {"code": "old"},
    "twice": {"code": "again"},
    "owner": {"owner": 404},
    "raised": {"note": "refused"},
    "type": {"amount": object()},
    "range": {"amount": 2**40},
    "word": {"amount": "a word"},
    "number": {"amount": "17"},
    "day": {"day": "2024-13-01"},
}


def by_savepoints(connection: Connection, statements: list[tuple[Any, dict[str, Any]]]) -> dict[int, Exception]:
    """Send rows one by one, each in a savepoint; return what was refused."""
    refused: dict[int, Exception] = {}
    for place, (statement, row) in enumerate(statements):
        try:
            with connection.begin_nested():
                connection.execute(statement, [row])
        except Exception as error:  # noqa: BLE001 - whatever it is
            refused[place] = error
    return refused


def stored(connection: Connection) -> list[Any]:
    return list(connection.execute(select(*Entry.__table__.columns).order_by(Entry.id)).all())


def rows_of(pattern: list[str]) -> list[dict[str, Any]]:
    return [entry(number, **BAD.get(kind, {})) for number, kind in enumerate(pattern, 10)]


def agree(refused: dict[int, Exception], result: Any) -> None:
    assert [rejected.position for rejected in result.rejected] == sorted(refused)
    for rejected in result.rejected:
        expected: Any = refused[rejected.position]
        assert isinstance(rejected.error, type(expected)), (rejected.error, expected)
        assert type(rejected.error.orig) is type(expected.orig)
        assert getattr(rejected.error.orig, "sqlstate", 0) == getattr(expected.orig, "sqlstate", 0)
        assert getattr(rejected.error.orig, "pgcode", 0) == getattr(expected.orig, "pgcode", 0)
        assert getattr(rejected.error.orig, "sqlite_errorcode", 0) == getattr(expected.orig, "sqlite_errorcode", 0)
        assert str(expected.orig).partition("\n")[0] in str(rejected.error)


@pytest.mark.parametrize("verb", ["insert", "upsert"])
async def test_what_is_left_out_is_what_a_savepoint_for_each_row_would_leave_out(doors: Door, verb: str) -> None:
    """And what is told of it: the class, the code and the words."""

    def work(connection: Connection) -> None:
        kinds = st.lists(st.sampled_from(["good"] * 12 + list(BAD)), min_size=1, max_size=90)

        @PATTERNS
        @given(kinds, st.sampled_from(["auto", *METHODS[doors.backend, verb]]), st.sampled_from([None, 7]))
        def holds(pattern: list[str], method: Any, chunk: int | None) -> None:
            rows = rows_of(pattern)
            statement: Any = insert(Entry)
            if verb == "upsert":
                from sqlalchemy.dialects import postgresql, sqlite

                made: Any = (sqlite if doors.backend == "sqlite" else postgresql).insert(Entry)
                changed = {name: made.excluded[name] for name in ("code", "amount", "owner", "note", "day")}
                statement = made.on_conflict_do_update(index_elements=[Entry.id], set_=changed)
            before = [entry(1, code="old"), *(entry(row["id"], code=f"b{row['id']}") for row in rows[::3])]
            outcomes: list[Any] = []
            refused: dict[int, Exception] = {}
            result: Any = None
            for way in ("savepoints", "bulk"):
                outer = connection.begin_nested()
                connection.execute(insert(Owner), [{"id": 1}])
                connection.execute(insert(Entry), before if verb == "upsert" else before[:1])
                if way == "savepoints":
                    refused = by_savepoints(connection, [(statement, row) for row in rows])
                else:
                    with Session(connection, join_transaction_mode="create_savepoint") as session:
                        call: Any = getattr(bulk, verb)
                        options = {"match": [Entry.id]} if verb == "upsert" else {}
                        result = call(
                            session, Entry, iter(rows), on_error="collect", method=method, chunk=chunk, **options
                        )
                        session.commit()
                outcomes.append(stored(connection))
                outer.rollback()
            assert outcomes[1] == outcomes[0]
            agree(refused, result)
            assert result.inserted + result.updated == len(rows) - len(refused)
            assert result.inserted == len(outcomes[0]) - (len(before) if verb == "upsert" else 1)

        holds()

    await with_entries(doors, work)


@pytest.mark.parametrize("verb", ["update", "delete"])
async def test_an_update_or_a_delete_leaves_out_what_the_database_refuses(doors: Door, verb: str) -> None:
    def work(connection: Connection) -> None:
        @PATTERNS
        @given(st.lists(st.sampled_from(["good", "good", "bad", "missing"]), min_size=1, max_size=60))
        def holds(pattern: list[str]) -> None:
            outer = connection.begin_nested()
            connection.execute(insert(Owner), [{"id": 1}])
            there = [number for number, kind in enumerate(pattern) if kind != "missing"]
            if there:
                connection.execute(insert(Entry), [entry(number) for number in there])
            bad = [number for number in there if pattern[number] == "bad"]
            if bad:
                connection.execute(insert(Bill), [{"entry": number} for number in bad])
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                result: Any
                if verb == "update":
                    changes = [{"id": i, "amount": 0 if kind == "bad" else 7} for i, kind in enumerate(pattern)]
                    result = bulk.update(session, Entry, changes, on_error="collect")
                else:
                    result = bulk.delete(session, Entry, range(len(pattern)), on_error="collect")
                session.commit()
            refused = [rejected.position for rejected in result.rejected]
            assert refused == [number for number, kind in enumerate(pattern) if kind != "good"]
            assert (result.updated or result.deleted) == pattern.count("good")
            left = [row.amount for row in stored(connection)]
            assert left == [
                7 if verb == "update" and number not in bad else 1
                for number in there
                if verb == "update" or number in bad
            ]
            outer.rollback()

        holds()

    await with_entries(doors, work)


# What they cost


def with_bad(count: int, every: int) -> list[dict[str, Any]]:
    return [{"owner": f"n{i}", "balance": -1 if every and i % every == 7 else i} for i in range(count)]


@pytest.mark.parametrize("every", [1000, 100, 20])
async def test_a_bad_row_costs_one_statement_at_most(doors: Door, every: int) -> None:
    """On PostgreSQL none at all: a script finds all of them."""
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows = with_bad(1000, every)
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sql:
            result = await call(session, Account, rows, on_error="collect")
    bad = [i for i in range(1000) if i % every == 7]
    assert [rejected.position for rejected in result.rejected] == bad
    assert result.inserted == 1000 - len(bad)
    assert len(sql) <= 12 + (len(bad) if doors.backend == "sqlite" else 0)
    assert await doors.scalar("SELECT count(*) FROM accounts") == 1000 - len(bad)


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("verb", ["insert", "upsert"])
async def test_many_pages_share_their_temporary_tables_and_leave_none(doors: Door, verb: str) -> None:
    """A table that is dropped keeps its lock until the transaction ends, and a server has a limited number of locks."""
    call = doors.twin(getattr(bulk, verb), getattr(bulk, f"async_{verb}"))
    options: dict[str, Any] = {"match": [Account.id]} if verb == "upsert" else {}
    async with doors.scope() as session:
        for start in (0, 2000):  # the second call has the same names
            rows = [{"id": start + i, **row} for i, row in enumerate(with_bad(2000, 50))]
            with doors.statements() as sql:
                result = await call(session, Account, iter(rows), on_error="collect", chunk=200, **options)
            assert (len(result.rejected), result.inserted) == (40, 1960)
            assert len([line for line in sql if line.startswith("CREATE TEMPORARY TABLE sessionkit")]) == 2
            left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'sessionkit_bulk%' AND pg_table_is_visible(oid)"
            assert await session.scalar(text(left)) == 0
    assert await doors.scalar("SELECT count(*) FROM accounts") == 3920


async def test_the_keys_of_good_rows_are_returned_among_bad_ones(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows = with_bad(600, 60)
    async with doors.scope() as session:
        result = await call(session, Account, iter(rows), on_error="collect", returning=[Account], chunk=150)
        for row, stored_ in zip(rows, result.returned, strict=True):
            assert (stored_ is None) == (row["balance"] < 0)
            assert stored_ is None or stored_.owner == row["owner"]


async def test_the_status_of_an_upsert_is_right_among_bad_rows(doors: Door) -> None:
    call = doors.twin(bulk.upsert, bulk.async_upsert)
    rows = [{"id": i, **row} for i, row in enumerate(with_bad(300, 60))]
    async with doors.scope() as session:
        await doors.twin(bulk.insert, bulk.async_insert)(session, Account, [row | {"balance": 1} for row in rows[::2]])
        for options in ({"status": True}, {"status": True, "when_changed": True}, {}):
            result = await call(session, Account, rows, match=[Account.id], on_error="collect", **options)
            assert len(result.rejected) == 5
            if options == {"status": True}:
                wanted = ["rejected" if i % 60 == 7 else "inserted" if i % 2 else "updated" for i in range(300)]
                assert result.status == wanted
                assert (result.inserted, result.updated) == (145, 150)
            elif options:
                assert set(result.status) == {"rejected", "unchanged"}
            assert result.inserted + result.updated + result.unchanged == 295


async def test_the_first_bad_row_is_found_by_a_few_statements(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows = with_bad(1000, 100)
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sql:
            with pytest.raises(IntegrityError) as caught:
                await call(session, Account, rows)
    assert isinstance(caught.value, BulkError)
    assert (caught.value.position, caught.value.row) == (7, rows[7])
    assert caught.value.__cause__ is caught.value.orig
    assert len(sql) <= 20


async def test_a_clean_load_is_sent_as_if_no_row_could_be_bad(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    sent: list[list[str]] = []
    for on_error in ("raise", "collect"):
        async with doors.session(doors.plain_factory()) as session:
            with doors.statements() as sql:
                await call(session, Account, with_bad(500, 0), on_error=on_error)
        sent.append(sql)
    assert sent[0] == sent[1]


# What is told


async def test_a_rejected_row_holds_its_row_and_no_frames(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows: list[dict[str, Any]] = [
        *with_bad(400, 50),
        {"owner": None},
        {"owner": "x", "balance": object()},
        {"ownr": "y"},
    ]
    async with doors.scope() as session:
        result = await call(session, Account, rows, on_error="collect")
    assert len(result.rejected) == 10
    for rejected in result.rejected:
        assert rejected.row is rows[rejected.position]
        seen: Any = rejected.error
        while seen is not None:
            assert (seen.__traceback__, seen.__cause__, seen.__context__) == (None, None, None)
            seen = getattr(seen, "orig", None)
        assert not [each for each in gc.get_referents(rejected.error) if type(each).__name__ in {"frame", "traceback"}]
        assert len(repr(getattr(rejected.error, "params", ""))) < 200
    first = result.rejected[0]
    assert isinstance(first.error, BulkError)
    assert isinstance(first.error, IntegrityError)
    assert first.code == {"sqlite": "SQLITE_CONSTRAINT_CHECK", "postgresql": "23514"}[doors.backend]
    assert "balance_is_not_negative" in str(first.error)
    assert str(first.error).startswith("row 7")
    assert result.rejected[-1].code is None
    again = pickle.loads(pickle.dumps(first.error))
    assert (again.position, str(again)) == (7, str(first.error))


async def test_the_error_of_a_rejected_row_names_its_column(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows: list[dict[str, Any]] = [{"name": f"n{i}"} for i in range(300)]
    rows[40] = {"name": None}
    rows[70] = {"name": "n3"}
    async with doors.scope() as session:
        result = await call(session, User, rows, on_error="collect")
    told: list[Any] = [rejected.error for rejected in result.rejected]
    assert [(error.position, error.column) for error in told] == [(40, "name"), (70, "name")]
    assert [rejected.code for rejected in result.rejected] == {
        "sqlite": ["SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_UNIQUE"],
        "postgresql": ["23502", "23505"],
    }[doors.backend]


# max_rejected


@pytest.mark.parametrize(
    ("limit", "last"), [(0, 7), (2, 27), (0.05, None), (1.0, None), (99, None), (0.02, 207), (100, None)]
)
async def test_a_call_ends_at_one_bad_row_too_many(doors: Door, limit: float, last: int | None) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows = [{"owner": "o", "balance": -1 if i % 10 == 7 and i < 300 else 1} for i in range(1200)]
    async with doors.scope() as session:
        session.add(Account(id=5000, owner="before", balance=1))
        await session.flush()
        if last is None and limit != 0.05:
            result = await call(session, Account, rows, on_error="collect", max_rejected=limit)
            assert (len(result.rejected), result.inserted) == (30, 1170)
        elif last is None:
            result = await call(session, Account, rows, on_error="collect", max_rejected=limit)
            assert len(result.rejected) == 30
        else:
            with pytest.raises(BulkError, match=f"max_rejected={limit!r} allows no more") as caught:
                await call(session, Account, rows, on_error="collect", max_rejected=limit)
            wrong = [i for i in range(last + 1) if i % 10 == 7]
            if not isinstance(limit, float):
                assert [rejected.position for rejected in caught.value.rejected] == wrong
                assert (caught.value.position, caught.value.row) == (last, rows[last])
            else:
                assert len(caught.value.rejected) == 25
            assert await session.scalar(select(func.count()).select_from(Account)) == 1


async def test_a_share_is_not_looked_at_before_a_thousand_rows_were_read(doors: Door) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)

    def rows(count: int) -> Iterator[dict[str, Any]]:
        for i in range(count):
            yield {"owner": "o", "balance": -1 if i < 40 else 1}

    async with doors.scope() as session:
        result = await call(session, Account, rows(900), on_error="collect", max_rejected=0.01, chunk=100)
        assert len(result.rejected) == 40
        with pytest.raises(BulkError) as caught:
            await call(
                session,
                Account,
                ({"owner": "o", "balance": -1 if i < 5 or i > 1050 else 1} for i in range(2000)),
                on_error="collect",
                max_rejected=0.01,
                chunk=100,
            )
        assert len(caught.value.rejected) == 12
    assert await doors.scalar("SELECT count(*) FROM accounts") == 860


@pytest.mark.parametrize("limit", [-1, 1.5, -0.5, True, "many", float("nan")])
async def test_a_limit_that_is_none_is_refused(doors: Door, limit: Any) -> None:
    call = doors.twin(bulk.insert, bulk.async_insert)
    async with doors.scope() as session:
        with pytest.raises(OptionError, match="max_rejected="):
            await call(session, User, [{"name": "a"}], on_error="collect", max_rejected=limit)
        with pytest.raises(OptionError, match="use on_error='collect'"):
            await call(session, User, [{"name": "a"}], max_rejected=5)


# Where it cannot be done so


def collected(connection: Connection, rows: list[dict[str, Any]], verb: str = "insert") -> Any:
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        options: dict[str, Any] = {"match": [Entry.id]} if verb == "upsert" else {}
        result = getattr(bulk, verb)(session, Entry, rows, on_error="collect", **options)
        session.commit()
    return result


MIXED = rows_of(["good"] * 20 + ["check", "good", "owner"] + ["good"] * 20 + ["twice", "good", "twice"])


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("verb", ["insert", "upsert"])
@pytest.mark.parametrize("how", ["no language", "no right to it", "no temporary tables"])
async def test_a_server_without_scripts_or_temporary_tables_is_asked_block_by_block(
    doors: Door, how: str, verb: str
) -> None:
    def work(connection: Connection) -> None:
        connection.execute(insert(Owner), [{"id": 1}])
        connection.exec_driver_sql("DROP TRIGGER bad_notes ON bad_entries")
        connection.exec_driver_sql("DROP FUNCTION bad_notes")
        if how == "no language":
            connection.exec_driver_sql("DROP EXTENSION plpgsql CASCADE")
        else:
            connection.exec_driver_sql("CREATE ROLE bad_rows_clerk")
            connection.exec_driver_sql("GRANT ALL ON bad_entries, bad_owners TO bad_rows_clerk")
            database = connection.exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
            forbidden = "LANGUAGE plpgsql" if how == "no right to it" else f"DATABASE {database}"
            what = "USAGE" if how == "no right to it" else "TEMPORARY"
            connection.exec_driver_sql(f"REVOKE {what} ON {forbidden} FROM PUBLIC")
            connection.exec_driver_sql("SET LOCAL ROLE bad_rows_clerk")
        result = collected(connection, MIXED, verb)
        assert [rejected.position for rejected in result.rejected] == [20, 22, 45]
        assert result.inserted == len(MIXED) - 3
        assert len(stored(connection)) == len(MIXED) - 3

    await with_entries(doors, work)


@pytest.mark.doors(backend="postgresql")
async def test_what_is_no_rows_fault_ends_the_script_as_well(doors: Door) -> None:
    """A deadlock that comes while bad rows are looked for: the whole unit is to run again."""

    def work(connection: Connection) -> None:
        connection.execute(insert(Owner), [{"id": 1}])
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION bad_notes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.note = 'locked' THEN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END IF; RETURN NEW; END $$"
        )
        rows = [entry(i, amount=0 if i == 3 else 1, note="locked" if i == 30 else None) for i in range(40)]
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            with pytest.raises(DBAPIError, match="deadlock") as caught:
                bulk.insert(session, Entry, rows, on_error="collect")
            assert not isinstance(caught.value, BulkError)
            assert session.scalar(select(func.count()).select_from(Entry)) == 0

    await with_entries(doors, work)


@pytest.mark.doors(backend="postgresql")
async def test_a_transaction_that_may_be_prepared_uses_no_temporary_table_for_bad_rows(doors: Door) -> None:
    two = two_databases(doors)
    await two.make_markers()
    call = doors.twin(bulk.insert, bulk.async_insert)
    rows = [{"name": f"n{i % 290}"} for i in range(300)]
    async with doors.scope(two.factory(twophase=True)) as session:
        result = await call(session, User, rows, on_error="collect")
    assert [rejected.position for rejected in result.rejected] == list(range(290, 300))
    assert await doors.scalar("SELECT count(*) FROM users") == 290


@pytest.mark.doors(backend="postgresql")
async def test_an_error_code_of_a_triggers_own_is_kept(doors: Door) -> None:
    def work(connection: Connection) -> None:
        connection.execute(insert(Owner), [{"id": 1}])
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION bad_notes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.note = 'x' THEN RAISE EXCEPTION 'own' USING ERRCODE = '23X99', HINT = 'ask'; END IF; "
            "RETURN NEW; END $$"
        )
        result = collected(connection, [entry(i, note="x" if i in {5, 25} else None) for i in range(40)])
        assert [(rejected.position, rejected.code) for rejected in result.rejected] == [(5, "23X99"), (25, "23X99")]
        assert "own" in str(result.rejected[1].error)

    await with_entries(doors, work)


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_listener_that_replaces_the_parameters_is_seen(doors: Door, replaced: bool) -> None:
    def work(connection: Connection) -> None:
        def copied(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> Any:
            return statement, (list(parameters) if replaced else parameters)

        connection.execute(insert(Owner), [{"id": 1}])
        event.listen(connection, "before_cursor_execute", copied, retval=True)
        result = collected(connection, MIXED)
        assert [rejected.position for rejected in result.rejected] == [20, 22, 45]
        assert len(stored(connection)) == len(MIXED) - 3

    await with_entries(doors, work)


@pytest.mark.doors(backend="sqlite")
async def test_what_a_row_leaves_behind_that_fails_half_way_is_undone(doors: Door) -> None:
    """RAISE(FAIL) keeps what the statement did before, on SQLite; a savepoint does not."""

    def work(connection: Connection) -> None:
        connection.execute(insert(Owner), [{"id": 1}])
        connection.exec_driver_sql("DROP TRIGGER bad_notes")
        connection.exec_driver_sql(
            "CREATE TRIGGER bad_notes AFTER INSERT ON bad_entries WHEN NEW.amount = 3 "
            "BEGIN INSERT INTO bad_owners VALUES (NEW.id); SELECT RAISE(FAIL, 'half way'); END"
        )
        result = collected(connection, [entry(i, amount=3 if i in {5, 25} else 1) for i in range(40)])
        assert [rejected.position for rejected in result.rejected] == [5, 25]
        assert len(stored(connection)) == 38
        assert connection.scalar(select(func.count()).select_from(Owner)) == 1

    await with_entries(doors, work)
