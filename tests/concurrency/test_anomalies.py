"""Each cell of the table behind `effective_isolation`: the anomalies that it allows occur, the others do not.

After the Hermitage suite of M. Kleppmann (https://github.com/ept/hermitage), which stages the phenomena of A. Adya's
thesis; here the transactions are scopes, and the schedule is kept by a conductor (staged.py). PMP, G-single and G2 have
a second form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sessionkit import Isolation, effective_isolation, sqlite
from sessionkit._dialects._base import ANOMALIES
from tests.concurrency.staged import ABORT, COMMIT, Scenario, Stage

if TYPE_CHECKING:
    from tests.concurrency.staged import History
    from tests.support.doors import Door

ONE = "SELECT balance FROM accounts WHERE id = 1"
TWO = "SELECT balance FROM accounts WHERE id = 2"
BOTH = "SELECT balance FROM accounts WHERE id IN (1, 2) ORDER BY id"
THIRDS = "SELECT balance FROM accounts WHERE balance % 3 = 0"


def put(key: int, balance: int) -> str:
    return f"UPDATE accounts SET balance = {balance} WHERE id = {key}"


def add(key: int, balance: int) -> str:
    return f"INSERT INTO accounts (id, owner, balance) VALUES ({key}, 'x', {balance})"


def vanishes(history: History) -> bool:
    """Tell whether the observer saw something of the later writer, and then again what it had overwritten."""
    version = {10: 0, 20: 0, 11: 1, 19: 1, 12: 2, 18: 2}
    seen = [version[value] for value in history.values(3)]
    return seen != sorted(seen)


SCENARIOS: dict[str, list[Scenario]] = {
    # dirty write: the writes of two transactions are mixed
    "G0": [
        Scenario(
            ((put(1, 11), put(2, 21), COMMIT), (put(1, 12), put(2, 22), COMMIT)),
            "121122",
            lambda history: (history.final[1], history.final[2]) in {(11, 22), (12, 21)},
        )
    ],
    # aborted read
    "G1a": [
        Scenario(
            ((put(1, 101), ABORT), (BOTH, BOTH, COMMIT)),
            "12122",
            lambda history: 101 in history.values(2),
        )
    ],
    # intermediate read: of a value that its writer overwrote
    "G1b": [
        Scenario(
            ((put(1, 101), put(1, 11), COMMIT), (BOTH, BOTH, COMMIT)),
            "121122",
            lambda history: 101 in history.values(2),
        )
    ],
    # circular information flow: each reads what the other has written
    "G1c": [
        Scenario(
            ((put(1, 11), TWO, COMMIT), (put(2, 22), ONE, COMMIT)),
            "121212",
            lambda history: history.all_committed() and history.values(1) == [22] and history.values(2) == [11],
        )
    ],
    # observed transaction vanishes
    "OTV": [
        Scenario(
            ((put(1, 11), put(2, 19), COMMIT), (put(1, 12), put(2, 18), COMMIT), (ONE, TWO, TWO, ONE, COMMIT)),
            "11213232333",
            vanishes,
        )
    ],
    # predicate-many-preceders: a query finds what an earlier one of the transaction should have found
    "PMP": [
        Scenario(
            (("SELECT balance FROM accounts WHERE balance = 30", THIRDS, COMMIT), (add(3, 30), COMMIT)),
            "12211",
            lambda history: history.read(1)[0] == [] and history.read(1)[1] != [],
        ),
        # the same with a predicate that a write goes by
        Scenario(
            (
                ("UPDATE accounts SET balance = balance + 10", COMMIT),
                (
                    "SELECT id FROM accounts WHERE balance = 20",
                    "DELETE FROM accounts WHERE balance = 20",
                    "SELECT id FROM accounts WHERE balance = 20",
                    COMMIT,
                ),
            ),
            "122122",
            lambda history: history.tracks[1].committed and history.read(2)[0] == [2] and history.read(2)[1] != [],
        ),
    ],
    # lost update: both wrote, neither saw the other
    "P4": [
        Scenario(
            ((ONE, put(1, 11), COMMIT), (ONE, put(1, 12), COMMIT)),
            "121212",
            lambda history: history.all_committed() and history.values(1) == history.values(2) == [10],
        )
    ],
    # read skew
    "G-single": [
        Scenario(
            ((ONE, TWO, COMMIT), (ONE, TWO, put(1, 12), put(2, 18), COMMIT)),
            "12222211",
            lambda history: history.values(1) == [10, 18],
        ),
        # the same with a predicate that a write goes by: it misses the row that the transaction has seen
        Scenario(
            ((BOTH, "DELETE FROM accounts WHERE balance = 20", COMMIT), (BOTH, put(1, 12), put(2, 18), COMMIT)),
            "1222211",
            lambda history: history.all_committed() and history.values(1) == [10, 20] and 2 in history.final,
        ),
    ],
    # write skew on items
    "G2-item": [
        Scenario(
            ((BOTH, put(1, 11), COMMIT), (BOTH, put(2, 21), COMMIT)),
            "121212",
            lambda history: history.all_committed() and history.values(1) == history.values(2) == [10, 20],
        )
    ],
    # anti-dependency cycle through a predicate
    "G2": [
        Scenario(
            ((THIRDS, add(3, 30), COMMIT), (THIRDS, add(4, 42), COMMIT)),
            "121212",
            lambda history: history.all_committed() and history.values(1) == history.values(2) == [],
        ),
        # with a transaction that only reads: it sees the second writer's work and not the first's, which comes before
        Scenario(
            ((BOTH, put(1, 0), COMMIT), (BOTH, put(2, 25), COMMIT), (BOTH, COMMIT)),
            "122233" + "11",
            lambda history: (
                history.tracks[0].committed and history.values(1) == [10, 20] and history.values(3) == [10, 25]
            ),
        ),
    ],
}


def engine_of(doors: Door, kind: str) -> Any:
    if kind == "as it is":
        return doors.make_engine(**({"connect_args": {"timeout": 25}} if doors.backend == "sqlite" else {}))
    return sqlite.configure(
        doors.make_engine(), busy_timeout=25, begin="deferred" if kind == "deferred" else "immediate"
    )


def options_of(doors: Door, kind: str) -> dict[str, Any]:
    if kind == "deferred":
        # A deferred writer in the way of another is refused, sooner or later.
        return {"lock_timeout": 0.01, "deferred": True}
    # Without WAL a reader keeps a writer's COMMIT waiting: there each takes its turn from the beginning.
    return {"read_only": None} if doors.backend == "sqlite" and kind == "as it is" else {}


async def observed(doors: Door, kind: str, level: Isolation, scenario: Scenario) -> tuple[bool, History]:
    engine = engine_of(doors, kind)
    await doors.write("DELETE FROM accounts")
    for statement in (add(1, 10), add(2, 20)):
        await doors.write(statement)
    if doors.backend == "sqlite":
        async with doors.enter(engine.connect()):
            pass  # the first connection of a configured engine waits to be alone
    stage = Stage(doors, doors.factory(engine), scenario, isolation=level, **options_of(doors, kind))
    history = await stage.play()
    return scenario.shows(history), history


async def check(doors: Door, kind: str, level: Isolation, anomaly: str) -> None:
    expected = anomaly in effective_isolation(doors.engine, level).anomalies
    seen = [await observed(doors, kind, level, scenario) for scenario in SCENARIOS[anomaly]]
    told = "\n\n".join(str(history) for _, history in seen)
    assert any(shown for shown, _ in seen) == expected, f"{anomaly} at {level}:\n{told}"


each_anomaly = pytest.mark.parametrize("anomaly", ANOMALIES)
each_level = pytest.mark.parametrize("level", list(Isolation))


@pytest.mark.doors(backend="postgresql")
@each_level
@each_anomaly
async def test_postgresql_allows_what_the_table_says_and_nothing_else(
    doors: Door, anomaly: str, level: Isolation
) -> None:
    await check(doors, "as it is", level, anomaly)


@pytest.mark.doors(backend="sqlite")
@each_level
@each_anomaly
@pytest.mark.parametrize("kind", ["as it is", "configured", "deferred"])
async def test_sqlite_allows_what_the_table_says_and_nothing_else(
    doors: Door, anomaly: str, level: Isolation, kind: str
) -> None:
    await check(doors, kind, level, anomaly)


@pytest.mark.doors("postgresql-sync", "postgresql-async")
async def test_the_conductor_sees_that_a_statement_is_kept_waiting(doors: Door) -> None:
    """Else the order of the scenarios would be an accident."""
    (scenario,) = SCENARIOS["G0"]
    _, history = await observed(doors, "as it is", Isolation.READ_COMMITTED, scenario)
    assert history.waited == {1}
    assert history.final == {1: 12, 2: 22}


@pytest.mark.doors(backend="sqlite")
async def test_on_sqlite_the_second_writer_waits_from_its_beginning(doors: Door) -> None:
    (scenario,) = SCENARIOS["P4"]
    _, history = await observed(doors, "configured", Isolation.SERIALIZABLE, scenario)
    assert history.waited == {1}
    assert (history.values(1), history.values(2)) == ([10], [11])


@pytest.mark.doors(backend="sqlite")
async def test_sqlalchemys_default_on_sqlite_would_lose_updates(doors: Door) -> None:
    """The calibration: without a real BEGIN the same schedule shows the anomaly."""
    await doors.write(add(1, 10))
    async with doors.connect() as one, doors.connect() as two:
        read = [(await connection.execute(text(ONE))).scalar_one() for connection in (one, two)]
        for connection in (one, two):
            await connection.execute(text(put(1, 11)))
            await connection.commit()
    assert read == [10, 10]
