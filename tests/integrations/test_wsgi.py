"""Any WSGI application: one session per request, committed before the response leaves."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import async_sessionmaker, current_session, errors, set_rollback_only
from sessionkit.context import top
from sessionkit.integrations.wsgi import SessionKitMiddleware
from sessionkit.retry import Retry
from tests.support.models import Pledge, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.doors import Door

pytestmark = [pytest.mark.above_drivers, pytest.mark.doors("sqlite-sync", "postgresql-sync")]


class Client:
    """Calls an application as a server does, and notes what of the data was to be seen when the response began."""

    def __init__(self, doors: Door, app: Any, **options: Any) -> None:
        self.doors = doors
        self.app = SessionKitMiddleware(app, doors.Session, **options)
        self.started: list[tuple[str, dict[str, str], list[str]]] = []
        self.closed: list[str] = []

    def __call__(self, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[str, bytes]:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": "/",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": BytesIO(body),
            **headers,
        }
        sent: list[bytes] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], None]:
            with self.doors.database.observer.connect() as connection:
                names = list(connection.execute(select(User.name)).scalars())
            self.started.append((status, dict(headers), names))
            return sent.append

        parts = self.app(environ, start_response)
        try:
            sent.extend(parts)
        finally:
            getattr(parts, "close", lambda: None)()
        assert top() is None
        return self.started[-1][0], b"".join(sent)


def add(name: str) -> None:
    session = current_session()
    session.add(User(name=name))
    session.flush()


def answering(work: Callable[[], object], status: str = "200 OK") -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        work()
        start_response(status, [("X-App", "yes")])
        return [b"ok"]

    return app


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM users ORDER BY name")]


async def test_a_request_is_committed_before_its_response_begins(doors: Door) -> None:
    client = Client(doors, answering(lambda: add("ann")))
    assert client() == ("200 OK", b"ok")
    assert client.started == [("200 OK", {"X-App": "yes"}, ["ann"])]


async def test_an_application_that_begins_its_response_first_is_committed_when_it_returns(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("500 Not yet", [])
        add("ann")
        start_response("200 OK", [])  # replaced, as the specification allows before anything was sent
        return [b"ok"]

    client = Client(doors, app)
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
    client = Client(doors, app)
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

    client = Client(doors, app)
    assert client() == ("200 OK", b"onetwo")
    assert client.started == [("200 OK", {}, ["ann"])]


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error"])
async def test_an_error_status_rolls_back(doors: Door, status: str) -> None:
    client = Client(doors, answering(lambda: add("ann"), status))
    assert client()[0] == status
    assert await names(doors) == []
    client = Client(doors, answering(lambda: add("ann"), status), rollback_on=lambda status: False)
    client()
    assert await names(doors) == ["ann"]


async def test_a_rollback_on_that_fails_rolls_back(doors: Door) -> None:
    client = Client(doors, answering(lambda: add("ann")), rollback_on=lambda status: 1 // 0 > 1)
    with pytest.raises(ZeroDivisionError):
        client()
    assert client.started == []
    assert await names(doors) == []


async def test_a_rollback_that_was_asked_for_keeps_the_response(doors: Door) -> None:
    client = Client(doors, answering(lambda: (add("ann"), set_rollback_only())))
    assert client()[0] == "200 OK"
    assert await names(doors) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_an_exception_rolls_back_and_reaches_the_server(doors: Door, error: type[BaseException]) -> None:
    def work() -> None:
        add("ann")
        raise error

    client = Client(doors, answering(work))
    with pytest.raises(error):
        client()
    assert client.started == []
    assert await names(doors) == []


async def test_a_generator_that_fails_at_its_first_part_rolls_back_and_is_closed(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        add("ann")
        yield from [][1:]
        raise ZeroDivisionError

    client = Client(doors, app)
    with pytest.raises(ZeroDivisionError):
        client()
    assert client.started == []
    assert await names(doors) == []


def pledge() -> None:
    current_session().add(Pledge(account_id=99))


async def test_a_commit_that_fails_lets_nothing_of_the_response_through(doors: Door) -> None:
    client = Client(doors, answering(pledge))
    with pytest.raises(IntegrityError):
        client()
    assert client.started == []


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
        Client(doors, app)()
    assert closed == ["app"]


async def test_a_commit_that_fails_while_the_application_writes_lets_nothing_through_either(doors: Door) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        pledge()
        with pytest.raises(IntegrityError):
            write(b"one")
        return [b"two"]

    client = Client(doors, app)
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

    client = Client(doors, app)
    assert client() == ("422 No such account", b"sorry")
    assert len(client.started) == 1


async def test_a_conflict_is_a_409_or_with_a_precondition_a_412(doors: Door) -> None:
    def work() -> None:
        raise StaleDataError("somebody else was faster")

    client = Client(doors, answering(work))
    status, text = client("POST")
    assert status == "409 Conflict"
    assert b"Somebody else" in text
    assert client.started[0][1]["Content-Length"] == str(len(text))
    assert client("PUT", HTTP_IF_MATCH='"3"')[0] == "412 Precondition Failed"
    assert client("HEAD") == ("409 Conflict", b"")


async def test_an_idempotent_request_is_run_again_with_the_same_environment(doors: Door) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append((environ["wsgi.input"].read(), "mark" in environ))
        environ["mark"] = 1
        add("ann")
        start_response("200 OK", [])
        if len(seen) < 3:
            raise StaleDataError("again")
        return [b"ok"]

    client = Client(doors, app, retry=Retry(4, wait=0))
    assert client("PUT", b"body") == ("200 OK", b"ok")
    assert seen == [(b"body", False)] * 3
    assert len(client.started) == 1
    assert await names(doors) == ["ann"]
    await doors.write("DELETE FROM users")
    seen.clear()
    assert client("POST", b"body")[0] == "409 Conflict"
    assert len(seen) == 1


async def test_a_body_without_a_length_is_left_to_be_streamed(doors: Door) -> None:
    seen: list[bytes] = []

    def work() -> None:
        seen.append(b"")
        raise StaleDataError("again")

    client = Client(doors, answering(work), retry=Retry(3, wait=0))
    assert client("PUT", HTTP_TRANSFER_ENCODING="chunked")[0] == "409 Conflict"
    assert len(seen) == 1


async def test_an_async_before_retry_is_refused(doors: Door) -> None:
    async def before_retry(attempt: object) -> None: ...

    def work() -> None:
        raise StaleDataError("again")

    client = Client(doors, answering(work), retry=Retry(3, wait=0, before_retry=before_retry))
    with pytest.raises(errors.ColourError, match="before_retry"):
        client()


async def test_what_cannot_be_served_is_refused_at_once(doors: Door) -> None:
    app = answering(lambda: None)
    with pytest.raises(errors.ColourError, match="WSGI is sync"):
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
