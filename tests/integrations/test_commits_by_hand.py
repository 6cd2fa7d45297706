"""Commits by hand and exceptions that do not roll back, in the requests of each web integration."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.test import Client

from sessionkit import Retry, current_session, errors, on_commit, set_rollback_only
from sessionkit.integrations import asgi, wsgi
from sessionkit.integrations._web import RequestUnit, Rules, SyncTurn
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from tests.contract.breaking import names
from tests.integrations.asgi_client import call
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

    Work = Callable[[orm.Session], object]

pytestmark = [
    pytest.mark.above_drivers,
    pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async"),
    pytest.mark.filterwarnings("ignore:.*not durable before the scope ends"),
]

BY_HAND: dict[str, Any] = {"manual_commit": "savepoint"}


class Rejected(Exception):
    """An answer of the application's: "no", with what led to it kept. The frameworks' applications handle it."""


class Served:
    """An application of one view, which does its work with the session of the request, and answers what that returns."""

    def __init__(self, doors: Door, name: str) -> None:
        self._doors = doors
        self._name = name

    async def __call__(self, work: Work, factory: Any = None, **options: Any) -> int:
        """Send a request; return the status of the answer."""
        make = getattr(self, f"_{self._name}_{self._doors.colour}")
        status: int = await make(work, self._doors.Session if factory is None else factory, options)
        return status

    async def _framework_sync(self, work: Work, factory: Any, options: Any) -> int:
        app = Flask(__name__)
        kit = SessionKit(app, factory, **options)

        @app.get("/")
        def view() -> Any:
            return "", work(kit.session) or 200

        app.register_error_handler(Rejected, lambda error: ("", 303))
        return app.test_client().get("/").status_code

    async def _middleware_sync(self, work: Work, factory: Any, options: Any) -> int:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            start_response(f"{work(current_session(factory)) or 200} said", [])
            return [b""]

        served = wsgi.SessionKitMiddleware(app, factory, **options)
        try:
            return Client(served).get("/").status_code
        except Exception:  # noqa: BLE001 - what a server makes of it
            return 500

    async def _framework_async(self, work: Work, factory: Any, options: Any) -> int:
        app = FastAPI()
        app.add_exception_handler(Rejected, lambda request, error: PlainTextResponse("", 303))
        install(app, **{name: options.pop(name) for name in ("retry", "rollback_on") if name in options})

        @app.get("/", dependencies=[SessionDepends(factory, **options)])
        async def view() -> Any:
            status = await current_session(factory).run_sync(work)
            return PlainTextResponse("", status or 200)

        return (await call(app, self._doors, logged=True)).status

    async def _middleware_async(self, work: Work, factory: Any, options: Any) -> int:
        async def view(request: Any) -> Any:
            return PlainTextResponse("", await current_session(factory).run_sync(work) or 200)

        app = Starlette(routes=[Route("/", view)])
        asgi.SessionKitMiddleware(app, factory, **options)  # Starlette makes its own with the first request
        app.add_middleware(asgi.SessionKitMiddleware, factory=factory, **options)
        return (await call(app, self._doors, logged=True)).status


@pytest.fixture(params=["framework", "middleware"])
def served(request: pytest.FixtureRequest, doors: Door) -> Served:
    return Served(doors, request.param)


# manual_commit=


async def test_a_request_may_commit_by_hand_and_is_committed_once_before_its_response(
    doors: Door, served: Served
) -> None:
    ran: list[str] = []

    def work(session: orm.Session) -> None:
        session.add(ann := User(name="ann"))
        session.commit()
        session.refresh(ann)
        session.add(User(name="bob"))
        session.flush()
        session.rollback()
        on_commit(lambda: ran.append("committed"))
        session.add(User(name="eve"))
        session.commit()
        assert not ran

    with doors.statements() as sql:
        assert await served(work, **BY_HAND) == 200
    assert await names(doors) == ["ann", "eve"]
    assert (sql.count("COMMIT"), sql.count("ROLLBACK"), ran) == (1, 0, ["committed"])


def commit(session: orm.Session) -> None:
    session.add(User(name="ann"))
    session.commit()


async def test_without_the_option_it_is_refused(doors: Door, served: Served) -> None:
    told: list[BaseException] = []

    def work(session: orm.Session) -> None:
        try:
            commit(session)
        except errors.ScopeError as error:
            told.append(error)
            raise

    assert await served(work) == 500
    assert await names(doors) == []
    assert "manual_commit='savepoint'" in str(told[0])


async def test_the_factorys_word_goes_unless_the_application_says_another(doors: Door, served: Served) -> None:
    factory = doors.factory(**BY_HAND)
    assert await served(commit, factory) == 200
    assert await names(doors) == ["ann"]
    assert await served(commit, factory, manual_commit="refuse") == 500
    assert (
        await served(commit, doors.factory(manual_commit="refuse"), manual_commit="savepoint") == 500
    )  # there is an ann
    assert await names(doors) == ["ann"]


async def test_what_was_committed_by_hand_goes_with_a_bad_status_or_an_exception(doors: Door, served: Served) -> None:
    def refused(session: orm.Session) -> int:
        commit(session)
        return 409

    def failed(session: orm.Session) -> None:
        commit(session)
        raise LookupError

    def undone(session: orm.Session) -> None:
        commit(session)
        set_rollback_only()

    assert [await served(work, **BY_HAND) for work in (refused, failed, undone)] == [409, 500, 200]
    assert await names(doors) == []
    assert await served(refused, **BY_HAND, rollback_on=lambda status: status >= 500) == 409
    assert await names(doors) == ["ann"]


async def test_a_run_of_a_request_that_failed_keeps_nothing_of_what_it_committed_by_hand(
    doors: Door, served: Served
) -> None:
    runs: list[int] = []

    def work(session: orm.Session) -> None:
        runs.append(1)
        session.add(User(name=f"run {len(runs)}"))
        session.commit()
        if len(runs) == 1:
            raise orm.exc.StaleDataError

    assert await served(work, **BY_HAND, retry=Retry(3, wait=0)) == 200
    assert await names(doors) == ["run 2"]


# no_rollback_for=


ANSWERED = (303, 500)  # by the application, or by the server for it


def reject(session: orm.Session) -> None:
    session.add(User(name="ann"))
    raise Rejected


async def test_an_exception_that_was_named_does_not_keep_a_request_from_being_committed(
    doors: Door, served: Served
) -> None:
    for others in ({}, {"no_rollback_for": LookupError}):
        assert await served(reject, **others) in ANSWERED
        assert await names(doors) == []
    assert await served(reject, no_rollback_for=(LookupError, Rejected)) in ANSWERED
    assert await names(doors) == ["ann"]


async def test_the_factorys_exceptions_go_unless_the_application_names_others(doors: Door, served: Served) -> None:
    factory = doors.factory(no_rollback_for=Rejected)
    assert await served(reject, factory, no_rollback_for=()) in ANSWERED
    assert await names(doors) == []
    assert await served(reject, factory) in ANSWERED
    assert await names(doors) == ["ann"]


async def test_a_request_that_has_committed_in_spite_of_an_exception_is_not_run_again(
    doors: Door, served: Served
) -> None:
    runs: list[int] = []

    def work(session: orm.Session) -> None:
        runs.append(1)
        reject(session)

    assert await served(work, no_rollback_for=Rejected, retry=Retry(3, wait=0, on=Rejected)) in ANSWERED
    assert (len(runs), await names(doors)) == (1, ["ann"])


async def test_where_a_statement_or_the_commit_fails_such_an_exception_rolls_back(doors: Door, served: Served) -> None:
    def swallowed(session: orm.Session) -> None:
        session.add(User(name="bob"))
        session.flush()
        session.add(User(name="bob"))
        with suppress(IntegrityError):
            session.flush()
        raise Rejected

    def pending(session: orm.Session) -> None:
        session.add(Pledge(account_id=404))  # checked at COMMIT
        reject(session)

    for work in (swallowed, pending):
        assert await served(work, no_rollback_for=Rejected) in ANSWERED
        assert await names(doors) == []


@pytest.mark.doors("postgresql-sync", "sqlite-sync")
async def test_of_several_factories_what_has_committed_in_spite_of_it_is_not_run_again(doors: Door) -> None:
    turn = SyncTurn(RequestUnit(Rules((), lambda status: False, None, frozenset()), "GET", "/", False))
    keeps, rolls_back = doors.factory(no_rollback_for=Rejected), doors.factory()
    for factory in (rolls_back, keeps):
        scope: Any = turn.scope_of(factory, {})
        turn.opened(scope, session := scope._begin(None))
        if factory is keeps:
            session.add(User(name="ann"))
    turn.give_up(error := Rejected())
    assert await names(doors) == ["ann"]
    assert turn._committed
    assert not turn.again(error)


# What is told


@pytest.mark.parametrize(
    ("wrong", "options"),
    [("manual_commit='always'", {"manual_commit": "always"}), ("no_rollback_for=404", {"no_rollback_for": 404})],
)
async def test_a_value_that_means_nothing_is_told_when_the_application_is_made(
    doors: Door, served: Served, wrong: str, options: Any
) -> None:
    def untouched(session: orm.Session) -> None:
        raise AssertionError

    with pytest.raises(errors.OptionError, match=wrong):
        await served(untouched, **options)
