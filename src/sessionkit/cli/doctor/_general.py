"""What can be asked of every database: the driver, and what each preset really gives."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sqlalchemy import __version__ as sqlalchemy_version
from sqlalchemy.exc import DBAPIError

from sessionkit import isolation
from sessionkit._spi import connect
from sessionkit.errors import OptionError, message_of

from ._finding import Finding, fail, ok, warn
from ._words import error_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection

    from ._patient import Patient

__all__ = ["PRESETS", "driver", "presets", "row_counts", "unknown"]

PRESETS: dict[str, isolation.Preset] = {
    "nothing asked": isolation.Preset(),
    **{
        name: getattr(isolation, name)
        for name in ("READ_COMMITTED", "READ_ONLY", "REPEATABLE_READ", "SNAPSHOT", "SERIALIZABLE", "REPORT")
    },
}
"""The named ones, weakest first."""

Modes = tuple[bool, bool]
"""Whether a transaction is read-only and deferrable."""


def driver(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Tell which driver it is."""
    module = type(connection.connection.driver_connection).__module__.partition(".")[0]
    version = str(getattr(sys.modules.get(module), "__version__", "")).partition(" ")[0]
    python = "{}.{}".format(*sys.version_info)
    name = f"{module} {version}".strip() if version else f"{module} of Python {python}"
    yield ok("server.driver", f"{name}, SQLAlchemy {sqlalchemy_version}")


def row_counts(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Tell what the driver can: count the rows of an UPDATE, without which no version is checked, and load many."""
    check, dialect = "server.bulk", connection.dialect
    if not dialect.supports_sane_rowcount:
        yield fail(
            check,
            f"the driver {dialect.driver} cannot count the rows of an UPDATE, so versions cannot be checked",
            "choose another driver: updates of Versioned classes are refused with this one",
        )
        return
    ladder = patient.entry.bulk.ladders.get("insert", ())
    methods = [method for _, method in ladder] or ["SQLAlchemy's own insert"]
    yield ok(check, f"counts the rows of an UPDATE; bulk inserts by {', '.join(methods)}")


def presets(
    modes: Callable[[Connection], Modes] | None, *, locks: bool = False
) -> Callable[[Connection, Patient], Iterator[Finding]]:
    """Return the check that asks what a transaction is, for each preset.

    Args:
        modes: how a connection is asked whether its transaction is read-only and deferrable; None: nobody knows.
        locks: to begin can mean to wait for a lock.
    """

    def check(connection: Connection, patient: Patient) -> Iterator[Finding]:
        connection.close()  # the pool may have one only
        for name, preset in PRESETS.items():
            # Elsewhere no timeouts: what sets them would take a snapshot, for which REPORT may have to wait.
            asked = preset.replace(lock_timeout=patient.limits.timeout) if locks else preset
            yield (found := _preset(patient, name, asked, modes))
            if found.status == "fail" and preset == isolation.Preset():
                return  # no scope at all can be opened; the others would say the same

    return check


def _preset(
    patient: Patient, name: str, preset: isolation.Preset, modes: Callable[[Connection], Modes] | None
) -> Finding:
    check, entry = f"isolation.{name.replace(' ', '_')}", patient.entry
    try:
        beginning = entry.beginning(patient.engine, preset)
        given = None if preset.isolation is None else isolation.Isolation(entry.given(preset.isolation))
        with connect(patient.engine, beginning) as connection:
            connection.begin()
            found = isolation.Isolation(connection.get_isolation_level())
            read_only, deferrable = modes(connection) if modes is not None else (None, None)
    except OptionError as error:
        refused = preset.read_only or preset.deferrable
        # Read-only and the rest are refused where nobody knows how to have them enforced: scopes say so, too.
        return (warn if refused else fail)(check, message_of(error), "scopes raise OptionError for it")
    except DBAPIError as error:
        replication = entry.replication
        if replication is None or preset.isolation not in replication.refused:
            raise
        return warn(check, error_line(error, patient.secrets), "scopes ask the primary for it")
    said = " ".join([str(found), *["read only"] * bool(read_only), *["deferrable"] * bool(deferrable)])
    # What the database gives where it has nothing weaker: SQLite calls a level of its own so.
    weaker = given is not None and found.strength < given.strength
    lost = modes is not None and (bool(preset.read_only) > bool(read_only))
    if weaker or lost:
        asked = " ".join([str(given or found), *["read only"] * bool(preset.read_only)])
        return fail(
            check,
            f"{said}, where {asked} should be in force",
            "something between sessionkit and the server sets the transaction up anew: a listener of the engine's "
            '"begin" event, or a proxy',
        )
    return ok(check, said)


def unknown(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Tell what is not looked at, of a database that the doctor does not know."""
    version = ".".join(map(str, getattr(connection.dialect, "server_version_info", None) or ()))
    yield ok("server.version", f"{connection.dialect.name} {version}".strip())
    yield warn(
        "server.known",
        f"the doctor does not know {connection.dialect.name}: sessions, prepared transactions, the pooler, replicas and "
        "durability are not looked at",
        "see the database's own tools for them",
    )
