"""Tables: which code a driver's error carries, and what the code means. Imports nothing of sessionkit's.

The code decides, never the message (it is translated) and never the class (40001 is an OperationalError with psycopg and a
bare DBAPIError with asyncpg). Sources: PostgreSQL manual, appendix A; https://www.sqlite.org/rescode.html; MySQL and
MariaDB error references; https://www.cockroachlabs.com/docs/stable/transaction-retry-error-reference.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Meaning(NamedTuple):
    """What an error code means for the unit of work in which it happened.

    Attributes:
        kind: the name of the condition; PostgreSQL's name if it has one.
        retryable: running the whole unit again can succeed, without a decision by the application.
        ambiguous: if this is the answer to COMMIT, the transaction may or may not have been committed.
    """

    kind: str
    retryable: bool = False
    ambiguous: bool = False


OTHER = Meaning("other")
STALE_VERSION = Meaning("stale_version", retryable=True)
CONNECTION_LOST = Meaning("connection_lost", retryable=True, ambiguous=True)
CANNOT_CONNECT = Meaning("cannot_connect", retryable=True)
NO_PRIMARY = Meaning("read_only_sql_transaction", retryable=True)
"""A server refused to write and its connection was dropped because of it: the next one may lead to another server."""
NOT_LOCKED = Meaning("lock_not_available")  # the user asked not to wait

SQLSTATE = {
    "40001": Meaning("serialization_failure", retryable=True),  # also on a hot standby; at COMMIT a definite abort
    "40P01": Meaning("deadlock_detected", retryable=True),
    "40003": Meaning("statement_completion_unknown", ambiguous=True),  # CockroachDB, proxies
    "55P03": NOT_LOCKED,  # NOWAIT and lock_timeout
    "57014": Meaning("query_canceled"),
    "57P01": Meaning("admin_shutdown", retryable=True, ambiguous=True),  # may follow a successful local commit
    "57P02": Meaning("crash_shutdown", retryable=True, ambiguous=True),
    "57P03": CANNOT_CONNECT,
    "57P05": Meaning("idle_session_timeout", retryable=True, ambiguous=True),
    "25P03": Meaning("idle_in_transaction_session_timeout", retryable=True, ambiguous=True),
    "53300": CANNOT_CONNECT,  # too_many_connections: nothing was sent
    "23502": Meaning("not_null_violation"),
    "23503": Meaning("foreign_key_violation"),
    "23505": Meaning("unique_violation"),
    "23514": Meaning("check_violation"),
    "23P01": Meaning("exclusion_violation"),
    "25P02": Meaning("in_failed_sql_transaction"),  # the first error is the one to report
    "25006": Meaning("read_only_sql_transaction"),
    "53100": Meaning("disk_full"),
    "53200": Meaning("out_of_memory"),
    "53400": Meaning("configuration_limit_exceeded"),
}
"""By SQLSTATE; for all others see `SQLSTATE_CLASS`."""

SQLSTATE_CLASS = {
    "08": CONNECTION_LOST,
    "22": Meaning("data_exception"),
    "23": Meaning("integrity_constraint_violation"),
    "42": Meaning("syntax_error_or_access_rule_violation"),
    "58": Meaning("system_error"),
    "XX": Meaning("internal_error"),
}

SQLITE = {
    5: Meaning("busy", retryable=True),  # also BUSY_RECOVERY 261, BUSY_TIMEOUT 773
    517: Meaning("busy_snapshot", retryable=True),  # waiting cannot help, but a new transaction does
    6: Meaning("locked", retryable=True),  # also LOCKED_SHAREDCACHE 262
    7: Meaning("out_of_memory"),
    8: Meaning("read_only_sql_transaction"),
    9: Meaning("query_canceled"),
    10: Meaning("system_error"),
    11: Meaning("corrupt"),
    13: Meaning("disk_full"),
    14: Meaning("cannot_open"),
    19: Meaning("integrity_constraint_violation"),
    275: Meaning("check_violation"),
    787: Meaning("foreign_key_violation"),
    1299: Meaning("not_null_violation"),
    1555: Meaning("unique_violation"),
    2067: Meaning("unique_violation"),
    2579: Meaning("unique_violation"),
    26: Meaning("not_a_database"),
}
"""By extended result code; for all others look up the primary code, which is the lowest byte."""

MYSQL = {
    1213: Meaning("deadlock_detected", retryable=True),
    1205: Meaning(
        "lock_wait_timeout", retryable=True
    ),  # rolls back the statement only: the unit is run again from its first line
    1020: Meaning("record_changed", retryable=True),  # MariaDB
    1062: Meaning("unique_violation"),
    1048: Meaning("not_null_violation"),
    1451: Meaning("foreign_key_violation"),
    1452: Meaning("foreign_key_violation"),
    1792: Meaning("read_only_sql_transaction"),
    1040: CANNOT_CONNECT,
    2002: CANNOT_CONNECT,
    2003: CANNOT_CONNECT,
    2006: CONNECTION_LOST,
    2013: CONNECTION_LOST,
    2055: CONNECTION_LOST,
    4031: CONNECTION_LOST,
}
"""By error number, of MySQL and MariaDB. From their documentation; not in the test matrix."""

KINDS = frozenset(
    meaning.kind
    for meaning in (
        OTHER,
        STALE_VERSION,
        *SQLSTATE.values(),
        *SQLSTATE_CLASS.values(),
        *SQLITE.values(),
        *MYSQL.values(),
        CONNECTION_LOST,
        CANNOT_CONNECT,
    )
)
"""Every kind that `errors.classify` can return."""

_MYSQL_DRIVERS = frozenset({"pymysql", "MySQLdb", "mysql", "asyncmy", "aiomysql", "mariadb"})


class Code(NamedTuple):
    """A driver's code as text, and its meaning."""

    code: str
    meaning: Meaning


def is_asyncpgs(error: BaseException) -> bool:
    """Return whether an exception is one of asyncpg's own, which share no base class with those of other drivers."""
    return type(error).__module__.partition(".")[0] == "asyncpg"


def look_up(error: BaseException) -> Code | None:
    """Return the code that an exception itself carries, or None if it carries none."""
    state: Any = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str) and len(state) == 5:
        return Code(state, SQLSTATE.get(state) or SQLSTATE_CLASS.get(state[:2], OTHER))
    number: Any = getattr(error, "sqlite_errorcode", None)
    if isinstance(number, int):
        name = getattr(error, "sqlite_errorname", None)
        return Code(name or str(number), SQLITE.get(number) or SQLITE.get(number & 0xFF, OTHER))
    args = error.args
    if args and isinstance(args[0], int) and type(error).__module__.partition(".")[0] in _MYSQL_DRIVERS:
        return Code(str(args[0]), MYSQL.get(args[0], OTHER))
    return None
