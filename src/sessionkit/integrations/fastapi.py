"""Sessions for FastAPI's endpoints, committed before the response leaves.

::

    app = FastAPI()
    install(app)
    SessionDep = Annotated[AsyncSession, SessionDepends(Session)]


    @app.post("/users", status_code=201)
    async def add_user(name: str, session: SessionDep):
        session.add(User(name=name))

An endpoint that asks for it is inside the session's scope, so ``current_session(Session)``, functions decorated with
``@Session.scope`` and a scoped session of the factory take part in its transaction.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of the dependency.

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import fastapi
from fastapi import Depends, FastAPI, Request, Response
from fastapi.requests import HTTPConnection

from .._spi import as_retry
from ..errors import OptionError, ScopeError
from ..retry import Retry
from ..scope import session_scope
from ._async_turn import AsyncTurn
from ._idempotency import METHODS, WAIT, Replayed
from ._web import CONFLICT, IDEMPOTENT, PRECONDITION_FAILED, TRY_AGAIN, RollbackOn, Rules, of_request, on_error_status
from .asgi import EXCHANGE, Exchange, SessionKitMiddleware, request_of

if TYPE_CHECKING:
    from typing import Unpack

    from .._spi import Options
    from ._web import AsyncFactory, SyncFactory

__all__ = ["SessionDepends", "install"]

_FUNCTION_SCOPE = "scope" in inspect.signature(Depends).parameters
"""Whether a dependency can ask to end before the response leaves."""

_RELEASE = tuple(int(part) for part in re.findall(r"\d+", fastapi.__version__)[:3])

_ENDS_IN_TIME = _RELEASE >= (0, 121, 1) or _RELEASE < (0, 118)
"""Whether every dependency then does. 0.118 to 0.120 end all of them too late, 0.121.0 those of a router or application."""


def SessionDepends(factory: "SyncFactory | AsyncFactory", **options: "Unpack[Options]") -> Any:  # noqa: N802 - as FastAPI's Depends
    """Return a dependency: a session whose transaction ends before the response leaves.

    Use ``Annotated[AsyncSession, SessionDepends(Session)]`` as the type of an endpoint's parameter. Each request has one
    session per such dependency, shared by the endpoint and its dependencies. Both may be ``async def`` or ``def``; in ``def``
    functions use the session of a ``sessionmaker``. For an ambient session in all endpoints of a router or an application:
    ``dependencies=[SessionDepends(Session)]``.

    - An exception was raised in the endpoint or in a dependency, handled or not, or the status is one to roll back:
      ROLLBACK. COMMIT fails: the application's exception handlers answer.
    - After `install`, the transaction ends when the response begins. Without `install`, it ends with the endpoint, and only a
      status that the endpoint has set on FastAPI's ``Response`` counts: raise an ``HTTPException`` instead of returning an
      error.
    - A dependency with ``yield`` that uses the session needs ``scope="function"``, or ``return`` instead of ``yield``:
      otherwise FastAPI ends it after the response, and so after the session.

    Args:
        factory: an ``async_sessionmaker`` or ``sessionmaker``, or a scoped session.
        options: the options of `session_scope` except `propagation`, such as ``read_only=True``, ``isolation="SERIALIZABLE"``
            or ``manual_commit="savepoint"``. A function of `settings` or `role` that takes one argument gets the request, a
            Starlette ``HTTPConnection`` with headers, cookies and path parameters. With `retry`, requests to endpoints that
            use this session may run again, whatever their method and the settings of `install`; it needs `install`.

    Raises:
        ScopeError: `factory` is not a session factory. At a request: the connection is a websocket, or this release of
            FastAPI ends dependencies after the response and `install` was not called.
        OptionError: an option has a value that cannot be honoured. At a request: `retry` without `install`, or two sessions
            of the request with different `retry`.

    SQL: ``BEGIN`` with the first statement, and ``COMMIT`` or ``ROLLBACK``.
    """
    if "propagation" in options:
        raise OptionError(
            "propagation= was given to SessionDepends, but a request's session always has its own transaction; leave "
            "it out"
        )
    session_scope(factory, **of_request(options, lambda: None))  # checks them now
    dependency = _RequestSession(factory, options)
    # Passed by keyword, because older releases neither have nor type this parameter.
    scoped: dict[str, Any] = {"scope": "function"} if _FUNCTION_SCOPE else {}
    return Depends(dependency, **scoped)


class _RequestSession:
    """The dependency. FastAPI calls equal dependencies once per request."""

    def __init__(self, factory: Any, options: "Options") -> None:
        self._factory = factory
        self._options = options
        retry = options.get("retry")
        self._retry = None if retry is None else as_retry(retry, "SessionDepends")
        self._identity = (factory, frozenset((name, _hashable(value)) for name, value in options.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RequestSession) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    # An async generator runs in the endpoint's task, and so in its context; a sync one would run in the context of a thread.
    async def __call__(self, connection: HTTPConnection, response: Response) -> AsyncIterator[Any]:
        if connection.scope["type"] != "http":
            raise ScopeError(
                "a websocket asked SessionDepends for a session, but it has no response to commit before; open a "
                "scope for each message instead: `async with Session.scope() as session`"
            )
        exchange: Exchange | None = connection.scope.get(EXCHANGE)
        turn = self._own_turn(connection) if exchange is None else exchange.turn
        if self._retry is not None:
            turn.request.ask(self._retry)
        session = await turn.enter(self._factory, of_request(self._options, lambda: connection))
        if turn.replayed:
            raise Replayed
        try:
            yield session
        except BaseException as error:
            turn.failed(error)
            if exchange is None:
                await turn.give_up(error)
            raise
        if exchange is None:
            await turn.end(response.status_code or 200)

    def _own_turn(self, connection: HTTPConnection) -> AsyncTurn:
        if self._retry is not None:
            raise OptionError(
                "retry= was given to SessionDepends, but a dependency cannot run its endpoint again; call "
                "install(app) too"
            )
        if not _ENDS_IN_TIME:
            raise ScopeError(
                f"FastAPI {fastapi.__version__} ends dependencies after the response has left, which is too late for a "
                "COMMIT; call install(app), or use FastAPI 0.121.1 or newer"
            )
        return AsyncTurn(request_of(_ALONE, connection.scope), connection.scope)


def _hashable(value: Any) -> Any:
    return frozenset(value.items()) if isinstance(value, Mapping) else value


_ALONE = Rules((), on_error_status, None, IDEMPOTENT)


def install(
    app: FastAPI,
    *,
    rollback_on: RollbackOn = on_error_status,
    retry: Retry | int | None = None,
    retry_methods: Iterable[str] = IDEMPOTENT,
    idempotency_header: str | None = None,
    idempotency_methods: Iterable[str] = METHODS,
    idempotency_wait: float = WAIT,
    idempotency_ttl: float | None = None,
    idempotency_caller: Callable[[Request], str | None] | None = None,
) -> None:
    """Commit the sessions of `SessionDepends` when a response begins, and answer conflicts with a suitable status.

    It adds a `SessionKitMiddleware` without a factory, nearest to the endpoints, which sees the status of every response and
    can run requests again. It also answers errors that the application's exception handlers leave: a version conflict with
    409, or 412 if the request had an If-Match; a malformed If-Match with 400; a temporary problem with 503 and Retry-After.
    The OpenAPI document lists 409 and 503 for operations that change something, and 412 for those that take an If-Match,
    unless they describe these themselves.

    Args:
        app: the application, before it has served a request.
        rollback_on: returns whether to roll back for a status; default: from 400 on. An exception always rolls back.
        retry: run a request again after errors where this can help: a `Retry`, or a number of attempts. The endpoint and its
            dependencies run again. Default: None.
        retry_methods: the methods of requests that may run again; default: the idempotent ones.
        idempotency_header: the name of a header, such as ``"Idempotency-Key"``. A request with it is served once: its response
            is stored in the request's transaction, and a client that repeats the request gets it again. Status, body, and
            most headers are stored, but not those of the connection and the session, such as Set-Cookie. Another request
            with the same key gets a 422. One that is still being served after `idempotency_wait` gets a 409 with
            Retry-After. What rolls back is not stored, and streams are refused. Needs the table of `commits.create_table`.
            It covers endpoints that ask for a session that writes.
        idempotency_methods: the methods whose requests are stored; default: POST.
        idempotency_wait: the longest wait for a request with the same key, in seconds.
        idempotency_ttl: how long responses are kept, in seconds; default: 7 days.
        idempotency_caller: required with `idempotency_header`: a function of the request that says who sends it. It
            returns a string, so that no client reads the response to another client's request, or None for a request that is
            served without its key.

    Raises:
        OptionError: an argument has the wrong type or value.
        RuntimeError: raised by Starlette: the application has already served a request.
    """
    options: dict[str, Any] = {"rollback_on": rollback_on, "retry": retry, "retry_methods": retry_methods}
    options |= {
        "idempotency_header": idempotency_header,
        "idempotency_methods": idempotency_methods,
        "idempotency_wait": idempotency_wait,
        "idempotency_ttl": idempotency_ttl,
        "idempotency_caller": _of_request(idempotency_caller),
    }
    SessionKitMiddleware(
        app, [], **options
    )  # Starlette creates the middleware at the first request; this checks the options now
    app.add_middleware(SessionKitMiddleware, factory=[], **options)
    # Middleware that was added before would otherwise be between it and the endpoints.
    app.user_middleware.append(app.user_middleware.pop(0))
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        _describe(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _of_request(caller: Any) -> Any:
    """Return a function of a connection scope in which FastAPI's request is."""
    if not callable(caller) or inspect.iscoroutinefunction(caller):
        return caller  # refused there
    return lambda scope: caller(Request(scope))


def _describe(schema: dict[str, Any]) -> None:
    detail = {"type": "object", "properties": {"detail": {"type": "string"}}}
    content = {"application/json": {"schema": detail}}
    for item in schema.get("paths", {}).values():
        for method in ("post", "put", "patch", "delete"):
            operation = item.get(method)
            if operation is None:
                continue
            headers = {p.get("name", "").lower() for p in operation.get("parameters", ()) if p.get("in") == "header"}
            answers = [CONFLICT, TRY_AGAIN, *([PRECONDITION_FAILED] if "if-match" in headers else [])]
            for answer in answers:
                operation["responses"].setdefault(
                    str(answer.status), {"description": f"{answer.reason}: {answer.text}", "content": content}
                )
