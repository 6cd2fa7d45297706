"""The step about bulk: many rows, little memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, func, select

from sessionkit import bulk
from sessionkit.factory import sessionmaker

from .._load import LoadBase, Memory, Reading, Readings
from ._stage import in_memory

if TYPE_CHECKING:
    from ._stage import Stage

MEMORY = 16.0
"""The growth in MB that a load may cause, whatever its number of rows."""


def loads(stage: Stage) -> str:
    """Many rows at once."""
    # Not the engine that the ledger follows: the ledger would record a line for each row.
    engine = create_engine(stage.url)
    Session, readings, memory = sessionmaker(engine), Readings(stage.rows), Memory()

    def code() -> bulk.BulkResult:
        with Session.scope() as session:
            return bulk.insert(session, Reading, readings, progress=True, on_progress=memory.look)

    try:
        LoadBase.metadata.create_all(engine)
        started = time.perf_counter()
        try:
            ran = stage.play(code)
            seconds = time.perf_counter() - started
            with engine.connect() as connection:
                found = connection.scalar(select(func.count()).select_from(Reading))
        finally:
            LoadBase.metadata.drop_all(engine)
    finally:
        engine.dispose()
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    result: bulk.BulkResult = ran.value
    stage.expect(found == result.inserted == stage.rows, f"{found:,} of {stage.rows:,} rows are there")
    told = f"{stage.rows:,} rows by {result.method} in {seconds:.1f} s, {stage.rows / seconds:,.0f} a second"
    if not memory.known:
        return told
    # A database in memory keeps the rows themselves in this process.
    if not in_memory(stage.engine):
        stage.expect(memory.grown <= MEMORY, f"{told}; but the process grew by {memory.grown:.1f} MB")
    return f"{told}; the process grew by {memory.grown:.1f} MB"
