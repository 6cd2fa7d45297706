"""Checks for every database: the driver, and what each preset really gives."""

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
"""The named presets, weakest first."""

Modes = tuple[bool, bool]
"""Whether a transaction is read-only and deferrable."""


def driver(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Report the driver."""
    module = type(connection.connection.driver_connection).__module__.partition(".")[0]
    version = str(getattr(sys.modules.get(module), "__version__", "")).partition(" ")[0]
    python = "{}.{}".format(*sys.version_info)
    name = f"{module} {version}".strip() if version else f"{module} of Python {python}"
    yield ok("server.driver", f"{name}, SQLAlchemy {sqlalchemy_version}")


def row_counts(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check whether the driver counts the rows of an UPDATE, as versions need, and report how it inserts many rows."""
    check, dialect = "server.bulk", connection.dialect
    if not dialect.supports_sane_rowcount:
        yield fail(
            check,
            f"the driver {dialect.driver} cannot count the rows of an UPDATE, so versions cannot be checked",
            "use another driver: this one refuses updates of Versioned classes",
        )
        return
    ladder = patient.entry.bulk.ladders.get("insert", ())
    methods = [method for _, method in ladder] or ["SQLAlchemy's own insert"]
    yield ok(check, f"counts the rows of an UPDATE; bulk inserts by {', '.join(methods)}")


def presets(
    modes: Callable[[Connection], Modes] | None, *, locks: bool = False
) -> Callable[[Connection, Patient], Iterator[Finding]]:
    """Return the check that asks, for each preset, what its transaction really is.

    Args:
        modes: returns whether the transaction of a connection is read-only and deferrable; None if that is not known.
        locks: whether BEGIN may wait for a lock.
    """

    def check(connection: Connection, patient: Patient) -> Iterator[Finding]:
        connection.close()  # the pool may have only one connection
        for name, preset in PRESETS.items():
            # No timeouts elsewhere: setting them would take a snapshot, and REPORT may have to wait for that.
            asked = preset.replace(lock_timeout=patient.limits.timeout) if locks else preset
            yield (found := _preset(patient, name, asked, modes))
            if found.status == "fail" and preset == isolation.Preset():
                return  # no scope can be opened at all; the other presets would report the same

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
        # Options that cannot be enforced on this database are refused, and scopes refuse them too.
        return (warn if refused else fail)(check, message_of(error), "scopes raise OptionError for this preset")
    except DBAPIError as error:
        replication = entry.replication
        if replication is None or preset.isolation not in replication.refused:
            raise
        return warn(check, error_line(error, patient.secrets), "scopes use the primary for this preset")
    said = " ".join([str(found), *["read only"] * bool(read_only), *["deferrable"] * bool(deferrable)])
    # The database may have no weaker level, and give a stronger one: SQLite does.
    weaker = given is not None and found.strength < given.strength
    lost = modes is not None and (bool(preset.read_only) > bool(read_only))
    if weaker or lost:
        asked = " ".join([str(given or found), *["read only"] * bool(preset.read_only)])
        return fail(
            check,
            f"{said}, but it should be {asked}",
            'something between sessionkit and the server changes the transaction: a listener of the "begin" event, or a proxy',
        )
    return ok(check, said)


def unknown(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Report what is not checked on a database that the doctor does not know."""
    version = ".".join(map(str, getattr(connection.dialect, "server_version_info", None) or ()))
    yield ok("server.version", f"{connection.dialect.name} {version}".strip())
    yield warn(
        "server.known",
        f"the doctor does not know {connection.dialect.name}: sessions, prepared transactions, the pooler, replicas "
        "and durability are not checked",
        "use the database's own tools for these",
    )
