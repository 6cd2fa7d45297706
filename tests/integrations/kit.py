"""Projects of users of the test kit: their tests run in a pytest of their own, on the database of a door."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from tests.support.doors import Door

FILES = Path(__file__).parent / "kit_projects"

# Not by themselves: what is installed beside them takes longer to import than the tests to run.
PLUGINS = ("sessionkit.integrations.pytest_plugin", "pytest_asyncio.plugin", "anyio.pytest_plugin")


def read(name: str) -> str:
    """Return a file of the example projects."""
    return (FILES / f"{name}.txt").read_text()


class Project:
    """A project of a user's."""

    def __init__(self, pytester: pytest.Pytester, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester = pytester
        self.door = door
        monkeypatch.setenv("SHOP_URL", door.database.url(door.driver).render_as_string(hide_password=False))
        monkeypatch.setenv("SHOP_COLOUR", door.colour)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
            monkeypatch.delenv(name, raising=False)
        pytester.makeini(
            # The test client of FastAPI warns of the httpx that it is given.
            "[pytest]\nfilterwarnings =\n    error\n    ignore:Using .httpx. with\nasyncio_default_fixture_loop_scope = function\n"
            "addopts = --strict-markers\nmarkers =\n    plain: without isolation\n"
        )
        self.write(conftest=read("conftest"))

    def write(self, **files: str) -> None:
        """Write modules."""
        self._pytester.makepyfile(**{name: textwrap.dedent(text) for name, text in files.items()})

    async def alone(self) -> None:
        """Have nobody connected to the database, so that it can be copied."""
        engine = self.door.engine
        await engine.dispose() if self.door.colour == "async" else engine.dispose()
        self.door.database.observer.dispose()

    def run(self, *options: str, plugins: tuple[str, ...] = PLUGINS, **files: str) -> pytest.RunResult:
        """Run tests, those in `files` among them."""
        self.write(**files)
        loaded = [argument for name in plugins for argument in ("-p", name)]
        return self._pytester.runpytest_subprocess(*loaded, "-p", "no:cacheprovider", *options, timeout=100)
