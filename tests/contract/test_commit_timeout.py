"""`commit_timeout`: a COMMIT that hangs is cut, and its outcome is told as any other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import Retry, errors, on_commit, on_rollback, sqlite
from tests.contract.breaking import names
from tests.contract.lost import SILENT_COMMITS, create_markers, link
from tests.support.faults import Fault
from tests.support.models import User

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
SILENT = pytest.mark.parametrize("fault", SILENT_COMMITS, ids=lambda fault: fault.name)


@POSTGRESQL
@SILENT
async def test_a_commit_that_nobody_answers_is_cut_and_its_outcome_is_unknown(doors: Door, fault: Fault) -> None:
    hooks: list[str] = []
    with link(doors) as way:
        way.proxy.at("COMMIT", fault)
        begun = time.monotonic()
        with pytest.raises(errors.CommitOutcomeUnknown) as caught:
            async with doors.scope(way.factory, commit_timeout=0.3) as session:
                on_commit(lambda: hooks.append("commit"))
                on_rollback(lambda: hooks.append("rollback"))
                session.add(User(name="ann"))
        assert 0.3 <= time.monotonic() - begun < 1.3
        assert errors.outcome_of(caught.value) == "unknown"
        assert hooks == []
        # What was cut does not come back out of the pool.
        async with doors.scope(way.factory) as session:
            session.add(User(name="bob"))
        way.proxy.reset()
    assert ("ann" in await names(doors)) is SILENT_COMMITS[fault]
    assert "bob" in await names(doors)


@POSTGRESQL
async def test_a_commit_that_was_carried_out_in_silence_is_found_out(doors: Door) -> None:
    await create_markers(doors)
    hooks: list[str] = []
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.SWALLOW_REPLY)
        async with doors.scope(way.factory, commit_timeout=0.2, verify_commit=True) as session:
            on_commit(lambda: hooks.append("commit"))
            session.add(User(name="ann"))
    assert hooks == ["commit"]
    assert await names(doors) == ["ann"]


@POSTGRESQL
async def test_a_commit_that_was_swallowed_is_found_out_when_its_link_is_given_up(doors: Door) -> None:
    """The server learns from the reset that nobody is there any more, and only then the claim gets the key."""
    await create_markers(doors)
    runs: list[int] = []
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.SWALLOW)

        async def body(session: AsyncSession) -> None:
            runs.append(1)
            session.add(User(name=f"run {len(runs)}"))

        run = doors.decorate(body, way.factory, commit_timeout=0.2, verify_commit=True, retry=Retry(3, wait=0))
        await run()
    assert await names(doors) == ["run 2"]


async def test_a_commit_that_is_quick_does_not_notice(doors: Door) -> None:
    async with doors.scope(commit_timeout=30) as session:
        session.add(User(name="ann"))
    with pytest.raises(LookupError):
        async with doors.scope(commit_timeout=30):
            raise LookupError
    async with doors.scope(commit_timeout=30):
        pass
    assert await names(doors) == ["ann"]


@pytest.mark.doors(backend="sqlite")
async def test_a_commit_that_waits_for_a_reader_is_given_up_in_time_and_has_rolled_back(doors: Door) -> None:
    """In rollback journal mode the COMMIT waits until nobody reads; SQLite's own limit would be half a minute."""
    engine = sqlite.configure(doors.make_engine(), wal=False, busy_timeout=30)
    hooks: list[str] = []
    async with doors.connect() as reader:
        await reader.execute(text("BEGIN"))
        await reader.execute(text("SELECT * FROM users"))
        begun = time.monotonic()
        with pytest.raises(DBAPIError) as caught:
            async with doors.scope(doors.factory(engine), commit_timeout=0.2) as session:
                on_rollback(lambda: hooks.append("rollback"))
                session.add(User(name="ann"))
        assert time.monotonic() - begun < 1.5
    assert errors.classify(caught.value).kind == "busy"
    assert errors.outcome_of(caught.value) == "rolled back"
    assert hooks == ["rollback"]
    # And the limit is not left behind.
    async with doors.scope(doors.factory(engine)) as session:
        assert (await session.execute(text("PRAGMA busy_timeout"))).scalar_one() == 30_000


@pytest.mark.parametrize("seconds", [0, -1, "1", True, float("nan")])
async def test_a_commit_timeout_must_be_seconds(doors: Door, seconds: Any) -> None:
    with pytest.raises(errors.OptionError, match="commit_timeout="):
        doors.Session.scope(commit_timeout=seconds)


async def test_a_joined_scope_gets_the_limit_that_it_asks_for_or_an_error(doors: Door) -> None:
    async with doors.scope(commit_timeout=5):
        async with doors.scope(commit_timeout=10):
            pass
        with pytest.raises(errors.OptionError, match="commit_timeout=1 s was asked for, but .* runs with 5 s"):
            async with doors.scope(commit_timeout=1):
                raise AssertionError
    async with doors.scope():
        with pytest.raises(errors.OptionError, match="runs with none of its own"):
            async with doors.scope(commit_timeout=1):
                raise AssertionError
