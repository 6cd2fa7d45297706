"""A record for each unit; and what holds for all who look on: they break nothing, and see beginnings with their ends."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import REQUIRED, SYSTEM, Retry, commits, errors, on_commit, set_rollback_only
from sessionkit._observers import observers
from sessionkit.integrations._observed import conflicts_in
from sessionkit.integrations.logging import log_scopes, stop_logging
from tests.contract.lost import link
from tests.support.faults import Fault
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

QUICK = pytest.mark.doors("sqlite-sync", "sqlite-async")
UNIQUE = {"sqlite": "SQLITE_CONSTRAINT_UNIQUE", "postgresql": "23505"}


class Mine(Exception):
    pass


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, "sessionkit.scope")
    log_scopes()
    yield caplog
    stop_logging()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name.removeprefix("sessionkit_"): v for name, v in vars(record).items() if name.startswith("sessionkit_")}


def told(logged: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, str(fields(record)["outcome"])) for record in logged.records]


async def test_a_unit_writes_a_record_with_fields_when_it_has_ended(
    doors: Door, logged: pytest.LogCaptureFixture
) -> None:
    async with doors.scope(name="order") as session:
        session.add(Account(id=1))
        async with doors.scope(name="joined"):
            pass
    (record,) = logged.records
    seen = fields(record)
    assert seen.pop("duration") > 0
    assert seen == {
        "event": "end",
        "scope": "order",
        "outcome": "committed",
        "slow": False,
        "attempt": 1,
        "error": None,
        "conflicts": 0,
    }
    assert (record.name, record.levelname) == ("sessionkit.scope", "DEBUG")
    assert record.getMessage().startswith("the scope 'order' committed after 0.")
    json.dumps(fields(record))


@QUICK
async def test_a_mutex_is_told_where_there_is_one(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    for options in ({}, {"mutex": 7}):
        async with doors.scope(**options):
            pass
    without, with_one = map(fields, logged.records)
    assert with_one["mutex"] == "i1:7"
    assert not {"mutex", "locking"} & without.keys()
    assert "locking" not in with_one


async def test_a_replay_is_told(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    await doors.twin(commits.create_table, commits.async_create_table)(doors.engine)

    async def unit(session: Any) -> int:
        return 7

    run = doors.decorate(unit, once="key", name="pay")
    await run()
    await run()
    first, again = logged.records
    assert "replayed" not in fields(first)
    assert fields(again)["replayed"] is True
    assert [fields(record)["outcome"] for record in logged.records] == ["committed", "committed"]
    assert again.getMessage().startswith("the scope 'pay' was replayed after 0.")


async def test_a_unit_without_the_settings_of_its_factory_is_told_as_such(
    doors: Door, logged: pytest.LogCaptureFixture
) -> None:
    Session = doors.factory(settings={"app.tenant": REQUIRED}, settings_on_sqlite="ignore")
    for options in ({"settings": {"app.tenant": 7}}, {"settings": SYSTEM, "name": "reindex"}):
        async with doors.scope(Session, **options):
            pass
    without, with_it = map(fields, logged.records)
    assert (with_it["scope"], with_it["system"]) == ("reindex", True)
    assert "system" not in without


async def test_a_retry_is_told_and_the_units_around_it(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('ann')")
    names = ["ann", "bob"]

    async def add(session: Any) -> None:
        session.add(User(name=names.pop(0)))

    await doors.decorate(add, retry=Retry(wait=0, on=IntegrityError), name="add")()
    failed, again, done = logged.records
    code = UNIQUE[doors.backend]
    assert (failed.levelname, fields(failed)["outcome"], fields(failed)["error"]) == ("INFO", "rolled_back", code)
    assert fields(again) == {"event": "retry", "scope": "add", "attempt": 1, "error": code, "delay": 0.0}
    assert again.getMessage() == f"the scope 'add' failed with {code} in attempt 1; it runs again in 0.000 s"
    assert (done.levelname, fields(done)["attempt"]) == ("DEBUG", 2)
    assert "bob" not in logged.text


@QUICK
async def test_the_level_tells_how_unexpected_the_end_was(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    async with doors.scope() as session:
        doors.call(set_rollback_only, session)
    with pytest.raises(Mine):
        async with doors.scope():
            raise Mine
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope():
            async with doors.scope() as joined:
                doors.call(set_rollback_only, joined)
    assert told(logged) == [("DEBUG", "rolled_back"), ("INFO", "rolled_back"), ("WARNING", "rolled_back")]


@pytest.mark.doors(backend="postgresql")
async def test_an_unknown_outcome_is_an_error(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        with pytest.raises(errors.CommitOutcomeUnknown):
            async with doors.scope(way.factory) as session:
                session.add(Account(id=1))
    assert [each for each in told(logged) if each[1] == "unknown"] == [("ERROR", "unknown")]


@QUICK
async def test_a_slow_unit_is_a_warning(doors: Door, logged: pytest.LogCaptureFixture) -> None:
    log_scopes(logging.INFO, slow=0)
    async with doors.scope():
        pass
    log_scopes(logging.INFO, slow=1000)
    async with doors.scope():
        pass
    assert told(logged) == [("WARNING", "committed"), ("INFO", "committed")]
    assert [fields(record)["slow"] for record in logged.records] == [True, False]


@pytest.mark.parametrize(
    "wrong", [{"level": "INFO"}, {"level": True}, {"slow": "1"}, {"slow": -1}, {"slow": float("nan")}]
)
def test_what_is_no_level_and_no_time_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError, match="was given to log_scopes"):
        log_scopes(**wrong)
    assert not observers


def test_the_conflicts_of_an_error_are_counted_also_where_it_was_swallowed() -> None:
    stale: Any = StaleDataError("two rows")
    stale.conflicts = (1, 2)
    swallowed = errors.UnexpectedRollback("nothing was committed")
    swallowed.__cause__ = stale
    assert [conflicts_in(each) for each in (None, Mine(), StaleDataError(), stale, swallowed)] == [0, 0, 1, 2, 2]


# -- whoever looks on -----------------------------------------------------------------------------------------------


class Faulty:
    """Fails wherever it can."""

    def __init__(self, when: str) -> None:
        self.when = when

    def entered(self, entry: object) -> Faulty:
        self._fail("entered")
        return self

    def retried(self, name: str | None, attempt: object) -> None:
        self._fail("retried")

    def left(self, error: BaseException | None) -> None:
        self._fail("left")

    def _fail(self, where: str) -> None:
        if self.when == where:
            raise RuntimeError(f"looking on failed as it was {where}")


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """What another one sees, which was there first."""
    log: list[str] = []

    class Other:
        def entered(self, entry: Any) -> Other:
            log.append("entered")
            return self

        def retried(self, name: str | None, attempt: object) -> None:
            log.append("retried")

        def left(self, error: BaseException | None) -> None:
            log.append("left" if error is None else f"left: {type(error).__name__}")

    observers.append(Other())
    yield log
    observers.clear()


@pytest.mark.parametrize("when", ["entered", "left", "retried"])
async def test_one_that_fails_is_logged_and_takes_nobodys_place(
    doors: Door, when: str, seen: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    observers.append(Faulty(when))
    runs, hooks = [], []

    async def work(session: Any) -> None:
        runs.append(1)
        on_commit(lambda: hooks.append(len(runs)))
        session.add(Account(id=1))
        async with doors.scope(propagation="savepoint"):
            await session.execute(text("SELECT 1"))
        if len(runs) == 1:
            raise Mine

    await doors.decorate(work, retry=Retry(wait=0, on=Mine))()
    with pytest.raises(Mine):
        async with doors.scope():
            raise Mine
    assert await doors.rows("SELECT id FROM accounts") == [(1,)]
    assert hooks == [2]
    inner = ["entered", "left"]
    first, second = ["entered", *inner, "left: Mine", "retried"], ["entered", *inner, "left"]
    assert seen == [*first, *second, "entered", "left: Mine"]
    assert f"looking on failed as it was {when}" in caplog.text


@QUICK
async def test_who_is_told_of_the_beginning_is_told_of_the_end(doors: Door, seen: list[str]) -> None:
    async with doors.scope():
        (other,) = observers
        observers.clear()
        async with doors.scope():
            observers.append(other)
    assert seen == ["entered", "left"]


@QUICK
async def test_the_last_that_was_told_of_the_beginning_is_the_first_to_be_told_of_the_end(
    doors: Door, seen: list[str]
) -> None:
    """So that the spans of two tracers lie inside each other."""

    class Second:
        def entered(self, entry: object) -> Second:
            return self

        def retried(self, name: str | None, attempt: object) -> None: ...

        def left(self, error: BaseException | None) -> None:
            seen.append("left second")

    observers.append(Second())
    async with doors.scope():
        async with doors.scope():
            pass
    assert seen == ["entered", "entered", "left second", "left", "left second", "left"]


@QUICK
async def test_the_end_is_told_before_the_hooks_run(doors: Door, seen: list[str]) -> None:
    async with doors.scope():
        on_commit(lambda: seen.append("hook"))
    assert seen == ["entered", "left", "hook"]


@QUICK
async def test_a_scope_that_cannot_begin_is_not_told_of(doors: Door, seen: list[str]) -> None:
    with pytest.raises(errors.ScopeError):
        async with doors.scope(propagation="require"):
            pass
    assert seen == []
