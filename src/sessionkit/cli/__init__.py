"""The command line: `sessionkit demo`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


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


def _demo(options: argparse.Namespace) -> int:
    from .demo import ROWS, run

    return run(options.url, plain=options.plain, rows=options.rows or ROWS)
