"""Flask: one session per request, committed before the response leaves.

What holds for every framework is in test_web.py.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint, Flask, Response, g, jsonify, request
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import (
    Session,
    async_sessionmaker,
    current_session,
    errors,
    scoped_session,
    sessionmaker,
)
from sessionkit.integrations.flask import SessionKit
from sessionkit.retry import Retry
from tests.support.models import Base, Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("sqlite-sync", "postgresql-sync")]


def make_app(doors: Door, view: Callable[..., Any] | None = None, **options: Any) -> tuple[Flask, SessionKit]:
    """Return an application with the view at "/", and its extension."""
    app = Flask(__name__)
    kit = SessionKit(app, doors.Session, **options)
    if view is not None:
        app.add_url_rule("/", "view", view, methods=["GET", "POST", "PUT"])
    return app, kit


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


def add(name: str) -> None:
    current_session().add(User(name=name))


# When it commits


async def test_a_view_that_returns_nothing_rolls_back(doors: Door) -> None:
    app, _ = make_app(doors, lambda: add("ann"), rollback_on=lambda status: False)
    assert app.test_client().post("/").status_code == 500
    assert await names(doors) == []


async def test_an_exception_that_reaches_the_test_rolls_back(doors: Door) -> None:
    def view() -> str:
        add("ann")
        current_session().flush()
        raise ZeroDivisionError

    app, _ = make_app(doors, view)
    app.testing = True
    with app.test_client() as client, pytest.raises(ZeroDivisionError):  # the client keeps the request's context
        client.post("/")
    with pytest.raises(errors.NoCurrentSession):
        current_session()
    assert await names(doors) == []


# after_request functions


async def test_after_request_functions_are_inside_the_unit_whenever_they_were_registered(doors: Door) -> None:
    app = Flask(__name__)
    blueprint = Blueprint("shop", __name__)

    def writes(name: str) -> Callable[[Response], Response]:
        def after(response: Response) -> Response:
            add(name)
            return response

        return after

    app.after_request(writes("before the extension"))
    SessionKit(app, doors.Session)
    app.after_request(writes("behind the extension"))
    blueprint.after_request(writes("of a blueprint"))
    blueprint.add_url_rule("/", "view", lambda: "ok")
    app.register_blueprint(blueprint)
    assert app.test_client().get("/").status_code == 200
    assert await names(doors) == ["before the extension", "behind the extension", "of a blueprint"]


async def test_an_after_request_function_that_fails_rolls_back(doors: Door) -> None:
    app, _ = make_app(doors, lambda: (add("ann"), "ok")[1], rollback_on=lambda status: False)

    @app.after_request
    def after(response: Response) -> Response:
        if response.status_code == 200:
            raise ZeroDivisionError
        return response

    assert app.test_client().get("/").status_code == 500
    assert await names(doors) == []


async def test_a_before_request_function_is_inside_the_unit_too(doors: Door) -> None:
    app, kit = make_app(doors, lambda: (g.session is kit.session and "same", 200))

    @app.before_request
    def before() -> None:
        g.session = kit.session

    assert app.test_client().get("/").text == "same"


# A COMMIT that fails


def pledge() -> str:
    """Break a foreign key that is checked at COMMIT only."""
    current_session().add(Pledge(account_id=99))
    return "ok"


async def test_the_answer_to_a_commit_that_failed_goes_through_the_after_request_functions_once(doors: Door) -> None:
    app, _ = make_app(doors, pledge)
    app.register_error_handler(IntegrityError, lambda error: (jsonify(error="there is no such account"), 422))

    @app.after_request
    def after(response: Response) -> Response:
        response.headers["X-After"] = "yes"
        return response

    answer = app.test_client().post("/")
    assert (answer.status_code, answer.json) == (422, {"error": "there is no such account"})
    assert answer.headers.getlist("X-After") == ["yes"]
    assert await doors.rows("SELECT id FROM pledges") == []


async def test_a_commit_that_fails_reaches_the_test_where_errors_are_propagated(doors: Door) -> None:
    app, _ = make_app(doors, pledge)
    app.testing = True
    with pytest.raises(IntegrityError):
        app.test_client().post("/")


async def test_an_error_that_was_swallowed_is_no_200(doors: Door) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('ann')")

    def view() -> str:
        add("bob")
        current_session().flush()
        add("ann")
        with pytest.raises(IntegrityError):
            current_session().flush()
        return "ok"

    app, _ = make_app(doors, view)
    assert app.test_client().post("/").status_code == 500
    assert await names(doors) == ["ann"]


# What a client is told


def conflicting() -> str:
    raise StaleDataError("somebody else was faster")


async def test_a_malformed_if_match_is_a_400(doors: Door) -> None:
    def view() -> str:
        raise errors.MalformedETag("no quotes")

    app, _ = make_app(doors, view)
    assert app.test_client().put("/").status_code == 400


async def test_the_applications_own_handlers_come_first(doors: Door) -> None:
    app, _ = make_app(doors, conflicting)
    app.register_error_handler(409, lambda error: ("mine", 409))
    assert app.test_client().post("/").text == "mine"
    app, _ = make_app(doors, conflicting)
    app.register_error_handler(StaleDataError, lambda error: ("my own", 418))
    assert app.test_client().post("/").status_code == 418
    app, _ = make_app(doors, conflicting)
    app.register_error_handler(Exception, lambda error: (type(error).__name__, 418))
    assert app.test_client().post("/").text == "StaleDataError"


# Retry


async def test_retries_that_are_exhausted_are_a_503_with_retry_after(doors: Door) -> None:
    from sqlalchemy.exc import OperationalError

    class Driver(Exception):
        sqlstate = "40001"

    tried: list[int] = []

    def view() -> str:
        tried.append(1)
        raise OperationalError("UPDATE", {}, Driver())

    app, _ = make_app(doors, view, retry=Retry(3, wait=0))
    answer = app.test_client().put("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert len(tried) == 3


async def test_a_precondition_that_has_failed_is_not_tried_again(doors: Door) -> None:
    tried: list[int] = []

    def view() -> str:
        tried.append(1)
        return conflicting()

    app, _ = make_app(doors, view, retry=Retry(3, wait=0))
    assert app.test_client().put("/", headers={"If-Match": '"1"'}).status_code == 412
    assert len(tried) == 1


async def test_a_function_that_asks_for_a_retry_joins_a_request_that_has_one(doors: Door) -> None:
    @doors.Session.scope(retry=3)
    def decorated(session: Session) -> str:
        session.add(User(name="ann"))
        return "ok"

    app, _ = make_app(doors, decorated, retry=3)
    assert app.test_client().put("/").status_code == 200
    app, _ = make_app(doors, decorated)
    app.testing = True
    with pytest.raises(errors.OptionError, match="retry"):
        app.test_client().put("/")


# Around requests


async def test_a_nested_application_context_leaves_the_requests_session_alone(doors: Door) -> None:
    def view() -> str:
        with app.app_context():
            add("ann")
            inner = kit.session
        assert kit.session is inner
        return "ok"

    app, kit = make_app(doors, view)
    assert app.test_client().get("/").status_code == 200
    assert await names(doors) == ["ann"]


@pytest.mark.doors("postgresql-sync")
async def test_a_request_inside_a_request_is_a_unit_of_its_own(doors: Door) -> None:
    def view() -> tuple[str, int]:
        add("outer")
        current_session().flush()
        assert app.test_client().get("/inner").status_code == 200
        return "no", 400

    app, _ = make_app(doors, view)
    app.add_url_rule("/inner", "inner", lambda: (add("inner"), "ok")[1])
    assert app.test_client().get("/").status_code == 400
    assert await names(doors) == ["inner"]


async def test_the_session_of_a_request_is_not_for_its_threads(doors: Door) -> None:
    told: list[str] = []

    def view() -> str:
        session = current_session()

        def work() -> None:
            with app.app_context(), pytest.raises(errors.NoCurrentSession) as told_:
                _ = kit.session
            told.append(str(told_.value))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        late.append(session)
        return "ok"

    late: list[Session] = []
    app, kit = make_app(doors, view)
    with app.app_context(), pytest.raises(errors.NoCurrentSession):
        _ = kit.session
    assert app.test_client().get("/").status_code == 200
    assert "call it inside `with Session.scope()`" in told[0]
    with pytest.raises(errors.ScopeError, match="which has ended; do this inside the scope, or open another one"):
        late[0].add(User(name="late"))
        late[0].flush()


async def test_a_command_opens_a_scope_as_any_other_code(doors: Door) -> None:
    app, _ = make_app(doors)

    @app.cli.command("seed")
    @doors.Session.scope
    def seed(session: Session) -> None:
        session.add(User(name="ann"))

    result = app.test_cli_runner().invoke(args=["seed"])
    assert result.exit_code == 0, result.output
    assert await names(doors) == ["ann"]


async def test_an_application_factory_hands_the_factory_over_later(doors: Door) -> None:
    kit = SessionKit()

    def create_app() -> Flask:
        app = Flask(__name__)
        kit.init_app(app, sessionmaker(doors.engine))
        app.add_url_rule("/", "view", lambda: (kit.session.add(User(name=request.args["name"])), "ok")[1])
        return app

    one, two = create_app(), create_app()
    assert one.test_client().get("/?name=ann").status_code == 200
    assert two.test_client().get("/?name=bob").status_code == 200
    assert await names(doors) == ["ann", "bob"]


# Several factories


async def test_several_factories_are_had_by_name_and_all_commit(doors: Door) -> None:
    audit = sessionmaker(doors.other_engine())
    app = Flask(__name__)
    kit = SessionKit(app, {"audit": audit, "default": doors.Session})

    @app.get("/")
    def view() -> str:
        kit.session.add(User(name="ann"))
        kit.get_session("audit").add(User(name="ann was added"))
        assert current_session() is kit.session
        with pytest.raises(errors.OptionError, match="'default', 'audit'"):
            kit.get_session("autid")
        return "ok"

    assert app.test_client().get("/").status_code == 200
    assert await names(doors) == ["ann"]
    with audit() as session:
        assert session.scalars(select(User.name)).all() == ["ann was added"]


async def test_where_the_first_of_several_factories_cannot_commit_the_others_do_not(doors: Door) -> None:
    audit = sessionmaker(doors.other_engine())
    app = Flask(__name__)
    kit = SessionKit(app, {"default": doors.Session, "audit": audit})

    @app.get("/")
    def view() -> str:
        kit.session.add(Pledge(account_id=99))
        kit.get_session("audit").add(User(name="ann was added"))
        return "ok"

    assert app.test_client().get("/").status_code == 500
    with audit() as session:
        assert session.scalars(select(User.name)).all() == []


# What is refused


async def test_what_cannot_be_served_is_refused_at_once(doors: Door) -> None:
    app = Flask(__name__)
    with pytest.raises(errors.OptionError, match=r"SessionKit\(app, Session\)"):
        SessionKit(app)
    with pytest.raises(errors.ScopeError, match="engine"):
        SessionKit(app, doors.engine)
    with pytest.raises(errors.SyncAsyncMismatch, match="WSGI is sync"):
        SessionKit(app, async_sessionmaker())
    with pytest.raises(errors.OptionError, match="rollback_on"):
        SessionKit(app, doors.Session, rollback_on=500)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="retry_methods"):
        SessionKit(app, doors.Session, retry_methods="GET")
    with pytest.raises(errors.OptionError, match="without retry="):
        SessionKit(app, doors.Session, retry_methods={"GET"})
    with pytest.raises(errors.OptionError, match="one factory with binds="):
        SessionKit(app, {"default": doors.Session, "audit": doors.factory()}, retry=3)
    with pytest.raises(errors.OptionError, match="'default'"):
        SessionKit(app, {"main": doors.Session})
    SessionKit(app, doors.Session)
    with pytest.raises(errors.ScopeError, match="already has a SessionKit"):
        SessionKit(app, doors.Session)
    with pytest.raises(errors.ScopeError, match="init_app"):
        _ = SessionKit().session


# The seed's own example


async def test_the_flask_example_of_the_seed_works(doors: Door) -> None:
    engine = create_engine(doors.database.url(doors.driver))
    app = Flask(__name__)
    db_session = scoped_session(sessionmaker(bind=engine))

    @app.teardown_appcontext
    def shutdown_session(exception: BaseException | None = None) -> None:
        db_session.remove()

    @app.route("/users")
    def get_users() -> Response:
        users = db_session.query(User).all()
        return jsonify([u.name for u in users])

    Base.metadata.create_all(engine)
    await doors.write("INSERT INTO users (name) VALUES ('ann')")
    assert app.test_client().get("/users").json == ["ann"]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


async def test_the_seeds_teardown_and_the_extension_get_on(doors: Door) -> None:
    db_session = scoped_session(doors.Session)
    app, _ = make_app(doors)

    @app.teardown_appcontext
    def shutdown_session(exception: BaseException | None = None) -> None:
        db_session.remove()

    @app.route("/users", methods=["GET", "POST"])
    def users() -> Response:
        if request.method == "POST":
            db_session.add(User(name="ann"))
        return jsonify([u.name for u in db_session.query(User).all()])

    assert app.test_client().post("/users").json == ["ann"]
    assert app.test_client().get("/users").json == ["ann"]
