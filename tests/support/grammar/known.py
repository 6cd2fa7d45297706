"""Where bulk is known to differ from the unit of work: what the grammar leaves out.

Each is a sentence of the grammar, and why it is left out. To mend one, take it out of `KNOWN` and run the grammar; or run it
with SESSIONKIT_GRAMMAR_KNOWN="name, name" (or "all"), which takes them in without a change here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from tests.support.grammar.tables import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.grammar.cases import Case


class Known(NamedTuple):
    reason: str
    holds: Callable[[Case, str], bool]


def _holds_none_with_a_default(case: Case, backend: str) -> bool:
    if any(kind == "null" for _, kind in case.bad):
        return True
    held = {name for row in case.rows for name, value in row.items() if value is None}
    cols = {f"attr{place}": col for place, col in enumerate(case.shape.columns)}
    return any(name == "note" or (name in cols and cols[name].default) for name in held)


def _some_hold_their_key(case: Case) -> bool:
    # On SQLite also what the table holds has the next key go on from it.
    rows = (*case.rows, *case.seeds) if case.verb == "upsert" else case.rows
    return KEYS[case.shape.key].made is not None and len({"key" in row for row in rows}) > 1


def _some_leave_it_to_the_database(case: Case) -> bool:
    if KEYS[case.shape.key].made is None or case.size < 3:
        return False
    left = [
        f"attr{place}"
        for place, col in enumerate(case.shape.columns)
        if col.default in {"server", "sql"} or "json" in col.word or col.word == "wrapped"
    ]
    sent_apart = any(kind == "wrong" for _, kind in case.bad)
    return sent_apart or any(len({row.get(name) is None for row in case.rows}) > 1 for name in left)


KNOWN: dict[str, Known] = {
    "skipped": Known(
        "of rows that a trigger takes out a flush raises where it must know a key or a version; bulk tells the true counts",
        lambda case, backend: (
            case.shape.trigger == f"skip {case.verb}"
            or (case.verb == "upsert" and case.shape.trigger.startswith("skip") and case.shape.trigger != "skip delete")
        ),
    ),
    "keys of some": Known(
        "where only some rows hold their key, the server makes those of the others not in the order of the input",
        lambda case, backend: case.verb in {"insert", "upsert"} and _some_hold_their_key(case),
    ),
    "meeting elsewhere": Known(
        "of two rows that meet in another unique key, the one with the higher key is the bad one, not the later",
        lambda case, backend: case.verb in {"update", "upsert"} and any(kind == "code" for _, kind in case.bad),
    ),
    "null of a decorator": Known(
        "render_nulls is SQLAlchemy's: a decorator over JSON makes JSON's null of the None, where a flush is given null()",
        lambda case, backend: (
            case.render_nulls
            and any(
                col.word == "wrapped" and any(row.get(f"attr{place}", 0) is None for row in case.rows)
                for place, col in enumerate(case.shape.columns)
            )
        ),
    ),
    "last across chunks": Known(
        "on_duplicate='last' writes both rows where they are in two chunks, the last one at last",
        lambda case, backend: (
            case.on_duplicate == "last"
            and case.chunk is not None
            and any(kind in {"again", "label"} for _, kind in case.bad)
        ),
    ),
    "nothing to change": Known(
        "an update of a row that holds only its key does not look for it",
        lambda case, backend: (
            case.verb == "update"
            and (case.there < case.size or case.shape.trigger == "skip insert")
            and not all(case.rows)
        ),
    ),
}

_taken_in = frozenset(filter(None, map(str.strip, os.environ.get("SESSIONKIT_GRAMMAR_KNOWN", "").split(","))))
EXCLUDED = frozenset() if "all" in _taken_in else frozenset(KNOWN) - _taken_in


def excluded(case: Case, backend: str) -> str | None:
    """Return which known fault a case would meet."""
    return next((name for name in sorted(EXCLUDED) if KNOWN[name].holds(case, backend)), None)
