"""What a statement on PostgreSQL touches, read from its words and the catalogue."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sessionkit._dialects._races import dependent, filled_in
from sessionkit._dialects._races_postgresql import RacedPostgresql, _Open, _Watch

CATALOGUE: dict[str, list[tuple[Any, ...]]] = {
    "relkind": [
        (1, "public", "parents", "r"),
        (2, "public", "children", "r"),
        (3, "public", "grandchildren", "r"),
        (4, "public", "Odd Name", "r"),
        (5, "public", "watched", "r"),
        (6, "public", "a_view", "v"),
        (7, "public", "a_sequence", "S"),
    ],
    "attrelid, attname": [(1, "id"), (2, "id")],
    "contype": [(2, 1, "c", "a"), (3, 2, "c", "a")],
    "indisprimary": [(1, True, "id"), (2, True, "id"), (3, True, "id"), (2, False, "name")],
    "tgrelid": [(5,)],
    "proname": [("a_function",)],
}


def ask(statement: str) -> tuple[list[str], list[Any]]:
    return [], next(rows for word, rows in CATALOGUE.items() if word in statement)


def effect(statement: str, level: str = "READ COMMITTED", *, begun: bool = True) -> Any:
    raced = RacedPostgresql(0, ask, "", None)
    raced._read_catalogue()
    raced.level = level
    open_ = _Open(level)
    open_.begun = begun
    connection: Any = SimpleNamespace(connection=SimpleNamespace(dbapi_connection=SimpleNamespace()))
    return _Watch(raced, None)._effect(connection, open_, statement, None, None, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statement", "reads", "locks"),
    [
        ("SELECT * FROM parents", {"parents"}, set()),
        ("SELECT 'children' FROM parents -- grandchildren", {"parents"}, set()),
        ('SELECT * FROM public."Odd Name"', {"Odd Name"}, set()),
        ("SELECT * FROM parents FOR NO KEY UPDATE", {"parents"}, {("parents", "u")}),
        ("SELECT * FROM parents FOR KEY SHARE SKIP LOCKED", {"parents"}, {("parents", "k")}),
        ("INSERT INTO children (id) VALUES (1)", {"children"}, {("children", "w"), ("parents", "k")}),
        (
            "INSERT INTO grandchildren SELECT id FROM parents",
            {"grandchildren", "parents"},
            {("grandchildren", "w"), ("children", "k")},
        ),
        ("DELETE FROM parents", {"parents"}, {("parents", "w"), ("children", "w"), ("grandchildren", "w")}),
        (
            "WITH gone AS (DELETE FROM grandchildren RETURNING id) SELECT * FROM gone, parents",
            {"grandchildren", "parents"},
            {("grandchildren", "w"), ("children", "k")},
        ),
        ("SELECT pg_advisory_xact_lock(1)", set(), {("<advisory>", "w")}),
        ("select nextval('a_sequence')", set(), {("<sequences>", "w")}),
    ],
)
def test_the_tables_of_a_statement(statement: str, reads: set[str], locks: set[tuple[str, str]]) -> None:
    found = effect(statement)
    assert {table for table, _ in found.reads} == reads
    assert {(table, mode) for table, _, mode in found.locks} == locks
    assert not found.unknown


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE parents",
        "LOCK TABLE parents",
        "DO $$ BEGIN DELETE FROM parents; END $$",
        "SELECT * FROM a_view",
        "SELECT a_function()",
        "UPDATE watched SET n = 1",
        "COPY parents (id) FROM STDIN",
    ],
)
def test_what_may_do_anything_depends_on_everything(statement: str) -> None:
    assert effect(statement).unknown
    assert dependent(effect(statement), effect("SELECT * FROM grandchildren"))


def test_a_snapshot_is_taken_once() -> None:
    first = effect("SELECT * FROM parents", "REPEATABLE READ", begun=False)
    later = effect("SELECT * FROM parents", "REPEATABLE READ")
    assert first.snapshot
    assert not later.snapshot
    assert later.reads == frozenset()
    assert effect("SELECT * FROM parents", "SERIALIZABLE").seen == {("parents", None)}


@pytest.mark.parametrize(
    ("statement", "values", "shown"),
    [
        ("SELECT %(a)s::INTEGER", {"a": 1}, "SELECT 1"),
        ("SELECT %(a)s::TIMESTAMP WITHOUT TIME ZONE, b", {"a": "x"}, "SELECT 'x', b"),
        ("SELECT $1::VARCHAR,\n  $2::NUMERIC(10, 2)", ("x", 2), "SELECT 'x', 2"),
        ("SELECT ?, '?', ?", (1, 2), "SELECT 1, '?', 2"),
        ("SELECT %s", ("x",), "SELECT 'x'"),
        ("SELECT ?, ?", (1,), "SELECT 1, ?"),
        ("SELECT %(b)s", {"a": 1}, "SELECT %(b)s"),
        ("INSERT ?", [(1,), (2,)], "INSERT ?  2 times"),
        ("SELECT 1", None, "SELECT 1"),
    ],
)
def test_values_are_shown_in_their_places(statement: str, values: Any, shown: str) -> None:
    assert filled_in(statement, values) == shown
