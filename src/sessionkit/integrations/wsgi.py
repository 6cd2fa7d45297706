"""One session per request for any WSGI application, committed before the response leaves.

::

    application = SessionKitMiddleware(application, Session)

Inside a request ``current_session(Session)``, functions decorated with ``@Session.scope`` and a scoped session of the factory
share one session and one transaction. For Flask there is an extension that can do more: see ``flask``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import responses
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import ScopeError
from ..retry import Retry
from ._idempotency import (
    LONGEST_KEPT,
    METHODS,
    NO_LENGTH,
    STREAM,
    TOO_LARGE,
    WAIT,
    Answer,
    KeyRefused,
    Stored,
    idempotency_of,
    length_of,
    stored,
)
from ._web import (
    IDEMPOTENT,
    LONGEST_BODY,
    RequestUnit,
    RollbackOn,
    SyncTurn,
    on_error_status,
    rules,
)

if TYPE_CHECKING:
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from .._spi import ManualCommit, Role, Settings
    from ._web import NoRollbackFor, SyncFactory

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

__all__ = ["SessionKitMiddleware"]


class SessionKitMiddleware:
    """Give each request its own session, and commit it before the response leaves.

    The transaction ends when the application has returned its response, or has produced the first part of a streamed one,
    before the server gets any of it. Code that streams the rest opens its own scope.

    - The application raised an exception, or the status is one to roll back: ROLLBACK.
    - COMMIT fails: nothing of the response leaves. A version conflict gets 409, or 412 if the request had an If-Match. A
      temporary problem (a serialization failure, a deadlock, a lost connection) gets 503 and Retry-After. The same holds if
      the application raises these errors. Any other error is raised to the server, which answers 500.

    Args:
        app: the WSGI application.
        factory: a ``sessionmaker`` or scoped session, or a list or tuple of these. Several commit one after the other in that
            order; for databases that must commit together, use one factory with ``twophase=True``.
        rollback_on: returns whether to roll back for a status; default: from 400 on.
        retry: run a request again after errors where this can help: a `Retry`, or a number of attempts. The whole application
            is called again, but only if nothing of a response has left. Default: None.
        retry_methods: the methods of requests that may run again; default: the idempotent ones.
        manual_commit: ``"savepoint"`` lets the application call ``session.commit()`` and ``rollback()`` itself, as in
            `session_scope`; default: the factory's setting.
        no_rollback_for: an exception class, or a tuple of them, that does not prevent the commit, as in `session_scope`;
            default: the factory's setting.
        settings, role: the settings and the role of a request's transactions, as in `session_scope`, put over the factory's.
            A function that takes one argument gets the WSGI environment of the request.
        idempotency_header: the name of a header, such as ``"Idempotency-Key"``. A request with it is served once: its response
            is stored in the request's transaction, and a client that repeats the request gets it again. Status, body, and
            most headers are stored, but not those of the connection and the session, such as Set-Cookie. Another request
            with the same key gets a 422. One that is still being served after `idempotency_wait` gets a 409 with
            Retry-After. What rolls back is not stored, and streams are refused. Needs the table of `commits.create_table`.
        idempotency_methods: the methods whose requests are stored; default: POST.
        idempotency_wait: the longest wait for a request with the same key, in seconds.
        idempotency_ttl: how long responses are kept, in seconds; default: 7 days.
        idempotency_caller: required with `idempotency_header`: a function of the environment that says who sends it. It
            returns a string, so that no client reads the response to another client's request, or None for a request that is
            served without its key.

    Raises:
        ScopeError, SyncAsyncMismatch, OptionError: an argument has the wrong type or value.

    SQL: ``BEGIN`` with the first statement, and ``COMMIT`` or ``ROLLBACK``. A request that uses no session sends
    nothing and takes no connection.
    """

    def __init__(
        self,
        app: WSGIApplication,
        factory: SyncFactory | Sequence[SyncFactory],
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
        idempotency_caller: Callable[[WSGIEnvironment], str | None] | None = None,
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
            asynchronous=False,
            idempotency=idempotency_of(
                "SessionKitMiddleware",
                idempotency_header,
                idempotency_methods,
                idempotency_wait,
                idempotency_ttl,
                idempotency_caller,
            ),
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request."""
        request = request_of(self._rules, environ)
        try:
            take_key(request, environ, lambda: environ)
        except KeyRefused as refused:
            return send_answer(refused.answer, environ, start_response)
        replay = Replay(environ) if request.retried else None
        request.replayable = replay is None or replay.possible
        while True:
            exchange = _Exchange(SyncTurn(request, lambda: environ), environ, start_response)
            body = exchange.run(self.app)
            if body is not None:
                return body
            assert replay is not None
            exchange.turn.pause()
            replay.rewind()


def request_of(given: Any, environ: WSGIEnvironment) -> RequestUnit:
    """Return the request that an environment describes."""
    return RequestUnit(
        given, environ.get("REQUEST_METHOD", "GET"), environ.get("PATH_INFO", ""), "HTTP_IF_MATCH" in environ
    )


def take_key(request: RequestUnit, environ: WSGIEnvironment, seen: Callable[[], Any]) -> None:
    """Find out under which key the response to a request is stored, if it has one; read its body for that.

    Raises:
        KeyRefused: the request cannot be served with its key.
    """
    given = request.rules.idempotency
    if given is None or request.method not in given.methods:
        return
    value = environ.get("HTTP_" + given.header.upper().replace("-", "_"))
    key = given.key_of([] if value is None else [value], seen)
    if key is not None:
        target = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}?{environ.get('QUERY_STRING', '')}"
        request.key = given.once(key, request.method, target, _whole_body(environ))


def _whole_body(environ: WSGIEnvironment) -> bytes:
    length, stream = environ.get("CONTENT_LENGTH") or "", environ["wsgi.input"]
    if "HTTP_TRANSFER_ENCODING" in environ or not length.isdigit():
        if "HTTP_TRANSFER_ENCODING" not in environ and not length:
            return b""
        if not environ.get("wsgi.input_terminated"):
            raise KeyRefused(NO_LENGTH)
        body: bytes = stream.read(LONGEST_KEPT + 1)
    else:
        if int(length) > LONGEST_KEPT:
            raise KeyRefused(TOO_LARGE)
        body = stream.read(int(length))
    if len(body) > LONGEST_KEPT:
        raise KeyRefused(TOO_LARGE)
    environ["wsgi.input"] = BytesIO(body)
    return body


class Replay:
    """What a request needs to run again: its original environment, and its body, which the first run consumes."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self._body = b""
        length = environ.get("CONTENT_LENGTH") or "0"
        # A body that is too long or has no length is not kept, and can be read only once.
        self.possible = length.isdigit() and int(length) <= LONGEST_BODY and "HTTP_TRANSFER_ENCODING" not in environ
        if self.possible:
            if int(length):
                self._body = environ["wsgi.input"].read(int(length))
            environ["wsgi.input"] = BytesIO(self._body)
            self._before = dict(environ)

    def rewind(self) -> None:
        """Restore the environment: the same object, because servers and other middleware may hold it too."""
        self._environ.clear()
        self._environ.update(self._before, **{"wsgi.input": BytesIO(self._body)})


class _Exchange:
    """One turn of a request, and its response, held back until the turn has ended."""

    def __init__(self, turn: SyncTurn, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.turn = turn
        self._environ = environ
        self._start_response = start_response
        self._held: tuple[str, list[tuple[str, str]], ExcInfo | None] | None = None
        self._write: Callable[[bytes], object] | None = None

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Hold back the start of a response; it may be replaced until it is passed on."""
        self._held = (status, headers, exc_info)
        if self.turn.over:
            self._let_through()
        return self._early

    def _early(self, data: bytes) -> None:
        """Pass on a response of an application that writes before it returns."""
        if self._held is not None and self.turn.holds_back(int(self._held[0][:3])):
            raise ScopeError(STREAM)
        if self._write is None:
            self._end()
        assert self._write is not None
        self._write(data)

    def _end(self) -> None:
        assert self._held is not None
        self.turn.end(int(self._held[0][:3]))
        self._let_through()

    def _let_through(self) -> None:
        assert self._held is not None
        status, headers, exc_info = self._held
        try:
            write = self._start_response(status, headers, *(() if exc_info is None else (exc_info,)))
        finally:
            self._held = (status, headers, None)  # drops the exception, which would keep objects alive
        self._write = write

    def run(self, app: WSGIApplication) -> Iterable[bytes] | None:
        """Return the body of the response; None if the request must run again."""
        body: Iterable[bytes] | None = None
        try:
            self.turn.enter()
            if self.turn.replayed:
                return self._replay()
            body = app(self._environ, self.start_response)
            if self._held is None:
                # The application is a generator, and starts its response with its first part.
                body = _Begun(body)
            if self._write is None and self._held is not None:
                if self.turn.holds_back(int(self._held[0][:3])):
                    body = self._kept(body)
                self._end()
            self.turn.give_up(None)  # there was no response
        except BaseException as error:
            close = getattr(body, "close", None)
            if close is not None:
                close()
            self.turn.give_up(error)
            if self._write is not None or not isinstance(error, Exception):
                raise
            if self.turn.again(error):
                return None
            answer = self.turn.answer(error)
            if answer is None:
                raise
            return send_answer(answer, self._environ, self._start_response)
        return body

    def _kept(self, body: Iterable[bytes]) -> list[bytes]:
        """Store the whole response when the turn ends, and return its body.

        Raises:
            ScopeError: the response is a stream.
        """
        assert self._held is not None
        status, headers, _ = self._held
        if not hasattr(body, "__len__") and "content-length" not in {name.lower() for name, _ in headers}:
            raise ScopeError(STREAM)
        whole = b"".join(body)
        close = getattr(body, "close", None)
        if close is not None:
            close()
        self.turn.keep(stored(int(status[:3]), headers, whole))
        return [whole]

    def _replay(self) -> list[bytes]:
        response: Stored = self.turn.claim.answer()
        self.turn.end(response.status)
        return replayed(response, self._start_response)


def send_answer(answer: Answer, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Send an answer as plain text."""
    text = answer.text.encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **answer.headers}
    start_response(f"{answer.status} {answer.reason}", list(headers.items()))
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [text]


def replayed(response: Stored, start_response: StartResponse) -> list[bytes]:
    """Send a stored response again."""
    reason = responses.get(response.status, "")
    start_response(f"{response.status} {reason}", [*response.headers, *length_of(response)])
    return [response.body]


class _Begun:
    """The body of a response whose first part was produced in advance."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        rest = iter(body)
        try:
            first = list(_first(rest))
        except BaseException:
            self.close()
            raise
        self._parts = chain(first, rest)

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        """Tell the application that the rest is not needed."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def _first(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part
        return
