"""What bulk has to know of a dialect: which ways there are, from how many rows on each is the fastest, whom to blame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, StatementError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.engine import Connection

Ladder = tuple[tuple[int, str], ...]
"""(from how many rows on, which method), the largest number first. The last resort is always "sqlalchemy"."""


def _begun(connection: Connection) -> None:
    """Do nothing: the driver begins a transaction by itself."""


def _blames_the_row(error: BaseException) -> bool:
    return isinstance(error, StatementError) and not (isinstance(error, DBAPIError) and error.connection_invalidated)


def _unknown(error: BaseException, table: Table) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Bulk:
    """How one dialect moves many rows.

    Attributes:
        ladders: for each verb the methods that `auto` chooses from, by size.
        forced: for each verb the methods that can also be asked for by name.
        begin: makes sure that a transaction is open before a savepoint is set.
        blames_the_row: tells whether an error is about a row, so that leaving the row out would help; a lost
            connection, a deadlock or a full disk is not.
        column_of: names the column that an error is about, from what the driver tells.
        upsert: makes an INSERT that has ``on_conflict_do_update``; None where there is none.
        is_new: in RETURNING of an upsert, tells whether the row is new; None where the database cannot tell.
        locks_rows: SELECT ... FOR UPDATE exists.
        any_of: ``column = any of these values``, all of them as one parameter; None where there is nothing better
            than IN.
    """

    ladders: Mapping[str, Ladder] = field(default_factory=dict)
    forced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    begin: Callable[[Connection], None] = _begun
    blames_the_row: Callable[[BaseException], bool] = _blames_the_row
    column_of: Callable[[BaseException, Table], str | None] = _unknown
    upsert: Callable[[Table], Any] | None = None
    is_new: ColumnElement[bool] | None = None
    locks_rows: bool = True
    any_of: Callable[[Any, Any, list[Any]], ColumnElement[bool]] | None = None
