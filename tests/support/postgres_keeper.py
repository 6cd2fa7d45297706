"""The keeper: a small process that owns the PostgreSQL server of one test run.

    python -m tests.support.postgres_keeper

It prints a port and then waits for two things. Whoever connects to that port and says `want` is told the server's
address; the first one makes the keeper start the server. And when the keeper's standard input ends, it stops the server
by its process id and deletes the data.

Why a process of its own: standard input ends however pytest ends, by SIGKILL too, so nothing is left behind and there
is no window between starting the server and arming a guard, because the guard starts it. Why a port: under xdist only
the workers know whether a selected test wants PostgreSQL, and all of them must get the same server; they ask here.
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
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.postgres_binaries import VERSION_VARIABLE, Candidate, candidates, nothing_found

if sys.platform != "win32":
    import pwd

PREFIX = "sessionkit-pg-"
SETTINGS = {
    # The data does not outlive the run, so nothing is gained by making it durable.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_prepared_transactions": "20",
    "max_connections": "200",
    # The data may be in memory: a query that runs away (generate_series() of a billion) must fail, and not fill the
    # machine.
    "temp_file_limit": "256MB",
    "max_wal_size": "256MB",
    "listen_addresses": "127.0.0.1",
    # No socket file: its path would be as long as the temporary folder's, which on some machines is too long.
    "unix_socket_directories": "",
    # Replicas are cloned from this server by the tests that need one.
    "wal_level": "replica",
    "log_line_prefix": "%m [%p] %d ",
}


class NoServer(Exception):
    """A candidate did not become a server; the text says why."""


@dataclass(frozen=True)
class Running:
    """What the keeper tells about its server."""

    host: str
    port: int
    user: str
    version: str
    source: str
    bin: str
    runs_as: str
    data: str
    pid: int
    keeper: int


class Keeper:
    """Start the server once, when first asked; stop it once, at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: dict[str, Any] | None = None

    def want(self) -> dict[str, Any]:
        with self._lock:
            if self._answer is None:
                try:
                    self._answer = asdict(self._start())
                except NoServer as error:
                    self._answer = {"error": str(error)}
                except BaseException:  # noqa: BLE001 - whatever it was, the tests must see it and not wait for an answer
                    self._answer = {"error": traceback.format_exc()}
            return self._answer

    def report(self) -> dict[str, Any]:
        """Tell about the server without starting it."""
        return self._answer or {}

    def stop(self) -> None:
        with self._lock:
            self._answer = {"error": "the test run is over"}
            self._discard()

    def _start(self) -> Running:
        account = _account()
        refused = []
        for candidate in candidates():
            try:
                return self._start_from(candidate, account)
            except NoServer as error:
                refused.append(f"  {candidate.source} ({candidate.bin}): {error}")
                self._discard()
        tried = "\n".join(refused) or "  no PostgreSQL was found anywhere"
        raise NoServer(f"PostgreSQL could not be started. Tried:\n{tried}\n{nothing_found()}")

    def _start_from(self, candidate: Candidate, account: Account) -> Running:
        if missing := candidate.missing():
            raise NoServer(f"holds no {' and no '.join(missing)}")
        wanted = os.environ.get(VERSION_VARIABLE)
        if wanted and (version := candidate.version()).split(".")[0] != wanted:
            raise NoServer(f"is PostgreSQL {version}, and {VERSION_VARIABLE} asks for {wanted}")
        self._folder = folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_roomy_folder()))
        account.give(folder)
        if candidate.parts and not account.can_run(candidate.program("initdb")):
            # A virtual environment below a private home, and we had to become somebody else.
            copy = folder / "programs"
            copy.mkdir()
            candidate = candidate.copied_to(copy) or candidate
        data = folder / "data"
        # UTF8 is said, because in a C locale initdb would choose an encoding in which the drivers cannot talk.
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        account.run([candidate.program("initdb"), "-D", str(data), *options])
        for _ in range(3):  # somebody else may take the free port before the server does
            port = _free_port()
            process = self._launch(candidate, account, data, port, folder / "log")
            if _is_ready(process, data):
                break
            self._process = None
        else:
            raise NoServer(f"the server ended at once; its log ends with:\n{_tail(folder / 'log')}")
        version = account.run([candidate.program("postgres"), "--version"]).split()[2]  # postgres (PostgreSQL) 18.6
        return Running(
            host="127.0.0.1",
            port=port,
            user="postgres",
            version=version,
            source=candidate.source,
            bin=str(candidate.bin),
            runs_as=account.name,
            data=str(data),
            pid=process.pid,
            keeper=os.getpid(),
        )

    def _launch(
        self, candidate: Candidate, account: Account, data: Path, port: int, log: Path
    ) -> subprocess.Popen[bytes]:
        settings = {**SETTINGS, "port": str(port)}
        command = [candidate.program("postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with log.open("ab") as output:
            # The server is our child and not pg_ctl's grandchild: we see at once when it ends, and its process id is
            # sure.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **account.popen()
            )
        return self._process

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # Smart, fast, immediate shutdown have signals of their own; ours is fast, then less and less polite.
            for number in (signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGTERM), getattr(signal, "SIGKILL", None)):
                if process.poll() is not None:
                    break
                process.send_signal(number) if number is not None else process.kill()
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Account:
    """Who runs the server: PostgreSQL refuses to run as root."""

    name: str
    uid: int | None = None
    gid: int | None = None

    def popen(self) -> dict[str, Any]:
        """Return the arguments of Popen that make a child run as this account."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        # The folder that the tests run in may be closed to the account; the server needs none.
        arguments: dict[str, Any] = {"cwd": "/", "env": {**environment, "LC_ALL": "C"}}
        if self.uid is not None:
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def give(self, folder: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(folder, self.uid, self.gid)

    def can_run(self, program: str) -> bool:
        try:
            self.run([program, "--version"])
        except NoServer:
            return False
        return True

    def run(self, command: list[str]) -> str:
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
                text=True,
                **self.popen(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoServer(f"as {self.name}: {error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise NoServer(f"as {self.name}: {Path(command[0]).name} ended with {done.returncode}: {said}")
        return done.stdout.strip()


def _account() -> Account:
    if sys.platform == "win32":
        return Account("this user")
    if os.geteuid() != 0:
        return Account("this user")
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise NoServer("PostgreSQL does not run as root, and this machine has neither a `postgres` nor a `nobody` account")


def _roomy_folder() -> str | None:
    """Choose memory where it is roomy: there a database is cloned ten times faster than on a busy disk."""
    memory = Path("/dev/shm")
    try:
        roomy = shutil.disk_usage(memory).free > 1 << 30 and os.access(memory, os.W_OK | os.X_OK)
    except OSError:
        return None
    return str(memory) if roomy else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _is_ready(process: subprocess.Popen[bytes], data: Path) -> bool:
    """Wait until the server takes connections (True) or has ended (False)."""
    status = data / "postmaster.pid"
    for _ in range(3000):
        try:
            # The eighth line of this file is the server's own word; pg_ctl reads it too.
            if status.read_text().splitlines()[7].strip() == "ready":
                return True
        except (OSError, IndexError):
            pass
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        return False
    process.kill()
    process.wait()
    return False


def _tail(log: Path) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-15:])


def _serve(listener: socket.socket, keeper: Keeper) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, keeper), daemon=True).start()


def _answer(connection: socket.socket, keeper: Keeper) -> None:
    stream: IO[str]
    with connection, connection.makefile("rw") as stream:
        question = stream.readline().strip()
        stream.write(json.dumps(keeper.want() if question == "want" else keeper.report()) + "\n")


def main() -> None:
    keeper = Keeper()
    # A polite end of the keeper itself ends the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sys.stdout.write(f"{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            threading.Thread(target=_serve, args=(listener, keeper), daemon=True).start()
            sys.stdin.buffer.read()
    finally:
        keeper.stop()


if __name__ == "__main__":
    main()
