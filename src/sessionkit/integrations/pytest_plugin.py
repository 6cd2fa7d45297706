"""A pytest plugin: the code under test really commits, and the database stays clean.

pytest finds it when sessionkit is installed. It does nothing until a test requests one of its fixtures. The project overrides
one of them, `sessionkit_factories`:

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


# The types of the fixtures, for tests that are type-checked: `def test_it(capture_on_commit: CaptureOnCommit) -> None`.


class IsolatedTest(Protocol):
    """The fixture `sessionkit_isolation`.

    Attributes:
        mode: ``"rollback"`` or ``"template"``.
    """

    mode: str

    def start_over(self) -> None:
        """Undo what the test has committed so far, as between two examples of Hypothesis. For sync engines."""
        ...

    async def async_start_over(self) -> None:
        """Undo what the test has committed so far. For sync and async engines."""
        ...


class CaptureOnCommit(Protocol):
    """The fixture `capture_on_commit`."""

    def __call__(self, *, run: bool = False) -> AbstractContextManager[list[Callable[[], object]]]:
        """Collect the on_commit hooks that are due, and hold them back unless `run`."""
        ...


class StatementCount(Protocol):
    """The fixture `statement_count`."""

    def __call__(self) -> AbstractContextManager[Statements]:
        """Collect the statements that the block sends."""
        ...


class AssertStatements(Protocol):
    """The fixture `assert_statements`."""

    def __call__(self, expected: int, /) -> AbstractContextManager[Statements]:
        """Fail if the block sends a different number of statements."""
        ...


class FailCommitWith(Protocol):
    """The fixture `fail_commit_with`."""

    def __call__(self, code: str, /, *, times: int = 1) -> None:
        """Make the next COMMITs fail with an SQLSTATE, or with the name of an SQLite error."""
        ...


class LoseConnectionDuringCommit(Protocol):
    """The fixture `lose_connection_during_commit`."""

    def __call__(self, *, committed: bool = False) -> None:
        """Lose the answer to the next COMMIT."""
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
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        'sessionkit(mode="rollback" | "template"): keep the commits of the test out of the database, in this way',
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a marked test request the isolation: a marker without effect would be misleading."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker(MARKER) is None:
        return
    names = item.fixturenames
    if ISOLATION not in names:
        # The place of an autouse fixture: after those of wider scopes, before the other function-scoped ones.
        known = item._fixtureinfo.name2fixturedefs
        wider = sum(1 for name in names if name in known and known[name][-1].scope != "function")
        item.fixturenames = [
            *names[:wider],
            ISOLATION,
            *names[wider:],
        ]  # a new list, because other parameters share the old one


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
    """Return whether other processes of this run may copy a database, which works only while no connection uses it."""
    if _crowded_key not in session.stash:
        session.stash[_crowded_key] = hasattr(session.config, "workerinput") and any(
            marker.kwargs.get("mode") == "template" for item in session.items for marker in item.iter_markers(MARKER)
        )
    return session.stash[_crowded_key]


@pytest.fixture
def sessionkit_factories() -> Iterable[object]:
    """The factories of the application. The project overrides this fixture.

    Returns:
        Factories (``sessionmaker``, ``async_sessionmaker``, scoped sessions), or engines, sync or async.
    """
    pytest.fail(
        "the test requested a fixture of sessionkit, but sessionkit does not know the application's factories; "
        "define a fixture sessionkit_factories in conftest.py that returns them, such as `return [Session]`",
        pytrace=False,
    )


@pytest.fixture
def sessionkit_isolation(
    request: pytest.FixtureRequest, sessionkit_factories: Iterable[object]
) -> Generator[IsolatedTest, None, None]:
    """Keep everything that the test commits through `sessionkit_factories` out of the database.

    With ``mode="rollback"``, the default, all units of the test run on one connection per engine, each in a savepoint, one
    after the other; at the end this connection rolls back. With ``mode="template"``, each test gets its own copy of the
    engine's database, which is dropped afterwards.

    A commit that would bypass this is refused (by ``engine.begin()``, or by a session of a factory that is not listed). A
    session, connection or transaction that the test leaves open fails the test and names the line that opened it. A violated
    deferred constraint fails it too.
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
    """Capture the hooks that are due after a commit.

    ``with capture_on_commit() as hooks:`` collects them and holds them back, so that the test can call them;
    ``capture_on_commit(run=True)`` also runs them, as in production. Outside such a block they run as usual.
    """
    from ._kit.hooks import capture_on_commit

    return capture_on_commit


@pytest.fixture
def statement_count(sessionkit_isolation: KitIsolation) -> StatementCount:
    """Collect the statements that a block sends: ``as sent`` gives a list whose ``str()`` numbers them.

    BEGIN, COMMIT, ROLLBACK and savepoints are left out, so the number is the same in both modes.
    """
    return sessionkit_isolation.statements


@pytest.fixture
def assert_statements(sessionkit_isolation: KitIsolation) -> AssertStatements:
    """Fail if a block does not send exactly this number of statements, and show them."""
    return sessionkit_isolation.assert_statements


@pytest.fixture
def fail_commit_with(sessionkit_isolation: KitIsolation) -> FailCommitWith:
    """Make COMMITs fail: ``fail_commit_with("40001", times=1)``.

    Takes an SQLSTATE, or on SQLite the name of an error such as ``"SQLITE_BUSY"``. Nothing of the unit is committed.
    """
    return sessionkit_isolation.fail_commit_with


@pytest.fixture
def lose_connection_during_commit(sessionkit_isolation: KitIsolation) -> LoseConnectionDuringCommit:
    """Lose the answer to the next COMMIT: ``lose_connection_during_commit(committed=False)``.

    With ``committed=True`` the database has committed. The scope cannot tell which: it raises ``CommitOutcomeUnknown``, or
    finds out with ``verify_commit``.
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
    """Skip the waits between attempts. Its value is the list of skipped waits, in seconds."""
    from .._spi import skipping

    skipped: list[float] = []
    skipping.append(skipped)
    try:
        yield skipped
    finally:
        skipping[:] = [each for each in skipping if each is not skipped]
