"""Traces and metrics of scopes, for OpenTelemetry.

::

    from sessionkit.integrations import opentelemetry

    opentelemetry.instrument()

Needs the extra ``opentelemetry``, which installs only the API: the application chooses the SDK. The reference lists the
spans, their attributes and the metrics.
"""

from __future__ import annotations

from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Link, Status, StatusCode

from .._spi import PRESET_FIELDS, bound_engines, observers
from ._observed import conflicts_in, error_type, group_of, kind_of, marks_of, name_of, outcome_of, run_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from .._spi import Entry
    from ..retry import Attempt

__all__ = ["instrument", "uninstrument"]

_NAME: Final = "sessionkit.scope.name"
_OUTCOME: Final = "sessionkit.scope.outcome"
_ERROR: Final = "error.type"

# From the semantic conventions for databases, in seconds.
_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

# Only the names that differ between SQLAlchemy and the semantic conventions.
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}

# Holds the span of the scope around a context.
_INSIDE = context.create_key("sessionkit-scope")

Attributes = dict[str, str | int | float | bool]


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    joined: bool = True,
) -> None:
    """Create a span for each scope, and count it in the metrics. Applies to the whole process.

    A span begins when a scope is entered. It ends when the transaction is settled and the connection returned, before the
    hooks run. It is the current span while the body runs, so spans of statements and of other libraries are its children.
    Each attempt of a retried unit gets its own span, with a link to the attempt before. Scopes that are already open get
    none. A second call replaces the first.

    Args:
        tracer_provider: makes the tracer; default: the global provider, even if it is set later.
        meter_provider: makes the meter; default: the global provider, as above.
        joined: also create spans for scopes that join a transaction or set a savepoint in it. The metrics count only
            transactions.

    Emits no SQL.
    """
    ours = version("sessionkit")
    tracer = trace.get_tracer("sessionkit", ours, tracer_provider)
    instruments = _Instruments(tracer, metrics.get_meter("sessionkit", ours, meter_provider), joined)
    uninstrument()
    observers.append(instruments)


def uninstrument() -> None:
    """Stop what `instrument` started. Open scopes still end their spans."""
    observers[:] = [each for each in observers if not isinstance(each, _Instruments)]


class _Instruments:
    """The observer: the tracer, and the instruments of the meter."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter, joined: bool) -> None:
        self.tracer = tracer
        self.joined = joined
        self.duration = meter.create_histogram(
            "sessionkit.scope.duration",
            "s",
            "How long the transaction of a scope was open.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.active = meter.create_up_down_counter(
            "sessionkit.scope.active", "{scope}", "How many scopes have a transaction open."
        )
        self.retries = meter.create_counter(
            "sessionkit.scope.retries", "{retry}", "How many attempts failed and were retried."
        )
        self.conflicts = meter.create_counter(
            "sessionkit.scope.conflicts", "{row}", "How many rows another transaction had changed."
        )

    def entered(self, entry: Entry) -> _ScopeSpan | None:
        return _ScopeSpan(self, entry) if entry.opened or self.joined else None

    def retried(self, name: str | None, attempt: Attempt) -> None:
        assert attempt.error is not None
        self.retries.add(1, {**_named(name), _ERROR: error_type(attempt.error)})


class _ScopeSpan:
    """The span of one entry, and its metrics."""

    def __init__(self, instruments: _Instruments, entry: Entry) -> None:
        self._instruments = instruments
        self._entry = entry
        self._counted = {**_named(name_of(entry)), **_database(entry)}
        run = run_of(entry)
        before = None if run is None else run.memory.get(_INSIDE)
        self._around = _outside_of_what_has_ended(context.get_current())
        self.span = instruments.tracer.start_span(
            " ".join(["scope", *map(str, _named(name_of(entry)).values())]),
            self._around,
            attributes=_attributes(entry),
            links=None if before is None else [Link(before)],
        )
        if run is not None:
            run.memory[_INSIDE] = self.span.get_span_context()
        self.over = False
        self._inside = trace.set_span_in_context(self.span, context.set_value(_INSIDE, self, self._around))
        if entry.opened:
            instruments.active.add(1, self._counted)
        context.attach(self._inside)
        self._begun = perf_counter()

    def left(self, error: BaseException | None) -> None:
        seconds = perf_counter() - self._begun
        self.over = True
        try:
            self._tell(error, seconds)
        finally:
            self._step_out()
            self.span.end()

    def _tell(self, error: BaseException | None, seconds: float) -> None:
        outcome, conflicts = outcome_of(self._entry), conflicts_in(error)
        ended: Attributes = {} if error is None else {_ERROR: error_type(error)}
        if outcome is not None:
            ended[_OUTCOME] = outcome.replace(" ", "_")
        self.span.set_attributes(ended)
        if conflicts:
            self.span.set_attribute("sessionkit.scope.conflicts", conflicts)
        if error is not None:
            # Without the message: a database error's message contains the values that were sent.
            self.span.set_status(Status(StatusCode.ERROR, f"{type(error).__qualname__} ({ended[_ERROR]})"))
        if outcome is not None:
            instruments = self._instruments
            instruments.active.add(-1, self._counted)
            instruments.duration.record(seconds, {**self._counted, **ended})
            if conflicts:
                instruments.conflicts.add(conflicts, self._counted)

    def _step_out(self) -> None:
        """Restore the previous current span if ours is still current.

        The token of `attach` would not do: a scope may be left in another context than it was entered in, where the token is
        invalid.
        """
        now = context.get_current()
        if now is self._inside:
            context.attach(self._around)
        elif context.get_value(_INSIDE, now) is self and trace.get_current_span(now) is self.span:
            # Other code has attached something on top, and it stays.
            outer = context.get_value(_INSIDE, self._around)
            around = trace.get_current_span(self._around)
            context.attach(trace.set_span_in_context(around, context.set_value(_INSIDE, outer, now)))
        self._inside = self._around  # avoids a reference cycle


def _outside_of_what_has_ended(now: Context) -> Context:
    """Return the context to begin a span in, skipping spans that have ended (their scope was left in another context)."""
    while isinstance(inside := context.get_value(_INSIDE, now), _ScopeSpan) and inside.over:
        if trace.get_current_span(now) is not inside.span:
            break
        now = inside._around
    return now


def _named(name: str | None) -> Attributes:
    group = group_of(name)
    return {} if group is None else {_NAME: group}


def _database(entry: Entry) -> Attributes:
    """Return the kind of database, if there is only one kind."""
    systems = {engine.dialect.name for engine in bound_engines(entry.unit.session)} if entry.unit is not None else ()
    if len(systems) != 1:
        return {}
    (name,) = systems
    return {"db.system.name": _SYSTEMS.get(name, name)}


def _attributes(entry: Entry) -> Attributes:
    name, run = name_of(entry), run_of(entry)
    found: Attributes = {"sessionkit.scope.kind": kind_of(entry), **_database(entry)}
    if name is not None:
        found[_NAME] = str(name)
    if entry.unit is not None:
        databases = {engine.url.database for engine in bound_engines(entry.unit.session)}
        if len(databases) == 1 and (database := databases.pop()):
            found["db.namespace"] = database
        preset: Any = entry.unit.preset
        for field in sorted(PRESET_FIELDS) if entry.opened else ():
            if (value := getattr(preset, field)) is not None:
                found[f"sessionkit.preset.{field}"] = value if isinstance(value, bool | int | float) else str(value)
    found |= {f"sessionkit.{what}": value for what, value in marks_of(entry).items()}
    if run is not None:
        found["sessionkit.scope.retries"] = run.number - 1
    return found
