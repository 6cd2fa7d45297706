"""Run every benchmark: `python -m benchmarks [arguments]`. Each can be run alone: `python -m benchmarks.scopes`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder = Path(__file__).parent
    names = sorted(file.stem for file in folder.glob("[a-z]*.py"))
    return max(subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]) for name in names)


if __name__ == "__main__":
    sys.exit(main())
