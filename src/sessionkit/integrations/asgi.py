"""One session per request for any ASGI application, committed before the response leaves.

::

    app.add_middleware(SessionKitMiddleware, factory=Session)

Inside a request ``current_session(Session)``, functions decorated with ``@Session.scope`` and a scoped session of the
factory share one session and one transaction. For FastAPI there are typed dependencies as well: see ``fastapi``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from ..retry import Retry
from ._async_turn import AsyncTurn
from ._web import IDEMPOTENT, LONGEST_BODY, Answer, RequestUnit, RollbackOn, Rules, on_error_status, rules

if TYPE_CHECKING:
    from .._spi import ManualCommit
    from ._web import AsyncFactory, NoRollbackFor, SyncFactory

__all__ = ["SessionKitMiddleware"]

Connection = MutableMapping[str, Any]
"""What ASGI calls a scope; the word means something else here."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Connection, Receive, Send], Awaitable[None]]

EXCHANGE = "sessionkit.exchange"
"""Where the scope of a connection has the exchange that its dependencies open their scopes in."""


class SessionKitMiddleware:
    """Give each HTTP request a session of its own, and commit it before the response leaves.

    The transaction ends when the application sends ``http.response.start``, before that is let through. What streams
    afterwards, and background tasks, open scopes of their own. Websockets and lifespans have no session: open a scope
    for each message.

    - The application raised an exception, or the status is one to roll back, or there is no response: ROLLBACK. An
      exception that was handled inside is known by its status only: a handler that answers with another one calls
      ``set_rollback_only()``.
    - COMMIT fails: none of the response leaves, and the application's error handling answers. A version conflict that it
      does not handle is answered with 409, or 412 where the request had an If-Match; a malformed If-Match with 400; what
      another moment would cure (a serialization failure, a deadlock, a connection that was lost) with 503 and
      Retry-After.

    It is to be inside the framework's error handling, and nearest to the endpoints: with Starlette and FastAPI, add it
    before any other middleware. A middleware between it and the endpoint that runs that in a task of its own, as
    Starlette's ``BaseHTTPMiddleware`` does, hides the ambient session from it.

    Args:
        app: the ASGI application.
        factory: an ``async_sessionmaker`` or ``sessionmaker``, a scoped session, or several of them in a list or tuple,
            which commit one after the other in that order. A sync session's COMMIT runs in a thread.
        rollback_on: tells of a status whether to roll back; default: from 400 on.
        retry: run a request again after errors for which that can help: a `Retry`, or a number of attempts. The
            whole application is called again, and only if nothing of a response has left. Default: None.
        retry_methods: the methods of requests that are run again; default: the idempotent ones.
        manual_commit: ``"savepoint"``: the application may call ``session.commit()`` and ``rollback()`` by hand, as in
            `session_scope`; default: what the factory says.
        no_rollback_for: a class of exceptions, or a tuple of them, that do not keep the request from being committed, as
            in `session_scope`; default: what the factory says. An exception that was handled
            inside is not seen.

    Raises:
        ScopeError, OptionError: an argument is not of its kind.

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
            asynchronous=True,
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
    """Return the request that a connection is of."""
    names = {bytes(name).lower() for name, _ in scope.get("headers", ())}
    return RequestUnit(given, str(scope["method"]), str(scope["path"]), b"if-match" in names)


def _copied(scope: Connection) -> Connection:
    copied = dict(scope)
    if isinstance(state := copied.get("state"), dict):
        copied["state"] = dict(state)
    return copied


class _Body:
    """The body of a request, kept while the request may be run again."""

    def __init__(self, receive: Receive, request: RequestUnit) -> None:
        self._receive = receive
        self._request = request
        self._kept: list[Message] = []
        self._size = 0
        self._replayed = 0

    async def receive(self) -> Message:
        """Return the next message, those of an earlier run first."""
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

    def rewind(self) -> None:
        """Begin again from the first message."""
        self._replayed = 0

    def let_go(self) -> None:
        """Keep nothing any more: the request is not run again."""
        self._request.replayable = False
        self._kept, self._replayed = self._kept[self._replayed :], 0


class Exchange:
    """One turn of a request and the response to it, whose start waits for the end of the turn."""

    def __init__(self, turn: AsyncTurn, body: _Body, send: Send) -> None:
        self.turn = turn
        self.body = body
        self._send = send
        self._started = False  # a response has been let through
        self._again = False  # it is not to be: the request is run again
        # Who knows how to turn an error into a response, where it is an application of Starlette's kind.
        self._app = turn.connection.get("app")

    async def run(self, app: App) -> bool:
        """Have the application answer; return False if the request is to be run again."""
        turn, connection = self.turn, self.turn.connection
        outer = connection.get(EXCHANGE)
        connection[EXCHANGE] = self
        try:
            for factory in turn.request.rules.factories[::-1]:
                await turn.enter(factory, {}, turn.request.rules.options)
            await app(connection, self.body.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - raised there, unless it is answered
            return await self._failed(error)
        finally:
            connection[EXCHANGE] = outer
        if self._started or self._again:
            return not self._again
        if isinstance(turn.failure, Exception):  # the application took note of it, and said nothing
            return await self._failed(turn.failure)
        await turn.give_up(None)  # there was no response
        return True

    async def send(self, message: Message) -> None:
        """Let a message of the application through; before the start of a response, end the turn."""
        starts = message["type"] == "http.response.start"
        if starts and not self.turn.over:
            await self._end(message["status"])
        if self._again or (self.turn.over and not (starts or self._started)):
            return  # it belongs to a response that has been given up
        if starts:
            self._started = True
            self.body.let_go()
        await self._send(message)

    async def _end(self, status: int) -> None:
        turn = self.turn
        try:
            await turn.end(status)
        except Exception as failure:
            self._again = turn.again(failure)
            raise
        if turn.error is not None:  # somebody has handled it
            self._again = turn.again(turn.error)

    async def _failed(self, error: BaseException) -> bool:
        """Decide what becomes of a request whose application raised an error."""
        turn = self.turn
        if not isinstance(error, Exception) or self._started:
            await turn.give_up(error)
            raise error
        if self._again:
            return False
        failure = turn.failure if isinstance(turn.failure, Exception) else None
        if failure is None:
            await turn.give_up(error)
            if turn.again(error):
                return False
        self.body.let_go()
        await self._answer(failure or error, failure is not None)
        return True

    async def _answer(self, error: BaseException, unknown: bool) -> None:
        """Answer an error for the application.

        Args:
            error: what the request has failed with.
            unknown: the application could not handle it, since its own response had begun.
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
            await self._say(answer)

    async def _say(self, answer: Answer) -> None:
        text = answer.text.encode()
        headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(text)), **answer.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": encoded})
        body = b"" if self.turn.connection["method"] == "HEAD" else text
        await self.send({"type": "http.response.body", "body": body})


def _forget_the_beginning(connection: Connection) -> bool:
    """Have Litestar handle an error that came out of ``send``; tell whether it will.

    It takes note of the beginning of a response before it sends it, and after that handles no error any more. Its error
    handling stands around every middleware too, and needs but forget.
    """
    state = getattr(sys.modules.get("litestar.utils.scope.state"), "ScopeState", None)
    if state is None or "litestar_app" not in connection:
        return False
    state.from_scope(connection).response_started = False
    return True


class _ErrorHandlers:
    """The error handlers of an application of Starlette's kind.

    An error out of ``send`` comes when the framework believes that its response has begun, so that it does not ask its
    handlers any more. They are asked again, by the framework's own middleware for that.
    """

    def __init__(self, handlers: Mapping[Any, Any]) -> None:
        # Those two are for what nobody handles, and stand elsewhere: the error reaches them when it is raised.
        self._handlers = {kind: handler for kind, handler in handlers.items() if kind not in (500, Exception)}

    @classmethod
    def of(cls, app: object) -> _ErrorHandlers | None:
        """Return those of an application, if it is of that kind."""
        starlette: Any = sys.modules.get("starlette.applications")
        if starlette is None or not isinstance(app, starlette.Starlette):
            return None
        of_starlettes_kind: Any = app
        return cls(of_starlettes_kind.exception_handlers)

    async def __call__(self, error: BaseException, connection: Connection, receive: Receive, send: Send) -> bool:
        """Have the application answer; tell whether it did."""
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
        """Have the application put an answer into the form of its errors."""
        from starlette.exceptions import HTTPException

        error = HTTPException(answer.status, answer.text, answer.headers)
        await self(error, connection, receive, send)
