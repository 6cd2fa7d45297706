"""PgBouncer: promised, found, or its tests are not run. See tests/support/pgbouncer.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres import Server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that want it, where nobody has promised it and it is not there."""
    if pgbouncer.promised() or pgbouncer.program() is not None:
        return
    deselected = [item for item in items if item.get_closest_marker("pgbouncer")]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture
def pgbouncer_port(postgresql_server: Server) -> Iterator[int]:
    """Where PgBouncer listens, in front of the run's server.

    One for each test: between two tests the harness ends all connections to their database, those that PgBouncer keeps
    included, and it would hand the message about that to its next client.
    """
    server = postgresql_server
    try:
        guard = pgbouncer.Guard(server.host, server.port, server.user, server.password)
    except pgbouncer.NoPgbouncer as error:
        pytest.fail(f"PgBouncer: {error}", pytrace=False)
    yield guard.port
    guard.close()
