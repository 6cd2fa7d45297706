"""The shape of the table entries about races: what the steps of units do, and what the database tells while they run."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import Engine

Item = tuple[str, object]
"""A table and the key of a row in it; all rows, where the key is None."""

Lock = tuple[str, object, str]
"""An item and how it is locked: see `CONFLICTS`."""

CONFLICTS = frozenset(
    pair
    for pairs in ("kw wk", "sw ws su us", "uu uw wu", "ww", "xk xs xu xw xx kx sx ux wx")
    for pair in map(tuple, pairs.split())
)
"""Which locks of a row exclude each other: of a key's share, a share, an update, any write, the whole table."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a step does that another unit can notice, and what of others it notices. Too much is safe, too little is not.

    Attributes:
        place: which database.
        reads: what it looks at as it is committed at this moment.
        locks: what it locks, to write or not; a write is a lock.
        snapshot: what its transaction reads later is read as it is committed at this moment.
        ends: its transaction ends, or the statement is one of its own.
        held: with `ends`, what the transaction had locked.
        serializable: the database looks whether the transaction fits into an order.
        seen: at that level, what it reads, committed or not.
        unknown: it may do anything.
    """

    place: int
    reads: frozenset[Item] = frozenset()
    locks: frozenset[Lock] = frozenset()
    snapshot: bool = False
    ends: bool = False
    held: frozenset[Lock] = frozenset()
    serializable: bool = False
    seen: frozenset[Item] = frozenset()
    unknown: bool = False

    @property
    def nothing(self) -> bool:
        """Tell whether no order makes a difference to this step."""
        return not (self.reads or self.locks or self.snapshot or self.held or self.seen or self.unknown)


def dependent(one: Effect, other: Effect) -> bool:
    """Tell whether the order of two steps of different units may make a difference."""
    if one.place != other.place or one.nothing or other.nothing:
        return False
    if one.unknown or other.unknown:
        return True
    if excludes(one.locks, other.locks):
        return True
    if (one.ends and _released(one, other)) or (other.ends and _released(other, one)):
        return True
    if one.ends and other.ends and excludes(one.held, other.held):
        return True
    if one.serializable and other.serializable:
        # Which of them is refused depends on the order of their commits, and on what was known when an edge was found.
        return one.ends or other.ends or _touches(one.seen, other.locks) or _touches(other.seen, one.locks)
    return False


def _released(end: Effect, other: Effect) -> bool:
    """Tell whether another step notices that a transaction has ended."""
    if other.snapshot and any(mode in "uwx" for _, _, mode in end.held):
        return True
    return _touches(other.reads, end.held) or excludes(other.locks, end.held)


def excludes(one: Iterable[Lock], other: Iterable[Lock]) -> bool:
    """Tell whether two sets of locks cannot be held by two transactions."""
    return any(
        (mine, theirs) in CONFLICTS and (table == "*" or their_table in ("*", table)) and _same(key, their_key)
        for table, key, mine in one
        for their_table, their_key, theirs in other
    )


def _touches(items: Iterable[Item], locks: Iterable[Lock]) -> bool:
    """Tell whether what is read may be what is written."""
    return any(
        mode in "uwx" and (table == "*" or written in ("*", table)) and _same(key, written_key)
        for table, key in items
        for written, written_key, mode in locks
    )


def _same(one: object, other: object) -> bool:
    return one is None or other is None or one == other


@dataclass(slots=True, eq=False)
class Move:
    """A step as it is taken.

    Attributes:
        statement: what is sent.
        values: its parameters.
        effect: what it does.
        result: what came back, for people.
        error: what it failed with.
        waited: it had to wait for another unit.
    """

    statement: str
    values: Any
    effect: Effect
    result: str = ""
    error: BaseException | None = None
    waited: bool = False

    @property
    def text(self) -> str:
        """Return the statement with its values in it."""
        return filled_in(self.statement, self.values)


class Gate(Protocol):
    """What the units pass before each step."""

    def here(self) -> Any:
        """Return the unit that runs here, or None."""
        ...

    def before(self, unit: Any, move: Move, *, asynchronous: bool = False) -> None:
        """Wait for the unit's turn."""
        ...

    def after(self, unit: Any, move: Move) -> None:
        """Tell that a step is done."""
        ...

    def again(self, unit: Any, move: Move) -> bool:
        """Wait until another unit has moved; tell whether the step is worth another try."""
        ...


@dataclass(slots=True)
class Rows:
    """What is in a table.

    Attributes:
        columns: their names.
        rows: the rows, in no order.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)


class Raced(ABC):
    """A database in which units run against each other.

    Args:
        place: its number.
        ask: sends a statement outside of transactions, and returns the names of the columns and the rows.
        path: of a database that is a file.
        dialect: the engine's.
    """

    dependent = staticmethod(dependent)

    def __init__(
        self, place: int, ask: Callable[[str], tuple[Sequence[str], Sequence[Any]]], path: str, dialect: Any
    ) -> None:
        self.place = place
        self.ask = ask
        self.path = path
        self.dialect = dialect

    @abstractmethod
    def arguments(self, dialect: Any, gate: Gate) -> Callable[[dict[str, Any]], None]:
        """Return what changes the arguments with which the driver connects."""

    @abstractmethod
    def watch(self, engine: Engine, gate: Gate) -> Callable[[], None]:
        """Have the steps on an engine pass the gate; return what ends that."""

    @abstractmethod
    def lent(self, driver_connection: Any, unit: Any) -> int | None:
        """Take note that a unit has a connection, or None that it has given it back. Return what `waiting` knows it by."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Set the copy up, before the connections of the units are made."""

    @abstractmethod
    def remember(self) -> None:
        """Keep what is in the database."""

    @abstractmethod
    def restore(self) -> bool:
        """Bring what was kept back; tell whether that was possible."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was kept."""

    @abstractmethod
    def state(self) -> dict[str, Rows]:
        """Return what is in the tables."""

    @abstractmethod
    def waiting(self, numbers: Sequence[int]) -> set[int]:
        """Tell which connections wait for a lock that another one of them holds."""

    @abstractmethod
    def end(self, driver_connection: Any, number: int | None) -> None:
        """End a connection that a unit has not given back, from another thread."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of the database."""


def short(value: object, length: int = 40) -> str:
    """Return a value as it is shown to people."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


_CAST = r"(?:::[A-Z]+(?: WITH(?:OUT)? TIME ZONE)?(?:\(\d+(?:, ?\d+)?\))?(?:\[\])?)?"
_PLACES = re.compile(rf"'(?:[^']|'')*'|%\((?P<name>\w+)\)s{_CAST}|\$(?P<number>\d+){_CAST}|(?P<next>\?|%s)")


def filled_in(statement: str, values: Any) -> str:
    """Return a statement with its values in it, for people."""
    counted = 0

    def value(found: re.Match[str]) -> str:
        nonlocal counted
        try:
            if found["name"] is not None:
                return short(values[found["name"]])
            if found["number"] is not None:
                return short(values[int(found["number"]) - 1])
            if found["next"] is not None:
                counted += 1
                return short(values[counted - 1])
        except (LookupError, TypeError):
            pass
        return found[0]

    text = " ".join(statement.split())
    if not values:
        return text
    if isinstance(values, list) and isinstance(values[0], dict | tuple | list):
        return f"{text}  {len(values)} times"
    return _PLACES.sub(value, text)


def shown_rows(rows: Sequence[Any], more: bool) -> str:
    """Return rows of an answer as they are shown to people."""
    if not rows:
        return "no row"
    told = ", ".join(f"({', '.join(short(value) for value in row)})" for row in rows)
    return f"{told}, ..." if more else told
