"""What surrounds a test: stand-ins for its engines, and at the end the look at what it has left behind."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from .. import _dialects
from .._standins import in_force
from .._watch import watch
from ..context import factory_key, pop, top
from ..errors import OptionError
from ._faults import Fault, Faults
from ._own_database import OwnDatabase
from ._place import place
from ._shared_connection import Problem, SharedConnection
from ._statements import Statements, collect

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sqlalchemy.pool import Pool


__all__ = ["Isolation"]

MODES = ("rollback", "template")


class Isolation:
    """One test and its engines.

    Args:
        factories: factories or engines.
        mode: how what is committed is kept out of the database.

    Raises:
        OptionError: a factory is bound to no engine, or the mode is none.
    """

    def __init__(self, factories: Iterable[object], mode: str = "rollback") -> None:
        if mode not in MODES:
            raise OptionError(
                f"mode={mode!r} was asked for by the marker sessionkit; it is one of {', '.join(map(repr, MODES))}"
            )
        self.mode = mode
        self.engines = engines_of(factories)
        self.problems: list[Problem] = []
        self._faults = Faults()
        self._pools: list[Pool] = []
        self._shared: list[SharedConnection | OwnDatabase] = []
        self._lent: dict[int, str] = {}  # by the id of a pool's record: where its connection was asked for

    # -- around the test ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Put the stand-ins into force."""
        self._around = top()
        for engine in self.engines:
            watch(engine)
            self._pools.append(engine.pool)  # dispose() puts another one into its place, with the same listeners
            event.listen(engine.pool, "checkout", self._on_checkout)
            event.listen(engine.pool, "checkin", self._on_checkin)
            if self.mode == "template":
                self._shared.append(OwnDatabase(engine, self._faults.at_commit))
                continue
            shared = SharedConnection(engine, self.problems, self._faults.at_commit)
            self._shared.append(shared)
            in_force[engine] = shared

    async def end_in_loop(self) -> None:
        """End what belongs to the event loop that runs."""
        loop = asyncio.get_running_loop()
        for shared in self._shared:
            if shared.loop is loop:
                self._look(shared)
                try:
                    await shared.async_end()
                except Exception as error:  # noqa: BLE001 - the test is told
                    self._tell(error)

    def end(self) -> None:
        """Roll back, look at what was left open, and take the stand-ins out of force."""
        try:
            for shared in self._shared:
                self._look(shared)
                try:
                    self._end(shared)
                except Exception as error:  # noqa: BLE001 - the test is told
                    self._tell(error)
        finally:
            for pool in self._pools:
                event.remove(pool, "checkout", self._on_checkout)
                event.remove(pool, "checkin", self._on_checkin)
            for engine in self.engines:
                in_force.pop(engine, None)
            for shared in self._shared:
                shared.detach()
        while (entry := top()) is not None and entry is not self._around:
            pop(entry)  # not for the next test to join
        if self._faults.waiting:
            self.problems.append(f"{len(self._faults.waiting)} failures of COMMIT were asked for that met none")
        self.problems += [f"a connection opened at {where} was not given back" for where in self._lent.values()]

    def _end(self, shared: SharedConnection | OwnDatabase) -> None:
        loop = shared.loop
        if loop is None:
            shared.end()
        elif loop.is_closed() or loop.is_running():
            shared.abandon()
        else:
            loop.run_until_complete(shared.async_end())

    def _look(self, shared: SharedConnection | OwnDatabase) -> None:
        self.problems += shared.left_open()

    def _tell(self, error: Exception) -> None:
        self.problems.append(f"at the end of the test the database said: {type(error).__name__}: {error}")

    # -- connections ----------------------------------------------------------------------------------------------

    def _on_checkout(self, _connection: Any, record: Any, _fairy: Any) -> None:
        self._lent[id(record)] = place()

    def _on_checkin(self, _connection: Any, record: Any) -> None:
        self._lent.pop(id(record), None)

    # -- what the test asks ---------------------------------------------------------------------------------------

    def fail_commit_with(self, code: str, *, times: int = 1) -> None:
        """Have the next COMMITs fail with an SQLSTATE, or with an error of SQLite by its name."""
        self._faults.waiting += [Fault(code)] * times

    def lose_connection_during_commit(self, *, committed: bool = False) -> None:
        """Have the answer to the next COMMIT be lost."""
        self._faults.waiting.append(Fault(None, committed))

    def statements(self) -> Any:
        """Collect the statements that are sent."""
        return collect(self.engines)

    @contextmanager
    def assert_statements(self, expected: int) -> Generator[Statements, None, None]:
        """Fail where another number of statements is sent."""
        with collect(self.engines) as sent:
            yield sent
        if len(sent) != expected:
            raise AssertionError(f"{expected} statements were expected, {len(sent)} were sent:\n{sent}")


def engines_of(factories: Iterable[object]) -> list[Engine]:
    """Return the engines that factories are bound to, each once, and none that was derived from another."""
    found: dict[Engine, None] = {}
    for given in factories:
        factory: Any = factory_key(given)
        arguments: dict[str, Any] = getattr(factory, "kw", {})
        binds = [arguments.get("bind"), *(arguments.get("binds") or {}).values()]
        engines = [each for each in map(_engine, [factory, *binds]) if each is not None]
        if not engines:
            raise OptionError(
                f"sessionkit_factories returned {given!r}, which is bound to no engine; bind it, or return the engine"
            )
        found.update(dict.fromkeys(map(_dialects.root_of, engines)))
    return list(found)


def _engine(bind: Any) -> Engine | None:
    engine = getattr(bind, "sync_engine", bind)
    return engine if isinstance(engine, Engine) else None
