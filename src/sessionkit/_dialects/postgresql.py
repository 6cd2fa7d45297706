"""PostgreSQL: psycopg, psycopg2, asyncpg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._base import Dialect

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

# libpq, PQtransactionStatus: https://www.postgresql.org/docs/current/libpq-status.html
_INERROR, _UNKNOWN = 3, 4


def _lost(connection: Connection, driver_connection: Any) -> str | None:
    # psycopg and psycopg2 know the state from the protocol's ReadyForQuery; asyncpg does not tell it, there the
    # log of failed statements has to do.
    info = getattr(driver_connection, "info", None)
    status = getattr(info, "transaction_status", None)
    if status == _INERROR:
        return "a statement sent through the driver's own cursor failed, so the server has aborted the transaction"
    if status == _UNKNOWN:
        return "the connection to the server is lost"
    return None


DIALECT = Dialect("postgresql", lost=_lost)
