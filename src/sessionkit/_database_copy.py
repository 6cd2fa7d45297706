"""A copy of the database of an engine, to which the engine connects meanwhile.

The engine keeps its listeners and options. Only its target changes, so everything that goes through the engine uses the
copy, whether it uses sessions or not.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.engine import Engine

from . import _dialects
from .context import factory_key
from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Executable
    from sqlalchemy.engine import URL, Connection

__all__ = ["DatabaseCopy", "copies", "engines_of"]

copies: dict[Engine, DatabaseCopy] = {}
"""The engines that connect to a copy now."""


class DatabaseCopy:
    """A copy of the database of an engine, and the engine's connections to it.

    Args:
        engine: the user's engine, not a derived one.
        asked: what needs the copy, for messages.
        shared: a copy that is there already, of another engine on the same database; it is that one's to drop.

    Raises:
        OptionError: the database cannot be copied.
    """

    def __init__(self, engine: Engine, asked: str, shared: DatabaseCopy | None = None) -> None:
        template = _dialects.of(engine).template
        if template is None:
            raise OptionError(f"{asked}, but sessionkit cannot copy {engine!r}; use mode='rollback'")
        self._engine = engine
        self._asked = asked
        self._template = template
        self._led = False
        self._shared = shared
        self.arguments: list[Callable[[dict[str, Any]], None]] = []
        """What changes the arguments of the driver's connect()."""
        self.asynchronous = engine.dialect.is_async
        if shared is None:
            if not self.asynchronous:
                engine.dispose()  # idle connections to a database keep PostgreSQL from copying it
            self._url = template.copy(engine.dialect, engine.url, self.execute)
        event.listen(engine, "do_connect", self._connect, insert=True)
        self._pool = engine.pool  # dispose() replaces it by another one with the same listeners
        event.listen(self._pool, "checkout", self._check)
        copies[engine] = self

    @property
    def url(self) -> URL:
        """Return the address of the copy, for the driver of the engine."""
        if self._shared is None:
            return self._url
        return self._engine.url.set(database=self._shared.url.database)

    def _connect(self, dialect: Any, _record: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        self._led = True
        _, before = dialect.create_connect_args(self._engine.url)
        arguments, now = dialect.create_connect_args(self.url)
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        parameters = {**cparams, **changed}
        for change in self.arguments:
            change(parameters)
        return dialect.connect(*arguments, **parameters)

    def _check(self, *_: Any) -> None:
        if not self._led:
            raise OptionError(
                f"{self._asked}, but {self._engine!r} connects through its own function (creator=), or already had "
                "connections; leave creator= out, or dispose of the engine before the test"
            )

    def renew(self) -> None:
        """Switch to a fresh copy."""
        self._template.drop(self._engine.dialect, self._url, self.execute)
        self._url = self._template.copy(self._engine.dialect, self._engine.url, self.execute)

    def detach(self) -> None:
        """Have the engine connect to the original again, and drop the copy."""
        copies.pop(self._engine, None)
        event.remove(self._engine, "do_connect", self._connect)
        event.remove(self._pool, "checkout", self._check)
        if self._shared is None:
            self._template.drop(self._engine.dialect, self._url, self.execute)

    def execute(self, url: URL, statement: str | Executable) -> Sequence[Any]:
        """Send a statement to a database, outside of transactions, and return the rows of its answer."""
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


def engines_of(factories: Iterable[object]) -> list[Engine]:
    """Return the engines that factories are bound to, each once; a derived engine counts as the one it was derived from.

    Raises:
        OptionError: an item is neither a factory nor an engine.
    """
    found: dict[Engine, None] = {}
    for given in factories:
        factory: Any = factory_key(given)
        arguments: dict[str, Any] = getattr(factory, "kw", {})
        binds = [arguments.get("bind"), *(arguments.get("binds") or {}).values()]
        engines = [each for each in map(_engine, [factory, *binds]) if each is not None]
        if not engines and not hasattr(factory, "class_"):
            raise OptionError(f"sessionkit_factories returned {given!r}, which is neither a factory nor an engine")
        found.update(dict.fromkeys(map(_dialects.root_of, engines)))
    return list(found)


def _engine(bind: Any) -> Engine | None:
    engine = getattr(bind, "sync_engine", bind)
    return engine if isinstance(engine, Engine) else None
