"""One session per request for any WSGI application, committed before the response leaves.

::

    application = SessionKitMiddleware(application, Session)

Inside a request ``current_session(Session)``, functions decorated with ``@Session.scope`` and a scoped session of the
factory share one session and one transaction. Flask has an extension of its own, which can do more: see ``flask``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..retry import Retry
from ._web import (
    IDEMPOTENT,
    LONGEST_BODY,
    Answer,
    RequestUnit,
    RollbackOn,
    SyncTurn,
    on_error_status,
    rules,
)

if TYPE_CHECKING:
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from .._spi import ManualCommit
    from ._web import NoRollbackFor, SyncFactory

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

__all__ = ["SessionKitMiddleware"]


class SessionKitMiddleware:
    """Give each request a session of its own, and commit it before the response leaves.

    The transaction ends when the application has returned its response, or has produced the first part of a streamed
    one, and before any of it is handed to the server. What streams afterwards opens a scope of its own.

    - The application raised an exception, or the status is one to roll back: ROLLBACK.
    - COMMIT fails: none of the response leaves. A version conflict is answered with 409, or 412 where the request
      had an If-Match; what another moment would cure (a serialization failure, a deadlock, a connection that was lost)
      with 503 and Retry-After. So are these errors where the application raises them. Any other is raised to the server,
      which answers 500.

    Args:
        app: the WSGI application.
        factory: a ``sessionmaker`` or scoped session, or several of them in a list or tuple. Several commit one after
            the other in that order; for databases that commit as one, use one factory with ``twophase=True``.
        rollback_on: tells of a status whether to roll back; default: from 400 on.
        retry: run a request again after errors for which that can help: a `Retry`, or a number of attempts. The
            whole application is called again, and only if nothing of a response has left. Default: None.
        retry_methods: the methods of requests that are run again; default: the idempotent ones.
        manual_commit: ``"savepoint"``: the application may call ``session.commit()`` and ``rollback()`` by hand, as in
            `session_scope`; default: what the factory says.
        no_rollback_for: a class of exceptions, or a tuple of them, that do not keep the request from being committed, as
            in `session_scope`; default: what the factory says.

    Raises:
        ScopeError, SyncAsyncMismatch, OptionError: an argument is not of its kind.

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
            asynchronous=False,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request."""
        request = request_of(self._rules, environ)
        replay = Replay(environ) if request.retried else None
        request.replayable = replay is None or replay.possible
        while True:
            exchange = _Exchange(SyncTurn(request), environ, start_response)
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


class Replay:
    """What a request is run again with: its environment as it was, and its body, which the first run consumes."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self._body = b""
        length = environ.get("CONTENT_LENGTH") or "0"
        # A body without a length, or too long a one, is left to be streamed: it can be read once.
        self.possible = length.isdigit() and int(length) <= LONGEST_BODY and "HTTP_TRANSFER_ENCODING" not in environ
        if self.possible:
            if int(length):
                self._body = environ["wsgi.input"].read(int(length))
            environ["wsgi.input"] = BytesIO(self._body)
            self._before = dict(environ)

    def rewind(self) -> None:
        """Bring the environment back; the same object, which servers and other middleware may hold as well."""
        self._environ.clear()
        self._environ.update(self._before, **{"wsgi.input": BytesIO(self._body)})


class _Exchange:
    """One turn of a request, and the response that is held back until the turn has ended."""

    def __init__(self, turn: SyncTurn, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.turn = turn
        self._environ = environ
        self._start_response = start_response
        self._held: tuple[str, list[tuple[str, str]], ExcInfo | None] | None = None
        self._write: Callable[[bytes], object] | None = None

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Hold the beginning of a response back; it may be replaced until it is let through."""
        self._held = (status, headers, exc_info)
        if self.turn.over:
            self._let_through()
        return self._early

    def _early(self, data: bytes) -> None:
        """Let a response through whose application writes before it returns."""
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
            self._held = (status, headers, None)  # of what an exception holds alive
        self._write = write

    def run(self, app: WSGIApplication) -> Iterable[bytes] | None:
        """Return the body of the response; None if the request is to be run again."""
        body: Iterable[bytes] | None = None
        try:
            self.turn.enter()
            body = app(self._environ, self.start_response)
            if self._held is None:
                # The application is a generator, which starts its response with its first part.
                body = _Begun(body)
            if self._write is None and self._held is not None:
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
            return self._say(answer)
        return body

    def _say(self, answer: Answer) -> list[bytes]:
        text = answer.text.encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **answer.headers}
        self._start_response(f"{answer.status} {answer.reason}", list(headers.items()))
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [text]


class _Begun:
    """The body of a response whose first part had to be produced before the rest may be asked for."""

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
        """Tell the application that nobody wants the rest."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def _first(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part
        return
