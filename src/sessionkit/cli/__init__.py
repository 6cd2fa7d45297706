"""The command line: `sessionkit demo`, `sessionkit doctor`."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

MOST_SECONDS = 3600
"""The longest time that a statement of the doctor may take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 everything is fine, 1 something is wrong, 2 wrong usage.

    Args:
        argv: the arguments without the name of the program; default: those of this process.
    """
    parser = argparse.ArgumentParser(prog="sessionkit", description="Units of work for SQLAlchemy: see what they do.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="a tour of scopes on a real database",
        description="A tour of scopes: each step shows its code, the SQL that it sends, and the result. It creates "
        "its own tables and drops them at the end.",
    )
    demo.add_argument(
        "--url",
        help="the database URL for create_engine(), such as postgresql+psycopg://user@host/name; default: a SQLite "
        "file in a temporary directory",
    )
    demo.add_argument("--plain", action="store_true", help="print plain text even if rich is installed")
    demo.add_argument(
        "--rows",
        type=_rows,
        help="the number of rows that the last step loads, with a progress bar; default: 10,000",
    )
    demo.set_defaults(run=_demo)
    _add_doctor(commands)

    options = parser.parse_args(argv)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    return status


def _rows(text: str) -> int:
    from ._load import MOST

    try:
        rows = int(text.replace(",", ""))
    except ValueError:
        rows = 0
    if not 1 <= rows <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows between 1 and {MOST:,}")
    return rows


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="find out what is wrong with a database, and how to fix it",
        description="Check a database and its engine, and report what is wrong and how to fix it. This changes "
        "nothing: every query runs in a READ ONLY transaction, and a SQLite file is opened for reading. "
        "The exit status is 1 if something must be fixed, 2 after wrong usage.",
    )
    doctor.add_argument(
        "database",
        metavar="DATABASE",
        help="a URL for create_engine(), sync or async; or the application's own Engine or AsyncEngine as "
        "module:name, to check its pool and settings too",
    )
    doctor.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="DATABASE",
        help="a replica that read-only scopes read from, written like DATABASE; may be repeated",
    )
    doctor.add_argument(
        "--metadata",
        metavar="MODULE:BASE",
        help="the declarative base (or MetaData) whose classes to compare with the database",
    )
    doctor.add_argument(
        "--alembic",
        metavar="DIR",
        help="the directory of alembic.ini or env.py: check that the database is at the newest migration",
    )
    doctor.add_argument(
        "--factory",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a sessionmaker of the application: does it give the settings that row-level security reads, and is its role "
        "bound by it? May be said several times",
    )
    doctor.add_argument(
        "--live",
        action="store_true",
        help="also show which sessions wait for which at this moment, as a tree (PostgreSQL)",
    )
    doctor.add_argument(
        "--older-than",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="the age from which a transaction counts as abandoned; default: 60",
    )
    doctor.add_argument(
        "--max-lag",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how far a replica may lag behind; default: 10",
    )
    doctor.add_argument(
        "--timeout",
        type=_timeout,
        default=5.0,
        metavar="SECONDS",
        help="the limit for each connection attempt and statement; default: 5",
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON document")
    doctor.add_argument("--plain", action="store_true", help="print plain text even if rich is installed")
    doctor.set_defaults(run=_doctor)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return seconds


def _timeout(text: str) -> float:
    seconds = _seconds(text)
    if not 0.001 <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a limit between 0.001 and {MOST_SECONDS} seconds")
    return seconds


def _demo(options: argparse.Namespace) -> int:
    from .demo import ROWS, run

    return run(options.url, plain=options.plain, rows=options.rows or ROWS)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import Limits, run

    return run(
        options.database,
        readers=options.reader,
        metadata=options.metadata,
        alembic=options.alembic,
        factories=options.factory,
        live=options.live,
        limits=Limits(options.older_than, options.max_lag, options.timeout),
        as_a_document=options.json,
        plain=options.plain,
    )
