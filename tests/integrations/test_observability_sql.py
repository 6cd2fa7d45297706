"""The scope's name in its statements and on its transaction, as the database sees it."""

from __future__ import annotations

import contextvars
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine, event, func, select, text

from sessionkit import bulk, current_session, errors
from sessionkit.integrations import opentelemetry
from sessionkit.integrations.application_name import name_transactions
from sessionkit.integrations.sqlcommenter import comment_statements, with_comment, written
from sessionkit.integrations.wsgi import SessionKitMiddleware
from tests.support.models import Account, Item, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

POSTGRESQL = pytest.mark.doors(backend="postgresql")
ODD = "100% '; DROP TABLE users --*/ \\ %s :x ä\n$1?"


# -- comments -------------------------------------------------------------------------------------------------------


async def test_a_statement_ends_with_the_name_of_its_scope(doors: Door) -> None:
    assert comment_statements(doors.engine) is doors.engine
    comment_statements(doors.engine)
    with doors.statements() as sent:
        async with doors.scope(name="move money") as session:
            await session.execute(text("SELECT 1"))
            session.add(User(name="ann"))
        async with doors.scope() as session:
            await session.execute(text("SELECT 2"))
        async with doors.session() as session:
            await session.execute(text("SELECT 3"))
    told = [statement for statement in sent if statement.startswith(("SELECT", "INSERT"))]
    # What the driver is given; a percent sign that is doubled for it arrives as one, see below.
    space = "%20" if doors.driver in ("pysqlite", "aiosqlite", "asyncpg") else "%%20"
    assert told[0] == f"SELECT 1 /*scope='move{space}money'*/"
    # Sent as the scope ends.
    assert told[1].startswith("INSERT INTO users")
    assert told[1].endswith(f" /*scope='move{space}money'*/")
    assert told[2:] == ["SELECT 2", "SELECT 3"]


@POSTGRESQL
async def test_the_server_sees_the_comment_as_it_was_written(doors: Door) -> None:
    """With values, without, and past the driver's search for placeholders; a snapshot holds for a transaction."""
    comment_statements(doors.engine)
    mine = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    async with doors.scope(name=ODD) as session:
        seen = [(await session.execute(text(f"{mine} AND 'x' LIKE '%' AND :n = 1"), {"n": 1})).scalar_one()]
    async with doors.scope(name=ODD) as session:
        seen.append((await (await session.connection()).exec_driver_sql(mine)).scalar_one())
    async with doors.scope(name=ODD) as session:
        bare = await (await session.connection()).execution_options(no_parameters=True)
        seen.append((await bare.exec_driver_sql(f"{mine} AND 'x' LIKE '%'")).scalar_one())
    for statement in seen:
        assert " /*scope='100%25%20%27%3B%20DROP" in statement
        assert unquote(re.search(r"/\*scope='([^']*)'\*/$", statement)[1]) == ODD  # type: ignore[index]


async def test_statements_of_every_kind_do_as_without_a_comment(doors: Door) -> None:
    """Many rows at once, RETURNING, cursors on the server, COPY, savepoints, and one statement many times over."""
    comment_statements(doors.engine)
    insert = doors.twin(bulk.insert, bulk.async_insert)
    async with doors.scope(name=ODD) as session:
        session.add_all([User(name=f"user {number}") for number in range(30)])
        await session.flush()
        await insert(session, Item, ({"sku": str(number)} for number in range(500)))
        async with session.begin_nested():
            session.add(Account(id=1))
        for number in range(12):
            assert (await session.execute(select(User.name).where(User.id == number + 1))).scalar_one()
        by_sevens = select(User.id).order_by(User.id).execution_options(yield_per=7)
        if doors.colour == "async":
            rows = [row async for row in await session.stream_scalars(by_sevens)]
        else:
            rows = list(doors.raw(session).scalars(by_sevens))
        assert len(rows) == 30
        (await session.execute(text("SELECT 1;"))).scalar_one()
        (await session.execute(text("SELECT 1 -- said already"))).scalar_one()
    assert await doors.scalar(select(func.count()).select_from(Item)) == 500


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_the_innermost_name_of_the_statements_own_transaction_counts(doors: Door) -> None:
    comment_statements(doors.engine)
    other = comment_statements(doors.other_engine())
    Other = doors.factory(other)
    with doors.statements() as sent, doors.statements(other) as sent_elsewhere:
        async with doors.scope(name="outer") as session:
            async with doors.scope(name="inner"), doors.scope():
                await session.execute(text("SELECT 1"))
            async with doors.scope(Other, name="elsewhere") as elsewhere:
                await session.execute(text("SELECT 2"))
                await elsewhere.execute(text("SELECT 3"))
        async with doors.session() as session:

            async def work(session: Any) -> None:
                await session.execute(text("SELECT 4"))

            await session.execute(text("SELECT 5"))
            await doors.decorate(work, form="keyword", name="passed")(session=session)
    found = [statement for statement in sent + sent_elsewhere if statement.startswith("SELECT")]
    assert found == [
        "SELECT 1 /*scope='inner'*/",
        "SELECT 2 /*scope='outer'*/",
        "SELECT 5",
        "SELECT 4 /*scope='passed'*/",
        "SELECT 3 /*scope='elsewhere'*/",
    ]


@pytest.mark.doors("sqlite-sync")
async def test_a_web_request_is_called_by_its_method(doors: Door) -> None:
    """Its path may be anything, and each statement would have as many texts."""
    comment_statements(doors.engine)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        current_session().execute(text("SELECT 1"))
        with doors.Session.scope(name="inner"):
            current_session().execute(text("SELECT 2"))
        start_response("200 OK", [])
        return []

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/users/7"}
    with doors.statements() as sent:
        list(SessionKitMiddleware(app, doors.Session)(environ, lambda *_: None))  # type: ignore[arg-type, misc]
    assert [each for each in sent if "SELECT" in each] == ["SELECT 1 /*scope='GET'*/", "SELECT 2 /*scope='inner'*/"]


@pytest.mark.doors("sqlite-sync", "postgresql-async")
async def test_the_comment_may_hold_the_trace(doors: Door) -> None:
    opentelemetry.instrument(TracerProvider(shutdown_on_exit=False))
    try:
        comment_statements(doors.engine, traceparent=True)
        with doors.statements() as sent:
            async with doors.scope(name="a") as session:
                await session.execute(text("SELECT 1"))
                span = trace.get_current_span().get_span_context()
    finally:
        opentelemetry.uninstrument()
    (statement,) = [each for each in sent if each.startswith("SELECT")]
    assert (
        statement
        == f"SELECT 1 /*scope='a',traceparent='00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}'*/"
    )


@pytest.mark.doors("sqlite-sync")
async def test_a_trace_that_cannot_be_had_breaks_no_statement(doors: Door, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(trace.NonRecordingSpan):
        def get_span_context(self) -> trace.SpanContext:
            raise RuntimeError("no trace today")

    def body() -> None:
        context.attach(trace.set_span_in_context(Broken(trace.INVALID_SPAN_CONTEXT)))
        with doors.Session.scope(name="a") as session:
            session.add(Account(id=1))

    comment_statements(doors.engine, traceparent=True)
    contextvars.copy_context().run(body)
    assert await doors.rows("SELECT id FROM accounts") == [(1,)]
    assert "no trace today" in caplog.text


NAMES = st.text(st.characters(exclude_categories=[])) | st.text("*/'\\%- ;\"$?:")


@given(st.dictionaries(NAMES, NAMES))
@example({"scope": "*/ DROP TABLE users; --"})
def test_no_name_gets_out_of_the_comment(pairs: dict[str, str]) -> None:
    comment = written(pairs)
    assert comment.startswith("/*")
    assert comment.endswith("*/")
    inside = comment[2:-2]
    assert re.fullmatch(r"[A-Za-z0-9_.~%='\-,]*", inside)
    assert "*/" not in inside
    read = [re.fullmatch(r"([^']*)='([^']*)'", pair) for pair in inside.split(",")] if pairs else []
    found = {unquote(match[1]): unquote(match[2]) for match in read if match is not None}
    clean = lambda name: name.encode(errors="replace").decode()  # noqa: E731
    assert found == {clean(key): clean(value) for key, value in pairs.items()}
    assert inside.split(",") == sorted(inside.split(","))


@pytest.mark.parametrize(
    ("statement", "commented"),
    [
        ("SELECT 1", "SELECT 1 /*c*/"),
        ("SELECT 1 ;\n", "SELECT 1 /*c*/;"),
        ("a; b", "a; b /*c*/"),
        ("SELECT 1 -- no", "SELECT 1 -- no"),
        ("/* no */ SELECT 1", "/* no */ SELECT 1"),
        ("SELECT '--'", "SELECT '--'"),
    ],
)
def test_the_comment_stands_at_the_end_unless_there_is_one(statement: str, commented: str) -> None:
    assert with_comment(statement, "/*c*/") == commented


def test_what_is_no_engine_is_refused() -> None:
    for function in (comment_statements, name_transactions):
        with pytest.raises(errors.OptionError, match="takes an Engine or an AsyncEngine, not 7"):
            function(7)


# -- application_name -----------------------------------------------------------------------------------------------

NAME = text("SELECT current_setting('application_name')")
SHOWN = text("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")


@POSTGRESQL
async def test_a_transaction_bears_the_name_of_its_scope_and_leaves_none_behind(doors: Door) -> None:
    engine = name_transactions(doors.make_engine(pool_size=1, max_overflow=0), prefix="shop/")
    Session = doors.factory(engine)

    async def shown(session: Any) -> str:
        return str((await session.execute(NAME)).scalar_one())

    async with doors.session(Session) as session:
        before = await shown(session)
    async with doors.scope(Session, name="move money") as session:
        assert await shown(session) == "shop/move money"
        assert (await session.execute(SHOWN)).scalar_one() == "shop/move money"
        async with doors.scope(Session, name="inner", propagation="savepoint"):
            assert await shown(session) == "shop/move money"
    with pytest.raises(ZeroDivisionError):
        async with doors.scope(Session, name="fails", isolation="SERIALIZABLE", statement_timeout=9) as session:
            async with session.begin_nested():
                assert await shown(session) == "shop/fails"
            raise ZeroDivisionError
    async with doors.scope(Session) as session:
        assert await shown(session) == before
    async with doors.session(Session) as session:
        assert await shown(session) == before


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 64, "x" * 63),
        ("schön\0\n", "sch?n??"),
        ("'); DROP TABLE users --", "'); DROP TABLE users --"),
        ("€" * 80, "?" * 63),
    ],
)
async def test_a_name_is_cut_and_cleaned_as_the_server_would(doors: Door, name: str, shown: str) -> None:
    """It would send a notice each time that it has to."""
    name_transactions(doors.engine)
    sent: list[Any] = []
    event.listen(doors.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[3]))
    async with doors.scope(name=name) as session:
        assert (await session.execute(NAME)).scalar_one() == shown
    assert list(sent[0].values() if isinstance(sent[0], dict) else sent[0]) == [shown]


@pytest.mark.doors("postgresql-sync", "postgresql-async")
async def test_a_transaction_that_is_not_the_scopes_is_not_named(doors: Door) -> None:
    name_transactions(doors.engine)
    async with doors.connect() as connection:
        before = (await connection.execute(NAME)).scalar_one()
        async with doors.scope(doors.factory(doors.raw(connection)), name="inside") as session:
            assert (await session.execute(NAME)).scalar_one() == before
        await connection.rollback()


@POSTGRESQL
async def test_the_name_costs_one_statement(doors: Door) -> None:
    name_transactions(doors.engine)
    with doors.statements() as sent:
        async with doors.scope(name="a") as session:
            async with session.begin_nested():
                await session.execute(text("SELECT 1"))
    assert [
        re.sub(r"\$1(::VARCHAR)?|%\(name\)s(::VARCHAR)?", "?", each.split(" sa_")[0].removesuffix(" SAVEPOINT"))
        for each in sent
    ] == [
        "BEGIN",
        "SELECT set_config('application_name', ?, true)",
        "SAVEPOINT",
        "SELECT 1",
        "RELEASE",
        "COMMIT",
    ]


def test_a_database_without_such_a_name_is_refused() -> None:
    with pytest.raises(errors.OptionError, match="sqlite has no application_name; use comment_statements"):
        name_transactions(create_engine("sqlite://"))
    with pytest.raises(errors.OptionError, match="give a string"):
        name_transactions(create_engine("postgresql+psycopg://"), prefix=7)  # type: ignore[arg-type]
