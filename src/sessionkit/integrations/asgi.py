"""One session per request for any ASGI application, committed before the response leaves.

::

    app.add_middleware(SessionKitMiddleware, factory=Session)

Inside a request ``current_session(Session)``, functions decorated with ``@Session.scope`` and a scoped session of the factory
share one session and one transaction. FastAPI also has typed dependencies: see ``fastapi``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ScopeError
from ..retry import Retry
from ._async_turn import AsyncTurn
from ._idempotency import (
    LONGEST_KEPT,
    METHODS,
    STREAM,
    TOO_LARGE,
    WAIT,
    Answer,
    KeyRefused,
    Replayed,
    Stored,
    idempotency_of,
    length_of,
    stored,
)
from ._web import IDEMPOTENT, LONGEST_BODY, RequestUnit, RollbackOn, Rules, on_error_status, rules

if TYPE_CHECKING:
    from .._spi import ManualCommit, Role, Settings
    from ._web import AsyncFactory, NoRollbackFor, SyncFactory

__all__ = ["SessionKitMiddleware"]

Connection = MutableMapping[str, Any]
"""What ASGI calls a scope. Here that word has another meaning."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Connection, Receive, Send], Awaitable[None]]

EXCHANGE = "sessionkit.exchange"
"""Key in the scope of a connection: the exchange in which its dependencies open their scopes."""


class SessionKitMiddleware:
    """Give each HTTP request its own session, and commit it before the response leaves.

    The transaction ends when the application sends ``http.response.start``, before that message is passed on. Code that
    streams the body, and background tasks, open their own scopes. Websockets and lifespans have no session: open a scope for
    each message.

    - The application raised an exception, or the status is one to roll back, or there is no response: ROLLBACK. The
      middleware sees only the status of an exception that was handled inside: a handler that answers with a success status
      calls ``set_rollback_only()`` to roll back.
    - COMMIT fails: nothing of the response leaves, and the application's error handling answers. If it does not handle the
      error, the middleware answers. A version conflict gets 409, or 412 if the request had an If-Match. A malformed If-Match
      gets 400. A temporary problem (a serialization failure, a deadlock, a lost connection) gets 503 and Retry-After.

    Place it inside the framework's error handling, nearest to the endpoints: with Starlette and FastAPI, add it before any
    other middleware. A middleware between it and the endpoint that runs the endpoint in another task, as Starlette's
    ``BaseHTTPMiddleware`` does, hides the ambient session from the endpoint.

    Args:
        app: the ASGI application.
        factory: an ``async_sessionmaker`` or ``sessionmaker``, a scoped session, or a list or tuple of these, which commit
            one after the other in that order. The COMMIT of a sync session runs in a thread.
        rollback_on: returns whether to roll back for a status; default: from 400 on.
        retry: run a request again after errors where this can help: a `Retry`, or a number of attempts. The whole application
            is called again, but only if nothing of a response has left. Default: None.
        retry_methods: the methods of requests that may run again; default: the idempotent ones.
        manual_commit: ``"savepoint"`` lets the application call ``session.commit()`` and ``rollback()`` itself, as in
            `session_scope`; default: the factory's setting.
        no_rollback_for: an exception class, or a tuple of them, that does not prevent the commit, as in `session_scope`;
            default: the factory's setting. The middleware does not see an exception that was handled inside.
        settings, role: the settings and the role of a request's transactions, as in `session_scope`, put over the factory's.
            A function that takes one argument gets the ASGI scope of the request, a dict.
        idempotency_header: the name of a header, such as ``"Idempotency-Key"``. A request with it is served once: its response
            is stored in the request's transaction, and a client that repeats the request gets it again. Status, body, and
            most headers are stored, but not those of the connection and the session, such as Set-Cookie. Another request
            with the same key gets a 422. One that is still being served after `idempotency_wait` gets a 409 with
            Retry-After. What rolls back is not stored, and streams are refused. Needs the table of `commits.create_table`.
        idempotency_methods: the methods whose requests are stored; default: POST.
        idempotency_wait: the longest wait for a request with the same key, in seconds.
        idempotency_ttl: how long responses are kept, in seconds; default: 7 days.
        idempotency_caller: required with `idempotency_header`: a function of the connection scope that says who sends it. It
            returns a string, so that no client reads the response to another client's request, or None for a request that is
            served without its key.

    Raises:
        ScopeError, OptionError: an argument has the wrong type or value.

    SQL: ``BEGIN`` with the first statement, and ``COMMIT`` or ``ROLLBACK``. A request that uses no session sends
    nothing and takes no connection.
    """

    def __init__(
        self,
        app: App,
        factory: SyncFactory | AsyncFactory | Sequence[SyncFactory | AsyncFactory],
        *,
        rollback_on: RollbackOn = on_error_status,
        retry: Retry | int | None = None,
        retry_methods: Iterable[str] = IDEMPOTENT,
        manual_commit: ManualCommit | None = None,
        no_rollback_for: NoRollbackFor | None = None,
        settings: Settings | None = None,
        role: Role = None,
        idempotency_header: str | None = None,
        idempotency_methods: Iterable[str] = METHODS,
        idempotency_wait: float = WAIT,
        idempotency_ttl: float | None = None,
        idempotency_caller: Callable[[Connection], str | None] | None = None,
    ) -> None:
        factories: Sequence[Any] = factory if isinstance(factory, Sequence) else [factory]
        self.app = app
        self._rules = rules(
            "SessionKitMiddleware",
            factories,
            rollback_on,
            retry,
            retry_methods,
            manual_commit,
            no_rollback_for,
            settings,
            role,
            asynchronous=True,
            idempotency=idempotency_of(
                "SessionKitMiddleware",
                idempotency_header,
                idempotency_methods,
                idempotency_wait,
                idempotency_ttl,
                idempotency_caller,
            ),
        )

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = request_of(self._rules, scope)
        body = _Body(receive, request)
        before = _copied(scope)
        while True:
            exchange = Exchange(AsyncTurn(request, scope), body, send)
            if await exchange.run(self.app):
                return
            await exchange.turn.pause()
            body.rewind()
            scope.clear()
            scope.update(_copied(before))


def request_of(given: Rules, scope: Connection) -> RequestUnit:
    """Return the request of a connection."""
    names = {bytes(name).lower() for name, _ in scope.get("headers", ())}
    return RequestUnit(given, str(scope["method"]), str(scope["path"]), b"if-match" in names)


def _copied(scope: Connection) -> Connection:
    copied = dict(scope)
    if isinstance(state := copied.get("state"), dict):
        copied["state"] = dict(state)
    return copied


class _Body:
    """The body of a request, kept as long as the request may run again."""

    def __init__(self, receive: Receive, request: RequestUnit) -> None:
        self._receive = receive
        self._request = request
        self._kept: list[Message] = []
        self._size = 0
        self._replayed = 0

    async def receive(self) -> Message:
        """Return the next message, starting with those of an earlier run."""
        if self._replayed < len(self._kept):
            self._replayed += 1
            return self._kept[self._replayed - 1]
        message = await self._receive()
        if message["type"] == "http.request" and self._request.replayable:
            self._size += len(message.get("body", b""))
            if self._size <= LONGEST_BODY:
                self._kept.append(message)
                self._replayed += 1
            else:
                self.let_go()
        return message

    async def whole(self) -> bytes:
        """Read the body to its end, and return it; the application gets it all the same.

        Raises:
            KeyRefused: it is too long.
            Replayed: the client is gone, so there is nothing to serve.
        """
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Replayed
            self._kept.append(message)
            part = message.get("body", b"")
            parts.append(part)
            self._size += len(part)
            if self._size > LONGEST_BODY:
                self._request.replayable = False
            if self._size > LONGEST_KEPT:
                raise KeyRefused(TOO_LARGE)
            if not message.get("more_body", False):
                return b"".join(parts)

    def rewind(self) -> None:
        """Start again from the first message."""
        self._replayed = 0

    def let_go(self) -> None:
        """Stop keeping messages: the request will not run again."""
        self._request.replayable = False
        self._kept, self._replayed = self._kept[self._replayed :], 0


class Exchange:
    """One turn of a request, and its response, which waits for the end of the turn."""

    def __init__(self, turn: AsyncTurn, body: _Body, send: Send) -> None:
        self.turn = turn
        self.body = body
        self._send = send
        self._started = False  # the start of a response has been passed on
        self._entered = False  # the application was called
        self._again = False  # the response is dropped, because the request runs again
        self._held: Message | None = None  # the start of a response that will be stored
        self._parts: list[bytes] = []
        # In a Starlette-like application, the handlers that turn an error into a response.
        self._app = turn.connection.get("app")

    async def run(self, app: App) -> bool:
        """Let the application answer; return False if the request must run again."""
        turn, connection = self.turn, self.turn.connection
        outer = connection.get(EXCHANGE)
        connection[EXCHANGE] = self
        try:
            await self._serve(app)
        except BaseException as error:  # noqa: BLE001 - _failed raises it, unless it answers it
            return await self._failed(error)
        finally:
            connection[EXCHANGE] = outer
        if self._started or self._again:
            return not self._again
        if turn.replayed:
            return await self._failed(Replayed())
        if isinstance(turn.failure, Exception):  # the application noticed it, but sent no response
            return await self._failed(turn.failure)
        await turn.give_up(None)  # there was no response
        return True

    async def _serve(self, app: App) -> None:
        turn = self.turn
        await self._take_key()
        for factory in turn.request.rules.factories[::-1]:
            await turn.enter(factory, {}, turn.request.rules.options)
        if turn.replayed:
            raise Replayed
        self._entered = True
        await app(turn.connection, self.body.receive, self.send)

    async def _take_key(self) -> None:
        """Find out under which key the response is stored, if the request has one."""
        request, connection = self.turn.request, self.turn.connection
        given = request.rules.idempotency
        if given is None or request.key is not None or request.method not in given.methods:
            return
        header = given.header.lower().encode()
        values = [value.decode("latin-1") for name, value in connection["headers"] if bytes(name).lower() == header]
        key = given.key_of(values, lambda: connection)
        if key is not None:
            path = f"{connection.get('root_path', '')}{connection['path']}"
            target = f"{path}?{connection.get('query_string', b'').decode('latin-1')}"
            request.key = given.once(key, request.method, target, await self.body.whole())

    async def send(self, message: Message) -> None:
        """Pass on a message of the application; end the turn before the start of a response."""
        if self.turn.replayed:
            return  # the stored response is sent when the application has come to its end
        if self._held is None and message["type"] == "http.response.start" and self.turn.holds_back(message["status"]):
            self._held = message
            return
        if self._held is not None and not self.turn.over:
            await self._hold(self._held, message)
            return
        starts = message["type"] == "http.response.start"
        if starts and not self.turn.over:
            await self._end(message["status"])
        if self._again or (self.turn.over and not (starts or self._started)):
            return  # part of a response that was dropped
        if starts:
            self._started = True
            self.body.let_go()
        await self._send(message)

    async def _hold(self, start: Message, message: Message) -> None:
        """Hold a response back until it is whole, store it with the request's work, then pass it on."""
        more = message.get("more_body", False)
        headers = [
            (bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in start.get("headers", ())
        ]
        whole = not more or "content-length" in {name.lower() for name, _ in headers}
        if message["type"] != "http.response.body" or not whole:
            raise ScopeError(STREAM)
        self._parts.append(message.get("body", b""))
        if more:
            return
        body = b"".join(self._parts)
        if self.turn.holds_back(start["status"]):
            self.turn.keep(stored(start["status"], headers, body))
        await self._end(start["status"])
        if not self._again:
            self._started = True
            self.body.let_go()
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})

    async def _replay(self) -> None:
        """Send the stored response."""
        turn = self.turn
        turn.error = None  # the application was left on purpose
        response: Stored = turn.claim.answer()
        await turn.end(response.status)
        self._started = True
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        headers += [(name.encode(), value.encode()) for name, value in length_of(response)]
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": response.body})

    async def _end(self, status: int) -> None:
        turn = self.turn
        try:
            await turn.end(status)
        except Exception as failure:
            self._again = turn.again(failure)
            raise
        if turn.error is not None:  # a handler has handled it
            self._again = turn.again(turn.error)

    async def _failed(self, error: BaseException) -> bool:
        """Decide what to do with a request whose application raised an error."""
        turn = self.turn
        if isinstance(error, Exception) and turn.replayed and not turn.over:
            try:
                await self._replay()
            except Exception as lost:
                if self._started:
                    raise
                return await self._failed(lost)
            return True
        if not isinstance(error, Exception) or self._started:
            await turn.give_up(error)
            raise error
        if isinstance(error, Replayed):  # the client is gone
            return True
        if self._again:
            return False
        failure = turn.failure if isinstance(turn.failure, Exception) else None
        if failure is None:
            await turn.give_up(error)
            if turn.again(error):
                return False
        self.body.let_go()
        await self._answer(failure or error, failure is not None or not self._entered)
        return True

    async def _answer(self, error: BaseException, unknown: bool) -> None:
        """Answer an error on behalf of the application.

        Args:
            error: the error that the request failed with.
            unknown: the application could not handle it, because its own response had begun, or it was not
                called yet.
        """
        connection, by_the_app = self.turn.connection, _ErrorHandlers.of(self._app)
        if unknown and by_the_app is not None and await by_the_app(error, connection, self.body.receive, self.send):
            return
        if unknown and _forget_the_beginning(connection):
            raise error
        answer = self.turn.answer(error)
        if answer is None:
            raise error
        if by_the_app is not None:
            await by_the_app.say(answer, connection, self.body.receive, self.send)
        else:
            await self._send_answer(answer)

    async def _send_answer(self, answer: Answer) -> None:
        text = answer.text.encode()
        headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(text)), **answer.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": encoded})
        body = b"" if self.turn.connection["method"] == "HEAD" else text
        await self.send({"type": "http.response.body", "body": body})


def _forget_the_beginning(connection: Connection) -> bool:
    """Make Litestar handle an error raised by ``send``; return whether it will.

    Litestar marks a response as begun before it sends it, and then handles no more errors. Its error handling also surrounds
    every middleware, so it is enough to clear that mark.
    """
    state = getattr(sys.modules.get("litestar.utils.scope.state"), "ScopeState", None)
    if state is None or "litestar_app" not in connection:
        return False
    state.from_scope(connection).response_started = False
    return True


class _ErrorHandlers:
    """The error handlers of a Starlette-like application.

    When ``send`` raises, the framework believes that its response has begun, and no longer calls its handlers. This calls
    them again, through the framework's own exception middleware.
    """

    def __init__(self, handlers: Mapping[Any, Any]) -> None:
        # Handlers for these two are called elsewhere, for unhandled errors: raising the error reaches them.
        self._handlers = {kind: handler for kind, handler in handlers.items() if kind not in (500, Exception)}

    @classmethod
    def of(cls, app: object) -> _ErrorHandlers | None:
        """Return the handlers of an application, if it is Starlette-like."""
        starlette: Any = sys.modules.get("starlette.applications")
        if starlette is None or not isinstance(app, starlette.Starlette):
            return None
        of_starlettes_kind: Any = app
        return cls(of_starlettes_kind.exception_handlers)

    async def __call__(self, error: BaseException, connection: Connection, receive: Receive, send: Send) -> bool:
        """Let the application answer; return whether it did."""
        from starlette.middleware.exceptions import ExceptionMiddleware

        async def failing(connection: Connection, receive: Receive, send: Send) -> None:
            raise error

        try:
            await ExceptionMiddleware(failing, self._handlers)(connection, receive, send)
        except BaseException as raised:
            if raised is not error:
                raise
            return False
        return True

    async def say(self, answer: Answer, connection: Connection, receive: Receive, send: Send) -> None:
        """Let the application render an answer in the form of its errors."""
        from starlette.exceptions import HTTPException

        error = HTTPException(answer.status, answer.text, answer.headers)
        await self(error, connection, receive, send)
