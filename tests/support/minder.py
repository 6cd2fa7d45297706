"""The minder: a small process that runs servers for a test, and ends them when its standard input ends, however that is.

Each line on standard input is a request in JSON, each gets an answer in JSON:

    {"start": [command, ...], "log": path, "popen": {...}}  -> process id
    {"signal": number, "pid": pid}                          -> null, when the process is gone
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), running)), flush=True)  # noqa: T201
    finally:
        for process in running.values():
            process.send_signal(signal.SIGQUIT)  # PostgreSQL: the immediate shutdown
        for process in running.values():
            process.wait(30)


def _answer(request: dict[str, Any], running: dict[int, subprocess.Popen[bytes]]) -> int | None:
    if "start" in request:
        with Path(request["log"]).open("ab") as log:
            process = subprocess.Popen(
                request["start"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **request["popen"]
            )
        running[process.pid] = process
        return process.pid
    process = running.pop(request["pid"])
    process.send_signal(request["signal"])
    process.wait(300)  # on a busy machine a server may need minutes for its last checkpoint
    return None


if __name__ == "__main__":
    main()
