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

# Without `from __future__ import annotations`: FastAPI reads those of the dependency.

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable
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
from ._web import CONFLICT, IDEMPOTENT, PRECONDITION_FAILED, TRY_AGAIN, RollbackOn, Rules, on_error_status
from .asgi import EXCHANGE, Exchange, SessionKitMiddleware, request_of

if TYPE_CHECKING:
    from typing import Unpack

    from .._spi import Options
    from ._web import AsyncFactory, SyncFactory

__all__ = ["SessionDepends", "install"]

_FUNCTION_SCOPE = "scope" in inspect.signature(Depends).parameters
"""Whether a dependency can be told to end before the response leaves."""

_RELEASE = tuple(int(part) for part in re.findall(r"\d+", fastapi.__version__)[:3])

_ENDS_IN_TIME = _RELEASE >= (0, 121, 1) or _RELEASE < (0, 118)
"""Whether every dependency then does. 0.118 to 0.120 end them all too late, 0.121.0 those of a router or application."""


def SessionDepends(factory: "SyncFactory | AsyncFactory", **options: "Unpack[Options]") -> Any:  # noqa: N802 - as FastAPI's Depends
    """Return a dependency: a session whose transaction ends before the response leaves.

    ``Annotated[AsyncSession, SessionDepends(Session)]`` is the type of an endpoint's parameter. Each request has one
    session for each such dependency, whoever asks for it: the endpoint, or what it depends on. Endpoints and
    dependencies may be ``async def`` or ``def``; in ``def`` ones take the session of a ``sessionmaker``. For an ambient
    session in all endpoints of a router or an application: ``dependencies=[SessionDepends(Session)]``.

    - An exception was raised in the endpoint or in a dependency, handled or not, or the status is one to roll back:
      ROLLBACK. COMMIT fails: the application's exception handlers answer.
    - After `install` the transaction ends when the response begins. Without it, it ends with the endpoint, and of a status
      only that is seen which the endpoint has set on FastAPI's ``Response``: raise an ``HTTPException`` instead of
      returning an error.
    - A dependency with ``yield`` that asks for the session needs ``scope="function"``, or ``return`` in the place of
      ``yield``: FastAPI would end it after the response, and so after the session.

    Args:
        factory: an ``async_sessionmaker`` or ``sessionmaker``, or a scoped session.
        options: those of `session_scope`, as ``read_only=True``, ``isolation="SERIALIZABLE"`` or
            ``manual_commit="savepoint"``, but for `propagation`.
            With `retry` the requests to the endpoints that ask for this session are run again, whatever their method
            and whatever `install` says of others; it needs `install`.

    Raises:
        ScopeError: `factory` is none; when a request comes: the connection is a websocket, or this release of FastAPI
            ends dependencies after the response and there was no `install`.
        OptionError: an option has a value that cannot be honoured; when a request comes: `retry` without `install`, or
            another `retry` than another session of the request has.

    SQL: ``BEGIN`` with the first statement, and ``COMMIT`` or ``ROLLBACK``.
    """
    if "propagation" in options:
        raise OptionError(
            "propagation= was given to SessionDepends; a request's session has a transaction of its own, so leave it out"
        )
    session_scope(factory, **options)  # whatever is wrong with them is to be told now
    dependency = _RequestSession(factory, options)
    # Known by keyword to the releases that have it, and not typed in those that do not.
    scoped: dict[str, Any] = {"scope": "function"} if _FUNCTION_SCOPE else {}
    return Depends(dependency, **scoped)


class _RequestSession:
    """The dependency. FastAPI calls it once for each request, if equal ones are asked for several times."""

    def __init__(self, factory: Any, options: "Options") -> None:
        self._factory = factory
        self._options = options
        retry = options.get("retry")
        self._retry = None if retry is None else as_retry(retry, "SessionDepends")
        self._identity = (factory, frozenset(options.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RequestSession) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    # In the task of the endpoint, whose context the scope is to be in; a sync generator would run in a thread's.
    async def __call__(self, connection: HTTPConnection, response: Response) -> AsyncIterator[Any]:
        if connection.scope["type"] != "http":
            raise ScopeError(
                "SessionDepends was asked for a session by a websocket, which has no response to commit before; open a "
                "scope for each message instead: `async with Session.scope() as session`"
            )
        exchange: Exchange | None = connection.scope.get(EXCHANGE)
        turn = self._own_turn(connection) if exchange is None else exchange.turn
        if self._retry is not None:
            turn.request.ask(self._retry)
        session = await turn.enter(self._factory, self._options)
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
                "retry= was given to SessionDepends, but a dependency cannot run its endpoint again; call install(app)"
            )
        if not _ENDS_IN_TIME:
            raise ScopeError(
                f"FastAPI {fastapi.__version__} ends dependencies after the response has left, which is too late for a "
                "COMMIT; call install(app), or use FastAPI 0.121.1 or newer"
            )
        return AsyncTurn(request_of(_ALONE, connection.scope), connection.scope)


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
    """Have an application commit the sessions of `SessionDepends` when its responses begin, and tell clients of conflicts.

    It adds a `SessionKitMiddleware` without a factory, nearest to the endpoints. So the status of every response is
    seen, requests can be run again, and what the application's exception handlers do not handle is answered: a version
    conflict with 409, or 412 where the request had an If-Match; a malformed If-Match with 400; what another moment
    would cure with 503 and Retry-After. The OpenAPI document tells of 409 and 503 at operations that change something,
    and of 412 at those that take an If-Match; what they say of these themselves stands.

    Args:
        app: the application, before it has served a request.
        rollback_on: tells of a status whether to roll back; default: from 400 on. An exception always rolls back.
        retry: run a request again after errors for which that can help: a `Retry`, or a number of attempts. The
            endpoint and its dependencies run again. Default: None.
        retry_methods: the methods of requests that are run again; default: the idempotent ones.
        idempotency_header: the name of a header, such as ``"Idempotency-Key"``: a request with it is served once. Its response
            is stored in the transaction of its session, and a client that repeats the request gets it again: status, body,
            and headers but for those of the connection and the session (such as Set-Cookie). Another request under the same
            key is answered with 422, one that is still being served after `idempotency_wait` with 409 and Retry-After. What
            rolls back is not stored. Streams are refused. It needs the table of `commits.create_table`, and goes to endpoints
            that ask for a session that writes.
        idempotency_methods: the methods to which that goes; default: POST.
        idempotency_wait: the longest wait for a request with the same key, in seconds.
        idempotency_ttl: how long responses are kept, in seconds; default: 7 days.
        idempotency_caller: required: a function of the request that tells who sends it. It returns a string, so that no
            client reads the response to another one's request, or None for a request that is served without its key.

    Raises:
        OptionError: an argument is not of its kind.
        RuntimeError: Starlette's: the application has served a request already.
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
    )  # Starlette makes its own with the first request; what is wrong is told now
    app.add_middleware(SessionKitMiddleware, factory=[], **options)
    # Those that were added before would stand between it and the endpoints.
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
