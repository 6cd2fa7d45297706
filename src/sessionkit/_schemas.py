"""Tenants by schema: a unit's tables get other schema names, set on its connections for as long as it lasts.

Presets derive an engine for each combination of options, but there may be thousands of tenants, and a factory would keep
an engine for each of them.
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
"""The pairs of a map: they cannot change, and can be compared."""


def as_schemas(given: object, where: str) -> Schemas | None:
    """Return a ``schema_translate_map`` as its pairs.

    Raises:
        OptionError: it is not a mapping from schema names to schema names.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise OptionError(
            f"{OPTION}={given!r} was given to {where}; it is a mapping from schema names to schema names, such as "
            '{None: "tenant_1"}, or None'
        )
    for name in (*given, *given.values()):
        # SQLAlchemy takes "" for the default schema: a tenant whose name got lost would write into everybody's rows.
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(
                f"{OPTION}={given!r} was given to {where}, but {name!r} in it is not the name of a schema; use strings that "
                "are not empty, and None for tables without a schema"
            )
    return tuple(sorted(given.items(), key=repr))


def translate(session: Session, schemas: Schemas) -> None:
    """Make everything that `session` sends, flushes included, use the schema names in `schemas`."""
    wanted = dict(schemas)
    before: list[tuple[Connection, Any]] = []

    def on_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        if connection.get_execution_options().get(OPTION) != wanted:
            before.append((connection, connection.get_execution_options().get(OPTION)))
            connection.execution_options(**{OPTION: wanted})

    def on_end(_session: Session, transaction: SessionTransaction) -> None:
        # The session may be bound to a user's own connection: leave it as it was before.
        while transaction.parent is None and before:
            connection, had = before.pop()
            connection.execution_options(**{OPTION: had})

    event.listen(session, "after_begin", on_begin)
    event.listen(session, "after_transaction_end", on_end)


def own_schemas(connection: Connection) -> dict[str, Any]:
    """Return the execution options that make a statement use the engine's own map, whatever its unit asked for."""
    return {OPTION: connection.engine.get_execution_options().get(OPTION)}
