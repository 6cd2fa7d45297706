"""Tenants by schema: what a unit's tables are called, changed on its connections for as long as it lasts.

Not by an engine per map, as with a preset: there may be thousands of tenants, and a factory would keep an engine for
each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection

from .errors import OptionError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

OPTION = "schema_translate_map"

Schemas = tuple[tuple[str | None, str | None], ...]
"""The pairs of a map, so that it cannot change and can be compared."""


def as_schemas(given: object, where: str) -> Schemas | None:
    """Return a ``schema_translate_map`` as its pairs.

    Raises:
        OptionError: it is no mapping from schema names to schema names.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise OptionError(
            f"{OPTION}={given!r} was given to {where}; it is a mapping from schema names to schema names, such as "
            '{None: "tenant_1"}, or None'
        )
    for name in (*given, *given.values()):
        # SQLAlchemy takes "" for the default schema: a tenant whose name was lost would write among everybody's rows.
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(
                f"{OPTION}={given!r} was given to {where}; {name!r} in it is no name of a schema: those are strings that are "
                "not empty, and None for tables without one"
            )
    return tuple(sorted(given.items(), key=repr))


def translate(session: Session, schemas: Schemas) -> None:
    """Have whatever `session` sends name its tables' schemas as `schemas` says, flushes included."""
    wanted = dict(schemas)
    before: list[tuple[Connection, Any]] = []

    def on_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        if connection.get_execution_options().get(OPTION) != wanted:
            before.append((connection, connection.get_execution_options().get(OPTION)))
            connection.execution_options(**{OPTION: wanted})

    def on_end(_session: Session, transaction: SessionTransaction) -> None:
        # A connection that is the user's own, to which the session is bound, is as it was afterwards.
        while transaction.parent is None and before:
            connection, had = before.pop()
            connection.execution_options(**{OPTION: had})

    event.listen(session, "after_begin", on_begin)
    event.listen(session, "after_transaction_end", on_end)


def own_schemas(connection: Connection) -> dict[str, Any]:
    """Return the execution options under which a statement goes by the engine's map, whatever its unit asked for."""
    return {OPTION: connection.engine.get_execution_options().get(OPTION)}
