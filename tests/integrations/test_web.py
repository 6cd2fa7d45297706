"""Every web framework: one session per request, committed before the response begins.

What is special to a framework is in its own file: test_asgi.py, test_fastapi.py, test_flask.py, test_wsgi.py.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import current_session, errors, on_commit, set_rollback_only
from sessionkit.retry import Retry
from tests.integrations import web_door
from tests.integrations.asgi_client import sync_factory
from tests.integrations.web_door import Reply, Request, Web
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.doors import Door

pytestmark = [
    pytest.mark.above_drivers,
    pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async"),
]

pytest_generate_tests = web_door.parametrize

takes_options = pytest.mark.webs("starlette", "fastapi", "flask", "wsgi")
has_error_handlers = pytest.mark.webs("starlette", "fastapi", "fastapi-alone", "flask")
is_async = pytest.mark.webs("starlette", "fastapi", "fastapi-alone")


@pytest.fixture
def web(request: pytest.FixtureRequest, doors: Door) -> Web:
    """A web framework: see web_door.py."""
    web: Web = request.param(doors)
    return web


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


async def add(request: Request, name: str) -> None:
    request.session.add(User(name=name))
    await request.session.flush()


async def adds_ann(request: Request) -> str:
    await add(request, "ann")
    return "ok"


async def adds_ann_and_fails(request: Request) -> str:
    await add(request, "ann")
    raise ZeroDivisionError


async def pledges(request: Request) -> str:
    """Break a foreign key that is checked at COMMIT only."""
    request.session.add(Pledge(account_id=99))
    return "never"


async def conflicts(request: Request) -> str:
    raise StaleDataError("somebody else was faster")


# When it commits


async def test_a_request_is_one_unit_and_is_committed_before_its_response_begins(doors: Door, web: Web) -> None:
    async def own(session: Any) -> Any:
        return session

    decorated = doors.decorate(own, bare=True)
    scoped = doors.scoped()

    async def view(request: Request) -> Reply:
        request.session.add(User(name="ann"))
        for session in (current_session(doors.Session), await decorated(), scoped()):
            assert doors.same(session, request.session)
        assert (await request.session.scalars(select(User.name))).all() == ["ann"]
        return Reply("ok", 201, {"X-App": "yes"})

    app = web.app(view)
    with doors.statements() as sql:
        answer = await app.send("POST")
    assert (answer.status, answer.body, answer.committed) == (201, b"ok", ["ann"])
    assert answer.headers["x-app"] == "yes"
    assert [line for line in sql if line.startswith(("BEGIN", "COMMIT", "ROLLBACK"))][1:] == ["COMMIT"]


async def test_what_is_not_flushed_is_committed_too(doors: Door, web: Web) -> None:
    async def view(request: Request) -> str:
        request.session.add(User(name="ann"))
        return "ok"

    assert (await web.app(view).send()).committed == ["ann"]


async def test_a_request_that_uses_no_session_sends_nothing(doors: Door, web: Web) -> None:
    async def view(request: Request) -> str:
        return "ok"

    app = web.app(view)
    with doors.statements() as sql:
        assert (await app.send()).status == 200
        assert (await app.send(path="/nowhere")).status == 404
    assert sql == []


# What rolls back


@pytest.mark.parametrize("status", [400, 404, 409, 500])
async def test_an_error_status_rolls_back(doors: Door, web: Web, status: int) -> None:
    async def view(request: Request) -> Reply:
        await add(request, "ann")
        request.session.add(User(name="not flushed"))
        return Reply("no", status)

    answer = await web.app(view).send("POST")
    assert (answer.status, answer.body, answer.committed) == (status, b"no", [])
    assert await names(doors) == []


@takes_options
@pytest.mark.parametrize("status", [400, 404, 409, 500])
async def test_which_status_rolls_back_is_the_applications_choice(doors: Door, web: Web, status: int) -> None:
    async def view(request: Request) -> Reply:
        await add(request, "ann")
        return Reply("seen", status)

    answer = await web.app(adds_ann, rollback_on=lambda status: status == 200).send()
    assert (answer.status, answer.committed) == (200, [])
    answer = await web.app(view, rollback_on=lambda status: status == 200).send("POST")
    assert (answer.status, answer.committed) == (status, ["ann"])


@takes_options
async def test_a_rollback_on_that_fails_rolls_back(doors: Door, web: Web) -> None:
    app = web.app(adds_ann, rollback_on=lambda status: 1 // (status - 200) > 1)
    answer = await app.send("POST", logged=True)
    assert (answer.status, answer.committed) == (500, [])
    assert isinstance(answer.error, ZeroDivisionError)
    assert await names(doors) == []


@takes_options
async def test_a_rollback_on_that_always_fails_rolls_back(doors: Door, web: Web) -> None:
    answer = await web.app(adds_ann, rollback_on=lambda status: 1 // 0 > 1).send("POST", logged=True)
    assert (answer.status, answer.committed) == (500, [])
    assert isinstance(answer.error, ZeroDivisionError)
    assert await names(doors) == []


async def test_an_exception_rolls_back_and_is_a_500(doors: Door, web: Web) -> None:
    answer = await web.app(adds_ann_and_fails).send("POST", logged=True)
    assert (answer.status, answer.body, answer.committed) == (500, web.internal_error, [])
    assert isinstance(answer.error, ZeroDivisionError)
    assert await names(doors) == []


@takes_options
async def test_an_exception_rolls_back_whatever_rollback_on_says(doors: Door, web: Web) -> None:
    answer = await web.app(adds_ann_and_fails, rollback_on=lambda status: False).send("POST", logged=True)
    assert (answer.status, answer.body, answer.committed) == (500, web.internal_error, [])
    assert isinstance(answer.error, ZeroDivisionError)
    assert await names(doors) == []


@pytest.mark.webs("flask", "wsgi")
async def test_a_system_exit_rolls_back(doors: Door, web: Web) -> None:
    async def view(request: Request) -> str:
        await add(request, "ann")
        raise SystemExit

    began: list[int] = []
    with pytest.raises(SystemExit):
        await web.app(view).send("POST", began=lambda: began.append(1))
    assert began == []
    assert await names(doors) == []


@has_error_handlers
@pytest.mark.parametrize("status", [400, 403, 404, 409])
async def test_an_http_exception_rolls_back(doors: Door, web: Web, status: int) -> None:
    async def view(request: Request) -> str:
        await add(request, "ann")
        raise web.http_error(status, "no")

    answer = await web.app(view).send("POST")
    assert (answer.status, web.told(answer), answer.committed) == (status, "no", [])
    assert await names(doors) == []


# An ASGI middleware does not see an error that the framework has already answered; it sees only the status.
@pytest.mark.webs("fastapi", "flask")
@pytest.mark.parametrize("status", [400, 403, 404, 409])
async def test_an_http_exception_rolls_back_whatever_rollback_on_says(doors: Door, web: Web, status: int) -> None:
    async def view(request: Request) -> str:
        await add(request, "ann")
        raise web.http_error(status, "no")

    answer = await web.app(view, rollback_on=lambda status: False).send("POST")
    assert (answer.status, answer.committed) == (status, [])
    assert await names(doors) == []


@pytest.mark.webs("fastapi", "fastapi-alone", "flask")
async def test_an_exception_that_is_handled_with_a_redirect_rolls_back_too(doors: Door, web: Web) -> None:
    class LoginNeeded(Exception):
        pass

    async def view(request: Request) -> str:
        request.session.add(User(name="ann"))
        raise LoginNeeded

    app = web.app(view, {LoginNeeded: lambda error: Reply("", 302, {"Location": "/login"})})
    answer = await app.send("POST")
    assert (answer.status, answer.headers["location"], answer.committed) == (302, "/login", [])
    assert await names(doors) == []


async def test_a_rollback_that_was_asked_for_keeps_the_response(doors: Door, web: Web) -> None:
    async def view(request: Request) -> str:
        await add(request, "ann")
        set_rollback_only()
        return "tried"

    answer = await web.app(view).send("POST")
    assert (answer.status, answer.body, answer.committed) == (200, b"tried", [])
    assert await names(doors) == []


# A COMMIT that fails


async def test_a_commit_that_fails_is_a_500_and_never_a_200(doors: Door, web: Web) -> None:
    answer = await web.app(pledges).send("POST", logged=True)
    assert (answer.status, answer.body) == (500, web.internal_error)
    assert isinstance(answer.error, IntegrityError)
    assert await doors.rows("SELECT id FROM pledges") == []


@has_error_handlers
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_commit_that_fails_is_answered_by_the_applications_handler(
    doors: Door, web: Web, streaming: bool
) -> None:
    async def parts() -> AsyncIterator[str]:
        yield "never"

    async def view(request: Request) -> Reply:
        return Reply(await pledges(request), parts=parts() if streaming else None)

    def no_account(error: IntegrityError) -> Reply:
        with pytest.raises(errors.NoCurrentSession):
            current_session()
        return Reply("there is no such account", 422)

    answer = await web.app(view, {IntegrityError: no_account}).send("POST")
    assert (answer.status, answer.body) == (422, b"there is no such account")
    assert await doors.rows("SELECT id FROM pledges") == []


# What a client is told


@takes_options
async def test_a_conflict_is_a_409(doors: Door, web: Web) -> None:
    for method in ("POST", "PUT"):
        answer = await web.app(conflicts).send(method)
        assert answer.status == 409
        assert web.told(answer).startswith("Somebody else has changed this")


@takes_options
async def test_a_conflict_is_a_412_where_the_client_had_a_precondition(doors: Door, web: Web) -> None:
    assert (await web.app(conflicts).send("PUT", headers={"If-Match": '"3"'})).status == 412


# Retry


@takes_options
async def test_an_idempotent_request_is_run_again_from_its_first_line(doors: Door, web: Web) -> None:
    bodies: list[bytes] = []
    sessions: list[Any] = []

    async def view(request: Request) -> str:
        assert request.is_new()
        bodies.append(await request.body())
        sessions.append(doors.sync(request.session))
        await add(request, "ann")
        if len(bodies) < 3:
            raise StaleDataError("again")
        return "ok"

    answer = await web.app(view, retry=Retry(5, wait=0)).send("PUT", body=b"the body")
    assert (answer.status, answer.committed, answer.responses) == (200, ["ann"], 1)
    assert bodies == [b"the body"] * 3
    assert len(set(map(id, sessions))) == 3


@takes_options
async def test_a_commit_that_fails_is_retried_as_well(doors: Door, web: Web) -> None:
    tried: list[int] = []

    async def view(request: Request) -> str:
        tried.append(1)
        return await (pledges if len(tried) == 1 else adds_ann)(request)

    answer = await web.app(view, retry=Retry(on=IntegrityError, wait=0)).send("PUT")
    assert (answer.status, answer.committed, len(tried)) == (200, ["ann"], 2)


@takes_options
async def test_a_post_is_not_run_again_unless_it_is_asked_for(doors: Door, web: Web) -> None:
    tried: list[int] = []

    async def view(request: Request) -> str:
        tried.append(1)
        return await conflicts(request)

    assert (await web.app(view, retry=Retry(3, wait=0)).send("POST", body=b"body")).status == 409
    assert len(tried) == 1
    assert (await web.app(view, retry=Retry(3, wait=0), retry_methods={"post"}).send("POST")).status == 409
    assert len(tried) == 4


@takes_options
async def test_a_body_that_cannot_be_kept_is_not_run_again(doors: Door, web: Web) -> None:
    tried: list[int] = []

    async def view(request: Request) -> str:
        tried.append(len(await request.body()))
        return await conflicts(request)

    app = web.app(view, retry=Retry(3, wait=0))
    for length in (2**20 + 1, 2**21):
        assert (await app.send("PUT", body=b"x" * length)).status == 409
    assert tried == [2**20 + 1, 2**21]


# Hooks


async def test_hooks_run_after_the_commit_and_before_the_response_begins(doors: Door, web: Web) -> None:
    seen: list[Any] = []

    async def hook() -> None:
        seen.append(await names(doors))

    async def view(request: Request) -> str:
        on_commit(web.coloured(hook))
        return await adds_ann(request)

    assert (await web.app(view).send(began=lambda: seen.append("response"))).status == 200
    assert seen == [["ann"], "response"]


async def test_a_hook_that_fails_does_not_turn_what_is_committed_into_an_error(
    doors: Door, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    async def view(request: Request) -> str:
        on_commit(lambda: 1 / 0)
        return await adds_ann(request)

    answer = await web.app(view).send()
    assert (answer.status, answer.committed) == (200, ["ann"])
    assert "a hook of GET / failed after the data was committed" in caplog.text


# What has no session


async def test_a_stream_opens_a_scope_of_its_own(doors: Door, web: Web) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('bob')")

    async def view(request: Request) -> Reply:
        session = request.session
        session.add(User(name="ann"))

        async def parts() -> AsyncIterator[str]:
            with pytest.raises(errors.NoCurrentSession):
                current_session()
            with pytest.raises(errors.ScopeError):
                await session.execute(select(User))
            async with doors.scope(read_only=True) as own:
                async for name in await own.stream_scalars(select(User.name).order_by(User.name)):
                    yield name

        return Reply(parts=parts())

    answer = await web.app(view).send()
    assert (answer.status, answer.body, answer.committed) == (200, b"annbob", ["ann", "bob"])


@is_async
async def test_a_background_task_opens_a_scope_of_its_own(doors: Door, web: Web) -> None:
    told: list[str] = []

    async def view(request: Request) -> Reply:
        session = request.session

        async def later() -> None:
            with pytest.raises(errors.NoCurrentSession) as ambient:
                current_session()
            with pytest.raises(errors.ScopeError) as ended:
                await session.execute(select(User))
            told.extend([str(ambient.value), str(ended.value)])
            async with doors.scope() as own:
                own.add(User(name="later"))

        session.add(User(name="ann"))
        return Reply(background=later)

    assert (await web.app(view).send()).committed == ["ann"]
    assert "call it inside `with Session.scope()`" in told[0]
    assert "do it inside the scope, or open another one" in told[1]
    assert await names(doors) == ["ann", "later"]


# Cancellation


@is_async
async def test_a_request_that_is_cancelled_rolls_back_and_gives_its_connection_back(doors: Door, web: Web) -> None:
    inside = asyncio.Event()

    async def view(request: Request) -> str:
        await add(request, "ann")
        inside.set()
        await asyncio.Event().wait()
        return "never"

    request = asyncio.create_task(web.app(view).send())
    await inside.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert doors.checked_out() == 0
    assert await names(doors) == []


# Sync endpoints of an async framework


@is_async
async def test_a_sync_endpoint_is_inside_the_unit_of_a_sync_factory(doors: Door, web: Web) -> None:
    async with sync_factory(doors) as factory:

        @factory.scope
        def decorated(session: Any) -> Any:
            return session

        threads: list[threading.Thread] = []

        async def view(request: Request) -> str:
            threads.append(threading.current_thread())
            assert decorated() is current_session() is current_session(factory) is doors.raw(request.session)
            request.session.add(User(name="ann"))
            on_commit(lambda: threads.append(threading.current_thread()))
            return "ok"

        answer = await web.app(view, factory=factory).send()
        assert (answer.status, answer.committed) == (200, ["ann"])
        assert threading.main_thread() not in threads
        assert threads[1].name.startswith("sessionkit")  # the loop did not wait for COMMIT, nor for a hook


@is_async
async def test_a_sync_endpoint_that_fails_rolls_back(doors: Door, web: Web) -> None:
    async with sync_factory(doors) as factory:

        async def view(request: Request) -> str:
            await add(request, "ann")
            raise web.http_error(403, "no")

        answer = await web.app(view, factory=factory).send()
        assert (answer.status, answer.committed) == (403, [])


@is_async
async def test_a_commit_of_a_sync_session_that_fails_is_answered_by_the_application(doors: Door, web: Web) -> None:
    async with sync_factory(doors) as factory:
        app = web.app(pledges, {IntegrityError: lambda error: Reply("no", 422)}, factory)
        answer = await app.send()
        assert (answer.status, answer.body) == (422, b"no")


@is_async
async def test_a_thread_of_an_async_endpoint_does_not_see_a_sync_session(doors: Door, web: Web) -> None:
    async with sync_factory(doors) as factory:

        def work() -> None:
            with pytest.raises(errors.NoCurrentSession, match="belongs to task"):
                current_session()

        async def view(request: Request) -> str:
            assert doors.raw(request.session) is current_session(factory)
            await asyncio.to_thread(work)
            return "ok"

        assert (await web.app(view, factory=factory, awaits=True).send()).status == 200
