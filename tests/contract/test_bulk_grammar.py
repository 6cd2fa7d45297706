"""Whatever is mapped, bulk leaves, returns, counts and raises what the unit of work would: at every size, by every method.

The tables, rows and options are drawn by a grammar (tests/support/grammar). In an ordinary run the same few of them are drawn
each time; SESSIONKIT_GRAMMAR_EXAMPLES=10000 draws so many new ones, for each verb and door:

    SESSIONKIT_GRAMMAR_EXAMPLES=2000 pytest tests/contract/test_bulk_grammar.py -k "upsert and postgresql-sync" --timeout=0
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings

from tests.support.grammar.cases import Case, Verb, cases
from tests.support.grammar.known import excluded
from tests.support.grammar.tables import Col, Shape
from tests.support.grammar.verbs import Invalid, faults

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tests.support.doors import Door

LONG = int(os.environ.get("SESSIONKIT_GRAMMAR_EXAMPLES", "0"))
SECOND = ("postgresql-sync-psycopg2", "postgresql-async-psycopg")
"""Doors whose backend has another one; they draw the first few of the same cases."""


def checks(doors: Door) -> settings:
    return settings(
        max_examples=LONG or (4 if doors.name in SECOND else 10),
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # What a run for the sake of finding has found is made small; that takes minutes.
        phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
        print_blob=bool(LONG),
    )


NAMED = {
    "a key that comes again where no row is there": Case(
        "delete", Shape(inherits="joined", key="identity", version="count"), size=6, bad=((1, "again"),), chunk=1
    ),
    "the row of a partial index": Case(
        "upsert", Shape(uniques=("partial",)), rows=({"code": "by label"},), size=7, there=3, status=True
    ),
    "a key that its type changes": Case(
        "update",
        Shape((Col("integer", "n", onupdate="parameters"), Col("text", "a b")), key="lower"),
        ({"attr1": ""},),
        6,
        there=6,
    ),
    "keys that the server makes, by an array": Case("insert", Shape(key="identity"), size=6, returning="class"),
    "keys that the server makes, by COPY": Case("insert", Shape(key="identity"), size=201, returning="columns"),
    "one more row than a temporary table takes": Case(
        "upsert", Shape((Col("integer", "%s"),), version="kit"), ({"attr0": 4},), 2001, there=1000, returning="columns"
    ),
}
"""What must hold whatever the dice say."""


async def hold_to_the_unit_of_work(doors: Door, verb: Verb) -> None:
    def work(connection: Connection) -> None:
        @checks(doors)
        @given(cases(doors.backend, verb))
        def holds(case: Case) -> None:
            assume(excluded(case, doors.backend) is None)
            try:
                found = list(faults(connection, case))
            except Invalid:
                assume(False)
            note("\n".join(found))
            assert not found

        holds()

    async with doors.connect() as connection:
        await connection.run_sync(work)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("verb", ["insert", "update", "upsert", "delete", "get"])
async def test_bulk_does_what_the_unit_of_work_would(doors: Door, verb: Verb) -> None:
    await hold_to_the_unit_of_work(doors, verb)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("name", NAMED)
async def test_bulk_does_what_the_unit_of_work_would_with_what_has_a_name(doors: Door, name: str) -> None:
    async with doors.connect() as connection:
        assert await connection.run_sync(lambda connection: list(faults(connection, NAMED[name]))) == []
