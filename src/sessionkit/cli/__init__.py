"""The command line: `sessionkit demo`, `sessionkit doctor`."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

MOST_SECONDS = 3600
"""The longest that a statement of the doctor's may take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 all is well, 1 something is wrong, 2 wrong usage.

    Args:
        argv: the arguments, without the program's name; default: those of this process.
    """
    parser = argparse.ArgumentParser(prog="sessionkit", description="Units of work for SQLAlchemy: see what they do.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="a tour of scopes on a real database",
        description="A tour of scopes: each step shows its code, the SQL that it sends, and what happened. It makes "
        "tables of its own and drops them at the end.",
    )
    demo.add_argument(
        "--url",
        help="the database, as in create_engine(), for instance postgresql+psycopg://user@host/name; "
        "default: a SQLite file in a temporary directory",
    )
    demo.add_argument("--plain", action="store_true", help="plain text, also where rich is installed")
    demo.add_argument(
        "--rows",
        type=_rows,
        help="how many rows the last step loads, with a progress bar; default: 10,000",
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
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; it is between 1 and {MOST:,}")
    return rows


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with a database, and what mends it",
        description="Look at a database and its engine, and say what is wrong and what mends it. It changes nothing: "
        "everything is asked in READ ONLY transactions, and a SQLite file is opened for reading. The exit status is 1 if "
        "something must be mended, 2 after wrong usage.",
    )
    doctor.add_argument(
        "database",
        metavar="DATABASE",
        help="a URL as in create_engine(), sync or async; or, to have its pool and settings looked at too, the "
        "application's own Engine or AsyncEngine, written module:name",
    )
    doctor.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="DATABASE",
        help="a replica that read-only scopes read from, written like DATABASE; may be said several times",
    )
    doctor.add_argument(
        "--metadata",
        metavar="MODULE:BASE",
        help="the declarative base (or MetaData) whose classes are compared with the database",
    )
    doctor.add_argument(
        "--alembic", metavar="DIR", help="where alembic.ini or env.py is: is the database at the newest one?"
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
        help="tell too who waits for whom at this moment, as a tree (PostgreSQL)",
    )
    doctor.add_argument(
        "--older-than",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="from which age on a transaction is left over; default: 60",
    )
    doctor.add_argument(
        "--max-lag",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how far a replica may be behind; default: 10",
    )
    doctor.add_argument(
        "--timeout",
        type=_timeout,
        default=5.0,
        metavar="SECONDS",
        help="of each connection attempt and statement; default: 5",
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON document")
    doctor.add_argument("--plain", action="store_true", help="plain text, also where rich is installed")
    doctor.set_defaults(run=_doctor)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; it is 0 or more")
    return seconds


def _timeout(text: str) -> float:
    seconds = _seconds(text)
    if not 0.001 <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; it is between 0.001 and {MOST_SECONDS} seconds")
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
