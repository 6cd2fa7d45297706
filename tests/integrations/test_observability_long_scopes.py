"""What is open for too long is named while it is, with the line that opened it. The clock is the test's."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import select
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sessionkit import SYSTEM, errors
from sessionkit._observers import observers
from sessionkit.factory import Session
from sessionkit.integrations.long_scopes import Found, LongScopes
from tests.support.models import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Watch:
    """A finder whose clock stands still until somebody moves it."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.found: list[Found] = []
        self.finder = LongScopes(5, on_found=self.found.append, clock=lambda: self.now, every=None, **options)

    def after(self, seconds: float) -> list[Found]:
        """Return what is reported if it looks so many seconds later."""
        self.now += seconds
        self.found.clear()
        self.finder.look()
        return list(self.found)


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    with made.finder:
        yield made
    assert not observers
    assert "__init__" not in vars(Session.__mro__[1])


def line(offset: int) -> str:
    """Return the place that is so many lines below the caller's."""
    frame: Any = inspect.currentframe()
    return f"{__file__}:{frame.f_back.f_lineno + offset}"


async def test_a_long_scope_is_named_while_it_is_open_and_when_it_has_ended(
    doors: Door, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    here = line(1)
    async with doors.enter(doors.Session.scope(name="report")) as session:
        session.add(Account(id=1))
        assert watch.after(5) == []
        (found,) = watch.after(0.5)
        assert (found.event, found.what, found.name, found.seconds) == ("open", "scope", "report", 5.5)
        if doors.colour == "async":
            assert found.place == here
        assert ("task" if doors.colour == "async" else "thread") in found.owner
        assert str(found) == (
            f"the scope 'report' opened at {found.place} by {found.owner} has been in its transaction for 5.5 s and is still open"
        )
        assert watch.after(60) == []
        watch.now += 10
    (ended,) = watch.found
    assert (ended.event, ended.place, ended.seconds) == ("ended", found.place, 75.5)
    assert [(record.name, record.levelname) for record in caplog.records] == [("sessionkit.scope", "WARNING")] * 2
    assert [vars(record)["sessionkit_place"] for record in caplog.records] == [found.place] * 2
    assert caplog.records[0].getMessage() == str(found)


async def test_a_long_scope_without_the_settings_of_its_factory_is_told_as_such(
    doors: Door, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    for options in ({"settings": SYSTEM}, {}):
        async with doors.scope(name="reindex", **options):
            (found,) = watch.after(6)
    assert not found.system
    assert [getattr(record, "sessionkit_system", None) for record in caplog.records] == [True, True, None, None]


@pytest.mark.doors("sqlite-sync")
async def test_the_line_is_that_of_the_with(doors: Door, watch: Watch) -> None:
    here = line(1)
    with doors.Session.scope():
        (found,) = watch.after(6)
    assert found.place == here


async def test_the_line_of_a_decorated_function_is_where_it_is_written(doors: Door, watch: Watch) -> None:
    """Also where nobody's code calls it: as the target of a thread, or in a task."""

    async def work(session: Any) -> list[Found]:
        await session.execute(text("SELECT 1"))
        return watch.after(6)

    (found,) = await doors.decorate(work)()
    assert found.place == f"{__file__}:{work.__code__.co_firstlineno}"
    assert found.name == work.__qualname__


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_short_scope_is_not_reported_and_neither_is_one_that_joins(doors: Door, watch: Watch) -> None:
    async with doors.scope():
        watch.now += 4
    assert watch.found == []
    async with doors.scope():
        watch.now += 4
        async with doors.scope():
            assert watch.after(4)[0].name is None
            assert len(watch.found) == 1
    assert [found.event for found in watch.found] == ["open", "ended"]


async def test_a_session_that_nobody_ends_is_named_with_the_line_that_made_it(doors: Door, watch: Watch) -> None:
    here = line(1)
    session = doors.neutral(doors.Session())
    await session.execute(text("SELECT 1"))
    (found,) = watch.after(6)
    assert (found.event, found.what, found.name, found.place) == ("open", "session", None, here)
    await session.close()
    assert [found.event for found in watch.found] == ["open", "ended"]
    # It is used again, and ended in time.
    await session.execute(text("SELECT 1"))
    await session.close()
    assert watch.after(6) == []


@pytest.mark.doors("sqlite-async", "postgresql-async")
async def test_of_another_factorys_session_the_line_is_where_it_began(doors: Door, watch: Watch) -> None:
    async with doors.plain_factory()() as session:
        here = line(1)
        await session.execute(text("SELECT 1"))
        (found,) = watch.after(6)
    assert found.place == here


@pytest.mark.doors(colour="sync")
async def test_a_session_that_is_forgotten_in_its_transaction_is_named(doors: Door, watch: Watch) -> None:
    def forget() -> None:
        session = doors.Session()
        session.execute(text("SELECT 1"))

    forget()
    gc.collect()
    assert watch.found == []  # nothing is called from within the garbage collector
    (found,) = watch.after(1)
    assert (found.event, found.what) == ("lost", "session")
    assert found.place == f"{__file__}:{forget.__code__.co_firstlineno + 1}"
    assert "was garbage collected after 1.0 s in a transaction that never ended" in str(found)


@pytest.mark.doors("sqlite-sync")
async def test_a_scope_that_is_never_left_is_named(doors: Door, watch: Watch) -> None:
    def forget() -> None:
        doors.Session.scope(name="forgotten").__enter__().execute(text("SELECT 1"))

    # In a thread, whose context ends with it.
    await doors.in_other_thread(forget)
    gc.collect()
    (found,) = watch.after(1)
    assert (found.event, found.what, found.name) == ("lost", "scope", "forgotten")


async def test_a_clock_that_fails_breaks_no_session_and_no_scope(doors: Door, caplog: pytest.LogCaptureFixture) -> None:
    with LongScopes(1, every=None, clock=lambda: 1 / 0):
        async with doors.session() as session:
            session.add(Account(id=1))
            await session.commit()
        async with doors.scope() as session:
            session.add(Account(id=2))
    assert await doors.rows("SELECT id FROM accounts ORDER BY id") == [(1,), (2,)]
    assert caplog.text.count("ZeroDivisionError") == 2


@pytest.mark.doors("sqlite-sync")
async def test_a_callback_that_fails_is_logged(doors: Door, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with LongScopes(1, on_found=lambda _: 1 / 0, every=None, clock=lambda: now[0]) as finder:
        with doors.Session.scope():
            now[0] = 2
            finder.look()
    assert caplog.text.count("ZeroDivisionError") == 2


@pytest.mark.doors("sqlite-sync")
async def test_a_thread_looks_by_itself_and_ends(doors: Door) -> None:
    reported = threading.Event()
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    finder = LongScopes(0.001, on_found=lambda _: reported.set(), every=0.001)
    assert "sessionkit-long-scopes" not in names()
    with doors.Session.scope():
        assert reported.wait(30)
        (looking,) = [thread for thread in threading.enumerate() if thread.name == "sessionkit-long-scopes"]
    assert looking.daemon
    finder.close()
    finder.close()
    looking.join(30)
    assert not looking.is_alive()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.doors("sqlite-sync")
async def test_a_process_that_was_forked_has_a_thread_of_its_own(doors: Door) -> None:
    _fork(doors)


def _fork(doors: Door) -> None:
    (found, finds), (waits, goes_on) = os.pipe(), os.pipe()
    with LongScopes(0.001, on_found=lambda each: os.write(finds, each.event.encode()), every=0.001):
        with doors.Session.scope():
            assert os.read(found, 4) == b"open"
        assert os.read(found, 5) == b"ended"
        child = os.fork()
        if child == 0:
            os.close(goes_on)
            with doors.Session.scope():
                os.read(waits, 1)  # ends when the parent has closed the other end, or is no more
            os._exit(0)
        try:
            ready, _, _ = select.select([found], [], [], 30)
            assert ready, "no thread looks in the child"
            assert os.read(found, 4) == b"open"
        finally:
            os.close(goes_on)
            os.waitpid(child, 0)
    for end in (found, finds, waits):
        os.close(end)


@pytest.mark.parametrize(
    "wrong",
    [{"longer_than": 0}, {"longer_than": "5"}, {"longer_than": 5, "every": 0}, {"longer_than": 5, "on_found": 7}],
)
def test_what_is_no_time_and_no_function_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError, match="was given to LongScopes"):
        LongScopes(**wrong)
    assert not observers


def test_it_is_silent_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Watch().finder as finder:
        finder.look()
    assert not caplog.records
