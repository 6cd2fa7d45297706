"""What bulk needs to know about a dialect: which methods there are, how many rows each is fastest for, and more."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import literal
from sqlalchemy.exc import DBAPIError, StatementError

from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Column, ColumnElement, Table
    from sqlalchemy.engine import Connection, Dialect

Ladder = tuple[tuple[int, str], ...]
"""(smallest number of rows, method), the largest number first. The last resort is always "sqlalchemy"."""


class ColumnFacts(NamedTuple):
    """What the database says about a column.

    Attributes:
        type: its type, with domains resolved.
        kind: the kind of the type: "b" for a base type, "e" for an enumeration.
        element: for an array, the type of its elements; else None.
        generated: the database always generates its value.
    """

    type: str
    kind: str
    element: str | None
    generated: bool


def _begun(connection: Connection) -> None:
    """Do nothing: the driver begins a transaction on its own."""


def _never(connection: Connection) -> bool:
    return False


def _blames_the_row(error: BaseException) -> bool:
    return isinstance(error, StatementError) and not (isinstance(error, DBAPIError) and error.connection_invalidated)


def _no_better(column: Any, type_: Any, values: list[Any]) -> ColumnElement[bool] | None:
    return None


def _bound(value: Any, type_: Any) -> Any:
    return literal(value, type_)


def _as_python(connection: Connection, column: Column[Any]) -> Callable[[Any, Any], bool]:
    return lambda a, b: bool(a == b)


def _no(error: BaseException) -> bool:
    return False


def _none_told(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Sequence[Any] | None:
    return None


def _not_here(connection: Connection, table: Table, error: BaseException) -> bool:
    return False


def _only_the_type(type_: Any, dialect: Any) -> tuple[str, dict[str, Any]] | None:
    return None


def _nothing(connection: Connection) -> None:
    return None


def _same(dialect: Dialect) -> Dialect:
    return dialect


def _not_asked(connection: Connection, table: Table) -> str:
    return f"sessionkit does not know the catalogue of {connection.dialect.name}"


def _no_copy(
    connection: Connection, table: Table | str, columns: Sequence[Column[Any] | str], data: Iterable[bytes]
) -> int:
    raise OptionError(f"COPY was asked for, but sessionkit does not support it on {connection.dialect.name}")


def as_list(connection: Connection, type_: Any, values: Sequence[Any], absent: object) -> list[Any]:
    """Return what a type makes of values for the driver, and None for those that are `absent`."""
    process = type_._cached_bind_processor(connection.dialect) or _unchanged
    return [None if value is absent else process(value) for value in values]


def _unchanged(value: Any) -> Any:
    return value


def _a_list(
    connection: Connection, type_: Any, values: Sequence[Any], absent: object, pack: Callable[[Any], bytes]
) -> list[Any]:
    return as_list(connection, type_, values, absent)


def _unknown(error: BaseException, table: Table) -> str | None:
    return None


def _never_steady(connection: Connection, table: Table) -> bool:
    return False


class RefusedRow(NamedTuple):
    """What the server says about a row that it has refused.

    Attributes:
        place: the position of the row, counted from 1.
        fields: code, message, detail, hint, column, constraint, table, schema, type, context.
    """

    place: int
    fields: Sequence[str]


class Sifted(NamedTuple):
    """What happened to the rows of a temporary table.

    Attributes:
        refused: the rows that were not written.
        written: how many rows were written.
        new: for an upsert, how many of these are new.
    """

    refused: Sequence[RefusedRow]
    written: int
    new: int


class Sieve(NamedTuple):
    """How a server writes the good rows of a temporary table, and reports the others.

    Attributes:
        low, high: the names, in a statement, for the numbers of the first and the last row that it takes.
        make: makes a temporary table with a name and columns, and one column more, ``n``, that numbers the rows.
        empty: empties it, and numbers from 1 again.
        drop: drops it.
        script: makes the script around such a statement. With `counts` the statement selects two numbers: how many rows
            it has written and how many of them are new. With `first` the script ends at the first refused row. Raises if
            a value of the statement cannot be written as SQL.
        run: runs it for such a table.
        reads_words: returns whether the driver sends a value of any type as text for the server to read.
        error: makes the error that SQLAlchemy would have raised for a row, from a statement and its parameters.
        is_missing: returns whether an error says that the server cannot do this at all.
    """

    low: str
    high: str
    make: Callable[[Connection, str, str], None]
    empty: Callable[[Connection, str], None]
    drop: Callable[[Connection, str], None]
    script: Callable[..., str]
    run: Callable[[Connection, str, str], Sifted]
    reads_words: Callable[[Connection], bool]
    error: Callable[[Connection, RefusedRow, str, Any], DBAPIError]
    is_missing: Callable[[BaseException], bool]


@dataclass(frozen=True, slots=True)
class Bulk:
    """How one dialect moves many rows.

    Attributes:
        ladders: for each verb, the methods that `auto` chooses from, by size.
        forced: for each verb, the methods that can also be asked for by name.
        begin: makes sure that a transaction is open before a savepoint is set.
        has_not_begun: returns whether the driver has not begun a transaction yet, so that there is nothing to lose in it.
        blames_the_row: returns whether an error is about a row, so that leaving the row out would help; a lost
            connection, a deadlock or a full disk is not.
        column_of: returns the column that an error is about, as far as the driver says.
        upsert: makes an INSERT that has ``on_conflict_do_update``; None if the dialect has none.
        is_new: in RETURNING of an upsert, whether the row is new; None if the database cannot tell.
        locks_rows: the dialect has SELECT ... FOR UPDATE.
        any_of: ``column = any of these values``, with all of them in one parameter; None if IN is the best way for these.
        reserve: makes the database generate the values of these columns for a number of new rows of a table, and gives
            them to no other transaction; None if the rows may end up with other values. The last argument: an identity
            that is GENERATED ALWAYS is fine too.
        stored_as: an expression that turns a value of a type (``{}``) into the form that the driver stores, and the names
            it needs; None if only the type itself can do that. A value of another kind makes the expression raise.
        driverless: the dialect without a driver, whose types make plain Python values, not a driver's.
        unpackable: returns why packed data cannot be sent through a connection; None if they can.
        columns: what the catalogue says about the columns of a table; or, in words, why its rows must not be copied.
        parameter: makes an expression from a value on its own, if no column provides its type.
        stored_key: returns what the driver stores for a value of a type; None if only the server knows.
        canonical: makes the server write out values as a column would hold them; None if it cannot.
        same: returns a function that says whether two values are the same key in a column, by its type and collation.
        lacks_is_new: returns whether an error means that this table cannot provide `is_new`.
        is_policys: returns whether an error came from a policy of the table, which has refused a row. Asks the database.
        copy_in: sends binary COPY data, in parts, for columns of a table (or, by name, of a temporary one); returns the
            number of rows they made.
        array: makes the parameter for all the values of a column of a type, with NULL for absent ones: through the
            driver's own arrays, or packed by the function.
        tells_bad_rows: how to find the bad rows of a page by sending it once more: "counted" where `keeps_earlier` can
            hold, "sifted" where there is a `sieve`; "" if only savepoints can do it.
        keeps_earlier: returns whether a failing row of an executemany leaves nothing behind, and all rows before it stay.
        sieve: how the server itself separates bad rows from good ones.
        by_index: a block in which rows are found through the index, one after another, whatever the planner prefers.
    """

    ladders: Mapping[str, Ladder] = field(default_factory=dict[str, Ladder])
    forced: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    begin: Callable[[Connection], None] = _begun
    has_not_begun: Callable[[Connection], bool] = _never
    blames_the_row: Callable[[BaseException], bool] = _blames_the_row
    column_of: Callable[[BaseException, Table], str | None] = _unknown
    upsert: Callable[[Table], Any] | None = None
    is_new: ColumnElement[bool] | None = None
    locks_rows: bool = True
    any_of: Callable[[Any, Any, list[Any]], ColumnElement[bool] | None] = _no_better
    reserve: Callable[[Connection, Table, Sequence[Column[Any]], int, bool], list[tuple[Any, ...]] | None] | None = None
    parameter: Callable[[Any, Any], Any] = _bound
    stored_key: Callable[[Any, Dialect], Callable[[Any], Any] | None] | None = None
    canonical: Callable[[Connection, Column[Any], Sequence[Any]], Sequence[Any] | None] = _none_told
    same: Callable[[Connection, Column[Any]], Callable[[Any, Any], bool]] = _as_python
    lacks_is_new: Callable[[BaseException], bool] = _no
    is_policys: Callable[[Connection, Table, BaseException], bool] = _not_here
    stored_as: Callable[[Any, Any], tuple[str, dict[str, Any]] | None] = _only_the_type
    driverless: Callable[[Dialect], Dialect] = _same
    unpackable: Callable[[Connection], str | None] = _nothing
    columns: Callable[[Connection, Table], dict[str, ColumnFacts] | str] = _not_asked
    copy_in: Callable[[Connection, Table | str, Sequence[Column[Any] | str], Iterable[bytes]], int] = _no_copy
    array: Callable[[Connection, Any, Sequence[Any], object, Callable[[Any], bytes]], Any] = _a_list
    tells_bad_rows: str = ""
    keeps_earlier: Callable[[Connection, Table], bool] = _never_steady
    sieve: Sieve | None = None
    by_index: Callable[[Connection], AbstractContextManager[object]] = nullcontext
