"""The tests on CPython compiled to WebAssembly, where a machine has no such Python: `nox -s wasm`.

It has SQLite, and neither threads, processes nor sockets. So this shows the byte code that `attempts()` reads, the rooms
that do no I/O, and the sync contract on SQLite; ``inside`` tells what is skipped.
"""

from __future__ import annotations

UNIT = ("loops", "plan", "errors", "isolation", "retry_policy", "failure_log", "savepoints", "version_classes")
CONTRACT = ("attempts", "retry", "presets", "honest_commit", "version_conflicts", "bulk_writes")


def wasm_tests() -> list[str]:
    """Return the arguments of pytest."""
    files = [f"tests/unit/test_{name}.py" for name in UNIT] + [f"tests/contract/test_{name}.py" for name in CONTRACT]
    return ["-q", "-rs", "-k", "not sqlite-async", *files]
