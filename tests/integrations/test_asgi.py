"""Any ASGI application: one session per request, committed before the response begins.

What holds for every framework is in test_web.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from sessionkit import current_session, errors, set_rollback_only
from sessionkit.integrations.asgi import SessionKitMiddleware
from sessionkit.retry import Retry
from tests.integrations.asgi_client import call, sync_factory, talk
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.websockets import WebSocket

    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("sqlite-async", "postgresql-async")]


def make_app(
    doors: Door, endpoint: Callable[..., Any], factory: Any = None, handlers: Any = None, **options: Any
) -> Starlette:
    """Return an application of Starlette's with the endpoint at "/"."""
    app = Starlette(
        routes=[Route("/", endpoint, methods=["GET", "POST", "PUT", "HEAD"])], exception_handlers=handlers or {}
    )
    app.add_middleware(SessionKitMiddleware, factory=doors.Session if factory is None else factory, **options)
    return app


async def add(name: str) -> None:
    session = current_session()
    session.add(User(name=name))
    await session.flush()


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


def pledge() -> None:
    """Break a foreign key that is checked at COMMIT only."""
    current_session().add(Pledge(account_id=99))


# When it commits


async def test_an_application_without_a_framework_is_served_too(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await add("ann")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    answer = await call(SessionKitMiddleware(app, doors.Session), doors)
    assert (answer.body, answer.committed) == (b"ok", ["ann"])


async def test_a_handler_that_answers_without_an_error_says_so_itself(doors: Door) -> None:
    class LoginNeeded(Exception):
        pass

    async def endpoint(request: Request) -> Response:
        await add("ann")
        raise LoginNeeded

    async def to_login(request: Request, error: Exception) -> Response:
        set_rollback_only()
        return RedirectResponse("/login")

    answer = await call(make_app(doors, endpoint, handlers={LoginNeeded: to_login}), doors)
    assert (answer.status, answer.committed) == (307, [])
    assert await names(doors) == []


async def test_a_request_that_is_not_answered_rolls_back(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await add("ann")

    assert (await call(SessionKitMiddleware(app, doors.Session), doors)).responses == 0
    assert await names(doors) == []


# A COMMIT that fails


async def test_a_sync_handler_answers_it_too(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        pledge()
        return PlainTextResponse("never")

    def no_account(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sync", status_code=422)

    answer = await call(make_app(doors, endpoint, handlers={IntegrityError: no_account}), doors)
    assert (answer.status, answer.body) == (422, b"sync")


async def test_the_applications_handler_of_everything_answers_and_the_server_has_its_log(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        pledge()
        return PlainTextResponse("never")

    async def anything(request: Request, error: Exception) -> Response:
        return PlainTextResponse(type(error).__name__, status_code=500)

    answer = await call(make_app(doors, endpoint, handlers={Exception: anything}), doors, logged=True)
    assert (answer.status, answer.body) == (500, b"IntegrityError")
    assert isinstance(answer.error, IntegrityError)


async def test_an_application_that_takes_no_note_of_the_failure_gets_nothing_of_its_response_through(
    doors: Door,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pledge()
        with pytest.raises(IntegrityError):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"stale"})

    with pytest.raises(IntegrityError):
        await call(SessionKitMiddleware(app, doors.Session), doors)


async def test_what_an_application_says_before_its_response_begins_is_let_through(doors: Door) -> None:
    """As Starlette tells its test client which template was rendered."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.start", "status": 200, "headers": []})

    said: list[str] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await SessionKitMiddleware(app, doors.Session)(scope, send, send)
    assert said == ["http.response.debug", "http.response.start"]


async def test_an_application_that_answers_the_failure_itself_is_heard(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pledge()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except IntegrityError:
            await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b"sorry"})

    answer = await call(SessionKitMiddleware(app, doors.Session), doors)
    assert (answer.status, answer.body, answer.responses) == (422, b"sorry", 1)


async def test_a_mounted_application_with_error_handling_of_its_own_sends_one_response(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        pledge()
        return PlainTextResponse("never")

    inner = Starlette(routes=[Route("/", endpoint)])
    app = Starlette(routes=[Mount("/inner", inner)])
    app.add_middleware(SessionKitMiddleware, factory=doors.Session)
    answer = await call(app, doors, path="/inner/", logged=True)
    assert (answer.status, answer.responses) == (500, 1)


# What a client is told


async def test_a_conflict_is_told_in_the_applications_form(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        raise StaleDataError("somebody else was faster")

    async def as_json(request: Request, error: Any) -> Response:
        return JSONResponse({"detail": error.detail}, status_code=error.status_code)

    answer = await call(make_app(doors, endpoint, handlers={HTTPException: as_json}), doors)
    assert answer.status == 409
    assert answer.body.startswith(b'{"detail":"Somebody else')


async def test_without_a_framework_a_conflict_is_told_in_plain_text(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise StaleDataError("somebody else was faster")

    answer = await call(SessionKitMiddleware(app, doors.Session), doors)
    assert (answer.status, answer.headers["content-type"]) == (409, "text/plain; charset=utf-8")
    assert answer.headers["content-length"] == str(len(answer.body))
    assert (await call(SessionKitMiddleware(app, doors.Session), doors, "HEAD")).body == b""


# Retry


async def test_an_async_before_retry_is_awaited(doors: Door) -> None:
    waited: list[int] = []

    async def before_retry(attempt: Any) -> None:
        waited.append(attempt.number)

    async def endpoint(request: Request) -> Response:
        raise StaleDataError("again")

    app = make_app(doors, endpoint, retry=Retry(3, wait=0, before_retry=before_retry))
    assert (await call(app, doors, "PUT")).status == 409
    assert waited == [1, 2]


# What has no session


async def test_a_task_that_the_endpoint_starts_does_not_see_its_session(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        async def child() -> None:
            with pytest.raises(errors.NoCurrentSession, match="'child'.*belongs to task 'request'"):
                current_session()

        await asyncio.create_task(child(), name="child")
        return PlainTextResponse("ok")

    assert (await call(make_app(doors, endpoint), doors)).status == 200


async def test_a_stream_that_fails_later_leaves_what_was_committed(doors: Door) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async def endpoint(request: Request) -> Response:
        await add("ann")
        return StreamingResponse(parts())

    with pytest.raises((ZeroDivisionError, ExceptionGroup)):
        await call(make_app(doors, endpoint), doors)
    assert await names(doors) == ["ann"]


async def test_websockets_and_the_lifespan_have_no_session(doors: Door) -> None:
    seen: list[str] = []

    def note() -> None:
        with pytest.raises(errors.NoCurrentSession) as told:
            current_session()
        seen.append(str(told.value))

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        note()
        await websocket.close()

    class Lifespan:
        async def __aenter__(self) -> None:
            note()

        async def __aexit__(self, *exc_info: object) -> None:
            note()

    app = Starlette(routes=[WebSocketRoute("/", chat)], lifespan=lambda app: Lifespan())
    app.add_middleware(SessionKitMiddleware, factory=doors.Session)
    said = await talk(app)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.accept", "websocket.close"]
    assert len(seen) == 3


# Cancellation


async def test_a_client_that_goes_away_during_a_stream_leaves_no_connection(doors: Door) -> None:
    gone, streaming = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        async with doors.Session.scope(read_only=True) as session:
            await session.execute(select(User))
            yield b"one"
            gone.set()
            streaming.set()
            await asyncio.Event().wait()

    async def endpoint(request: Request) -> Response:
        await add("ann")
        return StreamingResponse(parts())

    answer = await call(make_app(doors, endpoint), doors, disconnect=gone)
    assert (answer.body, answer.committed) == (b"one", ["ann"])


@pytest.mark.parametrize("work", [pledge, lambda: current_session().add(User(name="ann"))])
async def test_a_client_that_goes_away_during_the_commit_leaves_no_connection(
    doors: Door, work: Callable[[], None]
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    async def endpoint(request: Request) -> Response:
        work()
        return StreamingResponse(parts())

    gone = asyncio.Event()
    gone.set()
    assert (await call(make_app(doors, endpoint), doors, disconnect=gone)).responses <= 1
    assert doors.checked_out() == 0


# A middleware in between


async def test_a_middleware_that_was_added_later_is_outside(doors: Door) -> None:
    class Noting(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            response.headers["X-Noted"] = "yes"
            return response

    async def endpoint(request: Request) -> Response:
        await add("ann")
        return PlainTextResponse("ok")

    app = make_app(doors, endpoint)
    app.add_middleware(Noting)
    answer = await call(app, doors)
    assert (answer.status, answer.committed, answer.headers["x-noted"]) == (200, ["ann"], "yes")


async def test_behind_a_middleware_with_tasks_of_its_own_the_ambient_session_is_not_to_be_seen(doors: Door) -> None:
    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    async def endpoint(request: Request) -> Response:
        with pytest.raises(errors.NoCurrentSession, match="belongs to task"):
            current_session()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(Between)
    app.add_middleware(SessionKitMiddleware, factory=doors.Session)
    assert (await call(app, doors)).status == 200


# Sync sessions


async def test_a_sync_stream_may_have_a_scope_that_moves_from_thread_to_thread(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        def parts() -> Iterator[str]:
            with factory.scope(read_only=True) as session:
                yield from session.scalars(select(User.name))

        def endpoint(request: Request) -> Response:
            current_session().add(User(name="ann"))
            return StreamingResponse(parts())

        answer = await call(make_app(doors, endpoint, factory), doors)
        assert answer.body == b"ann"


async def test_both_colours_may_be_in_one_request(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        async def endpoint(request: Request) -> Response:
            await current_session(doors.Session).execute(select(User))
            assert current_session() is current_session(doors.Session)
            assert current_session(factory) is not current_session(doors.Session)
            return PlainTextResponse("ok")

        assert (await call(make_app(doors, endpoint, [doors.Session, factory]), doors)).status == 200


async def test_what_is_no_factory_is_refused_at_once(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(errors.ScopeError, match="engine"):
        SessionKitMiddleware(app, doors.engine)
