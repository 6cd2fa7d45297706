"""How PostgreSQL moves many rows: COPY, arrays, a temporary table."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, ForeignKeyConstraint, PrimaryKeyConstraint, cast, func, literal, literal_column, text
from sqlalchemy.exc import DBAPIError, StatementError

from . import _copy_postgresql, _sieve_postgresql
from ._bulk import Bulk

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import ColumnElement, Constraint, Table
    from sqlalchemy.engine import Connection


def _blames_the_row(error: BaseException) -> bool:
    if not isinstance(error, StatementError):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    state = _sieve_postgresql.sqlstate(error.orig)
    if state is not None:
        return _sieve_postgresql.is_rows(state)
    # Without a SQLSTATE the server was not asked: a type or the driver could not bind a value. Or the server could no
    # longer be reached.
    return not _is_operational(error)


def _is_operational(error: StatementError) -> bool:
    return isinstance(error, DBAPIError) and type(error).__name__ in {"OperationalError", "InternalError"}


def _lacks_is_new(error: BaseException) -> bool:
    # A partitioned table cannot return a system column, and a view has none.
    return _sieve_postgresql.sqlstate(getattr(error, "orig", None)) in {"0A000", "42703"}


_HAS_POLICIES = text(
    "SELECT row_security_active(to_regclass(:name)) AND has_table_privilege(to_regclass(:name), 'INSERT, UPDATE')"
)


def _is_policys(connection: Connection, table: Table, error: BaseException) -> bool:
    # A missing privilege has the same code.
    if _sieve_postgresql.sqlstate(getattr(error, "orig", None)) != "42501":
        return False
    return bool(connection.scalar(_HAS_POLICIES, {"name": _copy_postgresql.table_name(connection, table)}))


def _column_of(error: BaseException, table: Table) -> str | None:
    orig = getattr(error, "orig", None)
    for source in (getattr(orig, "diag", None), getattr(orig, "__cause__", None), orig):
        name = getattr(source, "column_name", None)
        if name:
            return str(name)
        # A constraint on one column names it too.
        name = getattr(source, "constraint_name", None)
        for constraint in table.constraints if name else ():
            columns = getattr(constraint, "columns", ())
            if len(columns) == 1 and name in {constraint.name, _given_name(table, constraint)}:
                return str(next(iter(columns)).name)
    return None


def _given_name(table: Table, constraint: Constraint) -> str | None:
    """Return the name that PostgreSQL gives to a constraint without one."""
    if constraint.name is not None:
        return None
    if isinstance(constraint, PrimaryKeyConstraint):
        return f"{table.name}_pkey"
    columns: Any = getattr(constraint, "columns", ())
    (column,) = columns
    suffix = "fkey" if isinstance(constraint, ForeignKeyConstraint) else "key"
    return f"{table.name}_{column.name}_{suffix}"


def _upsert(table: Table) -> Any:
    # Imported at first use: it loads the whole dialect, which an application on another database never needs.
    from sqlalchemy.dialects.postgresql import insert

    return insert(table)


def _any_of(column: Any, type_: Any, values: list[Any]) -> ColumnElement[bool]:
    from sqlalchemy.dialects.postgresql import ARRAY

    result: ColumnElement[bool] = column == func.any(literal(values, ARRAY(type_)))
    return result


_JOINS = ("enable_hashjoin", "enable_mergejoin")
_TURN_OFF = text(
    "SELECT current_setting('enable_hashjoin'), current_setting('enable_mergejoin'),"
    " set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"
)
_TURN_BACK = text(
    "SELECT set_config('enable_hashjoin', :enable_hashjoin, true),"
    " set_config('enable_mergejoin', :enable_mergejoin, true)"
)


@contextmanager
def _by_index(connection: Connection) -> Generator[None]:
    # Beyond a few percent of a table the planner joins through a hash of the whole table. That takes half as long again,
    # and locks the rows in the order of the heap: two callers could then deadlock.
    before = connection.execute(_TURN_OFF).one()
    yield
    # If the block fails, its savepoint sets them back.
    connection.execute(_TURN_BACK, dict(zip(_JOINS, before, strict=False)))


BULK = Bulk(
    ladders={
        "insert": ((200, "copy"), (5, "unnest")),
        "update": ((2_000, "temp"), (5, "unnest")),
        "upsert": ((2_000, "temp"), (5, "unnest")),
        "delete": ((1, "unnest"),),
    },
    forced={
        "insert": ("copy", "unnest", "temp"),
        "update": ("unnest", "temp"),
        "upsert": ("unnest", "temp"),
        "delete": ("unnest", "temp"),
    },
    has_not_begun=_copy_postgresql.has_not_begun,
    blames_the_row=_blames_the_row,
    column_of=_column_of,
    upsert=_upsert,
    # A row that ON CONFLICT has updated was locked first, and so has an xmax; a new one has none.
    is_new=literal_column("(xmax = 0)", Boolean),
    any_of=_any_of,
    driverless=_copy_postgresql.driverless,
    unpackable=_copy_postgresql.unpackable,
    columns=_copy_postgresql.columns,
    reserve=_copy_postgresql.reserve,
    parameter=lambda value, type_: cast(literal(value, type_), type_),
    canonical=_copy_postgresql.canonical,
    same=_copy_postgresql.same,
    lacks_is_new=_lacks_is_new,
    is_policys=_is_policys,
    copy_in=_copy_postgresql.copy_in,
    array=_copy_postgresql.array,
    by_index=_by_index,
    tells_bad_rows="sifted",
    sieve=_sieve_postgresql.SIEVE,
)
