"""Law 16: what others hook into SQLAlchemy (tenants, tracing, audit) is in force in scopes, at its odd moments too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError

from sessionkit import Retry, _dialects, errors
from sessionkit.errors import OptionError
from tests.contract.breaking import names, swallow_failed_flush, swallow_failed_statement, take
from tests.contract.test_subclasses import HOMES, base_of, factory_of
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def level_of(session: Any) -> str:
    return str(await session.scalar(text("SHOW transaction_isolation")))


# What is done as a session begins


def working_as_it_begins(home: str, statement: Any) -> Any:
    class Own(base_of(home)):  # type: ignore[misc]
        pass

    @event.listens_for(Own, "after_transaction_create")
    def work(session: Any, transaction: Any) -> None:
        if transaction.parent is None:
            session.execute(statement)

    return Own


async def test_what_a_listener_sends_as_a_session_begins_is_in_the_transaction_of_the_unit(
    doors: Door, home: str
) -> None:
    factory = factory_of(doors, home, working_as_it_begins(home, insert(User).values(name="first")))
    with pytest.raises(LookupError):
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            raise LookupError
    assert await names(doors) == []
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
    assert await names(doors) == ["first", "ann"]


async def test_what_fails_as_a_session_begins_is_noted(doors: Door, home: str) -> None:
    await take(doors)
    factory = factory_of(doors, home, working_as_it_begins(home, text("SELECT 1")))
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.flush()
            first = await swallow_failed_statement(session)
    assert caught.value.__cause__ is first
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_level_is_kept_where_a_listener_sends_sql_as_the_session_begins(doors: Door, home: str) -> None:
    factory = factory_of(doors, home, working_as_it_begins(home, text("SELECT 1")))
    async with doors.scope(factory, isolation="SERIALIZABLE") as session:
        assert await level_of(session) == "serializable"


async def test_a_listener_that_raises_as_a_session_begins_leaves_nothing_behind(doors: Door, home: str) -> None:
    class Own(base_of(home)):  # type: ignore[misc]
        pass

    @event.listens_for(Own, "after_transaction_create")
    def fail(session: Any, transaction: Any) -> None:
        session.execute(insert(User).values(name="first"))
        raise LookupError

    with pytest.raises(LookupError):
        async with doors.scope(factory_of(doors, home, Own)):
            raise AssertionError("the scope was entered")
    assert await names(doors) == []
    assert doors.checked_out() == 0


# What is done as a connection is handed out


@pytest.fixture(params=[{}, {"isolation": "SERIALIZABLE"}], ids=["nothing asked", "a level"])
def asked(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_what_a_listener_of_engine_connect_leaves_open_goes_with_the_unit(doors: Door, asked: Any) -> None:
    engine = doors.make_engine()
    event.listen(
        doors.sync_engine_of(engine),
        "engine_connect",
        lambda connection: connection.execute(insert(User).values(name="x")),
    )
    for factory in (doors.factory(engine), doors.plain_factory(engine)):
        with pytest.raises(LookupError):
            async with doors.scope(factory, **asked) as session:
                session.add(User(name="ann"))
                await session.flush()
                raise LookupError
        assert await names(doors) == []
        async with doors.scope(factory, **asked) as session:
            session.add(User(name="ann"))
        assert await names(doors) == ["x", "ann"]
        await doors.write(text("DELETE FROM users"))


@pytest.mark.doors(backend="postgresql")
async def test_a_setting_that_a_listener_of_engine_connect_makes_locally_is_in_force(doors: Door, asked: Any) -> None:
    engine = doors.make_engine()
    event.listen(
        doors.sync_engine_of(engine),
        "engine_connect",
        lambda connection: connection.execute(text("SELECT set_config('app.tenant', 'seven', true)")),
    )
    async with doors.scope(doors.factory(engine), **asked) as session:
        assert await session.scalar(text("SELECT current_setting('app.tenant')")) == "seven"
        assert await level_of(session) == asked.get("isolation", "read committed").lower()


async def test_a_listener_of_engine_connect_that_commits_by_itself_is_called_once(doors: Door) -> None:
    called: list[int] = []
    engine = doors.make_engine()

    def listen(connection: Any) -> None:
        called.append(1)
        connection.execute(text("SELECT 1"))
        connection.commit()

    event.listen(doors.sync_engine_of(engine), "engine_connect", listen)
    async with doors.scope(doors.factory(engine)) as session:
        session.add(User(name="ann"))
    assert called == [1]
    assert await names(doors) == ["ann"]


# What stands in for a connection


class Wrapper:
    """As the proxies of wrapt: its class is said to be that of what it wraps, and is changed there."""

    def __init__(self, wrapped: Any, calls: list[str]) -> None:
        object.__setattr__(self, "_wrapped", wrapped)
        object.__setattr__(self, "_calls", calls)

    @property
    def __class__(self) -> Any:
        return type(self._wrapped)

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        self._wrapped.__class__ = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_wrapped"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._wrapped, name, value)

    def execute(self, *args: Any, **kw: Any) -> Any:
        self._calls.append("execute")
        return self._wrapped.execute(*args, **kw)


@pytest.mark.doors(colour="sync")
async def test_a_wrapper_around_connections_stays_in_force_and_the_scope_sees_through_it(doors: Door) -> None:
    await take(doors)
    calls: list[str] = []
    engine = doors.make_engine()
    connect = engine.connect
    engine.connect = lambda: Wrapper(connect(), calls)
    async with doors.scope(doors.factory(engine)) as session:
        session.add(User(name="ann"))
    assert calls
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(doors.factory(engine)) as session:
            session.add(User(name="bob"))
            await session.flush()
            await swallow_failed_statement(session)
    assert await names(doors) == ["ann"]


@pytest.mark.doors(colour="sync")
async def test_what_only_looks_like_a_connection_is_refused_and_given_back(doors: Door) -> None:
    class Stranger:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    engine = doors.make_engine()
    connect = engine.connect
    engine.connect = lambda: Stranger(connect())
    with pytest.raises(errors.ScopeError, match="Stranger"):
        async with doors.scope(doors.factory(engine)) as session:
            await session.execute(text("SELECT 1"))
    assert doors.checked_out() == 0


# Ways around


async def test_a_savepoint_that_begin_sets_is_a_savepoint_like_any_other(doors: Door, home: str) -> None:
    """`with session.begin(nested=True)` ends without an exception after a swallowed flush error, though it kept nothing."""
    await take(doors)

    class Own(base_of(home)):  # type: ignore[misc]
        pass

    def body(session: Any) -> None:
        with session.begin(nested=True):
            session.add(User(name="bob"))
            session.flush()
            session.add(User(name="taken"))
            try:
                session.flush()
            except IntegrityError as error:
                swallowed.append(error)

    swallowed: list[BaseException] = []
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(factory_of(doors, home, Own)) as session:
            session.add(User(name="ann"))
            await session.run_sync(body)
    assert caught.value.__cause__ is swallowed[0]
    assert await names(doors) == []


async def test_a_savepoint_that_begin_sets_heals_what_it_rolls_back(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        nested = await session.run_sync(lambda sync: sync.begin(nested=True))
        await swallow_failed_flush(session)
        await session.run_sync(lambda _: nested.rollback())
    assert await names(doors) == ["ann"]


async def test_what_follows_a_commit_refused_on_the_connection_names_the_refusal(doors: Door) -> None:
    with pytest.raises(PendingRollbackError) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            await session.flush()
            with pytest.raises(errors.ScopeError, match="COMMIT was asked for") as refused:
                await (await session.connection()).commit()
            await session.execute(text("SELECT 1"))
    assert errors.first_of(caught.value) is refused.value
    assert await names(doors) == []


@pytest.mark.doors(backend="postgresql")
async def test_a_level_that_the_connection_was_given_is_the_level_that_a_joining_scope_finds(doors: Door) -> None:
    factory = doors.factory(doors.make_engine(isolation_level="SERIALIZABLE"))
    async with doors.scope(factory) as session:
        await session.connection(execution_options={"isolation_level": "READ COMMITTED"})
        assert await level_of(session) == "read committed"
        with pytest.raises(OptionError, match="READ COMMITTED"):
            async with doors.scope(factory, isolation="SERIALIZABLE"):
                raise AssertionError("the scope was entered")
    factory = doors.factory(doors.make_engine())
    async with doors.scope(factory) as session:
        await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        async with doors.scope(factory, isolation="SERIALIZABLE") as inner:
            assert await level_of(inner) == "serializable"


async def test_an_attempt_that_is_refused_leaves_no_deadline_behind(doors: Door) -> None:
    engine = doors.make_engine(isolation_level="AUTOCOMMIT")
    with pytest.raises(OptionError, match="AUTOCOMMIT"):
        async for attempt in doors.attempts(doors.factory(engine), retry=Retry(timeout=30.0)):
            async with attempt:
                raise AssertionError("the scope was entered")
    assert _dialects.deadline.get() is None
