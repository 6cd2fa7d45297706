"""Results in files, and the pages made from them, so that a table or a plot can be made again and no page drifts away.

With `--write` a benchmark writes its figures to `benchmarks/results/NAME.json`, and its tables between the markers
`<!-- begin: KEY -->` and `<!-- end: KEY -->` of its pages. `--check` checks that the pages still show them.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._measure import Report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"


def save(name: str, results: dict[str, Any]) -> None:
    """Write the results of a benchmark."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, sort_keys=False)
    (RESULTS / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def of_reports(reports: list[Report], conditions: str) -> dict[str, Any]:
    """Return what to keep: for each case the best round, in seconds, and the median of the rounds' ratios."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "conditions": conditions,
        "targets": {report.title: report.targets for report in reports if report.targets},
        "tables": {
            report.title: {
                name: {
                    "cpu": timing.cpu,
                    "wall": timing.wall,
                    "ratio": timing.beside(report.timings[report.reference]),
                }
                for name, timing in report.timings.items()
            }
            for report in reports
        },
    }


def load(name: str) -> dict[str, Any]:
    """Read the kept results of a benchmark."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return results


def filled(page: str, parts: dict[str, str]) -> str:
    """Return a page with the parts between its markers replaced; a missing marker is an error."""
    for key, part in parts.items():
        begin, end = f"<!-- begin: {key} -->", f"<!-- end: {key} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"the page should have one pair of markers {begin} ... {end}")
        page = pattern.sub(lambda _: f"{begin}\n\n{part.strip()}\n\n{end}", page)  # noqa: B023 - called at once
    return page


def differing(files: dict[Path, str]) -> list[Path]:
    """Return the files whose text differs from what the results give."""
    return [file for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text]


def write_or_check(files: dict[Path, str], *, check: bool) -> int:
    """Write what the results give, or print which files differ; return an exit status."""
    different = differing(files)
    for file in different:
        if check:
            print(f"{file.relative_to(ROOT)} does not show the last results: run the benchmark with --render")
        else:
            file.write_text(files[file], encoding="utf-8")
            print(f"wrote {file.relative_to(ROOT)}")
    return 1 if check and different else 0


def table(rows: list[list[str]], *, right: bool = False) -> str:
    """Return a table in Markdown; its first row is the heading. `right`: all columns but the first are numbers."""
    ruler = ["---", *(("---:" if right else "---") for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])
