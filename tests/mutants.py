"""Mutants: the core, `version` and `bulk` are changed in one place at a time, and the tests must notice.

    python -m tests.mutants [--room ROOM]... [--count N] [--seed N]

cosmic-ray makes the changes, in a copy of the project. Of each room so many are taken, at random by the seed: all of
them would take days. Each is run against the tests of its room on SQLite, sync; what survives is printed as a diff, and
becomes a test, or is no fault.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {
    "_core": "tests/unit/test_savepoints.py tests/unit/test_failure_log.py tests/contract/test_honest_commit.py "
    "tests/contract/test_first_error.py tests/contract/test_hooks*.py tests/contract/test_joining.py "
    "tests/contract/test_commit_outcome.py tests/contract/test_ended_underneath.py tests/contract/test_binds.py "
    "tests/contract/test_end_inside_scope.py tests/contract/test_two_phase.py tests/contract/test_verify_commit.py "
    "tests/contract/test_no_rollback_for.py tests/contract/test_read_only.py tests/contract/test_failure_matrix.py "
    "tests/contract/test_ownership.py tests/contract/test_manual_commit.py tests/contract/test_lock_on_retry.py "
    "tests/contract/test_deadline.py",
    "version": "tests/unit/test_version_*.py tests/contract/test_version_*.py",
    "bulk": "tests/unit/test_bulk_parts.py tests/contract/test_bulk_writes.py tests/contract/test_bulk_limits.py "
    "tests/contract/test_bulk_bad_rows.py tests/contract/test_bulk_reads.py tests/contract/test_bulk_and_real_tables.py "
    "tests/contract/test_bulk_shapes.py tests/contract/test_bulk_differential.py",
}

CONFIG = """
[cosmic-ray]
module-path = "src/sessionkit/{room}"
timeout = {timeout}.0
excluded-modules = []
test-command = "{python} -m pytest -q -x -n0 -p no:cacheprovider -p no:randomly -k 'not async' {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--room", action="append", choices=list(ROOMS))
    parser.add_argument("--count", type=int, default=40, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sessionkit-mutants-") as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "tox.ini"):
            shutil.copy(ROOT / name, copy)
        survived = sum(run(copy, room, options) for room in options.room or ROOMS)
    return 1 if survived else 0


def run(copy: Path, room: str, options: argparse.Namespace) -> int:
    """Try mutants of a room; print those that survive, and return how many."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    tests = [str(file.relative_to(copy)) for pattern in ROOMS[room].split() for file in sorted(copy.glob(pattern))]
    config, session = copy / f"{room}.toml", copy / f"{room}.sqlite"
    values = {"room": room, "timeout": options.timeout, "python": sys.executable, "tests": " ".join(tests)}
    config.write_text(CONFIG.format(**values))
    # The package of the copy, and not the one that is installed.
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "SESSIONKIT_BACKENDS": "sqlite"}
    command = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*command, "init", config.name, session.name], cwd=copy, env=environment, check=True)
    with use_db(session, WorkDB.Mode.open) as found:
        items = {item.job_id: item for item in found.work_items}
        order = sorted((job for job in items if not _is_of_types(copy, items[job])), key=lambda job: _place(items[job]))
        chosen = set(random.Random(options.seed).sample(order, min(options.count, len(order))))
        for job in set(items) - chosen:
            found.set_result(job, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    subprocess.run([*command, "exec", config.name, session.name], cwd=copy, env=environment, check=True)
    with use_db(session, WorkDB.Mode.open) as done:
        results = [result for _, result in done.results if result.worker_outcome is not WorkerOutcome.SKIPPED]
    survivors = [result for result in results if result.test_outcome is TestOutcome.SURVIVED]
    for result in survivors:
        sys.stdout.write(f"{result.diff}\n")
    sys.stdout.write(
        f"{room}: {len(survivors)} of {len(results)} mutants have survived, of {len(order)} that there are\n"
    )
    return len(survivors)


def _is_of_types(copy: Path, item: object) -> bool:
    """Tell whether a mutant changes an annotation, which nothing evaluates: `int | None` becomes `int * None`."""
    return any(
        any(start <= mutation.start_pos < end for start, end in _annotations(copy / mutation.module_path))
        for mutation in item.mutations  # type: ignore[attr-defined]
    )


@cache
def _annotations(module: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return from where to where each annotation of a module goes: line and column."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
    return [
        ((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0))
        for each in found
        if each is not None
    ]


def _place(item: object) -> str:
    return str([(str(m.module_path), m.operator_name, m.occurrence, str(m.operator_args)) for m in item.mutations])  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
