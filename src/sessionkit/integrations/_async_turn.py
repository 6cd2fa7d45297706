"""A turn of a request that a task serves: its sessions, sync and async, and the threads and tasks that may share them.

An async session commits in the task. A sync session commits in a thread, and is lent to the worker threads in which the
framework runs parts of the request.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .._spi import Entry, factory_key, here, pause, to_completion, top
from ..scope import AsyncScope
from ._web import RequestUnit, Turn, claiming, triple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from .._spi import Options

    Connection = MutableMapping[str, Any]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # Sync sessions commit in these threads. The framework's own could all be taken by endpoints that wait for a connection of
    # the pool, and then the requests that hold one could not return it. There are as many as needed, for the same reason: a
    # COMMIT that flushes first may itself wait for a connection.
    return ThreadPoolExecutor(2**16, thread_name_prefix="sessionkit")


_PLACE = "sessionkit.place"
"""Key in the scope of a connection: a turn of its request has taken a place."""

_places_of: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _places() -> asyncio.Semaphore | None:
    """Return a semaphore that limits how many requests with sync sessions the loop serves at once: one per worker thread.

    FastAPI runs a ``def`` endpoint, each ``def`` dependency and the rendering of the response in threads, one after the
    other. So a request that holds a connection may wait for its next thread. If requests that wait for a connection took all
    the threads, no request could go on.
    """
    anyio = sys.modules.get("anyio.to_thread")
    if anyio is None:
        return None
    loop = asyncio.get_running_loop()
    places = _places_of.get(loop)
    if places is None:
        threads = min(anyio.current_default_thread_limiter().total_tokens, 2**16)  # may be infinite
        places = _places_of[loop] = asyncio.Semaphore(max(1, int(threads)))
    return places


class AsyncTurn(Turn):
    """A turn of a request that a task serves, with sync and async sessions."""

    def __init__(self, request: RequestUnit, connection: Connection) -> None:
        super().__init__(request, lambda: connection)
        self.connection = connection
        self._plain: dict[object, Entry] = {}
        self._places: asyncio.Semaphore | None = None  # the semaphore that this turn has acquired

    async def enter(self, factory: Any, options: Options, defaults: Options | None = None) -> Any:
        """Open a scope in this task, and return its session; without options, one for each factory. No I/O.

        Args:
            factory: the session factory.
            options: the scope options of the caller that asks for the session.
            defaults: the options of the whole application. Callers without options of their own share this session.
        """
        key = factory_key(factory)
        plain = None if options else self._plain.get(key)
        if plain is not None and plain.belongs_to(here()):
            return plain.handed
        scope = self.scope_of(factory, options or defaults or {})
        if not isinstance(scope, AsyncScope):
            await self._take_a_place()
        run = self.request.run()
        with claiming(scope):
            if isinstance(scope, AsyncScope):
                session = await scope._begin(run)
            elif scope._request.once is not None:
                session = await scope._begin_through(_entered_in_thread, run)
            else:
                session = scope._begin(run)
        self.opened(scope, session)
        entry = self._lend(isinstance(scope, AsyncScope))
        if not options:
            self._plain[key] = entry
        return session

    async def _take_a_place(self) -> None:
        """Wait, without blocking the loop, until there is a worker thread for this request."""
        places = _places()
        if places is not None and _PLACE not in self.connection:
            await places.acquire()
            self.connection[_PLACE] = self
            self._places = places

    def _lend(self, asynchronous: bool) -> Entry:
        """Let the threads and tasks that the framework uses for the request see the session while this task waits for them."""
        entry, loops_thread, connection = top(), threading.get_ident(), self.connection
        assert entry is not None

        def waited_for(owner: object) -> bool:
            if isinstance(owner, asyncio.Task):
                return _serves_requests(owner)
            # A worker thread. An async endpoint, however, may start several at once, and need not wait for any.
            return not asynchronous and owner != loops_thread and not _is_async(connection.get("endpoint"))

        entry.lent = waited_for
        return entry

    async def end(self, status: int | None) -> None:
        """End the scopes before a response with `status` leaves. None means that there will be no response.

        Raises:
            BaseException: the error that kept one of them from committing, unless it is the turn's own `error`.
        """
        error = self.error
        for scope in self._ending(status):
            failure: BaseException | None = None
            try:
                await _leave(scope, error)
            except BaseException as raised:  # noqa: BLE001 - the other scopes must end too
                failure = raised
            error = self._ended(scope, failure, error)
        if self._places is not None:
            self._places.release()
            self._places = None
            self.connection.pop(_PLACE, None)
        self._settle(error)

    async def give_up(self, error: BaseException | None) -> None:
        """Roll back what is still open."""
        if self.over:
            return
        if error is not None:
            self.error = error
        await self.end(None)

    async def pause(self) -> None:
        """Wait before the next turn."""
        result, seconds = self.request.next()
        if inspect.isawaitable(result):
            await result
        await asyncio.sleep(pause(seconds))


async def _entered_in_thread(entering: Callable[..., bool], unit: Any, what: Callable[[], None]) -> bool:
    """Call in a thread what waits for the database as a unit is entered; if the task is cancelled, end the unit."""
    entered: bool
    entered, cancelled = await to_completion(_in_thread(functools.partial(entering, unit, what)))
    if cancelled is not None:
        if entered:
            await to_completion(_in_thread(functools.partial(unit.finish, cancelled)))
        raise cancelled
    return entered


def _in_thread(work: Callable[[], Any]) -> Awaitable[Any]:
    return asyncio.get_running_loop().run_in_executor(_threads(), functools.partial(copy_context().run, work))


async def _leave(scope: Any, error: BaseException | None) -> None:
    if isinstance(scope, AsyncScope):
        await scope.__aexit__(*triple(error))
        return
    _, cancelled = await to_completion(_in_thread(functools.partial(scope.__exit__, *triple(error))))
    if cancelled is not None:
        raise cancelled


def _is_async(endpoint: object) -> bool:
    """Return whether an endpoint is a coroutine function; False if it is unknown."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    # Or an object whose __call__ is one.
    return inspect.iscoroutinefunction(endpoint) or inspect.iscoroutinefunction(type(endpoint).__call__)


def _serves_requests(task: asyncio.Task[Any]) -> bool:
    """Return whether the framework serves a request in this task, as opposed to a task that the request has started."""
    quart = sys.modules.get("quart.asgi")
    serving = getattr(getattr(quart, "ASGIHTTPConnection", None), "handle_request", None)
    return serving is not None and getattr(task.get_coro(), "cr_code", None) is serving.__code__
