"""The browser as a fixture: promised, found, or its tests are not run. See tests/support/browser.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import browser as browser_

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that want it, where nobody has promised it and it is not there."""
    if browser_.promised() or browser_.programs() is not None:
        return
    deselected = [item for item in items if item.get_closest_marker("browser")]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture
def browser() -> Iterator[browser_.Browser]:
    """A headless Chromium with an empty profile."""
    try:
        opened = browser_.Browser()
    except browser_.NoBrowser as error:
        pytest.fail(f"Chromium: {error}", pytrace=False)
    yield opened
    opened.close()
