"""What observers report about a scope: its name, its kind, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from .._spi import Joined
from ..errors import UnexpectedRollback, classify, first_of

if TYPE_CHECKING:
    from .._spi import Entry, Run

__all__ = [
    "EntryKind",
    "RequestName",
    "conflicts_in",
    "error_type",
    "group_of",
    "kind_of",
    "marks_of",
    "name_of",
    "outcome_of",
    "run_of",
]

EntryKind = Literal["unit", "join", "savepoint", "passed"]
"""An entry begins a transaction, joins one, sets a savepoint in one, or runs on a session that was passed in."""

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


class RequestName(str):
    """The name of a web request's scope: its method and path.

    Attributes:
        group: a name with few different values, since paths are unlimited: the method, if it is a known one.
    """

    __slots__ = ("group",)

    group: str

    def __new__(cls, method: str, path: str) -> Self:
        made = super().__new__(cls, f"{method} {path}")
        made.group = method if method in _METHODS else "_OTHER"
        return made


def name_of(entry: Entry) -> str | None:
    """Return the name of the scope."""
    scope: Any = entry.scope
    name: str | None = scope._request.name
    return name


def group_of(name: str | None) -> str | None:
    """Return the name under which metrics count this scope."""
    return name.group if isinstance(name, RequestName) else name


def kind_of(entry: Entry) -> EntryKind:
    """Return what the entry does in the database."""
    if entry.opened:
        return "unit"
    if isinstance(entry, Joined) and entry.savepoint is not None:
        return "savepoint"
    return "passed" if entry.unit is None else "join"


def run_of(entry: Entry) -> Run | None:
    """Return which attempt the entry is; None without retry."""
    return entry.unit.run if entry.opened and entry.unit is not None else None


def marks_of(entry: Entry) -> dict[str, bool | str]:
    """Return marks that only some entries have.

    ``locking``: its SELECTs lock rows. ``mutex``: the text of its mutex. ``system``: it runs without its factory's settings.
    ``replayed``: its body did not run, because its key of ``once=`` had a result.
    """
    run = run_of(entry)
    marks: dict[str, bool | str] = {} if run is None or not run.lock else {"locking": True}
    unit: Any = entry.unit
    if unit is not None and unit.in_force.system:
        marks["system"] = True
    claim: Any = entry.claim if isinstance(entry, Joined) else entry.unit.claim
    if claim is not None and claim.replayed:
        marks["replayed"] = True
    features: Any = () if unit is None else unit.features
    held = (feature.mutex for feature in features if feature.mutex is not None)
    mutex = entry.mutex if isinstance(entry, Joined) else next(held, None)
    return marks if mutex is None else {**marks, "mutex": mutex}


def outcome_of(entry: Entry) -> str | None:
    """Return how the entry's transaction ended; None if the entry began none.

    A transaction that only read the result of a key may end by COMMIT or ROLLBACK: the work behind it is committed.
    """
    if not entry.opened or entry.unit is None:
        return None
    outcome: str = entry.unit.outcome
    claim = entry.unit.claim
    return "committed" if claim is not None and claim.replayed else outcome


def error_type(error: BaseException) -> str:
    """Return the kind of error in one word: the SQLSTATE, SQLite's error name, or else the class."""
    first = first_of(error)
    return classify(first).code or type(first).__qualname__


def conflicts_in(error: BaseException | None) -> int:
    """Return the number of rows that, according to an error, another transaction has changed or deleted."""
    if error is None:
        return 0
    first = first_of(error)
    if isinstance(first, UnexpectedRollback):
        return conflicts_in(first.__cause__)
    if classify(first).kind != "stale_version":
        return 0
    return max(1, len(getattr(first, "conflicts", ())))
