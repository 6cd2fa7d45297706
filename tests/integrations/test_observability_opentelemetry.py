"""Spans and metrics of scopes, as OpenTelemetry's own SDK sees them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import REQUIRED, SYSTEM, Retry, commits, errors, set_rollback_only
from sessionkit.integrations import opentelemetry
from sessionkit.integrations.wsgi import SessionKitMiddleware
from tests.contract.lost import link
from tests.contract.versioned import Doc, tables
from tests.support.faults import Fault
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers

__all__ = ["tables"]

UNIQUE = {"sqlite": "SQLITE_CONSTRAINT_UNIQUE", "postgresql": "23505"}
SYSTEMS = {"sqlite": "sqlite", "postgresql": "postgresql"}


class Telemetry:
    """An SDK in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def spans(self) -> list[ReadableSpan]:
        """Return what has ended so far, in the order of the beginning."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def span(self) -> ReadableSpan:
        (span,) = self.spans()
        return span

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        data: Any = self._reader.get_metrics_data()
        return [
            (dict(point.attributes), point.count if hasattr(point, "count") else point.value)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    opentelemetry.instrument(made.tracers, made.meters)
    yield made
    opentelemetry.uninstrument()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("sessionkit."): value for name, value in (span.attributes or {}).items()}


def current() -> trace.SpanContext:
    return trace.get_current_span().get_span_context()


class Mine(Exception):
    pass


async def test_a_scope_makes_a_span_that_tells_what_it_is_and_how_it_ended(doors: Door, telemetry: Telemetry) -> None:
    async with doors.scope(name="open account", isolation="SERIALIZABLE") as session:
        session.add(Account(id=1))
    span = telemetry.span()
    assert span.name == "scope open account"
    told = attributes(span)
    assert told.pop("db.namespace")
    assert told == {
        "scope.kind": "unit",
        "scope.name": "open account",
        "scope.outcome": "committed",
        "preset.isolation": "SERIALIZABLE",
        "db.system.name": SYSTEMS[doors.backend],
    }
    assert span.status.is_unset
    assert not current().is_valid


async def test_the_span_is_the_current_one_for_the_body_and_for_what_it_sends(
    doors: Door, telemetry: Telemetry
) -> None:
    seen = []
    event.listen(doors.sync_engine, "before_cursor_execute", lambda *_: seen.append(current()))
    with trace.get_tracer("mine", tracer_provider=telemetry.tracers).start_as_current_span("request") as request:
        async with doors.scope() as session:
            inside = current()
            session.add(Account(id=1))
        # INSERT is sent as the scope ends; in async code by a task of its own.
        assert seen
        assert all(each == inside for each in seen)
        assert current() == request.get_span_context()
    around, span = telemetry.spans()
    assert span.name == "scope"
    assert span.context == inside
    assert span.parent == around.context


async def test_an_error_is_told_by_its_kind_and_without_its_values(doors: Door, telemetry: Telemetry) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('ann of the secret')")
    with pytest.raises(IntegrityError, match="ann of the secret"):
        async with doors.scope() as session:
            session.add(User(name="ann of the secret"))
    span = telemetry.span()
    assert attributes(span)["scope.outcome"] == "rolled_back"
    assert attributes(span)["error.type"] == UNIQUE[doors.backend]
    assert not span.status.is_ok
    assert span.status.description == f"IntegrityError ({UNIQUE[doors.backend]})"
    assert "secret" not in span.to_json()


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_rollback_that_was_asked_for_is_no_error(doors: Door, telemetry: Telemetry) -> None:
    async with doors.scope() as session:
        doors.call(set_rollback_only, session)
    assert attributes(telemetry.span())["scope.outcome"] == "rolled_back"
    assert telemetry.span().status.is_unset


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_an_error_that_was_swallowed_is_told(doors: Door, telemetry: Telemetry) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope(name="outer"):
            try:
                async with doors.scope(name="inner"):
                    raise Mine
            except Mine:
                pass
    outer, inner = telemetry.spans()
    assert attributes(inner)["error.type"] == "Mine"
    assert attributes(outer)["error.type"] == "UnexpectedRollback"
    assert attributes(outer)["scope.outcome"] == "rolled_back"


async def test_each_attempt_is_a_span_with_a_link_to_the_one_before(doors: Door, telemetry: Telemetry) -> None:
    await doors.write("INSERT INTO users (name) VALUES ('ann')")
    names = ["ann", "ann", "bob"]

    async def add(session: Any) -> None:
        session.add(User(name=names.pop(0)))

    await doors.decorate(add, retry=Retry(wait=0, on=IntegrityError), name="add")()
    first, second, third = telemetry.spans()
    assert [attributes(span)["scope.retries"] for span in (first, second, third)] == [0, 1, 2]
    assert [attributes(span)["scope.outcome"] for span in (first, second, third)] == ["rolled_back"] * 2 + ["committed"]
    assert [[link.context for link in span.links] for span in (first, second, third)] == [
        [],
        [first.context],
        [second.context],
    ]
    assert [span.parent for span in (first, second, third)] == [None] * 3
    code = UNIQUE[doors.backend]
    assert telemetry.points("sessionkit.scope.retries") == [({"sessionkit.scope.name": "add", "error.type": code}, 2)]


async def test_scopes_without_the_settings_of_their_factory_are_told_as_such(doors: Door, telemetry: Telemetry) -> None:
    Session = doors.factory(settings={"app.tenant": REQUIRED}, settings_on_sqlite="ignore")
    async with doors.scope(Session, settings=SYSTEM, name="reindex"):
        async with doors.scope(Session):
            pass
        async with doors.scope(Session, settings={"app.tenant": 7}, propagation="savepoint"):
            pass
    async with doors.scope(Session, settings={"app.tenant": 7}):
        async with doors.scope(Session, settings=SYSTEM, name="inner", propagation="savepoint"):
            pass
    assert [attributes(span).get("system") for span in telemetry.spans()] == [True, True, None, None, True]


async def test_a_mutex_and_locking_are_told_where_they_are(doors: Door, telemetry: Telemetry) -> None:
    async def unit(session: AsyncSession, runs: list[int]) -> None:
        runs.append(1)
        async with doors.scope(mutex=("inner", 7)):
            pass
        if len(runs) == 1:
            raise StaleDataError("somebody was faster")

    await doors.decorate(unit, mutex="outer", retry=Retry(2, wait=0, lock_on_retry=True))([])
    seen = [{name: attributes(span).get(name) for name in ("mutex", "locking")} for span in telemetry.spans()]
    inner = {"mutex": "t2(s5:inner i1:7)", "locking": None}
    outer = {"mutex": "s5:outer", "locking": None}
    assert seen == [outer, inner, {**outer, "locking": True}, inner]


@pytest.mark.parametrize("joined", [False, True])
async def test_a_replay_is_told_and_counts_as_committed(doors: Door, telemetry: Telemetry, joined: bool) -> None:
    await doors.twin(commits.create_table, commits.async_create_table)(doors.engine)

    async def unit(session: AsyncSession) -> int:
        return 7

    run = doors.decorate(unit, once="key")
    for _ in range(2):
        if joined:
            async with doors.scope(name="outer"):
                assert await run() == 7
        else:
            assert await run() == 7
    spans = [span for span in telemetry.spans() if attributes(span)["scope.name"] != "outer"]
    assert [attributes(span).get("replayed") for span in spans] == [None, True]
    if not joined:
        assert [attributes(span)["scope.outcome"] for span in spans] == ["committed", "committed"]


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_attempts_of_a_loop_are_told_as_those_of_a_function(doors: Door, telemetry: Telemetry) -> None:
    runs = 0
    async for attempt in doors.attempts(retry=Retry(wait=0, on=Mine)):
        async with attempt:
            runs += 1
            if runs == 1:
                raise Mine
    assert [attributes(span)["scope.retries"] for span in telemetry.spans()] == [0, 1]
    assert telemetry.points("sessionkit.scope.retries") == [({"error.type": "Mine"}, 1)]


@pytest.mark.usefixtures("tables")
@pytest.mark.doors("sqlite-sync", "postgresql-async")
async def test_a_version_conflict_is_counted(doors: Door, telemetry: Telemetry) -> None:
    async with doors.scope() as session:
        session.add(Doc(id=1, title="a"))
    with pytest.raises(errors.VersionConflict):
        async with doors.scope(name="edit") as session:
            doc = await session.get(Doc, 1)
            assert doc is not None
            doc.title = "b"
            await (await session.connection()).execute(text("UPDATE v_docs SET version_id = version_id + 1"))
    assert attributes(telemetry.spans()[-1])["scope.conflicts"] == 1
    ((counted, rows),) = telemetry.points("sessionkit.scope.conflicts")
    assert (counted["sessionkit.scope.name"], rows) == ("edit", 1)


async def test_scopes_that_join_lie_inside_the_unit(doors: Door, telemetry: Telemetry) -> None:
    async with doors.scope(name="unit"):
        async with doors.scope(name="join"):
            async with doors.scope(name="savepoint", propagation="savepoint") as session:
                session.add(Account(id=1))
    async with doors.session() as session:

        async def work(session: Any) -> None: ...

        await doors.decorate(work, form="keyword")(session=session)
    unit, join, savepoint, passed = telemetry.spans()
    assert [attributes(span)["scope.kind"] for span in (unit, join, savepoint, passed)] == [
        "unit",
        "join",
        "savepoint",
        "passed",
    ]
    assert (join.parent, savepoint.parent, passed.parent) == (unit.context, join.context, None)
    assert ["scope.outcome" in attributes(span) for span in telemetry.spans()] == [True, False, False, False]
    # Only transactions are counted.
    assert sum(count for _, count in telemetry.points("sessionkit.scope.duration")) == 1


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_scopes_that_join_can_be_left_out(doors: Door, telemetry: Telemetry) -> None:
    opentelemetry.instrument(telemetry.tracers, telemetry.meters, joined=False)
    async with doors.scope(name="unit"), doors.scope(name="join"):
        pass
    assert telemetry.span().name == "scope unit"


async def test_the_metrics_count_what_is_open_and_how_long_it_was(doors: Door, telemetry: Telemetry) -> None:
    known = {"sessionkit.scope.name": "work", "db.system.name": SYSTEMS[doors.backend]}
    async with doors.scope(name="work"):
        assert telemetry.points("sessionkit.scope.active") == [(known, 1)]
    with pytest.raises(Mine):
        async with doors.scope(name="work"):
            raise Mine
    assert telemetry.points("sessionkit.scope.active") == [(known, 0)]
    ended = sorted(
        telemetry.points("sessionkit.scope.duration"), key=lambda point: point[0]["sessionkit.scope.outcome"]
    )
    assert ended == [
        ({**known, "sessionkit.scope.outcome": "committed"}, 1),
        ({**known, "sessionkit.scope.outcome": "rolled_back", "error.type": "Mine"}, 1),
    ]


@pytest.mark.doors(backend="postgresql")
async def test_an_unknown_outcome_is_told(doors: Door, telemetry: Telemetry) -> None:
    with link(doors) as way:
        way.proxy.at("COMMIT", Fault.LOSE_REPLY)
        with pytest.raises(errors.CommitOutcomeUnknown):
            async with doors.scope(way.factory) as session:
                session.add(Account(id=1))
    assert attributes(telemetry.span())["scope.outcome"] == "unknown"


@pytest.mark.doors(colour="async")
async def test_a_cancelled_scope_ends_its_span(doors: Door, telemetry: Telemetry) -> None:
    inside = doors.event()

    async def work() -> None:
        async with doors.scope() as session:
            await session.execute(text("SELECT 1"))
            inside.set()
            await asyncio.get_running_loop().create_future()

    with trace.get_tracer("mine", tracer_provider=telemetry.tracers).start_as_current_span("request"):
        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    request, span = telemetry.spans()
    assert attributes(span)["error.type"] == "CancelledError"
    assert attributes(span)["scope.outcome"] == "rolled_back"
    assert span.parent == request.context


async def test_units_at_the_same_time_have_traces_of_their_own(doors: Door, telemetry: Telemetry) -> None:
    barrier = doors.barrier(2)

    async def work() -> trace.SpanContext:
        async with doors.scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            await barrier.wait()
            seen = current()
            await barrier.wait()
            return seen

    seen = await doors.together(work, work)
    assert [span.parent for span in telemetry.spans()] == [None, None]
    assert {span.context.span_id for span in telemetry.spans()} == {each.span_id for each in seen}
    assert len({each.trace_id for each in seen}) == 2


@pytest.mark.doors("sqlite-sync")
async def test_a_scope_that_is_left_in_another_context_ends_its_span(
    doors: Door, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """As frameworks leave what they entered by a generator: in a copy of the context, or in another one."""
    scope = doors.Session.scope(name="elsewhere")
    there = contextvars.copy_context()
    there.run(scope.__enter__)
    scope.__exit__(None, None, None)
    assert telemetry.span().name == "scope elsewhere"
    with caplog.at_level(logging.DEBUG):
        # The span that has ended is still the current one there, but nothing becomes its child.
        there.run(lambda: _enter_and_leave(doors.Session.scope(name="next")))
    assert telemetry.spans()[-1].parent is None
    assert not there.run(current).is_valid
    assert not caplog.records


def _enter_and_leave(scope: Any) -> None:
    with scope:
        pass


@pytest.mark.doors("sqlite-sync")
async def test_what_the_body_puts_into_the_context_stays_there(doors: Door, telemetry: Telemetry) -> None:
    def body() -> None:
        with doors.Session.scope():
            context.attach(baggage.set_baggage("shop", "7"))
            assert current().is_valid
        assert baggage.get_baggage("shop") == "7"
        assert not current().is_valid

    contextvars.copy_context().run(body)


@pytest.mark.doors("sqlite-sync")
async def test_a_web_request_is_counted_by_its_method(doors: Door, telemetry: Telemetry) -> None:
    """Its path may be anything, so no metric and no name of a span has it."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    for method in ("GET", "BREW"):
        environ = {"REQUEST_METHOD": method, "PATH_INFO": "/users/7", "wsgi.input": None, "wsgi.multithread": False}
        list(SessionKitMiddleware(app, doors.Session)(environ, lambda *_: None))  # type: ignore[arg-type, misc]
    get, other = telemetry.spans()
    assert (get.name, attributes(get)["scope.name"]) == ("scope GET", "GET /users/7")
    assert other.name == "scope _OTHER"
    counted = [point["sessionkit.scope.name"] for point, _ in telemetry.points("sessionkit.scope.duration")]
    assert counted == ["GET", "_OTHER"]


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_to_instrument_twice_makes_each_span_once(doors: Door, telemetry: Telemetry) -> None:
    other = Telemetry()
    opentelemetry.instrument(other.tracers, other.meters)
    async with doors.scope():
        pass
    assert len(other.spans()) == 1
    assert not telemetry.spans()


@pytest.mark.doors("sqlite-sync", "sqlite-async")
async def test_a_scope_that_is_open_when_it_is_switched_off_ends_its_span(doors: Door, telemetry: Telemetry) -> None:
    async with doors.scope():
        opentelemetry.uninstrument()
        async with doors.scope():
            pass
    assert len(telemetry.spans()) == 1
    assert not current().is_valid


@contextmanager
def broken(telemetry: Telemetry) -> Iterator[None]:
    class Broken(SimpleSpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError("no room for spans")

    telemetry.tracers.add_span_processor(Broken(InMemorySpanExporter()))
    yield


async def test_a_tracer_that_fails_breaks_no_scope(
    doors: Door, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    with broken(telemetry):
        async with doors.scope() as session:
            session.add(Account(id=1))
    assert await doors.rows("SELECT id FROM accounts") == [(1,)]
    assert "no room for spans" in caplog.text
