"""Web doors: one test body, each web framework.

A test of test_web.py asks for `doors` and `web`, and runs once for each pair of them that fits:

    async def test_an_error_status_rolls_back(doors: Door, web: Web) -> None:
        async def view(request: Request) -> Reply:
            request.session.add(User(name="ann"))
            return Reply("no", 404)

        answer = await web.app(view).send("POST")
        assert (answer.status, answer.committed) == (404, [])

    web              the application                                                     doors
    starlette        Starlette with the ASGI middleware                                  the async ones
    fastapi          FastAPI after `install`; the endpoint asks for its session          the async ones
    fastapi-alone    FastAPI without it, so the dependency commits; it takes no options  the async ones
    flask            Flask with the extension                                            the sync ones
    wsgi             a bare application in the WSGI middleware, without error handlers   the sync ones

**What a web door gives**
    app(view, handlers=None, factory=None, **options)
                        an application with the view at "/"; `handlers` maps classes of errors to functions that take
                        the error and return a Reply; the options are those of the middleware or the extension. An async
                        framework runs the view of a sync factory in a thread, as an endpoint that is `def`, unless
                        `awaits=True`.
    http_error(status, text)
                        the framework's own error of a status, to be raised
    told(answer)        the text of an error, taken out of the form that the framework gives to it
    internal_error      the body of the framework's 500
    coloured(fn)        what the user of this framework would write for an `async def` without arguments

**A view** takes a Request and returns a Reply, or its text. `request.session` is neutral, as a door's.

**`await app.send(method, path, body=, headers=)`** returns the Answer that a client got. An error that reaches the
server or the framework's log is raised, or kept in the answer if it is `logged`. `began` is called when the response
begins.

`@pytest.mark.webs("flask", "wsgi")`: through which web doors a test goes, where not through all.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of the endpoint.

import html
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, ClassVar

import fastapi
import flask
import pytest
from sqlalchemy import orm
from starlette import applications, background, exceptions, requests, responses, routing
from werkzeug import exceptions as werkzeug_exceptions

from sessionkit import current_session
from sessionkit.integrations import fastapi as fastapi_integration
from sessionkit.integrations.asgi import SessionKitMiddleware as AsgiMiddleware
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from sessionkit.integrations.wsgi import SessionKitMiddleware as WsgiMiddleware
from tests.integrations import asgi_client
from tests.integrations.asgi_client import Answer
from tests.integrations.wsgi_client import Client
from tests.support.doors import Door
from tests.support.neutral import drive, neutral
from tests.support.plugin import chosen_doors, door_marks

METHODS = ["GET", "HEAD", "POST", "PUT"]


@dataclass
class Reply:
    """What a view or an error handler answers. `parts` are streamed; `background` runs when all was sent."""

    text: str = "ok"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: AsyncIterator[str] | None = None
    background: Callable[[], Coroutine[Any, Any, None]] | None = None


@dataclass
class Request:
    """What a view is asked."""

    _session: Callable[[], Any]
    _body: Callable[[], bytes | Awaitable[bytes]]
    _state: Any  # what the framework keeps for the request, with a dict's `setdefault`

    @property
    def session(self) -> Any:
        return neutral(self._session())

    async def body(self) -> bytes:
        body = self._body()
        return body if isinstance(body, bytes) else await body

    def is_new(self) -> bool:
        """Tell whether the framework's state of this request is new, and use it."""
        mark = object()
        return self._state.setdefault("mark", mark) is mark


View = Callable[[Request], Coroutine[Any, Any, Reply | str]]
Handler = Callable[[Any], Reply]
Handlers = Mapping[type[Exception], Handler]


@dataclass
class App:
    """An application, and a client that sends requests to it."""

    web: "Web"
    application: Any

    async def send(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        logged: bool = False,
        began: Callable[[], object] = lambda: None,
    ) -> Answer:
        answer = await self.web.send(self.application, method, path, body, headers or {}, began)
        if answer.error is not None and not logged:
            raise answer.error
        return answer


class Web(ABC):
    """A web framework, with an application for each test."""

    name: ClassVar[str]
    colour: ClassVar[str]
    takes_options: ClassVar[bool] = True
    internal_error: ClassVar[bytes] = b"Internal Server Error"

    def __init__(self, doors: Door) -> None:
        self.doors = doors

    def app(
        self,
        view: View,
        handlers: Handlers | None = None,
        factory: Any = None,
        *,
        awaits: bool | None = None,
        **options: Any,
    ) -> App:
        assert self.takes_options or not options, f"{self.name} takes no options"
        factory = self.doors.Session if factory is None else factory
        if awaits is None:
            awaits = not isinstance(factory, orm.sessionmaker)
        return App(self, self._make(view, handlers or {}, factory, awaits, options))

    @abstractmethod
    def _make(self, view: View, handlers: Handlers, factory: Any, awaits: bool, options: dict[str, Any]) -> Any: ...

    @abstractmethod
    async def send(
        self,
        application: Any,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        began: Callable[[], object],
    ) -> Answer: ...

    def http_error(self, status: int, text: str) -> Exception:
        raise NotImplementedError(f"{self.name} has no errors of its own")

    def told(self, answer: Answer) -> str:
        return answer.body.decode()

    def coloured(self, fn: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Any]:
        return fn if self.colour == "async" else lambda: drive(fn())


class Asgi(Web):
    colour = "async"

    async def send(
        self,
        application: Any,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        began: Callable[[], object],
    ) -> Answer:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            async def told(message: Any) -> None:
                if message["type"] == "http.response.start":
                    began()
                await send(message)

            await application(scope, receive, told)

        return await asgi_client.call(noting, self.doors, method, path, body=body, headers=headers, logged=True)


class Starlette(Asgi):
    name = "starlette"

    def _make(self, view: View, handlers: Handlers, factory: Any, awaits: bool, options: dict[str, Any]) -> Any:
        def asked(request: requests.Request) -> Request:
            return Request(lambda: current_session(factory), request.body, request.scope["state"])

        async def awaiting(request: requests.Request) -> responses.Response:
            return _response(await view(asked(request)))

        def in_thread(request: requests.Request) -> responses.Response:
            return _response(drive(view(asked(request))))

        app = applications.Starlette(
            routes=[routing.Route("/", awaiting if awaits else in_thread, methods=METHODS)],
            exception_handlers={kind: _handler(handler, awaits) for kind, handler in handlers.items()},
        )
        app.add_middleware(AsgiMiddleware, factory=factory, **options)
        return app

    def http_error(self, status: int, text: str) -> Exception:
        return exceptions.HTTPException(status, text)


class FastAPI(Asgi):
    name = "fastapi"

    def _make(self, view: View, handlers: Handlers, factory: Any, awaits: bool, options: dict[str, Any]) -> Any:
        app = self._install(options)
        for kind, handler in handlers.items():
            app.add_exception_handler(kind, _handler(handler, awaits))
        SessionDep = Annotated[Any, SessionDepends(factory)]

        def asked(request: fastapi.Request, session: Any) -> Request:
            return Request(lambda: session, request.body, request.scope["state"])

        def answered(reply: Reply | str, response: fastapi.Response, tasks: fastapi.BackgroundTasks) -> Any:
            reply = _reply(reply)
            if reply.parts is not None:
                return _response(reply)
            # Set on FastAPI's Response: without the middleware, the dependency sees no other status.
            response.status_code = reply.status
            response.headers.update(reply.headers)
            if reply.background is not None:
                tasks.add_task(reply.background)
            return reply.text

        async def awaiting(
            request: fastapi.Request, response: fastapi.Response, tasks: fastapi.BackgroundTasks, session: SessionDep
        ) -> Any:
            return answered(await view(asked(request, session)), response, tasks)

        def in_thread(
            request: fastapi.Request, response: fastapi.Response, tasks: fastapi.BackgroundTasks, session: SessionDep
        ) -> Any:
            return answered(drive(view(asked(request, session))), response, tasks)

        endpoint = awaiting if awaits else in_thread
        app.add_api_route("/", endpoint, methods=METHODS, response_class=responses.PlainTextResponse)
        return app

    def _install(self, options: dict[str, Any]) -> fastapi.FastAPI:
        app = fastapi.FastAPI()
        install(app, **options)
        return app

    def http_error(self, status: int, text: str) -> Exception:
        return fastapi.HTTPException(status, text)

    def told(self, answer: Answer) -> str:
        return str(json.loads(answer.body)["detail"])


class FastAPIAlone(FastAPI):
    name = "fastapi-alone"
    takes_options = False

    def _install(self, options: dict[str, Any]) -> fastapi.FastAPI:
        return fastapi.FastAPI()


class Wsgi(Web):
    name = "wsgi"
    colour = "sync"

    def _make(self, view: View, handlers: Handlers, factory: Any, awaits: bool, options: dict[str, Any]) -> Any:
        assert not handlers

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            asked = Request(lambda: current_session(factory), environ["wsgi.input"].read, environ)
            reply = _reply(drive(view(asked))) if environ["PATH_INFO"] == "/" else Reply("nowhere", 404)
            start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", list(reply.headers.items()))
            return [reply.text.encode()] if reply.parts is None else (part.encode() for part in _sync(reply.parts))

        return WsgiMiddleware(app, factory, **options)

    async def send(
        self,
        application: Any,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        began: Callable[[], object],
    ) -> Answer:
        client = Client(self.doors, application, began)
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        answer = Answer()
        try:
            _, answer.body = client(method, body, path, **environ, **self._environ())
        except Exception as error:  # noqa: BLE001 - the server answers it
            assert not client.started, "a response that has begun is no 500 any more"
            answer.status, answer.body, answer.committed = 500, b"Internal Server Error", client.names()
            answer.error = error
            return answer
        (start,) = client.started
        answer.status, answer.responses, answer.committed = int(start[0].split()[0]), 1, start[2]
        answer.headers = {name.lower(): value for name, value in start[1].items()}
        return answer

    def _environ(self) -> dict[str, Any]:
        return {}


class Flask(Wsgi):
    name = "flask"
    internal_error = werkzeug_exceptions.InternalServerError().get_body().encode()

    def _make(self, view: View, handlers: Handlers, factory: Any, awaits: bool, options: dict[str, Any]) -> Any:
        app = flask.Flask(__name__)
        kit = SessionKit(app, factory, **options)

        def endpoint() -> flask.Response:
            return answered(drive(view(Request(lambda: kit.session, flask.request.get_data, flask.g))))

        def answered(reply: Reply | str) -> flask.Response:
            reply = _reply(reply)
            body = reply.text if reply.parts is None else flask.stream_with_context(_sync(reply.parts))
            return flask.Response(body, reply.status, reply.headers)

        for kind, handler in handlers.items():
            app.register_error_handler(kind, lambda error, handler=handler: answered(handler(error)))
        app.add_url_rule("/", "view", endpoint, methods=METHODS)
        return app

    async def send(self, application: Any, *args: Any) -> Answer:
        unhandled: list[Exception] = []

        def note(app: flask.Flask, exception: Exception) -> None:
            unhandled.append(exception)

        with flask.got_request_exception.connected_to(note, application):
            answer = await super().send(application, *args)
        # It reaches Flask's log, and not the server.
        answer.error = unhandled[0] if unhandled else answer.error
        return answer

    def _environ(self) -> dict[str, Any]:
        return {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr}

    def http_error(self, status: int, text: str) -> Exception:
        return werkzeug_exceptions.default_exceptions[status](text)

    def told(self, answer: Answer) -> str:
        text = re.search(r"<p>(.*?)</p>", answer.body.decode(), re.DOTALL)
        assert text is not None
        return html.unescape(text[1])


WEBS: dict[str, type[Web]] = {web.name: web for web in (Starlette, FastAPI, Flask, Wsgi)}
# What a release cannot do without the middleware it refuses; see the last test of test_fastapi.py.
if fastapi_integration._ENDS_IN_TIME:
    WEBS[FastAPIAlone.name] = FastAPIAlone


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each web door, through each of the doors that fit it."""
    marks = list(metafunc.definition.iter_markers("webs"))
    pairs = [
        pytest.param(web, kind, id=f"{web.name}-{kind.name}", marks=door_marks(kind))
        for web in WEBS.values()
        for kind in chosen_doors(metafunc)
        if kind.colour == web.colour and all(web.name in mark.args for mark in marks)
    ]
    metafunc.parametrize(("web", "doors"), pairs, indirect=True)


def _reply(reply: Reply | str) -> Reply:
    return Reply(reply) if isinstance(reply, str) else reply


def _response(reply: Reply | str) -> responses.Response:
    reply = _reply(reply)
    if reply.parts is not None:
        return responses.StreamingResponse(reply.parts, reply.status, reply.headers)
    later = None if reply.background is None else background.BackgroundTask(reply.background)
    return responses.PlainTextResponse(reply.text, reply.status, reply.headers, background=later)


def _handler(handler: Handler, awaits: bool) -> Callable[..., Any]:
    """Return an error handler of Starlette's."""

    async def awaiting(request: Any, error: Exception) -> responses.Response:
        return _response(handler(error))

    def in_thread(request: Any, error: Exception) -> responses.Response:
        return _response(handler(error))

    return awaiting if awaits else in_thread


def _sync(parts: AsyncIterator[str]) -> Iterator[str]:
    end = object()

    async def following() -> Any:
        return await anext(parts, end)

    while (part := drive(following())) is not end:
        yield part
