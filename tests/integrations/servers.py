"""Real servers on the loopback, in a thread of the test's process, and clients that talk HTTP to them over sockets."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
import waitress
from waitress.server import BaseWSGIServer

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Uvicorn(uvicorn.Server):
    """Says when it listens; leaves the signals of the test's process alone, since it is not in the main thread."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, backlog=512))
        self.listens = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextmanager
def uvicorn_serving(app: Any) -> Iterator[int]:
    """Serve an ASGI application, and give the port."""
    server = _Uvicorn(app)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        assert server.listens.wait(30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def waitress_serving(app: Any, threads: int = 16) -> Iterator[int]:
    """Serve a WSGI application, and give the port."""
    sockets: dict[int, Any] = {}
    server = waitress.create_server(
        app, map=sockets, host="127.0.0.1", port=0, threads=threads, backlog=512, connection_limit=1000
    )
    assert isinstance(server, BaseWSGIServer)
    thread = threading.Thread(target=server.run, name="waitress")
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        # Its loop ends when it has nothing left to listen to.
        server.trigger.pull_trigger(lambda: [each.close() for each in list(sockets.values())])  # type: ignore[no-untyped-call]
        thread.join(30)
        server.task_dispatcher.shutdown()
    assert not thread.is_alive()


async def ask(
    port: int, method: str, path: str, body: bytes = b"", /, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request on a connection of its own; return the status, the headers and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request(method, path, {"Content-Length": str(len(body)), **headers}) + body)
        return _answer(await reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


async def ask_and_go(port: int, method: str, path: str) -> None:
    """Send a request and go away without waiting for the answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(method, path, {}))
    await writer.drain()
    writer.transport.abort()


def _request(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": "0", **headers}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode()


def _answer(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body
