"""A flush or bulk statement in progress: which versioned rows it writes, and which of them did not match.

SQLAlchemy compares the sum of the matched rows for a group of statements and reports only a number. To learn which rows they
were, this module watches the row count of each statement. Where the count does not tell (the flush stops at the first group
that does not match, and several DELETEs are one statement), it reads the versions again in the same transaction.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm.exc import StaleDataError

from ..errors import Identity
from ._kinds import server_now
from ._rows import is_any_of, key_columns, values_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from sqlalchemy.engine import Connection, CursorResult
    from sqlalchemy.orm import InstanceState, Mapper
    from sqlalchemy.orm.attributes import History

running: ContextVar[FlushWatch | None] = ContextVar("sessionkit_version_attempt", default=None)


@dataclass(slots=True)
class Row:
    """A row that the flush or statement will write.

    Attributes:
        mapper: the mapper of its class.
        identity: its primary key.
        expected: the version in the WHERE.
        state: the state of its object; None in a bulk statement, where `values` are those of the statement.
        matched: whether such a row was found; None if not known.
        forced: a new version is written even if nothing else changes.
        changes: the changes of its object.
        hidden: attributes that a conflict does not show: the version, and a column that is only set so that there is an
            UPDATE.
        uncertain: it shared a DELETE with other rows, and not all of them matched.
    """

    mapper: Mapper[Any]
    identity: Identity
    expected: Any
    connection: Connection
    state: InstanceState[Any] | None = None
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    changes: Mapping[str, History] = field(default_factory=dict[str, Any])
    hidden: tuple[str, ...] = ()
    deleting: bool = False
    forced: bool = False
    matched: bool | None = None
    uncertain: bool = False

    def original(self) -> dict[str, Any]:
        """Return the values as they were read, without the version."""
        if self.state is None:
            return {}
        # Writing the row forgets values that were SQL expressions, and the rows are counted only afterwards.
        known = {key: history.deleted[0] for key, history in self.changes.items() if history.deleted}
        return {key: value for key, value in (values_read(self.state) | known).items() if key not in self.hidden}

    def attempted(self) -> dict[str, Any] | None:
        """Return the values that the unit tried to write, without the version; None for a DELETE."""
        if self.deleting:
            return None
        if self.state is None:
            return dict(self.values)
        return {
            key: history.added[0] if history.added else None
            for key, history in self.changes.items()
            if key not in self.hidden
        }


Stale: TypeAlias = "tuple[Row, Any, bool | None]"
Versions: TypeAlias = "dict[tuple[Mapper[Any], Identity], Any]"


class FlushWatch:
    """The rows of one flush or bulk statement."""

    def __init__(self, connection: Callable[[], Connection] | None = None) -> None:
        self.connection = connection
        self._now: dict[Connection, datetime] = {}
        self.rows: dict[tuple[Any, Identity], Row] = {}
        self._names: dict[Any, tuple[tuple[str, str], ...]] = {}
        self._short: list[tuple[list[Row], int]] = []

    def now(self) -> datetime:
        """Return the time of the server that this flush writes to; asked once."""
        assert self.connection is not None
        connection = self.connection()
        if connection not in self._now:
            self._now[connection] = server_now(connection)
        return self._now[connection]

    def expect_row(self, connection: Connection, state: InstanceState[Any], version: Any, **details: Any) -> None:
        """Add a row of a flush."""
        assert state.identity is not None
        self.add(Row(state.mapper, state.identity, version, connection, state=state, **details))
        # SQLAlchemy checks a single row itself; of two or more we watch each. Every row of a group is added before the first
        # of them is written.
        if len(self.rows) == 2:
            for row in self.rows.values():
                watch_flushes(row.connection)
        elif len(self.rows) > 2:
            watch_flushes(connection)

    def add(self, row: Row) -> None:
        """Add a row."""
        table = _table(row.mapper)
        self.rows[table, row.identity] = row
        if table not in self._names:
            # SQLAlchemy's parameter names for the key in the WHERE: of an UPDATE (with the table), of a DELETE.
            self._names[table] = tuple((str(c._label), str(c.key)) for c in key_columns(row.mapper))

    def has(self, state: InstanceState[Any]) -> bool:
        """Return whether this row was added."""
        return (_table(state.mapper), state.identity or ()) in self.rows

    def wrote(self, mapper: Mapper[Any], identity: Identity | None) -> None:
        """Note that a row has matched, as SQLAlchemy reports."""
        row = self.rows.get((_table(mapper), identity or ()))
        if row is not None and row.matched is None:
            row.matched = True

    def check(self) -> None:
        """Raise if a row did not match.

        SQLAlchemy does this itself, with one exception: if the driver cannot count the rows of an executemany, SQLAlchemy
        sends two or more DELETEs one by one and ignores the counts; see test_of_many_deletes_those_that_are_stale_are_listed.

        Raises:
            StaleDataError: a row did not match.
        """
        missed = sum(row.matched is False for row in self.rows.values())
        if missed:
            raise StaleDataError(f"{missed} of {len(self.rows)} versioned rows were not matched")

    def saw(self, statement: Any, parameters: list[Mapping[str, Any]], result: CursorResult[Any]) -> None:
        """Note the row count of an executed statement."""
        names = self._names.get(getattr(statement, "table", None))
        if names is None or not parameters or not (statement.is_update or statement.is_delete):
            return
        which = 0 if statement.is_update else 1
        rows = [
            row
            for values in parameters
            if (row := self.rows.get((statement.table, tuple(values.get(name[which]) for name in names)))) is not None
        ]
        missed = len(parameters) - result.rowcount
        for row in rows:
            if missed == 0:
                row.matched = True
            elif len(parameters) == 1:
                row.matched = False
            else:
                row.uncertain = True
        if len(parameters) > 1 and missed:
            self._short.append((rows, missed))

    def stale(self) -> list[Stale]:
        """Return the rows that did not match, each with its current version and whether it is gone (None: not known)."""
        doubtful = [row for row in self.rows.values() if row.matched is not True]
        versions = _versions(doubtful)
        if versions is None:
            return [(row, None, None) for row in doubtful]
        ours = [row for rows, missed in self._short for row in self._deleted_by_us(rows, missed, versions)]
        found: list[Stale] = []
        for row in doubtful:
            current = versions.get((row.mapper, row.identity))
            if (row.matched is False or current != row.expected) and not any(row is one for one in ours):
                found.append((row, current, None if row.uncertain and current is None else current is None))
        return found

    @staticmethod
    def _deleted_by_us(rows: list[Row], missed: int, versions: Versions) -> list[Row]:
        """Return the rows of a many-row DELETE that did match.

        A row that is still there is stale. Of the rows that are gone, we deleted some, and others were gone before. The
        driver only tells how many. That is enough if we deleted none or all of them.
        """
        gone = [row for row in rows if (row.mapper, row.identity) not in versions]
        not_ours = missed - (len(rows) - len(gone))
        if not_ours == len(gone):
            for row in gone:
                row.uncertain = False
        return [] if not_ours else gone


def _table(mapper: Mapper[Any]) -> Any:
    """Return the table that holds the version."""
    return getattr(mapper.version_id_col, "table", None)


def _versions(rows: Iterable[Row]) -> Versions | None:
    """Read the versions of rows in the transaction that has just failed to write them; None if that fails too."""
    by_mapper: dict[tuple[Mapper[Any], Connection], list[Row]] = {}
    for row in rows:
        by_mapper.setdefault((row.mapper, row.connection), []).append(row)
    found: Versions = {}
    try:
        for (mapper, connection), its_rows in by_mapper.items():
            keys = key_columns(mapper)
            assert mapper.version_id_col is not None
            statement = select(*keys, mapper.version_id_col).where(is_any_of(keys, [row.identity for row in its_rows]))
            for *identity, version in connection.execute(statement):
                found[mapper, tuple(identity)] = version
    except SQLAlchemyError:
        # The caller must see the conflict; load() can still read what the rows hold now.
        return None
    return found


def watch_flushes(connection: Connection) -> None:
    """Report the row count of each statement on a connection to the flush that is running."""
    if not event.contains(connection, "after_execute", _after_execute):
        event.listen(connection, "after_execute", _after_execute)


def _after_execute(
    connection: Connection,
    statement: Any,
    multiparams: list[Mapping[str, Any]],
    params: Mapping[str, Any],
    execution_options: Any,
    result: CursorResult[Any],
) -> None:
    attempt = running.get()
    if attempt is not None and getattr(statement, "is_dml", False):
        attempt.saw(statement, multiparams or ([params] if params else []), result)
