"""From results to docs/explanation/speed.md and its plot, the tables of benchmarks/README.md, and the presets of isolation.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks._plot import Bar, bars
from benchmarks._results import README, ROOT, filled, table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# For each table of a run: the figures of its cases, by name.
Tables = dict[str, dict[str, dict[str, float]]]

SPEED = ROOT / "docs" / "explanation" / "speed.md"
SPEED_PLOT = ROOT / "docs" / "explanation" / "speed.svg"
ISOLATION = ROOT / "docs" / "explanation" / "isolation.md"

# Heading, the table of the cases, and the table of those inside another scope.
SYNC = {
    "SQLite, empty": ("SQLite in memory, empty", "SQLite in memory, inside a scope, empty"),
    "SQLite, one SELECT": ("SQLite in memory, one SELECT", "SQLite in memory, inside a scope, one SELECT"),
    "PostgreSQL, empty": ("PostgreSQL, empty", ""),
    "PostgreSQL, one SELECT": ("PostgreSQL, one SELECT", "PostgreSQL, inside a scope, one SELECT"),
}
SHORT = {
    "SQLite in memory": ("SQLite in memory, empty", "SQLite in memory, one SELECT"),
    "SQLite in memory, aiosqlite": ("SQLite in memory, async, empty", "SQLite in memory, async, one SELECT"),
    "PostgreSQL, psycopg": ("PostgreSQL, empty", "PostgreSQL, one SELECT"),
    "PostgreSQL, asyncpg": ("PostgreSQL, async, empty", "PostgreSQL, async, one SELECT"),
}
ASYNC = {
    "aiosqlite, empty": ("SQLite in memory, async, empty", "SQLite in memory, async, inside a scope, empty"),
    "aiosqlite, one SELECT": ("SQLite in memory, async, one SELECT", ""),
    "asyncpg, empty": ("PostgreSQL, async, empty", "PostgreSQL, async, inside a scope, empty"),
    "asyncpg, one SELECT": ("PostgreSQL, async, one SELECT", ""),
}
# How the pages call a case.
CALLED = {
    "sessionmaker.begin()": "`sessionmaker.begin()`",
    "async_sessionmaker.begin()": "`async_sessionmaker.begin()`",
    "with Session(e) as s, s.begin()": "`with Session(engine) as s, s.begin()`",
    "async with AsyncSession(e) as s, s.begin()": "`async with AsyncSession(engine) as s, s.begin()`",
    "hand-written recipe": "a hand-written `session_scope()`",
    "scoped_session, commit, remove (SQLAlchemy)": "SQLAlchemy's `scoped_session`, commit, remove",
    "scoped_session, commit, remove (sessionkit)": "sessionkit's `scoped_session`, commit, remove",
    "Session.scope()": "**`Session.scope()`**",
    "a scope that was kept": "a scope object that is used again",
    "@Session.scope, first argument": "`@Session.scope`",
    "session_scope(a plain sessionmaker)": "`session_scope(a plain sessionmaker)`",
    "session_scope(a plain async_sessionmaker)": "`session_scope(a plain async_sessionmaker)`",
    "joining an outer scope": "joining an outer scope",
    "the body alone, in an open session": "the same body in an open session, no scope",
    'propagation="savepoint"': '`propagation="savepoint"`',
    "session.begin_nested()": "`session.begin_nested()`",
}
OURS = {
    "scoped_session, commit, remove (sessionkit)",
    "Session.scope()",
    "@Session.scope, first argument",
    "session_scope(a plain sessionmaker)",
    "session_scope(a plain async_sessionmaker)",
}
REFERENCES = ("sessionmaker.begin()", "async_sessionmaker.begin()")


def ratio(figures: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Return what a case costs, as a multiple of the reference of its table."""
    return figures[name]["ratio"]


def ratios(tables: Tables, columns: dict[str, tuple[str, str]]) -> str:
    """Return a table of ratios with a column for each kind of body and database."""
    rows = [["", *columns]]
    for name, called in CALLED.items():
        cells = []
        for own, inside in columns.values():
            figures = next((tables[title] for title in (own, inside) if title and name in tables[title]), None)
            cells.append("" if figures is None else f"{ratio(figures, name):.2f}")
        if any(cells):
            rows.append([called, *(f"**{cell}**" if name == "Session.scope()" and cell else cell for cell in cells)])
    return table(rows, right=True)


def short(tables: Tables) -> str:
    """Return the table of `Session.scope()` alone."""
    rows = [["", "empty", "one SELECT"]]
    for database, titles in SHORT.items():
        rows.append([database, *(f"{ratio(tables[title], 'Session.scope()'):.2f}" for title in titles)])
    return table(rows, right=True)


def targets(tables: Tables, wanted: dict[str, dict[str, float]]) -> str:
    rows = [["", "target", "measured"]]
    for title, names in wanted.items():
        for name, target in names.items():
            found = round(ratio(tables[title], name), 2)
            verdict = "missed" if found > target else "met"
            rows.append([f"{title}: {CALLED[name].strip('*')}", f"{target:.2f}", f"{found:.2f}, {verdict}"])
    return table(rows, right=True)


def speed(results: dict[str, Any]) -> dict[Path, str]:
    """Return the pages and the plot of `python -m benchmarks scopes`."""
    tables: Tables = results["tables"]
    lite = tables["SQLite in memory, one SELECT"]
    begin, scope = (lite[name]["cpu"] * 1e6 for name in ("sessionmaker.begin()", "Session.scope()"))
    real, async_real = (
        ratio(tables[title], "Session.scope()")
        for title in (
            "SQLite in memory, one SELECT, both with a real BEGIN",
            "SQLite in memory, async, one SELECT, both with a real BEGIN",
        )
    )
    parts = {
        "conditions": f"{results['conditions']}.",
        "short": short(tables),
        "microseconds": (
            "In microseconds: with one SELECT on SQLite"
            f" `sessionmaker.begin()` cost {begin:.0f} in this run, and a scope {scope:.0f}."
            " If the reference gets a real `BEGIN` too, by SQLAlchemy's own recipe,"
            f" a scope with one SELECT costs {real:.2f} times as much in sync code and {async_real:.2f} times in async code."
        ),
    }
    details = {
        "scopes: sync": ratios(tables, SYNC),
        "scopes: async": ratios(tables, ASYNC),
        "scopes: targets": targets(tables, results["targets"]),
    }
    groups = []
    for heading, (title, _) in {**SYNC, **ASYNC}.items():
        figures = tables[title]
        shown = [name for name in figures if name in CALLED and "kept" not in name]
        groups.append(
            (
                f"{heading}, CPU as a multiple of {next(one for one in REFERENCES if one in figures)}",
                [Bar(name, ratio(figures, name), f"{ratio(figures, name):.2f}", name in OURS) for name in shown],
            )
        )
    plot = bars("What a unit of work costs in the client: less is better", groups)
    return {
        SPEED: filled(SPEED.read_text(encoding="utf-8"), parts),
        README: filled(README.read_text(encoding="utf-8"), details),
        SPEED_PLOT: plot,
    }


def presets(results: dict[str, Any]) -> dict[Path, str]:
    """Return the page with the cost of presets, of `python -m benchmarks presets`."""
    tables: Tables = results["tables"]
    names = list(next(iter(tables.values())))
    rows = [["", *tables]]
    for name in names[1:]:
        cells = [
            f"{figures[name]['wall'] / figures[names[0]]['wall']:.2f}" if name in figures else ""
            for figures in tables.values()
        ]
        rows.append([name, *cells])
    shown = f"{table(rows, right=True)}\n\n{results['conditions']}."
    return {ISOLATION: filled(ISOLATION.read_text(encoding="utf-8"), {"presets": shown})}
