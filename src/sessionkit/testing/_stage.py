"""The databases in which units run against each other: copies, brought back before each schedule."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.util import greenlet_spawn

from .._spi import DatabaseCopy, _dialects, copies, seams
from ..errors import OptionError
from ._unit import LoopThread, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["Stage"]

ASKED = "races() was called"


class Stage:
    """The databases of some engines.

    Args:
        engines: the user's, none that was derived from another.
        gate: what the steps pass.
        loop: returns the event loop of the async units.
        idle: how many connections are made before the first schedule.

    Raises:
        OptionError: one of them cannot be raced.
    """

    def __init__(
        self, engines: Sequence[Engine], gate: _dialects.Gate, loop: Callable[[], LoopThread], idle: int
    ) -> None:
        self._gate = gate
        self._loop = loop
        self._idle = idle
        self._undo = ExitStack()
        self._engines = engines
        self._places: list[_Place] = []
        self._lent: dict[int, Unit] = {}
        self.is_dirty = False
        """A connection of the last schedule may be left in a state that is not fit for the next one."""
        for engine in engines:
            _refuse(engine)

    def open(self) -> None:
        """Make the copies, and keep what is in them."""
        try:
            for engine in self._engines:
                self._open(engine)
            for place in self._places:
                place.raced.prepare()
            self._warm_up()
            for place in self._places:
                place.raced.remember()
                self._undo.callback(_quietly, place.raced.forget)
        except BaseException:
            self._undo.close()
            raise

    def _open(self, engine: Engine) -> None:
        load = _dialects.of(engine).raced
        assert load is not None
        theirs = copies.get(engine)  # of a test in template mode
        place = None if theirs else next((each for each in self._places if each.is_of(engine.url)), None)
        copy = theirs or DatabaseCopy(engine, ASKED, None if place is None else place.copy)
        if theirs is None:
            self._undo.callback(copy.detach)
        if place is None:
            ask = _Asking(copy.url, asynchronous=engine.dialect.is_async)
            self._undo.callback(_quietly, ask.close)
            raced = load()(len(self._places), ask, str(copy.url.database), engine.dialect)
            self._undo.callback(raced.close)
            place = _Place(raced, copy, ask, is_ours=theirs is None)
            self._places.append(place)
        place.engines.append(engine)
        change = place.raced.arguments(engine.dialect, self._gate)
        copy.arguments.append(change)
        self._undo.callback(copy.arguments.remove, change)
        self._undo.callback(place.raced.watch(engine, self._gate))
        self._swap_pool(engine, place.raced)

    def _swap_pool(self, engine: Engine, raced: _dialects.Raced) -> None:
        """Give the engine a pool of its own while it races: for its loop, and as large as it takes."""
        before = engine.pool
        engine.pool = pool = before.recreate()
        if isinstance(pool, QueuePool):
            pool._max_overflow = -1
        listeners: dict[str, Callable[..., None]] = {
            "checkout": lambda _, record, *__: self._checkout(raced, record),
            "checkin": lambda _, record: self._checkin(raced, record),
        }
        for name, listener in listeners.items():
            event.listen(pool, name, listener)

        def back() -> None:
            for name, listener in listeners.items():
                event.remove(pool, name, listener)
            self._dispose(engine)
            engine.pool = before

        self._undo.callback(back)

    def _checkout(self, raced: _dialects.Raced, record: Any) -> None:
        record.info.pop("sessionkit_races", None)
        unit = self._gate.here()
        driver_connection = record.driver_connection
        number = raced.lent(driver_connection, unit)
        if unit is not None:
            unit.connections[id(record)] = (driver_connection, number, raced)
            self._lent[id(record)] = unit

    def _checkin(self, raced: _dialects.Raced, record: Any) -> None:
        unit = self._lent.pop(id(record), None)
        if unit is not None:
            unit.connections.pop(id(record), None)
        if record.dbapi_connection is not None:
            raced.lent(record.driver_connection, None)

    def _dispose(self, engine: Engine) -> None:
        pool = engine.pool
        with suppress(Exception):
            if engine.dialect.is_async:
                self._loop().run(greenlet_spawn(pool.dispose))
            else:
                pool.dispose()

    def _warm_up(self) -> None:
        """Have connections made, with all that the first one of an engine does, before anything is counted."""
        for place in self._places:
            for engine in place.engines:
                if engine.dialect.is_async:
                    self._loop().run(greenlet_spawn(self._connect, engine))
                else:
                    self._connect(engine)

    def _connect(self, engine: Engine) -> None:
        made: list[Connection] = []
        try:
            made += [engine.connect() for _ in range(self._idle)]
        finally:
            for each in made:
                each.close()

    # -- for each schedule ------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Bring back what was in the databases.

        Raises:
            OptionError: that cannot be done here.
        """
        if self.is_dirty:
            self._renew_connections()
        for place in self._places:
            if place.raced.restore():
                continue
            if not place.is_ours:
                raise OptionError(
                    f"{ASKED} in a test of template mode, but the copy cannot be brought back to what it was: that needs a "
                    "superuser where foreign keys form a circle, and cannot be done where a unit changes the schema; "
                    "call it in a test without sessionkit_isolation, where it makes copies of its own"
                )
            self._renew_connections()
            place.ask.close()
            place.copy.renew()
            place.ask.url, place.raced.path = place.copy.url, str(place.copy.url.database)
            place.raced.prepare()
            place.raced.remember()

    def _renew_connections(self) -> None:
        self.is_dirty = False
        for place in self._places:
            for engine in place.engines:
                self._dispose(engine)
                engine.pool = engine.pool.recreate()
                if isinstance(engine.pool, QueuePool):
                    engine.pool._max_overflow = -1
        self._lent.clear()

    def state(self) -> dict[str, _dialects.Rows]:
        """Return what is in the tables."""
        found = {}
        for place in self._places:
            prefix = "" if len(self._places) == 1 else f"{place.copy.url.database}: "
            found.update({f"{prefix}{name}": rows for name, rows in place.raced.state().items()})
        return found

    def dependent(self, one: Any, other: Any) -> bool:
        """Tell whether the order of two steps may make a difference."""
        return self._places[0].raced.dependent(one, other)

    def waiting(self, units: Iterable[Unit]) -> set[int]:
        """Tell which units wait for a lock that another one holds."""
        found: set[int] = set()
        units = list(units)
        for place in self._places:
            numbers = {
                number: unit.number
                for unit in units
                for _, number, theirs in list(unit.connections.values())
                if theirs is place.raced and number is not None
            }
            found.update(numbers[each] for each in place.raced.waiting(list(numbers)))
        return found

    def close(self) -> None:
        """Lead the engines to their databases again, and drop the copies."""
        for place in self._places:
            if not place.is_ours:
                _quietly(place.raced.restore)
        self._undo.close()


@dataclass(slots=True, eq=False)
class _Place:
    """A database, and the engines that lead to it."""

    raced: _dialects.Raced
    copy: DatabaseCopy
    ask: _Asking
    is_ours: bool
    engines: list[Engine] = field(default_factory=list)

    def is_of(self, url: URL) -> bool:
        """Tell whether another address leads to the same database."""
        return self.is_ours and _same_database(self.engines[0].url, url)


class _Asking:
    """A connection of our own to a database, outside of transactions."""

    def __init__(self, url: URL, *, asynchronous: bool) -> None:
        self.url = url
        self._asynchronous = asynchronous
        self._thread: LoopThread | None = None
        self._connection: Any = None
        self._engine: Any = None

    def __call__(self, statement: str) -> tuple[Sequence[str], Sequence[Any]]:
        if self._asynchronous:
            if self._thread is None:
                self._thread = LoopThread("sessionkit-races-asking")
            found: tuple[Sequence[str], Sequence[Any]] = self._thread.run(greenlet_spawn(self._ask, statement))
            return found
        return self._ask(statement)

    def _ask(self, statement: str) -> tuple[Sequence[str], Sequence[Any]]:
        if self._connection is None:
            if self._asynchronous:
                from sqlalchemy.ext.asyncio import create_async_engine

                self._engine = create_async_engine(
                    self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
                ).sync_engine
            else:
                self._engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._connection = self._engine.connect().execution_options(no_parameters=True)
        result = self._connection.exec_driver_sql(statement)
        return ([*result.keys()], result.all()) if result.returns_rows else ([], [])

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._thread is None:
            connection.close()
        else:
            self._thread.run(greenlet_spawn(connection.close))
            self._thread.close()
            self._thread = None


def _refuse(engine: Engine) -> None:
    if engine in seams.overrides:
        raise OptionError(
            "races() was called in a test whose units share one connection, so no two of them can run at the same time; "
            'mark the test with sessionkit(mode="template")'
        )
    if _dialects.of(engine).raced is None:
        raise OptionError(f"{ASKED}, but sessionkit does not know how to run units against each other on {engine!r}")
    if isinstance(engine.pool, StaticPool | SingletonThreadPool):
        raise OptionError(
            f"{ASKED} on {engine!r}, whose one connection all units would share; use an engine with a pool of several "
            "connections (for SQLite a database file)"
        )


def _same_database(one: URL, other: URL) -> bool:
    if one.get_backend_name() != other.get_backend_name() or (one.host, one.port) != (other.host, other.port):
        return False
    if one.host is None and one.database and other.database:
        return os.path.realpath(one.database) == os.path.realpath(other.database)
    return one.database == other.database


def _quietly(do: Callable[[], object]) -> None:
    with suppress(Exception):
        do()
