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

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, got_request_exception, has_app_context, request
from sqlalchemy import orm
from werkzeug.exceptions import BadRequest, Conflict, HTTPException, PreconditionFailed, ServiceUnavailable

from ..context import current_session
from ..errors import OptionError, ScopeError
from ..retry import Retry
from ._web import (
    IDEMPOTENT,
    RETRY_AFTER,
    Answer,
    RequestUnit,
    RollbackOn,
    Rules,
    SyncTurn,
    on_error_status,
    rules,
)
from .wsgi import Replay, request_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from flask import Response

    from .._spi import ManualCommit
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
    ) -> None:
        self._options: dict[str, Any] = {
            "rollback_on": rollback_on,
            "retry": retry,
            "retry_methods": retry_methods,
            "manual_commit": manual_commit,
            "no_rollback_for": no_rollback_for,
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

    Flask has no hook that runs after all ``after_request`` functions but inside the error handling. So this overrides two of
    Flask's methods that are meant to be overridden: ``process_response`` and ``handle_user_exception``. They take any
    arguments, because newer releases also pass the context.
    """

    def __init__(self, app: Flask, named: dict[str, Any], given: Rules) -> None:
        self.named = named
        self._rules = given
        self._app: Any = app
        self._wsgi_app: WSGIApplication = app.wsgi_app
        self._process_response: Callable[..., Response] = app.process_response
        self._handle_user_exception: Callable[..., Any] = app.handle_user_exception
        app.wsgi_app = self.wsgi_app  # type: ignore[method-assign]
        app.process_response = self.process_response  # type: ignore[method-assign, assignment]
        app.handle_user_exception = self.handle_user_exception  # type: ignore[method-assign, assignment]

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Open the scopes, let Flask answer, and leave nothing open."""
        asked = request_of(self._rules, environ)
        replay = Replay(environ) if asked.retried else None
        asked.replayable = replay is None or replay.possible
        while True:
            turn = environ[_TURN] = SyncTurn(asked)
            try:
                turn.enter()
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

    def process_response(self, *args: Any) -> Response:
        """Run the after_request functions, then end the scopes."""
        *context, response = args
        turn = _turn()
        response = self._process_response(*context, response)
        if turn.over:
            return response
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


def _turn() -> SyncTurn:
    # A request context that the application does not serve, such as that of test_request_context(), has no turn.
    turn: SyncTurn | None = request.environ.get(_TURN)
    return _NO_TURN if turn is None else turn


_NO_TURN = SyncTurn(RequestUnit(Rules((), on_error_status, None, IDEMPOTENT), "", "", False))
_NO_TURN.over = True


def _http_exception(answer: Answer) -> HTTPException:
    if answer.status == 503:
        return ServiceUnavailable(answer.text, retry_after=RETRY_AFTER)
    kinds: dict[int, type[HTTPException]] = {400: BadRequest, 409: Conflict, 412: PreconditionFailed}
    return kinds[answer.status](answer.text)
