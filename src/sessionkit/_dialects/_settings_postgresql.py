"""Settings and role of a transaction on PostgreSQL: ``set_config(name, value, true)``, names and values bound.

SET LOCAL cannot be given a bound value, and several of them would be a round trip each. ``set_config('role', ...)`` is SET
LOCAL ROLE. All of it ends with the transaction, behind a pooler too.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SET
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ._settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection

    from ._settings import Beginning, Values


@lru_cache
def _set(count: int) -> Executable:
    """Return the statement for so many settings, made once: to build it would cost more than to send it."""
    return text(f"SELECT {', '.join(f'set_config(:name_{i}, :value_{i}, true)' for i in range(count))}")


@lru_cache
def _change(count: int) -> Executable:
    # What is set is set for each row of `before`, and so after that was read.
    before = ", ".join(f"current_setting(:name_{i}, true) AS before_{i}" for i in range(count))
    result = ", ".join(f"before_{i}" for i in range(count))
    changed = ", ".join(f"set_config(:name_{i}, :value_{i}, true)" for i in range(count))
    return text(f"WITH before AS MATERIALIZED (SELECT {before}) SELECT {result}, {changed} FROM before")  # noqa: S608 - of numbers


def send(connection: Connection, values: Values, statement: Any = _set) -> Any:
    """Set values, the role last: with it the right to set others may go.

    Raises:
        DBAPIError: what the server says of one of them, without the values that were sent.
    """
    parameters: dict[str, str | None] = {}
    for i, (name, value) in enumerate(values.items()):
        parameters[f"name_{i}"], parameters[f"value_{i}"] = name, value
    try:
        return connection.execute(statement(len(values)), parameters)
    except DBAPIError as error:
        error.hide_parameters = True
        raise


def _changed(connection: Connection, values: Values) -> Values:
    row = send(connection, values, _change).one()
    return dict(zip(values, row[: len(values)], strict=True))


def _put_back(connection: Connection, before: Values) -> None:
    # What never had a value cannot get none again in the same transaction: it is empty, as after the end of one.
    send(connection, before)


_IMMEDIATELY = text("SET CONSTRAINTS ALL IMMEDIATE")


def _drop_role(connection: Connection) -> None:
    connection.execute(_IMMEDIATELY)  # what is put off to the end was done by the role, and is checked as such
    send(connection, {"role": None})


def settings(begin: Any) -> Settings:
    """Return the entry; `begin` begins a transaction with values, by the keyword `values`."""

    def beginning(plain: Beginning, values: Values) -> Beginning:
        return plain._replace(before=partial(plain.before or begin, values=values))

    return Settings(beginning, _changed, _put_back, _drop_role)
