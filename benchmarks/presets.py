"""The cost of a preset: the same scope with and without it, with one SELECT inside.

    python -m benchmarks.presets [--url postgresql+psycopg://...] [--rounds 200] [--only TEXT] [--strict]

On a SQLite file, and on PostgreSQL through psycopg, psycopg2 and asyncpg where `--url` names one. The round trips of each
preset are counted by tests/contract/test_presets_on_the_wire.py; here it is time, and the target allows for one more round
trip of four. Exit status 1 if a target is missed and --strict is given. With --write the figures go to
benchmarks/results/presets.json, and from there into docs/explanation/isolation.md.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, literal, orm, select
from sqlalchemy.engine import URL
from sqlalchemy.ext import asyncio as sa_asyncio

import sessionkit
from benchmarks import _command, _speed_page
from benchmarks._measure import Case, Report, measure, repeat, repeat_async
from sessionkit import READ_ONLY, REPORT, SERIALIZABLE, Preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE = select(literal(1))
SHORT = 0.003  # seconds of a turn: on a busy machine the quiet moments are short
NONE = "no preset"
OPTION = "SQLAlchemy's isolation_level option"
TIMEOUTS = {"statement_timeout": 30, "lock_timeout": 5}

PRESETS: dict[str, Preset | None] = {
    NONE: None,
    "SERIALIZABLE": SERIALIZABLE,
    "READ_ONLY": READ_ONLY,
    "REPORT": REPORT,
    "two timeouts": Preset(**TIMEOUTS),  # type: ignore[arg-type]
    "SERIALIZABLE, two timeouts": SERIALIZABLE.replace(**TIMEOUTS),
}
# Wall time: options that go into BEGIN cost no round trip, all timeouts together cost one.
TARGETS = {
    "SERIALIZABLE": 1.25,
    "READ_ONLY": 1.25,
    "REPORT": 1.25,
    "two timeouts": 1.7,
    "SERIALIZABLE, two timeouts": 1.7,
}


def sync_cases(url: URL) -> list[Case]:
    Session = sessionkit.sessionmaker(create_engine(url))

    def of(preset: Preset | None) -> Callable[[], None]:
        scope = Session.scope(preset=preset)

        def once() -> None:
            with scope as session:
                session.scalar(ONE)

        return once

    def option() -> None:
        with plain() as session, session.begin():
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            session.scalar(ONE)

    plain = orm.sessionmaker(create_engine(url))
    return [*(Case(name, repeat(of(preset))) for name, preset in PRESETS.items()), Case(OPTION, repeat(option))]


def async_cases(url: URL, runner: asyncio.Runner) -> list[Case]:
    Session = sessionkit.async_sessionmaker(sa_asyncio.create_async_engine(url))

    def of(preset: Preset | None) -> Callable[[], Any]:
        scope = Session.scope(preset=preset)

        async def once() -> None:
            async with scope as session:
                await session.scalar(ONE)

        return once

    return [Case(name, repeat_async(of(preset), runner)) for name, preset in PRESETS.items()]


def tables(
    url: URL | None, folder: str, runner: asyncio.Runner
) -> Iterator[tuple[str, Callable[[], list[Case]], bool]]:
    """Title and cases of each table, and whether it has targets."""
    file = URL.create("sqlite", database=str(Path(folder, "presets.db")))
    yield "SQLite file", lambda: sync_cases(file), False
    yield "SQLite file, async", lambda: async_cases(file.set(drivername="sqlite+aiosqlite"), runner), False
    if url is None:
        return
    for driver in ("psycopg", "psycopg2"):
        of_driver = url.set(drivername=f"postgresql+{driver}")
        yield f"PostgreSQL, {driver}", lambda of_driver=of_driver: sync_cases(of_driver), True  # type: ignore[misc]
    yield "PostgreSQL, asyncpg", lambda: async_cases(url.set(drivername="postgresql+asyncpg"), runner), True


def measured(url: URL | None, only: str, rounds: int) -> Iterator[Report]:
    """Measure the tables whose title contains `only`."""
    with TemporaryDirectory() as folder, asyncio.Runner() as runner:
        for title, cases, judged in tables(url, folder, runner):
            if only.lower() in title.lower():
                timings = measure(cases(), rounds=rounds, round_seconds=SHORT)
                yield Report(title, timings, NONE, TARGETS if judged else None, by="wall")


def main() -> int:
    return _command.run(
        "presets", __doc__ or "", measured, _speed_page.presets, ["psycopg", "psycopg2-binary", "asyncpg", "aiosqlite"]
    )


if __name__ == "__main__":
    sys.exit(main())
