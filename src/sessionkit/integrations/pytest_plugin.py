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

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from ..errors import OptionError
from ._kit.statements import Statements

if TYPE_CHECKING:
    from ..testing import Races
    from ._kit.isolation import KitIsolation

__all__ = [
    "AssertStatements",
    "CaptureOnCommit",
    "FailCommitWith",
    "IsolatedTest",
    "LoseConnectionDuringCommit",
    "RunRaces",
    "StatementCount",
    "Statements",
    "assert_statements",
    "capture_on_commit",
    "fail_commit_with",
    "lose_connection_during_commit",
    "races",
    "retry_without_waiting",
    "sessionkit_factories",
    "sessionkit_isolation",
    "statement_count",
]

MARKER = "sessionkit"
ISOLATION = "sessionkit_isolation"

_crowded_key = pytest.StashKey[bool]()


# What the fixtures are, for tests that are type-checked: `def test_it(capture_on_commit: CaptureOnCommit) -> None`.


class IsolatedTest(Protocol):
    """The fixture `sessionkit_isolation`.

    Attributes:
        mode: ``"rollback"`` or ``"template"``.
    """

    mode: str

    def start_over(self) -> None:
        """Take back what the test has committed so far, as between two examples of Hypothesis. For sync engines."""
        ...

    async def async_start_over(self) -> None:
        """Take back what the test has committed so far. For sync and async engines."""
        ...


class CaptureOnCommit(Protocol):
    """The fixture `capture_on_commit`."""

    def __call__(self, *, run: bool = False) -> AbstractContextManager[list[Callable[[], object]]]:
        """Collect the on_commit hooks that are due, and hold them back unless `run`."""
        ...


class StatementCount(Protocol):
    """The fixture `statement_count`."""

    def __call__(self) -> AbstractContextManager[Statements]:
        """Collect the statements that are sent."""
        ...


class AssertStatements(Protocol):
    """The fixture `assert_statements`."""

    def __call__(self, expected: int, /) -> AbstractContextManager[Statements]:
        """Fail where another number of statements is sent."""
        ...


class FailCommitWith(Protocol):
    """The fixture `fail_commit_with`."""

    def __call__(self, code: str, /, *, times: int = 1) -> None:
        """Have the next COMMITs fail with an SQLSTATE, or with an error of SQLite by its name."""
        ...


class LoseConnectionDuringCommit(Protocol):
    """The fixture `lose_connection_during_commit`."""

    def __call__(self, *, committed: bool = False) -> None:
        """Have the answer to the next COMMIT be lost."""
        ...


class RunRaces(Protocol):
    """The fixture `races`."""

    def __call__(
        self,
        *units: Callable[[], Any],
        setup: Callable[[], Any] | None = None,
        check: Callable[..., Any] | None = None,
        state: Callable[[], Any] | None = None,
        ignore: Sequence[Any] = (),
        max_schedules: int = 1000,
        max_seconds: float = 60.0,
        step_timeout: float = 10.0,
        seed: int | str = 0,
    ) -> Races:
        """Run units against each other in every order of their statements: see `sessionkit.testing.races`."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        'sessionkit(mode="rollback" | "template"): keep what the test commits out of the database, in this way',
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have a test that is marked ask for the isolation: a marker that does nothing would deceive."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker(MARKER) is None:
        return
    names = item.fixturenames
    if ISOLATION not in names:
        # Where an autouse fixture would come: after those of wider scopes, before the other ones of its own.
        known = item._fixtureinfo.name2fixturedefs
        wider = sum(1 for name in names if name in known and known[name][-1].scope != "function")
        item.fixturenames = [*names[:wider], ISOLATION, *names[wider:]]  # the list is that of other parameters too


def _mode(item: pytest.Item) -> str:
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return "rollback"
    if marker.args or set(marker.kwargs) - {"mode"}:
        given = ", ".join([*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())])
        raise OptionError(
            f'the marker sessionkit({given}) is not understood; write sessionkit(mode="rollback") or '
            'sessionkit(mode="template")'
        )
    return str(marker.kwargs.get("mode", "rollback"))


def _is_crowded(session: pytest.Session) -> bool:
    """Tell whether other processes of this run may want to copy a database, which they can while nobody uses it."""
    if _crowded_key not in session.stash:
        session.stash[_crowded_key] = hasattr(session.config, "workerinput") and any(
            marker.kwargs.get("mode") == "template" for item in session.items for marker in item.iter_markers(MARKER)
        )
    return session.stash[_crowded_key]


@pytest.fixture
def sessionkit_factories() -> Iterable[object]:
    """The factories of the application: the project overrides this fixture.

    Returns:
        Factories (``sessionmaker``, ``async_sessionmaker``, scoped sessions), or engines, sync or async.
    """
    pytest.fail(
        "a fixture of sessionkit was asked for, but it does not know the application's factories; define a fixture "
        "sessionkit_factories in conftest.py that returns them, such as `return [Session]`",
        pytrace=False,
    )


@pytest.fixture
def sessionkit_isolation(
    request: pytest.FixtureRequest, sessionkit_factories: Iterable[object]
) -> Generator[IsolatedTest, None, None]:
    """Keep whatever the test commits through `sessionkit_factories` out of the database.

    ``mode="rollback"``, the default: all units of the test run on one connection for each engine, each in a savepoint,
    one after the other; at the end it is rolled back. ``mode="template"``: each test has a database of its own, a copy
    of that of the engine, which is dropped afterwards.

    What would be committed past that (by ``engine.begin()``, or a session of a factory that was not named) is refused.
    A session, connection or transaction that the test leaves open fails it, with the place where it was opened; so does
    a violated constraint that was deferred.
    """
    from ._kit.isolation import KitIsolation

    node, isolation, refused = request.node, None, ""
    try:
        isolation = KitIsolation(
            sessionkit_factories, _mode(node), name=node.nodeid, release=_is_crowded(request.session)
        )
        isolation.begin()
    except OptionError as error:
        refused = str(error)
    if isolation is None or refused:
        pytest.fail(refused, pytrace=False)
    try:
        yield isolation
    finally:
        isolation.end()
    if isolation.problems:
        pytest.fail("\n".join(dict.fromkeys(isolation.problems)), pytrace=False)


@pytest.fixture
def capture_on_commit(sessionkit_isolation: KitIsolation) -> CaptureOnCommit:
    """Look at the hooks that are due after a commit.

    ``with capture_on_commit() as hooks:`` collects them and holds them back, so that the test may call them;
    ``capture_on_commit(run=True)`` has them run as in production as well. Without it they run.
    """
    from ._kit.hooks import capture_on_commit

    return capture_on_commit


@pytest.fixture
def statement_count(sessionkit_isolation: KitIsolation) -> StatementCount:
    """Collect the statements that a block sends: it is entered ``as sent``, a list whose ``str()`` numbers them.

    BEGIN, COMMIT, ROLLBACK and savepoints are not among them, so that the number is the same in both modes.
    """
    return sessionkit_isolation.statements


@pytest.fixture
def assert_statements(sessionkit_isolation: KitIsolation) -> AssertStatements:
    """Fail where a block sends another number of statements than was given, and show them."""
    return sessionkit_isolation.assert_statements


@pytest.fixture
def fail_commit_with(sessionkit_isolation: KitIsolation) -> FailCommitWith:
    """Have COMMITs fail: ``fail_commit_with("40001", times=1)``.

    With an SQLSTATE, or on SQLite with the name of an error such as ``"SQLITE_BUSY"``. Nothing of the unit is committed.
    """
    return sessionkit_isolation.fail_commit_with


@pytest.fixture
def lose_connection_during_commit(sessionkit_isolation: KitIsolation) -> LoseConnectionDuringCommit:
    """Have the answer to the next COMMIT be lost: ``lose_connection_during_commit(committed=False)``.

    With ``committed=True`` the database has committed. The scope cannot tell which: it raises ``CommitOutcomeUnknown``,
    or finds out if it has ``verify_commit``.
    """
    return sessionkit_isolation.lose_connection_during_commit


@pytest.fixture
def races(sessionkit_factories: Iterable[object]) -> RunRaces:
    """Run units of work against each other, in every order of their statements, on the real database.

    It is `sessionkit.testing.races` with the factories of `sessionkit_factories`. A test that is isolated needs
    ``mode="template"``: in rollback mode all units share one connection.
    """
    from ..testing import races

    return partial(races, factories=sessionkit_factories)


@pytest.fixture
def retry_without_waiting() -> Generator[list[float], None, None]:
    """Have no waits between attempts. Its value is the list of the waits that were skipped, in seconds."""
    from .._spi import skipping

    skipped: list[float] = []
    skipping.append(skipped)
    try:
        yield skipped
    finally:
        skipping[:] = [each for each in skipping if each is not skipped]
