"""From results to docs/comparison.md, docs/comparison-in-detail.md and the plot: all that is between the markers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks._plot import Bar, bars
from benchmarks._results import ROOT, filled, table
from benchmarks.compare.questions import GROUPS
from benchmarks.compare.speed import FLOOR

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "comparison.md"
DETAIL = ROOT / "docs" / "comparison-in-detail.md"
PLOT = ROOT / "docs" / "comparison.svg"
BACKENDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
OURS = "sessionkit"

BULK_HEAD = (
    "CPU time of client and server per row, as a multiple of the driver used by hand, which returns no ids. In brackets:"
    " thousands of rows per second on the clock."
)
FEATURES = {
    "unit": "a unit as a context manager",
    "decorator": "a unit as a decorator",
    "joins": "a unit inside a unit",
    "savepoint": "savepoints",
    "retry": "retrying a unit",
    "outcome": "finding out whether a commit was made",
    "isolation": "isolation level",
    "read_only": "read-only",
    "timeout": "statement timeout",
    "version": "version column",
    "hooks": "hooks after the commit",
    "async": "async units",
    "ambient": "ambient session",
    "upsert": "bulk upsert",
    "readers": "read replicas",
    "tests": "isolation of tests",
}


def files(results: dict[str, Any]) -> dict[Path, str]:
    """Return the text of the two pages and of the plot, as the results give them."""
    parts = {
        PAGE: {"features": features(results)},
        DETAIL: {"conditions": conditions(results), "behaviour": behaviour(results), "speed": speed(results)},
    }
    pages = {page: filled(page.read_text(encoding="utf-8"), of_page) for page, of_page in parts.items()}
    return {**pages, PLOT: plot(results)}


def conditions(results: dict[str, Any]) -> str:
    names = results["peers"]
    rows = [["", "version", "calls itself", "with"]]
    for name, about in names.items():
        first, *others = about["versions"].items()
        rows.append([name, first[1], about["status"], ", ".join(f"{package} {version}" for package, version in others)])
    return "\n\n".join([table(rows), f"Run on {results['date']}: {results['machine']}."])


def _linked(text: str, page: str) -> str:
    return f"[{text}]({page})" if page else text


def features(results: dict[str, Any]) -> str:
    peers = results["peers"]
    rows = [["", *peers]]
    for key, title in FEATURES.items():
        cells = []
        for about in peers.values():
            feature = about["features"].get(key)
            cells.append("-" if feature is None else _linked(feature["called"], feature["page"]))
        rows.append([title, *cells])
    rows.append(["databases", *(about["databases"] for about in peers.values())])
    return table(rows)


def behaviour(results: dict[str, Any]) -> str:
    lines: list[str] = []
    for group, questions in GROUPS.items():
        lines.append(f"### {group}")
        for question in questions:
            backends = [backend for backend in BACKENDS if backend in question.backends]
            rows = [["", *(BACKENDS[backend] for backend in backends)]]
            for name in results["peers"]:
                cells = [results["outcomes"][backend][name][question.key] for backend in backends]
                shown = f"**{name}**" if name == OURS else name
                rows.append([shown, *(_linked(cell["outcome"], cell.get("page", "")) for cell in cells)])
            lines += [f"#### {question.title}", question.staged, table(rows)]
    return "\n\n".join(lines)


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def speed(results: dict[str, Any]) -> str:
    peers = list(results["peers"])
    rows = [["a unit", *(f"{BACKENDS[backend]}, {what}" for backend in BACKENDS for what in ("empty", "one row"))]]
    for name in peers:
        cells = []
        for backend in BACKENDS:
            for key in ("empty", "row"):
                figures = results["speed"][backend][key]
                cells.append(_ratio(figures[name]["ratio"]))
        rows.append([f"**{name}**" if name == OURS else name, *cells])
    bulk = [["many rows", *(f"{BACKENDS[backend]}, {verb}" for backend in BACKENDS for verb in ("insert", "upsert"))]]
    for name in (FLOOR, *peers):
        cells = []
        for backend in BACKENDS:
            for verb in ("insert", "upsert"):
                figures = results["speed"][backend][verb]
                cells.append(_bulk_cell(figures[name], figures[FLOOR]))
        bulk.append([f"**{name}**" if name == OURS else name, *cells])
    return "\n\n".join(
        [
            "CPU time of the client, as a multiple of `with sessionmaker.begin()`:",
            table(rows, right=True),
            BULK_HEAD,
            table(bulk, right=True),
        ]
    )


def _bulk_cell(figure: dict[str, Any], floor: dict[str, Any]) -> str:
    if "missing" in figure:
        return "SQLAlchemy's"
    return f"{figure['cpu'] / floor['cpu']:.1f} ({1000 / figure['wall']:.0f})"


def plot(results: dict[str, Any]) -> str:
    groups = []
    for backend, shown in BACKENDS.items():
        for key, title in (("empty", "an empty unit"), ("row", "a unit that inserts one row")):
            figures = results["speed"][backend][key]
            groups.append(
                (
                    f"{shown}: {title}, CPU as a multiple of SQLAlchemy's",
                    [
                        Bar(name, figure["ratio"], _ratio(figure["ratio"]), name == OURS)
                        for name, figure in figures.items()
                    ],
                )
            )
    for backend, shown in BACKENDS.items():
        for verb in ("insert", "upsert"):
            figures = results["speed"][backend][verb]
            groups.append(
                (
                    f"{shown}: {verb} of many rows, microseconds of CPU for each",
                    [
                        Bar(name, figure["cpu"], f"{figure['cpu']:.1f}", name == OURS)
                        for name, figure in figures.items()
                        if "cpu" in figure
                    ],
                )
            )
    return bars("What units and bulk writes cost with each peer: less is better", groups)
