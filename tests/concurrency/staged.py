"""Interleavings of real transactions, staged statement by statement.

A scenario says what each transaction does and in which order the statements are sent. Each transaction is a scope in a
thread or task of its own; the conductor tells it to send its next statement and waits until that has been answered,
or until it is certain that the database keeps it waiting. Then the conductor goes on with the others. Nobody sleeps.

How it is certain that a statement waits: PostgreSQL says so in pg_locks. SQLite says nothing, but its one write lock
is held by a transaction that was seen to begin, and a probe is refused it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door
    from tests.support.together import Event

COMMIT, ABORT = "commit", "abort"


@dataclass(frozen=True)
class Scenario:
    """An interleaving, and what in its history would be the anomaly.

    Attributes:
        transactions: the statements of each; the last word is COMMIT or ABORT.
        order: which transaction sends its next statement, as a string of their numbers from 1.
        shows: tells from the history whether the anomaly has occurred.
    """

    transactions: tuple[tuple[str, ...], ...]
    order: str
    shows: Callable[[History], bool]

    def writes(self, number: int) -> bool:
        return any(not statement.startswith("SELECT") for statement in self.transactions[number][:-1])


@dataclass
class Track:
    """One transaction as it went."""

    statements: tuple[str, ...]
    go: list[Event]
    done: list[Event]
    told: int = 0
    pid: int | None = None
    reads: list[list[Any]] = field(default_factory=list)
    refused: DBAPIError | None = None

    @property
    def outstanding(self) -> bool:
        """A statement was sent and is not answered."""
        return self.told > 0 and not self.done[self.told - 1].is_set()

    @property
    def began(self) -> bool:
        return self.done[0].is_set()

    @property
    def over(self) -> bool:
        return self.done[-1].is_set()

    @property
    def committed(self) -> bool:
        return self.over and self.refused is None and self.statements[-1] == COMMIT


@dataclass
class History:
    """What all transactions of a scenario have read, which committed, and what is in the table at the end."""

    tracks: list[Track]
    final: dict[int, int] = field(default_factory=dict)
    waited: set[int] = field(default_factory=set)

    def read(self, transaction: int) -> list[list[Any]]:
        """Return what the queries of a transaction (from 1) gave, one list each."""
        return self.tracks[transaction - 1].reads

    def values(self, transaction: int) -> list[Any]:
        return [value for rows in self.read(transaction) for value in rows]

    def all_committed(self) -> bool:
        return all(track.committed for track in self.tracks)

    def __str__(self) -> str:
        lines = []
        for number, track in enumerate(self.tracks, 1):
            end = (
                "committed" if track.committed else f"refused: {track.refused.orig}" if track.refused else "rolled back"
            )
            waited = ", had to wait" if number - 1 in self.waited else ""
            lines.append(f"T{number} read {track.reads}, {end}{waited}")
        return "\n".join([*lines, f"at the end: {self.final}"])


class Aborted(Exception):
    """The transaction rolls back because it wants to."""


class Stage:
    """Where a scenario is played."""

    def __init__(
        self, doors: Door, factory: Any, scenario: Scenario, *, deferred: bool = False, **options: Any
    ) -> None:
        self._doors = doors
        self._deferred = deferred  # SQLite: nobody takes a lock before it writes
        self._factory = factory
        self._scenario = scenario
        self._options = options
        self._tracks = [
            Track(statements, [doors.event() for _ in statements], [doors.event() for _ in statements])
            for statements in scenario.transactions
        ]
        self._waited: set[int] = set()

    async def play(self) -> History:
        """Play the scenario to its end."""
        await self._doors.together(self._conduct(), *(self._perform(number) for number in range(len(self._tracks))))
        rows = await self._doors.rows("SELECT id, balance FROM accounts ORDER BY id")
        return History(self._tracks, dict(rows), self._waited)  # type: ignore[arg-type]

    # The transactions

    async def _perform(self, number: int) -> None:
        track = self._tracks[number]
        options = {} if self._scenario.writes(number) else {"read_only": True}
        try:
            await track.go[0].wait()
            async with self._doors.scope(self._factory, **{**options, **self._options}) as session:
                track.pid = await self._pid(session)
                for step, statement in enumerate(track.statements):
                    await track.go[step].wait()
                    if statement == COMMIT:
                        break
                    if statement == ABORT:
                        raise Aborted
                    result = await session.execute(text(statement))
                    if statement.startswith("SELECT"):
                        track.reads.append(list(result.scalars()))  # type: ignore[attr-defined]
                    track.done[step].set()
        except Aborted:
            pass
        except DBAPIError as error:
            track.refused = error
        finally:
            for done in track.done:
                done.set()

    async def _pid(self, session: AsyncSession) -> int | None:
        """Ask the driver, not the server: a query would take the snapshot."""
        if self._doors.backend == "sqlite":
            return None

        def pid(sync_session: Any) -> int:
            driver = sync_session.connection().connection.driver_connection
            for ask in ("get_backend_pid", "get_server_pid"):
                if hasattr(driver, ask):
                    return int(getattr(driver, ask)())
            return int(driver.info.backend_pid)

        return int(await session.run_sync(pid))

    # The conductor

    async def _conduct(self) -> None:
        order = [int(digit) - 1 for digit in self._scenario.order]
        assert sorted(order) == sorted(number for number, track in enumerate(self._tracks) for _ in track.statements), (
            "the order sends each statement once"
        )
        while order:
            # Who is kept waiting does not get its next turn: the others go on, until one of them lets it go.
            turn = next(index for index, number in enumerate(order) if not self._tracks[number].outstanding)
            track = self._tracks[order.pop(turn)]
            if not track.over:
                track.go[track.told].set()
            track.told += 1
            await self._settle()

    async def _settle(self) -> None:
        while waiting := [number for number, track in enumerate(self._tracks) if track.outstanding]:
            kept = [await self._is_kept_waiting(number) for number in waiting]
            if all(kept):
                self._waited.update(waiting)
                return

    async def _is_kept_waiting(self, number: int) -> bool:
        track = self._tracks[number]
        if self._doors.backend == "postgresql":
            # Paced: each reading of pg_locks holds all locks of the lock table, and readers in a row would starve the
            # transactions, which want them for themselves (lwlock.c: who shares goes before who waits to exclude).
            query = "SELECT (SELECT count(*) FROM pg_locks WHERE pid = :pid AND NOT granted) FROM pg_sleep(0.003)"
            # Asked in any case: in the asynchronous colour this is what gives the other tasks their turn.
            return bool(await self._doors.scalar(query, pid=track.pid or 0))
        await self._doors.scalar("SELECT 1")
        holders = [
            other
            for other_number, other in enumerate(self._tracks)
            if self._takes_lock(other_number) and other.began and not other.outstanding and not other.over
        ]
        if track.began or not holders or not self._takes_lock(number):
            return False
        assert self._is_locked(), "a transaction that writes has begun, and does not hold the write lock"
        return True

    def _takes_lock(self, number: int) -> bool:
        """Tell whether a transaction begins by taking SQLite's write lock."""
        return not self._deferred and ("read_only" in self._options or self._scenario.writes(number))

    def _is_locked(self) -> bool:
        """Ask SQLite for the write lock, without waiting."""
        probe = sqlite3.connect(self._doors.database.url("pysqlite").database or "", timeout=0, isolation_level=None)
        try:
            probe.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        finally:
            probe.close()
        return False
