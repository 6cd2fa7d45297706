"""What runs inside of the interpreter: pytest, with stand-ins for the packages that have no build for it.

A test that comes to what is not there (a thread, a process, a socket, an event loop of a driver) is skipped, by its own
error: nothing is left out by a list of names that would have to be kept.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import MagicMock

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

ABSENT = (
    "asyncpg",
    "greenlet",
    "hypothesis",
    "hypothesis.strategies",
    "psutil",
    "psycopg",
    "psycopg2",
    "psycopg2.errors",
    "psycopg2.extensions",
    "pytest_postgresql",
    "pytest_postgresql.factories",
    "pytest_postgresql.janitor",
)
"""What tests and harness import where they begin, and has no build for this interpreter."""

NO_LOOP = "no event loop can wait here"
LACKS = (
    NO_LOOP,
    "can't start new thread",
    "does not support processes",
    "no attribute 'fork'",
    "hypothesis",
    "psycopg",
    "_multiprocessing",
    "Timeout should be used inside a task",
)
"""What an error says that comes of the interpreter and not of ours."""


class Absent(ModuleType):
    """A module that can be imported, and no more."""

    __path__: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # which Python's own traceback asks for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class Settings:
    """Hypothesis's, in so far as tests are decorated with it."""

    register_profile = load_profile = staticmethod(lambda *_, **__: None)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        return test


def given(*strategies: Any, **named: Any) -> Callable[..., Any]:
    """Skip what is tested with generated values."""

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        def skipped(**_: Any) -> None:
            pytest.skip("hypothesis has no build for this interpreter")

        # What is left of the parameters is for pytest: hypothesis gives the last ones, and those that it names.
        signature = inspect.signature(test)
        others = [each for name, each in signature.parameters.items() if name not in named]
        skipped.__name__, skipped.__qualname__ = test.__name__, test.__qualname__
        cast("Any", skipped).__signature__ = signature.replace(parameters=others[: len(others) - len(strategies)])
        return skipped

    return decorate


class Lacking:
    """Skip a test that has come to what this interpreter does not have."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except Exception as error:
            told: BaseException | None = error
            while told is not None:
                for lack in LACKS:
                    if lack in str(told):
                        pytest.skip(lack)
                told = told.__cause__ or told.__context__
            raise


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Stand in for `asyncio.run`: without a loop a coroutine can give way to others, of which there are none, and no more."""
    while True:
        try:
            waits_for = coroutine.send(None)
        except StopIteration as end:
            return end.value
        if waits_for is not None:
            coroutine.close()
            raise RuntimeError(NO_LOOP)


def main(arguments: list[str]) -> int:
    for name in ABSENT:
        sys.modules[name] = Absent(name)
    sys.modules["greenlet"].__dict__.update(greenlet=type("greenlet", (), {}), __version__="3.5")
    sys.modules["hypothesis"].__dict__.update(given=given, settings=Settings)
    asyncio.run = run
    sys.stdout.write(f"Python {sys.version.split()[0]} on {sys.platform}\n")
    # Of the plugins that are installed our own, and the one whose options pyproject.toml holds.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-p", "pytest_timeout", "-o", "timeout=0", "-p", "sessionkit.integrations.pytest_plugin"]
    # The coroutine of a test that was skipped on its way is never awaited.
    options += ["-p", "no:unraisableexception", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *arguments], plugins=[Lacking()]))
