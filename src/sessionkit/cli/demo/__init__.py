"""`sessionkit demo`: a tour of scopes on a real database.

A step is a function. It lets the stage (``_stage``) show and run a piece of code, checks the result, and returns it as a
sentence. To add a step, write a function and put it into `STEPS`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from .._console import console
from .._load import Reading
from ._conflicts import conflict_is_found, report_only_reads, unit_is_retried
from ._many import MEMORY, loads
from ._scopes import (
    commits,
    decorates,
    honest_commit,
    hook_waits,
    joins,
    plain_says_nothing,
    rolls_back,
    savepoint_heals,
)
from ._stage import ROWS, Account, Base, LeftOut, Misbehaved, Stage, first_line
from ._twin import async_twin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MEMORY", "ROWS", "STEPS", "Account", "Stage", "commits", "rolls_back", "run"]

STEPS: list[Callable[[Stage], str]] = [
    commits,
    rolls_back,
    decorates,
    hook_waits,
    joins,
    savepoint_heals,
    plain_says_nothing,
    honest_commit,
    conflict_is_found,
    unit_is_retried,
    report_only_reads,
    async_twin,
    loads,
]


def run(url: str | None = None, *, plain: bool = False, rows: int = ROWS) -> int:
    """Run the tour and return the exit status.

    Args:
        url: the database; default: a SQLite file in a temporary directory.
        plain: do not use rich.
        rows: the number of rows that the last step loads.
    """
    screen = console(plain)
    with tempfile.TemporaryDirectory(prefix="sessionkit-demo-", ignore_cleanup_errors=True) as folder:
        try:
            address = URL.create("sqlite", database=str(Path(folder) / "demo.db")) if url is None else _checked(url)
            stage = Stage(address, screen, rows)
        except (ArgumentError, ImportError, _Unusable) as error:
            screen.error(f"--url cannot be used: {first_line(error)}")
            return 2
        try:
            return _tour(stage, STEPS)
        finally:
            stage.engine.dispose()


class _Unusable(Exception):
    """The tour cannot run on this database."""


def _checked(url: str) -> URL:
    address = make_url(url)
    if getattr(address.get_dialect(), "is_async", False):
        backend = address.get_backend_name()
        example = {"postgresql": "postgresql+psycopg"}.get(backend, backend)
        raise _Unusable(
            f"{address.drivername} is an async driver, and most of the tour is sync code; write {example}:// instead; "
            "the async step finds its driver automatically"
        )
    return address


def _tour(stage: Stage, steps: Iterable[Callable[[Stage], str]]) -> int:
    screen = stage.screen
    try:
        there = inspect(stage.engine)
        for name in (*Base.metadata.tables, Reading.__tablename__):
            if there.has_table(name):
                screen.error(
                    f"the table {name} already exists, perhaps from a tour that was killed; the demo does not touch "
                    "tables that it did not create: drop it and try again"
                )
                return 2
        Base.metadata.create_all(stage.engine)
        with stage.engine.connect() as connection:
            server = ".".join(map(str, connection.dialect.server_version_info or ()))
    except SQLAlchemyError as error:
        screen.error(f"the database {stage.url!r} cannot be used: {first_line(error)}")
        return 2
    try:
        screen.title(
            "sessionkit: scopes that tell the truth about their commit",
            f"{stage.engine.dialect.name} {server} at {stage.url!r}; each step shows its code, the SQL that it sends, "
            "and the result",
        )
        rows = [_show(stage, number, step) for number, step in enumerate(steps, 1)]
    finally:
        _drop(stage)
    screen.table("What happened", ("step", "result"), rows)
    failed = sum(1 for mark, _ in rows if mark is False)
    if failed:
        screen.error(f"{failed} of {len(rows)} steps did not do what they promised")
    return 1 if failed else 0


def _drop(stage: Stage) -> None:
    try:
        Base.metadata.drop_all(stage.engine)
    except SQLAlchemyError as error:
        stage.screen.error(f"the tables of the demo could not be dropped: {first_line(error)}")


def _show(stage: Stage, number: int, step: Callable[[Stage], str]) -> tuple[bool | None, tuple[str, str]]:
    title = (step.__doc__ or step.__name__).rstrip(".")
    stage.screen.step(number, title)
    try:
        result = step(stage)
    except LeftOut as reason:
        stage.screen.sql([f"-- left out: {reason}"])
        return None, (title, f"left out: {reason}")
    except Exception as error:  # noqa: BLE001 - the other steps still run
        what = str(error) if isinstance(error, Misbehaved) else f"{type(error).__name__}: {first_line(error)}"
        stage.screen.result(what, False)
        return False, (title, what)
    stage.screen.result(result, True)
    return True, (title, result)
