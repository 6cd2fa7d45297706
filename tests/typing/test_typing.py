"""mypy and pyright see what README.md of this folder says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = ("accepted.py", "refused.py")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.timeout(120)
def test_mypy_understands_and_refuses_what_it_should() -> None:
    """Strict mode warns of an `ignore` that nothing was ignored by."""
    done = run("mypy", "--strict", "--no-error-summary", *(str(HERE / name) for name in FILES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


@pytest.mark.timeout(120)
def test_pyright_understands_and_refuses_what_it_should(tmp_path: Path) -> None:
    config = {
        # (It takes no absolute paths.)
        "include": [os.path.relpath(HERE / name, tmp_path) for name in FILES],
        "extraPaths": [str(ROOT / "src")],
        "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path / "pyrightconfig.json"))
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(FILES), done.stdout + done.stderr
    lines = [
        f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}: {d['message']}" for d in found["generalDiagnostics"]
    ]
    assert not lines, "\n".join(lines)
