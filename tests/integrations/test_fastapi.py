"""FastAPI: typed dependencies whose transaction ends before the response leaves.

What holds for every framework is in test_web.py.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations, of endpoints inside functions too.

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio.to_thread
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from starlette.middleware.base import BaseHTTPMiddleware

from sessionkit import async_scoped_session, current_session, errors, on_commit
from sessionkit.integrations import fastapi as integration
from sessionkit.integrations.asgi import SessionKitMiddleware
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.retry import Retry
from tests.integrations.asgi_client import call, sync_factory, talk
from tests.support.doors import Door
from tests.support.models import User

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("sqlite-async", "postgresql-async")]


# What a release cannot do without the middleware it refuses; see the last test.
@pytest.fixture(params=["installed", "alone"] if integration._ENDS_IN_TIME else ["installed"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    """An application whose dependencies commit by the middleware, or by themselves."""
    app = FastAPI()
    if request.param == "installed":
        install(app)
    return app


def installed(**options: Any) -> FastAPI:
    app = FastAPI()
    install(app, **options)
    return app


# When it commits


async def test_everybody_who_asks_in_a_request_gets_the_same_session(doors: Door, app: FastAPI) -> None:
    async def current_user(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> User:
        user = User(name="ann")
        session.add(user)
        return user

    @app.get("/")
    async def read(
        user: Annotated[User, Depends(current_user)], session: Annotated[AsyncSession, SessionDepends(doors.Session)]
    ) -> bool:
        return user in session

    answer = await call(app, doors)
    assert (answer.body, answer.committed) == (b"true", ["ann"])


async def test_a_middleware_that_has_a_factory_and_a_dependency_share_a_session(doors: Door) -> None:
    app = FastAPI()
    app.add_middleware(SessionKitMiddleware, factory=doors.Session)

    async def before(request: Request) -> None:
        seen.append(current_session())

    seen: list[Any] = []

    @app.get("/", dependencies=[Depends(before)])
    async def read(session: Annotated[AsyncSession, SessionDepends(async_scoped_session(doors.Session))]) -> None:
        assert session is seen[0] is current_session()

    assert (await call(app, doors)).status == 200


async def test_where_another_task_runs_the_endpoint_the_dependency_has_a_session_of_its_own(doors: Door) -> None:
    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            sessions.append(current_session())
            response: Response = await call_next(request)
            return response

    sessions: list[Any] = []
    app = FastAPI()
    app.add_middleware(Between)
    app.add_middleware(SessionKitMiddleware, factory=doors.Session)

    @app.get("/")
    async def add(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None:
        assert session is current_session() is not sessions[0]
        session.add(User(name="ann"))

    assert (await call(app, doors)).committed == ["ann"]


async def test_a_router_may_ask_for_all_its_endpoints(doors: Door, app: FastAPI) -> None:
    router = APIRouter(dependencies=[SessionDepends(doors.Session)])

    @router.get("/")
    async def add() -> None:
        current_session().add(User(name="ann"))

    app.include_router(router)
    assert (await call(app, doors)).committed == ["ann"]


async def test_an_endpoint_that_asks_for_none_has_none_and_an_idle_one_sends_nothing(doors: Door, app: FastAPI) -> None:
    @app.get("/idle")
    async def idle(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None: ...

    @app.get("/none")
    async def none() -> None:
        with pytest.raises(errors.NoCurrentSession):
            current_session()

    with doors.statements() as sql:
        assert (await call(app, doors, path="/idle")).status == 200
        assert (await call(app, doors, path="/none")).status == 200
    assert sql == []


async def test_a_model_that_an_endpoint_returns_is_made_into_its_response(doors: Door, app: FastAPI) -> None:
    from pydantic import BaseModel, ConfigDict

    class UserOut(BaseModel):
        model_config = ConfigDict(from_attributes=True)
        id: int
        name: str

    @app.post("/", response_model=UserOut)
    async def add(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> Any:
        user = User(name="ann")
        session.add(user)
        await session.flush()
        return user

    assert (await call(app, doors, "POST")).body == b'{"id":1,"name":"ann"}'


# What rolls back


async def test_a_response_that_cannot_be_made_rolls_back(doors: Door, app: FastAPI) -> None:
    @app.get("/", response_model=int)
    async def fail(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> Any:
        session.add(User(name="ann"))
        return "no number"

    assert (await call(app, doors, logged=True)).committed == []


@pytest.mark.parametrize("by_middleware", [True, False] if integration._ENDS_IN_TIME else [True])
async def test_an_error_response_that_is_returned_is_seen_by_the_middleware(doors: Door, by_middleware: bool) -> None:
    app = installed() if by_middleware else FastAPI()

    @app.get("/")
    async def fail(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> Response:
        session.add(User(name="ann"))
        return JSONResponse({}, status_code=400)

    answer = await call(app, doors)
    assert (answer.status, answer.committed) == (400, [] if by_middleware else ["ann"])


async def test_which_status_rolls_back_is_the_applications_choice_for_a_returned_response_too(doors: Door) -> None:
    app = installed(rollback_on=lambda status: status >= 500)

    @app.get("/")
    async def fail(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> Response:
        session.add(User(name="ann"))
        return JSONResponse({}, status_code=400)

    assert (await call(app, doors)).committed == ["ann"]


# What a client is told


async def test_a_conflict_is_told_where_another_session_has_only_read(doors: Door) -> None:
    app = installed()
    tried: list[int] = []

    @app.put("/")
    async def edit(
        session: Annotated[AsyncSession, SessionDepends(doors.Session, retry=Retry(2, wait=0))],
        other: Annotated[AsyncSession, SessionDepends(doors.Session, read_only=True)],
        unused: Annotated[AsyncSession, SessionDepends(doors.Session)],
    ) -> None:
        def stale(session: Any) -> None:
            raise StaleDataError("somebody else was faster")

        tried.append(1)
        await other.execute(select(User))
        event.listen(session.sync_session, "before_commit", stale)

    assert (await call(app, doors, "PUT")).status == 409
    assert len(tried) == 2


async def test_what_a_client_is_told_goes_through_every_other_middleware(doors: Door) -> None:
    class Noting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-noted", b"yes"))
                await send(message)

            await self.app(scope, receive, noting)

    app = FastAPI()
    app.add_middleware(Noting)
    install(app)

    @app.put("/")
    async def edit(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None:
        raise StaleDataError("somebody else was faster")

    answer = await call(app, doors, "PUT")
    assert (answer.status, answer.headers["x-noted"]) == (409, "yes")


async def test_the_openapi_document_tells_of_conflicts(doors: Door) -> None:
    app = installed()
    SessionDep = Annotated[AsyncSession, SessionDepends(doors.Session)]

    @app.get("/thing")
    async def read(session: SessionDep) -> None: ...

    @app.put("/thing")
    async def edit(session: SessionDep, if_match: Annotated[str, Header()]) -> None: ...

    @app.post("/thing", responses={409: {"description": "mine"}})
    async def add(session: SessionDep) -> None: ...

    operations = app.openapi()["paths"]["/thing"]
    assert operations == app.openapi()["paths"]["/thing"]
    assert set(operations["get"]["responses"]) == {"200"}
    assert set(operations["put"]["responses"]) == {"200", "409", "412", "422", "503"}
    assert set(operations["post"]["responses"]) == {"200", "409", "503"}
    assert operations["post"]["responses"]["409"]["description"] == "mine"


# Presets of endpoints


async def test_each_endpoint_has_the_options_that_it_asks_for(doors: Door, app: FastAPI) -> None:
    @app.get("/report")
    async def report(session: Annotated[AsyncSession, SessionDepends(doors.Session, read_only=True)]) -> None:
        await session.execute(text("INSERT INTO users (name) VALUES ('ann')"))

    @app.get("/both")
    async def both(
        session: Annotated[AsyncSession, SessionDepends(doors.Session, isolation="SERIALIZABLE")],
        other: Annotated[AsyncSession, SessionDepends(doors.Session, read_only=True)],
    ) -> bool:
        await session.execute(select(User))
        await other.execute(select(User))
        return session is other

    answer = await call(app, doors, path="/report", logged=True)
    assert answer.status == 500
    assert isinstance(answer.error, DBAPIError)
    assert (await call(app, doors, path="/both")).body == b"false"


@pytest.mark.doors("postgresql-async")
async def test_the_database_runs_an_endpoint_at_the_level_that_it_asks_for(doors: Door, app: FastAPI) -> None:
    @app.get("/")
    async def level(session: Annotated[AsyncSession, SessionDepends(doors.Session, isolation="SERIALIZABLE")]) -> Any:
        return await session.scalar(text("SHOW transaction_isolation"))

    assert (await call(app, doors)).body == b'"serializable"'


async def test_wrong_options_are_refused_where_they_are_written(doors: Door) -> None:
    with pytest.raises(errors.UnknownOptionError, match="read_only"):
        SessionDepends(doors.Session, readonly=True)
    with pytest.raises(errors.OptionError, match="propagation"):
        SessionDepends(doors.Session, propagation="join")
    with pytest.raises(errors.ScopeError, match="engine"):
        SessionDepends(doors.engine)
    with pytest.raises(errors.OptionError, match="rollback_on"):
        install(FastAPI(), rollback_on=400)  # type: ignore[arg-type]


# Retry


async def test_an_endpoint_that_asks_for_it_is_run_again(doors: Door) -> None:
    app = installed()
    bodies: list[Any] = []
    entered: list[str] = []

    async def around() -> AsyncIterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    @app.post("/")
    async def add(
        name: dict[str, str],
        session: Annotated[AsyncSession, SessionDepends(doors.Session, retry=Retry(4, wait=0))],
        dependency: Annotated[None, Depends(around)],
    ) -> str:
        bodies.append(name)
        session.add(User(name=name["name"]))
        await session.flush()
        if len(bodies) < 3:
            raise StaleDataError("again")
        return "ok"

    headers = {"Content-Type": "application/json"}
    answer = await call(app, doors, "POST", body=b'{"name": "ann"}', headers=headers)
    assert (answer.status, answer.committed) == (200, ["ann"])
    assert bodies == [{"name": "ann"}] * 3
    assert entered == ["in", "in", "in", "out"]  # a dependency sees the errors of its turn


async def test_an_error_that_the_application_has_handled_is_retried_all_the_same(doors: Door) -> None:
    app = installed(retry=Retry(3, wait=0))
    tried: list[int] = []

    @app.exception_handler(StaleDataError)
    async def stale(request: Request, error: StaleDataError) -> Response:
        return JSONResponse({"tried": len(tried)}, status_code=409)

    @app.put("/")
    async def edit(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> str:
        tried.append(1)
        raise StaleDataError("again")

    answer = await call(app, doors, "PUT")
    assert (answer.status, answer.body) == (409, b'{"tried":3}')


async def test_what_an_endpoint_asks_for_wins_over_what_goes_for_the_application(doors: Door) -> None:
    app = installed(retry=Retry(2, wait=0))
    tried: list[int] = []

    @app.put("/")
    async def edit(session: Annotated[AsyncSession, SessionDepends(doors.Session, retry=Retry(4, wait=0))]) -> None:
        tried.append(1)
        raise StaleDataError("again")

    assert (await call(app, doors, "PUT")).status == 409
    assert len(tried) == 4


async def test_two_policies_in_one_request_are_refused(doors: Door) -> None:
    app = installed()

    @app.put("/")
    async def edit(
        session: Annotated[AsyncSession, SessionDepends(doors.Session, retry=2)],
        other: Annotated[AsyncSession, SessionDepends(doors.Session, retry=3)],
    ) -> None: ...

    with pytest.raises(errors.OptionError, match="give all of them the same"):
        await call(app, doors, "PUT")


async def test_a_retry_without_the_middleware_is_refused(doors: Door) -> None:
    app = FastAPI()

    @app.get("/")
    async def read(session: Annotated[AsyncSession, SessionDepends(doors.Session, retry=3)]) -> None: ...

    with pytest.raises(errors.OptionError, match=r"install\(app\)"):
        await call(app, doors)


async def test_a_decorated_endpoint_is_a_unit_that_is_retried_by_itself(doors: Door) -> None:
    app = FastAPI()
    tried: list[int] = []

    @app.post("/{name}")
    @doors.Session.scope(retry=Retry(4, wait=0))
    async def add(session: AsyncSession, name: str) -> str:
        tried.append(1)
        session.add(User(name=name))
        await session.flush()
        if len(tried) < 3:
            raise StaleDataError("again")
        return name

    answer = await call(app, doors, "POST", "/ann")
    assert (answer.status, answer.body, answer.committed) == (200, b'"ann"', ["ann"])


# Whose session it is


async def test_two_tasks_of_an_endpoint_cannot_be_in_its_session_at_once(doors: Door, app: FastAPI) -> None:
    @app.get("/")
    async def both(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None:
        with pytest.raises(errors.ConcurrentUse, match="give each thread and task a scope of its own"):
            await asyncio.gather(session.execute(select(User)), session.execute(select(User)))
        raise HTTPException(400)

    assert (await call(app, doors)).status == 400


async def test_a_websocket_is_told_to_open_a_scope_for_each_message(doors: Door, app: FastAPI) -> None:
    @app.websocket("/")
    async def chat(websocket: WebSocket, session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None: ...

    with pytest.raises(errors.ScopeError, match="open a scope for each message"):
        await talk(app)


async def test_behind_a_middleware_with_tasks_of_its_own_an_endpoint_has_its_session(doors: Door) -> None:
    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    app = FastAPI()
    app.add_middleware(Between)
    install(app)
    app.add_middleware(Between)

    @app.get("/")
    async def add(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None:
        assert current_session() is session
        session.add(User(name="ann"))

    assert (await call(app, doors)).committed == ["ann"]


# Sync endpoints


async def test_a_sync_endpoint_and_its_sync_dependency_share_the_session_of_a_sync_factory(
    doors: Door, app: FastAPI
) -> None:
    async with sync_factory(doors) as factory:
        SessionDep = Annotated[Session, SessionDepends(factory)]
        threads: list[threading.Thread] = []

        @factory.scope
        def decorated(session: Session) -> Session:
            return session

        def in_between(session: SessionDep) -> Session:
            threads.append(threading.current_thread())
            session.add(User(name="bob"))
            session.flush()
            return decorated()

        @app.get("/")
        def add(session: SessionDep, same: Annotated[Any, Depends(in_between)]) -> None:
            threads.append(threading.current_thread())
            assert session is same is decorated() is current_session(factory)
            session.add(User(name="ann"))
            on_commit(lambda: threads.append(threading.current_thread()))

        assert (await call(app, doors)).committed == ["ann", "bob"]
        assert threading.main_thread() not in threads
        assert len(threads) == 3


async def test_a_sync_dependency_with_yield_may_take_the_session(doors: Door, app: FastAPI) -> None:
    async with sync_factory(doors) as factory:
        in_time: Any = {"scope": "function"} if integration._FUNCTION_SCOPE else {}

        def repository(session: Annotated[Session, SessionDepends(factory)]) -> Iterator[Session]:
            yield session
            session.add(User(name="at the end"))

        @app.get("/")
        def endpoint(session: Annotated[Session, Depends(repository, **in_time)]) -> None:
            session.add(User(name="ann"))

        # Where it cannot be told to, it ends after the response has left, and so after the COMMIT.
        ends = ["at the end"] if integration._ENDS_IN_TIME or integration._FUNCTION_SCOPE else []
        assert (await call(app, doors)).committed == ["ann", *ends]


async def test_no_more_requests_with_sync_sessions_are_let_in_than_there_are_worker_threads(
    doors: Door, app: FastAPI
) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1  # of this loop, which ends with the test
    async with sync_factory(doors) as factory:
        SessionDep = Annotated[Session, SessionDepends(factory)]
        entered, go_on = asyncio.Queue[str](), asyncio.Event()

        @app.get("/{name}")
        async def wait(
            name: str, session: SessionDep, other: Annotated[Session, SessionDepends(factory, read_only=True)]
        ) -> None:
            assert session is not other  # two sessions, and one place for the request
            entered.put_nowait(name)
            await go_on.wait()

        @app.get("/without/session")
        async def without() -> None: ...

        requests = [asyncio.create_task(call(app, doors, path=f"/{name}")) for name in ("one", "two")]
        await entered.get()
        assert (await call(app, doors, path="/without/session")).status == 200
        assert entered.empty()
        requests[1].cancel()  # it has waited for nothing but a place
        go_on.set()
        assert (await requests[0]).status == 200
        assert (await call(app, doors, path="/three")).status == 200


# Releases of FastAPI


async def test_a_release_that_ends_dependencies_too_late_is_refused_without_the_middleware(
    doors: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration, "_FUNCTION_SCOPE", False)
    monkeypatch.setattr(integration, "_ENDS_IN_TIME", False)
    for app in (FastAPI(), installed()):

        @app.get("/")
        async def add(session: Annotated[AsyncSession, SessionDepends(doors.Session)]) -> None:
            session.add(User(name="ann"))

        if app.user_middleware:
            assert (await call(app, doors)).committed == ["ann"]
        else:
            with pytest.raises(errors.ScopeError, match=r"install\(app\), or use FastAPI 0.121.1"):
                await call(app, doors)
