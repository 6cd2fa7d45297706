"""Settings and role of a request's transactions: values, or functions that may ask for the request."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of the endpoint.

from typing import Annotated, Any

import fastapi
import flask
import pytest
from sqlalchemy import text

from sessionkit import REQUIRED, SYSTEM
from sessionkit.errors import OptionError, SettingRequired
from sessionkit.integrations.asgi import SessionKitMiddleware as AsgiMiddleware
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from sessionkit.integrations.wsgi import SessionKitMiddleware as WsgiMiddleware
from sessionkit.retry import Retry
from tests.contract.tenants import ROLE, TENANT, create_roles, current_user, setting
from tests.integrations import web_door
from tests.integrations.asgi_client import call
from tests.integrations.web_door import Reply, Request, Web
from tests.support.doors import Door
from tests.support.models import User

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("postgresql-sync", "postgresql-async")]

pytest_generate_tests = web_door.parametrize

takes_options = pytest.mark.webs("starlette", "flask", "wsgi")


@pytest.fixture
def web(request: pytest.FixtureRequest, doors: Door) -> Web:
    """A web framework: see web_door.py."""
    web: Web = request.param(doors)
    return web


async def shows(request: Request) -> str:
    return f"{await setting(request.session)} {await current_user(request.session)}"


def header_of(web: Web, name: str, seen: Any) -> str | None:
    """Return a header of the request that a framework gave to a function."""
    if web.name == "starlette":
        return dict(seen["headers"]).get(name.encode(), b"").decode() or None
    if web.name == "wsgi":
        value: str | None = seen.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value
    assert isinstance(seen, flask.Request)
    found: str | None = seen.headers.get(name)
    return found


@takes_options
async def test_each_request_has_its_own(doors: Door, web: Web) -> None:
    await create_roles(doors)
    factory = doors.factory(doors.make_engine(pool_size=1, max_overflow=0), settings={TENANT: REQUIRED})
    app = web.app(shows, factory=factory, settings={TENANT: lambda seen: header_of(web, "x-tenant", seen)}, role=ROLE)
    for tenant in ("a", "b"):
        answer = await app.send(headers={"x-tenant": tenant})
        assert answer.body == f"{tenant} {ROLE}".encode()
    async with doors.session(doors.factory(factory.kw["bind"])) as session:
        assert await setting(session) == ""


@takes_options
async def test_values_and_functions_without_arguments_do_too(doors: Door, web: Web) -> None:
    await create_roles(doors)
    for options in (
        {"settings": {TENANT: "a"}, "role": ROLE},
        {"settings": {TENANT: lambda: "a"}, "role": lambda: ROLE},
    ):
        assert (await web.app(shows, **options).send()).body == f"a {ROLE}".encode()


@takes_options
async def test_a_request_without_what_is_required_fails_before_the_view(doors: Door, web: Web) -> None:
    async def view(request: Request) -> str:
        raise AssertionError("called")

    factory = doors.factory(settings={TENANT: REQUIRED})
    app = web.app(view, factory=factory, settings={TENANT: lambda seen: header_of(web, "x-tenant", seen)})
    with doors.statements() as sql:
        answer = await app.send(logged=True)
    assert answer.status == 500
    assert isinstance(answer.error, SettingRequired)
    assert sql == []


@pytest.mark.webs("starlette", "flask")
async def test_the_applications_handlers_answer_what_a_function_raises(doors: Door, web: Web) -> None:
    class NoTenant(Exception):
        pass

    def tenant(seen: Any) -> str:
        found = header_of(web, "x-tenant", seen)
        if found is None:
            raise NoTenant
        if found == "nobody":
            raise web.http_error(403, "who are you?")
        return found

    app = web.app(shows, {NoTenant: lambda error: Reply("no tenant", 401)}, settings={TENANT: tenant})
    assert (await app.send(headers={"x-tenant": "a"})).body.startswith(b"a ")
    answer = await app.send()
    assert (answer.status, answer.body) == (401, b"no tenant")
    assert (await app.send(headers={"x-tenant": "nobody"})).status == 403


@takes_options
async def test_a_request_that_is_run_again_asks_again(doors: Door, web: Web) -> None:
    class Mine(Exception):
        pass

    tenants = iter(["a", "b"])
    seen = []

    async def view(request: Request) -> str:
        seen.append(await setting(request.session))
        if len(seen) == 1:
            raise Mine
        return "ok"

    app = web.app(view, settings={TENANT: lambda: next(tenants)}, retry=Retry(3, wait=0, on=Mine))
    assert (await app.send()).body == b"ok"
    assert seen == ["a", "b"]


@takes_options
async def test_system_has_the_name_of_the_request(doors: Door, web: Web) -> None:
    app = web.app(shows, factory=doors.factory(settings={TENANT: REQUIRED}), settings=SYSTEM)
    assert (await app.send()).body.startswith((b" ", b"None "))


@takes_options
async def test_what_is_wrong_is_told_when_the_application_is_made(doors: Door, web: Web) -> None:
    async def later(request: Any) -> str:
        return "a"

    def wrap(**options: Any) -> Any:
        if web.name == "starlette":  # which makes its middleware with the first request
            return AsgiMiddleware(None, doors.Session, **options)  # type: ignore[arg-type]
        if web.name == "wsgi":
            return WsgiMiddleware(None, doors.Session, **options)  # type: ignore[arg-type]
        return SessionKit(flask.Flask(__name__), doors.Session, **options)

    for options in (
        {"settings": {TENANT: later}},
        {"settings": {TENANT: lambda one, two: "a"}},
        {"settings": {TENANT: lambda *, request: "a"}},
        {"settings": {TENANT: 1.5}},
        {"settings": {TENANT: REQUIRED}},
        {"settings": {"lock_timeout": "1"}},
        {"settings": [TENANT]},
        {"role": ""},
        {"role": lambda one, two: "a"},
    ):
        with pytest.raises(OptionError):
            wrap(**options)


@pytest.mark.webs("flask")
async def test_flask_gives_a_request_whose_url_is_matched_and_whose_body_is_not_to_be_read(
    doors: Door, web: Web
) -> None:
    app = flask.Flask(__name__)

    def tenant(request: flask.Request) -> str | None:
        if request.method == "POST":
            request.get_data()
        return (request.view_args or {}).get("tenant")

    kit = SessionKit(app, doors.Session, settings={TENANT: tenant})

    @app.route("/<tenant>/notes", methods=["GET", "POST"])
    def notes(tenant: str) -> str:
        return str(kit.session.execute(text(f"SELECT current_setting('{TENANT}', true)")).scalar_one())

    client = app.test_client()
    assert client.get("/a/notes").text == "a"
    assert client.get("/nowhere").status_code == 404
    app.testing = True
    with pytest.raises(RuntimeError, match="shallow"):
        client.post("/a/notes", data="body")


# FastAPI has its own way: the options are those of the dependency.


@pytest.fixture(params=["installed", "alone"])
def app(request: pytest.FixtureRequest) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    if request.param == "installed":
        install(app)
    return app


@pytest.mark.webs("fastapi")
async def test_a_dependency_of_fastapi_takes_them(doors: Door, web: Web, app: fastapi.FastAPI) -> None:
    await create_roles(doors)
    factory = doors.factory(settings={TENANT: REQUIRED})

    def tenant(connection: fastapi.requests.HTTPConnection) -> str:
        found = connection.headers.get("x-tenant")
        if found is None:
            raise fastapi.HTTPException(401, "no tenant")
        return f"{found} {connection.path_params['part']}"

    SessionDep = Annotated[Any, SessionDepends(factory, settings={TENANT: tenant}, role=ROLE)]
    seen = []

    async def also(session: SessionDep) -> None:
        seen.append(session)

    @app.get("/{part}", dependencies=[fastapi.Depends(also)])
    async def view(part: str, session: SessionDep) -> str | None:
        seen.append(session)
        session.add(User(name=f"{await setting(session)} {await current_user(session)}"[:50]))
        return await setting(session)

    await doors.write(f"GRANT SELECT, INSERT ON users TO {ROLE}")
    await doors.write(f"GRANT USAGE ON SEQUENCE users_id_seq TO {ROLE}")
    answer = await call(app, doors, path="/x", headers={"x-tenant": "a"})
    assert (answer.body, answer.committed) == (b'"a x"', [f"a x {ROLE}"])
    assert seen[0] is seen[1]
    assert (await call(app, doors, path="/x")).status == 401


@pytest.mark.webs("fastapi")
async def test_dependencies_with_other_settings_are_others(doors: Door, web: Web, app: fastapi.FastAPI) -> None:
    one, same, other = (SessionDepends(doors.Session, settings={TENANT: tenant}) for tenant in ("a", "a", "b"))
    assert one.dependency == same.dependency
    assert one.dependency != other.dependency

    @app.get("/")
    async def view(first: Annotated[Any, one], second: Annotated[Any, other]) -> list[str | None]:
        return [await setting(first), await setting(second)]

    assert (await call(app, doors)).body == b'["a","b"]'
    with pytest.raises(OptionError, match="takes arguments"):
        SessionDepends(doors.Session, settings={TENANT: lambda one, two: "a"})
