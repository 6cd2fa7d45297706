"""Where bulk cannot do what is asked: values that no database takes, connections without transactions, interruptions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import JSON, String, Text, cast, func, null, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sessionkit import bulk, on_commit
from sessionkit.errors import BulkError, OptionError
from tests.contract.lost import somebody_waits_for_a_lock
from tests.contract.many import two_databases
from tests.contract.test_bulk_differential import METHODS
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tests.support.doors import Door


class Base(DeclarativeBase):
    pass


class Letter(Base):
    __tablename__ = "limit_letters"

    key: Mapped[str] = mapped_column(String(20), primary_key=True)
    text: Mapped[str | None] = mapped_column(String(20))
    data: Mapped[Any | None] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))
    raw: Mapped[bytes | None]


class NoneIsNull(Base):
    __tablename__ = "limit_nones"

    key: Mapped[str] = mapped_column(String(20), primary_key=True)
    data: Mapped[Any | None] = mapped_column(
        JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    )


async def with_letters(doors: Door, work: Any) -> None:
    async with doors.connect() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
        await connection.run_sync(work)
        await connection.rollback()


EXOTIC = [
    "\x00",
    "a\x00b",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "e\u0301",
    "\u202e",
    "\x7f\x80",
    "\r\n",
    "𝕏" * 20,
    "\\N",
    "\\.",
]


@pytest.mark.parametrize("none_is_null", [False, True])
async def test_json_null_and_sql_null_are_kept_apart(doors: Door, none_is_null: bool) -> None:
    entity: Any = NoneIsNull if none_is_null else Letter
    values = {"none": None, "json": JSON.NULL, "sql": null(), "zero": 0}
    rows = [{"key": key, "data": value} for key, value in values.items()]

    def work(connection: Connection) -> None:
        stored = select(entity.key, entity.data.is_(None), cast(entity.data, Text)).order_by(entity.key)
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add_all([entity(**row) for row in rows])
            expected = session.execute(stored).all()
        for method in ("auto", *METHODS[doors.backend, "insert"]):
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                bulk.insert(session, entity, rows, method=method)  # type: ignore[arg-type]
                assert session.execute(stored).all() == expected, method

    await with_letters(doors, work)


async def test_exotic_text_comes_back_as_it_was(doors: Door) -> None:
    texts = [value for value in EXOTIC if "\x00" not in value or doors.backend == "sqlite"]
    rows = [{"key": value[:20], "text": value, "data": {value: [value]}, "raw": value.encode()} for value in texts]
    expected = {row["key"]: (row["text"], row["data"], row["raw"]) for row in rows}

    def work(connection: Connection) -> None:
        for method in ("auto", *METHODS[doors.backend, "insert"]):
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                assert bulk.insert(session, Letter, rows, method=method).inserted == len(rows)  # type: ignore[arg-type]
                found = session.execute(select(Letter.key, Letter.text, Letter.data, Letter.raw)).all()
                assert {key: (text_, data, raw) for key, text_, data, raw in found} == expected
                kept = bulk.get(session, Letter, texts)
                assert [letter and letter.key for letter in kept] == texts
                again = [{"key": value, "text": value[::-1]} for value in texts]
                if method != "copy":
                    assert bulk.update(session, Letter, again, method=method).updated == len(texts)  # type: ignore[arg-type]
                    assert bulk.delete(session, Letter, texts, method=method).deleted == len(texts)  # type: ignore[arg-type]

    await with_letters(doors, work)


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("column", ["key", "text", "data"])
@pytest.mark.parametrize("value", ["a\x00b", "a\ud800"], ids=["nul", "half a pair"])
async def test_text_that_postgresql_cannot_store_names_its_row(doors: Door, column: str, value: str) -> None:
    def row(number: int, **more: Any) -> dict[str, Any]:
        return {"key": f"{number}", "text": "t", "data": 5, **more}

    def work(connection: Connection) -> None:
        bad = row(7, **{column: value})
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Letter(**bad))
            with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever the unit of work raises
                session.flush()
        rows = [row(number) for number in range(12)]
        rows[7] = bad
        for verb in ("insert", "upsert"):
            for method in ("auto", *METHODS["postgresql", verb]):
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    session.add(Letter(**row(100)))
                    call = getattr(bulk, verb)
                    with pytest.raises(BulkError) as caught:
                        call(session, Letter, rows, method=method)
                    assert (caught.value.position, caught.value.row) == (7, bad), method
                    assert isinstance(caught.value, expected.type), (method, type(caught.value).__mro__)
                    assert session.scalars(select(Letter.key)).all() == ["100"]
                    result = call(session, Letter, rows, method=method, on_error="collect")
                    assert [rejected.position for rejected in result.rejected] == [7], method
                    assert result.inserted == 11

    await with_letters(doors, work)


@pytest.mark.parametrize("how", ["engine", "engine options", "connection options"])
async def test_a_connection_without_transactions_is_refused(doors: Door, how: str) -> None:
    auto = {"isolation_level": "AUTOCOMMIT"}
    engine = doors.make_engine(**(auto if how == "engine" else {}))
    if how == "engine options":
        engine = engine.execution_options(**auto)
    async with doors.session(doors.plain_factory(engine)) as session:
        if how == "connection options":
            await session.connection(execution_options=auto)
        for name, rows in (("insert", [{"name": "a"}]), ("update", [{"id": 1, "name": "a"}]), ("delete", [1])):
            call = doors.twin(getattr(bulk, name), getattr(bulk, f"async_{name}"))
            with pytest.raises(OptionError, match="but this connection runs in AUTOCOMMIT"):
                await call(session, User, rows)
    assert await doors.rows("SELECT * FROM users") == []


@pytest.mark.doors(colour="sync")
async def test_a_driver_that_was_told_not_to_begin_writes_all_or_nothing(doors: Door) -> None:
    """Behind SQLAlchemy's back; on SQLite bulk begins by itself, PostgreSQL refuses the savepoint."""
    told = {"pysqlite": {"isolation_level": None}, "psycopg": {"autocommit": True}}.get(doors.driver)
    engine = doors.make_engine(**({"connect_args": told} if told else {}))
    rows = [{"name": f"n{i % 20}"} for i in range(21)]
    async with doors.session(doors.plain_factory(engine)) as session:
        with pytest.raises(Exception):  # noqa: B017, PT011 - the duplicate, or the savepoint
            await doors.twin(bulk.insert, bulk.async_insert)(session, User, rows)
    assert await doors.rows("SELECT * FROM users") == []


@pytest.mark.doors(backend="postgresql", colour="async")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["copy", "unnest", "temp"])
async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing(doors: Door, times: int, method: Any) -> None:
    """COPY waits in the middle of its protocol: such a connection must not be met by the next one."""

    async def load() -> None:
        async with doors.session(doors.plain_factory()) as session:
            await bulk.async_insert(session, User, [{"name": f"n{i}"} for i in range(500)], method=method)
            await session.commit()

    async with doors.connect() as holder:
        await holder.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
        task = asyncio.ensure_future(load())
        await somebody_waits_for_a_lock(doors)
        assert not task.done()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        await holder.rollback()
    assert doors.checked_out() == 0
    assert await doors.rows("SELECT * FROM users") == []
    async with doors.scope() as session:
        assert (await bulk.async_insert(session, User, [{"name": "after"}])).inserted == 1
    assert await doors.rows("SELECT name FROM users") == [("after",)]


@pytest.mark.doors(colour="async")
async def test_a_call_whose_input_is_cancelled_is_undone(doors: Door) -> None:
    async def rows() -> Any:
        for number in range(30):
            if number == 25:
                raise asyncio.CancelledError
            yield {"name": f"n{number}"}

    async with doors.session(doors.plain_factory()) as session:
        session.add(User(name="before"))
        with pytest.raises(asyncio.CancelledError):
            await bulk.async_insert(session, User, rows(), chunk=10)
        assert (await session.scalars(select(User.name))).all() == ["before"]
        await session.commit()
    assert await doors.rows("SELECT name FROM users") == [("before",)]


@pytest.mark.parametrize("scoped", [True, False])
async def test_a_call_that_fails_as_the_first_thing_of_a_transaction_leaves_it_usable(
    doors: Door, scoped: bool
) -> None:
    """Nothing needs to be kept then, so no savepoint is set where the driver has not begun yet."""
    insert = doors.twin(bulk.insert, bulk.async_insert)
    isolation = "SERIALIZABLE" if doors.backend == "postgresql" else None
    body = doors.scope(isolation=isolation) if scoped else doors.session(doors.plain_factory())
    async with body as session:
        if isolation and not scoped:
            await session.connection(execution_options={"isolation_level": isolation})
        for _ in range(2):
            with pytest.raises(BulkError, match="row 1"):
                await insert(session, User, [{"name": "a"}, {"name": "a"}, {"name": "b"}])
        if isolation:
            assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        result = await insert(session, User, [{"name": "a"}, {"name": "a"}, {"name": "b"}], on_error="collect")
        assert (result.inserted, [rejected.position for rejected in result.rejected]) == (2, [1])
        with pytest.raises(BulkError):
            await insert(session, User, [{"name": "c"}, {"name": "b"}])
        await insert(session, User, [{"name": "d"}])
        if not scoped:
            await session.commit()
    assert await doors.rows("SELECT name FROM users ORDER BY name") == [("a",), ("b",), ("d",)]


async def test_a_hook_that_the_input_asked_for_goes_with_a_call_that_failed(doors: Door) -> None:
    ran: list[str] = []

    def rows() -> Any:
        for number in (1, 2, 3, 1):
            doors.call(on_commit, lambda number=number: ran.append(f"mail about {number}"), session=asked[0])
            yield {"name": f"n{number}"}

    asked: list[Any] = []
    async with doors.scope() as session:
        asked.append(session)
        with pytest.raises(BulkError):
            await doors.twin(bulk.insert, bulk.async_insert)(session, User, rows(), chunk=1)
        doors.call(on_commit, lambda: ran.append("committed"))
    # The first row was read before the call began to write.
    assert ran == ["mail about 1", "committed"]


async def test_a_savepoint_is_set_where_there_is_something_to_keep(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    async with doors.session(doors.plain_factory()) as session:
        with doors.statements() as first:
            await insert(session, User, [{"name": "a"}])
        with doors.statements() as second:
            await insert(session, User, [{"name": "b"}])
        with pytest.raises(BulkError):
            await insert(session, User, [{"name": "c"}, {"name": "b"}])
        await session.commit()
    assert not [line for line in first if "SAVEPOINT" in line]
    assert [line.split()[0] for line in second if "SAVEPOINT" in line] == ["SAVEPOINT", "RELEASE"]
    assert await doors.rows("SELECT name FROM users ORDER BY name") == [("a",), ("b",)]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("method", ["copy", "temp"])
async def test_a_value_that_cannot_be_packed_is_found_in_the_middle_of_copy(doors: Door, method: Any) -> None:
    """Rows are packed while others are on their way; what cannot be goes by SQLAlchemy, which knows how."""

    def work(connection: Connection) -> None:
        rows: list[dict[str, Any]] = [{"key": f"{i}", "raw": b"r", "data": i} for i in range(900)]
        rows[777] |= {"data": null()}
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Letter(key="before", data=1))
            result = bulk.insert(session, Letter, rows, method=method)
            assert (result.inserted, result.method) == (900, f"{method}+sqlalchemy")
            assert session.get_one(Letter, "777").data is None
            assert session.scalar(select(func.count()).select_from(Letter)) == 901
            circle: list[Any] = []
            circle.append(circle)
            bad = [{"key": f"x{i}", "data": circle if i == 600 else 1} for i in range(700)]
            with pytest.raises(BulkError, match="row 600") as caught:
                bulk.insert(session, Letter, bad, method=method)
            assert "Circular reference" in str(caught.value)
            assert session.scalar(select(func.count()).select_from(Letter)) == 901

    await with_letters(doors, work)


@pytest.mark.doors(backend="postgresql")
async def test_no_temporary_table_is_used_where_the_transaction_may_be_prepared(doors: Door) -> None:
    """PostgreSQL could not prepare it: "cannot PREPARE a transaction that has operated on temporary objects"."""
    two = two_databases(doors)
    await two.make_markers()
    async with doors.scope(doors.factory(two.pledges)) as session:
        session.add(Account(id=1))
    insert, upsert = doors.twin(bulk.insert, bulk.async_insert), doors.twin(bulk.upsert, bulk.async_upsert)
    rows = [{"id": i + 1, "name": f"n{i}"} for i in range(2500)]
    async with doors.scope(two.factory(twophase=True)) as session:
        with pytest.raises(OptionError, match="temporary table, and this one may be committed in two phases"):
            await upsert(session, User, rows, match=[User.id], method="temp")
        assert (await upsert(session, User, rows, match=[User.id])).method == "unnest"
        await insert(session, Pledge, [{"account_id": 1}])
    assert await two.committed() == (2500, 1)
    async with doors.scope(doors.factory(two.users)) as session:
        assert (await upsert(session, User, rows, match=[User.id])).method == "temp"


@pytest.mark.doors("postgresql-sync")
def test_sqlalchemys_own_two_phases_are_seen_too(doors: Door) -> None:
    with Session(doors.sync_engine, twophase=True) as session:
        with pytest.raises(OptionError, match="may be committed in two phases"):
            bulk.insert(session, User, [{"name": "a"}], method="temp")
        bulk.insert(session, User, [{"name": "a"}])
        with pytest.raises(BulkError):
            bulk.insert(session, User, [{"name": "a"}])
        session.commit()
    with Session(doors.sync_engine) as session:
        assert session.scalars(select(User.name)).all() == ["a"]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("method", ["temp", "unnest", "sqlalchemy"])
async def test_rows_that_a_trigger_takes_out_are_sent_once_more_and_not_counted(doors: Door, method: Any) -> None:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql(
            "CREATE FUNCTION limit_skips() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN IF NEW.key = ''7'' THEN RETURN NULL; END IF; RETURN NEW; END'"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER limit_skips BEFORE UPDATE ON limit_letters FOR EACH ROW EXECUTE FUNCTION limit_skips()"
        )
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            rows = [{"key": f"{i}", "text": "old", "data": 1} for i in range(1200)]
            bulk.insert(session, Letter, rows)
            result = bulk.update(session, Letter, [{"key": f"{i}", "text": "new"} for i in range(1200)], method=method)
            assert result.method == method
            assert session.scalars(select(Letter.key).where(Letter.text == "old")).all() == ["7"]

    await with_letters(doors, work)
