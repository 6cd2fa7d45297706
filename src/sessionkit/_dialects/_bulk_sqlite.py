"""How SQLite moves many rows: one prepared statement, and a real BEGIN before any savepoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, StatementError

from ._bulk import Bulk

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

# https://www.sqlite.org/rescode.html, primary codes: TOOBIG, CONSTRAINT, MISMATCH, RANGE.
_ROW_CODES = frozenset({18, 19, 20, 25})


def _begin(connection: Connection) -> None:
    # SAVEPOINT outside of a transaction would be one: its RELEASE would commit.
    if not getattr(connection.connection.driver_connection, "in_transaction", True):
        connection.exec_driver_sql("BEGIN")


def _blames_the_row(error: BaseException) -> bool:
    if not isinstance(error, StatementError):
        return False
    if not isinstance(error, DBAPIError):
        return True  # a type could not bind a value
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _ROW_CODES
    # Without a code SQLite was not asked: the driver could not bind a value. What is closed or misused says so by
    # ProgrammingError as well; the same error then comes back from the first row alone, with that row to blame.
    return type(error).__name__ in {"InterfaceError", "ProgrammingError", "DataError", "DBAPIError"}


# SQLite tells a column in the text only; it is written in its source, in no other language.
_FAILED = re.compile(r"constraint failed: (?P<table>[^,]+)\.(?P<column>[^.,]+)$")


def _column_of(error: BaseException, table: Table) -> str | None:
    match = _FAILED.search(str(getattr(error, "orig", "")))
    return match["column"] if match and match["table"] == table.name and match["column"] in _names(table) else None


def _names(table: Table) -> set[str]:
    return {column.name for column in table.columns}


def _upsert(table: Table) -> Any:
    from sqlalchemy.dialects.sqlite import insert

    return insert(table)


BULK = Bulk(
    ladders={verb: ((1, "executemany"),) for verb in ("insert", "update", "upsert", "delete")},
    forced={verb: ("executemany",) for verb in ("insert", "update", "upsert", "delete")},
    begin=_begin,
    blames_the_row=_blames_the_row,
    column_of=_column_of,
    upsert=_upsert,
    locks_rows=False,
)
