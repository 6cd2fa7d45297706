"""`races` finds each anomaly of the Hermitage suite where the database allows it, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sessionkit import Isolation, effective_isolation, sqlite
from sessionkit._dialects._base import ANOMALIES
from tests.concurrency.staged import ABORT, COMMIT, Aborted, History, Scenario, Track
from tests.concurrency.test_anomalies import SCENARIOS, add
from tests.support.racing import race

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sessionkit.testing import Schedule
    from tests.support.doors import Door


def unit(
    doors: Door, factory: Any, statements: tuple[str, ...], options: dict[str, Any]
) -> Callable[[], Coroutine[Any, Any, Any]]:
    async def body() -> list[list[Any]]:
        reads = []
        try:
            async with doors.scope(factory, **options) as session:
                for statement in statements:
                    if statement == ABORT:
                        raise Aborted
                    if statement != COMMIT:
                        result = await session.execute(text(statement))
                        if statement.startswith("SELECT"):
                            reads.append(list(result.scalars()))  # type: ignore[attr-defined]
        except Aborted:
            pass
        return reads

    return body


def history(scenario: Scenario, schedule: Schedule) -> History:
    tracks = []
    for statements, outcome in zip(scenario.transactions, schedule.outcomes, strict=True):
        track = Track(statements, [], [Over()])  # type: ignore[list-item]
        track.refused = outcome.error  # type: ignore[assignment]
        track.reads = outcome.value or []
        tracks.append(track)
    return History(tracks, {row[0]: row[2] for row in schedule.state["accounts"]})


def in_order(schedule: Schedule) -> bool:
    """Tell whether unit 1 commits before unit 2, as the scenarios take it that what unit 2 writes is the newer."""
    commits = [step.unit for step in schedule.steps if step.statement == "COMMIT"]
    return 1 not in commits or 2 not in commits or commits.index(1) < commits.index(2)


class Over:
    def is_set(self) -> bool:
        return True


async def shows(doors: Door, level: Isolation, anomaly: str, scenario: Scenario, kind: str) -> bool:
    engine = doors.make_engine()
    if kind != "as it is":
        sqlite.configure(engine, begin="deferred" if kind == "deferred" else "immediate")
    factory = doors.factory(engine)

    async def setup() -> None:
        async with doors.scope(factory) as session:
            for statement in (add(1, 10), add(2, 20)):
                await session.execute(text(statement))

    found = await race(
        doors,
        *(unit(doors, factory, statements, {"isolation": level}) for statements in scenario.transactions),
        factories=[factory],
        setup=setup,
        max_schedules=1000 if len(scenario.transactions) == 2 else 300,
    )
    # Of three serializable units each step depends on each end: there it is a sample.
    assert found.complete or (len(scenario.transactions) == 3 and level is Isolation.SERIALIZABLE)
    # A unit that is refused returns nothing: what it has read before it was is not part of its outcome.
    return any(
        scenario.shows(history(scenario, each))
        for each in found.schedules
        if all(outcome.error is None for outcome in each.outcomes) and (anomaly != "OTV" or in_order(each))
    )


async def check(doors: Door, level: Isolation, anomaly: str, kind: str = "as it is") -> None:
    expected = anomaly in effective_isolation(doors.engine, level).anomalies
    seen = [await shows(doors, level, anomaly, scenario, kind) for scenario in SCENARIOS[anomaly]]
    assert any(seen) == expected


each_anomaly = pytest.mark.parametrize("anomaly", ANOMALIES)


@pytest.mark.doors("postgresql-sync", "postgresql-async")
@pytest.mark.own_database
@pytest.mark.parametrize("level", [Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE])
@each_anomaly
async def test_on_postgresql_each_anomaly_is_found_below_the_level_that_forbids_it(
    doors: Door, anomaly: str, level: Isolation
) -> None:
    await check(doors, level, anomaly)


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("kind", ["as it is", "configured", "deferred"])
@each_anomaly
async def test_on_sqlite_no_anomaly_is_found(doors: Door, anomaly: str, kind: str) -> None:
    await check(doors, Isolation.SERIALIZABLE, anomaly, kind)
