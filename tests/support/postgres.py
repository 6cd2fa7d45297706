"""The PostgreSQL server that the tests use: asked for once a run, shared by all workers, never skipped.

`SESSIONKIT_POSTGRESQL_URL` names a running server; otherwise the keeper (postgres_keeper.py) starts one when the
first selected test wants it. Either way a server that cannot be had is an error of every test that wants it: a green
run has seen PostgreSQL.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL, make_url

ROOT = Path(__file__).resolve().parents[2]
URL_VARIABLE = "SESSIONKIT_POSTGRESQL_URL"


class PostgresUnavailable(Exception):
    """PostgreSQL cannot be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Server:
    """An address, with the attributes that pytest-postgresql's fixtures read (`depends_on=`)."""

    host: str
    port: int
    user: str
    password: str | None
    maintenance_dbname: str
    told: str
    options: str = ""
    template_dbname: str | None = None

    def url(self, driver: str, database: str) -> URL:
        return URL.create(
            f"postgresql+{driver}",
            username=self.user,
            password=self.password,
            host=self.host,
            port=self.port,
            database=database,
        )


class Guard:
    """Our end of the keeper: while this process lives, so may the server."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.postgres_keeper"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C goes to the whole foreground group; the keeper must live until pytest has closed its connections.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PostgresUnavailable(
                "the process that keeps PostgreSQL did not start: python -m tests.support.postgres_keeper"
            )
        self.port = int(line)

    def close(self) -> None:
        """Let the keeper stop the server, and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(timeout=60)
        self._process.stdout.close()


def ask(port: int, question: str) -> dict[str, Any]:
    """Ask the keeper for the server ("want": start it if need be) or only about it ("report")."""
    # Starting takes seconds, on a machine with a busy disk many of them.
    with socket.create_connection(("127.0.0.1", port), timeout=180) as connection, connection.makefile("rw") as stream:
        stream.write(question + "\n")
        stream.flush()
        answer: dict[str, Any] = json.loads(stream.readline())
    return answer


def from_keeper(port: int) -> Server:
    """Return the run's own server."""
    answer = ask(port, "want")
    if "error" in answer:
        raise PostgresUnavailable(answer["error"])
    return Server(
        host=answer["host"],
        port=answer["port"],
        user=answer["user"],
        password=None,
        maintenance_dbname="postgres",
        told=told(answer),
    )


def told(answer: dict[str, Any]) -> str:
    """Tell in one line which server the tests ran on."""
    if "error" in answer:
        return "could not be had"
    place = f"{answer['source']} ({answer['bin']})"
    return f"{answer['version']} from {place}, run by {answer['runs_as']}, data in {answer['data']}"


def from_url(text: str) -> Server:
    """Return the server that the environment promised; one that cannot be reached is an error, at once."""
    url = make_url(text)
    if url.get_backend_name() != "postgresql" or url.query:
        raise PostgresUnavailable(
            f"{URL_VARIABLE} is {url.render_as_string()}, but should look like "
            "postgresql://user:password@host:port/database, without driver arguments: several drivers share it"
        )
    server = Server(
        host=url.host or "127.0.0.1",
        port=url.port or 5432,
        user=url.username or "postgres",
        password=None if url.password is None else str(url.password),
        maintenance_dbname=url.database or "postgres",
        told=f"{url.render_as_string()} (from {URL_VARIABLE})",
    )
    try:
        # Tried here, because pytest-postgresql would try for a minute before it says so.
        psycopg.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password,
            dbname=server.maintenance_dbname,
            connect_timeout=10,
        ).close()
    except psycopg.Error as error:
        raise PostgresUnavailable(
            f"{URL_VARIABLE} promises a server at {url.render_as_string()}, but it cannot be reached: {error}"
        ) from error
    return server


def promised() -> str | None:
    return os.environ.get(URL_VARIABLE) or None
