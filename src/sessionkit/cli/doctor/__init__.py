"""`sessionkit doctor`: checks a database and an engine, and reports what is wrong and how to fix it. Changes nothing.

=================  ====================================================================================
``_finding``       the findings: data
``_words``         how to print values, without passwords and other people's data
``_patient``       the engine to examine: it may only read
``_file``          a SQLite file: opened without writing anything
``_general``       checks: every database
``_postgresql``    checks: a PostgreSQL server and its sessions
``_pool``          checks: the pool, and poolers between it and the server
``_replication``   checks: replicas
``_sqlite``        checks: a SQLite file and its engine
``_row_security``  checks: row-level security
``_tables``        checks: commit markers, keys, models and migrations
``_examine``       the table of the checks, and how they run
``_report``        text and JSON
=================  ====================================================================================
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ._examine import LIVE, Case, examine
from ._finding import Finding, verdict
from ._patient import Limits, Unusable, named, patient_of
from ._report import as_json, show
from ._row_security import tenancy_of
from ._tables import config_of, models_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Finding", "Limits", "run"]


def run(
    database: str,
    *,
    readers: Sequence[str] = (),
    metadata: str | None = None,
    alembic: str | None = None,
    factories: Sequence[str] = (),
    live: bool = False,
    limits: Limits | None = None,
    as_a_document: bool = False,
    plain: bool = False,
) -> int:
    """Examine a database, print the findings, and return the exit status: 1 if one of them is a failure, 2 wrong usage.

    Args:
        database: a URL, or an engine as ``module:name``.
        readers: replicas of it, in the same way.
        metadata: the declarative base, as ``module:name``.
        alembic: the directory of the migrations.
        factories: the factories of the application, each as ``module:name``.
        live: whether to show which sessions wait for which at this moment.
        limits: the limits from which to report a problem.
        as_a_document: whether to print JSON.
        plain: do not use rich.
    """
    limits = limits or Limits()
    try:
        patient = patient_of(database, limits)
        if live and patient.engine.dialect.name not in LIVE:
            raise Unusable(
                f"--live shows which sessions wait for which, and works on {', '.join(LIVE)}, not on "
                f"{patient.engine.dialect.name}; leave it out"
            )
        case = Case(
            patient,
            [patient_of(each, limits, "--reader") for each in readers],
            None if metadata is None else models_of(metadata, named(metadata, "--metadata")),
            None if alembic is None else config_of(alembic),
            live,
            [tenancy_of(each, named(each, "--factory")) for each in factories],
        )
    except Unusable as error:
        print(f"sessionkit: {error}", file=sys.stderr)
        return 2
    findings = examine(case)
    if as_a_document:
        print(as_json(case.patient, findings))
    else:
        show(case.patient, findings, plain=plain)
    return 1 if verdict(findings) == "fail" else 0
