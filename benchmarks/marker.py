"""What the commit marker of `verify_commit=True` costs: `python -m benchmarks.marker --url postgresql+psycopg://...`.

A unit of one INSERT, without a marker, with one that goes in one message with COMMIT (psycopg), and with one that is a
statement of its own (as with the other drivers). Between client and server stands a proxy that holds every packet for
`--latency` milliseconds in each direction, since on one machine a round trip costs next to nothing. Wall time.
"""

from __future__ import annotations

import argparse
import queue
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, make_url, text

from benchmarks._measure import Case, Report, conditions, measure, repeat
from sessionkit import _dialects, commits, sessionmaker

if TYPE_CHECKING:
    from collections.abc import Callable


class Slow:
    """A proxy that delays everything a little."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._server = (host, port)
        self._seconds = seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._server)
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                packets: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                self._start(self._take, one, packets)
                self._start(self._pass_on, packets, other)

    def _take(self, source: socket.socket, packets: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                packets.put((time.monotonic() + self._seconds, data))
        packets.put((0.0, b""))

    def _pass_on(self, packets: queue.SimpleQueue[tuple[float, bytes]], to: socket.socket) -> None:
        with suppress(OSError):
            while (packet := packets.get())[1]:
                time.sleep(max(0.0, packet[0] - time.monotonic()))
                to.sendall(packet[1])
            to.shutdown(socket.SHUT_WR)


def cases(url: Any) -> list[Case]:
    """One factory, and so one connection, per case, because the engine determines how a driver commits."""

    def unit(**options: Any) -> Callable[[], None]:
        Session = sessionmaker(create_engine(url), **options)

        def run() -> None:
            with Session.scope() as session:
                session.execute(text("INSERT INTO bench_marker VALUES (1)"))

        return run

    own = unit(verify_commit=True)

    def of_its_own() -> None:
        here = _dialects.of_name("postgresql")
        _dialects.register(replace(here, with_commit=lambda _: None))
        try:
            own()
        finally:
            _dialects.register(here)

    return [
        Case("no marker", repeat(unit())),
        Case("a marker, in one message with COMMIT", repeat(unit(verify_commit=True))),
        Case("a marker, a statement of its own", repeat(of_its_own)),
    ]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a database of PostgreSQL, with psycopg; without it there is nothing to measure")
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.5, 2.0], help="one way, in milliseconds")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if options.url is None:
        return
    url = make_url(options.url)
    engine = create_engine(url)
    commits.create_table(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS bench_marker (n int)"))
    print(conditions())
    try:
        for latency in options.latency:
            through = url
            if latency:
                through = url.set(
                    host="127.0.0.1", port=Slow(url.host or "127.0.0.1", url.port or 5432, latency / 1000).port
                )
            timings = measure(cases(through), rounds=options.rounds)
            print(Report(f"{latency} ms each way", timings, reference="no marker", by="wall").markdown())
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE bench_marker, sessionkit_commit"))
        engine.dispose()


if __name__ == "__main__":
    main()
