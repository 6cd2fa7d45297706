"""A schedule: what the units have sent in which order, and how they have ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Outcome", "Schedule", "Serial", "Step", "Told", "freeze", "multiset"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a unit has sent in one turn.

    Attributes:
        unit: whose turn it was, counted from 1.
        statement: the SQL as it was sent.
        values: its parameters.
        text: the SQL with the values in it, for people.
        result: what came back, as text: rows, or how many were written.
        error: what it failed with, or None.
        waited: whether it had to wait for another unit.
    """

    unit: int
    statement: str
    values: Any = None
    text: str = ""
    result: str = ""
    error: BaseException | None = None
    waited: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unit has ended.

    Attributes:
        value: what it returned.
        error: what it raised, or None.
        refused: whether that error means that the database has refused it: it is rolled back, and running it again could
            succeed. For `assert_serial` such a unit has not run.
    """

    value: Any = None
    error: BaseException | None = None
    refused: bool = False

    def __str__(self) -> str:
        """Tell it in a few words."""
        if self.error is None:
            return f"returned {_short(self.value)}"
        name = type(getattr(self.error, "orig", None) or self.error).__name__
        return f"refused: {name}" if self.refused else f"raised {name}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One order in which the units took their steps.

    Attributes:
        order: whose turn it was, step after step; units are counted from 1.
        steps: what they sent.
        outcomes: how each has ended.
        state: what was in the tables at the end, by their names; or what ``state=`` returned.
        seed: replays exactly this order.
        serial: whether outcomes and state are those of the units one after the other, in some order.
        error: what ``check`` raised, or None.
    """

    order: tuple[int, ...]
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    state: Any
    seed: str
    serial: bool = True
    error: BaseException | None = None

    @property
    def switches(self) -> int:
        """How often another unit than before took its turn."""
        return sum(one != other for one, other in zip(self.order, self.order[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Serial:
    """Units that ran one after the other.

    Attributes:
        order: which, from 1.
        outcomes: how each has ended, by its number.
        state: what was in the tables at the end.
    """

    order: tuple[int, ...]
    outcomes: Mapping[int, Outcome]
    state: Any


class Told(Protocol):
    """What has to be known of all schedules to tell one of them: see `Races`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def explored(self) -> int: ...
    @property
    def pruned(self) -> int: ...
    @property
    def complete(self) -> bool: ...
    @property
    def seed(self) -> int | str: ...
    @property
    def ignored(self) -> tuple[str, ...]: ...
    @property
    def serial(self) -> tuple[Serial, ...]: ...


def _short(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def freeze(value: Any) -> Any:
    """Return something hashable that is equal where values are equal to people: mapped objects by their columns."""
    if isinstance(value, str | bytes | int | type(None)):
        return (type(value) if isinstance(value, bool) else "", value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return ("dict", frozenset((freeze(key), freeze(inner)) for key, inner in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(freeze, value)))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(map(freeze, value)))
    kind = type(value)
    if hasattr(value, "_sa_instance_state"):
        return (kind.__qualname__, freeze({name: each for name, each in vars(value).items() if name[:4] != "_sa_"}))
    if "__eq__" not in {name for each in kind.__mro__[:-1] for name in vars(each)}:
        return kind.__qualname__  # equal to nothing but itself: what can be compared is what it is
    try:
        hash(value)
    except TypeError:
        return (kind.__qualname__, repr(value))
    return value


def multiset(rows: Sequence[tuple[Any, ...]], keep: Sequence[int]) -> frozenset[Any]:
    """Return rows without their order, and of them these columns."""
    return frozenset(Counter(tuple(freeze(row[place]) for place in keep) for row in rows).items())
