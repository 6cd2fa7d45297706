"""Runs of pytest inside a test: the harness is tested by tests that it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    output: str

    def of(self, test: str) -> list[str]:
        """Return what is reported of a test: ["PASSED"], or ["PASSED", "ERROR"] where its teardown failed."""
        return re.findall(rf"^(PASSED|FAILED|ERROR|SKIPPED) .*::{re.escape(test)}\b", self.output, re.MULTILINE)

    @property
    def last(self) -> str:
        return self.output.strip().splitlines()[-1]


def run_pytest(folder: Path, source: str, *arguments: str, **environment: str) -> Outcome:
    """Run a file of tests with this harness, in a process of its own."""
    file = folder / "test_inside.py"
    file.write_text(textwrap.dedent(source))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "tests.support.plugin",
        "-rA",
        "--color=no",
        # Rewriting the asserts of every package takes longer than these tests; what is read says its own words.
        "--assert=plain",
    ]
    # What the outer run was told is not for the inner one, nor is it one of the outer one's workers.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SESSIONKIT_", "PYTEST_", "COV_"))
    }
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Into a file and not a pipe: workers whose controller was killed hold a pipe open until they notice, which takes
    # seconds.
    output = folder / "output.log"
    with output.open("wb") as stream:
        done = subprocess.run(
            [*command, *arguments, str(file)],
            cwd=ROOT,
            env={**inherited, "PYTHONPATH": os.pathsep.join(path), **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            timeout=100,
            check=False,
        )
    return Outcome(done.returncode, output.read_text())
