"""One session per request for Flask, committed before the response leaves.

::

    kit = SessionKit(app, Session)


    @app.post("/users")
    def add_user():
        kit.session.add(User(name=request.form["name"]))
        return "", 201

Inside a request ``kit.session``, ``current_session(Session)``, functions decorated with ``@Session.scope`` and a
scoped session of the factory share one session and one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, got_request_exception, has_app_context, request
from sqlalchemy import orm
from werkzeug.exceptions import (
    BadRequest,
    Conflict,
    HTTPException,
    LengthRequired,
    PreconditionFailed,
    RequestEntityTooLarge,
    ServiceUnavailable,
    UnprocessableEntity,
)

from ..context import current_session
from ..errors import OptionError, ScopeError
from ..retry import Retry
from ._idempotency import IN_FLIGHT, METHODS, STREAM, WAIT, Answer, idempotency_of, stored
from ._web import (
    IDEMPOTENT,
    RETRY_AFTER,
    RequestUnit,
    RollbackOn,
    Rules,
    SyncTurn,
    on_error_status,
    rules,
)
from .wsgi import Replay, request_of, take_key

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from flask import Request as FlaskRequest
    from flask import Response

    from .._spi import ManualCommit, Role, Settings
    from ._idempotency import Stored
    from ._web import NoRollbackFor, SyncFactory

__all__ = ["SessionKit"]

_TURN = "sessionkit.turn"
"""Key of the turn in a request's environment: a nested request (of a test client) has its own."""


class SessionKit:
    """Give each request of a Flask application its own session, and commit it before the response leaves.

    The transaction ends after every ``after_request`` function has run, whenever it was registered, and before the server
    gets the response. Code that streams the body opens its own scope.

    - An exception was raised in the request, handled or not, or the status is one to roll back: ROLLBACK.
    - COMMIT fails: the application's error handlers answer as if the view had raised it, and the ``after_request``
      functions run for that response.
    - No error handler handles the error: a version conflict gets 409, or 412 if the request had an If-Match. A malformed
      If-Match gets 400. A temporary problem (a serialization failure, a deadlock, a lost connection) gets 503 and
      Retry-After. Error handlers for these statuses are called.

    Args:
        app: the application; without it, call `init_app`.
        factory: a ``sessionmaker`` or scoped session, or a mapping of names to them, one of which must be "default".
        rollback_on: returns whether to roll back for a status; default: from 400 on. An exception always rolls back.
        retry: run a request again after errors where this can help: a `Retry`, or a number of attempts. Everything from
            ``before_request`` on runs again, in a new request context. Default: None.
        retry_methods: the methods of requests that may run again; default: the idempotent ones.
        manual_commit: ``"savepoint"`` lets the application call ``session.commit()`` and ``rollback()`` itself, as in
            `session_scope`; default: the factory's setting.
        no_rollback_for: an exception class, or a tuple of them, that does not prevent the commit, as in `session_scope`;
            default: the factory's setting.
        settings, role: the settings and the role of a request's transactions, as in `session_scope`, put over the factory's.
            A function that takes one argument gets a Flask request whose URL is matched (``request.view_args``) and whose
            body cannot be read. The application's error handlers answer what it raises.
        idempotency_header: the name of a header, such as ``"Idempotency-Key"``. A request with it is served once: its response
            is stored in the request's transaction, and a client that repeats the request gets it again. Status, body, and
            most headers are stored, but not those of the connection and the session, such as Set-Cookie. Another request
            with the same key gets a 422. One that is still being served after `idempotency_wait` gets a 409 with
            Retry-After. What rolls back is not stored, and streams are refused. Needs the table of `commits.create_table`.
        idempotency_methods: the methods whose requests are stored; default: POST.
        idempotency_wait: the longest wait for a request with the same key, in seconds.
        idempotency_ttl: how long responses are kept, in seconds; default: 7 days.
        idempotency_caller: required with `idempotency_header`: a function of Flask's request that says who sends it. It
            returns a string, so that no client reads the response to another client's request, or None for a request that is
            served without its key.

    Raises:
        ScopeError, SyncAsyncMismatch, OptionError: an argument has the wrong type or value.

    SQL: ``BEGIN`` with the first statement, and ``COMMIT`` or ``ROLLBACK``. A request that uses no session sends
    nothing and takes no connection.
    """

    def __init__(
        self,
        app: Flask | None = None,
        factory: SyncFactory | Mapping[str, SyncFactory] | None = None,
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
        idempotency_caller: Callable[[FlaskRequest], str | None] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "rollback_on": rollback_on,
            "retry": retry,
            "retry_methods": retry_methods,
            "manual_commit": manual_commit,
            "no_rollback_for": no_rollback_for,
            "settings": settings,
            "role": role,
            "idempotency": idempotency_of(
                "SessionKit",
                idempotency_header,
                idempotency_methods,
                idempotency_wait,
                idempotency_ttl,
                idempotency_caller,
            ),
        }
        self._named = None if factory is None else _named(factory)
        self._rules([] if self._named is None else list(self._named.values()))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, factory: SyncFactory | Mapping[str, SyncFactory] | None = None) -> None:
        """Serve an application. One extension may serve several.

        Args:
            app: the application.
            factory: as for `SessionKit`; for application factories that create the engine from their configuration.

        Raises:
            OptionError: there is no factory.
            ScopeError: the application already has a SessionKit.
        """
        named = self._named if factory is None else _named(factory)
        if named is None:
            raise OptionError("SessionKit has no factory; write SessionKit(app, Session) or init_app(app, Session)")
        if "sessionkit" in app.extensions:
            raise ScopeError(
                f"{app!r} already has a SessionKit; for several factories, pass one SessionKit a mapping of names to "
                "them"
            )
        serving = _Serving(app, named, self._rules(list(named.values())))
        app.extensions["sessionkit"] = serving
        got_request_exception.connect(serving.note_exception, app)

    def _rules(self, factories: list[Any]) -> Rules:
        return rules("SessionKit", factories, **self._options, asynchronous=False)

    @property
    def session(self) -> orm.Session:
        """The session of this request, from the factory "default".

        Raises:
            NoCurrentSession: outside a request, after it, or in another thread or task: open a scope there, ``with
                Session.scope() as session``.
        """
        return self.get_session()

    def get_session(self, name: str = "default") -> orm.Session:
        """Return the session of this request from the factory called `name`.

        Raises:
            OptionError: there is no such factory.
            NoCurrentSession: as for `session`.
        """
        serving = current_app.extensions.get("sessionkit") if has_app_context() else None
        named: dict[str, Any] | None = self._named if serving is None else serving.named
        if named is None:
            raise ScopeError("SessionKit serves no application here; call init_app(app, Session)")
        if name not in named:
            raise OptionError(f"there is no factory {name!r}; SessionKit has {', '.join(map(repr, named))}")
        session: orm.Session = current_session(named[name])
        return session


def _named(given: SyncFactory | Mapping[str, SyncFactory]) -> dict[str, Any]:
    """Return the factories by name, the default one first: it is the ambient one, and the first to commit."""
    named: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"default": given}
    if "default" not in named:
        raise OptionError(f"SessionKit got factories called {', '.join(named)}; call one of them 'default'")
    return {"default": named.pop("default"), **named}


class _Again(BaseException):
    """Leaves the application so that the request can run again. Not an Exception, so ``except Exception`` lets it pass."""


class _Serving:
    """The hooks around and inside one application.

    Flask has no hook that runs after all ``after_request`` functions but inside the error handling. So this overrides methods
    of Flask that are meant to be overridden: ``process_response`` and ``handle_user_exception``, and ``preprocess_request``,
    to raise what kept a scope from opening. They take any arguments, because newer releases also pass the context.
    """

    def __init__(self, app: Flask, named: dict[str, Any], given: Rules) -> None:
        self.named = named
        self._rules = given
        self._app: Any = app
        self._wsgi_app: WSGIApplication = app.wsgi_app
        self._process_response: Callable[..., Response] = app.process_response
        self._handle_user_exception: Callable[..., Any] = app.handle_user_exception
        self._preprocess_request: Callable[..., Any] = app.preprocess_request
        app.preprocess_request = self.preprocess_request  # type: ignore[method-assign]
        app.wsgi_app = self.wsgi_app  # type: ignore[method-assign]
        app.process_response = self.process_response  # type: ignore[method-assign, assignment]
        if given.idempotency is not None:
            app.preprocess_request = self.preprocess_request  # type: ignore[method-assign]
        app.handle_user_exception = self.handle_user_exception  # type: ignore[method-assign, assignment]

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Open the scopes, let Flask answer, and leave nothing open."""
        asked = request_of(self._rules, environ)
        replay = Replay(environ) if asked.retried else None
        asked.replayable = replay is None or replay.possible
        while True:
            turn = environ[_TURN] = SyncTurn(asked, lambda: _seen(self._app, environ))
            try:
                self._enter(turn, environ)
                body = self._wsgi_app(environ, start_response)
                turn.give_up(None)  # Flask did not finish the request: something in front of it has answered
            except _Again:
                pass
            except BaseException as error:
                turn.give_up(error)
                raise
            else:
                return body
            assert replay is not None
            turn.pause()
            replay.rewind()

    def _enter(self, turn: SyncTurn, environ: WSGIEnvironment) -> None:
        """Open the scopes; an error waits until Flask can handle it."""
        try:
            if turn.request.key is None:
                take_key(turn.request, environ, lambda: _seen(self._app, environ))
            turn.enter()
        except Exception as error:  # noqa: BLE001 - the error handlers decide
            turn.failed(error)
            turn.not_entered = error

    def preprocess_request(self, *args: Any) -> Any:
        """Raise what kept the scopes from being opened, answer with a stored response, or go on."""
        turn = _turn()
        if turn.not_entered is not None:
            raise turn.not_entered
        if turn.replayed and not turn.over:
            response: Stored = turn.claim.answer()
            return self._app.response_class(response.body, response.status, list(response.headers))
        return self._preprocess_request(*args)

    def process_response(self, *args: Any) -> Response:
        """Run the after_request functions, then end the scopes."""
        *context, response = args
        turn = _turn()
        # As it is before them: they run for a replay as well.
        kept = _stored(response) if turn.holds_back(response.status_code) else None
        response = self._process_response(*context, response)
        if turn.over:
            return response
        if kept is not None and turn.holds_back(response.status_code):
            turn.keep(kept)
        try:
            turn.end(response.status_code)
        except Exception as error:  # noqa: BLE001 - the error handlers decide
            answer = self._app.handle_user_exception(*context, error)
            return self._process_response(*context, self._app.make_response(answer))
        return response

    def handle_user_exception(self, *args: Any) -> Any:
        """Note an error; run the request again if it should, otherwise let the error handlers answer."""
        *context, error = args
        turn = _turn()
        turn.failed(error)
        if turn.request.retried and not isinstance(error, HTTPException):
            # Only after the rollback is it known whether the request can run again, so roll back before the handlers see the
            # error.
            turn.give_up(error)
            if turn.again(error):
                raise _Again from error
        try:
            return self._handle_user_exception(*context, error)
        except Exception as unhandled:
            answer = None if isinstance(error, HTTPException) else turn.answer(error)
            if unhandled is not error or answer is None:
                raise
            return self._handle_user_exception(*context, _http_exception(answer))

    def note_exception(self, app: Flask, exception: Exception) -> None:
        """Note an error that was raised after the view, for example by an after_request function."""
        _turn().failed(exception)


def _stored(response: Response) -> Stored:
    if response.is_streamed or response.direct_passthrough:
        raise ScopeError(STREAM)
    return stored(response.status_code, list(response.headers), response.get_data())


def _seen(app: Any, environ: WSGIEnvironment) -> FlaskRequest:
    """Return the request that Flask is going to make, with its URL matched, and without its body, which can be read once."""
    seen: FlaskRequest = app.request_class(environ, populate_request=False, shallow=True)
    try:
        adapter = app.create_url_adapter(seen)
        if adapter is not None:
            seen.url_rule, seen.view_args = adapter.match(return_rule=True)
    except HTTPException as error:
        seen.routing_exception = error
    return seen


def _turn() -> SyncTurn:
    # A request context that the application does not serve, such as that of test_request_context(), has no turn.
    turn: SyncTurn | None = request.environ.get(_TURN)
    return _NO_TURN if turn is None else turn


_NO_TURN = SyncTurn(RequestUnit(Rules((), on_error_status, None, IDEMPOTENT), "", "", False))
_NO_TURN.over = True


def _http_exception(answer: Answer) -> HTTPException:
    if answer.status == 503:
        return ServiceUnavailable(answer.text, retry_after=RETRY_AFTER)
    if answer is IN_FLIGHT:
        return _InFlight(answer.text)
    return _KINDS[answer.status](answer.text)


class _InFlight(Conflict):
    """A conflict that asks the client to come again."""

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), *IN_FLIGHT.headers.items()]


_KINDS: dict[int, type[HTTPException]] = {
    400: BadRequest,
    409: Conflict,
    411: LengthRequired,
    412: PreconditionFailed,
    413: RequestEntityTooLarge,
    422: UnprocessableEntity,
}
