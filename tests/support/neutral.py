"""One body for both colours: a driver for coroutines that never wait, sync objects that answer as their async twins.

In the sync colours no event loop runs. The body is still `async def`, but everything it awaits is a sync call in an
`async def` coat, so it runs to its end at the first `send(None)`. Nothing is hidden from the code under test: it is
called from plain sync frames, without a loop.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from sqlalchemy.engine import Connection, MappingResult, Result, ScalarResult, Transaction
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncResult,
    AsyncSession,
    AsyncSessionTransaction,
    AsyncTransaction,
    async_scoped_session,
)
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
    from types import TracebackType

T = TypeVar("T")
TargetT = TypeVar("TargetT")


class SuspendedInSyncColour(AssertionError):
    """A body waited for an event loop in a colour that has none."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that must not wait, without an event loop."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    with suppress(StopIteration):
        # Thrown into it, and not raised here: so the traceback ends at the `await` that waited.
        coroutine.throw(
            SuspendedInSyncColour(
                f"the body waits for {waits_for!r}, but this is a sync colour and no event loop runs. Await only what "
                "`doors` and its neutral objects give (doors.together, doors.barrier, doors.event, ...)"
            )
        )
    coroutine.close()
    raise SuspendedInSyncColour("the body swallowed the error which says that it waited in a sync colour")


class Facade(Generic[TargetT]):
    """A sync object with the interface of its async twin.

    What is a coroutine function on the twin becomes one here; all else passes through. So the list of methods is
    SQLAlchemy's own, in each of its versions, and not a copy of it.
    """

    twin: ClassVar[type[Any]]
    # What the twin has and the sync object has under another name, or not at all.
    renamed: ClassVar[dict[str, str]] = {}

    def __init__(self, target: TargetT) -> None:
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        target = object.__getattribute__(self, "_target")
        value = getattr(target, self.renamed.get(name, name))
        if inspect.iscoroutinefunction(getattr(self.twin, name, None)):
            return _awaitable(value)
        return _passed_through(value) if inspect.ismethod(value) else neutral(value)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def __eq__(self, other: object) -> bool:
        return raw(other) is self._target

    def __hash__(self) -> int:
        return id(self._target)

    def __repr__(self) -> str:
        return f"<neutral {self._target!r}>"

    def __contains__(self, item: object) -> bool:
        return item in self._target

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)

    async def __aenter__(self) -> Any:
        return neutral(self._target.__enter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._target.__exit__(kind, error, traceback)  # type: ignore[no-any-return]


class Beginning:
    """`begin()` of an async object: nothing happens before it is awaited or entered."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._transaction: Any = None

    async def _started(self) -> Any:
        self._transaction = neutral(self._begin())
        return self._transaction

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._started().__await__()

    async def __aenter__(self) -> Any:
        return await (await self._started()).__aenter__()

    async def __aexit__(self, *error: object) -> Any:
        return await self._transaction.__aexit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)


class NeutralTransaction(Facade[Any]):
    twin = AsyncTransaction


class NeutralSessionTransaction(Facade[SessionTransaction]):
    twin = AsyncSessionTransaction


class NeutralSession(Facade[Session]):
    twin: ClassVar[type[Any]] = AsyncSession
    renamed: ClassVar[dict[str, str]] = {"aclose": "close", "get_async_bind": "get_bind"}

    @property
    def sync_session(self) -> Session:
        return self._target  # type: ignore[no-any-return]

    def begin(self) -> Any:
        return Beginning(self._target.begin)

    def begin_nested(self) -> Any:
        return Beginning(self._target.begin_nested)

    async def run_sync(self, fn: Callable[..., T], *args: Any, **kw: Any) -> T:
        return fn(self._target, *args, **kw)

    async def stream(self, *args: Any, **kw: Any) -> Any:
        return NeutralResult(self._target.execute(*args, **kw))

    async def stream_scalars(self, *args: Any, **kw: Any) -> Any:
        return NeutralResult(self._target.scalars(*args, **kw))


class NeutralScopedSession(NeutralSession):
    """A scoped session, which is called for its session and removed at the end."""

    twin = async_scoped_session

    @property
    def sync_session(self) -> Session:
        return self._target()  # type: ignore[no-any-return]

    def __call__(self, **kw: Any) -> Any:
        return neutral(self._target(**kw))


class NeutralConnection(Facade[Connection]):
    twin = AsyncConnection
    renamed: ClassVar[dict[str, str]] = {"aclose": "close"}

    @property
    def sync_connection(self) -> Connection:
        return self._target  # type: ignore[no-any-return]

    async def get_raw_connection(self) -> Any:
        return self._target.connection

    def begin(self) -> Any:
        return Beginning(self._target.begin)

    def begin_nested(self) -> Any:
        return Beginning(self._target.begin_nested)

    async def run_sync(self, fn: Callable[..., T], *args: Any, **kw: Any) -> T:
        return fn(self._target, *args, **kw)

    async def stream(self, *args: Any, **kw: Any) -> Any:
        return NeutralResult(self._target.execute(*args, **kw))

    async def stream_scalars(self, *args: Any, **kw: Any) -> Any:
        return NeutralResult(self._target.scalars(*args, **kw))


class NeutralResult(Facade[Any]):
    """A result that is read while the database still sends it. (A buffered one is sync in both colours.)"""

    twin = AsyncResult

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        # `.scalars()`, `.unique()` and the like give results, which stream too.
        if callable(value) and not inspect.iscoroutinefunction(value):
            return _streaming(value)
        return value

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in self._target:
            yield row

    async def partitions(self, size: int | None = None) -> AsyncIterator[Any]:
        for part in self._target.partitions(size):
            yield part


def neutral(value: Any) -> Any:
    """Give a sync object the coat of its async twin; leave everything else as it is."""
    for kind, facade in _FACADES:
        if isinstance(value, kind):
            return facade(value)
    return value


def raw(value: Any) -> Any:
    """Take the coat off: the object that the user of sessionkit would hold."""
    return object.__getattribute__(value, "_target") if isinstance(value, Facade) else value


def raw_arguments(args: tuple[Any, ...], kw: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [raw(argument) for argument in args], {name: raw(argument) for name, argument in kw.items()}


def awaitable(function: Callable[..., T]) -> Callable[..., Awaitable[T]]:
    """Give a sync function an `async def` coat, which takes neutral objects and returns them."""
    return _awaitable(function)


_FACADES: list[tuple[type, Callable[[Any], Any]]] = [
    (Session, NeutralSession),
    (scoped_session, NeutralScopedSession),
    (SessionTransaction, NeutralSessionTransaction),
    (Connection, NeutralConnection),
    (Transaction, NeutralTransaction),
]


def _awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def call(*args: Any, **kw: Any) -> Any:
        args_, kw_ = raw_arguments(args, kw)
        return neutral(function(*args_, **kw_))

    return call


def _passed_through(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kw: Any) -> Any:
        args_, kw_ = raw_arguments(args, kw)
        return neutral(function(*args_, **kw_))

    return call


def _streaming(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kw: Any) -> Any:
        value = function(*args, **kw)
        return NeutralResult(value) if isinstance(value, Result | ScalarResult | MappingResult) else value

    return call
