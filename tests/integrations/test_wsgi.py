"""Any WSGI application: one session per request, committed before the response leaves.

What holds for every framework is in test_web.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import async_sessionmaker, current_session, errors
from sessionkit.integrations.wsgi import SessionKitMiddleware
from sessionkit.retry import Retry
from tests.integrations.wsgi_client import Client
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("sqlite-sync", "postgresql-sync")]


def serve(doors: Door, app: Any, **options: Any) -> Client:
    return Client(doors, SessionKitMiddleware(app, doors.Session, **options))


def add(name: str) -> None:
    session = current_session()
    session.add(User(name=name))
    session.flush()


def answering(work: Callable[[], object]) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        work()
        start_response("200 OK", [])
        return [b"ok"]

    return app


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


async def test_an_application_that_begins_its_response_first_is_committed_when_it_returns(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("500 Not yet", [])
        add("ann")
        start_response("200 OK", [])  # replaced, as the specification allows before anything was sent
        return [b"ok"]

    client = serve(doors, app)
    client()
    assert client.started == [("200 OK", {}, ["ann"])]


async def test_a_generator_is_committed_before_its_first_part_leaves(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        try:
            start_response("200 OK", [])
            add("ann")
            yield b"one"
            with pytest.raises(errors.NoCurrentSession):
                current_session()
            yield b"two"
        finally:
            closed.append("app")

    closed: list[str] = []
    client = serve(doors, app)
    assert client() == ("200 OK", b"onetwo")
    assert client.started[0][2] == ["ann"]
    assert closed == ["app"]


async def test_an_application_that_writes_is_committed_before_its_first_byte_leaves(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        add("ann")
        write(b"one")
        write(b"two")
        return []

    client = serve(doors, app)
    assert client() == ("200 OK", b"onetwo")
    assert client.started == [("200 OK", {}, ["ann"])]


async def test_a_generator_that_fails_at_its_first_part_rolls_back_and_is_closed(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        add("ann")
        yield from [][1:]
        raise ZeroDivisionError

    client = serve(doors, app)
    with pytest.raises(ZeroDivisionError):
        client()
    assert client.started == []
    assert await names(doors) == []


def pledge() -> None:
    current_session().add(Pledge(account_id=99))


async def test_the_body_of_a_response_that_is_given_up_is_closed(doors: Door) -> None:
    class Body(list[bytes]):
        def close(self) -> None:
            closed.append("app")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        pledge()
        start_response("200 OK", [])
        return Body([b"never"])

    closed: list[str] = []
    with pytest.raises(IntegrityError):
        serve(doors, app)()
    assert closed == ["app"]


async def test_a_commit_that_fails_while_the_application_writes_lets_nothing_through_either(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        pledge()
        with pytest.raises(IntegrityError):
            write(b"one")
        return [b"two"]

    client = serve(doors, app)
    with pytest.raises(IntegrityError):
        client()
    assert client.started == []


async def test_an_application_that_answers_a_commit_that_failed_is_heard(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        pledge()
        try:
            write(b"one")
        except IntegrityError:
            start_response("422 No such account", [])
        return [b"sorry"]

    client = serve(doors, app)
    assert client() == ("422 No such account", b"sorry")
    assert len(client.started) == 1


async def test_a_conflict_is_told_with_a_length_and_to_head_without_a_body(doors: Door) -> None:
    def work() -> None:
        raise StaleDataError("somebody else was faster")

    client = serve(doors, answering(work))
    status, text = client("POST")
    assert status == "409 Conflict"
    assert b"Somebody else" in text
    assert client.started[0][1]["Content-Length"] == str(len(text))
    assert client("HEAD") == ("409 Conflict", b"")


async def test_a_body_without_a_length_is_left_to_be_streamed(doors: Door) -> None:
    seen: list[bytes] = []

    def work() -> None:
        seen.append(b"")
        raise StaleDataError("again")

    client = serve(doors, answering(work), retry=Retry(3, wait=0))
    assert client("PUT", HTTP_TRANSFER_ENCODING="chunked")[0] == "409 Conflict"
    assert len(seen) == 1


async def test_an_async_before_retry_is_refused(doors: Door) -> None:
    async def before_retry(attempt: object) -> None: ...

    def work() -> None:
        raise StaleDataError("again")

    client = serve(doors, answering(work), retry=Retry(3, wait=0, before_retry=before_retry))
    with pytest.raises(errors.SyncAsyncMismatch, match="before_retry"):
        client()


async def test_what_cannot_be_served_is_refused_at_once(doors: Door) -> None:
    app = answering(lambda: None)
    with pytest.raises(errors.SyncAsyncMismatch, match="WSGI is sync"):
        SessionKitMiddleware(app, async_sessionmaker())
    with pytest.raises(errors.ScopeError, match="engine"):
        SessionKitMiddleware(app, doors.engine)
    with pytest.raises(errors.OptionError, match="rollback_on"):
        SessionKitMiddleware(app, doors.Session, rollback_on=400)  # type: ignore[arg-type]


async def test_several_factories_commit_in_their_order(doors: Door) -> None:
    other = doors.factory(doors.other_engine())

    def work() -> None:
        add("ann")
        current_session(other).add(User(name="bob"))

    app = SessionKitMiddleware(answering(work), [doors.Session, other])
    assert app({"REQUEST_METHOD": "GET"}, lambda *args: lambda data: None) == [b"ok"]
    assert await names(doors) == ["ann"]
    with other() as session:
        assert session.scalars(select(User.name)).all() == ["bob"]
