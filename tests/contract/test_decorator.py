"""A scope as a decorator: a fresh one for each call, the session supplied, the function otherwise as it was."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sessionkit import INJECTED, current_session, errors, session_scope
from tests.contract.breaking import names, swallow_failed_statement, take
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


async def add(session: AsyncSession, name: str, *, email: str | None = None) -> str:
    """Add a user."""
    session.add(User(name=name, email=email))
    return name


FORMS = pytest.mark.parametrize("form", ["first", "keyword"])


# What a call does


@FORMS
async def test_each_call_is_a_unit_of_work_of_its_own(doors: Door, form: Any) -> None:
    sessions: list[Any] = []

    async def body(session: AsyncSession, name: str) -> str:
        sessions.append(doors.raw(session))
        assert current_session() is doors.raw(session)
        session.add(User(name=name))
        if name == "bob":
            raise LookupError(name)
        return name.upper()

    decorated = doors.decorate(body, form=form)
    assert await decorated("ann") == "ANN"
    with pytest.raises(LookupError, match="bob"):
        await decorated("bob")
    assert await decorated("eve") == "EVE"
    assert len({id(session) for session in sessions}) == 3
    assert await names(doors) == ["ann", "eve"]
    assert doors.checked_out() == 0


@FORMS
async def test_inside_a_scope_a_call_joins_it(doors: Door, form: Any) -> None:
    decorated = doors.decorate(add, form=form)
    with pytest.raises(LookupError):
        async with doors.scope():
            await decorated("ann")
            assert await names(doors) == []
            raise LookupError
    assert await names(doors) == []


@FORMS
async def test_the_exception_of_the_function_passes_as_it_was(doors: Door, form: Any) -> None:
    mine = LookupError("mine")

    async def body(session: AsyncSession) -> None:
        session.add(User(name="ann"))
        raise mine

    with pytest.raises(LookupError) as caught:
        await doors.decorate(body, form=form)()
    assert caught.value is mine
    assert await names(doors) == []


@FORMS
async def test_a_swallowed_error_is_told_by_the_call(doors: Door, form: Any) -> None:
    await take(doors)

    async def body(session: AsyncSession) -> str:
        await swallow_failed_statement(session)
        return "as if all were well"

    with pytest.raises(errors.UnexpectedRollback):
        await doors.decorate(body, form=form)()


async def test_a_recursive_function_is_one_unit_of_work(doors: Door) -> None:
    sessions: list[Any] = []

    async def body(session: AsyncSession, depth: int) -> int:
        sessions.append(doors.raw(session))
        session.add(User(name=f"user {depth}"))
        if depth == 0:
            return 1
        result: int = await decorated(depth - 1)
        return result + 1

    decorated = doors.decorate(body)
    assert await decorated(4) == 5
    assert len({id(session) for session in sessions}) == 1
    assert len(await names(doors)) == 5


async def test_a_recursive_function_with_savepoints_undoes_the_inner_call_only(doors: Door) -> None:
    async def body(session: AsyncSession, depth: int) -> None:
        session.add(User(name=f"user {depth}"))
        if depth == 0:
            raise LookupError
        with contextlib.suppress(LookupError):
            await decorated(depth - 1)

    decorated = doors.decorate(body, propagation="savepoint")
    await decorated(2)
    assert await names(doors) == ["user 2", "user 1"]


async def test_calls_at_the_same_time_have_sessions_of_their_own(doors: Door) -> None:
    barrier = doors.barrier(5)
    sessions: list[Any] = []

    async def body(session: AsyncSession, name: str) -> None:
        sessions.append(doors.raw(session))
        await barrier.wait()
        session.add(User(name=name))

    decorated = doors.decorate(body)

    def call(number: int) -> Any:
        async def run() -> None:
            await decorated(f"user {number}")

        return run

    await doors.together(*map(call, range(5)))
    assert len({id(session) for session in sessions}) == 5
    assert len(await names(doors)) == 5


# The forms


async def test_bare_and_called_are_the_same(doors: Door) -> None:
    await doors.decorate(add, bare=True)("ann")
    await doors.decorate(add)("bob", email="b")
    await doors.decorate(add, name="named")("eve")
    assert await names(doors) == ["ann", "bob", "eve"]


async def test_session_scope_decorates_with_any_factory(doors: Door) -> None:
    await doors.decorate(add, doors.plain_factory())("ann")
    await doors.decorate(add, doors.plain_factory(), form="keyword")("bob")
    assert await names(doors) == ["ann", "bob"]


async def test_a_function_with_positional_only_and_starred_parameters(doors: Door) -> None:
    async def body(session: AsyncSession, a: int, /, *rest: int, b: int = 0, **more: int) -> Any:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
        return a, rest, b, more

    assert await doors.decorate(body)(1, 2, 3, b=4, c=5) == (1, (2, 3), 4, {"c": 5})


@pytest.mark.doors(colour="sync")
async def test_a_session_parameter_may_stand_anywhere_and_be_of_any_kind(doors: Door) -> None:
    def by_position(a: int, session: Any = INJECTED, b: int = 0) -> Any:
        return session, a, b

    def keyword_only(a: int, *, session: Any = INJECTED) -> Any:
        return session, a

    for fn in (by_position, keyword_only):
        decorated = doors.Session.scope(fn)
        assert isinstance(decorated(1)[0], doors.Session.class_)
        assert decorated(1)[1] == 1
    assert doors.Session.scope(by_position)(1, b=2)[1:] == (1, 2)
    with doors.Session() as mine:
        assert doors.Session.scope(by_position)(1, mine, 3) == (mine, 1, 3)
        assert doors.Session.scope(keyword_only)(1, session=mine) == (mine, 1)
        assert doors.Session.scope(by_position)(1, session=mine) == (mine, 1, 0)


async def test_injected_that_is_passed_on_is_replaced_by_the_session(doors: Door) -> None:
    """A function whose own default is INJECTED hands it on, by position or by name."""
    seen: list[Any] = []

    async def body(a: int, session: Any = INJECTED, b: int = 0) -> Any:
        seen.append(doors.raw(session))
        return a, b

    for options in ({}, {"retry": 2}):
        decorated = doors.decorate(body, **options)
        assert await decorated(1, INJECTED) == (1, 0)
        assert await decorated(1, INJECTED, 3) == (1, 3)
        assert await decorated(1, INJECTED, b=3) == (1, 3)
        assert await decorated(1, session=INJECTED) == (1, 0)
        assert await decorated(INJECTED, INJECTED) == (INJECTED, 0)
    assert len({id(session) for session in seen}) == 10
    assert all(isinstance(session, doors.Session.class_) for session in seen)


@pytest.mark.doors(colour="sync")
async def test_methods_take_their_session_by_keyword(doors: Door) -> None:
    scope: Any = doors.Session.scope

    class Service:
        prefix = "the "

        @scope  # type: ignore[untyped-decorator]
        def method(self, name: str, *, session: Any = INJECTED) -> str:
            session.add(User(name=self.prefix + name))
            return self.prefix

        @classmethod
        @scope  # type: ignore[untyped-decorator]
        def of_class(cls, name: str, *, session: Any = INJECTED) -> type:
            session.add(User(name=name))
            return cls

        @staticmethod
        @scope  # type: ignore[untyped-decorator]
        def of_none(session: Any, name: str) -> str:
            session.add(User(name=name))
            return name

        @staticmethod
        @scope(name="static")  # type: ignore[untyped-decorator]
        def of_none_by_keyword(name: str, *, session: Any = INJECTED) -> str:
            session.add(User(name=name))
            return name

    class Heir(Service):
        def method(self, name: str, **kw: Any) -> str:
            return str(super().method(f"heir's {name}", **kw))

    assert Service().method("ann") == "the "
    assert Heir().method("ann") == "the "
    assert Heir.of_class("bob") is Heir
    assert Service.of_none("eve") == "eve"
    assert Service().of_none_by_keyword("joe") == "joe"
    assert await names(doors) == ["the ann", "the heir's ann", "bob", "eve", "joe"]


@pytest.mark.doors(colour="async")
async def test_async_methods_take_their_session_by_keyword(doors: Door) -> None:
    scope: Any = doors.Session.scope

    class Service:
        @scope  # type: ignore[untyped-decorator]
        async def method(self, name: str, *, session: Any = INJECTED) -> Any:
            session.add(User(name=name))
            return self

        @classmethod
        @scope(propagation="join")  # type: ignore[untyped-decorator]
        async def of_class(cls, name: str, *, session: Any = INJECTED) -> type:
            session.add(User(name=name))
            return cls

        @staticmethod
        @scope  # type: ignore[untyped-decorator]
        async def of_none(session: Any, name: str) -> None:
            session.add(User(name=name))

    service = Service()
    assert await service.method("ann") is service
    assert await Service.of_class("bob") is Service
    await service.of_none("eve")
    assert await names(doors) == ["ann", "bob", "eve"]


# What the caller sees


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_the_session_is_gone_from_the_signature_in_the_first_form(doors: Door) -> None:
    decorated = doors.Session.scope(doors._coloured(add) if doors.colour == "sync" else add)
    signature = inspect.signature(decorated)
    assert list(signature.parameters) == ["name", "email"]
    assert signature.return_annotation == "str"
    assert decorated.__name__ == "add"
    assert decorated.__doc__ == "Add a user."
    assert decorated.__module__ == add.__module__
    assert inspect.iscoroutinefunction(decorated) is (doors.colour == "async")
    with pytest.raises(TypeError):
        signature.bind(object(), "name")


@pytest.mark.doors("sqlite-sync")
async def test_the_session_stays_in_the_signature_in_the_keyword_form(doors: Door) -> None:
    @doors.Session.scope  # type: ignore[untyped-decorator]
    def fn(name: str, *, session: Any = INJECTED) -> None: ...

    assert str(inspect.signature(fn)) == "(name: 'str', *, session: 'Any' = INJECTED) -> 'None'"


# What is refused at decoration


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_generators_are_refused_with_an_error_that_shows_the_with_form(doors: Door) -> None:
    def generator(session: Any) -> Any:
        yield session

    async def async_generator(session: Any) -> Any:
        yield session

    with_ = "async with" if doors.colour == "async" else "with"
    for fn in (generator, async_generator):
        with pytest.raises(errors.ScopeError, match=rf"generator.*`{with_} Session\.scope\(\) as session"):
            doors.Session.scope(fn)
        with pytest.raises(errors.ScopeError, match="generator"):
            session_scope(doors.Session)(fn)


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_the_wrong_colour_is_refused(doors: Door) -> None:
    def sync_fn(session: Any) -> None: ...

    async def async_fn(session: Any) -> None: ...

    wrong, right = (async_fn, sync_fn) if doors.colour == "sync" else (sync_fn, async_fn)
    for decorate in (doors.Session.scope, doors.Session.scope(), session_scope(doors.Session)):
        with pytest.raises(errors.SyncAsyncMismatch, match="async"):
            decorate(wrong)
        with pytest.raises(errors.SyncAsyncMismatch):
            decorate(functools.partial(wrong))
        assert inspect.iscoroutinefunction(decorate(right)) is (doors.colour == "async")


@pytest.mark.doors("sqlite-sync")
async def test_a_function_that_returns_a_coroutine_after_all_is_refused_when_called(doors: Door) -> None:
    """A decorator in between may hide that a function is async: its body would run when the scope is over."""

    async def body(session: Any) -> None: ...

    @functools.wraps(body)
    def hidden(*args: Any) -> Any:
        return body(*args)

    with pytest.raises(errors.SyncAsyncMismatch):
        result = doors.Session.scope(lambda session: hidden(session))()
        result.close()


@pytest.mark.doors("sqlite-sync")
async def test_a_session_parameter_that_cannot_be_named_is_refused(doors: Door) -> None:
    def fn(a: int, session: Any = INJECTED, /) -> None: ...

    with pytest.raises(errors.ScopeError, match="by position only"):
        doors.Session.scope(fn)


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_what_takes_no_session_is_refused(doors: Door) -> None:
    def none() -> None: ...

    def method(self: Any) -> None: ...

    def of_class(cls: Any) -> None: ...

    def only_keywords(*, session: Any) -> None: ...

    def coloured(fn: Any) -> Any:
        if doors.colour == "sync":
            return fn

        @functools.wraps(fn)
        async def twin(*args: Any, **kw: Any) -> Any:
            return fn(*args, **kw)

        return twin

    for fn, hint in ((none, "no parameter"), (only_keywords, "no parameter"), (method, "method"), (of_class, "method")):
        with pytest.raises(errors.ScopeError, match=hint):
            doors.Session.scope(coloured(fn))
    for thing in ("SERIALIZABLE", 5, None, object(), classmethod(coloured(of_class))):
        with pytest.raises(errors.ScopeError, match="decorates a function"):
            doors.Session.scope()(thing)
    with pytest.raises(errors.ScopeError, match="class"):
        doors.Session.scope(type("Service", (), {}))


# INJECTED


def test_injected_says_what_is_missing_when_a_function_is_called_without_a_scope() -> None:
    def fn(*, session: Any = INJECTED) -> None:
        session.add(User())

    with pytest.raises(errors.ScopeError, match=r"\.add.*decorate it"):
        fn()
    assert repr(INJECTED) == "INJECTED"


def test_injected_can_be_looked_at() -> None:
    """Documentation tools, debuggers and frameworks do it to every default."""
    import copy

    assert not hasattr(INJECTED, "__wrapped__")
    assert str(INJECTED) == "INJECTED"
    assert bool(INJECTED) is True
    assert copy.copy(INJECTED) is INJECTED
    assert copy.deepcopy(INJECTED) is INJECTED


@pytest.mark.doors("sqlite-sync")
async def test_a_name_for_messages_is_taken_from_the_function(doors: Door) -> None:
    @doors.Session.scope  # type: ignore[untyped-decorator]
    def transfer(session: Any) -> None:
        session.commit()

    @doors.Session.scope(name="the big one")  # type: ignore[untyped-decorator]
    def other(session: Any) -> None:
        session.commit()

    with pytest.raises(errors.ScopeError, match="transfer"):
        transfer()
    with pytest.raises(errors.ScopeError, match="the big one"):
        other()
