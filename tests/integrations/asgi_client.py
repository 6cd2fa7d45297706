"""Calls ASGI applications as a server does, and notes what was committed when the response began."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, select

from sessionkit import sessionmaker
from tests.support.databases import enforce_foreign_keys
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.doors import Door


@dataclass
class Answer:
    """What a client got. `committed`: the names that were in the database when the response began."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    committed: list[str] = field(default_factory=list)
    responses: int = 0
    error: Exception | None = None


async def call(
    app: Any,
    doors: Door,
    method: str = "GET",
    path: str = "/",
    *,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    disconnect: asyncio.Event | None = None,
    logged: bool = False,
) -> Answer:
    """Send a request. Errors that the application lets out are raised, or kept in the answer if they are `logged`.

    The client goes away when it has the response, or when `disconnect` is set.
    """
    answer = Answer()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"content-length": str(len(body)), **(headers or {})}.items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    parts = iter([body[: len(body) // 2], body[len(body) // 2 :]])
    left = 2
    gone = disconnect or asyncio.Event()
    early: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal left
        if left:
            left -= 1
            return {"type": "http.request", "body": next(parts), "more_body": left > 0}
        await gone.wait()
        return {"type": "http.disconnect"}

    def names() -> list[str]:
        with doors.database.observer.connect() as connection:
            return list(connection.execute(select(User.name).order_by(User.name)).scalars())

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.responses += 1
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            answer.committed = await asyncio.to_thread(names)
        elif message["type"] == "http.response.body":
            early.extend([message] if answer.responses != 1 else [])
            answer.body += message.get("body", b"")
            if not message.get("more_body", False):
                gone.set()

    # In a task of its own, as servers serve requests.
    try:
        await asyncio.create_task(app(scope, receive, send), name="request")
    except Exception as error:
        if not logged:
            raise
        answer.error = error
    finally:
        assert not early
    assert answer.responses <= 1
    return answer


async def talk(app: Any) -> list[str]:
    """Take an application through its lifespan and a websocket; return the types of the messages that it sent."""
    said: list[str] = []

    async def connect(scope: dict[str, Any], heard: list[str]) -> None:
        messages = iter([{"type": name} for name in heard])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            said.append(message["type"])

        await app({"asgi": {"version": "3.0"}, "state": {}, **scope}, receive, send)

    await connect({"type": "lifespan"}, ["lifespan.startup", "lifespan.shutdown"])
    socket = {"type": "websocket", "path": "/", "root_path": "", "query_string": b"", "headers": [], "subprotocols": []}
    await connect(socket, ["websocket.connect", "websocket.disconnect"])
    return said


@asynccontextmanager
async def sync_factory(doors: Door) -> AsyncIterator[Any]:
    """Give a sync factory on the database of an async door; its pool must have all connections back at the end."""
    driver = {"sqlite": "pysqlite", "postgresql": "psycopg"}[doors.backend]
    engine = create_engine(doors.database.url(driver))
    if doors.backend == "sqlite":
        enforce_foreign_keys(engine)
    try:
        yield sessionmaker(engine)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        engine.dispose()
