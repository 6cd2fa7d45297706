"""What came of a call, and in what two of them differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, cast, literal_column, select, text
from sqlalchemy.orm import Session

from tests.support.grammar.tables import GIVEN

if TYPE_CHECKING:
    from tests.support.grammar.tables import Built


@dataclass(repr=False)
class Failure:
    """An error: its classes by name, the server's code, the place of the row."""

    def __repr__(self) -> str:
        return f"{self.classes[0]} ({self.code}) at {self.position}"

    classes: tuple[str, ...]
    code: str | None
    position: int | None

    @classmethod
    def of(cls, error: BaseException, position: int | None = None) -> Failure:
        orig = getattr(error, "orig", None) or error.__cause__
        code = next(
            (value for name in ("sqlstate", "pgcode", "sqlite_errorname") if (value := getattr(orig, name, None))), None
        )
        classes = tuple(kind.__name__ for kind in type(error).__mro__)
        return cls(classes, code, getattr(error, "position", None) if position is None else position)


@dataclass
class Outcome:
    """What came of a call. In the place of a key that the server has made stands what can be compared."""

    stored: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    failure: Failure | None = None
    failures: dict[int, Failure] = field(default_factory=dict[int, Failure])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    status: list[str] = field(default_factory=list[str])
    returned: list[Any] = field(default_factory=list[Any])
    rejected: dict[int, Failure] = field(default_factory=dict[int, Failure])
    stale: list[str] = field(default_factory=list[str])


def is_made(built: Built, value: Any) -> bool:
    """Tell whether the server has made a value of the key."""
    if built.key.made in {None, "default"}:
        return False
    return abs(value) < GIVEN if isinstance(value, int) else getattr(value, "version", None) is not None


def keys_by_label(session: Session, built: Built) -> dict[int, tuple[Any, ...]]:
    entity = built.entity
    rows = session.execute(select(entity.label, *(getattr(entity, name) for name in built.keys)))
    return {row[0]: tuple(row[1:]) for row in rows}


def stored(session: Session, built: Built, verb: str) -> list[tuple[Any, ...]]:
    """Return what is in the tables, as the database stores it: not through the types of the mapping."""
    found: list[tuple[Any, ...]] = []
    connection = session.connection()
    for place, table in enumerate(built.tables):
        columns: list[Any] = []
        names: list[str] = []
        for column in table.columns:
            keyed = column.primary_key and (built.key.made not in {None, "default"})
            if keyed and (place or column.name != "key" or built.key.made == "key"):
                continue
            if connection.dialect.name == "sqlite":
                quoted = connection.dialect.identifier_preparer.format_column(column, use_table=True)
                columns += [literal_column(quoted), literal_column(f"typeof({quoted})")]
                names += [column.name, f"type of {column.name}"]
            else:
                columns.append(cast(column, Text))
                names.append(column.name)
        first = built.tables[0]
        if not columns:
            continue  # a joined table of nothing but a key that the server has made
        query = select(*columns).order_by(first.c.label).where(first.c.label > -(2**31))
        query = query.select_from(first.join(table) if place else table)
        found += [(place, *zip(names, row, strict=True)) for row in connection.execute(query)]
    # In the order of the input only where nothing is found by another key.
    return found + _made_keys(session, built, ranked=verb == "insert")


def _made_keys(session: Session, built: Built, *, ranked: bool) -> list[tuple[Any, ...]]:
    """Return for each row how its key stands to the others that the server has made: the numbers go on, whoever inserts."""
    if built.key.made in {None, "default"}:
        return []
    place = built.keys.index(str(built.key.made))
    by_label = {label: key[place] for label, key in keys_by_label(session, built).items()}
    made = sorted(value for value in by_label.values() if is_made(built, value) and isinstance(value, int))
    return [
        (label, ("rank", ranked and made.index(value)) if is_made(built, value) else repr(value))
        for label, value in sorted(by_label.items())
        if isinstance(value, int) or not is_made(built, value)
    ]


def told(built: Built, labels: dict[tuple[Any, ...], int], row: Any) -> Any:
    """Return what `returning` has told of a row; its key as the label of the row that has it."""
    if row is None:
        return None
    values = dict(zip(built.attributes, row, strict=True))
    key = tuple(values.pop(name) for name in built.keys)
    return (("key of", labels.get(key, repr(key))), *((name, repr(value)) for name, value in values.items()))


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """Tell in what a call differs from what it should have been."""
    told_: list[str] = []
    if expected.failure is not None or found.failure is not None:
        at = None if found.failure is None else found.failure.position
        told_ += _other_failure("error", expected.failures.get(at, expected.failure), found.failure)  # type: ignore[arg-type]
    if expected.rejected.keys() != found.rejected.keys():
        told_.append(f"rejected: expected {sorted(expected.rejected)}, found {found.rejected}")
    else:
        for place, failure in expected.rejected.items():
            told_ += _other_failure(f"rejected {place}", failure, found.rejected[place])
    if expected.failure is None and found.failure is None:
        for name in ("counts", "status", "returned"):
            one, other = getattr(expected, name), getattr(found, name)
            if one != other:
                told_ += _first_difference(name, one, other)
    if expected.stored != found.stored:
        told_ += _first_difference("stored", expected.stored, found.stored)
    told_ += found.stale
    return told_


def _other_failure(what: str, expected: Failure | None, found: Failure | None) -> list[str]:
    if expected is None or found is None:
        return [f"{what}: expected {expected}, found {found}"]
    if expected.classes[0] not in found.classes or (expected.code and expected.code != found.code):
        return [f"{what}: expected {expected}, found {found}"]
    if None not in {expected.position, found.position} and expected.position != found.position:
        return [f"{what}: expected at {expected.position}, found at {found.position}"]
    return []


def _first_difference(name: str, expected: Any, found: Any) -> list[str]:
    if isinstance(expected, list) and len(expected) == len(found):
        place = next(i for i, (one, other) in enumerate(zip(expected, found, strict=True)) if one != other)
        one, other = expected[place], found[place]
        if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
            pairs = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
            one, other = [a for a, _ in pairs], [b for _, b in pairs]
        return [f"{name}, at {place}: expected {one}, found {other}"]
    if isinstance(expected, list):
        return [f"{name}: expected {len(expected)} items {expected[:4]}, found {len(found)} {found[:4]}"]
    return [f"{name}: expected {expected}, found {found}"]


SETTINGS = {"sqlite": text("PRAGMA synchronous = OFF"), "postgresql": text("SET synchronous_commit = off")}
"""What lets a test commit often."""
