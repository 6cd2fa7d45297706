"""Run benchmarks: `python -m benchmarks [NAME] [arguments]`; without a name, all but the comparison, which needs the peers.

python -m benchmarks scopes --only async
python -m benchmarks compare --write
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    alone = sorted(file.stem.replace("_", "-") for file in FOLDER.glob("[a-z]*.py"))
    named = sys.argv[1:2]
    if named and named[0] in {*alone, "compare"}:
        names, arguments = named, sys.argv[2:]
    else:
        names, arguments = alone, sys.argv[1:]
    return max(
        subprocess.call([sys.executable, "-m", f"benchmarks.{name.replace('-', '_')}", *arguments]) for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
