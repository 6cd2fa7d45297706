"""The examination: which checks there are for which database, and that none of them can stop or outlast the others.

To add a check, write a function of a connection and the patient that yields findings, and put it into a row of `CHECKS`.
Each runs in a transaction of its own, so that one that fails spoils none of the others.
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

from . import _general, _pool, _postgresql, _replication, _sqlite, _tables
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
        name: how it is called where it cannot be carried out.
        run: yields findings.
        silence: what it means that nothing is heard of it any more; None: that the server hangs. Such a check comes last.
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
"""What `--live` asks, where the server tells it."""

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

# What the thread says: that it begins with a check, what it has found, that it broke, and that it is done.
_Said = Check | Finding | BaseException | None

SLACK = 5.0
"""By how many seconds a check may be silent for longer than a connection attempt and a statement take."""


@dataclass(frozen=True)
class Case:
    """What is to be examined.

    Attributes:
        patient: the database.
        readers: the replicas of it.
        models: the application's classes, if they were named.
        migrations: Alembic's configuration, if it was named.
        live: tell who waits for whom at this moment too.
    """

    patient: Patient
    readers: list[Patient] = field(default_factory=list)
    models: _tables.Models | None = None
    migrations: Any = None
    live: bool = False

    def checks(self) -> list[Check]:
        """Return those of the database."""
        checks = list(CHECKS.get(self.patient.engine.dialect.name, OTHERS))
        if self.live:
            checks.append(LIVE[self.patient.engine.dialect.name])
        if self.models is not None:
            checks.append(Check("models.tables", partial(_tables.models, given=self.models)))
        if self.migrations is not None:
            checks.append(Check("migrations.head", partial(_tables.migrations, config=self.migrations)))
        return checks


def examine(case: Case) -> list[Finding]:
    """Return all findings, group by group. It changes nothing, and ends whatever the server does.

    Each connection attempt and each statement has a limit. A server that takes a statement and says nothing at all any
    more cannot be made to keep it; so the work is done in a thread of its own, which is left behind when it is silent
    for too long.
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
    hint = "look whether the server hangs, or the network swallows what is sent; --timeout waits longer"
    return fail(name, f"no answer for {seconds:g} s, so nothing else was looked at", hint)


def _in_groups(findings: list[Finding]) -> list[Finding]:
    groups = [finding.check.partition(".")[0] for finding in findings]
    return sorted(findings, key=lambda finding: groups.index(finding.check.partition(".")[0]))


def _work(case: Case, tell: Callable[[_Said], None]) -> None:
    try:
        if any(patient.engine.dialect.is_async for patient in (case.patient, *case.readers)):
            # Not the default loop: on Windows that is one which psycopg cannot use.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(_in_greenlet(case, tell))
        else:
            _examine(case, tell)
    except BaseException as error:  # noqa: BLE001 - raised where the findings are waited for
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
                # Without it there is one comparison less.
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
    except Exception as error:  # noqa: BLE001 - drivers raise what they like where nobody answers
        tell(_unreachable(check.name, patient, error))
        return False


def _carry_out(check: Check, patient: Patient, tell: Callable[[_Said], None]) -> None:
    tell(check)
    try:
        with patient.looking() as connection:
            for finding in check.run(connection, patient):
                tell(finding)
    except Exception as error:  # noqa: BLE001 - the others are carried out all the same
        tell(_not_asked(check.name, patient, error))


def _not_asked(check: str, patient: Patient, error: Exception) -> Finding:
    text = error_line(error, patient.secrets)
    known = classify(error) if isinstance(error, DBAPIError) else None
    code = known.code if known is not None else None
    if known is not None and known.kind == "busy":
        return fail(check, text, "somebody holds a lock for long: end that transaction, and ask the doctor again")
    if code == "42501":
        return warn(check, f"the role may not ask for it: {text}", "GRANT pg_monitor to the role, or ask another one")
    if code in {"57014", "55P03"}:
        return warn(check, f"not known after {patient.limits.timeout:g} s: {text}", "--timeout waits longer")
    if code in {"26000", "42P05"}:
        return fail(
            check,
            f"a pooler hands this engine's server connections on, and its statements are prepared on others: {text}",
            "look at pool.pooler of the doctor for this engine's URL",
        )
    kind = "" if isinstance(error, DBAPIError) else f"{type(error).__name__}: "
    return fail(check, f"could not be looked at: {kind}{text}", "mend that first, and ask the doctor again")


_ADVICE = {
    "28P01": "look at the password: in the URL, in PGPASSWORD, in ~/.pgpass",
    "28000": "look at the user, and at the server's pg_hba.conf",
    "3D000": "look at the name; CREATE DATABASE makes it",
    "53300": "all places are taken: make the pools smaller, or put a pooler in between",
    "08P01": "if a pooler is in between, in statement mode: pool_mode = transaction, as there are no transactions otherwise",
    "57P03": "the server is starting or stopping: ask again",
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
        advice or f"look whether {place} is up and lets this machine in, and at user, password and database"
        if patient.reading is None
        else f"look whether another process locks {url.database}, and what lies beside it (-journal, -wal)",
    )
