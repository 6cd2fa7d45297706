"""The examination: which checks apply to which database. No check can stop the others or run for ever.

To add a check, write a function of a connection and the patient that yields findings, and put it into a row of `CHECKS`. Each
check runs in its own transaction, so a failing one does not affect the others.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from sessionkit.errors import classify

from . import _general, _pool, _postgresql, _replication, _row_security, _sqlite, _tables
from ._finding import Finding, fail, warn
from ._words import error_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Connection

    from sessionkit._spi import Position

    from ._patient import Patient

__all__ = ["CHECKS", "LIVE", "Case", "Check", "examine"]


class Check(NamedTuple):
    """A row of the table.

    Attributes:
        name: the name to report if the check itself fails.
        run: yields findings.
        silence: the finding if the check never returns; None means that the server hangs. A check with one comes last.
    """

    name: str
    run: Callable[[Connection, Patient], Iterable[Finding]]
    silence: Finding | None = None


_DRIVER = Check("server.driver", _general.driver)
_BULK = Check("server.bulk", _general.row_counts)
_MARKERS = Check("commits.table", _tables.markers)
_KEYS = Check("commits.once_table", _tables.keys)

CHECKS: dict[str, tuple[Check, ...]] = {
    "postgresql": (
        Check("server.version", _postgresql.version),
        _DRIVER,
        Check("server.role", _postgresql.standby),
        Check("server.durability", _postgresql.durability),
        _BULK,
        Check("isolation.presets", _general.presets(_postgresql.modes)),
        Check("sessions.privileges", _postgresql.privileges),
        Check("sessions.idle", _postgresql.left_over),
        Check("sessions.idle_timeout", _postgresql.idle_timeout),
        Check("sessions.prepared", _postgresql.prepared),
        Check("pool.size", _pool.pool),
        Check("pool.pooler", _pool.pooler, _pool.SILENT_POOLER),
        Check("replication.replicas", _replication.replicas),
        _MARKERS,
        _KEYS,
    ),
    "sqlite": (
        Check("server.version", _sqlite.version),
        _DRIVER,
        _BULK,
        Check("file", _sqlite.file),
        Check("file.foreign_keys", _sqlite.foreign_keys),
        Check("engine", _sqlite.engine),
        Check("isolation.presets", _general.presets(_sqlite.modes, locks=True)),
        _MARKERS,
        _KEYS,
    ),
}
LIVE = {"postgresql": Check("sessions.waits", _postgresql.waits)}
"""The check of `--live`, for servers that support it."""

OTHERS = (
    Check("server.known", _general.unknown),
    _DRIVER,
    _BULK,
    Check("isolation.presets", _general.presets(None)),
    _MARKERS,
    _KEYS,
)


def _nothing(connection: Connection, patient: Patient) -> tuple[()]:
    return ()


_CONNECTION = Check("server.connection", _nothing)

# What the thread reports: the start of a check, a finding, an error of its own, or the end.
_Said = Check | Finding | BaseException | None

SLACK = 5.0
"""Extra seconds that a check may be silent, on top of a connection attempt and a statement."""


@dataclass(frozen=True)
class Case:
    """What to examine.

    Attributes:
        patient: the database.
        readers: its replicas.
        models: the application's classes, if named.
        migrations: Alembic's configuration, if named.
        live: whether to show which sessions wait for which at this moment.
        factories: the settings and role of the application's factories, if named.
    """

    patient: Patient
    readers: list[Patient] = field(default_factory=list)
    models: _tables.Models | None = None
    migrations: Any = None
    live: bool = False
    factories: list[_row_security.Tenancy] = field(default_factory=list)

    def checks(self) -> list[Check]:
        """Return the checks of the database."""
        checks = list(CHECKS.get(self.patient.engine.dialect.name, OTHERS))
        if self.patient.entry.row_security:
            checks.append(Check("rls.tables", partial(_row_security.row_security, factories=self.factories)))
        if self.live:
            checks.append(LIVE[self.patient.engine.dialect.name])
        if self.models is not None:
            checks.append(Check("models.tables", partial(_tables.models, given=self.models)))
        if self.migrations is not None:
            checks.append(Check("migrations.head", partial(_tables.migrations, config=self.migrations)))
        return checks


def examine(case: Case) -> list[Finding]:
    """Return all findings, group by group. Changes nothing, and ends whatever the server does.

    Each connection attempt and each statement has a limit. But a server that accepts a statement and then hangs does not
    enforce it. So the work runs in a separate thread, which is abandoned when it is silent for too long.
    """
    told: queue.Queue[_Said] = queue.Queue()
    threading.Thread(target=_work, args=(case, told.put), name="sessionkit-doctor", daemon=True).start()
    found: list[Finding] = []
    at, silence = _CONNECTION, 2 * case.patient.limits.timeout + SLACK
    while True:
        try:
            said = told.get(timeout=silence)
        except queue.Empty:
            return _in_groups([*found, at.silence or _silent(at.name, silence)])
        if said is None:
            return _in_groups(found)
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, Finding):
            found.append(said)
        else:
            at = said


def _silent(name: str, seconds: float) -> Finding:
    hint = "check whether the server hangs, or the network drops packets; --timeout waits longer"
    return fail(name, f"no answer for {seconds:g} s, so nothing else was checked", hint)


def _in_groups(findings: list[Finding]) -> list[Finding]:
    groups = [finding.check.partition(".")[0] for finding in findings]
    return sorted(findings, key=lambda finding: groups.index(finding.check.partition(".")[0]))


def _work(case: Case, tell: Callable[[_Said], None]) -> None:
    try:
        if any(patient.engine.dialect.is_async for patient in (case.patient, *case.readers)):
            # Not the default loop: psycopg cannot use the default one of Windows.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(_in_greenlet(case, tell))
        else:
            _examine(case, tell)
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the findings
        tell(error)
    else:
        tell(None)


async def _in_greenlet(case: Case, tell: Callable[[_Said], None]) -> None:
    await greenlet_spawn(_examine, case, tell)


def _examine(case: Case, tell: Callable[[_Said], None]) -> None:
    patient = case.patient
    primary: Position | None = None
    if (absent := _sqlite.missing(patient) if patient.reading is not None else None) is not None:
        tell(absent)
        return
    checks = case.checks()
    with ExitStack() as stack:
        stack.enter_context(patient.examined())
        reached = _reach(_CONNECTION, patient, tell)
        if reached:
            for check in checks:
                if check.silence is None:
                    _carry_out(check, patient, tell)
            if case.readers:
                # Without it one comparison is skipped.
                with suppress(DBAPIError), patient.looking() as connection:
                    primary = _replication.position(connection, patient)
        for number, reader in enumerate(case.readers, 1):
            name = f"readers.{number}"
            stack.enter_context(reader.examined())
            check = Check(name, partial(_replication.reader, name=name, primary=primary))
            if _reach(check, reader, tell):
                _carry_out(check, reader, tell)
        for check in checks:
            if reached and check.silence is not None:
                _carry_out(check, patient, tell)


def _reach(check: Check, patient: Patient, tell: Callable[[_Said], None]) -> bool:
    tell(check)
    try:
        with patient.looking():
            return True
    except Exception as error:  # noqa: BLE001 - drivers raise various errors when no server answers
        tell(_unreachable(check.name, patient, error))
        return False


def _carry_out(check: Check, patient: Patient, tell: Callable[[_Said], None]) -> None:
    tell(check)
    try:
        with patient.looking() as connection:
            for finding in check.run(connection, patient):
                tell(finding)
    except Exception as error:  # noqa: BLE001 - the other checks still run
        tell(_not_asked(check.name, patient, error))


def _not_asked(check: str, patient: Patient, error: Exception) -> Finding:
    text = error_line(error, patient.secrets)
    known = classify(error) if isinstance(error, DBAPIError) else None
    code = known.code if known is not None else None
    if known is not None and known.kind == "busy":
        return fail(check, text, "a transaction holds a lock for long: end it, and run the doctor again")
    if code == "42501":
        return warn(check, f"the role may not query this: {text}", "GRANT pg_monitor to the role, or use another one")
    if code in {"57014", "55P03"}:
        return warn(check, f"no result after {patient.limits.timeout:g} s: {text}", "--timeout waits longer")
    if code in {"26000", "42P05"}:
        return fail(
            check,
            "a pooler switches the server connections of this engine, so its prepared statements are on other "
            f"connections: {text}",
            "run the doctor with this engine's URL, and see pool.pooler",
        )
    kind = "" if isinstance(error, DBAPIError) else f"{type(error).__name__}: "
    return fail(check, f"could not be checked: {kind}{text}", "fix that first, and run the doctor again")


_ADVICE = {
    "28P01": "check the password: in the URL, in PGPASSWORD, in ~/.pgpass",
    "28000": "check the user, and the server's pg_hba.conf",
    "3D000": "check the name; CREATE DATABASE creates it",
    "53300": "all connection slots are taken: make the pools smaller, or put a pooler in between",
    "08P01": "if there is a pooler in statement mode: set pool_mode = transaction, because statement mode has no "
    "transactions",
    "57P03": "the server is starting or stopping: try again",
}


def _unreachable(check: str, patient: Patient, error: Exception) -> Finding:
    text = error_line(error, patient.secrets)
    url = patient.engine.url
    place = f"{url.host}:{url.port}" if url.host and url.port else url.host or "it"
    advice = _ADVICE.get(str(getattr(getattr(error, "orig", None), "sqlstate", None)))
    if isinstance(error, ImportError):
        advice = "install the driver"
    return fail(
        check,
        f"no connection: {text}" if isinstance(error, DBAPIError) else f"no connection: {type(error).__name__}: {text}",
        advice or f"check whether {place} is up and accepts this machine, and check user, password and database"
        if patient.reading is None
        else f"check whether another process locks {url.database}, and the files beside it (-journal, -wal)",
    )
