"""A PgBouncer between the tests and their PostgreSQL, which pools by transaction over four server connections.

    python -m tests.support.pgbouncer < settings.json

prints a port and runs PgBouncer until its standard input ends, however the tests end: so nothing is left behind.

`SESSIONKIT_PGBOUNCER=1`, or the path of the program, promises it: then the tests that are marked `pgbouncer` fail where it
cannot be had. Without the promise they run where Debian's package (or any other) has put it on PATH or into an `sbin`, and
are deselected elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.postgres_keeper import Account, _account, _free_port, _tail

if TYPE_CHECKING:
    from tests.support.doors import Door

VARIABLE = "SESSIONKIT_PGBOUNCER"
SERVER_CONNECTIONS = 4
ROOT = Path(__file__).resolve().parents[2]


class NoPgbouncer(Exception):
    """It was promised, or found, and cannot be had; the text says why."""


def promised() -> str:
    return os.environ.get(VARIABLE, "")


def program() -> str | None:
    """Find it. Debian has it in a folder that is not on every user's PATH."""
    if promised() not in {"", "1"}:
        return promised()
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("pgbouncer", path=path)


# What is special about its clients. A statement that a driver prepared on one server connection is unknown to the next one.
_UNPREPARED: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None, "sslmode": "disable"},
    "psycopg2": {"sslmode": "disable"},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__{uuid.uuid4()}__",
        "ssl": False,
    },
}


def connect_args(port: int, doors: Door) -> dict[str, Any]:
    """Return what makes the door's driver connect through PgBouncer."""
    return {"host": "127.0.0.1", "port": port, **_UNPREPARED[doors.driver]}


class Guard:
    """Our end: while this process lives, PgBouncer may."""

    def __init__(
        self,
        host: str,
        port: int,
        user: str,
        password: str | None,
        mode: str = "transaction",
        size: int = SERVER_CONNECTIONS,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pgbouncer"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([host, port, user, password, mode, size]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process that keeps it did not start"}')
        if "error" in answer:
            self.close()
            raise NoPgbouncer(answer["error"])
        self.port = int(answer["port"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


# The process that keeps it


def _configuration(settings: list[Any], listen: int, folder: Path) -> str:
    host, port, user, password, mode, size = settings
    secret = "" if password is None else " password='" + password.replace("'", "''") + "'"
    return f"""
[databases]
* = host={host} port={port} user={user}{secret}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 250
ignore_startup_parameters = extra_float_digits
logfile = {folder / "log"}
"""


def _start(account: Account, folder: Path, settings: list[Any]) -> tuple[subprocess.Popen[bytes], int]:
    found = program()
    if found is None:
        raise NoPgbouncer("there is no pgbouncer on PATH or in an sbin; Debian's package has that name")
    for _ in range(3):  # somebody else may take the free port before it does
        listen = _free_port()
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(_configuration(settings, listen, folder))
        account.give(configuration)
        process = subprocess.Popen(
            [found, "--quiet", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account.popen(),
        )
        if _listens(process, listen):
            return process, listen
    raise NoPgbouncer(f"{found} ended at once; its log ends with:\n{_tail(folder / 'log')}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
                return False
        else:
            return process.poll() is None
    process.kill()
    process.wait()
    return False


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then let us go
    settings = json.loads(sys.stdin.readline())
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="sessionkit-pgbouncer-"))
    account.give(folder)
    process = None
    try:
        try:
            process, port = _start(account, folder, settings)
            answer: dict[str, Any] = {"port": port}
        except (NoPgbouncer, OSError) as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        if process is not None:
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
