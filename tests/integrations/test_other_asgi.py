"""The same middleware with frameworks that are not Starlette's kin: Litestar and Quart."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import current_session, errors
from sessionkit.integrations.asgi import SessionKitMiddleware
from tests.integrations.asgi_client import call, sync_factory
from tests.support.models import Pledge, User

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they warn of is theirs to mend
    from litestar import Litestar, Response, route
    from litestar.middleware import DefineMiddleware
    from quart import Quart, abort

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

pytestmark = [
    pytest.mark.above_drivers,
    pytest.mark.doors("sqlite-async", "postgresql-async"),
    # Of Litestar's and Quart's own making.
    pytest.mark.filterwarnings("default::DeprecationWarning"),
]


def litestar(doors: Door, work: Callable[[], Any], factory: Any = None) -> Any:
    @route("/", http_method=["GET", "POST"], status_code=200)
    async def endpoint() -> str:
        await work()
        return "ok"

    return Litestar(
        [endpoint],
        middleware=[DefineMiddleware(SessionKitMiddleware, factory=factory or doors.Session)],
        exception_handlers={IntegrityError: lambda request, error: Response("no account", status_code=422)},
    )


def quart(doors: Door, work: Callable[[], Any], factory: Any = None) -> Any:
    app = Quart(__name__)

    @app.route("/", methods=["GET", "POST"])
    async def endpoint() -> str:
        await work()
        return "ok"

    app.asgi_app = SessionKitMiddleware(app.asgi_app, factory or doors.Session)  # type: ignore[method-assign]
    return app


FRAMEWORKS = pytest.mark.parametrize("make", [litestar, quart])


async def add() -> None:
    current_session().add(User(name="ann"))
    await current_session().flush()


async def pledge() -> None:
    current_session().add(Pledge(account_id=99))


@FRAMEWORKS
async def test_a_request_is_committed_before_its_response_begins(doors: Door, make: Any) -> None:
    answer = await call(make(doors, add), doors)
    assert (answer.status, answer.body, answer.committed) == (200, b"ok", ["ann"])


@FRAMEWORKS
async def test_an_exception_rolls_back(doors: Door, make: Any) -> None:
    async def fail() -> None:
        await add()
        raise ZeroDivisionError

    answer = await call(make(doors, fail), doors, logged=True)
    assert (answer.status, answer.committed) == (500, [])


async def test_quarts_abort_rolls_back(doors: Door) -> None:
    async def fail() -> None:
        await add()
        abort(403)

    answer = await call(quart(doors, fail), doors)
    assert (answer.status, answer.committed) == (403, [])


async def test_litestar_answers_a_commit_that_fails(doors: Door) -> None:
    answer = await call(litestar(doors, pledge), doors, "POST")
    assert (answer.status, answer.body) == (422, b"no account")


async def test_quart_lets_nothing_through_of_a_response_whose_commit_fails(doors: Door) -> None:
    answer = await call(quart(doors, pledge), doors, logged=True)
    assert answer.responses == 0
    assert isinstance(answer.error, IntegrityError)  # which a server answers with 500


@FRAMEWORKS
async def test_a_sync_session_is_served_too(doors: Door, make: Any) -> None:
    async def add_by_sync() -> None:
        current_session().add(User(name="ann"))

    async with sync_factory(doors) as factory:
        assert (await call(make(doors, add_by_sync, factory), doors)).committed == ["ann"]


async def test_quarts_sync_views_are_inside_the_unit_of_a_sync_factory(doors: Door) -> None:
    async with sync_factory(doors) as factory:
        app = Quart(__name__)

        @app.get("/")
        def endpoint() -> str:
            current_session(factory).add(User(name="ann"))
            return "ok"

        app.asgi_app = SessionKitMiddleware(app.asgi_app, factory)  # type: ignore[method-assign]
        assert (await call(app, doors)).committed == ["ann"]


async def test_a_task_that_a_view_of_quarts_starts_does_not_see_its_session(doors: Door) -> None:
    async def child() -> None:
        with pytest.raises(errors.NoCurrentSession, match="'child'"):
            current_session()

    async def view() -> None:
        current_session()
        await asyncio.create_task(child(), name="child")

    assert (await call(quart(doors, view), doors)).status == 200


@FRAMEWORKS
async def test_a_conflict_at_the_commit_is_told(doors: Door, make: Any) -> None:
    def stale(session: Any) -> None:
        raise StaleDataError("somebody else was faster")

    async def work() -> None:
        await add()
        event.listen(current_session().sync_session, "before_commit", stale)

    answer = await call(make(doors, work), doors, "POST", logged=True)
    assert answer.status == (409 if make is quart else 500)  # Litestar has an answer of its own to everything
    assert answer.committed == []
