"""Template mode of the test kit: each test gets a copy of the database, and the engine connects to that copy.

The engine keeps its listeners and options. Only its target changes while the test runs, so everything that goes through the
engine is isolated, whether it uses sessions or not.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.util import greenlet_spawn

from ..._spi import _dialects, root_of, seams
from ...errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Executable
    from sqlalchemy.engine import URL, Connection, Engine

    from ..._spi import ScopeConnection

__all__ = ["OwnDatabase"]


class OwnDatabase:
    """A copy of the database of an engine.

    Args:
        engine: the user's engine.
        at_commit: called when a unit commits.

    Raises:
        OptionError: the database cannot be copied.
    """

    def __init__(self, engine: Engine, at_commit: Callable[[ScopeConnection, str | None], None]) -> None:
        template = _dialects.of(engine).template
        if template is None:
            raise OptionError(
                f"mode='template' was asked for, but sessionkit cannot copy {engine!r}; use mode='rollback'"
            )
        self._engine = engine
        self._template = template
        self._at_commit = at_commit
        self._led = False
        self.asynchronous = engine.dialect.is_async
        if not self.asynchronous:
            engine.dispose()  # idle connections to a database keep PostgreSQL from copying it
        self._copy = template.copy(engine.dialect, engine.url, self._execute)
        event.listen(engine, "do_connect", self._connect, insert=True)
        self._pool = engine.pool  # dispose() replaces it by another one with the same listeners
        event.listen(self._pool, "checkout", self._check)
        seams.at_commit.append(self._commit)

    def _connect(self, dialect: Any, _record: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        self._led = True
        _, before = dialect.create_connect_args(self._engine.url)
        arguments, now = dialect.create_connect_args(self._copy)
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        return dialect.connect(*arguments, **{**cparams, **changed})

    def _check(self, *_: Any) -> None:
        if not self._led:
            raise OptionError(
                f"mode='template' was asked for, but {self._engine!r} connects through its own function (creator=), "
                "or already had connections; leave creator= out, or dispose of the engine before the test"
            )

    def _commit(self, connection: ScopeConnection) -> None:
        if root_of(connection.engine) is self._engine:
            self._at_commit(connection, None)

    def checked_out(self, dbapi_connection: Any) -> None:
        """Report nothing: each caller has its own connection."""

    def left_open(self) -> list[str]:
        """Report nothing: only connections can be left open here."""
        return []

    def end(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    async def async_end(self) -> None:
        """Close the connections in the event loop that used them."""
        await greenlet_spawn(self._engine.dispose)

    def abandon(self) -> None:
        """Forget the connections of an event loop that is gone: the server ends them."""
        self._engine.dispose(close=False)

    def renew(self) -> None:
        """Switch to a fresh copy."""
        self._template.drop(self._engine.dialect, self._copy, self._execute)
        self._copy = self._template.copy(self._engine.dialect, self._engine.url, self._execute)

    def detach(self) -> None:
        """Drop the copy."""
        event.remove(self._engine, "do_connect", self._connect)
        event.remove(self._pool, "checkout", self._check)
        seams.at_commit.remove(self._commit)
        self._template.drop(self._engine.dialect, self._copy, self._execute)

    def _execute(self, url: URL, statement: str | Executable) -> Sequence[Any]:
        if not self.asynchronous:
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                return _fetch(connection, statement)
        # In a thread, because the test's own event loop may be running here.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, _async_execute(url, statement)).result()


async def _async_execute(url: URL, statement: str | Executable) -> Sequence[Any]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        rows = await connection.run_sync(_fetch, statement)
    await engine.dispose()
    return rows


def _fetch(connection: Connection, statement: str | Executable) -> Sequence[Any]:
    result = connection.exec_driver_sql(statement) if isinstance(statement, str) else connection.execute(statement)
    return result.all() if result.returns_rows else []
