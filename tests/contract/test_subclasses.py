"""Law 16: what a session class of the user's overrides, and what listens on it, is in force in scopes too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, orm, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import with_loader_criteria

import sessionkit
from sessionkit import errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import names, swallow_failed_statement, take
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

# Where a class comes from, and which factory makes its sessions.
HOMES = ["a plain factory", "orm.Session", "sessionkit.Session"]


def base_of(home: str) -> Any:
    return sessionkit.Session if home == "sessionkit.Session" else orm.Session


def factory_of(doors: Door, home: str, cls: Any, **kw: Any) -> Any:
    how = {"class_": cls} if doors.colour == "sync" else {"sync_session_class": cls}
    return (doors.plain_factory if home == "a plain factory" else doors.factory)(**how, **kw)


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def counting(base: Any, calls: list[str]) -> Any:
    """Return a class that notes where each of its methods begins and ends."""

    def noted(name: str) -> Any:
        def method(self: Any, *args: Any, **kw: Any) -> Any:
            calls.append(name)
            try:
                return getattr(super(Own, self), name)(*args, **kw)
            finally:
                calls.append(f"/{name}")

        return method

    methods = ("flush", "commit", "rollback", "close", "execute", "scalars", "begin", "add", "delete", "get_bind")
    Own: Any = type("Own", (base,), {name: noted(name) for name in methods})
    return Own


async def commits(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        session.add(user := User(name="ann"))
        await session.flush()
        assert "ann" in (await session.scalars(select(User.name))).all()
        await session.execute(insert(Account).values(owner="x"))
        await session.delete(user)
        session.add(User(name="bob"))


async def fails(doors: Door, factory: Any) -> None:
    with pytest.raises(LookupError):
        async with doors.scope(factory) as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError


async def asks_for_a_rollback(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        await session.flush()
        set_rollback_only()


async def is_doomed(doors: Door, factory: Any) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory) as session:
            await swallow_failed_statement(session)


async def does_nothing(doors: Door, factory: Any) -> None:
    async with doors.scope(factory):
        pass


async def has_inner_scopes(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        async with doors.scope(factory) as inner:
            inner.add(User(name="bob"))
        async with doors.scope(factory, propagation="savepoint") as inner:
            inner.add(User(name="eve"))
        with pytest.raises(LookupError):
            async with doors.scope(factory, propagation="savepoint") as inner:
                inner.add(User(name="joe"))
                raise LookupError


UNITS = [commits, fails, asks_for_a_rollback, is_doomed, does_nothing, has_inner_scopes]


@pytest.mark.parametrize("unit", UNITS)
async def test_overrides_are_called_alike_wherever_the_class_comes_from(doors: Door, unit: Any) -> None:
    await take(doors)
    seen = {}
    for home in HOMES:
        calls: list[str] = []
        await unit(doors, factory_of(doors, home, counting(base_of(home), calls)))
        seen[home] = [call for call in calls if "get_bind" not in call]
        await doors.write("DELETE FROM users WHERE name <> 'taken'")
        if unit is not does_nothing:
            assert "get_bind" in calls
    assert seen["orm.Session"] == seen["a plain factory"]
    assert seen["sessionkit.Session"] == seen["a plain factory"]


@pytest.mark.parametrize(
    ("unit", "methods"),
    [
        (commits, {"add", "delete", "flush", "scalars", "execute", "commit", "close"}),
        (fails, {"add", "flush", "rollback", "close"}),
        (asks_for_a_rollback, {"add", "flush", "rollback", "close"}),
        (is_doomed, {"execute", "rollback", "close"}),
        (has_inner_scopes, {"add", "flush", "commit", "close"}),
    ],
)
async def test_a_scope_ends_through_the_sessions_own_methods(
    doors: Door, home: str, unit: Any, methods: set[str]
) -> None:
    await take(doors)
    calls: list[str] = []
    await unit(doors, factory_of(doors, home, counting(base_of(home), calls)))
    # (`AsyncSession.scalars()` is SQLAlchemy's own way to `execute()`.)
    assert methods - ({"scalars"} if doors.colour == "async" else set()) <= set(calls)
    assert calls.count("commit") == ("commit" in methods)
    assert calls.index("close") > max(
        (calls.index(f"/{end}") for end in ("commit", "rollback") if end in calls), default=-1
    )


# What overrides do before and after super()


async def test_a_commit_that_adds_an_audit_row_before_it_and_looks_back_after_it(doors: Door, home: str) -> None:
    seen: list[Any] = []

    class Auditing(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            self.add(Account(owner="audit", balance=len(self.new)))
            super().commit()
            # (The harness's own connection: it is the outside.)
            seen.append(doors._read("SELECT owner, balance FROM accounts", {}))

    async with doors.scope(factory_of(doors, home, Auditing)) as session:
        session.add_all([User(name="ann"), User(name="bob")])
    assert seen == [[("audit", 2)]]
    assert await names(doors) == ["ann", "bob"]


async def test_a_flush_that_stamps_what_is_new_stamps_in_the_flush_at_the_end_too(doors: Door, home: str) -> None:
    class Stamping(base_of(home)):  # type: ignore[misc]
        def flush(self, objects: Any = None) -> None:
            for new in self.new:
                new.email = f"{self.info['by']} {new.name}"
            super().flush(objects)

    async with doors.scope(factory_of(doors, home, Stamping, info={"by": "me"})) as session:
        session.add(User(name="ann"))
        await session.flush()
        session.add(User(name="bob"))
    rows = await doors.rows("SELECT name, email FROM users ORDER BY id")
    assert rows == [("ann", "me ann"), ("bob", "me bob")]


async def test_a_rollback_and_a_close_that_clean_up_before_and_after(doors: Door, home: str) -> None:
    seen: list[Any] = []

    class Cleaning(base_of(home)):  # type: ignore[misc]
        def rollback(self) -> None:
            seen.append(("rollback", len(list(self))))
            super().rollback()
            seen.append(("rolled back", doors._read("SELECT name FROM users", {})))

        def close(self) -> None:
            seen.append(("close", self.in_transaction()))
            super().close()
            seen.append(("closed", self.in_transaction(), len(list(self)), doors.checked_out()))

    with pytest.raises(LookupError):
        async with doors.scope(factory_of(doors, home, Cleaning)) as session:
            ann = User(name="ann")  # kept, since the session holds what it has flushed by a weak reference only
            session.add(ann)
            await session.flush()
            raise LookupError
    assert seen == [("rollback", 1), ("rolled back", []), ("close", False), ("closed", False, 0, 0)]


async def test_an_execute_and_a_scalars_that_rewrite_statements_are_asked(doors: Door, home: str) -> None:
    await doors.write("INSERT INTO users (name, email) VALUES ('ann', 'here'), ('bob', 'gone')")

    class Filtering(base_of(home)):  # type: ignore[misc]
        def execute(self, statement: Any, *args: Any, **kw: Any) -> Any:
            return super().execute(self._filtered(statement), *args, **kw)

        def scalars(self, statement: Any, *args: Any, **kw: Any) -> Any:
            return super().scalars(self._filtered(statement), *args, **kw)

        def _filtered(self, statement: Any) -> Any:
            return statement.where(User.email == "here") if statement.is_select else statement

    async with doors.scope(factory_of(doors, home, Filtering)) as session:
        assert (await session.scalars(select(User.name))).all() == ["ann"]
        assert (await session.execute(select(User.name))).scalars().all() == ["ann"]


async def test_an_add_that_completes_objects_is_asked(doors: Door, home: str) -> None:
    class Completing(base_of(home)):  # type: ignore[misc]
        def add(self, instance: Any, _warn: bool = True) -> None:
            instance.email = "completed"
            super().add(instance)

    async with doors.scope(factory_of(doors, home, Completing)) as session:
        session.add(User(name="ann"))
    assert await doors.rows("SELECT name, email FROM users") == [("ann", "completed")]


async def test_a_get_bind_that_routes_by_a_flag_routes_each_unit(doors: Door, home: str) -> None:
    other = doors.other_engine()
    engines = {"here": doors.sync_engine, "there": doors.sync_engine_of(other)}

    class Routing(base_of(home)):  # type: ignore[misc]
        def get_bind(self, *args: Any, **kw: Any) -> Any:
            return engines[self.info["where"]]

    factory = factory_of(doors, home, Routing)
    for where in ("there", "here", "there"):
        async with doors.scope(factory, name=where) as session:
            session.info["where"] = where
            session.add(User(name=f"{where} {await count(session)}"))
    with pytest.raises(LookupError):
        async with doors.scope(factory) as session:
            session.info["where"] = "there"
            session.add(User(name="lost"))
            await session.flush()
            raise LookupError
    assert await names(doors) == ["here 0"]
    async with doors.session(doors.plain_factory(other)) as session:
        assert (await session.scalars(select(User.name).order_by(User.id))).all() == ["there 0", "there 1"]


async def count(session: Any) -> int:
    return len((await session.scalars(text("SELECT id FROM users"))).all())


async def test_a_begin_is_asked_and_refused_alike(doors: Door, home: str) -> None:
    calls: list[str] = []
    async with doors.scope(factory_of(doors, home, counting(base_of(home), calls))) as session:
        session.add(User(name="ann"))
        before = calls.count("begin")
        with pytest.raises(InvalidRequestError, match="already begun"):
            await session.begin()
        assert calls.count("begin") == before + 1
    assert await names(doors) == ["ann"]


# Overrides that go their own way


async def test_a_commit_that_does_not_commit_does_not_pass_for_one(doors: Door, home: str) -> None:
    ran: list[str] = []

    class Silent(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            ran.append("commit was called")

    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(factory_of(doors, home, Silent)) as session:
            on_commit(lambda: ran.append("on_commit"))
            on_rollback(lambda: ran.append("on_rollback"))
            session.add(User(name="ann"))
            await session.flush()
    assert ran == ["commit was called", "on_rollback"]
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"
    assert doors.checked_out() == 0


async def test_a_commit_that_only_flushes_does_not_pass_for_one(doors: Door, home: str) -> None:
    class Flushing(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            self.flush()

    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(factory_of(doors, home, Flushing)) as session:
            session.add(User(name="ann"))
    assert await names(doors) == []


async def test_a_commit_that_rolls_back_does_not_pass_for_one(doors: Door, home: str) -> None:
    class Dry(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            self.flush()
            super().rollback()

    with pytest.raises((errors.UnexpectedRollback, errors.ScopeError)):
        async with doors.scope(factory_of(doors, home, Dry)) as session:
            session.add(User(name="ann"))
    assert await names(doors) == []


async def test_a_commit_that_raises_before_super_rolls_back(doors: Door, home: str) -> None:
    class Refusing(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            raise LookupError("not today")

    with pytest.raises(LookupError, match="not today") as caught:
        async with doors.scope(factory_of(doors, home, Refusing)) as session:
            session.add(User(name="ann"))
            await session.flush()
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"
    assert doors.checked_out() == 0


async def test_a_commit_that_raises_after_super_has_committed(doors: Door, home: str) -> None:
    ran: list[str] = []

    class Late(base_of(home)):  # type: ignore[misc]
        def commit(self) -> None:
            super().commit()
            raise LookupError("too late")

    with pytest.raises(LookupError, match="too late") as caught:
        async with doors.scope(factory_of(doors, home, Late)) as session:
            on_commit(lambda: ran.append("commit"))
            on_rollback(lambda: ran.append("rollback"))
            session.add(User(name="ann"))
    assert await names(doors) == ["ann"]
    assert errors.outcome_of(caught.value) == "committed"
    assert ran == ["commit"]


async def test_a_rollback_that_does_not_roll_back_leaves_nothing_behind(doors: Door, home: str) -> None:
    class Silent(base_of(home)):  # type: ignore[misc]
        def rollback(self) -> None:
            pass

    with pytest.raises(LookupError) as caught:
        async with doors.scope(factory_of(doors, home, Silent)) as session:
            session.add(User(name="ann"))
            await session.flush()
            raise LookupError
    assert await names(doors) == []
    assert errors.outcome_of(caught.value) == "rolled back"
    assert doors.checked_out() == 0


async def test_a_flush_that_raises_at_the_end_rolls_back(doors: Door, home: str) -> None:
    class Checking(base_of(home)):  # type: ignore[misc]
        def flush(self, objects: Any = None) -> None:
            if any(new.name == "bad" for new in self.new):
                raise LookupError("bad name")
            super().flush(objects)

    with pytest.raises(LookupError, match="bad name"):
        async with doors.scope(factory_of(doors, home, Checking)) as session:
            session.add(User(name="ann"))
            await session.flush()
            session.add(User(name="bad"))
    assert await names(doors) == []


async def test_an_override_that_is_called_by_hand_is_refused_where_it_reaches_ours(doors: Door, home: str) -> None:
    calls: list[str] = []
    async with doors.scope(factory_of(doors, home, counting(base_of(home), calls))) as session:
        session.add(User(name="ann"))
        for method in ("commit", "rollback", "close"):
            with pytest.raises(errors.ScopeError, match=rf"session\.{method}\(\)"):
                await getattr(session, method)()
            assert method in calls
    assert await names(doors) == ["ann"]


# Listeners


def listeners(doors: Door, cls: Any, factory: Any) -> list[Callable[[str, Any], None]]:
    """Return the ways to listen to all sessions of a factory."""
    ways = [lambda name, fn: event.listen(cls, name, fn)]
    if doors.colour == "sync":
        ways.append(lambda name, fn: event.listen(factory, name, fn))
    return ways


async def test_class_wide_criteria_are_in_force_in_scopes(doors: Door, home: str) -> None:
    await doors.write("INSERT INTO users (name, email) VALUES ('ann', 'here'), ('bob', 'gone')")

    class Own(base_of(home)):  # type: ignore[misc]
        pass

    @event.listens_for(Own, "do_orm_execute")
    def visible(state: Any) -> None:
        if state.is_select:
            state.statement = state.statement.options(with_loader_criteria(User, User.email == "here"))

    factory = factory_of(doors, home, Own)
    for options in ({}, {"read_only": True}, {"isolation": "SERIALIZABLE"}):
        async with doors.scope(factory, **options) as session:
            assert [user.name for user in await session.scalars(select(User))] == ["ann"]
            assert (await session.scalars(select(User.name).where(User.name == "bob"))).all() == []
            async with doors.scope(factory, propagation="savepoint") as inner:
                assert (await inner.scalars(select(User.name))).all() == ["ann"]


async def test_class_wide_listeners_are_called_in_scopes_as_in_sessions(doors: Door, home: str) -> None:
    events = ("after_begin", "before_flush", "after_flush", "before_commit", "after_commit", "do_orm_execute")
    seen: list[str] = []

    class Own(base_of(home)):  # type: ignore[misc]
        pass

    factory = factory_of(doors, home, Own)
    for listen in listeners(doors, Own, factory):
        for name in events:
            listen(name, lambda *_, name=name: seen.append(name))
    plain = factory_of(doors, "a plain factory", Own)
    # SQLAlchemy's own way is what the scope is compared with.
    async with doors.enter((factory if home == "a plain factory" else plain).begin()) as session:
        await session.execute(select(User))
        session.add(User(name="ann"))
    outside = [name for name in events if name in seen]
    seen.clear()
    async with doors.scope(factory) as session:
        await session.execute(select(User))
        session.add(User(name="bob"))
    assert [name for name in events if name in seen] == outside == list(events)


async def test_a_listener_on_all_sessions_is_in_force_in_scopes(doors: Door, home: str) -> None:
    seen: list[Any] = []

    def stamp(session: Any, *_: Any) -> None:
        for new in session.new:
            new.email = "stamped"
            seen.append(session)

    event.listen(orm.Session, "before_flush", stamp)
    try:

        class Own(base_of(home)):  # type: ignore[misc]
            pass

        async with doors.scope(factory_of(doors, home, Own)) as session:
            session.add(User(name="ann"))
            assert seen == []
    finally:
        event.remove(orm.Session, "before_flush", stamp)
    assert len(seen) == 1
    assert await doors.rows("SELECT name, email FROM users") == [("ann", "stamped")]


async def test_listeners_on_the_engine_and_the_pool_are_in_force_in_scopes(doors: Door, home: str) -> None:
    engine = doors.make_engine()
    sync_engine = doors.sync_engine_of(engine)
    seen: list[str] = []
    factory = (doors.plain_factory if home == "a plain factory" else doors.factory)(engine)

    def listen(name: str, word: str) -> None:
        event.listen(sync_engine, name, lambda *_: seen.append(word))

    for name in ("begin", "commit", "rollback", "savepoint", "before_cursor_execute", "checkout", "checkin"):
        listen(name, name)
    async with doors.scope(factory) as session:
        session.add(User(name="ann"))
        async with doors.scope(factory, propagation="savepoint") as inner:
            inner.add(User(name="bob"))
            await inner.flush()
    assert seen[0] == "checkout"
    assert seen[-1] == "checkin"
    assert {"begin", "savepoint", "before_cursor_execute", "commit"} <= set(seen)
    assert seen.count("begin") == seen.count("commit") == 1
    # A listener that comes later, when a scope has used the engine already, is in force as well.
    late: list[str] = []
    event.listen(sync_engine, "before_cursor_execute", lambda *arguments: late.append(arguments[2]))
    async with doors.scope(factory) as session:
        await session.execute(text("SELECT 1 /* late */"))
    assert any("late" in statement for statement in late)
