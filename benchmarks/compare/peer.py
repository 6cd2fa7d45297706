"""The vocabulary: what a question may ask of a peer, and how a peer says that it has no such feature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncSession


class Missing(Exception):
    """A peer has no such feature: a few words, and the page of its documentation that shows it."""

    def __init__(self, what: str, page: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.page = page


class Row(Protocol):
    """An object of the peer, mapped to a row of `account`."""

    id: Any
    balance: Any


class Work(Protocol):
    """What a body may do in a unit of work, in the peer's own words."""

    def add(self, number: int, name: str, balance: int = 0) -> None:
        """Insert an account immediately."""

    def get(self, number: int, *, versioned: bool = False) -> Row:
        """Read an account as an object. `versioned`: from a model with the peer's own version column."""

    def save(self, row: Row) -> None:
        """Write a changed object immediately."""

    def total(self) -> int:
        """Sum up all balances."""

    def sql(self, statement: str) -> Any:
        """Send SQL; return the first value, if there is one."""


@dataclass(frozen=True)
class Feature:
    """How a peer does it: an importable name, its text in the table, and its page in the documentation."""

    at: str
    called: str
    page: str


class Peer(ABC):
    """One way of working with sessions, on one database. A peer has only what it overrides.

    Args:
        url: the database, without a driver.
        serializable: have all units run at SERIALIZABLE, by the option that the peer offers.
    """

    name: ClassVar[str]
    docs: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]  # whose versions belong to the result, its own first
    features: ClassVar[dict[str, Feature]] = {}
    inherits: ClassVar[tuple[str, ...]] = ()  # features that are SQLAlchemy's, where it has none of its own

    @abstractmethod
    def __init__(self, url: URL, *, serializable: bool = False) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Return all connections."""

    @abstractmethod
    def unit(self) -> AbstractContextManager[Work]:
        """A unit of work as the documentation begins and ends it; inside another unit, what a function would do."""

    @abstractmethod
    def savepoint(self, work: Work) -> AbstractContextManager[Any]:
        """Begin a part of a unit that can fail alone."""

    def context(self) -> AbstractContextManager[Any]:
        """What surrounds a unit in a request or a thread, if the peer needs that."""
        from contextlib import nullcontext

        return nullcontext()

    def read_only(self) -> AbstractContextManager[Work]:
        """Begin a read-only unit."""
        raise Missing("no option", self.docs)

    def limited(self, seconds: float) -> AbstractContextManager[Work]:
        """Begin a unit that limits the time of its statements."""
        raise Missing("no option", self.docs)

    def retried(self, body: Callable[[Work], object]) -> object:
        """Run a body as a unit, and again if that helps."""
        raise Missing("no retry", self.docs)

    def prepare_to_verify(self) -> None:
        """Create what `verified` needs in the database."""
        raise Missing("no such feature", self.docs)

    def verified(self, body: Callable[[Work], object]) -> object:
        """Run a body as a unit that finds out whether its COMMIT was made."""
        raise Missing("no such feature", self.docs)

    def after_commit(self, work: Work, hook: Callable[[], object]) -> None:
        """Register a hook that runs after the commit."""
        raise Missing("no hooks", self.docs)

    @property
    def has_version(self) -> bool:
        """Whether a model may have a version column that the peer checks."""
        return True

    def ambient(self) -> object:
        """Return something that identifies the ambient session."""
        raise Missing("no ambient session: you pass it on", self.docs)

    def isolated_test(self, test: Callable[[], None]) -> None:
        """Run a test whose commits do not stay."""
        raise Missing("no test isolation", self.docs)

    # In async code

    def open_async(self) -> None:
        """Prepare for async units, before there is an event loop."""
        raise Missing("no async units", self.docs)

    def async_unit(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Begin a unit of work in async code."""
        raise Missing("no async units", self.docs)

    # For the speed, as plain as in the documentation.

    @abstractmethod
    def empty(self) -> None:
        """Begin and end a unit."""

    @abstractmethod
    def one_row(self, number: int) -> None:
        """Insert one item in a unit."""

    def insert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Insert items, commit, and return their ids in the order of the input."""
        raise Missing("no bulk of its own", self.docs)

    def upsert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Insert items or update those whose code is there, commit, and return their ids in the order of the input."""
        raise Missing("no bulk of its own", self.docs)
