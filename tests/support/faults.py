"""Faults between a client and PostgreSQL: a proxy that cuts, delays and swallows. (clusters.py has servers to kill.)

    with FaultProxy(server.host, server.port) as proxy:
        engine = doors.make_engine(port=proxy.port)
        fault = proxy.at("COMMIT", Fault.LOSE_REPLY)       # the next message of a client that contains COMMIT
        ...
        assert fault.struck

The proxy knows the messages of the protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html) as
far as it must: where one begins and ends. It runs in a thread with an event loop of its own, so that it lives while the
test's thread waits.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_BACKEND_KEY_DATA = b"K\0\0\0\x0c"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST and drops what is unsent


class Fault(enum.Enum):
    """What happens to a message of the client's."""

    LOSE = "it never arrives, and both ends are reset"
    LOSE_REPLY = "the server carries it out; instead of the answer the client gets a reset"
    LATE = "the client is reset; the server gets the message when `Struck.deliver` is called"
    PASS = "nothing; `then` is called with the process id of the backend, after it was sent there"
    SWALLOW = "it never arrives, and nobody hears anything any more"
    SWALLOW_REPLY = "the server carries it out; the client hears nothing any more"


class Struck:
    """A fault that waits for its message, and then has struck."""

    def __init__(self, proxy: FaultProxy, word: bytes, fault: Fault, then: Callable[[int], object]) -> None:
        self.word = word
        self.then = then
        self.fault = fault
        self._proxy = proxy
        self._struck = threading.Event()
        self._answered = threading.Event()
        self.held: tuple[_Link, bytes] | None = None

    @property
    def struck(self) -> bool:
        """Whether the message came."""
        return self._struck.is_set()

    def wait(self) -> None:
        """Wait, blocking, until the message has come."""
        assert self._struck.wait(30), f"no message with {self.word!r} came"

    def call_off(self) -> None:
        """Have it not strike any more. Afterwards it is sure whether it has."""
        self._proxy.call(self._proxy.forget, self)

    def strike(self) -> None:
        self._struck.set()

    def deliver(self) -> None:
        """Let the message that is late arrive, and wait until the server has answered it."""
        assert self.held is not None
        link, message = self.held
        link.on_answer = self._answered.set
        self._proxy.call(link.send_to_server, message)
        assert self._answered.wait(30), "the server has not answered"
        self._proxy.call(link.close)


class FaultProxy:
    """Stands before a server. Enter it; then clients connect to `port` of 127.0.0.1."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._faults: list[Struck] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.deaf = False
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    # What a test says

    def at(self, word: str, fault: Fault, then: Callable[[int], object] = lambda _: None) -> Struck:
        """Have `fault` strike the next message of a client that contains `word`."""
        struck = Struck(self, word.encode(), fault, then)
        self.call(self._faults.append, struck)
        return struck

    def reset(self) -> None:
        """Reset every link that there is."""
        self.call(self._reset)

    def swallow(self) -> None:
        """From now on nothing passes in either direction; connections are accepted, and hear nothing."""
        self.call(setattr, self, "deaf", True)

    def refuse(self) -> None:
        """Reset every link, and refuse new ones."""
        self.stop_listening()
        self.reset()

    def stop_listening(self) -> None:
        """Refuse new links; those that there are stay."""
        self._run(self._stop_listening())

    def heal(self) -> None:
        """Reset what hangs, and let everything pass again."""
        self.call(setattr, self, "deaf", False)
        self.reset()
        self._run(self._listen())

    # How it is done, in the thread of the loop

    def call(self, fn: Callable[..., object], *args: object) -> None:
        """Call a function in the thread of the loop, and wait for its end."""

        async def run() -> None:
            fn(*args)

        self._run(run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is None:
            # Always the same port: an engine knows only one.
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _close(self) -> None:
        await self._stop_listening()
        self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reset(self) -> None:
        for link in list(self._links):
            link.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
                await link.run(*self._target)
        finally:
            link.close()
            self._links.discard(link)
            self._tasks.discard(task)

    def forget(self, fault: Struck) -> None:
        self._faults.remove(fault)

    def fault_for(self, message: bytes) -> Struck | None:
        """Return the fault that is to strike a message, once."""
        for fault in self._faults:
            if not fault.struck and fault.word in message:
                return fault
        return None


class _Link:
    """One client, and its connection to the server."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._client = writer
        self._server: asyncio.StreamWriter | None = None
        self._silent = False  # nothing passes
        self._mute = False  # nothing passes to the client; what belongs to the message still arrives
        self._pid = 0
        self.on_answer: Callable[[], None] | None = None

    async def run(self, host: str, port: int) -> None:
        if self._proxy.deaf:
            await self._until_closed(self._reader)
            return
        answers, self._server = await asyncio.open_connection(host, port)
        back = asyncio.create_task(self._back(answers))
        try:
            await self._forth()
        finally:
            if not self._is_late():
                back.cancel()
            else:
                await back

    def _is_late(self) -> bool:
        return any(fault.held is not None and fault.held[0] is self for fault in self._proxy._faults)

    async def _until_closed(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def _forth(self) -> None:
        reader = self._reader
        starting = True
        while True:
            if starting:
                head = await reader.readexactly(8)
                length, code = struct.unpack("!ii", head)
                message = head + await reader.readexactly(length - 8)
                starting = code in (_SSL_REQUEST, _GSS_REQUEST)
            else:
                head = await reader.readexactly(5)
                message = head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            if self._silent or self._proxy.deaf:
                continue
            fault = self._proxy.fault_for(message)
            if fault is None:
                self.send_to_server(message)
            elif not self._strike(fault, message):
                return

    def _strike(self, fault: Struck, message: bytes) -> bool:
        """Have a fault happen; tell whether the client is still listened to."""
        match fault.fault:
            case Fault.LOSE:
                self.close()
            case Fault.LOSE_REPLY:
                self.on_answer = self.close
                self.send_to_server(message)
            case Fault.LATE:
                fault.held = (self, message)
                self._silent = True
                _reset(self._client)
            case Fault.PASS:
                self.send_to_server(message)
                fault.then(self._pid)
            case Fault.SWALLOW:
                self._silent = True
            case Fault.SWALLOW_REPLY:
                self._mute = True
                self.send_to_server(message)
        fault.strike()
        return fault.fault not in (Fault.LOSE, Fault.LATE)

    async def _back(self, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await answers.read(65536):
                if not self._pid and (place := data.find(_BACKEND_KEY_DATA)) >= 0:
                    (self._pid,) = struct.unpack_from("!i", data, place + len(_BACKEND_KEY_DATA))
                if self.on_answer is not None:
                    self.on_answer()
                elif self._is_heard() and not self._client.is_closing():
                    self._client.write(data)
        if self._is_heard():
            self._client.close()

    def _is_heard(self) -> bool:
        return not (self._silent or self._mute or self._proxy.deaf)

    def send_to_server(self, message: bytes) -> None:
        assert self._server is not None
        if not self._server.is_closing():
            self._server.write(message)

    def close(self) -> None:
        """Reset both ends."""
        _reset(self._client)
        if self._server is not None:
            _reset(self._server)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
