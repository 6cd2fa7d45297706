"""The isolation around a test: overrides for its engines, and a check at the end for what it left open."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from ..._spi import FactoryInfo, _dialects, answer_by_overrides, engines_of, factory_key, pop, seams, top
from ...errors import OptionError
from .._place import place
from .event_loops import EventLoops
from .faults import Faults, InjectedFault
from .own_database import OwnDatabase
from .plain_factories import is_plain, led
from .shared_connection import Problem, SharedConnection
from .statements import Statements, collect

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Engine

__all__ = ["KitIsolation"]

MODES = ("rollback", "template")

_isolated: dict[Engine, str] = {}
"""The engines that a test is using now, with the name of the test."""


class KitIsolation:
    """One test and its engines.

    Args:
        factories: factories or engines.
        mode: how to keep commits out of the database.
        name: the name of the test, for messages.
        release: whether to close every connection to the database after the test.

    Raises:
        OptionError: a factory is not bound to an engine, or there is no such mode.
    """

    def __init__(
        self, factories: Iterable[object], mode: str = "rollback", *, name: str = "a test", release: bool = False
    ) -> None:
        if mode not in MODES:
            raise OptionError(f"the marker sessionkit asks for mode={mode!r}; use one of {', '.join(map(repr, MODES))}")
        self._factories = factories = list(factories)
        self.mode = mode
        self.name = name
        self.engines = engines_of(factories)
        if not self.engines:
            raise OptionError(
                f"sessionkit_factories returned {factories!r}, which are not bound to an engine; bind them before the "
                "test, or return the engine too"
            )
        keys = [factory_key(each) for each in factories]
        self._plain = [each for each in keys if is_plain(each)]
        self._infos = [
            info for each in keys if isinstance(info := getattr(each, "_sessionkit_info", None), FactoryInfo)
        ]
        self._release = release
        self.problems: list[Problem] = []
        self._faults = Faults()
        self._shared: list[SharedConnection | OwnDatabase] = []
        self._loops = EventLoops(self._end_in_loop)
        self._lent: dict[int, str] = {}  # by the id of a pool's record: where its connection was checked out
        self._undo = ExitStack()

    # -- around the test ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Install the overrides.

        Raises:
            OptionError: the database cannot be copied, or another test is still using one of the engines.
        """
        self._around = top()
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self) -> None:
        for engine in self.engines:
            if engine in _isolated:
                raise OptionError(
                    f"{engine!r} cannot be isolated for {self.name}, because it is still isolated for "
                    f"{_isolated[engine]}; tests that run at the same time need separate engines, for example in "
                    "separate processes"
                )
            _isolated[engine] = self.name
            self._undo.callback(_isolated.pop, engine)
            if self.mode == "template":
                shared: SharedConnection | OwnDatabase = OwnDatabase(engine, self._faults.at_commit)
            else:
                shared = SharedConnection(engine, self.problems, self._faults.at_commit, release=self._release)
                seams.overrides[engine] = shared
                self._undo.callback(seams.overrides.pop, engine)
            self._shared.append(shared)
            # dispose() replaces the pool by another one with the same listeners.
            for name, listener in (("checkout", partial(self._on_checkout, shared)), ("checkin", self._on_checkin)):
                event.listen(engine.pool, name, listener)
                self._undo.callback(event.remove, engine.pool, name, listener)
        if seams.overrides:
            answer_by_overrides(True)
            self._undo.callback(lambda: answer_by_overrides(bool(seams.overrides)))
        for info in self._infos:
            # A replica sees neither the transaction that will be rolled back nor the copy.
            self._undo.callback(setattr, info, "readers", info.readers)
            info.readers = None
        if self.mode == "rollback":
            for factory in self._plain:
                self._undo.enter_context(led(factory))

    def end(self) -> None:
        """Roll back, check for what was left open, and remove the overrides."""
        try:
            for shared in self._loops.end():
                self.problems += shared.left_open()
                with suppress(Exception):  # the loop in which to do it properly is gone
                    shared.abandon()
            for shared in self._shared:
                if not shared.asynchronous:
                    self.problems += shared.left_open()
                    try:
                        shared.end()
                    except Exception as error:  # noqa: BLE001 - reported to the test
                        self._tell(error)
        finally:
            self._undo.close()
            for shared in self._shared:
                try:
                    shared.detach()
                except Exception as error:  # noqa: BLE001 - reported to the test; the others must be detached too
                    self._tell(error)
        for engine in set(engines_of(self._factories)).difference(self.engines):
            self.problems.append(
                f"a factory was bound to {engine!r} while the test ran, and sessionkit_isolation did not know that "
                "engine; bind the factory earlier, in a fixture that sessionkit_factories requests"
            )
        while (entry := top()) is not None and entry is not self._around:
            pop(entry)  # so that the next test does not join it
        if self._faults.waiting:
            self.problems.append(
                f"the test asked for {len(self._faults.waiting)} more failures of COMMIT than there were COMMITs"
            )
        self.problems += [
            f"a connection opened at {where} was not returned to the pool" for where in self._lent.values()
        ]

    def start_over(self) -> None:
        """Undo what the test has committed so far. For sync engines.

        Raises:
            OptionError: an engine is async.
        """
        if any(shared.asynchronous for shared in self._shared):
            raise OptionError(
                "start_over() was called, but an engine of the test is async; write `await "
                "sessionkit_isolation.async_start_over()`"
            )
        self._renew()

    async def async_start_over(self) -> None:
        """Undo what the test has committed so far. For sync and async engines."""
        await self._loops.end_here()
        self._renew()

    def _renew(self) -> None:
        for shared in self._shared:
            if not shared.asynchronous:
                self.problems += shared.left_open()
                shared.end()
            shared.renew()

    async def _end_in_loop(self, shared: SharedConnection | OwnDatabase) -> None:
        self.problems += shared.left_open()
        try:
            await shared.async_end()
        except Exception as error:  # noqa: BLE001 - reported to the test
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        self.problems.append(f"at the end of the test the database raised {type(error).__name__}: {error}")

    # -- connections ----------------------------------------------------------------------------------------------

    def _on_checkout(self, shared: SharedConnection | OwnDatabase, connection: Any, record: Any, _fairy: Any) -> None:
        if shared.asynchronous:
            self._loops.enter(shared)
        shared.checked_out(connection)
        self._lent[id(record)] = place()

    def _on_checkin(self, _connection: Any, record: Any) -> None:
        self._lent.pop(id(record), None)

    # -- what a test calls ---------------------------------------------------------------------------------------

    def fail_commit_with(self, code: str, /, *, times: int = 1) -> None:
        """Make the next COMMITs fail with an SQLSTATE, or with the name of an SQLite error.

        Raises:
            OptionError: no database of the test has such an error.
        """
        refused: list[OptionError] = []
        for engine in self.engines:
            try:
                _dialects.of(engine).with_code(Exception, code, "")
            except OptionError as error:
                refused.append(error)
        if len(refused) == len(self.engines):
            raise refused[0]
        if isinstance(times, bool) or times < 1:
            raise OptionError(f"times={times!r} was given to fail_commit_with(); give a number of COMMITs, 1 or more")
        self._faults.waiting += [InjectedFault(code)] * times

    def lose_connection_during_commit(self, *, committed: bool = False) -> None:
        """Lose the answer to the next COMMIT."""
        self._faults.waiting.append(InjectedFault(None, committed))

    def statements(self) -> AbstractContextManager[Statements]:
        """Collect the statements that the block sends."""
        return collect(self.engines)

    @contextmanager
    def assert_statements(self, expected: int, /) -> Generator[Statements, None, None]:
        """Fail if the block sends a different number of statements."""
        with collect(self.engines) as sent:
            yield sent
        if len(sent) != expected:
            raise AssertionError(f"{expected} statements were expected, but {len(sent)} were sent:\n{sent}")
