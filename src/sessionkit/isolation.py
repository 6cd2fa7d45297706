"""Isolation levels and presets: what you ask of a transaction, and what the database makes of it.

A preset is a promise that the database keeps. ``_dialects`` says what each dialect provides for it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, overload

from .errors import OptionError

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

__all__ = [
    "READ_COMMITTED",
    "READ_ONLY",
    "REPEATABLE_READ",
    "REPORT",
    "SERIALIZABLE",
    "SNAPSHOT",
    "EffectiveIsolation",
    "Isolation",
    "IsolationName",
    "Preset",
    "effective_isolation",
]


class Isolation(StrEnum):
    """The isolation levels of the SQL standard, weakest first, in SQLAlchemy's spelling.

    AUTOCOMMIT is not among them, because it is not a transaction.
    """

    READ_UNCOMMITTED = "READ UNCOMMITTED"
    READ_COMMITTED = "READ COMMITTED"
    REPEATABLE_READ = "REPEATABLE READ"
    SERIALIZABLE = "SERIALIZABLE"

    @property
    def strength(self) -> int:
        """The position in the order, 0 for the weakest."""
        return list(Isolation).index(self)


IsolationName = Literal["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


def as_isolation(level: object, asked: str) -> Isolation:
    """Return `level` as an `Isolation`. As in SQLAlchemy, case does not matter and ``_`` may replace the space.

    Raises:
        OptionError: there is no such level, or it is AUTOCOMMIT.
    """
    if isinstance(level, Isolation):
        return level
    name = level.upper().replace("_", " ") if isinstance(level, str) else ""
    if name == "AUTOCOMMIT":
        raise OptionError(
            f"isolation={level!r} was asked of {asked}, but AUTOCOMMIT is not a transaction: there would be nothing to "
            "commit or to roll back; execute such a statement on engine.connect() with that level"
        )
    try:
        return Isolation(name)
    except ValueError:
        levels = ", ".join(repr(str(known)) for known in Isolation)
        raise OptionError(f"isolation={level!r} was asked of {asked}; the levels are {levels}") from None


@dataclass(frozen=True, slots=True)
class Preset:
    """What you ask of a transaction. None leaves a setting to the server.

    Args:
        isolation: the level, an `Isolation` or its name.
        read_only: True: the database refuses every write. False: the unit needs to write, so joining a read-only
            transaction is an error.
        deferrable: wait for a snapshot that cannot fail, then run on it: PostgreSQL's SERIALIZABLE READ ONLY DEFERRABLE,
            and only together with those two.
        statement_timeout: the longest that one statement may take, in seconds.
        lock_timeout: the longest that a statement may wait for a lock, in seconds.
        idle_timeout: the longest that the transaction may be idle between two statements, in seconds.

    Raises:
        OptionError: a value has the wrong type or range, or `deferrable` is used without its partners.
    """

    isolation: Isolation | None = None
    read_only: bool | None = None
    deferrable: bool | None = None
    statement_timeout: float | None = None
    lock_timeout: float | None = None
    idle_timeout: float | None = None

    if TYPE_CHECKING:

        @overload
        def __init__(
            self,
            isolation: Isolation | IsolationName | None = None,
            read_only: bool | None = None,
            deferrable: Literal[False] | None = None,
            statement_timeout: float | None = None,
            lock_timeout: float | None = None,
            idle_timeout: float | None = None,
        ) -> None: ...
        @overload
        def __init__(
            self,
            isolation: Literal[Isolation.SERIALIZABLE, "SERIALIZABLE"],
            read_only: Literal[True],
            deferrable: bool | None = None,
            statement_timeout: float | None = None,
            lock_timeout: float | None = None,
            idle_timeout: float | None = None,
        ) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __post_init__(self) -> None:
        """Check the values, each alone and all together."""
        if self.isolation is not None:
            object.__setattr__(self, "isolation", as_isolation(self.isolation, "a preset"))
        for name in ("read_only", "deferrable"):
            flag = getattr(self, name)
            if flag is not None and not isinstance(flag, bool):
                raise OptionError(f"{name}={flag!r} was asked for; it is True, False or None")
        for name in ("statement_timeout", "lock_timeout", "idle_timeout"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= 2_147_483:
                raise OptionError(
                    f"{name}={seconds!r} was asked for; it is a number of seconds between 0.001 and 2147483, "
                    "or None for the server's own setting"
                )
        if self.deferrable and not (self.isolation is Isolation.SERIALIZABLE and self.read_only):
            raise OptionError(
                f"deferrable=True was asked for with isolation={self.isolation and str(self.isolation)!r} and "
                f"read_only={self.read_only!r}; a transaction can be deferrable only if it is SERIALIZABLE and "
                "read-only as well (https://www.postgresql.org/docs/current/sql-set-transaction.html)"
            )

    def replace(self, **changes: Any) -> Preset:
        """Return this preset with some values changed.

        Raises:
            OptionError: there is no such setting, or its value does not fit the others.
        """
        return merge(self, changes, "Preset.replace()")

    def __or__(self, other: Preset) -> Preset:
        """Return this preset, overridden by what `other` asks for."""
        return merge(self, {f.name: value for f in fields(other) if (value := getattr(other, f.name)) is not None}, "|")


NOTHING_ASKED = Preset()
"""The preset of a scope that asks for nothing."""

PRESET_FIELDS = frozenset(f.name for f in fields(Preset))


def merge(preset: Preset, changes: dict[str, Any], asked: str) -> Preset:
    """Return `preset`, overridden by `changes` and checked as a whole."""
    if not changes:
        return preset
    if unknown := changes.keys() - PRESET_FIELDS:
        from .errors import UnknownOptionError

        raise UnknownOptionError(min(unknown), PRESET_FIELDS, asked)
    values = {name: getattr(preset, name) for name in PRESET_FIELDS}
    values.update(changes)
    return Preset(**values)


READ_COMMITTED = Preset(isolation=Isolation.READ_COMMITTED)
"""Each statement sees what was committed before it began."""

REPEATABLE_READ = Preset(isolation=Isolation.REPEATABLE_READ)
"""The transaction sees what was committed before its first statement; on PostgreSQL, snapshot isolation."""

SERIALIZABLE = Preset(isolation=Isolation.SERIALIZABLE)
"""The outcome is as if the transactions had run one after another; be ready to retry."""

READ_ONLY = Preset(read_only=True)
"""The database refuses every write."""

SNAPSHOT = Preset(isolation=Isolation.REPEATABLE_READ, read_only=True)
"""One consistent picture of the database, without writes."""

REPORT = Preset(isolation=Isolation.SERIALIZABLE, read_only=True, deferrable=True)
"""A long report: serializable, yet it never fails and never makes another transaction fail; it may wait at the start."""


@dataclass(frozen=True, slots=True)
class EffectiveIsolation:
    """What a transaction really gets.

    Attributes:
        level: the level at which the database runs it.
        anomalies: what can still happen, in the names of Adya's thesis as the Hermitage suite uses them: G0 (dirty
            write), G1a (aborted read), G1b (intermediate read), G1c (circular information flow), OTV (observed
            transaction vanishes), PMP (predicate-many-preceders), P4 (lost update), G-single (read skew), G2-item
            (write skew), G2 (anti-dependency cycle).
    """

    level: Isolation
    anomalies: frozenset[str]


def effective_isolation(bind: Any, level: Isolation | IsolationName) -> EffectiveIsolation:
    """Return the level that you get if you ask for `level`, and the anomalies that remain. Emits no SQL.

    Args:
        bind: an engine, connection or session, sync or async.
        level: the level you would ask for.

    Raises:
        OptionError: there is no such level; the dialect has neither it nor a stronger one; sessionkit does not know the
            dialect's anomalies; or `bind` has no dialect.

    tests/concurrency/test_anomalies.py proves the table, cell by cell, for PostgreSQL and SQLite; for other dialects it
    follows their documentation. Sources: A. Adya, "Weak Consistency" (1999); the Hermitage suite
    (https://github.com/ept/hermitage); PostgreSQL manual 13.2; https://www.sqlite.org/isolation.html.
    """
    from . import _dialects  # here, so that a preset does not need the dialects' tables

    asked = as_isolation(level, "effective_isolation()")
    dialect: Dialect | None = getattr(bind, "dialect", None)
    if dialect is None and hasattr(bind, "get_bind"):
        dialect = bind.get_bind().dialect
    if dialect is None:
        raise OptionError(f"effective_isolation() takes an engine, a connection or a session, not {bind!r}")
    entry = _dialects.of_name(dialect.name)
    given = entry.given(str(asked))
    if given not in entry.anomalies:
        raise OptionError(
            f"effective_isolation() was asked about {dialect.name}, but sessionkit does not know what its levels allow; "
            "its entry in sessionkit._dialects has no table of anomalies"
        )
    return EffectiveIsolation(Isolation(given), entry.anomalies[given])
