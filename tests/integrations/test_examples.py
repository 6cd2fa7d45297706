"""The shops of examples/: the two of them behave alike, and their page tells of a conflict."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import create_async_engine

from sessionkit.testing import races
from tests.integrations.servers import ask, uvicorn_serving, waitress_serving
from tests.support.racing import alone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.browser import Browser
    from tests.support.doors import Door

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def flask_shop(doors: Door) -> Iterator[int]:
    import flask_shop

    app = flask_shop.create_app(doors.database.url(doors.driver).render_as_string(hide_password=False))
    with waitress_serving(app, threads=4) as port:
        yield port
    app.extensions["sessionkit"].named["default"].kw["bind"].dispose()


@contextmanager
def fastapi_shop(doors: Door) -> Iterator[int]:
    import fastapi_shop

    driver = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}[doors.backend]
    app = fastapi_shop.create_app(doors.database.url(driver).render_as_string(hide_password=False))
    with uvicorn_serving(app) as port:
        yield port


@pytest.fixture(params=[flask_shop, fastapi_shop])
def shop(doors: Door, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a shop that is open."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with request.param(doors) as port:
        yield port
    for module in ("shop", "flask_shop", "fastapi_shop"):
        sys.modules.pop(module, None)


def request(port: int, method: str, path: str, sent: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    body = b"" if sent is None else json.dumps(sent).encode()
    headers = {"Content-Type": "application/json", **headers}
    status, answered, text = asyncio.run(ask(port, method, path, body, **headers))
    return status, answered, json.loads(text) if answered.get("content-type") == "application/json" else text.decode()


async def test_a_product_is_edited_by_whoever_has_seen_it(doors: Door, shop: int) -> None:
    status, headers, teapot = request(shop, "GET", "/products/1")
    assert (status, teapot) == (200, {"id": 1, "name": "Teapot", "cents": 1900})
    tag = headers["etag"]
    changed = {"name": "Teapot", "cents": 1700}
    status, headers, answer = request(shop, "PUT", "/products/1", changed, **{"If-Match": tag})
    assert (status, answer) == (200, {"id": 1, **changed})
    assert headers["etag"] != tag
    assert request(shop, "PUT", "/products/1", {"name": "Pot", "cents": 1}, **{"If-Match": tag})[0] == 412
    assert request(shop, "PUT", "/products/1", {"name": "Pot", "cents": 1}, **{"If-Match": "no tag"})[0] == 400
    assert request(shop, "PUT", "/products/1", {"name": "Pot", "cents": 1})[0] == 428
    assert request(shop, "PUT", "/products/9", changed, **{"If-Match": tag})[0] == 404
    assert request(shop, "POST", "/products", {"name": "Cup", "cents": 500})[0] == 201
    assert request(shop, "GET", "/products")[2] == [{"id": 1, **changed}, {"id": 2, "name": "Cup", "cents": 500}]
    assert await doors.rows("SELECT name, cents FROM products ORDER BY id") == [("Teapot", 1700), ("Cup", 500)]


async def test_a_product_that_a_client_sends_again_is_added_once(doors: Door, shop: int) -> None:
    cup, key = {"name": "Cup", "cents": 500}, {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}

    def add(*_: int) -> tuple[int, str | None, Any]:
        status, headers, answer = request(shop, "POST", "/products", cup, **key)
        return status, headers.get("etag"), answer

    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(add, range(8))
    assert first[0] == 201
    assert first[1] is not None
    assert others == [first] * 7
    assert request(shop, "POST", "/products", {"name": "Cup", "cents": 1}, **key)[0] == 422
    assert await doors.rows("SELECT name, cents FROM products ORDER BY id") == [("Teapot", 1900), ("Cup", 500)]


@pytest.mark.own_database
@pytest.mark.doors("postgresql-sync")
async def test_of_two_tenants_none_sees_or_edits_a_product_of_the_other(
    doors: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import fastapi_tenants

    ann, bob = {"Authorization": "Bearer token-of-ann"}, {"Authorization": "Bearer token-of-bob"}
    url = doors.database.url("asyncpg").render_as_string(hide_password=False)
    for _ in range(2):  # the second time the tables and the role are there
        app = fastapi_tenants.create_app(url)
        with uvicorn_serving(app) as shop:
            for headers in ({}, {"Authorization": "Bearer of nobody"}):
                assert request(shop, "GET", "/products", **headers)[0] == 401
            pot = {"name": "Pot", "cents": 1900}
            status, headers, made = request(shop, "POST", "/products", pot, **ann)
            assert status == 201
            tag = headers["etag"]
            mine = request(shop, "GET", "/products", **ann)[2]
            assert made in mine
            others = request(shop, "GET", "/products", **bob)[2]
            assert made not in others
            path = f"/products/{made['id']}"
            assert request(shop, "GET", path, **bob)[0] == 404
            assert request(shop, "PUT", path, pot, **bob, **{"If-Match": tag})[0] == 404
            assert request(shop, "PUT", path, {**pot, "cents": 1700}, **ann, **{"If-Match": tag})[0] == 200
            assert request(shop, "PUT", path, pot, **ann, **{"If-Match": tag})[0] == 412
            cup = request(shop, "POST", "/products", {"name": "Cup", "cents": 1}, **bob)[2]
            assert cup in request(shop, "GET", "/products", **bob)[2]
            assert request(shop, "GET", "/report")[2] == {"ann": len(mine), "bob": len(others) + 1}
    sys.modules.pop("fastapi_tenants", None)


@pytest.mark.browser
@pytest.mark.doors("postgresql-sync")
async def test_of_two_tabs_that_edit_a_product_the_second_is_told(doors: Door, shop: int, browser: Browser) -> None:
    url = f"http://127.0.0.1:{shop}/"
    tabs = [browser.tab(), browser.tab()]
    for tab in tabs:
        browser.switch(tab)
        browser.open(url)
        browser.wait_for_text("#message", "Read: version")
    for tab, cents, told in zip(
        tabs, ["1700", "1500"], ["Saved", "Somebody else has changed this product"], strict=True
    ):
        browser.switch(tab)
        browser.write("#cents", cents)
        browser.click("#form button")
        browser.wait_for_text("#message", told)
    assert await doors.rows("SELECT cents FROM products") == [(1700,)]
    browser.click("#reload")
    browser.wait_for_text("#message", "Read: version")
    assert browser.value("#cents") == "1700"
    browser.write("#cents", "1500")
    browser.click("#form button")
    browser.wait_for_text("#message", "Saved")
    assert await doors.rows("SELECT cents FROM products") == [(1500,)]


def application_and_factory(doors: Door, module: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the application of an example, and the engine that its units go through."""
    monkeypatch.syspath_prepend(EXAMPLES)
    shop = importlib.import_module(module)
    url = doors.database.url({"sqlite": "aiosqlite", "postgresql": "asyncpg"}[doors.backend])
    if module == "flask_shop":
        app = shop.create_app(doors.database.url(doors.driver).render_as_string(hide_password=False))
        return app, app.extensions["sessionkit"].named["default"]
    made: list[Any] = []
    monkeypatch.setattr(shop, "create_async_engine", lambda url: made.append(create_async_engine(url)) or made[0])
    return shop.create_app(url.render_as_string(hide_password=False)), made[0]


@pytest.mark.own_database
@pytest.mark.parametrize("module", ["flask_shop", "fastapi_shop"])
async def test_in_every_order_of_two_edits_one_client_learns_of_the_other(
    doors: Door, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, factory = application_and_factory(doors, module, monkeypatch)

    def flask_edit(cents: int) -> int:
        client = app.test_client()
        body = {"name": "Teapot", "cents": cents}
        return int(client.put("/products/1", json=body, headers={"If-Match": '"1"'}).status_code)

    async def fastapi_edit(cents: int) -> int:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            body = {"name": "Teapot", "cents": cents}
            return (await client.put("/products/1", json=body, headers={"If-Match": '"1"'})).status_code

    edit: Any = flask_edit if module == "flask_shop" else fastapi_edit
    await alone(doors)
    try:
        found = races(lambda: edit(1700), lambda: edit(1500), factories=[factory])
    finally:
        for name in ("shop", module):
            sys.modules.pop(name, None)
    assert found.complete
    found.assert_serial()
    assert {tuple(sorted(each.value for each in schedule.outcomes)) for schedule in found.schedules} == {(200, 412)}
