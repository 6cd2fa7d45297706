"""A pytest plugin: real commits in the code under test, nothing left in the database.

It is found by pytest where sessionkit is installed, and does nothing until a test asks for one of its fixtures. The
project overrides one, `sessionkit_factories`:

    @pytest.fixture
    def sessionkit_factories():
        return [Session]

    @pytest.fixture(autouse=True)
    def _isolated(sessionkit_isolation): ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ._isolation import Isolation
    from ._statements import Statements

__all__ = [
    "assert_statements",
    "capture_on_commit",
    "fail_commit_with",
    "lose_connection_during_commit",
    "retry_without_waiting",
    "sessionkit_factories",
    "sessionkit_isolation",
    "statement_count",
]

_isolation_key = pytest.StashKey["Isolation"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        'sessionkit(mode="rollback" | "template"): how sessionkit_isolation keeps what the test commits out of the '
        "database",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """End what an async test has used while its event loop still runs."""
    isolation = item.stash.get(_isolation_key, None)
    test = getattr(item, "obj", None)
    if isolation is None or not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(test):
        return (yield)

    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> Any:
        try:
            return await test(*args, **kwargs)
        finally:
            await isolation.end_in_loop()

    item.obj = within
    try:
        return (yield)
    finally:
        item.obj = test


@pytest.fixture
def sessionkit_factories() -> Iterable[object]:
    """The factories of the application: the project overrides this fixture.

    Returns:
        Factories (``sessionmaker``, ``async_sessionmaker``, scoped sessions), or engines, of both colours.
    """
    raise pytest.UsageError(
        "a fixture of sessionkit was asked for, but it does not know the application's factories; define a fixture "
        "sessionkit_factories in conftest.py that returns them, such as `return [Session]`"
    )


@pytest.fixture
def sessionkit_isolation(
    request: pytest.FixtureRequest, sessionkit_factories: Iterable[object]
) -> Generator[Isolation, None, None]:
    """Keep whatever the test commits through `sessionkit_factories` out of the database.

    ``mode="rollback"``, the default: all units of the test run on one connection for each engine, each in a savepoint,
    one after the other; at the end it is rolled back. ``mode="template"``: each test has a database of its own, a copy
    of that of the engine, which is dropped afterwards.

    A session, connection or transaction that the test leaves open fails it, with the place where it was opened; so does
    a violated constraint that was deferred.
    """
    from ._isolation import Isolation

    marker = request.node.get_closest_marker("sessionkit")
    isolation = Isolation(sessionkit_factories, **({} if marker is None else marker.kwargs))
    request.node.stash[_isolation_key] = isolation
    try:
        isolation.begin()
        yield isolation
    finally:
        del request.node.stash[_isolation_key]
        isolation.end()
    if isolation.problems:
        pytest.fail("\n".join(dict.fromkeys(isolation.problems)), pytrace=False)


@pytest.fixture
def capture_on_commit(
    sessionkit_isolation: Isolation,
) -> Callable[..., AbstractContextManager[list[Callable[[], object]]]]:
    """Look at the hooks that are due after a commit.

    ``with capture_on_commit() as hooks:`` collects them and holds them back, so that the test may call them;
    ``capture_on_commit(run=True)`` has them run as in production as well. Without it they run.
    """
    from ._hooks import capture_on_commit

    return capture_on_commit


@pytest.fixture
def statement_count(
    sessionkit_isolation: Isolation,
) -> Callable[[], AbstractContextManager[Statements]]:
    """Collect the statements that a block sends: it is entered ``as sent``, a list whose ``str()`` numbers them.

    BEGIN, COMMIT, ROLLBACK and savepoints are not among them, so that the number is the same in both modes.
    """
    return sessionkit_isolation.statements


@pytest.fixture
def assert_statements(sessionkit_isolation: Isolation) -> Callable[[int], AbstractContextManager[Statements]]:
    """Fail where a block sends another number of statements than was given, and show them."""
    return sessionkit_isolation.assert_statements


@pytest.fixture
def fail_commit_with(sessionkit_isolation: Isolation) -> Callable[..., None]:
    """Have COMMITs fail: ``fail_commit_with("40001", times=1)``.

    With an SQLSTATE, or on SQLite with the name of an error such as ``"SQLITE_BUSY"``. Nothing of the unit is committed.
    """
    return sessionkit_isolation.fail_commit_with


@pytest.fixture
def lose_connection_during_commit(sessionkit_isolation: Isolation) -> Callable[..., None]:
    """Have the answer to the next COMMIT be lost: ``lose_connection_during_commit(committed=False)``.

    With ``committed=True`` the database has committed. The scope cannot tell which: it raises ``CommitOutcomeUnknown``,
    or finds out if it has ``verify_commit``.
    """
    return sessionkit_isolation.lose_connection_during_commit


@pytest.fixture
def retry_without_waiting() -> Generator[list[float], None, None]:
    """Have no waits between attempts. Its value is the list of the waits that were skipped, in seconds."""
    from .. import _waiting

    before, _waiting.skipped = _waiting.skipped, []
    try:
        yield _waiting.skipped
    finally:
        _waiting.skipped = before
