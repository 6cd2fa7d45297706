"""A primary and streaming replicas of a test's own, which it may kill, pause and promote.

The servers are children of a minder (minder.py), so that none is left when the tests are killed.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from tests.support import models
from tests.support.postgres import ROOT, PostgresUnavailable
from tests.support.postgres_binaries import Candidate, candidates
from tests.support.postgres_keeper import PREFIX, SETTINGS, NoServer, _account, _free_port, _roomy_folder

DURABLE = {**SETTINGS, "synchronous_commit": "on", "max_connections": "50"}


class Node:
    """One server. It may be up or down."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.data = cluster.folder / name
        self.port = _free_port()
        self.pid: int | None = None
        self.settings = dict(DURABLE)

    def url(self, driver: str) -> URL:
        return URL.create(
            f"postgresql+{driver}", username="postgres", host="127.0.0.1", port=self.port, database="postgres"
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.cluster.programs.program("postgres"), "-D", str(self.data), "-p", str(self.port), *settings]
        self.pid = self.cluster.ask(start=command, log=f"{self.data}.log", popen=self.cluster.account.popen())
        ready = self.cluster.programs.program("pg_isready")
        for _ in range(600):
            if not subprocess.run([ready, "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode:
                return
            time.sleep(0.05)
        raise PostgresUnavailable(f"a server did not start:\n{Path(f'{self.data}.log').read_text()}")

    def stop(self, how: int = signal.SIGINT) -> None:
        """End it: SIGINT politely, SIGQUIT at once as after a crash."""
        self.cluster.ask(signal=int(how), pid=self.pid)
        self.pid = None

    def sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url("psycopg").set(drivername="postgresql").render_as_string(), autocommit=True) as c:
            cursor = c.execute(statement)
            return cursor.fetchall() if cursor.description else []


class Cluster:
    """A primary and its replicas."""

    def __init__(self, replicas: int) -> None:
        self.account = _account()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_roomy_folder()))
        self.account.give(self.folder)
        self.programs = self._usable()
        self._minder = subprocess.Popen(
            [sys.executable, "-m", "tests.support.minder"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.primary = Node(self, "primary")
        self._run("initdb", "-D", str(self.primary.data), "--username=postgres", "--auth=trust", "--no-sync",
                  "--encoding=UTF8", "--locale=C")  # fmt: skip
        self.primary.start()
        models.load(self.primary.url("psycopg"))
        self.replicas = [self.replica(f"replica{number}") for number in range(replicas)]

    def _usable(self) -> Candidate:
        for candidate in candidates():
            if candidate.program("pg_basebackup") and self.account.can_run(candidate.program("pg_basebackup")):
                return candidate
        raise PostgresUnavailable("no PostgreSQL with pg_basebackup was found")

    def _run(self, program: str, *arguments: str) -> None:
        try:
            self.account.run([self.programs.program(program), *arguments])
        except NoServer as error:
            raise PostgresUnavailable(str(error)) from error

    def replica(self, name: str, *, follows: Node | None = None) -> Node:
        """Clone the primary, and have the clone follow it, or another replica."""
        node = Node(self, name)
        self._run("pg_basebackup", "-h", "127.0.0.1", "-p", str(self.primary.port), "-U", "postgres", "--no-sync",
                  "-D", str(node.data), "-R", "-X", "stream", "-c", "fast")  # fmt: skip
        if follows is not None:
            node.settings["primary_conninfo"] = f"host=127.0.0.1 port={follows.port} user=postgres"
        node.start()
        return node

    def ask(self, **request: Any) -> Any:
        assert self._minder.stdin is not None
        assert self._minder.stdout is not None
        self._minder.stdin.write(json.dumps(request) + "\n")
        self._minder.stdin.flush()
        return json.loads(self._minder.stdout.readline())

    def heal(self) -> None:
        """Bring everything up, resume replay, empty the tables, and wait until every replica shows it."""
        for node in (self.primary, *self.replicas):
            if node.pid is None:
                node.start()
        tables = ", ".join(table.name for table in models.Base.metadata.sorted_tables)
        self.primary.sql(f"TRUNCATE {tables} RESTART IDENTITY")
        for replica in self.replicas:
            replica.sql("SELECT pg_wal_replay_resume()")
        self.catch_up()

    def catch_up(self, *replicas: Node) -> None:
        """Wait until the replicas have replayed what the primary has written."""
        [(lsn,)] = self.primary.sql("SELECT CAST(pg_current_wal_lsn() AS text)")
        for replica in replicas or self.replicas:
            for _ in range(600):
                [(done, _)] = replica.sql(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}', pg_sleep(0.02)")
                if done:
                    break
            else:
                raise PostgresUnavailable(f"a replica did not catch up:\n{Path(f'{replica.data}.log').read_text()}")

    def close(self) -> None:
        assert self._minder.stdin is not None
        self._minder.stdin.close()
        self._minder.wait(60)
        if self._minder.stdout is not None:
            self._minder.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
