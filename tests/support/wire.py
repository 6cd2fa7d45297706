"""What goes over the wire to PostgreSQL: a proxy that reads the protocol and changes nothing.

Why this, and not the server's log or pg_stat_statements: both need a server that was configured for them, and this
run's may be one that `SESSIONKIT_POSTGRESQL_URL` names. The protocol is the same everywhere, it shows BEGIN and COMMIT
of every driver, and each ReadyForQuery is the server's own word that one round trip is over.
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

# So that the first thing on the wire is the startup message, and all of it can be read.
_UNENCRYPTED: dict[str, dict[str, Any]] = {
    "psycopg": {"sslmode": "disable", "gssencmode": "disable"},
    "psycopg2": {"sslmode": "disable", "gssencmode": "disable"},
    "asyncpg": {"ssl": False},
}


@dataclass
class Traffic:
    """What was executed, in order, and how often the client waited for the server."""

    statements: list[str] = field(default_factory=list)
    round_trips: int = 0


class Wire:
    """One listening proxy; many connections."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, target: Any, *args: Any) -> None:
        threading.Thread(target=target, args=args, name="wire", daemon=True).start()

    def take(self) -> Traffic:
        """Return what went by since the last call."""
        with self._lock:
            taken, self._traffic = self._traffic, Traffic()
        return taken

    def connect_args(self, doors: Door) -> dict[str, Any]:
        """Return what makes the door's driver connect through here."""
        return {"host": "127.0.0.1", "port": self.port, **_UNENCRYPTED[doors.driver]}

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            for one in (client, server):
                # Else small messages would wait for each other's acknowledgement.
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self._start(self._from_client, client, server)
            self._start(self._from_server, server, client)

    def _from_client(self, client: socket.socket, server: socket.socket) -> None:
        prepared: dict[bytes, str] = {}
        portals: dict[bytes, str] = {}
        with suppress(OSError), client.makefile("rb") as stream:
            _pass_on(_startup(stream), server)
            while (message := _message(stream)) is not None:
                kind, body = message
                if kind == b"P":
                    name, text, _ = body.split(b"\0", 2)
                    prepared[name] = text.decode()
                elif kind == b"B":
                    portal, name, _ = body.split(b"\0", 2)
                    portals[portal] = prepared[name]
                elif kind == b"Q":
                    self._note(body.rstrip(b"\0").decode())
                elif kind == b"E":
                    self._note(portals[body.split(b"\0", 1)[0]])
                _pass_on(_framed(kind, body), server)
        _half_close(server)

    def _from_server(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError), server.makefile("rb") as stream:
            while (message := _message(stream)) is not None:
                if message[0] == b"Z":
                    with self._lock:
                        self._traffic.round_trips += 1
                _pass_on(_framed(*message), client)
        _half_close(client)

    def _note(self, statement: str) -> None:
        with self._lock:
            self._traffic.statements.append(" ".join(statement.split()).rstrip("; "))


def _startup(stream: Any) -> bytes:
    length: bytes = stream.read(4)
    return length + bytes(stream.read(int.from_bytes(length) - 4))


def _message(stream: Any) -> tuple[bytes, bytes] | None:
    kind, length = stream.read(1), stream.read(4)
    if len(length) < 4:
        return None
    return kind, stream.read(int.from_bytes(length) - 4)


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


def _pass_on(data: bytes, to: socket.socket) -> None:
    to.sendall(data)


def _half_close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_WR)


@contextmanager
def wire(doors: Door) -> Iterator[Wire]:
    """Put a proxy before the door's server; make engines with ``connect_args=wire.connect_args(doors)``."""
    url = doors.database.url(doors.driver)
    made = Wire(url.host or "127.0.0.1", url.port or 5432)
    try:
        yield made
    finally:
        made.close()


class Counted:
    """Scopes on one connection through a proxy, run until the driver has prepared what it prepares; then counted."""

    def __init__(self, doors: Door, proxy: Wire) -> None:
        self._doors = doors
        self._proxy = proxy
        self.engine = doors.make_engine(pool_size=1, max_overflow=0, connect_args=proxy.connect_args(doors))
        self.factory = doors.factory(self.engine)

    async def scope(self, **options: Any) -> tuple[list[str], int]:
        """Return what one scope with one SELECT sends, and how often it waits for the server."""
        for _ in range(8):
            self._proxy.take()
            async with self._doors.scope(self.factory, **options) as session:
                await session.execute(text("SELECT 1 AS mine"))
        traffic = self._proxy.take()
        return traffic.statements, traffic.round_trips


@contextmanager
def counting(doors: Door) -> Iterator[Counted]:
    """Give what counts; the proxy goes before its engine does."""
    with wire(doors) as proxy:
        yield Counted(doors, proxy)
