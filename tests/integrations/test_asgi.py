"""Any ASGI application: one session per request, committed before the response begins."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from sessionkit import current_session, errors, on_commit, set_rollback_only
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


async def test_a_request_is_committed_before_its_response_begins(doors: Door) -> None:
    @doors.Session.scope
    async def decorated(session: Any) -> Any:
        return session

    async def endpoint(request: Request) -> Response:
        await add("ann")
        assert await decorated() is current_session(doors.Session)
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint), doors)
    assert (answer.status, answer.body, answer.committed) == (200, b"ok", ["ann"])


async def test_an_application_without_a_framework_is_served_too(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await add("ann")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    answer = await call(SessionKitMiddleware(app, doors.Session), doors)
    assert (answer.body, answer.committed) == (b"ok", ["ann"])


async def test_a_request_that_uses_no_session_sends_nothing(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = make_app(doors, endpoint)
    with doors.statements() as sql:
        await call(app, doors)
        assert (await call(app, doors, path="/nowhere")).status == 404
    assert sql == []


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_error_status_rolls_back(doors: Door, status: int) -> None:
    async def endpoint(request: Request) -> Response:
        await add("ann")
        return JSONResponse({}, status_code=status)

    assert (await call(make_app(doors, endpoint), doors)).committed == []
    answer = await call(make_app(doors, endpoint, rollback_on=lambda status: False), doors)
    assert (answer.status, answer.committed) == (status, ["ann"])


async def test_a_rollback_on_that_fails_rolls_back(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        await add("ann")
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint, rollback_on=lambda status: 1 // 0 > 1), doors, logged=True)
    assert (answer.status, answer.committed) == (500, [])


async def test_an_http_exception_rolls_back(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        await add("ann")
        raise HTTPException(400, "no")

    answer = await call(make_app(doors, endpoint), doors)
    assert (answer.status, answer.body, answer.committed) == (400, b"no", [])


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


async def test_an_unhandled_exception_rolls_back_and_is_the_frameworks_500(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        await add("ann")
        raise ZeroDivisionError

    answer = await call(make_app(doors, endpoint, rollback_on=lambda status: False), doors, logged=True)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert isinstance(answer.error, ZeroDivisionError)  # Starlette raises it on, for the server's log
    assert await names(doors) == []


async def test_a_request_that_is_not_answered_rolls_back(doors: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await add("ann")

    assert (await call(SessionKitMiddleware(app, doors.Session), doors)).responses == 0
    assert await names(doors) == []


# A COMMIT that fails


async def test_a_commit_that_fails_is_the_frameworks_500(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        pledge()
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint), doors, logged=True)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert isinstance(answer.error, IntegrityError)
    assert await doors.rows("SELECT id FROM pledges") == []


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_commit_that_fails_is_answered_by_the_applications_own_handler(doors: Door, streaming: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"never"

    async def endpoint(request: Request) -> Response:
        pledge()
        return StreamingResponse(parts()) if streaming else PlainTextResponse("never")

    async def no_account(request: Request, error: Exception) -> Response:
        with pytest.raises(errors.NoCurrentSession):
            current_session()
        return JSONResponse({"error": "there is no such account"}, status_code=422)

    app = make_app(doors, endpoint, handlers={IntegrityError: no_account})
    answer = await call(app, doors, "POST")
    assert (answer.status, answer.body) == (422, b'{"error":"there is no such account"}')


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


async def test_a_conflict_is_a_409_or_with_a_precondition_a_412(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        raise StaleDataError("somebody else was faster")

    app = make_app(doors, endpoint)
    answer = await call(app, doors, "POST")
    assert answer.status == 409
    assert b"Somebody else has changed this" in answer.body
    assert (await call(app, doors, "PUT", headers={"If-Match": '"3"'})).status == 412


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


async def test_an_idempotent_request_is_run_again_from_its_first_line(doors: Door) -> None:
    seen: list[Any] = []
    sessions: list[Any] = []

    async def endpoint(request: Request) -> Response:
        assert not hasattr(request.state, "mark")
        request.state.mark = True
        seen.append(await request.body())
        sessions.append(current_session())
        await add("ann")
        if len(seen) < 3:
            raise StaleDataError("again")
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint, retry=Retry(4, wait=0)), doors, "PUT", body=b"the body")
    assert (answer.status, answer.committed) == (200, ["ann"])
    assert seen == [b"the body"] * 3
    assert len(set(map(id, sessions))) == 3


async def test_a_commit_that_fails_is_retried_as_well(doors: Door) -> None:
    tried: list[int] = []

    async def endpoint(request: Request) -> Response:
        tried.append(1)
        if len(tried) == 1:
            pledge()
        else:
            await add("ann")
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint, retry=Retry(on=IntegrityError, wait=0)), doors)
    assert (answer.status, answer.committed, len(tried)) == (200, ["ann"], 2)


async def test_a_post_is_not_run_again_and_a_long_body_neither(doors: Door) -> None:
    tried: list[int] = []

    async def endpoint(request: Request) -> Response:
        tried.append(len(await request.body()))
        raise StaleDataError("again")

    app = make_app(doors, endpoint, retry=Retry(3, wait=0))
    assert (await call(app, doors, "POST")).status == 409
    assert (await call(app, doors, "PUT", body=b"x" * 2**21)).status == 409
    assert tried == [0, 2**21]
    waited: list[int] = []

    async def before_retry(attempt: Any) -> None:
        waited.append(attempt.number)

    app = make_app(doors, endpoint, retry=Retry(3, wait=0, before_retry=before_retry))
    assert (await call(app, doors, "PUT")).status == 409
    assert waited == [1, 2]


# What has no session


async def test_a_background_task_opens_a_scope_of_its_own(doors: Door) -> None:
    told: list[str] = []

    async def later(session: Any) -> None:
        with pytest.raises(errors.NoCurrentSession) as ambient:
            current_session()
        with pytest.raises(errors.ScopeError) as ended:
            await session.execute(select(User))
        told.extend([str(ambient.value), str(ended.value)])
        async with doors.Session.scope() as own:
            own.add(User(name="later"))

    async def endpoint(request: Request) -> Response:
        await add("ann")
        return PlainTextResponse("ok", background=BackgroundTask(later, current_session()))

    answer = await call(make_app(doors, endpoint), doors)
    assert answer.committed == ["ann"]
    assert "call it inside `with Session.scope()`" in told[0]
    assert "do it inside the scope, or open another one" in told[1]
    assert await names(doors) == ["ann", "later"]


async def test_a_task_that_the_endpoint_starts_does_not_see_its_session(doors: Door) -> None:
    async def endpoint(request: Request) -> Response:
        async def child() -> None:
            with pytest.raises(errors.NoCurrentSession, match="'child'.*belongs to task 'request'"):
                current_session()

        await asyncio.create_task(child(), name="child")
        return PlainTextResponse("ok")

    assert (await call(make_app(doors, endpoint), doors)).status == 200


async def test_a_stream_opens_a_scope_of_its_own(doors: Door) -> None:
    async def parts() -> AsyncIterator[str]:
        with pytest.raises(errors.NoCurrentSession):
            current_session()
        async with doors.Session.scope(read_only=True) as session:
            async for name in await session.stream_scalars(select(User.name)):
                yield name

    async def endpoint(request: Request) -> Response:
        await add("ann")
        return StreamingResponse(parts())

    answer = await call(make_app(doors, endpoint), doors)
    assert (answer.status, answer.body, answer.committed) == (200, b"ann", ["ann"])


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


# Hooks


async def test_hooks_run_after_the_commit_and_before_the_response_begins(doors: Door) -> None:
    seen: list[str] = []

    async def hook() -> None:
        seen.append("hook")

    async def endpoint(request: Request) -> Response:
        await add("ann")
        on_commit(hook)
        return PlainTextResponse("ok")

    app = make_app(doors, endpoint)

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            seen.append(message["type"])
            await send(message)

        await app(scope, receive, noting)

    assert (await call(outer, doors)).status == 200
    assert seen == ["hook", "http.response.start", "http.response.body"]


async def test_a_hook_that_fails_does_not_turn_what_is_committed_into_an_error(
    doors: Door, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(request: Request) -> Response:
        await add("ann")
        on_commit(lambda: 1 / 0)
        return PlainTextResponse("ok")

    answer = await call(make_app(doors, endpoint), doors)
    assert (answer.status, answer.committed) == (200, ["ann"])
    assert "a hook of GET / failed; the data is committed" in caplog.text


# Cancellation


async def test_a_request_that_is_cancelled_rolls_back_and_gives_its_connection_back(doors: Door) -> None:
    inside = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        await add("ann")
        inside.set()
        await asyncio.Event().wait()
        return PlainTextResponse("never")

    request = asyncio.create_task(call(make_app(doors, endpoint), doors))
    await inside.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert doors.checked_out() == 0
    assert await names(doors) == []


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


async def test_a_sync_endpoint_is_inside_the_unit_of_a_sync_factory(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        @factory.scope
        def decorated(session: Any) -> Any:
            return session

        threads: list[str] = []

        def endpoint(request: Request) -> Response:
            current_session(factory).add(User(name="ann"))
            on_commit(lambda: threads.append(threading.current_thread().name))
            assert decorated() is current_session()
            return PlainTextResponse("ok")

        answer = await call(make_app(doors, endpoint, factory), doors)
        assert (answer.status, answer.committed) == (200, ["ann"])
        assert threads[0].startswith("sessionkit")  # the loop did not wait for COMMIT, nor for a hook


async def test_a_sync_endpoint_that_fails_rolls_back(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        def endpoint(request: Request) -> Response:
            current_session().add(User(name="ann"))
            current_session().flush()
            raise HTTPException(403)

        answer = await call(make_app(doors, endpoint, factory), doors)
        assert (answer.status, answer.committed) == (403, [])


async def test_a_commit_of_a_sync_session_that_fails_is_answered_by_the_application(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        def endpoint(request: Request) -> Response:
            pledge()
            return PlainTextResponse("never")

        def no_account(request: Request, error: Exception) -> Response:
            return PlainTextResponse("no", status_code=422)

        answer = await call(make_app(doors, endpoint, factory, {IntegrityError: no_account}), doors)
        assert answer.status == 422


async def test_a_thread_of_an_async_endpoint_does_not_see_a_sync_session(doors: Door) -> None:
    async with sync_factory(doors) as factory:

        def work() -> None:
            with pytest.raises(errors.NoCurrentSession, match="belongs to task"):
                current_session()

        async def endpoint(request: Request) -> Response:
            current_session(factory)
            await asyncio.to_thread(work)
            return PlainTextResponse("ok")

        assert (await call(make_app(doors, endpoint, factory), doors)).status == 200


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
