"""`idempotency_header=`: a request that a client sends again is served once, and gets its response again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException

from sessionkit import commits, errors, on_commit, set_rollback_only
from sessionkit import sqlite as sqlite_
from sessionkit.integrations import _idempotency
from tests.contract.lost import FAULTS, create_markers, link, somebody_waits_for_a_lock
from tests.contract.once import keys
from tests.integrations import asgi_client, web_door
from tests.integrations.asgi_client import sync_factory
from tests.integrations.web_door import Reply, Request, Web
from tests.support.models import Account, Pledge, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.doors import Door
    from tests.support.faults import Fault

pytestmark = [
    pytest.mark.above_drivers,
    pytest.mark.doors("sqlite-sync", "sqlite-async", "postgresql-sync", "postgresql-async"),
    pytest.mark.webs("starlette", "fastapi", "flask", "wsgi"),
]

pytest_generate_tests = web_door.parametrize

KEY = "Idempotency-Key"


@pytest.fixture
def web(request: pytest.FixtureRequest, doors: Door) -> Web:
    """A web framework: see web_door.py."""
    web: Web = request.param(doors)
    return web


def caller_of(web: Web) -> Callable[[Any], str | None]:
    """Return a function that reads who sends a request from its header X-User."""

    def of_headers(request: Any) -> str | None:
        user: str | None = request.headers.get("X-User", "ann")
        return user or None

    def of_scope(scope: Any) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"ann").decode() or None

    def of_environ(environ: Any) -> str | None:
        return environ.get("HTTP_X_USER", "ann") or None

    return {"starlette": of_scope, "wsgi": of_environ}.get(web.name, of_headers)


def serve(web: Web, view: Any, factory: Any = None, handlers: Any = None, **options: Any) -> Any:
    given = {"idempotency_header": KEY, "idempotency_caller": caller_of(web), **options}
    return web.app(view, handlers, factory, **given)


class Shop:
    """A view that sells one piece for each request, and counts."""

    def __init__(self, **reply: Any) -> None:
        self.runs = 0
        self.hooks = 0
        self.reply = reply

    async def __call__(self, request: Request) -> Reply:
        self.runs += 1
        run = self.runs
        request.session.add(Account(balance=run))
        await request.session.flush()

        def count() -> None:
            self.hooks += 1

        on_commit(count)
        body = (await request.body()).decode()
        return Reply(**{"text": f"sold {run}: {body}", "status": 201, "headers": {"X-Run": str(run)}, **self.reply})


async def sold(doors: Door) -> int:
    return int(await doors.scalar(select(func.count()).select_from(Account)))


# -- one after the other --------------------------------------------------------------------------------------------


async def test_a_request_that_is_sent_again_gets_its_response_again(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop)
    first = await app.send("POST", body=b"one", headers={KEY: "k1"})
    again = await app.send("POST", body=b"one", headers={KEY: "k1"})
    assert (first.status, first.body, first.headers["x-run"]) == (201, b"sold 1: one", "1")
    assert (again.status, again.body) == (first.status, first.body)
    assert {**again.headers, "content-length": ""} == {**first.headers, "content-length": ""}
    assert again.headers["content-length"] == str(len(first.body))
    other = await app.send("POST", body=b"one", headers={KEY: "k2"})
    without = await app.send("POST", body=b"one")
    assert (other.body, without.body) == (b"sold 2: one", b"sold 3: one")
    assert (shop.runs, shop.hooks, await sold(doors)) == (3, 3, 3)
    assert [kind for _, kind in await keys(doors)] == ["R", "R"]


async def test_another_request_under_the_same_key_is_422(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop, idempotency_methods={"POST", "put"})
    assert (await app.send("POST", body=b"one", headers={KEY: "k1"})).status == 201
    for method, path, body in (("POST", "/", b"two"), ("PUT", "/", b"one"), ("POST", "/?a=1", b"one")):
        answer = await app.send(method, path, body=body, headers={KEY: "k1"})
        assert answer.status == 422
        assert "Take a new key" in web.told(answer) if web.name != "wsgi" else answer.body.decode()
    assert (shop.runs, await sold(doors)) == (1, 1)


async def test_nobody_reads_the_response_to_anothers_request(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop)
    bodies = [
        (await app.send("POST", body=b"x", headers={KEY: "k1", "X-User": user})).body
        for user in ("ann", "bob", "ann", "bob")
    ]
    assert bodies == [b"sold 1: x", b"sold 2: x", b"sold 1: x", b"sold 2: x"]
    anonymous = [(await app.send("POST", body=b"x", headers={KEY: "k1", "X-User": ""})).body for _ in range(2)]
    assert anonymous == [b"sold 3: x", b"sold 4: x"]
    # Neither can a clever pair of names and keys meet.
    await app.send("POST", body=b"x", headers={KEY: "b", "X-User": "a"})
    assert (await app.send("POST", body=b"x", headers={KEY: 'b"', "X-User": "a"})).status == 400


async def test_only_the_methods_that_were_asked_for_are_stored(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop)
    for _ in range(2):
        await app.send("PUT", body=b"x", headers={KEY: "k1"})
        await app.send("GET", headers={KEY: "k1"})
    assert (shop.runs, await keys(doors)) == (4, [])


async def test_what_rolls_back_is_not_stored(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop(status=409)
    app = serve(web, shop)
    for run in (1, 2):
        answer = await app.send("POST", body=b"x", headers={KEY: "k1"})
        assert (answer.status, answer.body) == (409, f"sold {run}: x".encode())
    assert (await sold(doors), await keys(doors)) == (0, [])
    shop.reply = {}
    assert (await app.send("POST", body=b"x", headers={KEY: "k1"})).body == b"sold 3: x"
    assert (await app.send("POST", body=b"x", headers={KEY: "k1"})).body == b"sold 3: x"
    assert await sold(doors) == 1


async def test_what_an_exception_or_the_view_rolls_back_is_not_stored(doors: Door, web: Web) -> None:
    await create_markers(doors)
    ways = ["raises", "asks", "well"]

    async def view(request: Request) -> str:
        request.session.add(Account())
        await request.session.flush()
        way = ways.pop(0)
        if way == "raises":
            raise ZeroDivisionError
        if way == "asks":
            doors.call(set_rollback_only, request.session)
        return way

    app = serve(web, view)
    headers = {KEY: "k1"}
    assert (await app.send("POST", headers=headers, logged=True)).status == 500
    assert (await app.send("POST", headers=headers)).body == b"asks"
    assert (await sold(doors), await keys(doors)) == (0, [])
    assert (await app.send("POST", headers=headers)).body == b"well"
    assert (await app.send("POST", headers=headers)).body == b"well"
    assert (await sold(doors), ways) == (1, [])


async def test_a_commit_that_fails_stores_nothing(doors: Door, web: Web) -> None:
    await create_markers(doors)
    fails = [True]

    async def view(request: Request) -> str:
        request.session.add(Pledge(account_id=99) if fails.pop() else Account())
        return "done"

    app = serve(web, view)
    answer = await app.send("POST", headers={KEY: "k1"}, logged=True)
    assert (answer.status, type(answer.error)) == (500, IntegrityError)
    assert await keys(doors) == []
    fails.append(False)
    assert (await app.send("POST", headers={KEY: "k1"})).body == b"done"
    assert await sold(doors) == 1


async def test_an_error_status_that_commits_is_stored(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop(status=402)
    app = serve(web, shop, rollback_on=lambda status: status >= 500)
    for _ in range(2):
        answer = await app.send("POST", body=b"x", headers={KEY: "k1"})
        assert (answer.status, answer.body) == (402, b"sold 1: x")
    assert await sold(doors) == 1


async def test_after_its_time_a_request_is_served_again(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop, idempotency_ttl=60)
    await app.send("POST", body=b"x", headers={KEY: "k1"})
    old = "'2001-01-01 00:00:00'" if doors.backend == "sqlite" else "now() - interval '1 s'"
    await doors.write(f"UPDATE sessionkit_once SET expires_at = {old}")
    assert (await app.send("POST", body=b"x", headers={KEY: "k1"})).body == b"sold 2: x"


# -- what is stored -------------------------------------------------------------------------------------------------


async def test_headers_of_the_session_and_the_connection_are_not_stored(doors: Door, web: Web) -> None:
    await create_markers(doors)
    own = {"Set-Cookie": "session=secret", "Date": "today", "Location": "/orders/1", "ETag": '"1"'}
    app = serve(web, Shop(headers=own))
    first = await app.send("POST", body=b"x", headers={KEY: "k1"})
    assert first.headers["set-cookie"] == "session=secret"
    again = await app.send("POST", body=b"x", headers={KEY: "k1"})
    assert {"set-cookie", "date"}.isdisjoint(again.headers)
    assert (again.headers["location"], again.headers["etag"]) == ("/orders/1", '"1"')


@pytest.mark.parametrize("text", ["", "\N{GRINNING FACE} and \x00", "x" * 300_000], ids=["empty", "odd", "large"])
async def test_any_body_comes_back(doors: Door, web: Web, text: str) -> None:
    await create_markers(doors)
    app = serve(web, Shop(text=text))
    for _ in range(2):
        answer = await app.send("POST", body=b"x" * 200_000, headers={KEY: "k1"})
        assert (answer.status, answer.body) == (201, text.encode())
    assert await sold(doors) == 1


async def test_a_stream_is_refused_and_nothing_is_committed(doors: Door, web: Web) -> None:
    await create_markers(doors)

    async def view(request: Request) -> Reply:
        async def parts() -> AsyncIterator[str]:
            yield "one"
            yield "two"

        request.session.add(Account())
        await request.session.flush()
        return Reply(parts=parts())

    app = serve(web, view)
    answer = await app.send("POST", headers={KEY: "k1"}, logged=True)
    assert answer.status == 500
    assert isinstance(answer.error, errors.ScopeError)
    assert "streamed response" in str(answer.error)
    assert (await sold(doors), await keys(doors)) == (0, [])
    assert (await app.send("POST")).body == b"onetwo"
    assert await sold(doors) == 1


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ['"open', 'a"b', "a b", '""', "\u00e9", "x" * 256, '"a";p=1', ""], ids=repr)
async def test_a_header_that_holds_no_key_is_400(doors: Door, web: Web, bad: str) -> None:
    shop = Shop()
    if bad == "\u00e9" and web.colour == "async":
        bad = "\x7f"
    answer = await serve(web, shop).send("POST", headers={KEY: bad})
    assert answer.status == 400
    assert shop.runs == 0


async def test_a_key_is_the_same_with_and_without_quotes(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop)
    for key in ("8e03978e-40d5", '"8e03978e-40d5"', " 8e03978e-40d5 "):
        assert (await app.send("POST", body=b"x", headers={KEY: key})).body == b"sold 1: x"
    for key in (r'"a\"b\\c d"', "x" * 255):
        await app.send("POST", body=b"x", headers={KEY: key})
    assert shop.runs == 3


async def test_a_body_that_is_too_long_to_be_kept_is_413(
    doors: Door, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_markers(doors)
    for module in ("asgi", "wsgi"):
        monkeypatch.setattr(f"sessionkit.integrations.{module}.LONGEST_KEPT", 10)
    shop = Shop()
    app = serve(web, shop)
    assert (await app.send("POST", body=b"x" * 11, headers={KEY: "k1"})).status == 413
    assert (await app.send("POST", body=b"x" * 10, headers={KEY: "k1"})).status == 201
    assert (await app.send("POST", body=b"x" * 11)).status == 201
    assert shop.runs == 2


async def test_the_applications_error_handlers_answer(doors: Door, web: Web) -> None:
    if web.name == "wsgi":
        return
    await create_markers(doors)
    of_web = {status: type(web.http_error(status, "")) for status in (400, 422)}
    kinds = of_web if web.name == "flask" else {0: HTTPException}

    def handler(error: Any) -> Reply:
        status = getattr(error, "status_code", None) or error.code
        return Reply(f"mine {status}", status)

    app = serve(web, Shop(), handlers=dict.fromkeys(kinds.values(), handler))
    await app.send("POST", body=b"one", headers={KEY: "k1"})
    assert (await app.send("POST", body=b"two", headers={KEY: "k1"})).body == b"mine 422"
    assert (await app.send("POST", body=b"one", headers={KEY: ""})).body == b"mine 400"


# -- at the same time -----------------------------------------------------------------------------------------------


async def test_requests_with_one_key_at_the_same_time_are_served_once(doors: Door, web: Web) -> None:
    await create_markers(doors)
    if doors.backend == "sqlite":
        sqlite_.configure(doors.engine, busy_timeout=30)
    shop = Shop()
    app = serve(web, shop)

    async def send() -> bytes:
        answer = await app.send("POST", body=b"x", headers={KEY: "k1"})
        return bytes(answer.body)

    assert await doors.together(*[send] * 5) == [b"sold 1: x"] * 5
    assert (shop.runs, shop.hooks, await sold(doors)) == (1, 1, 1)


@pytest.mark.parametrize("wait", [0, 0.1])
async def test_one_that_is_still_being_served_is_409_and_asks_to_come_again(doors: Door, web: Web, wait: float) -> None:
    await create_markers(doors)
    inside, done = doors.event(), doors.event()

    async def view(request: Request) -> str:
        request.session.add(Account())
        await request.session.flush()
        inside.set()
        await done.wait()
        return "sold"

    app = serve(web, view, idempotency_wait=wait)

    async def first() -> bytes:
        return bytes((await app.send("POST", headers={KEY: "k1"})).body)

    async def second() -> bytes:
        await inside.wait()
        answer = await app.send("POST", headers={KEY: "k1"})
        done.set()
        assert (answer.status, answer.headers["retry-after"]) == (409, "1")
        return b""

    if web.colour == "async":
        app = serve(web, view, awaits=True, idempotency_wait=wait)
    await doors.together(first, second)
    assert (await app.send("POST", headers={KEY: "k1"})).body == b"sold"
    assert await sold(doors) == 1


# -- what else can happen -------------------------------------------------------------------------------------------


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@FAULTS
async def test_a_commit_whose_answer_is_lost_is_settled(doors: Door, web: Web, fault: Fault) -> None:
    await create_markers(doors)
    shop = Shop()
    with link(doors) as way:
        app = serve(web, shop, way.factory, awaits=web.colour == "async")
        way.proxy.at("COMMIT", fault)
        first = await app.send("POST", body=b"x", headers={KEY: "k1"}, logged=True)
        if first.status != 201:
            assert first.status == 503
        again = await app.send("POST", body=b"x", headers={KEY: "k1"})
        assert again.status == 201
    assert (await sold(doors), shop.hooks) == (1, 1)


async def test_with_retry_too_a_request_is_served_once(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop, failures = Shop(), [errors.VersionConflict([])]

    async def view(request: Request) -> Reply:
        reply = await shop(request)
        if failures:
            raise failures.pop()
        return reply

    app = serve(web, view, retry=3, retry_methods={"POST"})
    for _ in range(2):
        assert (await app.send("POST", body=b"x", headers={KEY: "k1"})).body == b"sold 2: x"
    assert (shop.hooks, await sold(doors)) == (1, 1)


async def test_without_the_table_the_error_says_how_to_make_it(doors: Door, web: Web) -> None:
    shop = Shop()
    app = serve(web, shop)
    answer = await app.send("POST", headers={KEY: "k1"}, logged=True)
    assert answer.status == 500
    assert "commits.create_table(engine)" in str(answer.error)
    assert shop.runs == 0
    assert (await app.send("POST")).status == 201


async def test_options_that_cannot_be_are_refused(doors: Door, web: Web) -> None:
    async def asynchronous(_: Any) -> str:
        return "ann"

    refused: list[dict[str, Any]] = [
        {"idempotency_caller": None},
        {"idempotency_caller": "ann"},
        {"idempotency_caller": asynchronous},
        {"idempotency_header": None},
        {"idempotency_header": ""},
        {"idempotency_header": "two words"},
        {"idempotency_header": 7},
        {"idempotency_header": None, "idempotency_caller": None, "idempotency_wait": 5},
        {"idempotency_header": None, "idempotency_caller": None, "idempotency_methods": {"PUT"}},
        {"idempotency_header": None, "idempotency_caller": None, "idempotency_ttl": 5},
        {"idempotency_methods": "POST"},
        {"idempotency_wait": -1},
        {"idempotency_wait": True},
        {"idempotency_wait": float("inf")},
        {"idempotency_ttl": 0},
        {"idempotency_ttl": "1"},
    ]
    for options in refused:
        with pytest.raises(errors.OptionError, match="idempotency_"):
            await serve(web, Shop(), **options).send()  # Starlette makes its middleware with the first request
    if web.name != "fastapi":
        with pytest.raises(errors.OptionError, match="no_rollback_for"):
            await serve(web, Shop(), no_rollback_for=LookupError).send()
        with pytest.raises(errors.OptionError, match="read-only"):
            await serve(web, Shop(), doors.factory(read_only=True)).send()


async def test_a_caller_that_is_no_string_is_an_error(doors: Door, web: Web) -> None:
    await create_markers(doors)
    for wrong in (7, b"ann", ""):
        app = serve(web, Shop(), idempotency_caller=lambda _, wrong=wrong: wrong)
        answer = await app.send("POST", headers={KEY: "k1"}, logged=True)
        assert answer.status == 500
        assert isinstance(answer.error, errors.OptionError)


@pytest.mark.doors("sqlite-async", "postgresql-async")
async def test_a_sync_session_in_an_async_application_waits_in_a_thread(doors: Door, web: Web) -> None:
    """The loop goes on meanwhile, so that the first can come to its end."""
    await create_markers(doors)
    async with sync_factory(doors) as factory:
        sqlite_wait = 5.0
        shop = Shop()
        app = serve(web, shop, factory, idempotency_wait=sqlite_wait)

        async def send() -> bytes:
            return bytes((await app.send("POST", body=b"x", headers={KEY: "k1"})).body)

        assert await asyncio.gather(*[send() for _ in range(4)]) == [b"sold 1: x"] * 4
        assert (shop.runs, shop.hooks, await sold(doors)) == (1, 1, 1)


@pytest.mark.doors("postgresql-async")
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(doors: Door, web: Web, kind: str) -> None:
    await create_markers(doors)
    async with sync_factory(doors) as sync:
        factory = sync if kind == "sync" else doors.Session
        inside, done = asyncio.Event(), asyncio.Event()

        async def view(request: Request) -> str:
            inside.set()
            await done.wait()
            return "sold"

        app = serve(web, view, factory, awaits=True)
        first = asyncio.create_task(app.send("POST", headers={KEY: "k1"}))
        await inside.wait()
        second = asyncio.create_task(app.send("POST", headers={KEY: "k1"}))
        await somebody_waits_for_a_lock(doors)
        second.cancel()
        done.set()
        await asyncio.wait([second])
        assert second.cancelled()
        assert (await first).body == b"sold"
        assert (await app.send("POST", headers={KEY: "k1"})).body == b"sold"


@pytest.mark.webs("starlette")
@pytest.mark.doors("sqlite-async")
async def test_a_client_that_leaves_before_its_body_has_come_is_not_served(doors: Door, web: Web) -> None:
    await create_markers(doors)
    shop = Shop()
    app = serve(web, shop)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"idempotency-key", b"k1")],
        "query_string": b"",
        "state": {},
    }
    await app.application(scope, receive, send)
    assert (shop.runs, await keys(doors)) == (0, [])


@pytest.mark.webs("starlette")
@pytest.mark.doors("sqlite-async")
async def test_two_keys_at_once_are_400(doors: Door, web: Web) -> None:
    shop = Shop()
    app = serve(web, shop).application

    async def doubled(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"idempotency-key", b"k2"))
        await app(scope, receive, send)

    assert (await asgi_client.call(doubled, doors, "POST", headers={KEY: "k1"})).status == 400


def test_a_stored_response_comes_back_as_it_was(doors: Door, web: Web) -> None:
    response = _idempotency.stored(
        201, [("X", "a\n"), ("Set-Cookie", "s"), ("Transfer-Encoding", "chunked")], b"\n\x00"
    )
    pack, unpack = _idempotency.CODEC
    assert unpack(pack(response)) == (201, [("X", "a\n")], b"\n\x00")
    assert commits.once_table().c.key.type.length >= 64  # type: ignore[attr-defined]
    assert User is not None
