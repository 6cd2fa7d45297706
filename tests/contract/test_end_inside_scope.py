"""Law 15: the end of a scope is inside the scope. What SQLAlchemy calls in the last flush sees what it saw in the body."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, event, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import registry

from sessionkit import current_session, errors, on_commit, on_rollback
from tests.contract.breaking import names
from tests.support.models import Account, Address, Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


@dataclass
class Seen:
    """What a listener saw and did."""

    sessions: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    @property
    def result(self) -> tuple[list[str], list[str]]:
        return self.sessions, self.ran


def whose(doors: Door, session: Any, factory: Any = None) -> str:
    """Say what `current_session()` is, seen from a unit."""
    try:
        current = current_session() if factory is None else current_session(factory)
    except errors.NoCurrentSession:
        return "none"
    return "the unit's" if doors.same(current, session) else "another"


# Where a listener stands. Each calls `act` once, when a User is being written (or just after the BEGIN).

SESSION_EVENTS = ("before_flush", "after_flush", "after_flush_postexec")


@contextmanager
def listening(doors: Door, session: Any, where: str, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at the first `where` of a session or mapper."""
    called: list[int] = []

    def listener(*_: Any, **__: Any) -> None:
        if not called:
            called.append(1)
            act()

    target = User if where in {"before_insert", "after_insert"} else doors.sync(session)
    event.listen(target, where, listener)
    try:
        yield
    finally:
        event.remove(target, where, listener)
    assert called, f"{where} was never called"


async def unit(doors: Door, where: str, make_act: Any, *, in_body: bool, fails: bool) -> tuple[Any, list[str]]:
    """Run a unit whose listener acts in the flush of the body, or in the flush at its end; return what came of it."""
    seen, factory = Seen(), doors.factory()
    names_before = {owner for (owner,) in await doors.rows("SELECT owner FROM accounts")}
    assert not names_before

    async def work() -> None:
        async with doors.scope(factory) as session:
            stack.enter_context(listening(doors, session, where, make_act(doors, factory, session, seen)))
            session.add(User(name="ann"))
            if fails:
                # Refused at COMMIT, on both backends: after the last flush.
                session.add(Pledge(account_id=404))
            if in_body:
                await session.flush()

    from contextlib import ExitStack

    with ExitStack() as stack:
        if fails:
            with pytest.raises(IntegrityError):
                await work()
        else:
            await work()
    owners = [owner for (owner,) in await doors.rows("SELECT owner FROM accounts")]
    assert await names(doors) == ([] if fails else ["ann"])
    await doors.write("DELETE FROM accounts")
    await doors.write("DELETE FROM users")
    return seen.result, owners


# What a listener does


def adds_by_current_session(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    def act() -> None:
        seen.sessions.append(whose(doors, session, factory))
        current_session().add(Account(owner="audit"))

    return act


def registers_hooks(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    def act() -> None:
        seen.sessions.append(whose(doors, session))
        on_commit(lambda: seen.ran.append("commit"))
        on_rollback(lambda: seen.ran.append("rollback"))

    return act


def adds_by_a_scoped_session(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    registry_ = doors.raw(doors.scoped(factory))

    def act() -> None:
        seen.sessions.append("the unit's" if doors.same(registry_(), session) else "another")
        registry_.add(Account(owner="audit"))

    return act


def adds_by_a_joining_function(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    @factory.scope  # type: ignore[untyped-decorator]
    def joining(joined: Any) -> None:
        seen.sessions.append("the unit's" if doors.same(joined, session) else "another")
        joined.add(Account(owner="audit"))

    return joining  # type: ignore[no-any-return]


def writes_by_current_session(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    """In the middle of a flush, where nothing can be added to a session: SQLAlchemy says, use the connection."""

    def act() -> None:
        seen.sessions.append(whose(doors, session, factory))
        doors.sync(current_session()).connection().execute(insert(Account).values(owner="audit"))

    return act


def writes_by_a_joining_function(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    @factory.scope  # type: ignore[untyped-decorator]
    def joining(joined: Any) -> None:
        seen.sessions.append("the unit's" if doors.same(joined, session) else "another")
        joined.connection().execute(insert(Account).values(owner="audit"))

    return joining  # type: ignore[no-any-return]


def expected(how: Any, *, fails: bool) -> tuple[Any, list[str]]:
    if how is registers_hooks:
        return (["the unit's"], ["rollback" if fails else "commit"]), []
    return (["the unit's"], []), ([] if fails else ["audit"])


FAILS = pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])


@FAILS
@pytest.mark.parametrize("how", [adds_by_current_session, registers_hooks, adds_by_a_scoped_session])
@pytest.mark.parametrize("where", SESSION_EVENTS)
async def test_a_listener_of_the_flush_at_the_end_is_in_the_unit_as_one_of_the_flush_in_the_body(
    doors: Door, where: str, how: Any, fails: bool
) -> None:
    in_body = await unit(doors, where, how, in_body=True, fails=fails)
    at_end = await unit(doors, where, how, in_body=False, fails=fails)
    assert in_body == at_end == expected(how, fails=fails)


@FAILS
@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("where", SESSION_EVENTS)
async def test_a_function_that_joins_joins_in_the_flush_at_the_end_too(doors: Door, where: str, fails: bool) -> None:
    in_body = await unit(doors, where, adds_by_a_joining_function, in_body=True, fails=fails)
    at_end = await unit(doors, where, adds_by_a_joining_function, in_body=False, fails=fails)
    assert in_body == at_end == expected(adds_by_a_joining_function, fails=fails)


@FAILS
@pytest.mark.parametrize("how", [adds_by_current_session, registers_hooks, adds_by_a_scoped_session])
async def test_before_commit_is_in_the_unit(doors: Door, how: Any, fails: bool) -> None:
    for in_body in (True, False):
        assert await unit(doors, "before_commit", how, in_body=in_body, fails=fails) == expected(how, fails=fails)


@FAILS
@pytest.mark.parametrize("how", [writes_by_current_session, registers_hooks])
@pytest.mark.parametrize("where", ["before_insert", "after_insert", "after_begin"])
async def test_a_mapper_event_and_the_begin_are_in_the_unit_in_the_flush_at_the_end_too(
    doors: Door, where: str, how: Any, fails: bool
) -> None:
    if where == "after_begin" and how is writes_by_current_session:
        how = sees_current_session
    in_body = await unit(doors, where, how, in_body=True, fails=fails)
    at_end = await unit(doors, where, how, in_body=False, fails=fails)
    assert in_body == at_end
    assert in_body == (expected(how, fails=fails) if how is not sees_current_session else ((["the unit's"], []), []))


def sees_current_session(doors: Door, factory: Any, session: Any, seen: Seen) -> Callable[[], None]:
    """At the BEGIN, whose connection is not the session's yet."""
    return lambda: seen.sessions.append(whose(doors, session, factory))


@FAILS
@pytest.mark.doors(colour="sync")
@pytest.mark.parametrize("where", ["before_insert", "after_insert"])
async def test_a_function_that_joins_joins_in_a_mapper_event_too(doors: Door, where: str, fails: bool) -> None:
    in_body = await unit(doors, where, writes_by_a_joining_function, in_body=True, fails=fails)
    at_end = await unit(doors, where, writes_by_a_joining_function, in_body=False, fails=fails)
    assert in_body == at_end == expected(writes_by_a_joining_function, fails=fails)


# Column defaults


def owner_of_the_unit() -> str:
    """Answer as applications do: who is logged in stands in the session."""
    return str(current_session().info["owner"])


class Own:
    """The table of Account, with a default that asks for the current session."""

    def __init__(self) -> None:
        self.balance = 0


registry().map_imperatively(
    Own,
    Table(
        "accounts",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", String(50), default=owner_of_the_unit),
        Column("balance", Integer),
    ),
)


@pytest.mark.parametrize("in_body", [True, False])
@pytest.mark.parametrize("many", [1, 3])
async def test_a_column_default_asks_the_units_session(doors: Door, in_body: bool, many: int) -> None:
    async with doors.scope() as session:
        session.info["owner"] = "ann"
        session.add_all([Own() for _ in range(many)])
        if in_body:
            await session.flush()
    assert await doors.rows("SELECT owner FROM accounts") == [("ann",)] * many


# Cascades of the above: inner scopes, presets, and what a listener asks of the scope


@pytest.mark.parametrize("in_body", [True, False])
async def test_the_flush_of_a_savepoint_scope_is_inside_it(doors: Door, in_body: bool) -> None:
    seen, ran = Seen(), list[str]()
    async with doors.scope() as session:
        sync = doors.sync(session)

        def act(*_: Any) -> None:
            seen.sessions.append(whose(doors, session))
            on_commit(lambda: ran.append("commit"))

        with pytest.raises(LookupError):
            async with doors.scope(propagation="savepoint") as inner:
                event.listen(sync, "after_flush", act)
                inner.add(User(name="ann"))
                if in_body:
                    await inner.flush()
                    raise LookupError
                fail_once_flushed(sync)
        event.remove(sync, "after_flush", act)
        session.add(User(name="bob"))
    assert seen.sessions == ["the unit's"]
    assert ran == [], "a hook of a savepoint that was undone"
    assert await names(doors) == ["bob"]


def fail_once_flushed(session: Any) -> None:
    def fail(*_: Any) -> None:
        event.remove(session, "after_flush_postexec", fail)
        raise LookupError

    event.listen(session, "after_flush_postexec", fail)


async def test_a_rollback_that_a_listener_of_the_last_flush_asks_for_is_made(doors: Door) -> None:
    from sessionkit import set_rollback_only

    async with doors.scope() as session:
        event.listen(doors.sync(session), "after_flush", lambda *_: set_rollback_only())
        session.add(User(name="ann"))
    assert await names(doors) == []


async def test_the_errors_of_a_listener_at_the_end_roll_back_and_pass(doors: Door) -> None:
    def fail(*_: Any) -> None:
        assert whose(doors, session) == "the unit's"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        async with doors.scope() as session:
            event.listen(doors.sync(session), "before_flush", fail)
            session.add(User(name="ann"))
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"


# Outside


OUTSIDE = {
    "after_commit": False,
    "after_rollback": True,
    "after_soft_rollback": True,
    "after_transaction_end": False,
    "on_commit": False,
    "on_rollback": True,
}


async def seen_outside(doors: Door, where: str, factory: Any) -> tuple[Any, list[Any]]:
    """Return the session of a unit, and what was current when its transaction was over."""
    found: list[Any] = []

    def look(*_: Any) -> None:
        try:
            found.append(current_session())
        except errors.NoCurrentSession:
            found.append(None)

    kept: list[Any] = []

    async def work() -> None:
        async with doors.scope(factory) as session:
            kept.append(session)
            if where.startswith("on_"):
                {"on_commit": on_commit, "on_rollback": on_rollback}[where](look)
            else:
                event.listen(doors.sync(session), where, look)
            session.add(User(name="ann", addresses=[Address(email="a@x")]))
            if OUTSIDE[where]:
                await session.flush()
                raise LookupError

    if OUTSIDE[where]:
        with pytest.raises(LookupError):
            await work()
    else:
        await work()
    return kept[0], found


@pytest.mark.parametrize("where", OUTSIDE)
async def test_what_comes_after_the_end_is_outside_of_the_scope(doors: Door, where: str) -> None:
    _, found = await seen_outside(doors, where, doors.Session)
    # (SQLAlchemy tells `after_transaction_end` of the flush's own subtransaction as well.)
    assert found
    assert found[-1] is None
    if where != "after_transaction_end":
        assert set(found) == {None}


@pytest.mark.parametrize("where", OUTSIDE)
async def test_what_comes_after_the_end_of_an_enclosed_scope_is_in_the_one_that_encloses_it(
    doors: Door, where: str
) -> None:
    other = doors.factory(doors.other_engine())
    async with doors.scope(other) as enclosing:
        inner, found = await seen_outside(doors, where, doors.Session)
        assert found
        assert doors.same(found[-1], enclosing)
        if where != "after_transaction_end":
            assert not any(doors.same(session, inner) for session in found)
        assert current_session() is doors.raw(enclosing)
